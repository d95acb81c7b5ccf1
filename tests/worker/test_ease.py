"""Compression gives way when a worker has much to do, and comes back when there is room."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.codings import NO_MORE
from twistedproxy.worker.ease import CALM, LATE_S, NOTHING, TOO_LATE_S, Ease


class EaseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = self.cpu = 0.0
        self.ease = Ease(lambda: self.now, lambda: self.cpu)

    def see(self, seconds: float, busy: float = 0.0, waited: float = 0.0) -> list[int]:
        """The steps over some time, each once."""
        steps = []
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.cpu += 0.1 * busy
            steps.append(self.ease.see(waited))
        return list(dict.fromkeys(steps))

    def test_a_worker_with_room_compresses_as_configured(self) -> None:
        self.assertEqual(self.see(60, busy=0.89, waited=LATE_S), [0])

    def test_a_busy_one_goes_to_the_lowest_levels_and_no_further(self) -> None:
        """Within a second or two; the CPU alone never turns compression off."""
        self.assertEqual(self.see(2, busy=1.0), [0, 1, 2])
        self.assertEqual(self.see(60, busy=1.0), [2])

    def test_a_late_one_stops_compressing(self) -> None:
        """Requests that wait a quarter of a second weigh more than bytes; with less of a wait it compresses again, at the lowest levels."""
        self.assertEqual(self.see(3, busy=1.0, waited=TOO_LATE_S * 2), [0, 1, 2, 3])
        self.assertEqual(self.see(60, busy=1.0, waited=LATE_S * 2), [2])
        self.assertEqual(NOTHING, NO_MORE)

    def test_it_comes_back_slowly(self) -> None:
        """Not before there is room for the work that comes back with it."""
        self.see(3, waited=1.0)
        self.assertEqual(self.see(30, busy=CALM + 0.1), [3])
        self.assertEqual(self.see(1, busy=0.1), [2])
        self.assertEqual(self.see(10, busy=0.1), [2, 1, 0])

    def test_a_clock_that_stands_still(self) -> None:
        """Two looks at the same moment."""
        self.assertEqual([self.ease.see(0.0) for _ in range(5)], [0] * 5)
