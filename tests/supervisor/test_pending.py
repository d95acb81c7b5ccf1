"""A change waits for its confirmation as long as it was told, not longer."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.supervisor.pending import Pending


class PendingTests(SynchronousTestCase):
    def test_only_what_was_not_confirmed_runs_out(self) -> None:
        clock, late = Clock(), list[int]()
        pending = Pending(clock, late.append)
        pending.wait(1, 10)
        pending.wait(2, 10)
        pending.wait(3, 20)
        pending.forget(1)
        clock.advance(10)
        self.assertEqual(late, [2])
        self.assertIn(3, pending)
        pending.stop()
        clock.advance(100)
        self.assertEqual((late, clock.getDelayedCalls()), ([2], []))
