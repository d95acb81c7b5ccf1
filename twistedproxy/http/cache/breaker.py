"""Leaves a disk alone that has just failed: for 10 s, then twice as long, up to 5 minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

FIRST_S: Final = 10.0
LONGEST_S: Final = 300.0


class Breaker:
    """Says an outage once, and its end once. May be told of failures by several threads: then one more line is the worst."""

    def __init__(self, what: str, seconds: Callable[[], float], log: Logger) -> None:
        self._what = what
        self._seconds = seconds
        self._log = log
        self._until = float("-inf")
        self._pause_s = 0.0
        """0: all is well."""
        self.failures = 0

    def __repr__(self) -> str:
        return f"<Breaker {self._what}: {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether the disk is to be left alone."""
        return self._pause_s > 0 and self._seconds() < self._until

    def fail(self, error: OSError) -> None:
        self.failures += 1
        if self.is_open:
            return
        is_first = self._pause_s == 0
        self._pause_s = min(LONGEST_S, max(FIRST_S, self._pause_s * 2))
        self._until = self._seconds() + self._pause_s
        if is_first:
            self._log.warn(
                "the cache cannot {what} {path}: {reason}. Requests go on without it; it is tried again after {pause:.0f} s, then less and"
                " less often. Nothing more is said of it until it works",
                what=self._what, path=error.filename or "its files", reason=error.strerror or str(error), pause=self._pause_s,
            )  # fmt: skip

    def succeed(self) -> None:
        if self._pause_s and not self.is_open:
            self._pause_s = 0.0
            self._log.info(
                "the cache can {what} its files again, after {failures} failures in all", what=self._what, failures=self.failures
            )
