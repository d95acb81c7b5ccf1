"""A disk that fails is left alone for a while, and the log hears of it once."""

import errno

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.breaker import Breaker


class BreakerTests(SynchronousTestCase):
    def test_longer_and_longer_pauses_one_line_at_the_beginning_and_one_at_the_end(self) -> None:
        events: list[dict[str, object]] = []
        now = 0.0
        breaker = Breaker("write", lambda: now, Logger(namespace="test", observer=events.append))
        self.assertFalse(breaker.is_open)
        pauses = []
        for _ in range(8):
            breaker.fail(OSError(errno.ENOSPC, "No space left on device", "/c/x"))
            began = now
            breaker.fail(OSError(errno.ENOSPC, "another one at the same time"))
            breaker.succeed()  # of one that had begun before: says nothing about now
            while breaker.is_open:
                now += 1
            pauses.append(now - began)
        self.assertEqual(pauses, [10, 20, 40, 80, 160, 300, 300, 300])
        self.assertEqual((len(events), breaker.failures), (1, 16))
        self.assertIn("No space left", str(events[0]))
        breaker.succeed()
        breaker.succeed()
        self.assertEqual(len(events), 2)
        breaker.fail(OSError(errno.EIO, "x"))
        now += 10
        self.assertFalse(breaker.is_open, "from the beginning again")
        self.assertEqual(len(events), 3)
