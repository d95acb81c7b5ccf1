"""Which coding, and that what comes out can be read by somebody else's decoder."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import zlib
from unittest import SkipTest

import brotli
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadResponse, CodingFailed
from twistedproxy.http import codings
from twistedproxy.http.codings import CODINGS, Decoder, Effort, accepts, choose, decoder, encoder, weights

VECTORS = (
    # RFC 9110 12.5.3, its own examples
    (b"compress, gzip", "gzip"),
    (b"", ""),
    (b"*", "zstd"),
    (b"compress;q=0.5, gzip;q=1.0", "gzip"),
    (b"gzip;q=1.0, identity; q=0.5, *;q=0", "gzip"),
    # browsers
    (b"gzip, deflate, br, zstd", "zstd"),
    (b"gzip, deflate, br", "br"),
    (b"gzip, deflate", "gzip"),
    (b"identity", ""),
    (b"identity;q=1, *;q=0", ""),
    # weights decide, then our order
    (b"zstd;q=0.5, br;q=0.8, gzip;q=0.7", "br"),
    (b"gzip;q=0.001", "gzip"),
    (b"gzip;q=0, br;q=0.000, zstd;q=0.0", ""),
    (b"gzip;q=0.5, identity", ""),
    (b"gzip, identity", "gzip"),
    (b"gzip;q=0.2, *;q=0.1", "gzip"),
    (b"*, zstd;q=0", "br"),
    (b"identity;q=0", ""),  # nothing that we have is acceptable: sent as it is (RFC 9110 12.5.3)
    # how it may be written
    (b"GZip , \tBR;Q=0.9", "gzip"),
    (b"x-gzip", "gzip"),
    (b",, gzip ,", "gzip"),
    # what is no weight is no wish
    (b"gzip;q=2", ""),
    (b"gzip;q=-1, br;q=1.1, zstd;q=0.1234", ""),
    (b"gzip;level=9", ""),
    (b"gzip;q=", ""),
    (b"gzip br", ""),
    (b"gzip;q=0, gzip", ""),
    # bounds
    (b"gzip, " + b"x" * 1100, ""),
    (b"a, " * 40 + b"gzip", ""),
)


class ChooseTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """The client's q-values decide, our order among equals; nobody gets what he did not ask for."""
        for accept, expected in VECTORS:
            for _ in "12":  # the second answer is the remembered one
                self.assertEqual(choose(accept, CODINGS), expected, accept)

    def test_only_what_is_offered(self) -> None:
        """A coding that is not configured is never chosen, by a star neither."""
        self.assertEqual(choose(b"zstd, br, gzip;q=0.1", ("gzip",)), "gzip")
        self.assertEqual(choose(b"*", ("br", "gzip")), "br")
        self.assertEqual(choose(b"zstd", ("br", "gzip")), "")
        self.assertEqual(choose(b"gzip", ()), "")

    def test_can_this_client_read_it(self) -> None:
        """Silence means no: whoever can read gzip says so."""
        self.assertEqual([accepts(a, "br") for a in (b"", b"gzip", b"br;q=0", b"*;q=0", b"br;q=0.1", b"*", b"identity, br;q=0.1")],
                         [False, False, False, False, True, True, True])  # fmt: skip

    @given(st.binary(max_size=300))
    @settings(max_examples=200, deadline=None, derandomize=True)
    def test_any_bytes(self, accept: bytes) -> None:
        """No field breaks it, and the answer is always one of ours."""
        self.assertIn(choose(accept, CODINGS), (*CODINGS, ""))
        self.assertLessEqual(len(weights(accept)), 32)

    def test_memory_is_bounded(self) -> None:
        """A client that never says the same twice does not make the worker grow."""
        for n in range(2000):
            choose(b"gzip, x%d" % n, CODINGS)
            choose(b"gzip, %d" % n + b"y" * 300, CODINGS)
        self.assertLessEqual(codings._choose.cache_info().currsize, 512)


def undone(coding: str, data: bytes) -> bytes:
    """By a decoder that is not ours, all at once."""
    if coding == "gzip":
        return gzip.decompress(data)
    if coding == "br":
        return bytes(brotli.decompress(data))
    return bytes(zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(data))


def done(coding: str, data: bytes) -> bytes:
    """By an encoder that is not ours."""
    if coding == "gzip":
        return gzip.compress(data)
    return bytes(brotli.compress(data)) if coding == "br" else zstandard.ZstdCompressor().compress(data)


