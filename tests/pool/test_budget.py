"""Retries are bounded by the traffic there is, so that a failing pool is not asked ever more."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.ipc.scoreboard import Scoreboard
from twistedproxy.pool.budget import RetryBudget


class BudgetTests(SynchronousTestCase):
    def test_share_of_the_active(self) -> None:
        """With 20 % and 50 requests in flight ten retries may run; one more only when one has ended."""
        budget = RetryBudget(0.2, lambda: 50, None)
        self.assertEqual(sum(budget.take() for _ in range(60)), 10)
        budget.give_back()
        self.assertEqual([budget.take(), budget.take()], [True, False])

    def test_quiet_pool_may_retry(self) -> None:
        """Three retries are always allowed, so that a pool with one request is not without them."""
        budget = RetryBudget(0.2, lambda: 1, None)
        self.assertEqual([budget.take() for _ in range(4)], [True, True, True, False])

    def test_all_workers_share(self) -> None:
        """Retries running in another worker use up the same budget, and a dead worker's come free."""
        scoreboard = Scoreboard.create(4, 4)
        self.addCleanup(scoreboard.close)
        scoreboard.use_row(1)
        slots = [scoreboard.take_slot(), scoreboard.take_slot()]
        one, two = (RetryBudget(0.2, lambda: 20, scoreboard.board(slot).retries) for slot in slots)
        one.take()  # before the row is known
        for budget in (one, two):
            budget.assign_row(1)
        self.assertEqual([one.take(), two.take(), two.take()], [True, True, True])
        self.assertEqual([one.take(), two.take()], [False, False])
        scoreboard.free_slot(slots[1])
        self.assertEqual([one.take(), one.take(), one.take()], [True, True, False])

    def test_row_moves(self) -> None:
        """A pool that gets another row leaves nothing behind in the old one."""
        scoreboard = Scoreboard.create(4, 1)
        self.addCleanup(scoreboard.close)
        budget = RetryBudget(0.2, lambda: 0, scoreboard.board(scoreboard.take_slot()).retries)
        budget.assign_row(0)
        budget.take()
        budget.assign_row(1)
        self.assertEqual([scoreboard.total("retries", row) for row in (0, 1)], [0, 1])

    def test_nothing_to_give_back(self) -> None:
        self.assertRaises(AssertionError, RetryBudget(0.2, lambda: 0, None).give_back)
