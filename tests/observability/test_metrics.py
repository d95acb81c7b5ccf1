"""Counters: exact, cheap, and never running backwards when a worker is gone."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.observability.metrics import BUCKETS_S, HttpCounts, Metrics, merge, without_gauges


def worker(requests: int = 1, open_connections: int = 0) -> Metrics:
    metrics = Metrics()
    for n in range(requests):
        metrics.http("www", "web").record("a:1", 200 if n % 2 else 502, 0.002)
    listener = metrics.listener("0.0.0.0:80")
    listener.total, listener.open, listener.bytes_in, listener.bytes_out = requests, open_connections, 10, 20
    metrics.tcp_sessions["l", "pg", "b:2"] += requests
    metrics.retries["web", "connect"] += 1
    metrics.rejected["no_route"] += 2
    metrics.log_lines_dropped = 3
    return metrics


class HttpCountsTests(SynchronousTestCase):
    def test_buckets(self) -> None:
        """A latency on a bound belongs to that bound (le); what is above all bounds is counted too."""
        counts = HttpCounts()
        for seconds in (0.0, BUCKETS_S[0], BUCKETS_S[0] * 1.01, BUCKETS_S[-1], 1e9):
            counts.record("a:1", 200, seconds)
        self.assertEqual((counts.buckets[0], counts.buckets[1], counts.buckets[-2], counts.buckets[-1]), (2, 1, 1, 1))
        self.assertEqual(sum(counts.buckets), 5)

    @given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(100, 599), st.floats(0, 100)), max_size=50))
    def test_every_request_counts_once(self, records: list[tuple[str, int, float]]) -> None:
        counts = HttpCounts()
        for record in records:
            counts.record(*record)
        self.assertEqual(sum(counts.buckets), len(records))
        self.assertEqual(sum(counts.codes.values()), len(records))


class MetricsTests(SynchronousTestCase):
    def test_same_object(self) -> None:
        """Asking twice for a counter gives the same one: a new router counts on where the old one stopped."""
        metrics = Metrics()
        self.assertIs(metrics.http("s", "p"), metrics.http("s", "p"))
        self.assertIs(metrics.listener("l"), metrics.listener("l"))

    def test_totals(self) -> None:
        metrics = worker(5, open_connections=2)
        self.assertEqual((metrics.requests, metrics.connections), (5, 2))

    def test_travels_as_json(self) -> None:
        """What a worker sends is what the supervisor gets."""
        said = worker(3, 1).to_plain([("web", "a:1", 1, 9, 2)], {"web": 4})
        self.assertEqual(json.loads(json.dumps(said)), said)
        self.assertEqual(said["servers"], [["web", "a:1", 9, 2]])
        self.assertEqual(said["gauges"]["servers"], [["web", "a:1", 1]])
        self.assertEqual(said["gauges"]["queues"], [["web", 4]])


class MergeTests(SynchronousTestCase):
    def test_sum_of_workers(self) -> None:
        """The machine's numbers are the sums over its workers."""
        parts = [worker(2, 1).to_plain([("web", "a:1", 1, 9, 2)], {"web": 1}), worker(4, 2).to_plain([("web", "a:1", 2, 1, 1)], {"web": 3})]
        total = merge(parts)
        self.assertCountEqual(total["requests"], [["www", "web", "a:1", 200, 3], ["www", "web", "a:1", 502, 3]])
        self.assertEqual(total["listeners"], [["0.0.0.0:80", 6, 20, 40]])
        self.assertEqual(total["servers"], [["web", "a:1", 10, 3]])
        self.assertEqual(total["tcp_sessions"], [["l", "pg", "b:2", 6]])
        self.assertEqual(total["rejected"], [["no_route", 4]])
        self.assertEqual(total["retries"], [["web", "connect", 2]])
        self.assertEqual(total["log_lines_dropped"], 6)
        self.assertEqual(total["gauges"]["connections"], [["0.0.0.0:80", 3]])
        self.assertEqual(total["gauges"]["servers"], [["web", "a:1", 3]])
        self.assertEqual(total["gauges"]["queues"], [["web", 4]])
        (durations,) = total["durations"]
        self.assertEqual(sum(durations[2]), 6)

    def test_merging_changes_nothing(self) -> None:
        """Parts can be merged again and again (they are kept and asked for at every scrape)."""
        parts = [worker(2).to_plain(), worker(3).to_plain()]
        before = json.dumps(parts)
        first = merge(parts)
        merge([first, *parts])
        self.assertEqual(json.dumps(parts), before)
        self.assertEqual(merge(parts), first)

    def test_of_nothing(self) -> None:
        """Before the first worker has spoken there are empty tables, not errors."""
        empty = merge([])
        self.assertEqual(empty["requests"], [])
        self.assertEqual(empty["gauges"]["connections"], [])

    def test_a_dead_worker_counts_on(self) -> None:
        """A worker that is gone keeps its counters in the sum and loses its gauges."""
        gone = without_gauges(worker(2, open_connections=7).to_plain())
        total = merge([gone, worker(1, open_connections=1).to_plain()])
        self.assertEqual(total["listeners"][0][1], 3)
        self.assertEqual(total["gauges"]["connections"], [["0.0.0.0:80", 1]])