def all_of(undoing: Decoder, data: bytes) -> bytes:
    out = undoing.decompress(data)
    while undoing.is_behind:
        out += undoing.decompress(b"")
    return out + undoing.finish()


TEXT = b"".join(b"<li>item %d of a list that goes on</li>\n" % n for n in range(4000))


PIECES = st.lists(st.one_of(st.binary(max_size=2000), st.integers(1, 9000).map(lambda n: TEXT[:n])), max_size=8)


class EncoderTests(SynchronousTestCase):
    @given(st.sampled_from(CODINGS), PIECES, st.integers(1, 9), st.booleans(), st.booleans())
    @settings(max_examples=120, deadline=None, derandomize=True)
    def test_round_trips(self, coding: str, pieces: list[bytes], level: int, flushes: bool, is_stream: bool) -> None:
        """Whatever the pieces, levels and flushes: an independent decoder gives back the same bytes."""
        whole = b"".join(pieces)
        coder = encoder(coding, level, -1 if flushes else len(whole), is_stream)
        out = b"".join([coder.compress(piece) + (coder.flush() if flushes else b"") for piece in pieces]) + coder.finish()
        self.assertEqual(undone(coding, out), whole)
        self.assertEqual(all_of(decoder(coding), out), whole)

    def test_what_was_flushed_can_be_read(self) -> None:
        """An event reaches its reader before the next one is made."""
        for coding in CODINGS:
            for is_stream in (False, True):
                coder, reader = encoder(coding, 3, is_stream=is_stream), decoder(coding)
                for event in (b"data: one\n\n", b"data: two\n\n", TEXT):
                    out = reader.decompress(coder.compress(event) + coder.flush())
                    while reader.is_behind:
                        out += reader.decompress(b"")
                    self.assertEqual(out, event, coding)

    def test_many_at_once(self) -> None:
        """Bodies in progress share nothing: zstd's working memory is lent to one at a time and comes back."""
        for coding in CODINGS:
            for _ in range(3):
                coders = [encoder(coding, 3) for _ in range(6)]
                outs = [coder.compress(TEXT[n * 100 :]) for n, coder in enumerate(coders)]
                for n, coder in enumerate(coders):
                    self.assertEqual(undone(coding, outs[n] + coder.finish()), TEXT[n * 100 :], coding)
        self.assertLessEqual(sum(map(len, codings._free.values())), codings._MOST_FREE)

    def test_the_zstd_of_the_system_reads_it(self) -> None:
        """Also with a window no larger than RFC 9659 lets a reader demand."""
        if shutil.which("zstd") is None:
            raise SkipTest("zstd is not installed: apt-get install zstd")
        coder = encoder("zstd", 19)
        data = coder.compress(TEXT) + coder.finish()
        read = subprocess.run(["zstd", "-dc", "--memory=8MB"], input=data, capture_output=True, check=True)
        self.assertEqual(read.stdout, TEXT)

    def test_gzip_without_isal(self) -> None:
        """The extra is not installed: the standard library does it, with the same format."""
        self.patch(codings, "_isal_compressor", lambda: None)
        for level in (1, 3, 9):
            for size in (100, len(TEXT), -1):
                coder = encoder("gzip", level, size, size < 0)
                self.assertEqual(gzip.decompress(coder.compress(TEXT) + coder.flush() + coder.finish()), TEXT)

    def test_a_library_that_fails_is_our_error(self) -> None:
        """Whatever it raises, the exchange hears a ProxyError with the reason under which it is counted."""
        error = self.assertRaises(CodingFailed, encoder, "br", 99)
        self.assertEqual(error.reason, "compression")
        spent = encoder("zstd", 3)
        spent.finish()
        self.assertRaises(CodingFailed, spent.compress, b"x")

    def test_isal_is_smaller_than_nginx(self) -> None:
        """Level 1 of what does gzip here is not larger than zlib's, so that what it saves in time costs nothing in size."""
        if codings._isal_compressor() is None:
            return
        coder, theirs = encoder("gzip", 1), zlib.compressobj(1, zlib.DEFLATED, 31)
        ours = coder.compress(TEXT) + coder.finish()
        self.assertLessEqual(len(ours), len(theirs.compress(TEXT) + theirs.flush()))


