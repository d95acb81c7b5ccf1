"""The waiting line of a pool: first come, first served, for ``queue.timeout`` at most, ``queue.size`` long on the whole machine.

While servers are so fast that the last in line has its turn within `MOMENT_S`, the line may be up to `MOST_TIMES` as long: to refuse
such a request costs about as much as to serve it, and a client that asks again at once would make it cost more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from twisted.logger import Logger

from twistedproxy.clock import Timed, Wheel
from twistedproxy.errors import QueueTimeout, Refusal
from twistedproxy.ipc.scoreboard import Column
from twistedproxy.pool.server import Server

if TYPE_CHECKING:
    from twistedproxy.pool.pool import Lease

MOMENT_S = 0.1
MOST_TIMES = 10
LOOK_S = 0.05
"""How often the pace is looked at, while the line is full."""

_log = Logger()


class Queued(Timed):
    """A place in the line; its waiter is called exactly once, unless `cancel` comes first."""

    __slots__ = ("_line", "_waiter", "key", "tried")

    def __init__(self, line: Line, key: int, tried: frozenset[Server], waiter: Callable[[Lease | Refusal], None]) -> None:
        super().__init__()
        self.key = key
        self.tried = tried
        self._line = line
        self._waiter: Callable[[Lease | Refusal], None] | None = waiter

    @property
    def is_waiting(self) -> bool:
        return self._waiter is not None

    def cancel(self) -> None:
        """The client is gone: leave the line. Does nothing once the waiter was called."""
        if self._waiter is not None:
            self._waiter = None
            self._line.leave(self)

    def answer(self, answer: Lease | Refusal) -> None:
        """Leave the line with what was waited for."""
        waiter = self._waiter
        if waiter is None:
            raise AssertionError("answered a place in the queue that was left already")
        self._waiter = None
        self._line.leave(self)
        try:
            waiter(answer)
        except Exception:
            # We stand in the middle of somebody else's request: its fate must not hang on this one's.
            _log.failure("a waiter in the queue of pool {pool} failed", pool=self._line.pool)
            if not isinstance(answer, Refusal) and answer.is_held:
                answer.forfeit()

    def deadline_passed(self, now: float) -> None:
        if self._waiter is not None:
            self.answer(QueueTimeout(f"no server of pool {self._line.pool!r} came free within {self._line.timeout_s:g} s"))


class Line:
    """Everybody who waits in this worker; the length is published so that `size` holds for the machine."""

    __slots__ = ("_looked_at", "_pace", "_row", "_served", "_table", "_wheel", "places", "pool", "size", "timeout_s")

    def __init__(self, pool: str, wheel: Wheel, table: Column | None) -> None:
        self.pool = pool
        self.size = 0
        self.timeout_s = 0.0
        self._wheel = wheel
        self._table = table
        self._row = -1
        self._looked_at = float("-inf")
        self._served = 0
        self._pace = 0.0
        """Leases given per second, by the last two looks."""
        self.places: OrderedDict[Queued, None] = OrderedDict()
        """In order of arrival; always the same object. In a plain dict the way to the first leads past all who were before it."""

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Queued]:
        """Those who wait now, in order; safe against people leaving meanwhile."""
        first = next(iter(self.places), None)
        if first is not None:
            yield first  # mostly the only one asked for: no copy of a long line for that
            yield from [queued for queued in self.places if queued is not first]

    def assign_row(self, row: int) -> None:
        if self._table is None:
            return
        if self._row >= 0:
            self._table.set(self._row, 0)
        self._row = row
        self._write()

    def is_full(self) -> bool:
        waiting = len(self.places)
        if waiting < self.size and self._table is not None and self._row >= 0:
            waiting = self._table.total(self._row)
        return waiting >= self.size

    def moves_fast(self, served: Callable[[], int]) -> bool:
        """Though `is_full`, would one more have its turn within a moment? `served()` is the number of leases given so far."""
        now = self._wheel.seconds()
        since = now - self._looked_at
        if since >= LOOK_S:
            total = served()
            # After a long time without a look nothing is known about now.
            self._pace = (total - self._served) / since if since < 10 * LOOK_S else 0.0
            self._looked_at, self._served = now, total
        return len(self.places) < min(self._pace * MOMENT_S, self.size * MOST_TIMES)

    def join(self, key: int, tried: frozenset[Server], waiter: Callable[[Lease | Refusal], None]) -> Queued:
        queued = Queued(self, key, tried, waiter)
        self.places[queued] = None
        self._wheel.arm(queued, self._wheel.seconds() + self.timeout_s)
        self._write()
        return queued

    def leave(self, queued: Queued) -> None:
        del self.places[queued]
        self._wheel.disarm(queued)
        self._write()

    def _write(self) -> None:
        if self._table is not None and self._row >= 0:
            self._table.set(self._row, len(self.places))
