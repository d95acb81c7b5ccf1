"""Whether a request may be tried again: the rule of limits 3.1, decided at the moment of failure.

A failed attempt has a *reason*: ``connect`` (nothing was sent, so any method is safe), ``reused`` (a kept-alive connection died
before any answer: the server closed it while the request was on its way), ``closed`` (a fresh one did), ``timeout``, or a status such
as ``503``. All but the first may have been seen by a server, so they need an idempotent method and a body that is at hand.

*How many.* Where no server did any work (``connect``, ``reused``) the attempt is all that its request costs the servers, so when one of
them dies with many requests on its hands, all of these go on to another. The rest would multiply the work of servers that have
too much of it already, and is held within the pool's budget.

*When.* Another server is asked at once; the same one, after a status and when there is no other, after a random moment that may double
each time. A ``Retry-After`` is heeded: not earlier than it says, or not at all when that is too long.

*Proxies in a row.* A repeated request carries ``X-Retry-Attempt``; one that comes with it already is not repeated again, or three
proxies with two attempts each would make 27 requests of one. Where no server was asked anything (``connect``, ``reused``) that is no
danger.
"""

from __future__ import annotations

from calendar import timegm
from collections.abc import Callable
from email.utils import parsedate

from twistedproxy.clock import NEVER, Timed, Wheel
from twistedproxy.http.destination import Destination
from twistedproxy.pool.server import Server

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
NOTHING_SENT = "connect"
REUSED = "reused"
CLOSED = "closed"
_HARMLESS = (NOTHING_SENT, REUSED)
BACK_OFF_S = 0.025
LONGEST_BACK_OFF_S = 0.25
LONGEST_WAIT_S = 5.0
"""A Retry-After beyond this is the client's to wait for."""


class Retries:
    """What was tried for one request; made at its first failure, so that a request without one pays nothing."""

    __slots__ = (
        "log",
        "tried",
        "has_stale_connection",
        "_destination",
        "_has_budget",
        "_is_repeat",
        "_may_go_back",
        "_times_back",
        "_tries",
    )

    def __init__(self, destination: Destination, is_repeat: bool = False) -> None:
        """`is_repeat`: it is somebody else's repeated attempt already."""
        self.log: list[tuple[str, float, str, str]] = []
        """Attempts that failed and were followed by another: server, seconds since the request came, reason, detail."""
        self.tried: frozenset[Server] = frozenset()
        self.has_stale_connection = False
        """A kept-alive connection let this request down: only fresh ones from now on."""
        self._destination = destination
        self._tries = 0
        self._has_budget = False
        self._is_repeat = is_repeat
        self._may_go_back = False
        self._times_back = 0

    def allow(self, reason: str, server: Server, method: bytes, is_replayable: bool) -> bool:
        """Whether the attempt on `server` that failed for `reason` may be followed by another; notes it when so."""
        destination = self._destination
        if reason not in destination.retry_on:
            return False
        if reason != NOTHING_SENT and not (is_replayable and method in IDEMPOTENT):
            return False
        if self._is_repeat and reason not in _HARMLESS:
            return False
        if self.has_stale_connection if reason == REUSED else self._tries >= destination.tries:
            return False
        if not self._has_budget and reason not in _HARMLESS:
            if not destination.pool.may_retry():
                return False
            self._has_budget = True
        if reason == REUSED:
            self.has_stale_connection = True
        else:
            self._tries += 1
            self.tried |= {server}
        self._may_go_back = reason.isdigit()
        return True

    def go_back(self, chance: float) -> float:
        """No other server is left: the seconds until those that were tried may be asked again, negative when they may not.

        `chance` is random, in [0, 1): many that failed together shall not come back together ("full jitter").
        """
        if not self._may_go_back:
            return -1.0
        self._may_go_back = False
        self.tried = frozenset()
        longest = min(BACK_OFF_S * (1 << self._times_back), LONGEST_BACK_OFF_S)
        self._times_back += 1
        return chance * longest

    @property
    def field(self) -> bytes:
        """What tells the servers that this is a further attempt."""
        attempt = len(self.log)
        return b"X-Retry-Attempt: %d\r\n" % attempt if attempt else b""

    def done(self) -> None:
        """The request is over: its part of the pool's retry budget is free again."""
        if self._has_budget:
            self._destination.pool.retry_done()


class Pause(Timed):
    """`then()` is called once `seconds` have passed, unless `cancel` comes first."""

    __slots__ = ("_then",)

    def __init__(self, wheel: Wheel, seconds: float, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then
        wheel.arm(self, wheel.seconds() + seconds)

    def cancel(self) -> None:
        self.deadline = NEVER

    def deadline_passed(self, now: float) -> None:
        self._then()


def wait_asked_for(value: bytes | None, wall: float) -> float:
    """The seconds that a Retry-After asks for (RFC 9110 10.2.3), 0.0 without one; what cannot be read asks for ever."""
    if value is None:
        return 0.0
    if value.isdigit() and len(value) < 10:
        return float(value)
    try:
        parsed = parsedate(value.decode("latin-1"))
        return NEVER if parsed is None else max(timegm(parsed) - wall, 0.0)
    except (ValueError, OverflowError):  # a year that no calendar has
        return NEVER
