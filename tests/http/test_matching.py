"""What a rule asks of a request."""

from __future__ import annotations

import re
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import When
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.http.matching import Glob, Imagined, conditions, cookies, parameters


def head(line: str = "GET / HTTP/1.1", *fields: str) -> Any:
    return parse_request("\r\n".join((line, "Host: h", *fields, "", "")).encode("latin-1"), Limits())


def objection(when: When, request: Any, client: str = "10.1.2.3") -> str:
    return next((why for condition in conditions(when) if (why := condition(request, client))), "")


TABLE: list[tuple[When, Any, str]] = [
    (When(), head(), ""),
    (When(path="/checkout/*"), head("GET /checkout/a/b HTTP/1.1"), ""),
    (When(path="/checkout/*"), head("GET /checkout HTTP/1.1"), "path does not match '/checkout/*'"),
    (When(path="*.png"), head("GET /a/b.png HTTP/1.1"), ""),
    (When(path="/a*b*c"), head("GET /aXbYbc HTTP/1.1"), ""),
    (When(path="/%61dmin"), head("GET /%61dmin HTTP/1.1"), "path does not match '/%61dmin'"),  # both sides are canonical
    (When(method=("POST", "PUT")), head("PUT / HTTP/1.1"), ""),
    (When(method=("POST",)), head(), "method is GET, not POST"),
    (When(header=(("X-Beta", ("1", "2")),)), head("GET / HTTP/1.1", "x-BETA: 2"), ""),
    (When(header=(("X-Beta", ("1",)),)), head("GET / HTTP/1.1", "X-Beta: 3", "X-Beta: 1"), ""),
    (When(header=(("X-Beta", ("1",)),)), head("GET / HTTP/1.1", "X-Beta: 11"), "header X-Beta is not '1'"),
    (When(header=(("X-Beta", ("*",)),)), head(), "header X-Beta is absent"),
    (When(header=(("User-Agent", ("*curl*",)),)), head("GET / HTTP/1.1", "User-Agent: \xff curl/8"), ""),
    (When(cookie=(("tier", ("gold",)),)), head("GET / HTTP/1.1", 'Cookie: a=b; Tier="gold"'), ""),
    (When(cookie=(("tier", ("gold",)),)), head("GET / HTTP/1.1", "Cookie: xtier=gold"), "cookie tier is absent"),
    (When(query=(("v", ("2",)),)), head("GET /?a=1&V=2 HTTP/1.1"), ""),
    (When(query=(("v", ("a b",)),)), head("GET /?v=a+b HTTP/1.1"), ""),
    (When(query=(("v", ("",)),)), head("GET /?v HTTP/1.1"), ""),
    (When(client=("10.0.0.0/8",)), head(), ""),
    (When(client=("192.168.0.0/16",)), head(), "client 10.1.2.3 is not in 192.168.0.0/16"),
    (When(path="/x", method=("GET",), client=("10.0.0.0/8",)), head("GET /x HTTP/1.1"), ""),
]


class MatchingTests(SynchronousTestCase):
    def test_each_key_says_why_it_does_not_match(self) -> None:
        """All keys must match, any of several values may; names ignore case (RT-08: what is no UTF-8 is just bytes)."""
        for when, request, why in TABLE:
            with self.subTest(when):
                self.assertEqual(objection(when, request), why)

    def test_a_client_s_certificate(self) -> None:
        """Each part is matched as a whole; a name with its kind, so no e-mail address passes for a host; without one nothing matches."""
        alice = Imagined("CN=alice,OU=staff", ("DNS:a.staff.example", "URI:spiffe://x/a,DNS:root.example"), "ab" * 32)
        for part, values, why in (
            ("subject", ("CN=bob,*", "CN=alice,*"), ""),
            ("subject", ("CN=alice",), "client_cert subject is 'CN=alice,OU=staff', not 'CN=alice'"),
            ("san", ("DNS:*.staff.example",), ""),
            ("san", ("URI:spiffe://x/*",), ""),
            ("san", ("DNS:root.example",), "client_cert san is "),  # a comma in a name makes no second name
            ("san", ("email:*",), "client_cert san is "),
            ("sha256", ("00" * 32, "ab" * 32), ""),
        ):
            (condition,) = conditions(When(client_cert=((part, values),)))
            said = condition(head(), "10.1.2.3", alice)
            self.assertEqual((bool(said), said.startswith(why)), (bool(why), True), (part, values, said))
            for nobody in (None, Imagined()):
                self.assertEqual(condition(head(), "10.1.2.3", nobody), "the client has shown no certificate")

    def test_a_client_without_address_is_in_no_network(self) -> None:
        """The peer of a unix socket matches no `client`."""
        self.assertIn("without an IP", objection(When(client=("0.0.0.0/0",)), head(), ""))

    @given(st.text("ab*/", max_size=12), st.text("ab/", max_size=20))
    def test_globs_mean_what_a_regular_expression_would(self, pattern: str, text: str) -> None:
        """``*`` is anything, everything else itself."""
        wanted = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None
        self.assertEqual(Glob(pattern).matches(text.encode()), wanted)

    def test_a_pattern_of_stars_takes_linear_time(self) -> None:
        """No pattern and path together can hang a worker."""
        began = time.process_time()
        self.assertFalse(Glob("*a" * 100 + "b").matches(b"a" * 100_000))
        self.assertLess(time.process_time() - began, 0.5)

    def test_cookies_and_parameters_are_taken_apart(self) -> None:
        """Several fields, spaces, quotes, escapes, and what has no value."""
        request = head("GET / HTTP/1.1", "Cookie: a=1;b=2", 'Cookie: c="3"; d')
        self.assertEqual(list(cookies(request)), [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
        self.assertEqual(list(parameters(b"a=%41&&b&c=x%3Dy=z")), [(b"a", b"A"), (b"b", b""), (b"c", b"x=y=z")])
