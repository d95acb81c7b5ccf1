"""How far a worker steps back from work that can be done with less care, which is compression, while it has much to do.

How it works
    Ten times a second it is told how long a request waits for its turn, and looks at the CPU time that the process took. A worker whose CPU
    is taken up, or where requests begin to wait, goes to lower levels within a second, step by step; one where they wait long enough to be
    felt stops compressing. What it saves may let it keep up, so it comes back slowly, and only when there is room: no going to and fro.
"""

from __future__ import annotations

import time
from collections.abc import Callable

BUSY = 0.9
"""Share of one CPU from which on a worker has much to do."""
CALM = 0.7
LATE_S = 0.05
TOO_LATE_S = 0.25
LOWEST_LEVELS = 2
"""As far as a busy worker goes."""
NOTHING = 3
GROW = 0.2
SHRINK = 0.05


class Ease:
    """The step of one worker: 0 to 3, as `http.codings.Effort.ease` understands them."""

    __slots__ = ("_at", "_cpu", "_cpu_at", "_pressure", "_seconds")

    def __init__(self, seconds: Callable[[], float], cpu: Callable[[], float] = time.process_time) -> None:
        self._seconds = seconds
        self._cpu = cpu
        self._at = seconds()
        self._cpu_at = cpu()
        self._pressure = 0.0

    def see(self, waited_s: float) -> int:
        """Take in the longest wait since the last call; the step from now on."""
        now, cpu = self._seconds(), self._cpu()
        busy = (cpu - self._cpu_at) / max(now - self._at, 0.001)
        self._at, self._cpu_at = now, cpu
        goal = NOTHING if waited_s > TOO_LATE_S else LOWEST_LEVELS if waited_s > LATE_S or busy > BUSY else 0
        if goal > self._pressure:
            self._pressure = min(self._pressure + GROW, goal)
        elif goal < self._pressure and (goal or busy < CALM):
            self._pressure = max(self._pressure - SHRINK, goal)
        return int(self._pressure + 0.001)
