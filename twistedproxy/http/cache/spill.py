"""What goes from memory to disk, and what has to go from disk because memory has something newer: done in a thread, one after the other.

An object that is removed or replaced while it waits, or while it is written, does not stay on disk: the thread looks once more after it
has put it down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from twistedproxy.http.cache.arena import Arena, Place
from twistedproxy.http.cache.disk import Disk

MOST_WAITING: Final = 1024
MOST_WAITING_BYTES: Final = 32 << 20
"""Objects that wait; what comes on top of that stays in memory only."""


class Spill:
    """The way from one worker's memory to the disk. `in_thread` runs a function in a thread, soon."""

    def __init__(self, arena: Arena, disk: Disk, in_thread: Callable[[Callable[[], object]], object]) -> None:
        self.arena = arena
        self.disk = disk
        self.written = 0
        self.not_written = 0
        """Too many waited, or the disk took nothing."""
        self._in_thread = in_thread
        self._lock = threading.Lock()
        """For what the thread shares with us: the two queues and whether it runs."""
        self._waiting: dict[bytes, tuple[Place, bytes, bytes]] = {}
        self._waiting_bytes = 0
        self._outdated: dict[bytes, None] = {}
        self._is_working = False

    def write(self, place: Place, meta: bytes, body: bytes) -> None:
        """Write what is in memory at `place` to disk as well, if it is still there by then."""
        size = len(meta) + len(body)
        with self._lock:
            if len(self._waiting) >= MOST_WAITING or self._waiting_bytes + size > MOST_WAITING_BYTES:
                self.not_written += 1
                return
            self._drop(place.key)
            self._waiting[place.key] = (place, meta, body)
            self._waiting_bytes += size
            is_idle, self._is_working = not self._is_working, True
        if is_idle:
            self._in_thread(self._work)

    def unlink(self, key: bytes) -> None:
        """What is on disk is older than what memory has: it would be found when that is dropped."""
        with self._lock:
            self._outdated[key] = None
            is_idle, self._is_working = not self._is_working, True
        if is_idle:
            self._in_thread(self._work)

    def forget(self, key: bytes) -> None:
        """Nothing is to be done about `key` any more: there is something newer, or nothing."""
        if self._waiting or self._outdated:
            with self._lock:
                self._drop(key)
                self._outdated.pop(key, None)

    def _drop(self, key: bytes) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._waiting_bytes -= len(waiting[1]) + len(waiting[2])

    def _work(self) -> None:
        """In the thread: all that waits, oldest first."""
        arena, disk = self.arena, self.disk
        try:
            while True:
                with self._lock:
                    outdated = next(iter(self._outdated), None)
                    if outdated is not None:
                        del self._outdated[outdated]
                    else:
                        if not self._waiting:
                            self._is_working = False
                            return
                        key = next(iter(self._waiting))
                        place, meta, body = self._waiting[key]
                        self._drop(key)
                if outdated is not None:
                    disk.remove(outdated)
                elif arena.is_current(place) and not disk.has(key, meta, len(body)):
                    if not disk.write(key, meta, body):
                        self.not_written += 1
                        continue
                    self.written += 1
                    if not arena.is_current(place):  # removed or replaced meanwhile
                        disk.remove(key)
        except BaseException:
            self._is_working = False
            raise
