"""The Redis check."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.probes.dialogue import Finding
from twistedproxy.probes.redis import PING, RedisCheck

CASES = [
    (b"+PONG\r\n", Finding(True, "PONG")),
    (b"-NOAUTH Authentication required.\r\n", Finding(True, "Redis answered NOAUTH")),
    (b"-NOPERM this user has no permissions\r\n", Finding(True, "Redis answered NOPERM")),
    (b"-LOADING Redis is loading the dataset in memory\r\n", Finding(False, "LOADING Redis is loading the dataset in memory")),
    (b"-MASTERDOWN Link with MASTER is down\r\n", Finding(False, "MASTERDOWN Link with MASTER is down")),
    (b"-DENIED Redis is running in protected mode\r\n", Finding(False, "DENIED Redis is running in protected mode")),
    (b"+OK\r\n", Finding(False, "OK")),
    (b"HTTP/1.1 400\r\n", Finding(False, "not a Redis answer")),
    (b"+PO", Finding(False, "closed the connection in the middle of its answer")),
    (b"", Finding(False, "closed the connection without an answer")),
]


class RedisCheckTest(SynchronousTestCase):
    def test_what_answers_mean(self) -> None:
        """A server that wants a password is up; one that is loading or cut off from its master is down."""
        for answer, expected in CASES:
            for step in (len(answer) or 1, 1):
                check = RedisCheck()
                check.begin()
                self.assertEqual(bytes(check.outgoing), PING)
                found = None
                for start in range(0, len(answer), step):
                    check.received += answer[start : start + step]
                    found = found or check.read()
                self.assertEqual(found or check.ended(), expected, f"{answer!r}, {step} bytes at a time")
