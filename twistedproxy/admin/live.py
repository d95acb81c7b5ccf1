"""What an operator watches, as numbers that only grow: the page and `revproxy top` make rates of the differences.

One row a second is kept by `events`; it has only what the charts need. Durations are counted in the buckets of the metrics, so that
any two rows give the percentiles of the time between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import add
from typing import Any

from twistedproxy.admin import caching
from twistedproxy.config.control import Snapshot
from twistedproxy.observability.metrics import BUCKETS_S

BOUNDS_S = list(BUCKETS_S)
"""Upper bounds of the buckets; there is one more bucket for the rest."""
COLUMNS = ["uptime_seconds", "requests", "errors", "connections", "durations"]
"""Of a row."""


def figures(snapshot: Snapshot, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``stats`` event tells beyond the supervisor's own counts: errors (5xx), durations, bytes, pools and listeners."""
    open_now = dict(statistics["gauges"]["connections"])
    waiting = dict(statistics["gauges"]["queues"])
    pools = {name: _Pool(waiting.get(name, 0)) for name in snapshot.model.pools}
    errors = 0
    for _, pool, _, code, count in statistics["requests"]:
        failed = count if code >= 500 else 0
        errors += failed
        if pool in pools:
            pools[pool].requests += count
            pools[pool].errors += failed
    durations = [0] * (len(BOUNDS_S) + 1)
    for _, pool, buckets, _ in statistics["durations"]:
        durations = list(map(add, durations, buckets))
        if pool in pools:
            pools[pool].durations = list(map(add, pools[pool].durations, buckets))
    sessions = 0
    for _, pool, _, count in statistics["tcp_sessions"]:
        sessions += count
        if pool in pools:
            pools[pool].sessions += count
    return {
        "errors": errors,
        "sessions": sessions,
        "durations": durations,
        "bytes": {"in": sum(row[2] for row in statistics["listeners"]), "out": sum(row[3] for row in statistics["listeners"])},
        "cache": caching.figures(statistics),
        "pools": [{"name": name, **pool.plain()} for name, pool in pools.items()],
        "listeners": [
            {"address": snapshot.addresses.get(address, address), "connections": open_now.get(address, 0), "total": total}
            for address, total, _, _ in statistics["listeners"]
        ],
    }


def row(stats: Mapping[str, Any]) -> list[Any]:
    """One second of the past, from the whole event."""
    return [stats.get(column) for column in COLUMNS]


class _Pool:
    """Sums of one pool."""

    __slots__ = ("requests", "errors", "sessions", "waiting", "durations")

    def __init__(self, waiting: int) -> None:
        self.requests = 0
        self.errors = 0
        self.sessions = 0
        self.waiting = waiting
        self.durations = [0] * (len(BOUNDS_S) + 1)

    def plain(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}
