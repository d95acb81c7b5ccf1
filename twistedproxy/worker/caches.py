"""A worker's part of the cache: opens the stores that all workers share, and keeps them open while the configuration asks for a cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from twistedproxy.clock import Wheel
from twistedproxy.config.changes import CachePurged
from twistedproxy.config.model import Cache as CacheSpec
from twistedproxy.config.model import Model
from twistedproxy.http.cache.arena import Arena
from twistedproxy.http.cache.cache import Cache
from twistedproxy.http.cache.disk import Disk
from twistedproxy.http.cache.fills import Fill
from twistedproxy.http.cache.neighbours import Neighbours
from twistedproxy.http.cache.store import Store
from twistedproxy.http.front import HttpFront
from twistedproxy.ipc.scoreboard import LeaseBoard
from twistedproxy.net.doorbell import Doorbell
from twistedproxy.observability.metrics import Metrics

_COUNTED = {
    ("memory", "evicted"): ("memory_evicted", "memory_crowded_out"),
    ("memory", "corrupt"): ("memory_corrupt",),
    ("disk", "corrupt"): ("disk_corrupt",),
    ("disk", "write_error"): ("disk_write_failures",),
    ("disk", "read_error"): ("disk_read_failures",),
}
"""What is told of a store, and which of its statistics that is."""
TRY_AGAIN_S = 10.0
"""After so long a memory that could not be had is asked for again."""

_log = Logger(namespace="cache")


def _tiers(spec: CacheSpec) -> tuple[object, ...]:
    """What a store is made of; the rest of the keys may change under it."""
    return spec.directory, spec.memory, bool(spec.disk)


class Caches:
    """Makes the worker's `Cache` and looks after its stores. `reactor` is the worker's."""

    def __init__(
        self, reactor: Any, wheel: Wheel, metrics: Metrics, board: LeaseBoard | None, wall: Callable[[], float] = time.time
    ) -> None:
        self._reactor = reactor
        self._wheel = wheel
        self._seconds = wheel.seconds
        self._board = board
        self._metrics = metrics
        self._wall = wall
        self._slots = 1
        self._arena: Arena | None = None
        self._try_at = 0.0
        self._has_complained = False
        self._is_draining = False
        self._counted: dict[tuple[str, str], int] = {}
        """What the present store had counted when it was looked at last."""
        self.cache: Cache | None = None

    def configure(self, model: Model, slots: int) -> None:
        """Be the cache of `model`. Once there, it stays: routes may come to have one again."""
        self._slots = slots
        if not model.has_cache:
            return
        spec = model.cache
        if self.cache is None:
            neighbours = self._neighbours(spec)
            self.cache = Cache(
                spec, self._store(spec), now=self._wall, wheel=self._wheel, counts=self._metrics.cache, neighbours=neighbours
            )  # fmt: skip
            if neighbours is not None:
                neighbours.cache = self.cache
        elif self.cache.spec != spec:
            before, self.cache.spec = self.cache.spec, spec
            if _tiers(before) != _tiers(spec):
                if self._arena is not None:
                    self._arena.release()
                self._replace_store(self.cache)
        self.cache.follow_routes(model.sites.values())

    def serve(self, front: object) -> None:
        """Let the exchanges of an HTTP front use the cache where their route says so."""
        if self.cache is not None and isinstance(front, HttpFront):
            front.act = self.cache.act

    def _neighbours(self, spec: CacheSpec) -> Neighbours | None:
        board = self._board
        if board is None:
            return None

        def heard(word: bytes) -> None:
            neighbours.heard(word)

        try:
            bell = Doorbell(self._reactor, os.path.join(spec.directory, "doorbells"), board.slot, heard)
        except OSError as error:
            _log.warn("workers cannot speak with one another, and each asks the servers for itself: {why}", why=str(error))
            return None
        neighbours = Neighbours(board.fills, bell)
        # Otherwise the reactor drops it as it ends, which looks like a failure.
        self._reactor.addSystemEventTrigger("before", "shutdown", bell.stop)
        return neighbours

    def _store(self, spec: CacheSpec) -> Store:
        disk = Disk(spec.directory, seconds=self._seconds, now=self._wall) if spec.disk else None
        self._arena = self._open_arena(spec)
        return Store(self._arena, disk, self._reactor.callInThread)

    def _open_arena(self, spec: CacheSpec) -> Arena | None:
        self._try_at = self._seconds() + TRY_AGAIN_S
        try:
            os.makedirs(spec.directory, mode=0o700, exist_ok=True)
            arena = Arena.open(spec.directory, spec.memory)
        except OSError as error:
            if not self._has_complained:
                _log.error(
                    "nothing is kept in memory: {why}; {directory} is tried again and again", why=str(error), directory=spec.directory
                )
            self._has_complained = True
            return None
        self._has_complained = False
        if not self._is_draining:
            arena.own(self._slots)
        return arena

    def observe(self, purge: CachePurged) -> None:
        if self.cache is not None:
            self.cache.purge(purge.by, purge.what, purge.at, purge.is_soft)

    def each_second(self) -> None:
        """Claim this worker's share of the memory, which others may have left by now."""
        cache = self.cache
        if cache is None:
            return
        self._count(cache)
        cache.store.let_go()
        if self._is_draining:
            return
        if self._arena is not None:
            self._arena.own(self._slots)
        elif self._seconds() >= self._try_at:
            self._replace_store(cache)

    def _replace_store(self, cache: Cache) -> None:
        self._count(cache)
        self._counted.clear()
        cache.store = self._store(cache.spec)

    def _count(self, cache: Cache) -> None:
        """Add what the store counted since to the metrics, where it outlives the store."""
        statistics = cache.store.statistics()
        for key, names in _COUNTED.items():
            now = sum(statistics.get(name, 0) for name in names)
            self._metrics.cache_store[key] += now - self._counted.get(key, 0)
            self._counted[key] = now
        self._metrics.cache_fills = sum(isinstance(fill, Fill) for fill in cache.fills.values())

    def drain(self) -> None:
        """Others may have what was ours."""
        self._is_draining = True
        if self._arena is not None:
            self._arena.release()
