"""Times of deadlines are read as they were written. What is taken back, and when, is told in ``test_operations.py``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.supervisor.journal import rfc3339
from twistedproxy.supervisor.probation import seconds_until


class SecondsUntilTests(SynchronousTestCase):
    def test_a_deadline_is_as_far_away_as_the_journal_says(self) -> None:
        now = 1_800_000_000.0
        self.assertEqual(seconds_until(rfc3339(now + 90), now), 90)
        self.assertEqual(seconds_until(rfc3339(now - 90), now), 0)

    def test_what_is_no_time_is_now(self) -> None:
        """A change on probation is rather taken back than kept for ever."""
        self.assertEqual(seconds_until("soon", 0.0), 0)
