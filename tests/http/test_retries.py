"""The rule of safe retries, case by case."""

from __future__ import annotations

from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.http.retries import IDEMPOTENT, NOTHING_SENT, REUSED, Retries
from twistedproxy.pool.server import Server

ALL = frozenset({"connect", "reused", "timeout", "502", "503", "504"})


class FakePool:
    def __init__(self) -> None:
        self.budget = 100
        self.running = 0

    def may_retry(self) -> bool:
        if self.running >= self.budget:
            return False
        self.running += 1
        return True

    def retry_done(self) -> None:
        self.running -= 1


class FakeDestination:
    def __init__(self, tries: int = 2, retry_on: frozenset[str] = ALL) -> None:
        self.pool = FakePool()
        self.tries = tries
        self.retry_on = retry_on


def server(port: int = 1) -> Server:
    return Server(ServerSpec(Address(f"127.0.0.1:{port}")), 1)


class RuleTests(SynchronousTestCase):
    def allows(self, reason: str, method: bytes = b"GET", is_replayable: bool = True, **how: Any) -> bool:
        return Retries(cast(Any, FakeDestination(**how))).allow(reason, server(), method, is_replayable)

    def test_when_nothing_was_sent_any_method_may_be_tried_again(self) -> None:
        for method in (b"GET", b"POST", b"PATCH", b"X-OWN"):
            for is_replayable in (True, False):
                self.assertTrue(self.allows(NOTHING_SENT, method, is_replayable))

    def test_otherwise_only_what_may_happen_twice_and_is_at_hand(self) -> None:
        for reason in ALL - {NOTHING_SENT}:
            for method in (b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"):
                self.assertIn(method, IDEMPOTENT)
                self.assertTrue(self.allows(reason, method))
                self.assertFalse(self.allows(reason, method, is_replayable=False))
            for method in (b"POST", b"PATCH", b"LOCK", b"get", b"X-OWN"):
                self.assertFalse(self.allows(reason, method), (reason, method))

    def test_only_for_the_reasons_asked_for(self) -> None:
        for reason in ALL:
            self.assertFalse(self.allows(reason, retry_on=ALL - {reason}))
            self.assertTrue(self.allows(reason, retry_on=frozenset({reason})))

    def test_tries_bound_all_reasons_together_and_every_server_is_tried_once(self) -> None:
        retries = Retries(cast(Any, FakeDestination(tries=2)))
        servers = [server(i) for i in range(1, 4)]
        self.assertTrue(retries.allow("connect", servers[0], b"GET", True))
        self.assertTrue(retries.allow("503", servers[1], b"GET", True))
        self.assertFalse(retries.allow("connect", servers[2], b"GET", True))
        self.assertEqual(retries.tried, frozenset(servers[:2]))

    def test_a_stale_connection_is_forgiven_once_beside_those_tries_and_does_not_blame_its_server(self) -> None:
        retries = Retries(cast(Any, FakeDestination(tries=1)))
        self.assertTrue(retries.allow(REUSED, server(), b"GET", True))
        self.assertEqual((retries.tried, retries.has_stale_connection), (frozenset(), True))
        self.assertFalse(retries.allow(REUSED, server(), b"GET", True))
        self.assertTrue(retries.allow("connect", server(), b"GET", True))
        self.assertFalse(retries.allow("connect", server(), b"GET", True))

    def test_no_tries_means_none_but_for_a_stale_connection(self) -> None:
        self.assertFalse(self.allows("connect", tries=0))
        self.assertTrue(self.allows(REUSED, tries=0))


class BudgetTests(SynchronousTestCase):
    def test_a_request_takes_its_share_of_the_budget_once_and_gives_it_back(self) -> None:
        destination = FakeDestination(tries=5)
        retries = Retries(cast(Any, destination))
        for i in range(3):
            retries.allow("connect", server(i + 1), b"GET", True)
        self.assertEqual(destination.pool.running, 1)
        retries.done()
        self.assertEqual(destination.pool.running, 0)

    def test_a_request_that_was_refused_takes_nothing(self) -> None:
        destination = FakeDestination()
        retries = Retries(cast(Any, destination))
        self.assertFalse(retries.allow("timeout", server(), b"POST", True))
        destination.pool.budget = 0
        self.assertFalse(retries.allow("connect", server(), b"GET", True))
        self.assertEqual(retries.tried, frozenset())
        retries.done()
        self.assertEqual(destination.pool.running, 0)
