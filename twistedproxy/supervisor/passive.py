"""Passive failures that the workers saw, summed over all of them: which server is ejected, and until when.

The rule itself is pure and lives in `pool.health.Ejector`; here is one for each pool with an ``eject`` table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twistedproxy.config.changes import Ejected
from twistedproxy.config.model import Address, Model
from twistedproxy.pool.health import Ejector


class PassiveFailures:
    """The ejectors of all pools; `seconds` is the monotonic clock that all processes share."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._ejectors: dict[str, Ejector] = {}

    def update(self, model: Model) -> None:
        """Take over pools and servers; those that stay keep what was counted."""
        before, self._ejectors = self._ejectors, {}
        for pool in model.pools.values():
            if pool.eject is None:
                continue
            addresses = [server.address for server in pool.servers]
            ejector = before.get(pool.name)
            if ejector is None:
                ejector = Ejector(pool.eject, addresses)
            else:
                ejector.update(pool.eject, addresses)
            self._ejectors[pool.name] = ejector

    def add(self, rows: Iterable[Sequence[Any]]) -> list[Ejected]:
        """Count [pool, server, failures, requests] rows of a worker; returns whom that ejects."""
        now = self._seconds()
        ejected = []
        for pool, server, failures, requests in rows:
            ejector = self._ejectors.get(pool)
            until = ejector.add(server, failures, requests, now) if ejector else None
            if until is not None:
                ejected.append(Ejected(pool, Address(server), until))
        return ejected
