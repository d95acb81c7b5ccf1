"""Log lines that a stranger could cause by the million: one per interval, with a count of those left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger, LogLevel


class SparseLog:
    """Lets one message through per `every_s`; the next one says how many were left out."""

    __slots__ = ("_logger", "_seconds", "_every_s", "_next", "left_out")

    def __init__(self, logger: Logger, seconds: Callable[[], float], every_s: float = 60.0) -> None:
        self._logger = logger
        self._seconds = seconds
        self._every_s = every_s
        self._next = float("-inf")
        self.left_out = 0

    def _may_say(self) -> bool:
        now = self._seconds()
        if now < self._next:
            self.left_out += 1
            return False
        self._next = now + self._every_s
        return True

    def _suffix(self) -> str:
        left_out, self.left_out = self.left_out, 0
        return f" ({left_out} more like this were not logged)" if left_out else ""

    def warn(self, format: str, **facts: Any) -> None:
        if self._may_say():
            self._logger.emit(LogLevel.warn, format + self._suffix(), **facts)

    def failure(self, format: str, **facts: Any) -> None:
        """The exception being handled, with its traceback."""
        if self._may_say():
            self._logger.failure(format + self._suffix(), **facts)
