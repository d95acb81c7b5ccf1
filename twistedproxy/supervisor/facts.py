"""What is known of the moment: the last word on health, ejection, addresses and scoreboard row of each server.

Facts are broadcast and are part of the snapshot, but they are nobody's will: not journaled, no revision.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from twistedproxy.config import changes
from twistedproxy.config.changes import (
    CachePurged,
    CertificateRead,
    ChallengeSet,
    Ejected,
    HandshakeChallengeSet,
    HealthSeen,
    Observation,
    Resolved,
    RowAssigned,
)
from twistedproxy.config.model import Address, Model, endpoint

ServerKey = tuple[str, str]
"""(pool, server address): a server's identity everywhere."""


class Facts:
    """The latest observation of each kind for each server."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str, str], Observation] = {}

    def put(self, observation: Observation) -> Observation | None:
        """Remember it; returns what it replaces."""
        if isinstance(observation, CertificateRead):
            key = (changes.kind_of(observation), f"{observation.cert}\n{observation.key}", "")
        elif isinstance(observation, ChallengeSet):
            key = (changes.kind_of(observation), observation.token, "")
            if not observation.answer:
                return self._latest.pop(key, None)
        elif isinstance(observation, HandshakeChallengeSet):
            key = (changes.kind_of(observation), observation.host, "")
            if not observation.chain_pem:
                return self._latest.pop(key, None)
        elif isinstance(observation, CachePurged):
            key = (changes.kind_of(observation), f"{observation.by} {observation.is_soft} {observation.what}", "")
        else:
            key = (changes.kind_of(observation), observation.pool, observation.server)
        before = self._latest.get(key)
        self._latest[key] = observation
        return before

    def keep_only(self, servers: Iterable[ServerKey]) -> None:
        """Forget servers that are gone; what is known of whole pools stays."""
        wanted = set(servers)
        self._latest = {key: fact for key, fact in self._latest.items() if not key[2] or key[1:] in wanted}

    def forget_certificate(self, cert: str, key: str) -> None:
        """Nobody uses it any more."""
        self._latest.pop(("certificate_read", f"{cert}\n{key}", ""), None)

    @property
    def purges(self) -> list[CachePurged]:
        return [fact for fact in self._latest.values() if isinstance(fact, CachePurged)]

    def forget_purge(self, purge: CachePurged) -> None:
        """It covers nothing any more, or another covers what it did."""
        self._latest.pop((changes.kind_of(purge), f"{purge.by} {purge.is_soft} {purge.what}", ""), None)

    def plain(self) -> list[dict[str, Any]]:
        """All of them, for a worker that starts."""
        return [changes.to_plain(fact) for fact in self._latest.values()]

    @property
    def health(self) -> dict[ServerKey, HealthSeen]:
        return {(f.pool, f.server): f for f in self._latest.values() if isinstance(f, HealthSeen)}

    @property
    def resolved(self) -> frozenset[ServerKey]:
        """Servers whose host name has addresses."""
        return frozenset((f.pool, f.server) for f in self._latest.values() if isinstance(f, Resolved) and f.addresses)

    def ejected(self, now: float) -> frozenset[ServerKey]:
        """Servers ejected at `now` (monotonic)."""
        return frozenset((f.pool, f.server) for f in self._latest.values() if isinstance(f, Ejected) and f.until > now)


class Rows:
    """Gives each server, and each pool (as the server ""), its row in the scoreboard's tables, and takes it back."""

    def __init__(self, allocate: Callable[[str], int], free: Callable[[str], None]) -> None:
        self._allocate = allocate
        self._free = free
        self._rows: dict[ServerKey, int] = {}

    def update(self, model: Model) -> list[RowAssigned]:
        """Match `model`; returns the new assignments."""
        present = server_keys(model) | {(pool, "") for pool in model.pools}
        for key in self._rows.keys() - present:
            del self._rows[key]
            self._free(_row_name(*key))
        new = []
        for pool, server in sorted(present - self._rows.keys()):
            row = self._allocate(_row_name(pool, server))
            self._rows[pool, server] = row
            new.append(RowAssigned(pool, Address(server), row))
        return new


def _row_name(pool: str, server: str) -> str:
    return f"{pool} {server}" if server else pool


def server_keys(model: Model) -> set[ServerKey]:
    return {(pool.name, server.address) for pool in model.pools.values() for server in pool.servers}


def named_keys(model: Model) -> frozenset[ServerKey]:
    """Servers that are host names, and so must be resolved before they are of use."""
    return frozenset(key for key in server_keys(model) if endpoint(key[1]).family == socket.AF_UNSPEC)
