"""The plain codec's short way: it takes ordinary heads, takes them as the long way does, and never refuses."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadHead
from twistedproxy.http import _pure
from twistedproxy.http import head as chosen
from twistedproxy.http._pure import Head, Limits, RequestHead
from twistedproxy.http.kinds import REQUEST_SHAPES
from twistedproxy.http.messages import MAX_LOG_PIECES, Kind

BROWSER = (
    b"GET /a/b?c=d HTTP/1.1\r\nHost: www.example.com:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\nReferer: http://www.example.com/\r\nCookie: a=b; c=d\r\nConnection: keep-alive\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nDate: Sat, 21 Nov 2026 20:22:24 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 100\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n"
)


def portrait(head: Any) -> dict[str, Any]:
    found = {name: getattr(head, name) for name in dir(head) if name[0] != "_" and not callable(getattr(head, name))}
    found["fields"] = list(head.fields())
    found["written"] = [head.write_h1(None, 1 << bit, (b"cookie",), b"|") for bit in range(14)]
    return found


class ShortWayTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.long = 0

        def counted(way: Any) -> Any:
            def call(*args: Any) -> Any:
                self.long += 1
                return way(*args)

            return call

        for name in ("_parse_request", "_parse_response"):
            self.patch(_pure, name, counted(getattr(_pure, name)))

    def test_ordinary_heads_go_the_short_way(self) -> None:
        """What browsers, curl and common servers send costs the short way only, whatever the values are."""
        for data in (
            BROWSER,
            BROWSER.replace(b"keep-alive", b"close"),
            b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n",
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa9: y\r\n\r\n",
        ):
            self.assertIsNotNone(_pure.parse_request(data, Limits()))
            self.assertEqual(self.long, 0, data)
        for data in (ANSWER, ANSWER.replace(b"200 OK", b"404 Not Found"), b"HTTP/1.1 304 Not Modified\r\nEtag: x\r\n\r\n"):
            self.assertIsNotNone(_pure.parse_response(data))
            self.assertEqual(self.long, 0, data)

    def test_both_ways_read_alike(self) -> None:
        """A head means the same by either way, to the last attribute."""
        spec = importlib.util.spec_from_file_location("fuzz_head", Path(__file__).with_name("fuzz_head.py"))
        assert spec is not None and spec.loader is not None
        fuzz = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fuzz)
        rng = random.Random(8)
        short = 0
        for _ in range(4000):
            data = fuzz.build(rng)
            before = self.long
            try:
                head = _pure.parse_request(data, Limits())
            except BadHead:
                self.assertEqual(self.long, before + 1, "the short way refused a head")
                continue
            if self.long == before:
                assert head is not None
                short += 1
                again = _pure._parse_request(data, Limits())
                assert again is not None
                self.assertEqual(portrait(head), portrait(again), data)
        self.assertGreater(short, 200)

    def test_limits_hold_on_the_short_way(self) -> None:
        """A limit is kept to the byte by either way."""
        line = len(b"GET /a/b?c=d HTTP/1.1")
        longest = max(map(len, BROWSER.split(b"\r\n")))
        for exact in ({"max_head": len(BROWSER)}, {"max_request_line": line}, {"max_field": longest}, {"max_fields": 7}):
            self.assertIsNotNone(_pure.parse_request(BROWSER, Limits(**exact)))
            self.assertEqual(self.long, 0, exact)
            (name, value), *_ = exact.items()
            self.assertRaises(BadHead, _pure.parse_request, BROWSER, Limits(**{name: value - 1}))
            self.long = 0

    def test_lines_without_a_colon(self) -> None:
        """A list of names seen before does not make a field of a line that is none."""
        for good, bad in ((b"X-Flag: ", b"X-Flag"), (b"X-Flag: y", b"X-Flag:y"), (b"X-Flag: y", b"X-Flag : y")):
            start = b"GET / HTTP/1.1\r\nHost: a\r\n"
            taken = _pure.parse_request(start + good + b"\r\n\r\n", Limits())
            assert taken is not None
            if bad == b"X-Flag:y":
                again = _pure.parse_request(start + bad + b"\r\n\r\n", Limits())
                assert again is not None
                self.assertEqual(again.write_h1(None, 0, (), b""), taken.write_h1(None, 0, (), b""))
            else:
                self.assertRaises(BadHead, _pure.parse_request, start + bad + b"\r\n\r\n", Limits())

    def test_values_are_not_remembered(self) -> None:
        """Nothing of a value stays when the head is gone: what is learnt is names."""
        _pure.parse_request(BROWSER.replace(b"a=b", b"S3CRET"), Limits())
        _pure.parse_request(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization:S3CRET x\r\n\r\n", Limits())
        self.assertNotIn("S3CRET", repr(list(REQUEST_SHAPES)))


class HeadTests(SynchronousTestCase):
    def head(self, data: bytes) -> RequestHead:
        head = _pure.parse_request(data, Limits())
        assert head is not None
        return head

    def test_keep_alive_nominates(self) -> None:
        """Connection: keep-alive makes a Keep-Alive field one of this hop, by the short way too."""
        head = _pure.parse_response(ANSWER)
        assert head is not None
        self.assertTrue(head.kinds & Kind.NOMINATED)
        self.assertNotIn(b"timeout", head.write_h1(None, Kind.NOMINATED, (), b""))

    def test_attributes_are_each_heads_own(self) -> None:
        """What most heads have is said once for all; a head that differs changes nothing for the others."""
        self.head(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n")
        plain = self.head(BROWSER)
        self.assertEqual((plain.wants_close, plain.content_length, plain.body_length), (False, -1, 0))
        self.assertEqual((Head.wants_close, Head.content_length), (False, -1))

    @settings(max_examples=400, deadline=None)
    @given(st.binary(max_size=30), st.binary(max_size=30) | st.just(b"x" * MAX_LOG_PIECES))
    def test_log_pieces(self, target: bytes, agent: bytes) -> None:
        """Both codecs hand a log the same pieces, and only what can be written as it is."""
        data = b"GET /?%b HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\nReferer:\r\n\r\n" % (target, agent)
        for codec in (_pure, chosen):
            try:
                head: Any = codec.parse_request(data, codec.Limits())
            except BadHead:
                continue
            if head is None:
                continue
            pieces = head.log_pieces()
            text = (head.method + head.target + (head.get(b"user-agent") or b"")).decode("latin-1")
            is_plain = all(" " <= c <= "~" and c not in '"\\' for c in text) and len(text) <= MAX_LOG_PIECES
            self.assertEqual(pieces is not None, is_plain, data)
            if pieces is not None:
                self.assertEqual(pieces[3], None if head.get(b"referer") is None else "")  # none when a CR LF cut the head short
                self.assertEqual(pieces[0] + pieces[1] + (pieces[4] or ""), text)
