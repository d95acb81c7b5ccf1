"""Shares of the traffic, as operators read them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import HealthSeen
from twistedproxy.config.model import Address, AdminState, Health, Pool, Server
from twistedproxy.config.shares import shares

A, B, C = (Address(f"10.0.0.{n}:80") for n in (1, 2, 3))


class SharesTests(SynchronousTestCase):
    def test_backups_serve_only_when_no_primary_can(self) -> None:
        pool = Pool("web", (Server(A, weight=3), Server(B), Server(C, backup=True)))
        down = {("web", A): HealthSeen("web", A, Health.DOWN, "", 0.0)}
        self.assertEqual(shares(pool, {}, ()), {A: 0.75, B: 0.25})
        self.assertEqual(shares(pool, down, ()), {B: 1.0})
        self.assertEqual(shares(pool, down, {("web", B)}), {C: 1.0})

    def test_nobody_available_is_no_share(self) -> None:
        self.assertEqual(shares(Pool("web", (Server(A, weight=0), Server(B, state_set=AdminState.DRAIN))), {}, ()), {})
