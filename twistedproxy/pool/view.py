"""Who of a pool is available, with which weight, and whose turn it is.

Computed when something changed, or when time alone alters it (slow start, end of an ejection), not on every request.
Backups are in it only while no primary is available; besides, they take over a request whose untried primaries have run out.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil
from random import Random
from typing import Protocol

from twistedproxy.errors import NoServer
from twistedproxy.pool.balancers import Balancer, Weighted, balancer
from twistedproxy.pool.recent import RecentKeys, goes_by_keys
from twistedproxy.pool.server import Server

FOREVER = float("inf")
LONG_AGO = float("-inf")
MANY = 3
"""After so many full servers in a row, all full ones are looked up at once."""


class Nobody(enum.Enum):
    """Why no server was chosen."""

    FULL = "full"
    NONE = "none"


class Pick(Protocol):
    """`balancers.Picker.pick`, bound."""

    def __call__(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None: ...


def _pick_nobody(key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
    return None


class View:
    """The pool as its balancers see it; good until `until`."""

    __slots__ = (
        "_backups", "_balancer", "_balancer_of_backups", "_primaries", "_random", "_take", "available", "pick", "pick_spare", "recent",
        "until",
    )  # fmt: skip

    def __init__(self, balance: str, random: Random) -> None:
        self._random = random
        self.until = LONG_AGO
        self.set_balance(balance)

    def set_balance(self, balance: str) -> None:
        self._balancer: Balancer = balancer(balance, self._random)
        self._balancer_of_backups: Balancer = balancer(balance, self._random)
        """Backups take turns of their own."""
        self.recent: RecentKeys | None = RecentKeys() if goes_by_keys(balance) else None
        """The keys of late, where the balancer goes by them."""
        self._primaries: list[Weighted] = []
        self._backups: list[Weighted] = []
        self.available: frozenset[Server] = frozenset()
        self.pick: Pick = _pick_nobody
        """For the first try of a request."""
        self._take: Pick = _pick_nobody
        """The same without noting the key: the request was seen already."""
        self.pick_spare: Pick = _pick_nobody
        """For requests that have tried everybody `pick` knows."""
        self.expire()

    @property
    def reads_loads(self) -> bool:
        return self._balancer.reads_loads

    @property
    def reads_latency(self) -> bool:
        return self._balancer.reads_latency

    def saw(self, key: int, now: float) -> None:
        """A request comes that `pick` is not asked for."""
        if self.recent is not None:
            self.recent.note(key, now)

    def expire(self) -> None:
        """Something changed: look again before the next pick."""
        self.until = LONG_AGO

    def look(self, servers: Sequence[Server], now: float) -> None:
        """Find out who is available at `now`."""
        until = FOREVER
        primaries: list[Weighted] = []
        backups: list[Weighted] = []
        for server in servers:
            if server.ejected_until > now:
                until = min(until, server.ejected_until)
            elif server.ejected_until:
                server.ramp_from = max(server.ejected_until, server.ramp_from)
                server.ejected_until = 0.0
            if server.is_ramping(now):
                until = min(until, now + max(server.slow_start_s / 50, 0.1))
            if server.is_available(now):
                (backups if server.is_backup else primaries).append((server, server.effective_weight(now)))
        self.until = until
        if primaries == self._primaries and backups == self._backups:
            return
        self._primaries = primaries
        self._backups = backups
        main = self._balancer.prepare(primaries).pick if primaries else _pick_nobody
        spare = self._balancer_of_backups.prepare(backups).pick if backups else _pick_nobody
        self._take, self.pick_spare = (main, spare) if primaries else (spare, _pick_nobody)
        self.pick = self._take if self.recent is None else self.recent.noting(self._take)
        self.available = frozenset(s for s, _ in primaries or backups)

    def choose(self, key: int, now: float, tried: frozenset[Server], is_full: Callable[[Server], bool]) -> Server | Nobody:
        """A server that is neither tried nor full; `FULL` when one that is not tried is, so that waiting helps."""
        for pick in (self._take, self.pick_spare):
            skipped = tried
            full = 0
            while (server := pick(key, now, self._random, skipped)) is not None:
                if not is_full(server):
                    return server
                full += 1
                skipped |= {server}
                if full == MANY:
                    skipped |= {s for s, _ in self._primaries + self._backups if is_full(s)}
            if full:
                return Nobody.FULL
        return Nobody.NONE


def no_server(pool: str, servers: Sequence[Server], tried: frozenset[Server], now: float) -> NoServer:
    """The refusal that says how many servers are out for which reason, and when the first ejection ends."""
    why = Counter(reason for s in servers if (reason := s.why_not(now) or (s in tried and "tried")))
    told = ", ".join(f"{count} {reason}" for reason, count in why.items()) or "it is empty"
    refusal = NoServer(f"no server of pool {pool!r} is available: {told}")
    ends = [s.ejected_until - now for s in servers if s.why_not(now) == "ejected"]
    refusal.retry_after_s = max(ceil(min(ends, default=1.0)), 1)
    return refusal
