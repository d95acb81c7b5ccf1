"""Counters of one worker as plain integers, and their sum over workers.

How it works
    The hot path holds the small objects made here (`HttpCounts`, `ListenerCounts`, …) and does integer additions on them.
    Once a second `Metrics.to_plain` writes everything down as lists, which travel to the supervisor; `merge` adds such
    lists up. Gauges (open connections, queue lengths) are under ``gauges`` and are dropped when a worker is gone,
    counters are kept for ever, so that totals never run backwards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the latency histogram in seconds; one more bucket holds the rest."""


class HttpCounts:
    """Requests of one (site, pool): by server and status, and how long they took."""

    __slots__ = ("codes", "buckets", "sum_s")

    def __init__(self) -> None:
        self.codes: dict[tuple[str, int], int] = {}
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def record(self, server: str, status: int, seconds: float) -> None:
        """Count one finished request; `server` is "" when none was reached."""
        key = (server, status)
        codes = self.codes
        codes[key] = codes.get(key, 0) + 1
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class ListenerCounts:
    """Connections and bytes of one listener; its front ends add to the fields."""

    __slots__ = ("open", "total", "bytes_in", "bytes_out")

    def __init__(self) -> None:
        self.open = 0
        self.total = 0
        self.bytes_in = 0
        self.bytes_out = 0


class Metrics:
    """All counters of one worker."""

    def __init__(self) -> None:
        self._http: dict[tuple[str, str], HttpCounts] = {}
        self._listeners: dict[str, ListenerCounts] = {}
        self.tcp_sessions: Counter[tuple[str, str, str]] = Counter()
        """(listener, pool, server)."""
        self.retries: Counter[tuple[str, str]] = Counter()
        """(pool, reason)."""
        self.rejected: Counter[str] = Counter()
        """By `ProxyError.reason`."""
        self.splits: Counter[tuple[str, str, str]] = Counter()
        """(site, path, pool): requests by the side of a split they took."""
        self.mirrors: Counter[tuple[str, str, str, str]] = Counter()
        """(site, path, pool, result)."""
        self.coded: Counter[tuple[str, str, str]] = Counter()
        """Bytes by (compress or decompress, coding, in or out)."""
        self.coding_eased: Counter[str] = Counter()
        """Answers that were compressed less than configured, by why."""
        self.cache: Counter[tuple[str, str]] = Counter()
        """(site, result): requests on routes with a cache."""
        self.cache_store: Counter[tuple[str, str]] = Counter()
        """(tier, what): evicted, corrupt, write_error, read_error."""
        self.cache_fills = 0
        """Answers on their way into the cache now."""
        self.log_lines_dropped = 0

    def http(self, site: str, pool: str) -> HttpCounts:
        return self._http.setdefault((site, pool), HttpCounts())

    def listener(self, address: str) -> ListenerCounts:
        return self._listeners.setdefault(address, ListenerCounts())

    @property
    def requests(self) -> int:
        return sum(sum(counts.codes.values()) for counts in self._http.values())

    @property
    def connections(self) -> int:
        return sum(counts.open for counts in self._listeners.values())

    def to_plain(self, servers: Iterable[tuple[str, str, int, int, int]] = (), queues: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Everything as JSON-able values.

        `servers` are (pool, server, leases in flight, leases so far, failures so far); `queues` the waiting requests by pool.
        """
        rows = list(servers)
        return {
            "requests": [[*key, server, code, n] for key, c in self._http.items() for (server, code), n in c.codes.items()],
            "durations": [[*key, c.buckets, c.sum_s] for key, c in self._http.items()],
            "listeners": [[a, c.total, c.bytes_in, c.bytes_out] for a, c in self._listeners.items()],
            "tcp_sessions": [[*key, n] for key, n in self.tcp_sessions.items()],
            "retries": [[*key, n] for key, n in self.retries.items()],
            "rejected": [[reason, n] for reason, n in self.rejected.items()],
            "splits": [[*key, n] for key, n in self.splits.items()],
            "mirrors": [[*key, n] for key, n in self.mirrors.items()],
            "coded": [[*key, n] for key, n in self.coded.items()],
            "coding_eased": [[why, n] for why, n in self.coding_eased.items()],
            "cache": [[*key, n] for key, n in self.cache.items()],
            "cache_store": [[*key, n] for key, n in self.cache_store.items()],
            "servers": [[pool, server, leases, failures] for pool, server, _, leases, failures in rows],
            "log_lines_dropped": self.log_lines_dropped,
            "gauges": {
                "connections": [[a, c.open] for a, c in self._listeners.items()],
                "servers": [[pool, server, active] for pool, server, active, _, _ in rows],
                "queues": [[pool, n] for pool, n in (queues or {}).items()],
                "fills": [["cache", self.cache_fills]],
            },
        }


_KEY_COLUMNS = {
    "requests": 4, "durations": 2, "listeners": 1, "tcp_sessions": 3, "retries": 2, "rejected": 1, "splits": 3, "mirrors": 4,
    "cache": 2, "cache_store": 2, "servers": 2, "coded": 3, "coding_eased": 1,
    "connections": 1, "queues": 1, "fills": 1,
}  # fmt: skip


def _add(a: Any, b: Any) -> Any:
    return [x + y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b


def _merge_rows(columns: int, tables: Iterable[list[list[Any]]]) -> list[list[Any]]:
    total: dict[tuple[Any, ...], list[Any]] = {}
    for rows in tables:
        for row in rows:
            key, values = tuple(row[:columns]), row[columns:]
            total[key] = list(map(_add, total[key], values)) if key in total else values
    return [[*key, *values] for key, values in total.items()]


def merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of several `Metrics.to_plain` values; of no parts: a value with empty tables."""
    every = [Metrics().to_plain(), *parts]
    merged: dict[str, Any] = {
        name: _merge_rows(columns, [p[name] for p in every]) for name, columns in _KEY_COLUMNS.items() if name in every[0]
    }
    merged["log_lines_dropped"] = sum(p["log_lines_dropped"] for p in every)
    merged["gauges"] = {
        name: _merge_rows(_KEY_COLUMNS[name], [p["gauges"][name] for p in every]) for name in ("connections", "servers", "queues", "fills")
    }
    return merged


def without_gauges(part: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a worker that is gone."""
    return {**part, "gauges": {name: [] for name in part["gauges"]}}
