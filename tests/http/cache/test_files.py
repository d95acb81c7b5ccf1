"""The form of a file on disk."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache import files
from twistedproxy.http.cache.files import Corrupt

keys = st.binary(min_size=16, max_size=16)
lengths = st.integers(0, files.MAX_BODY) | st.sampled_from([files.GROWING, files.BROKEN])


class FormTests(SynchronousTestCase):
    @given(keys, st.binary(max_size=300), lengths)
    def test_a_head_says_what_was_put_into_it(self, key: bytes, meta: bytes, length: int) -> None:
        data = files.pack_head(key, meta, length)
        head = files.parse_head(data + meta)
        self.assertEqual((head.key, head.length, head.meta_length, len(data)), (key, length, len(meta), files.HEADER_BYTES))

    @given(keys, st.binary(max_size=50), st.integers(0, 63), st.integers(0, 7))
    def test_a_flipped_bit_is_seen_by_checksum_or_size(self, key: bytes, meta: bytes, at: int, bit: int) -> None:
        """All of the head but its unused end; the length of the body is held against the size of the file."""
        whole = files.pack_head(key, meta, 1000)
        data = bytearray(whole)
        data[at] ^= 1 << bit
        try:
            head = files.parse_head(bytes(data))
        except Corrupt:
            return
        if at < 52:
            self.assertNotEqual(head.length, 1000)

    @given(st.binary(max_size=200))
    def test_anything_else_is_corrupt(self, data: bytes) -> None:
        self.assertRaises(Corrupt, files.parse_head, data)

    @given(st.integers(0, 20 << 20), st.data())
    def test_the_table_has_one_checksum_for_each_block(self, length: int, data: st.DataObject) -> None:
        checksums = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=-(-length // files.BLOCK), max_size=-(-length // files.BLOCK)))
        table = files.pack_table(checksums)
        self.assertEqual(len(table), files.table_bytes(length))
        self.assertEqual(files.parse_table(table, length, files.BLOCK), tuple(checksums))
        self.assertRaises(Corrupt, files.parse_table, table[:-1] + bytes([table[-1] ^ 1]), length, files.BLOCK)
        self.assertRaises(Corrupt, files.parse_table, table[:-1], length, files.BLOCK)
