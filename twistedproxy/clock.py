"""Deadlines for tens of thousands of connections, without a timer object or a heap entry for each.

How it works
    Whatever can time out is a `Timed`: it carries its own deadline. The wheel keeps, for each armed object, the tick at
    which it will *look* at it, at most `LOOK_S` ahead. Moving a deadline further away, the common case on every request, is
    one attribute store; the wheel finds out when it looks. Only a deadline that comes before the next look costs an insertion.
    A deadline is never early, and late by at most two ticks (100 ms) plus the owner's own lateness.

    No sockets and no reactor here: the owner calls `advance(now)` every `TICK_S`, tests call it with any time they like.
    After Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), with lazy re-arming as Linux's TCP keepalive does it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

_log = Logger()

TICK_S = 0.05
LOOK_S = 2.5
NEVER = float("inf")
_LOOK_TICKS = int(LOOK_S / TICK_S)


class Timed:
    """Something with one deadline at a time; subclasses say what its passing means."""

    __slots__ = ("deadline", "look_at")

    def __init__(self) -> None:
        self.deadline = NEVER
        """Seconds on the wheel's clock; set by `Wheel.arm` and `Wheel.disarm`."""
        self.look_at = NEVER
        """When the wheel will look next; NEVER while it does not hold the object."""

    def deadline_passed(self, now: float) -> None:
        """Called once per armed deadline, which is cleared before the call."""
        raise NotImplementedError


class Wheel:
    """The deadlines of one worker.

    `seconds` is a monotonic clock in seconds.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.seconds = seconds
        self._buckets: dict[float, set[Timed]] = {}
        """By `look_at`, which is always a tick's time."""
        self._move_on(int(seconds() / TICK_S))

    def _move_on(self, tick: int) -> None:
        self._tick = tick
        self._latest = (tick + _LOOK_TICKS) * TICK_S
        """When those are looked at whose deadline is further away, which are nearly all."""
        self._last_bucket: set[Timed] | None = None
        """The bucket of `_latest`, once there is one."""

    def arm(self, timed: Timed, deadline: float) -> None:
        """Let `timed.deadline_passed` be called once the clock has passed `deadline` (absolute, seconds).

        Where every call counts, these two lines are written out.
        """
        timed.deadline = deadline
        if deadline < timed.look_at:
            self.look_sooner(timed)

    def disarm(self, timed: Timed) -> None:
        """Forget the deadline; the object is let go of at the next look."""
        timed.deadline = NEVER

    def look_sooner(self, timed: Timed) -> None:
        """Look at `timed` no later than its deadline asks for."""
        if timed.look_at != NEVER or timed.deadline < self._latest:
            self._insert(timed, self._tick)
            return
        bucket = self._last_bucket
        if bucket is None:
            bucket = self._last_bucket = self._buckets.setdefault(self._latest, set())
        timed.look_at = self._latest
        bucket.add(timed)

    def _insert(self, timed: Timed, after: int) -> None:
        earlier = self._buckets.get(timed.look_at)
        if earlier is not None:
            earlier.discard(timed)
        tick = min(int(timed.deadline / TICK_S) + 1, after + _LOOK_TICKS)
        timed.look_at = look_at = max(tick, after + 1) * TICK_S
        bucket = self._buckets.get(look_at)
        if bucket is None:
            self._buckets[look_at] = {timed}
        else:
            bucket.add(timed)

    def advance(self, now: float) -> None:
        """Look at everything due up to `now`; call what has passed."""
        tick = self._tick
        last = int(now / TICK_S)
        if last - tick > len(self._buckets):
            due = sorted(at for at in self._buckets if at <= last * TICK_S)
        else:
            due = [at for t in range(tick + 1, last + 1) if (at := t * TICK_S) in self._buckets]
        self._move_on(last)
        for at in due:
            for timed in self._buckets.pop(at):
                if timed.look_at != at:
                    continue
                timed.look_at = NEVER
                deadline = timed.deadline
                if deadline <= now:
                    timed.deadline = NEVER
                    try:
                        timed.deadline_passed(now)
                    except Exception:
                        # One owner's bug must not cost the others their deadlines.
                        _log.failure("the passing of a deadline of {timed!r} failed", timed=timed)
                elif deadline != NEVER:
                    self._insert(timed, last)

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))
