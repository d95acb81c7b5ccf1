"""Changes that are taken back by themselves unless somebody confirms them in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Pending:
    """One timer for each; `ran_out` gets the revision."""

    def __init__(self, reactor: Any, ran_out: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._ran_out = ran_out
        self._timers: dict[int, Any] = {}

    def __contains__(self, revision: int) -> bool:
        return revision in self._timers

    def wait(self, revision: int, within_s: float) -> None:
        self.forget(revision)
        self._timers[revision] = self._reactor.callLater(within_s, self._late, revision)

    def _late(self, revision: int) -> None:
        del self._timers[revision]
        self._ran_out(revision)

    def forget(self, revision: int) -> None:
        """It is confirmed, or undone."""
        timer = self._timers.pop(revision, None)
        if timer is not None:
            timer.cancel()

    def stop(self) -> None:
        for revision in tuple(self._timers):
            self.forget(revision)
