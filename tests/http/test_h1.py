"""Framing: how long a body is, chunked bodies taken apart strictly, and the heads we write ourselves."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadBody, BadResponse
from twistedproxy.http.h1 import (
    MAX_EXTENSION_BYTES,
    ChunkedReader,
    chunk,
    last_chunk,
    response_head,
    status_line,
)
from twistedproxy.http.messages import LocalResponse

VECTORS = tomllib.loads((Path(__file__).parent.parent / "vectors" / "chunked.toml").read_text("utf-8"))["vector"]


def read(data: bytes, step: int) -> tuple[Any, ...]:
    """(payload, is_done, leftover, trailers) of `data` fed `step` bytes at a time, or the error's class."""
    reader = ChunkedReader()
    payload = []
    try:
        for i in range(0, len(data), step):
            payload.append(reader.feed(data[i : i + step]))
    except BadBody:
        return (BadBody,)
    return b"".join(payload), reader.is_done, reader.leftover, reader.trailers


class ChunkedVectorTests(SynchronousTestCase):
    """One test per vector: whole, in pieces, byte by byte."""

    def check(self, vector: dict[str, Any]) -> None:
        data = vector["body"].encode("latin-1")
        expected: tuple[Any, ...] = (BadBody,)
        if "payload" in vector:
            trailers = tuple((n.encode(), v.encode()) for n, v in vector.get("trailers", ()))
            expected = (vector["payload"].encode("latin-1"), True, vector.get("left", "").encode(), trailers)
        for step in (len(data), 1, 2, 3, 5):
            self.assertEqual(read(data, step), expected, f"step {step}")
        if "payload" in vector and "left" not in vector:
            self.assertEqual(read(data + b"NEXT", len(data) + 4)[2], b"NEXT")
            for end in range(len(data)):
                self.assertFalse(read(data[:end], max(end, 1))[1], "done before its end")


for _vector in VECTORS:

    def _test(self: ChunkedVectorTests, vector: dict[str, Any] = _vector) -> None:
        self.check(vector)

    _test.__doc__ = _vector["id"]
    setattr(ChunkedVectorTests, "test_" + "".join(c if c.isalnum() else "_" for c in _vector["id"]), _test)


class ChunkedTests(SynchronousTestCase):
    """Budgets, cost, and who is blamed."""

    def test_SM_10_one_long_size_line(self) -> None:
        """A chunk-size line without end is refused within a kilobyte, however it comes."""
        for step in (1, 100, 5000):
            reader = ChunkedReader()
            fed = 0
            with self.assertRaises(BadBody):
                while True:
                    reader.feed((b"5;" + b"a" * 5000)[fed : fed + step])
                    fed += step
            self.assertLessEqual(fed, 1024)

    def test_SM_10_extensions_have_a_budget(self) -> None:
        """Many small extensions together are refused too."""
        reader = ChunkedReader()
        one = b"1;" + b"a" * 99 + b"\r\nx\r\n"
        for _ in range(MAX_EXTENSION_BYTES // 100):
            reader.feed(one)
        self.assertRaises(BadBody, reader.feed, one)

    def test_SM_10_small_chunks_cost_linear_time(self) -> None:
        """A hundred thousand chunks of one byte, in one piece, in small pieces and byte by byte."""
        data = b"1\r\nx\r\n" * 100_000
        for step, budget in ((len(data), 1.0), (64, 2.0), (1, 5.0)):
            reader = ChunkedReader()
            begin = time.process_time()
            total = sum(len(reader.feed(data[i : i + step])) for i in range(0, len(data), step))
            self.assertEqual(total, 100_000)
            self.assertLess(time.process_time() - begin, budget)

    def test_SM_11_many_trailers(self) -> None:
        """More than 32 trailer fields, or 8 KiB of them, are refused, also without an end in sight."""
        self.assertEqual(read(b"0\r\n" + b"X: y\r\n" * 32 + b"\r\n", 7)[1], True)
        self.assertEqual(read(b"0\r\n" + b"X: y\r\n" * 33 + b"\r\n", 7), (BadBody,))
        self.assertEqual(read(b"0\r\nX: " + b"y" * 9000, 50), (BadBody,))
        self.assertEqual(read(b"0\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 9, 50), (BadBody,))

    def test_SM_18_a_server_is_blamed_for_its_own_chunks(self) -> None:
        """The error of a response body is a 502."""
        self.assertEqual(self.assertRaises(BadResponse, ChunkedReader(BadResponse).feed, b"x").status, 502)

    def test_early_refusal(self) -> None:
        """What can no longer become a chunk is refused before its line ends."""
        for data in (b"g", b"1g", b"5 ", b"12345678901234567", b"\n", b"1\r\nxy", b"1\r\nx\rz", b"0\r\nX ", b"0\r\n X"):
            self.assertEqual(read(data, 1), (BadBody,), data)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.integers(1, 50), st.binary(max_size=20))
    def test_SM_12_what_we_write_we_read(self, pieces: list[bytes], step: int, after: bytes) -> None:
        """Our own chunks give back the payload exactly, however they are cut."""
        data = b"".join(map(chunk, pieces)) + last_chunk(((b"X-Sum", b"1"),)) + after
        self.assertEqual(read(data, step), (b"".join(pieces), True, after, ((b"X-Sum", b"1"),)))

    def test_SM_12_an_empty_write_does_not_end_the_body(self) -> None:
        """No data is no chunk; only last_chunk ends a body."""
        self.assertEqual(chunk(b""), b"")
        self.assertEqual(last_chunk(()), b"0\r\n\r\n")


class WriterTests(SynchronousTestCase):
    """Heads of answers made here."""

    def test_local_answer(self) -> None:
        """Status, fields, length, and what becomes of the connection."""
        local = LocalResponse(404, b"gone", ((b"Content-Type", b"text/plain"),))
        start = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n"
        self.assertEqual(response_head(local, 1, True), start + b"\r\n")
        self.assertEqual(response_head(local, 1, False), start + b"Connection: close\r\n\r\n")
        self.assertEqual(response_head(local, 0, True), start + b"Connection: keep-alive\r\n\r\n")
        self.assertIn(b"\r\nDate: now\r\n", response_head(local, 1, True, b"now"))
        self.assertEqual(response_head(LocalResponse(204), 1, True), b"HTTP/1.1 204 No Content\r\n\r\n")
        self.assertEqual(status_line(299), b"HTTP/1.1 299 \r\n")

    def test_SM_19_no_line_can_be_injected(self) -> None:
        """Line ends and NUL in a value are taken out."""
        local = LocalResponse(302, b"", ((b"Location", b"/a\r\nSet-Cookie: x=\x00y"),))
        self.assertIn(b"Location: /aSet-Cookie: x=y\r\n", response_head(local, 1, True))
