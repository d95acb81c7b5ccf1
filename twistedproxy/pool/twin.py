"""A copy of a pool to ask instead of the real one: what would be picked now, and where would recent requests go after a change."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Endpoint, Health
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.pool.pool import Lease, Pool
from twistedproxy.pool.server import Outcome

_ANYWHERE = Endpoint(socket.AF_INET, "127.0.0.1", 1)


@dataclass(frozen=True, slots=True)
class Known:
    """A pool, and what is known of its servers now."""

    spec: PoolSpec
    health: Mapping[str, Health] = field(default_factory=dict)
    """By address; what is not there is unknown."""
    ejected: frozenset[str] = frozenset()
    unresolved: frozenset[str] = frozenset()
    """Servers whose host name has no address; those of a file alone are taken to have one."""


def twin(known: Known) -> Pool:
    """A pool that picks as the real one would, at a moment of its own, without load."""
    pool = Pool(known.spec, seconds=_now, wheel=Wheel(_now), random=random.Random(0))
    for server in pool.servers:
        if not server.endpoints and server.address not in known.unresolved:
            pool.resolve(server.address, [_ANYWHERE])
        pool.observe_health(server.address, known.health.get(server.address, Health.UNKNOWN))
        if server.address in known.ejected:
            pool.eject(server.address, 1.0)
    return pool


def _now() -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """Where recorded requests go before and after a change."""

    requests: int
    moved: int
    """Those that would go to another server than now."""
    before: Mapping[str, float]
    after: Mapping[str, float]
    """Share of these requests by server address."""


def replay(before: Known, after: Known, keys: Iterable[tuple[int, int]]) -> Replayed:
    """Ask the twins of both for each (key, how often). Balancers that bound the load do not: here no server has any."""
    old, new = twin(before), twin(after)
    requests = moved = 0
    was: Counter[str] = Counter()
    becomes: Counter[str] = Counter()
    for key, times in keys:
        one, other = _picked(old, key), _picked(new, key)
        requests += times
        moved += times * (one != other)
        was[one] += times
        becomes[other] += times
    return Replayed(requests, moved, _shares(was, requests), _shares(becomes, requests))


def _picked(pool: Pool, key: int) -> str:
    """Address of the server for this key; "" for none."""
    lease = pool.acquire(key, frozenset(), _nobody)
    if not isinstance(lease, Lease):
        return ""
    lease.release(Outcome.NEUTRAL)
    return lease.server.address


def _nobody(answer: object) -> None:
    """Nobody waits in a twin: nothing is ever full in it."""


def _shares(counts: Counter[str], requests: int) -> dict[str, float]:
    return {address: n / requests for address, n in counts.items() if address}
