"""Files written with one library are read with the other."""

import zlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.checksum import crc32


class ChecksumTests(SynchronousTestCase):
    @given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
    def test_it_is_the_checksum_of_zlib(self, data: bytes, start: int) -> None:
        """A cache filled with isal installed is good without it, and the other way round."""
        self.assertEqual(crc32(data), zlib.crc32(data))
        self.assertEqual(crc32(memoryview(data), start), zlib.crc32(data, start))
