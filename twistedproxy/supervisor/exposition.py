"""Prometheus text (format 0.0.4) from the supervisor's totals, at scrape.

Written out by hand: the format is a line per number, and a scrape of a thousand servers must not hold up the supervisor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from twistedproxy.config.control import Snapshot
from twistedproxy.config.model import Health, Pool
from twistedproxy.observability.metrics import BUCKETS_S

WORKER_STATES = ("starting", "serving", "lagging", "stopping", "gone")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Metric = str
"""The lines of one name."""

_CODED = ("coding", "direction")
_BOUNDS = (*(repr(bound) for bound in BUCKETS_S), "+Inf")


def render(snapshot: Snapshot, statistics: Mapping[str, Any]) -> bytes:
    """All metrics in the text format 0.0.4; `statistics` as `observability.metrics.merge` gives them."""
    return "".join(_Totals(snapshot, statistics).collect()).encode()


class _Totals:
    """One scrape."""

    def __init__(self, snapshot: Snapshot, statistics: Mapping[str, Any]) -> None:
        self._snapshot = snapshot
        self._statistics = statistics

    def collect(self) -> Iterable[Metric]:
        yield from self._traffic()
        yield from self._servers()
        yield from self._process()

    def _traffic(self) -> Iterator[Metric]:
        of = self._statistics
        yield _counter("revproxy_http_requests", "HTTP requests finished.", ("site", "pool", "server", "code"), of["requests"])
        yield self._durations()
        open_now = of["gauges"]["connections"]
        yield _gauge("revproxy_connections", "Client connections open now.", ("listener",), open_now)
        totals = [(address, total) for address, total, _, _ in of["listeners"]]
        yield _counter("revproxy_connections", "Client connections accepted.", ("listener",), totals)
        sizes = [(address, "in", size) for address, _, size, _ in of["listeners"]]
        sizes += [(address, "out", size) for address, _, _, size in of["listeners"]]
        yield _counter("revproxy_bytes", "Bytes from (in) and to (out) clients.", ("listener", "direction"), sizes)
        yield _counter("revproxy_tcp_sessions", "TCP sessions begun.", ("listener", "pool", "server"), of["tcp_sessions"])
        yield _counter("revproxy_split_requests", "Requests by the side of a split they took.", ("site", "path", "pool"), of["splits"])
        results = ("site", "path", "pool", "result")
        yield _counter("revproxy_mirror_requests", "Copies of requests made by mirrors, by what became of them.", results, of["mirrors"])
        for what in ("compress", "decompress"):
            sizes = [(coding, direction, size) for kind, coding, direction, size in of["coded"] if kind == what]
            yield _counter(f"revproxy_{what}ion_bytes", f"Bytes of bodies before (in) and after (out) they were {what}ed.", _CODED, sizes)
        text = "Answers compressed less than configured: lower level, none for load, none for many at once, none as it failed."
        yield _counter("revproxy_compression_eased", text, ("why",), of["coding_eased"])
        yield from self._cache()
        yield _counter("revproxy_retries", "Extra attempts, by what failed before.", ("pool", "reason"), of["retries"])
        yield _counter("revproxy_rejected", "Requests and connections refused by the proxy itself.", ("reason",), of["rejected"])

    def _cache(self) -> Iterator[Metric]:
        """What all workers share is counted by the supervisor, once."""
        of = self._statistics
        shared = of.get("cache_totals")
        text = "Requests on routes with a cache, by what became of them."
        yield _counter("revproxy_cache_requests", text, ("site", "result"), of["cache"])
        tiers = [] if shared is None else [(tier, shared[tier]) for tier in ("memory", "disk")]
        yield _gauge("revproxy_cache_bytes", "Bytes of kept answers.", ("tier",), [(tier, has["bytes"]) for tier, has in tiers])
        limits = [(tier, has["limit"]) for tier, has in tiers]
        yield _gauge("revproxy_cache_limit_bytes", "How many there may be.", ("tier",), limits)
        yield _gauge("revproxy_cache_objects", "Kept answers.", ("tier",), [(tier, has["objects"]) for tier, has in tiers])
        counted = {(tier, what): n for tier, what, n in of["cache_store"]}
        evicted = [] if shared is None else [("disk", shared["evicted"])]
        evicted += [(tier, n) for (tier, what), n in counted.items() if what == "evicted"]
        yield _counter("revproxy_cache_evictions", "Kept answers that had to make room.", ("tier",), evicted)
        corrupt = [(tier, n) for (tier, what), n in counted.items() if what == "corrupt"]
        yield _counter("revproxy_cache_corrupt", "Kept answers found damaged, and not given.", ("tier",), corrupt)
        failed = [(what.removesuffix("_error"), n) for (_, what), n in counted.items() if what.endswith("_error")]
        failed += [] if shared is None else [("order", shared["failures"])]
        text = "Failures of the cache directory: to write, to read, to keep it in order."
        yield _counter("revproxy_cache_errors", text, ("what",), failed)
        yield _gauge("revproxy_cache_fills", "Answers on their way into the cache.", (), [(n,) for _, n in of["gauges"]["fills"]])
        purges = [] if shared is None else shared["purges"].items()
        yield _counter("revproxy_cache_purges", "Purges, by what they name.", ("by",), purges)

    def _durations(self) -> Metric:
        name = "revproxy_http_request_duration_seconds"
        lines = [_head(name, "Request head complete to response end.", "histogram")]
        for site, pool, buckets, sum_s in self._statistics["durations"]:
            labels = f'site="{_escaped(site)}",pool="{_escaped(pool)}"'
            counts = list(accumulate(buckets))
            lines += [f'{name}_bucket{{{labels},le="{bound}"}} {count}\n' for bound, count in zip(_BOUNDS, counts, strict=True)]
            lines.append(f"{name}_count{{{labels}}} {counts[-1]}\n{name}_sum{{{labels}}} {sum_s}\n")
        return "".join(lines)

    def _servers(self) -> Iterator[Metric]:
        pools: Iterable[Pool] = self._snapshot.model.pools.values()
        servers = [(pool.name, server) for pool in pools for server in pool.servers]
        up = [(name, server.address, int(not self._is_down(name, server.address))) for name, server in servers]
        yield _gauge("revproxy_server_up", "0 when the health check says down, else 1.", ("pool", "server"), up)
        weights = [(name, server.address, server.weight_now) for name, server in servers]
        yield _gauge("revproxy_server_weight", "Weight in force.", ("pool", "server"), weights)
        active = {(name, address): n for name, address, n in self._statistics["gauges"]["servers"]}
        leases = [(name, server.address, active.get((name, server.address), 0)) for name, server in servers]
        yield _gauge("revproxy_server_connections", "Requests and sessions in flight.", ("pool", "server"), leases)
        checks = self._statistics.get("health_checks", ())
        yield _counter("revproxy_health_checks", "Health checks made, by result.", ("pool", "server", "result"), checks)

    def _is_down(self, pool: str, address: str) -> bool:
        seen = self._snapshot.health.get((pool, address))
        return seen is not None and seen.health is Health.DOWN

    def _process(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        ends = [(user, view.source, view.not_after) for view in snapshot.certificates for user in view.used_by]
        text = "When the certificate ends, seconds since the epoch."
        yield _gauge("revproxy_certificate_expiry_timestamp_seconds", text, ("site", "source"), ends)
        yield _gauge("revproxy_config_revision", "Revision of the configuration in force.", (), [(snapshot.revision,)])
        reloads = self._statistics.get("config_reloads", ())
        yield _counter("revproxy_config_reloads", "Reloads of the configuration file.", ("result",), reloads)
        states = Counter(worker.state for worker in snapshot.workers)
        counted = [(state, states[state]) for state in WORKER_STATES]
        yield _gauge("revproxy_workers", "Worker processes by state.", ("state",), counted)
        lags = [(worker.slot, worker.lag_seconds) for worker in snapshot.workers]
        yield _gauge("revproxy_reactor_lag_seconds", "How late the worker's event loop runs.", ("worker",), lags)
        dropped = [(self._statistics["log_lines_dropped"],)]
        yield _counter("revproxy_log_lines_dropped", "Access log lines that could not be written.", (), dropped)


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> Metric:
    """A counter, its name without the ``_total``; each row holds the labels' values, then the count."""
    return _lines(f"{name}_total", text, "counter", labels, rows)


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> Metric:
    return _lines(name, text, "gauge", labels, rows)


def _lines(name: str, text: str, kind: str, labels: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> Metric:
    form = name + ("{" + ",".join(f'{label}="%s"' for label in labels) + "}" if labels else "") + " %s\n"
    return _head(name, text, kind) + "".join([form % tuple(map(_escaped, row)) for row in rows])


def _head(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _escaped(value: object) -> str:
    """For the inside of a label's quotes; numbers come out as they are."""
    text = str(value)
    if "\\" in text or '"' in text or "\n" in text:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text
