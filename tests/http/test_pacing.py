"""Floods of refusals: the first are told at once, the rest a moment later, nobody never."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.pacing import FREE, HOLD_S, WINDOW_S, Pacing


class PacingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.pacing = Pacing(self.clock)
        self.told: list[int] = []

    def refuse(self, *numbers: int) -> list[int]:
        """Those that are held."""
        return [n for n in numbers if self.pacing.holds(self.told.append, n)]

    def test_few_refusals_are_told_at_once(self) -> None:
        for _ in range(5):
            self.assertEqual(self.refuse(*range(FREE)), [])
            self.clock.advance(WINDOW_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_P1_in_a_flood_each_is_told_in_order_and_within_100_ms(self) -> None:
        """Who retries at once is slowed down to some 14 requests a second, and still hears in time."""
        everybody = list(range(FREE + 100))
        held = self.refuse(*everybody)
        self.assertEqual(held, everybody[FREE:])
        self.clock.advance(HOLD_S / 2)
        self.assertEqual(self.told, [])
        self.clock.advance(0.1 - HOLD_S / 2)
        self.assertEqual(self.told, held)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_came_later_is_told_later(self) -> None:
        self.refuse(*range(FREE), 100)
        self.clock.advance(HOLD_S / 2)
        self.refuse(200)
        self.clock.advance(HOLD_S / 2)
        self.assertEqual(self.told, [100])
        self.refuse(*range(FREE), 300)
        self.clock.advance(HOLD_S)
        self.assertEqual(self.told, [100, 200, 300])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_cannot_be_told_does_not_keep_the_others_waiting(self) -> None:
        def fails(number: int) -> None:
            raise RuntimeError(number)

        for stop in (False, True):
            self.refuse(*range(FREE))
            self.pacing.holds(fails, 1)
            held = self.refuse(1, 2, 3)
            if stop:
                self.pacing.stop()
            else:
                self.clock.advance(HOLD_S)
            self.assertEqual((self.told, self.clock.getDelayedCalls()), (held, []))
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            self.told.clear()

    def test_who_asks_again_at_the_end_leaves_no_timer(self) -> None:
        """The next of several requests that a client has sent together is refused as the first was."""
        self.refuse(*range(FREE))
        self.pacing.holds(self.refuse, 1)
        self.pacing.stop()
        self.assertEqual((self.told, self.clock.getDelayedCalls()), ([1], []))

    def test_at_the_end_everybody_is_told(self) -> None:
        """A worker that leaves owes nobody an answer, and leaves no timer."""
        held = self.refuse(*range(FREE + 3))
        self.pacing.stop()
        self.assertEqual((self.told, self.clock.getDelayedCalls()), (held, []))
