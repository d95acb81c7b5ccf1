"""Parts of a complete body: what a Range gets, and that it never gets more than the whole."""

from __future__ import annotations

import importlib.util
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.ranges import Answer, parse, partial, unsatisfiable_head, wanted
from twistedproxy.http.cache.stored import Stored
from twistedproxy.http.head import parse_response

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]
ask, answer, keep, T0 = heads.ask, heads.answer, heads.keep, heads.T0

WHOLE, NONE = Answer.WHOLE, Answer.UNSATISFIABLE
BODY = bytes(range(256)) * 40
SIZE = len(BODY)


def copy(*fields: str, size: int = SIZE) -> Stored:
    lines = ["Cache-Control: max-age=60", "Content-Type: text/plain", *fields, heads.DATE, f"Content-Length: {size}"]
    stored: Stored = keep(lines, bare=True)
    return stored


class ParseTests(SynchronousTestCase):
    def test_table(self) -> None:
        """Every form (RFC 9110 14.1.2), and everything that is none."""
        table: dict[bytes, Any] = {
            b"bytes=0-4": ((0, 4),), b"bytes=5-": ((5, 9999),), b"bytes=-3": ((9997, 9999),), b"BYTES=0-0": ((0, 0),),
            b"bytes=9999-20000": ((9999, 9999),), b"bytes=-20000": ((0, 9999),), b"bytes= 0-1 , 500-600": ((0, 1), (500, 600)),
            b"bytes=0-1,20000-": ((0, 1),), b"bytes=10000-": NONE, b"bytes=-0": NONE, b"bytes=20000-30000,10000-": NONE,
            b"bytes=999999999999999999-": NONE, b"bytes=500-600,0-1": ((500, 600), (0, 1)),
            # not to be read: the whole
            b"bytes=5-4": WHOLE, b"bytes=": WHOLE, b"bytes": WHOLE, b"bytes=-": WHOLE, b"bytes=a-b": WHOLE, b"bytes=0-1,": WHOLE,
            b"bytes 0-1": WHOLE, b"items=0-1": WHOLE, b"bytes=0-1;2-3": WHOLE, b"bytes=--1": WHOLE, b"bytes=1e1-": WHOLE,
            b"bytes=0-9999999999999999999": WHOLE, b"bytes=-9999999999999999999": WHOLE,
        }  # fmt: skip
        wrong = [(value, found) for value, expected in table.items() if (found := parse(value, 10_000)) != expected]
        self.assertEqual(wrong, [])

    def test_empty_body(self) -> None:
        """Of nothing there is no part."""
        self.assertEqual((parse(b"bytes=0-", 0), parse(b"bytes=-5", 0)), (NONE, WHOLE))

    def test_many_overlapping_tiny(self) -> None:
        """Requests for the same bytes again and again, or for one byte at a time, get the whole once."""
        for value in (
            b"0-,0-,0-",
            b"0-10,5-20",
            b"0-99,0-99",
            b",".join(b"%d-%d" % (n, n) for n in range(0, 400, 2)),
            b"-1,-2",
            b"-9000,0-2000",
        ):
            self.assertIs(parse(b"bytes=" + value, 10_000), WHOLE, value)
        self.assertIs(parse(b"bytes=0-0,2-2,4-4", 250), WHOLE)

    @settings(deadline=None, derandomize=True)
    @given(st.text(alphabet="bytes=0123456789-, ", max_size=40), st.integers(0, 2000))
    def test_never_more_than_the_whole(self, value: str, size: int) -> None:
        """Whatever is asked for: parts lie inside the body, do not overlap, and are not more than it (CVE-2017-7529)."""
        found = parse(b"bytes=" + value.encode(), size)
        if isinstance(found, tuple):
            for first, last in found:
                self.assertTrue(0 <= first <= last < size, found)
            self.assertLessEqual(sum(last - first + 1 for first, last in found), size)


class WantedTests(SynchronousTestCase):
    def test_when_it_does_not_count(self) -> None:
        """A Range is for GET, for a 200 of known length, and for the very answer If-Range names."""
        stored = copy('ETag: "x"')
        self.assertEqual(wanted(stored, ask(["Range: bytes=0-1", 'If-Range: "x"'])), ((0, 1),))
        self.assertIs(wanted(stored, ask()), WHOLE)
        self.assertIs(wanted(stored, ask(["Range: bytes=0-1"], method="HEAD")), WHOLE)
        self.assertIs(wanted(stored, ask(["Range: bytes=0-1", 'If-Range: "y"'])), WHOLE)
        self.assertIs(wanted(stored, ask(["Range: bytes=0-1", "Range: bytes=2-3"])), WHOLE)
        moved = keep(["Cache-Control: max-age=60", "Location: /y"], status=301)
        self.assertIs(wanted(moved, ask(["Range: bytes=0-1"])), WHOLE)
        unknown = keep(["Cache-Control: max-age=60", "Transfer-Encoding: chunked"], bare=True)
        self.assertIs(wanted(unknown, ask(["Range: bytes=0-1"])), WHOLE)


class AnswerTests(SynchronousTestCase):
    def sent(self, stored: Stored, *ranges: tuple[int, int]) -> tuple[Any, bytes]:
        found = partial(stored, ranges, T0 + 3, b"b0b0", b"X-Cache: hit\r\n")
        body = b"".join(part.before + BODY[part.first : part.first + part.length] for part in found.parts) + found.after
        head = parse_response(found.head)
        assert head is not None
        self.assertEqual((head.status, head.size, head.content_length), (206, len(found.head), len(body)))
        self.assertEqual(found.body_length, len(body))
        self.assertEqual((head.get(b"age"), head.get(b"x-cache")), (b"3", b"hit"))
        return head, body

    def test_one_part(self) -> None:
        """Its bytes, and where they lie; what a server put into Content-Range of a 200 is not repeated (CA-07)."""
        head, body = self.sent(copy("Content-Range: bytes 7-8/9"), (256, 511))
        self.assertEqual(body, bytes(range(256)))
        self.assertEqual(head.get_all(b"content-range"), [b"bytes 256-511/10240"])
        self.assertEqual(head.get_all(b"content-type"), [b"text/plain"])

    def test_several_parts(self) -> None:
        """Any MIME parser takes them apart again."""
        head, body = self.sent(copy(), (0, 9), (600, 700))
        self.assertEqual(head.get_all(b"content-type"), [b"multipart/byteranges; boundary=b0b0"])
        self.assertIsNone(head.get(b"content-range"))
        message = BytesParser().parsebytes(b"Content-Type: " + head.get(b"content-type") + b"\r\n\r\n" + body)
        parts = message.get_payload()
        assert isinstance(parts, list)
        self.assertEqual([part["Content-Range"] for part in parts], ["bytes 0-9/10240", "bytes 600-700/10240"])
        self.assertEqual([part["Content-Type"] for part in parts], ["text/plain"] * 2)
        self.assertEqual(body.count(BODY[600:701]), 1)

    def test_none(self) -> None:
        """A client that asks for what is not there is told how much there is."""
        head = parse_response(unsatisfiable_head(copy()))
        assert head is not None
        self.assertEqual((head.status, head.get(b"content-range"), head.content_length), (416, b"bytes */10240", 0))
