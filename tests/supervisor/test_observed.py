"""Facts of the moment: told once, sent together, forgotten with their server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import HealthSeen, Resolved
from twistedproxy.config.model import Address, Eject, Health, Model, Pool, Server
from twistedproxy.supervisor.facts import Rows
from twistedproxy.supervisor.observed import Observed

A, B = Address("10.0.0.1:80"), Address("10.0.0.2:80")
MODEL = Model(pools={"web": Pool("web", (Server(A), Server(B)), eject=Eject(errors=5))})


class Probes:
    """Stands for `Checker` and `Resolver`."""

    addresses: Mapping[str, tuple[str, ...]] = {}

    def __call__(self, reactor: Any, tell: Callable[[Any], None], count: Callable[[str, str, str], None] | None = None) -> Probes:
        self.tell = tell
        self.count = count
        return self

    def update(self, model: Model, resolved: Any = None) -> None:
        self.model = model

    def stop(self) -> None:
        """Nothing runs."""


class ObservedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.sent: list[list[dict[str, Any]]] = []
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.checks, self.names = Probes(), Probes()
        self.observed = Observed(
            self.clock, MODEL, Rows(lambda name: 7, lambda name: None), self.checks, self.names, lambda: 0.0,
            broadcast=self.sent.append, publish=lambda *event: self.told.append(event),
        )  # fmt: skip

    def see(self, health: Health, server: Address = A) -> None:
        self.checks.tell(HealthSeen("web", server, health, "because", 0.0))

    def test_one_turn_is_one_message(self) -> None:
        self.see(Health.DOWN)
        self.names.tell(Resolved("web", B, ("10.0.0.9",)))
        self.clock.advance(0)
        self.assertEqual([[o["kind"] for o in message] for message in self.sent], [["health_seen", "resolved"]])
        self.assertEqual(self.observed.health["web", A].health, Health.DOWN)

    def test_a_host_name_is_unresolved_until_it_has_an_address(self) -> None:
        named = Address("app.invalid:80")
        self.observed.before_commit(Model(pools={"web": Pool("web", (Server(A), Server(named)))}))
        self.observed.after_commit()
        self.assertEqual(self.observed.unresolved, {("web", named)})
        self.names.tell(Resolved("web", named, ("10.0.0.9",)))
        self.assertEqual(self.observed.unresolved, frozenset())
        self.clock.advance(0)

    def test_a_verdict_is_told_when_it_changes(self) -> None:
        for health in (Health.UP, Health.UP, Health.DOWN):
            self.see(health)
        self.see(Health.DOWN, Address("10.9.9.9:1"))
        self.assertEqual([(kind, event["health"]) for kind, event in self.told], [("health", "up"), ("health", "down")])

    def test_failures_of_all_workers_eject(self) -> None:
        self.observed.saw_failures([["web", A, 3, 3]])
        self.assertEqual(self.observed.ejected, frozenset())
        self.observed.saw_failures([["web", A, 2, 2]])
        self.assertEqual(self.observed.ejected, {("web", A)})

    def test_checks_are_counted_for_the_servers_there_are(self) -> None:
        """The metric of health checks has a series for each server and result, and none for a server that is gone."""
        for server, result in ((A, "ok"), (A, "ok"), (A, "timeout"), (B, "failed")):
            self.checks.count("web", server, result)
        self.assertEqual(self.observed.health_checks, [("web", A, "ok", 2), ("web", A, "timeout", 1), ("web", B, "failed", 1)])
        self.observed.before_commit(Model(pools={"web": Pool("web", (Server(B),))}))
        self.observed.after_commit()
        self.assertEqual(self.observed.health_checks, [("web", B, "failed", 1)])

    def test_a_server_that_is_gone_is_forgotten(self) -> None:
        self.see(Health.DOWN)
        smaller = Model(pools={"web": Pool("web", (Server(B),))})
        self.observed.before_commit(smaller)
        self.observed.after_commit()
        self.assertEqual(dict(self.observed.health), {})
        self.assertIs(self.checks.model, smaller)
        self.observed.stop()
        self.observed.stopped()
        self.assertEqual(self.clock.getDelayedCalls(), [])
