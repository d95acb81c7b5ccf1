"""What is wrong with a line: refused at the first byte that cannot be, never before."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http._pure import Limits
from twistedproxy.http.lines import field_fault, first_line, odd_line, request_line_fault, status_line_fault


class FaultTests(SynchronousTestCase):
    def check(self, fault: Callable[[bytes, bool], str | None], line: bytes, rule: str, bad_from: int) -> None:
        """`line` breaks `rule` when complete; incomplete, from `bad_from` bytes on."""
        self.assertEqual(fault(line, True), rule, line)
        for end in range(1, len(line) + 1):
            self.assertEqual(fault(line[:end], False), rule if end >= bad_from else None, line[:end])

    def test_request_lines(self) -> None:
        """Each part of a request line is judged as soon as it can be."""
        for line, rule, bad_from in (
            (b" / HTTP/1.1", "method", 1),
            (b"G@T / HTTP/1.1", "method", 2),
            (b"A" * 33 + b" /", "method", 33),
            (b"GET  / HTTP/1.1", "target_bytes", 5),
            (b"GET /\xe9 HTTP/1.1", "target_bytes", 6),
            (b"GET / http/1.1", "version_form", 7),
            (b"GET / HTTP/2.0", "version", 14),
            (b"GET / HTTP/1.1 ", "version_form", 15),
        ):
            self.check(request_line_fault, line, rule, bad_from)
        for line, rule in (
            (b"GET", "no_version"),
            (b"GET /", "no_version"),
            (b"GET / ", "version_form"),
            (b"GET / HTTP/1.", "version_form"),
        ):
            self.check(request_line_fault, line, rule, len(line) + 1)
        self.assertIsNone(request_line_fault(b"GET / HTTP/1.1", True))

    def test_status_lines(self) -> None:
        """The same for status lines."""
        for line, bad_from in ((b"HTTP/1.2 200 x", 8), (b"HTTP/1.1 099 x", 10), (b"HTTP/1.1 2000", 13), (b"HTTP/1.1 200 \x00", 14)):
            self.check(status_line_fault, line, "status_line", bad_from)
        self.assertIsNone(status_line_fault(b"HTTP/1.1 200", True))
        self.assertEqual(status_line_fault(b"HTTP/1.1 20", True), "status_line")

    def test_fields(self) -> None:
        """The same for fields."""
        for line, rule, bad_from in (
            (b" X: y", "field_fold", 1),
            (b": y", "field_name", 1),
            (b"X : y", "field_name", 2),
            (b"X: \x00y", "field_value", 4),
            (b"X: a\rb", "bare_cr", 5),
        ):
            self.check(field_fault, line, rule, bad_from)
        self.check(field_fault, b"X", "field_name", 2)
        self.assertIsNone(field_fault(b"X:", True))


class PlaceTests(SynchronousTestCase):
    def test_limits_come_first(self) -> None:
        """A line that is too long is that, whatever else it is; at the limit it is judged by its grammar."""
        limits = Limits(max_head=100, max_request_line=20, max_field=20, max_fields=2)
        self.assertEqual(first_line(b"\x00" * 21, 0, limits, True), (0, "request_line_long"))
        self.assertEqual(first_line(b"\x00" * 21, 0, limits, False), (0, "status_line_long"))
        self.assertEqual(first_line(b"\x00" * 20, 0, limits, True), (0, "method"))
        self.assertEqual(odd_line(b"X: " + b"y" * 18, 0, limits, 0), "field_long")
        self.assertEqual(odd_line(b"X: " + b"y" * 17 + b"\r", 0, limits, 0), "")
        self.assertEqual(odd_line(b"v" * 90 + b"X: y1234567", 90, limits, 0), "head_long")
        self.assertEqual(odd_line(b"X", 0, limits, 2), "fields_many")

    def test_line_ends(self) -> None:
        """LF alone ends no line; the empty line ends the head."""
        limits = Limits()
        self.assertEqual(first_line(b"GET / HTTP/1.1\n", 0, limits, True)[1], "bare_lf")
        self.assertEqual(odd_line(b"X: y\n", 0, limits, 0), "bare_lf")
        self.assertIsNone(odd_line(b"\r\n", 0, limits, 0))
        for begun in (b"", b"\r", b"X: y", b"X: y\r"):
            self.assertEqual(odd_line(begun, 0, limits, 0), "", begun)
