"""When a worker cannot keep up: which share of the new requests it refuses at once, so that the others are answered in time.

Requests that wait longer than `LATE_S` before anybody looks at them are mostly answered to clients that have given up; work done for
them is lost for those who came later, and goodput collapses. So while the wait is too long the share grows, and when it is short again
it shrinks, more slowly (additive increase and decrease; after CoDel the measure is the standing wait, not the load).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.logger import Logger

from twistedproxy.net.pulse import Pulse
from twistedproxy.net.sparse import SparseLog
from twistedproxy.worker.places import Place

LATE_S = 0.5
"""A wait of this length is too long."""
GROW = 0.1
SHRINK = 0.02
MOST = 0.95
"""Somebody is always let through, or nobody would notice that it got better."""


class Overload:
    """The share of one worker; `see` is called ten times a second."""

    __slots__ = ("share",)

    def __init__(self) -> None:
        self.share = 0.0

    def see(self, waited_s: float) -> float:
        """Take in the longest wait since the last call; the share to refuse from now on."""
        if waited_s > LATE_S:
            self.share = min(self.share + GROW, MOST)
        elif self.share:
            self.share = max(self.share - SHRINK, 0.0)
        return self.share


class Load:
    """How busy this worker is, and what it does about it."""

    __slots__ = ("_log", "_overload", "_pulse")

    def __init__(self, reactor: Any) -> None:
        self._pulse = Pulse(reactor)
        self._overload = Overload()
        self._log = SparseLog(Logger(namespace="worker"), reactor.seconds)

    def beat(self) -> None:
        self._pulse.beat()

    def stop(self) -> None:
        self._pulse.stop()

    def mind(self, places: Iterable[Place]) -> float:
        """Let crowded HTTP listeners keep idle connections for less long, and all of them refuse what is too much; the wait in seconds."""
        waited = self._pulse.take_longest()
        share = self._overload.see(waited)
        if share:
            self._log.warn("too much to do: requests wait {waited:.1f} s, so {share:.0%} of them are refused", waited=waited, share=share)
        for place in places:
            front: Any = place.front
            front.mind_crowding(place.is_crowded)
            front.shed(share)
        return waited
