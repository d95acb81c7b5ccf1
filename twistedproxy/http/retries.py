"""Whether a request may be tried again: the rule of limits 3.1, decided at the moment of failure.

A failed attempt has a *reason*: ``connect`` (nothing was sent, so any method is safe), ``reused`` (a kept-alive connection died
before any answer: the server closed it while the request was on its way), ``timeout``, or a status such as ``503``. All but the
first may have been seen by a server, so they need an idempotent method and a body that is at hand.
"""

from __future__ import annotations

from twistedproxy.http.destination import Destination
from twistedproxy.pool.server import Server

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
NOTHING_SENT = "connect"
REUSED = "reused"


class Retries:
    """What was tried for one request; made at its first failure, so that a request without one pays nothing."""

    __slots__ = ("log", "tried", "has_stale_connection", "_destination", "_tries", "_has_budget")

    def __init__(self, destination: Destination) -> None:
        self.log: list[tuple[str, float, str, str]] = []
        """Attempts that failed and were followed by another: server, seconds since the request came, reason, detail."""
        self.tried: frozenset[Server] = frozenset()
        self.has_stale_connection = False
        """A kept-alive connection let this request down: only fresh ones from now on."""
        self._destination = destination
        self._tries = 0
        self._has_budget = False

    def allow(self, reason: str, server: Server, method: bytes, is_replayable: bool) -> bool:
        """Whether the attempt on `server` that failed for `reason` may be followed by another; notes it when so."""
        destination = self._destination
        if reason not in destination.retry_on:
            return False
        if reason != NOTHING_SENT and not (is_replayable and method in IDEMPOTENT):
            return False
        if self.has_stale_connection if reason == REUSED else self._tries >= destination.tries:
            return False
        if not self._has_budget:
            if not destination.pool.may_retry():
                return False
            self._has_budget = True
        if reason == REUSED:
            self.has_stale_connection = True
        else:
            self._tries += 1
            self.tried |= {server}
        return True

    def done(self) -> None:
        """The request is over: its part of the pool's retry budget is free again."""
        if self._has_budget:
            self._destination.pool.retry_done()
