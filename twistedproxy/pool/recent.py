"""A sample of the keys that requests came with lately, so that a preview can ask where they would go.

How it works
    Only pools whose balancer goes by keys keep one. The first `PER_SECOND` requests of each second are noted; the ring holds
    `KEPT_S` seconds of that. Whoever previews replays them on a twin of the pool (`twin.py`), as it is and as it would be.
"""

from __future__ import annotations

from collections import Counter, deque
from random import Random
from typing import TYPE_CHECKING

from twistedproxy.pool.server import Server

if TYPE_CHECKING:
    from twistedproxy.pool.view import Pick

PER_SECOND = 32
KEPT_S = 120.0
KEYED = frozenset({"source_ip", "hash"})
"""Balancers that go by keys."""


def goes_by_keys(balance: str) -> bool:
    return balance.partition(":")[0] in KEYED


class RecentKeys:
    """Of one pool in one worker."""

    __slots__ = ("_keys", "_left", "_until")

    def __init__(self) -> None:
        self._keys: deque[tuple[float, int]] = deque(maxlen=round(PER_SECOND * KEPT_S))
        self._until = 0.0
        self._left = 0

    def note(self, key: int, now: float) -> None:
        if now >= self._until:
            self._until = now + 1.0
            self._left = PER_SECOND
        if self._left:
            self._left -= 1
            self._keys.append((now, key))

    def noting(self, pick: Pick) -> Pick:
        """The same picker, whose keys are noted."""
        note = self.note

        def noted(key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
            if not tried:
                note(key, now)
            return pick(key, now, rng, tried)

        return noted

    def counts(self, now: float) -> list[tuple[int, int]]:
        """(key, how often it was noted) within the last `KEPT_S` seconds, the most frequent first."""
        return Counter(key for at, key in self._keys if now - at <= KEPT_S).most_common()
