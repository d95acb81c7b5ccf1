"""When a worker cannot keep up: which share of the new requests it refuses at once, so that the others are answered in time.

Requests that wait longer than `shed_lag` before anybody looks at them are mostly answered to clients that have given up; work done for
them is lost for those who came later, and goodput collapses. So while the wait is too long the share grows, and when it is short again
it shrinks, more slowly (additive increase and decrease; after CoDel the measure is the standing wait, not the load).

When the memory is nearly used up (`memory`), requests are refused as well, and new TCP connections left waiting: whoever is killed by
the kernel serves nobody. Somewhat earlier connections are not kept any more, which gives back what idle ones hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.logger import Logger

from twistedproxy.config.model import HttpListener, Shedding
from twistedproxy.errors import MemoryShort, Overloaded
from twistedproxy.http.pacing import Pacing
from twistedproxy.net.pulse import Pulse
from twistedproxy.net.sparse import SparseLog
from twistedproxy.worker.ease import Ease
from twistedproxy.worker.memory import Memory, trim
from twistedproxy.worker.places import Place

EARLIER = 0.03
"""So much of the limit before requests are refused, connections are not kept any more; what has begun ends as much lower."""
GROW = 0.1
SHRINK = 0.02
MOST = 0.95
"""Somebody is always let through, or nobody would notice that it got better."""
_TOO_MUCH = Overloaded("the proxy has too much to do")
_NO_MEMORY = MemoryShort("the proxy has no memory left for this request")


class Overload:
    """The share of one worker; `see` is called ten times a second."""

    __slots__ = ("late_s", "share")

    def __init__(self, late_s: float = Shedding().lag_s) -> None:
        self.share = 0.0
        self.late_s = late_s
        """A wait of this length is too long."""

    def see(self, waited_s: float) -> float:
        """Take in the longest wait since the last call; the share to refuse from now on."""
        if waited_s > self.late_s:
            self.share = min(self.share + GROW, MOST)
        elif self.share:
            self.share = max(self.share - SHRINK, 0.0)
        return self.share


class Load:
    """How busy this worker is, and what it does about it."""

    __slots__ = (
        "_compact",
        "_ease",
        "_is_refusing",
        "_is_short",
        "_log",
        "_memory",
        "_memory_limit",
        "_memory_log",
        "_overload",
        "_pulse",
        "_spec",
        "pacing",
    )

    def __init__(self, reactor: Any, memory: Memory | None = None) -> None:
        self._spec = Shedding()
        self._memory = memory or Memory(give_back=self._give_back)
        self._compact: Callable[[], None] | None = getattr(reactor, "compact", None)
        self._memory_limit: int | None = None
        self._is_short = self._is_refusing = False
        self.pacing = Pacing(reactor)
        self._pulse = Pulse(reactor)
        self._ease = Ease(reactor.seconds)
        self._overload = Overload()
        log = Logger(namespace="worker")
        self._log = SparseLog(log, reactor.seconds)
        self._memory_log = SparseLog(log, reactor.seconds)

    def configure(self, spec: Shedding, workers: int) -> None:
        self._spec = spec
        self._overload.late_s = spec.lag_s
        self._memory_limit = spec.memory_bytes and spec.memory_bytes // max(workers, 1)

    def _give_back(self) -> None:
        if self._compact is not None:
            self._compact()
        trim()

    def beat(self) -> None:
        self._pulse.beat()

    def stop(self) -> None:
        self._pulse.stop()
        self.pacing.stop()

    def mind(self, places: Iterable[Place]) -> float:
        """Let crowded HTTP listeners keep idle connections for less long, and all of them refuse what is too much; the wait in seconds."""
        waited = self._pulse.take_longest()
        share = self._overload.see(waited)
        ease = self._ease.see(waited)
        if share:
            self._log.warn("too much to do: requests wait {waited:.1f} s, so {share:.0%} of them are refused", waited=waited, share=share)
        for place in places:
            front: Any = place.front
            front.mind_crowding(place.is_crowded)
            front.effort.ease = ease
            if not self._is_refusing:
                front.shed(share, _TOO_MUCH)
        return waited

    def mind_memory(self, places: Iterable[Place], connections: int) -> None:
        """Once a second: look at the memory and do what it asks for."""
        self._memory.see(connections)
        taken, most = self._memory.taken(self._memory_limit), self._spec.memory
        was_refusing = self._is_refusing
        self._is_refusing = taken >= most - (EARLIER if was_refusing else 0)
        was_short = self._is_short
        self._is_short = taken >= most - EARLIER * (2 if was_short else 1)
        if self._is_short:
            self._memory_log.warn(
                "{taken:.0%} of the memory that the workers may use is taken: {act}",
                taken=taken,
                act="requests are refused, TCP listeners accept nobody" if self._is_refusing else "client connections are not kept",
            )
        if not (was_refusing or was_short or self._is_short):
            return
        for place in places:
            if isinstance(place.spec, HttpListener):
                front: Any = place.front
                front.mind_memory(self._is_short)
                if self._is_refusing:
                    front.shed(1.0, _NO_MEMORY)
            else:
                place.pause(self._is_refusing)
