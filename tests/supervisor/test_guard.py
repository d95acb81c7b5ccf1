"""The guard: trips on what was asked for, with figures, and never on a handful of requests."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, Model, Pool, Route, Site, TcpListener
from twistedproxy.errors import ChangeRefused
from twistedproxy.observability.metrics import Metrics
from twistedproxy.supervisor.guard import EVERYTHING, NOTHING, Guard, Sample, Watch, parse, scope_of


class GuardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.metrics = Metrics()
        self.clock = Clock()
        self.tripped: list[tuple[int, str]] = []
        self.passed: list[tuple[int, int]] = []
        self.guard = Guard(
            self.clock.seconds, self.metrics.to_plain, lambda *what: self.tripped.append(what), lambda *what: self.passed.append(what)
        )

    def requests(self, count: int, status: int = 200, seconds: float = 0.004) -> None:
        for _ in range(count):
            self.metrics.http("www", "web").record("10.0.0.1:80", status, seconds)

    def second(self) -> None:
        self.clock.advance(1)
        self.guard.look()

    def test_errors_trip_it_once_with_figures(self) -> None:
        self.requests(1000)
        self.second()
        self.guard.watch(7, "errors > 1%", 60)
        self.requests(98)
        self.requests(2, 503)
        self.second()
        self.second()
        self.assertEqual([revision for revision, _ in self.tripped], [7])
        self.assertIn("errors 2.00% in 100 requests", self.tripped[0][1])

    def test_a_few_requests_prove_nothing(self) -> None:
        self.guard.watch(7, "errors > 1%", 60)
        self.requests(49, 500)
        self.second()
        self.clock.advance(60)
        self.second()
        self.assertEqual((self.tripped, self.passed), ([], [(7, 49)]), "and whoever asked is told how few they were")

    def test_relative_latency_is_measured_against_the_minute_before(self) -> None:
        self.second()
        self.requests(200, seconds=0.004)
        self.second()
        self.guard.watch(7, "errors > 50% or p95 > +20%", 60)
        self.requests(200, seconds=0.004)
        self.second()
        self.assertEqual(self.tripped, [])
        self.requests(400, seconds=0.2)
        self.second()
        self.assertEqual(len(self.tripped), 1)
        self.assertIn("p95 > +20%", self.tripped[0][1])

    def test_a_pool_of_tcp_sessions_is_judged_by_failures(self) -> None:
        """It has no answers with a status; a pool that HTTP routes use, and everybody else's, do not count."""
        model = Model(
            pools={"pg": Pool("pg", ()), "web": Pool("web", ())},
            tcp=(TcpListener(Address("127.0.0.1:5432"), "pg"),),
            sites={"s": Site("s", ("s",), routes=(Route("/", pool="web"),))},
        )
        weight = {"kind": "set_weight", "pool": "pg", "server": "a:1", "weight": 2}
        self.assertEqual(scope_of(weight, model).tcp, {"pg"})
        self.assertEqual(scope_of({**weight, "pool": "web"}, model).tcp, frozenset())
        self.assertIs(scope_of({"kind": "replace_config"}, model), EVERYTHING)
        rows: list[tuple[str, str, int, int, int]] = []
        guard = Guard(self.clock.seconds, lambda: self.metrics.to_plain(rows), lambda *what: self.tripped.append(what))
        guard.watch(7, "errors > 10%", 60, scope_of(weight, model))
        rows += [("pg", "a:1", 0, 100, 5), ("web", "b:1", 0, 100, 100)]
        self.requests(100, 500)
        guard.look()
        self.assertEqual(self.tripped, [])
        rows[0] = ("pg", "a:1", 0, 100, 50)
        guard.look()
        self.assertIn("errors 50.00% in 100 requests", self.tripped[0][1])

    def test_a_watch_is_journaled_and_read_again(self) -> None:
        """Figures in other buckets, of another version, count for nothing."""
        watch = Watch("errors > 1%", "2027-01-15T08:00:00.000Z", Sample(10, 1, NOTHING.buckets))
        self.assertEqual(Watch.from_plain(watch.to_plain()), watch)
        self.assertEqual(Sample.from_plain([10, 1, [1, 2]]), NOTHING)

    def test_it_ends_with_its_time_or_when_forgotten(self) -> None:
        self.guard.watch(7, "errors > 1%", 2)
        self.guard.watch(8, "errors > 1%", 100)
        self.guard.forget(8)
        for _ in range(3):
            self.second()
        self.requests(100, 500)
        self.second()
        self.assertEqual(self.tripped, [])

    def test_what_is_no_condition_is_refused(self) -> None:
        texts: list[Any] = ["", "errors", "errors > 1", "errors > 5ms", "p95 > 20%", "p95 > +5ms", "p42 > 1ms", "errors > 1% and p95 > 1ms"]
        for text in texts:
            error = self.assertRaises(ChangeRefused, parse, text)
            self.assertEqual((error.status, error.field), (400, "abort_if"), text)
        self.assertEqual(len(parse("errors > 1% or p95 > +20% or p99 > 500ms")), 3)
