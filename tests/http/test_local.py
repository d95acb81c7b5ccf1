"""What the proxy answers itself whatever the routes say, and how Max-Forwards is counted down."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadHead
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.http.local import SPECIAL, forwards_field, hops_left, local_answer
from twistedproxy.http.messages import LocalResponse


def head(method: bytes, *lines: bytes, target: bytes = b"/") -> Any:
    found = parse_request(b"%b %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method, target, b"".join(x + b"\r\n" for x in lines)), Limits())
    assert found is not None
    return found


class LocalTests(SynchronousTestCase):
    def answer(self, method: bytes, *lines: bytes) -> LocalResponse | BadHead | None:
        return local_answer(method, head(method, *lines))

    def test_SM_22_CONNECT_is_405(self) -> None:
        error = local_answer(b"CONNECT", head(b"CONNECT", target=b"a:443"))
        assert isinstance(error, BadHead)
        self.assertEqual(error.status, 405)

    def test_TRACE_and_OPTIONS_end_here_when_they_must_go_no_further(self) -> None:
        options = self.answer(b"OPTIONS", b"Max-Forwards: 0")
        assert isinstance(options, LocalResponse)
        self.assertEqual((options.status, options.body), (200, b""))
        self.assertEqual(options.fields[0][0], b"Allow")
        trace = self.answer(b"TRACE", b"Max-Forwards: 0", b"X-A: 1")
        assert isinstance(trace, LocalResponse)
        self.assertEqual(trace.fields, ((b"Content-Type", b"message/http"),))
        self.assertEqual(trace.body, b"TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\nX-A: 1\r\n\r\n")

    def test_TRACE_tells_no_secrets(self) -> None:
        secret = (b"Authorization: s3cret", b"COOKIE: s3cret", b"Proxy-Authorization: s3cret", b"X-Revproxy-Explain: s3cret")
        trace = self.answer(b"TRACE", b"Max-Forwards: 0", *secret)
        assert isinstance(trace, LocalResponse)
        self.assertNotIn(b"s3cret", trace.body)

    def test_all_others_go_on(self) -> None:
        for method in (b"GET", b"POST", b"TRACE", b"OPTIONS", b"X-OWN"):
            for lines in ((), (b"Max-Forwards: 1",), (b"Max-Forwards: x",), (b"Max-Forwards: -0",), (b"Max-Forwards:",)):
                self.assertIsNone(self.answer(method, *lines), (method, lines))
        self.assertIsNone(self.answer(b"GET", b"Max-Forwards: 0"))
        self.assertNotIn(b"GET", SPECIAL)

    def test_hops_are_digits_only(self) -> None:
        for value, hops in ((b"0", 0), (b"10", 10), (b"007", 7), (b"1" * 20, None), (b"+1", None), ("٣".encode(), None), (b"", None)):
            self.assertEqual(hops_left(head(b"TRACE", b"Max-Forwards: " + value)), hops, value)
        self.assertIsNone(hops_left(head(b"TRACE")))

    def test_what_goes_on_has_one_hop_less(self) -> None:
        self.assertEqual(forwards_field(head(b"TRACE", b"Max-Forwards: 5")), b"Max-Forwards: 4\r\n")
        self.assertEqual(forwards_field(head(b"TRACE")), b"")
