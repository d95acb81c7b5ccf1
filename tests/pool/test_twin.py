"""What a twin of a pool says is what the pool does."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, AdminState, Health
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.pool.balancers import stable_hash
from twistedproxy.pool.pool import Lease, Pool
from twistedproxy.pool.server import Outcome
from twistedproxy.pool.twin import Known, replay, twin

SERVERS = tuple(ServerSpec(Address(f"10.0.0.{n}:80")) for n in (1, 2, 3, 4))
SPEC = PoolSpec("web", SERVERS, balance="hash:path")
KEYS = [(stable_hash(b"/%d" % n), 1) for n in range(1000)]


def picked(pool: Pool, key: int) -> str:
    lease = pool.acquire(key, frozenset(), lambda _: None)
    assert isinstance(lease, Lease)
    lease.release(Outcome.OK)
    return lease.server.address


class TwinTests(SynchronousTestCase):
    def test_it_picks_what_the_pool_picks(self) -> None:
        """With a server down and one ejected, too."""
        pool = Pool(SPEC, seconds=lambda: 50.0, wheel=Wheel(lambda: 50.0), random=Random(3))
        pool.observe_health("10.0.0.1:80", Health.DOWN)
        pool.eject("10.0.0.2:80", 80.0)
        copy = twin(Known(SPEC, {"10.0.0.1:80": Health.DOWN}, frozenset({"10.0.0.2:80"})))
        self.assertEqual([picked(copy, key) for key, _ in KEYS], [picked(pool, key) for key, _ in KEYS])

    def test_a_drained_server_s_keys_move_and_no_others(self) -> None:
        drained = replace(SPEC, servers=(replace(SERVERS[0], state_set=AdminState.DRAIN), *SERVERS[1:]))
        found = replay(Known(SPEC), Known(drained), KEYS)
        self.assertEqual((found.requests, found.moved / 1000), (1000, found.before["10.0.0.1:80"]))
        self.assertNotIn("10.0.0.1:80", found.after)
        self.assertApproximates(found.before["10.0.0.1:80"], 0.25, 0.06)

    def test_nobody_left_is_no_share(self) -> None:
        away = frozenset(str(server.address) for server in SERVERS)
        found = replay(Known(SPEC), Known(SPEC, ejected=away), KEYS)
        self.assertEqual((found.after, found.moved), ({}, 1000))
