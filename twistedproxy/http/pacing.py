"""Clients that retry at once what was refused must not eat up the time that the others need: in a flood of refusals each has to wait.

How it works
    A refusal costs about a third of a request. A thousand clients that ask again the moment they are refused would keep a worker
    busy with refusing. So the first `FREE` refusals of every `WINDOW_S` are told at once, and the others `HOLD_S` later: a client
    that waits for its answer asks nothing, whether it keeps its connection or makes a new one. It is told within 100 ms all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

WINDOW_S = 0.05
FREE = 16
HOLD_S = 0.07
TOGETHER_S = 0.005
"""Those who are due within this time are told in one go."""

_log = Logger()


class Pacing:
    """The refusals of one worker. `later(call, argument)` runs `call(argument)`, which must do nothing for whoever has left."""

    __slots__ = ("_count", "_held", "_reactor", "_timer", "_window_ends")

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._window_ends = float("-inf")
        self._count = 0
        self._held: deque[tuple[float, Callable[[Any], None], Any]] = deque()
        self._timer: Any = None

    def holds(self, call: Callable[[Any], None], argument: Any) -> bool:
        """Count a refusal. True: `call(argument)` will tell it, in a moment; False: nothing happens, tell it now."""
        now = self._reactor.seconds()
        if now >= self._window_ends:
            self._window_ends = now + WINDOW_S
            self._count = 0
        self._count += 1
        if self._count <= FREE:
            return False
        self._held.append((now + HOLD_S, call, argument))
        if self._timer is None:
            self._timer = self._reactor.callLater(HOLD_S, self._tell)
        return True

    def _tell(self) -> None:
        self._timer = None
        held = self._held
        until = self._reactor.seconds() + TOGETHER_S
        while held and held[0][0] <= until:
            self._tell_first()
        if held and self._timer is None:
            self._timer = self._reactor.callLater(max(held[0][0] - self._reactor.seconds(), 0.0), self._tell)

    def _tell_first(self) -> None:
        _, call, argument = self._held.popleft()
        try:
            call(argument)
        except Exception:
            _log.failure("a refusal could not be told")  # one request's bug must not keep the others waiting

    def stop(self) -> None:
        """Tell everybody now; the worker ends."""
        while self._held:
            self._tell_first()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
