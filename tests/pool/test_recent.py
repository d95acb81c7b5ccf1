"""The keys of late are a fair and bounded sample, and cost those pools nothing that do not go by keys."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, Queue
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.pool.pool import Lease, Pool, recent_keys
from twistedproxy.pool.recent import KEPT_S, PER_SECOND, RecentKeys, goes_by_keys
from twistedproxy.pool.server import Outcome


class RecentKeysTests(SynchronousTestCase):
    def test_so_many_a_second_for_so_long(self) -> None:
        recent = RecentKeys()
        for second in range(300):
            for n in range(1000):
                recent.note(n, 1000.0 + second + n / 1000)
        counts = recent.counts(1300.0)
        self.assertEqual(sum(times for _, times in counts), PER_SECOND * KEPT_S)
        self.assertEqual(recent.counts(1300.0 + 2 * KEPT_S), [])

    def test_which_balancers_go_by_keys(self) -> None:
        self.assertTrue(goes_by_keys("hash:header.X-User") and goes_by_keys("source_ip"))
        self.assertFalse(goes_by_keys("round_robin"))


class PoolTests(SynchronousTestCase):
    def pool(self, balance: str) -> Pool:
        servers = tuple(ServerSpec(Address(f"10.0.0.{n}:80"), max_connections=1) for n in (1, 2))
        spec = PoolSpec("web", servers, balance=balance, queue=Queue(size=1, timeout_s=5.0))
        return Pool(spec, seconds=lambda: 100.0, wheel=Wheel(lambda: 100.0), random=Random(1))

    def test_each_request_is_noted_once(self) -> None:
        """Whether it is served at once, tried again elsewhere, waits in line or is refused."""
        pool = self.pool("hash:path")
        first = pool.acquire(1, frozenset(), lambda _: None)
        assert isinstance(first, Lease)
        pool.acquire(1, frozenset({first.server}), lambda _: None)
        for key in (2, 3):
            pool.acquire(key, frozenset(), lambda _: None)
        pool.re_check(100.0)
        first.release(Outcome.OK)
        self.assertEqual(sorted(recent_keys(pool)), [(1, 1), (2, 1), (3, 1)])

    def test_others_note_nothing(self) -> None:
        pool = self.pool("round_robin")
        pool.acquire(1, frozenset(), lambda _: None)
        self.assertEqual(recent_keys(pool), [])
        self.assertIs(pool._view.pick, pool._view._take)
