"""How many retries a pool may have in flight, so that failing servers are not buried under repeated requests.

Retries at any moment are at most a share of the requests in flight, over all workers, but never held below three
(after Envoy's ``retry_budget``).
"""

from __future__ import annotations

from collections.abc import Callable

from twistedproxy.ipc.scoreboard import Column

LEAST = 3


class RetryBudget:
    """The retries of one pool; `share` may be changed at any time."""

    __slots__ = ("_active", "_now", "_row", "_table", "share")

    def __init__(self, share: float, active: Callable[[], int], table: Column | None) -> None:
        self.share = share
        self._active = active
        """The pool's requests in flight on the whole machine."""
        self._table = table
        self._row = -1
        self._now = 0

    def assign_row(self, row: int) -> None:
        if self._table is None:
            return
        if self._row >= 0:
            self._table.set(self._row, 0)
        self._row = row
        self._write()

    def take(self) -> bool:
        """Whether one more retry may start; if so it counts until `give_back`."""
        running = self._now if self._table is None or self._row < 0 else self._table.total(self._row)
        if running >= LEAST and running >= self.share * self._active():
            return False
        self._now += 1
        self._write()
        return True

    def give_back(self) -> None:
        if self._now <= 0:
            raise AssertionError("a retry was given back that was never taken")
        self._now -= 1
        self._write()

    def _write(self) -> None:
        if self._table is not None and self._row >= 0:
            self._table.set(self._row, self._now)