class DecoderTests(SynchronousTestCase):
    def test_byte_by_byte(self) -> None:
        """However the network cuts it."""
        for coding in CODINGS:
            reader, data = decoder(coding), done(coding, TEXT[:5000])
            out = b"".join([reader.decompress(data[i : i + 1]) for i in range(len(data))])
            self.assertEqual(out + reader.finish(), TEXT[:5000], coding)

    def test_several_members_are_one_body(self) -> None:
        """gzip and zstd may be written in parts, one after the other."""
        for coding in ("gzip", "zstd"):
            data = done(coding, b"one ") + done(coding, b"two")
            self.assertEqual(all_of(decoder(coding), data), b"one two", coding)
            reader = decoder(coding)
            self.assertEqual(b"".join([reader.decompress(data[i : i + 1]) for i in range(len(data))]), b"one two", coding)

    def test_little_at_a_time(self) -> None:
        """A small body that stands for a large one comes out in pieces, so that a slow client does not make the worker swell."""
        large = bytes(3 * 1024 * 1024)
        for coding in ("gzip", "br"):
            reader, data = decoder(coding), done(coding, large)
            pieces = [reader.decompress(data)]
            while reader.is_behind:
                pieces.append(reader.decompress(b""))
            self.assertLess(max(map(len, pieces)), 2 * codings.STEP + 1, coding)
            self.assertEqual(sum(map(len, pieces)), len(large))

    def test_bombs(self) -> None:
        """What grows beyond all measure is refused before it has grown."""
        for coding in CODINGS:
            coder = encoder(coding, 3)
            data = b"".join([coder.compress(bytes(1 << 20)) for _ in range(300)]) + coder.finish()
            self.assertLess(len(data), 2_000_000)
            reader = decoder(coding)
            seen = 0

            def blow(reader: Decoder = reader, data: bytes = data) -> None:
                nonlocal seen
                seen = len(reader.decompress(data))
                while reader.is_behind:
                    seen += len(reader.decompress(b""))

            error = self.assertRaises(BadResponse, blow)
            self.assertIn("250 times", error.detail)
            self.assertLessEqual(seen, max(codings.FREE_OUTPUT, codings.MOST_TIMES * len(data)), coding)

    def test_broken_bodies(self) -> None:
        """Cut short, garbage, garbage behind the end, the wrong coding: an error, never bytes that seem to be all."""
        for coding in CODINGS:
            data = done(coding, TEXT)
            for broken in (data[:-5], b"no such thing " * 9, data + b"\0junk", done("br" if coding == "gzip" else "gzip", TEXT)):
                self.assertRaises(BadResponse, lambda b=broken, c=coding: all_of(decoder(c), b))
            self.assertEqual(all_of(decoder(coding), b""), b"")

    @given(st.sampled_from(CODINGS), st.binary(max_size=400))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_any_bytes(self, coding: str, data: bytes) -> None:
        """Nothing but BadResponse comes out of a hostile body."""
        for start in (b"", done(coding, b"some text")[:-3]):
            try:
                all_of(decoder(coding), start + data)
            except BadResponse:
                continue


class EffortTests(SynchronousTestCase):
    def test_levels_step_down(self) -> None:
        """A busy worker compresses less, an overloaded one not at all; what is low already stays."""
        effort = Effort()
        found = []
        for effort.ease in range(3):
            found.append([effort.level("zstd", 9), effort.level("br", 5), effort.level("gzip", 1)])
        self.assertEqual(found, [[9, 5, 1], [2, 1, 1], [1, 0, 1]])
        self.assertEqual((effort.may_begin(), effort.eased["lower"]), (True, 4))
        effort.ease = codings.NO_MORE
        self.assertFalse(effort.may_begin())
        effort.ease, effort.open = 0, codings.MOST_OPEN
        self.assertFalse(effort.may_begin())
        self.assertEqual((effort.eased["load"], effort.eased["many"]), (1, 1))

    def test_lowest_levels_work(self) -> None:
        """The levels that load brings are levels of their library."""
        for table in codings._EASED:
            for coding, level in table.items():
                self.assertTrue(codings.LEVELS[coding][0] <= level <= codings.LEVELS[coding][1])
                coder = encoder(coding, level)
                self.assertEqual(undone(coding, coder.compress(TEXT) + coder.finish()), TEXT)
