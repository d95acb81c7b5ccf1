"""Failures that several workers see count together."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import Ejected
from twistedproxy.config.model import Address, Eject, Model, Pool, Server
from twistedproxy.supervisor.passive import PassiveFailures

A, B = Address("10.0.0.1:1"), Address("10.0.0.2:1")


class PassiveTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 100.0
        self.passive = PassiveFailures(lambda: self.now)
        self.pool = Pool("web", (Server(A), Server(B)), eject=Eject(errors=5, within_s=10, for_s=30))
        self.passive.update(Model(pools={"web": self.pool}))

    def test_failures_of_two_workers_eject_together(self) -> None:
        self.assertEqual(self.passive.add([["web", A, 3, 3]]), [])
        self.assertEqual(self.passive.add([["web", A, 2, 2]]), [Ejected("web", A, 130.0)])

    def test_a_change_elsewhere_keeps_what_was_counted(self) -> None:
        self.passive.add([["web", A, 4, 4]])
        self.passive.update(Model(pools={"web": self.pool, "other": Pool("other")}))
        self.assertEqual(len(self.passive.add([["web", A, 1, 1]])), 1)

    def test_pools_without_ejection_and_unknown_ones_are_passed_over(self) -> None:
        self.passive.update(Model(pools={"web": Pool("web", (Server(A), Server(B)), eject=None)}))
        self.assertEqual(self.passive.add([["web", A, 50, 50], ["gone", A, 50, 50]]), [])
