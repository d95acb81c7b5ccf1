"""Pure verdicts for the supervisor: probes rise and fall, passive failures eject. Time is passed in.

How it works
    `RiseFall` turns probe results into a verdict with hysteresis: the first result decides at once, then `fall` bad ones in a row
    are needed to go down and `rise` good ones to come up.

    `Ejector` watches the failures real traffic sees, summed over all workers. A server is ejected for `for_s` when its window of
    `within_s` holds at least `errors` failures and these are at least `ratio` of its requests in that window. No more than
    `max_percent` of the pool, rounded down, are out at a time, so that an only server always stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from twistedproxy.config.model import Eject, Health


class RiseFall:
    """The verdict on one server."""

    __slots__ = ("_against", "fall", "rise", "verdict")

    def __init__(self, fall: int, rise: int) -> None:
        self.fall = fall
        self.rise = rise
        self.verdict = Health.UNKNOWN
        self._against = 0
        """Results in a row that contradict the verdict."""

    def add(self, is_good: bool) -> bool:
        """Take in one probe's result; True when the verdict changed."""
        seen = Health.UP if is_good else Health.DOWN
        if seen is self.verdict:
            self._against = 0
            return False
        self._against += 1
        needed = 1 if self.verdict is Health.UNKNOWN else self.rise if is_good else self.fall
        if self._against < needed:
            return False
        self.verdict = seen
        self._against = 0
        return True


class EjectionWindow:
    """Failures and requests of one server over the last `within_s`, in at most `PARTS` + 1 parts."""

    __slots__ = ("_parts", "failures", "requests", "within_s")

    PARTS = 20

    def __init__(self, within_s: float) -> None:
        self.within_s = within_s
        self.failures = 0
        self.requests = 0
        self._parts: deque[list[float]] = deque()
        """[start, failures, requests]"""

    def add(self, failures: int, requests: int, now: float) -> None:
        requests = max(requests, failures)
        self.forget(now)
        if self._parts and now < self._parts[-1][0] + self.within_s / self.PARTS:
            self._parts[-1][1] += failures
            self._parts[-1][2] += requests
        else:
            self._parts.append([now, failures, requests])
        self.failures += failures
        self.requests += requests

    def forget(self, now: float) -> None:
        """Let go of what is older than the window."""
        while self._parts and self._parts[0][0] <= now - self.within_s:
            _, failures, requests = self._parts.popleft()
            self.failures -= int(failures)
            self.requests -= int(requests)

    def clear(self) -> None:
        self._parts.clear()
        self.failures = self.requests = 0


class Ejector:
    """The ejections of one pool."""

    def __init__(self, eject: Eject, servers: Iterable[str]) -> None:
        self._until: dict[str, float] = {}
        self._windows: dict[str, EjectionWindow] = {}
        self.update(eject, servers)

    def update(self, eject: Eject, servers: Iterable[str]) -> None:
        """Take over changed rules and the pool's present addresses; who left is forgotten."""
        self.eject = eject
        self._until = {server: self._until.get(server, 0.0) for server in servers}
        self._windows = {server: window for server, window in self._windows.items() if server in self._until}
        for window in self._windows.values():
            window.within_s = eject.within_s

    def add(self, server: str, failures: int, requests: int, now: float) -> float | None:
        """Count what a worker reports; when that ejects the server, the time (as `now`) until which it is out."""
        until = self._until.get(server)
        if until is None or now < until:
            return None  # gone, or out already: what comes in now are the stragglers
        window = self._windows.get(server)
        if window is None:
            window = self._windows[server] = EjectionWindow(self.eject.within_s)
        window.add(failures, requests, now)
        eject = self.eject
        if not failures or window.failures < eject.errors or window.failures < eject.ratio * window.requests:
            return None
        if len(self.ejected(now)) >= len(self._until) * eject.max_percent // 100:
            return None
        window.clear()
        self._until[server] = until = now + eject.for_s
        return until

    def ejected(self, now: float) -> dict[str, float]:
        """Who is out at `now`, and until when."""
        return {server: until for server, until in self._until.items() if until > now}
