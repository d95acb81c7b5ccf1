"""A worker that cannot keep up refuses some, never all, and takes everybody again soon after."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.worker.overload import LATE_S, MOST, Overload


class OverloadTests(SynchronousTestCase):
    def test_a_busy_worker_refuses_nobody(self) -> None:
        overload = Overload()
        self.assertEqual({overload.see(LATE_S) for _ in range(100)}, {0.0})

    def test_while_requests_wait_too_long_more_and_more_are_refused_but_never_all(self) -> None:
        overload = Overload()
        shares = [overload.see(LATE_S * 2) for _ in range(30)]
        self.assertEqual(shares, sorted(shares))
        self.assertGreater(shares[0], 0)
        self.assertEqual(shares[-1], MOST)

    def test_five_seconds_after_it_got_better_everybody_is_taken_again(self) -> None:
        overload = Overload()
        for _ in range(30):
            overload.see(1.0)
        for _ in range(50):
            overload.see(0.01)
        self.assertEqual(overload.share, 0.0)
