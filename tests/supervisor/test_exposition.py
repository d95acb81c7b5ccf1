"""Prometheus gets every promised metric, with numbers that add up."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import HealthSeen
from twistedproxy.config.control import Snapshot, WorkerView
from twistedproxy.config.model import Address, Health, Model, Pool, Server
from twistedproxy.observability.metrics import Metrics, merge
from twistedproxy.supervisor.exposition import render

A, B = Address("127.0.0.1:9001"), Address("127.0.0.1:9002")


def statistics() -> dict[str, Any]:
    metrics = Metrics()
    http = metrics.http('we"ird\n', "web")
    for seconds in (0.0005, 0.002, 70.0):
        http.record(A, 200, seconds)
    http.record("", 503, 0.0)
    listener = metrics.listener("127.0.0.1:80")
    listener.open, listener.total, listener.bytes_in, listener.bytes_out = 3, 10, 100, 200
    metrics.tcp_sessions["l4", "web", A] = 4
    metrics.retries["web", "connect"] = 2
    metrics.rejected["no_server"] = 1
    for what, size_in, size_out in (("compress", 1000, 300), ("decompress", 50, 400)):
        metrics.coded[what, "gzip", "in"], metrics.coded[what, "gzip", "out"] = size_in, size_out
    metrics.coding_eased["lower"] = 7
    metrics.cache["www", "hit"] = 12
    metrics.cache_store["memory", "evicted"], metrics.cache_store["disk", "write_error"], metrics.cache_fills = 3, 2, 1
    return merge([metrics.to_plain([("web", A, 5, 100, 1)])])


CACHE = {
    "memory": {"bytes": 10, "objects": 1, "limit": 100}, "disk": {"bytes": 20, "objects": 2, "limit": 200}, "evicted": 4, "failures": 5,
    "leftovers": 0, "is_counted": True, "purges": {"url": 6},
}  # fmt: skip


class Exposition(SynchronousTestCase):
    def setUp(self) -> None:
        model = Model(pools={"web": Pool("web", (Server(A, weight=3, weight_set=1), Server(B)))})
        seen = {("web", str(B)): HealthSeen("web", B, Health.DOWN, "refused", 0.0)}
        workers = (WorkerView(0, 1, "serving", 7, lag_seconds=0.5), WorkerView(1, 2, "serving", 7), WorkerView(2, 3, "gone", 7))
        self.snapshot = Snapshot(model, 7, 1.0, "native", workers, seen)

    def samples(self, extra: dict[str, Any] | None = None) -> dict[tuple[Any, ...], float]:
        text = render(self.snapshot, statistics() | (extra or {})).decode()
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def test_every_promised_name_is_there(self) -> None:
        """A dashboard built on the contract finds its series."""
        names = {key[0] for key in self.samples({"health_checks": [["web", A, "ok", 5]]})}
        self.assertLessEqual(
            {
                "revproxy_http_requests_total", "revproxy_http_request_duration_seconds_bucket", "revproxy_connections",
                "revproxy_connections_total", "revproxy_tcp_sessions_total", "revproxy_bytes_total", "revproxy_server_up",
                "revproxy_server_weight", "revproxy_server_connections", "revproxy_health_checks_total", "revproxy_retries_total",
                "revproxy_rejected_total", "revproxy_config_revision", "revproxy_workers", "revproxy_reactor_lag_seconds",
            },
            names,
        )  # fmt: skip

    def test_numbers_and_labels(self) -> None:
        """Counts arrive under the promised labels, odd site names escaped."""
        got = self.samples()
        site = ("site", 'we"ird\n')
        self.assertEqual(got["revproxy_http_requests_total", ("code", "200"), ("pool", "web"), ("server", A), site], 3)
        self.assertEqual(got["revproxy_http_requests_total", ("code", "503"), ("pool", "web"), ("server", ""), site], 1)
        self.assertEqual(got["revproxy_connections", ("listener", "127.0.0.1:80")], 3)
        self.assertEqual(got["revproxy_connections_total", ("listener", "127.0.0.1:80")], 10)
        self.assertEqual(got["revproxy_bytes_total", ("direction", "out"), ("listener", "127.0.0.1:80")], 200)
        self.assertEqual([got["revproxy_server_up", ("pool", "web"), ("server", s)] for s in (A, B)], [1, 0])
        self.assertEqual([got["revproxy_server_weight", ("pool", "web"), ("server", s)] for s in (A, B)], [1, 1])
        self.assertEqual([got["revproxy_server_connections", ("pool", "web"), ("server", s)] for s in (A, B)], [5, 0])
        self.assertEqual([got["revproxy_workers", ("state", s)] for s in ("serving", "gone", "lagging")], [2, 1, 0])
        self.assertEqual(got["revproxy_reactor_lag_seconds", ("worker", "0")], 0.5)
        self.assertEqual(got["revproxy_config_revision",], 7)
        sizes = [
            got[f"revproxy_{w}ion_bytes_total", ("coding", "gzip"), ("direction", d)]
            for w in ("compress", "decompress")
            for d in ("in", "out")
        ]
        self.assertEqual((sizes, got["revproxy_compression_eased_total", ("why", "lower")]), ([1000, 300, 50, 400], 7))

    def test_the_cache_is_counted_by_workers_and_what_they_share_once(self) -> None:
        got = self.samples({"cache_totals": CACHE})
        expected = {
            ("revproxy_cache_requests_total", ("result", "hit"), ("site", "www")): 12,
            ("revproxy_cache_bytes", ("tier", "memory")): 10,
            ("revproxy_cache_bytes", ("tier", "disk")): 20,
            ("revproxy_cache_limit_bytes", ("tier", "disk")): 200,
            ("revproxy_cache_objects", ("tier", "disk")): 2,
            ("revproxy_cache_evictions_total", ("tier", "memory")): 3,
            ("revproxy_cache_evictions_total", ("tier", "disk")): 4,
            ("revproxy_cache_errors_total", ("what", "write")): 2,
            ("revproxy_cache_errors_total", ("what", "order")): 5,
            ("revproxy_cache_purges_total", ("by", "url")): 6,
            ("revproxy_cache_fills",): 1,
        }
        self.assertEqual({key: got.get(key) for key in expected}, expected)

    def test_histogram_is_cumulative(self) -> None:
        """Buckets count everything up to their bound; +Inf equals the count."""
        got = self.samples()
        name = "revproxy_http_request_duration_seconds"
        labels = (("pool", "web"), ("site", 'we"ird\n'))
        buckets = {key[1][1]: value for key, value in got.items() if key[0] == name + "_bucket"}
        self.assertEqual((buckets["0.001"], buckets["0.0025"], buckets["60.0"], buckets["+Inf"]), (2, 3, 3, 4))
        self.assertEqual(got[(name + "_count", *labels)], 4)
        self.assertAlmostEqual(got[(name + "_sum", *labels)], 70.0025)

    def test_nothing_to_tell_is_valid_too(self) -> None:
        """A proxy that served nothing yet can be scraped."""
        text = render(Snapshot(Model(), 0, 0.0, "python"), merge([])).decode()
        self.assertIn("revproxy_config_revision 0\n", text)

    def test_a_thousand_servers_are_rendered_in_no_time(self) -> None:
        """50 pools of 20 servers: a scrape takes the supervisor under 50 ms, and there are no more series than the configuration has."""
        metrics, pools = Metrics(), {}
        for name in (f"pool-{n}" for n in range(50)):
            pools[name] = Pool(name, tuple(Server(Address(f"10.0.{len(pools)}.{n}:80")) for n in range(20)))
            for server in pools[name].servers:
                for code in (200, 304, 404, 502):
                    metrics.http(f"site-{name}", name).record(server.address, code, 0.01)
        totals = merge([metrics.to_plain([(p.name, s.address, 1, 4, 1) for p in pools.values() for s in p.servers])])
        snapshot = Snapshot(Model(pools=pools), 1, 1.0, "python")
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            text = render(snapshot, totals)
            taken.append(time.perf_counter() - began)
        self.assertLess(min(taken), 0.05)
        samples = [line for line in text.splitlines() if not line.startswith(b"#")]
        self.assertLess(len(samples), 50 * 20 * (4 + 3) + 50 * 18 + 50)
