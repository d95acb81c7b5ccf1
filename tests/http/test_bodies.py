"""A body of known length: what belongs to it and what comes after, however it is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.bodies import LengthReader


class LengthReaderTests(SynchronousTestCase):
    @given(st.binary(min_size=1, max_size=60), st.integers(1, 40), st.integers(1, 9))
    def test_it_takes_its_length_and_keeps_the_rest(self, data: bytes, length: int, step: int) -> None:
        reader = LengthReader(length)
        body, at = b"", 0
        while at < len(data) and not reader.is_done:
            body += reader.feed(data[at : at + step])
            at += step
        self.assertEqual(body, data[:length])
        self.assertEqual(reader.is_done, len(data) >= length)
        self.assertEqual(reader.leftover, data[length:at] if reader.is_done else b"")
        self.assertEqual(reader.left, max(length - len(data), 0))
        self.assertEqual(reader.trailers, ())

    def test_an_empty_piece_changes_nothing(self) -> None:
        reader = LengthReader(3)
        self.assertEqual((reader.feed(b""), reader.left, reader.is_done), (b"", 3, False))
