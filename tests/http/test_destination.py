"""What a route means: the key a request is balanced by, and the settings it carries."""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, Pool, Retry, Route, Server, Site, Timeouts
from twistedproxy.http.destination import Destination, cookie, query_value
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.balancers import stable_hash
from twistedproxy.pool.pool import Pool as RunningPool


def destination(balance: str = "round_robin", via: str | None = None, **route: Any) -> Destination:
    spec = Pool("web", (Server(Address("127.0.0.1:1")),), balance=balance, retry=Retry(tries=7, on=("connect", "503")), send_proxy=2)
    pool = RunningPool(spec, seconds=lambda: 0.0, wheel=Wheel(lambda: 0.0), random=random.Random(1))
    return Destination(Site("s", ("*",), (), via), Route("/", "web", **route), pool, Metrics())


def head(*lines: bytes, target: bytes = b"/") -> Any:
    found = parse_request(b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, b"".join(x + b"\r\n" for x in lines)), Limits())
    assert found is not None
    return found


class KeyTests(SynchronousTestCase):
    def key(self, balance: str, request: Any, ip: str = "1.1.1.1") -> int:
        key_of = destination(balance).key_of
        assert key_of is not None
        return key_of(request, ip)

    def test_balances_that_do_not_look_at_the_request_cost_no_key(self) -> None:
        for balance in ("round_robin", "least_conn", "p2c", "random", "least_time"):
            self.assertIsNone(destination(balance).key_of, balance)

    def test_what_each_balance_goes_by(self) -> None:
        request = head(b"X-User: bob", b"Cookie: a=1; tier=gold", target=b"/p?id=7&id=8")
        for balance, value in (
            ("source_ip", b"1.1.1.1"),
            ("hash:path", b"/p"),
            ("hash:header.X-User", b"bob"),
            ("hash:cookie.tier", b"gold"),
            ("hash:query.id", b"7"),
            ("hash:header.Absent", b""),
            ("hash:cookie.absent", b""),
            ("hash:query.absent", b""),
        ):
            self.assertEqual(self.key(balance, request), stable_hash(value), balance)

    def test_RT_03_the_canonical_path_counts(self) -> None:
        self.assertEqual(self.key("hash:path", head(target=b"/x/../%61?q")), self.key("hash:path", head(target=b"/a")))

    def test_an_unknown_balance_is_refused_when_the_configuration_is_compiled(self) -> None:
        with self.assertRaises(ValueError):
            destination("hash:moon.phase")


class PickingTests(SynchronousTestCase):
    def test_cookies(self) -> None:
        for lines, value in (
            ([b"Cookie: a=1"], b"1"),
            ([b"Cookie: b=2; a=1; a=3"], b"1"),
            ([b"Cookie: b=2", b"Cookie: a=1"], b"1"),
            ([b"Cookie: A=2"], None),
            ([b"Cookie: a"], None),
            ([b"Cookie: xa=2; a="], b""),
            ([b"Cookie: a=x=y"], b"x=y"),
            ([], None),
        ):
            self.assertEqual(cookie(head(*lines), b"a"), value, lines)

    def test_query_values(self) -> None:
        for query, value in ((b"a=1", b"1"), (b"b=2&a=1&a=3", b"1"), (b"a", b""), (b"A=1", None), (b"", None), (b"a=%41", b"%41")):
            self.assertEqual(query_value(query, b"a"), value, query)


class SettingsTests(SynchronousTestCase):
    def test_everything_a_request_needs_is_at_hand(self) -> None:
        timeouts = Timeouts(request_s=1.0)
        it = destination(via="edge", max_body=5, timeouts=timeouts)
        self.assertEqual((it.max_body, it.timeouts, it.via), (5, timeouts, b"Via: 1.1 edge\r\n"))
        self.assertEqual((it.tries, it.retry_on, it.send_proxy), (7, frozenset({"connect", "503"}), 2))
        self.assertEqual((it.site, it.pool.name), ("s", "web"))
        self.assertEqual(destination().via, b"")
