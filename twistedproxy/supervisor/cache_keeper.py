"""Keeps the disk cache within its limits: counts what is there, drops what was used longest ago, clears away what dead workers left.

How it works
    The files are the truth; no index is kept that could be wrong. Of each of the 256 directories only the totals are remembered, and
    its time of modification, which changes when a file comes or goes: so only those are counted again. When a limit is reached,
    everything is looked at twice: first the bytes by their last use are added up, which tells the moment before which things have to go
    until 90 % of the limit are left; then what was not used since is removed. Memory does not grow with the number of objects.

    All of it happens in a thread, a directory or some hundred files at a time, and takes at most a twentieth of one processor.
    Start-up waits for nothing: workers use the files as they find them, long before they are counted.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from twisted.logger import Logger

from twistedproxy.http.cache import files, geometry
from twistedproxy.http.cache.disk import is_being_written

_log = Logger()

LOW_MARK: Final = 0.9
"""Of the limits: how far an eviction goes."""
STEP_FILES: Final = 256
"""After so many files the thread rests."""
REST: Final = 19
"""So many times as long as it worked."""
PAUSE_S: Final = 2.0
"""At least so long between two counts."""
AGE_STEPS_PER_OCTAVE: Final = 8
"""Last uses are sorted into ages that differ by 2^(1/8): a step too many is evicted at most."""
UNFINISHED_IS_DEAD_S: Final = 5.0
"""A new file may not have its writer's lock yet."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What was there at the last count. Of memory: what its segments hold, replaced objects included."""

    memory_bytes: int = 0
    memory_objects: int = 0
    disk_bytes: int = 0
    """Room on the disk, whole blocks."""
    disk_objects: int = 0
    evictions: int = 0
    """From disk, since the start."""
    evicted_bytes: int = 0
    leftovers: int = 0
    """Unfinished files of dead workers that were removed."""
    failures: int = 0
    """Directories or files that could not be read or removed."""
    is_counted: bool = False
    """Whether the first count has ended."""


@dataclass(slots=True)
class _Directory:
    mtime_ns: int
    bytes: int
    objects: int


class CacheKeeper:
    """One cache directory. `start` once; `stop` ends the thread's work at its next step."""

    def __init__(
        self,
        directory: str,
        *,
        most_bytes: int,
        most_objects: int,
        arena_bytes: int = 0,
        call_later: Callable[[float, Callable[[], None]], object],
        in_thread: Callable[[Callable[[], None]], object],
        from_thread: Callable[[Callable[[], None]], object],
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        log: Logger = _log,
    ) -> None:
        """`most_bytes` of 0: there is no disk tier, what is left of one is not touched. `arena_bytes` of 0: there is no memory tier."""
        self.directory = directory
        self.totals = Totals()
        self._most_bytes = most_bytes
        self._most_objects = most_objects
        self._arena_bytes = arena_bytes
        self._call_later = call_later
        self._in_thread = in_thread
        self._from_thread = from_thread
        self._now = now
        self._sleep = sleep
        self._log = log
        self._known: dict[str, _Directory] = {}
        self._is_stopped = False
        self._has_failed = False
        self._worked_since = 0.0
        self._files = 0

    def start(self) -> None:
        if not self._is_stopped:
            self._in_thread(self._work)

    def stop(self) -> None:
        self._is_stopped = True

    def limit(self, most_bytes: int, most_objects: int) -> None:
        """New limits, from the next count on."""
        self._most_bytes, self._most_objects = most_bytes, most_objects

    # In the thread

    def _work(self) -> None:
        began = time.thread_time()
        try:
            self.tend()
        except OSError as e:
            self._failed(e)
        finally:
            pause = max(PAUSE_S, (time.thread_time() - began) * REST)
            self._from_thread(lambda: self._again(pause))

    def _again(self, pause_s: float) -> None:
        if not self._is_stopped:
            self._call_later(pause_s, self.start)  # which asks once more

    def tend(self) -> None:
        """One round: clear away, count, and evict when that is needed."""
        self._worked_since = time.thread_time()
        self._remove_other_arenas()
        if self._arena_bytes:
            self._count_memory()
        if not self._most_bytes:
            return
        unfinished = self._clear_unfinished()
        self._count(unfinished)
        totals = self.totals
        if totals.disk_bytes > self._most_bytes or totals.disk_objects > self._most_objects:
            self._evict(unfinished)

    def _failed(self, error: OSError) -> None:
        self.totals = replace(self.totals, failures=self.totals.failures + 1)
        if not self._has_failed:
            self._has_failed = True
            self._log.warn(
                "the cache directory cannot be kept in order: {path}: {reason}. Its files stay where they are; check who owns it and its"
                " disk. This is not said again",
                path=error.filename or self.directory, reason=error.strerror or str(error),
            )  # fmt: skip

    def _step(self) -> bool:
        """After each file: rest from time to time; False when it is time to stop."""
        self._files += 1
        if self._files >= STEP_FILES:
            self._files = 0
            worked = time.thread_time() - self._worked_since
            self._sleep(min(1.0, worked * REST))
            self._worked_since = time.thread_time()
        return not self._is_stopped

    # Memory

    def _remove_other_arenas(self) -> None:
        """Files of other sizes than the configured one: the size was changed."""
        keep = f"memory-{self._arena_bytes}.arena"
        with os.scandir(self.directory) as entries:
            for entry in entries:
                name = entry.name.removesuffix(geometry.UNFINISHED)
                if geometry.NAME.fullmatch(name) and name != keep:
                    os.unlink(entry.path)  # a worker that still uses it keeps it until it ends

    def _count_memory(self) -> None:
        try:
            used, objects = geometry.totals(os.path.join(self.directory, f"memory-{self._arena_bytes}.arena"))
        except (FileNotFoundError, geometry.NotAnArena):
            used = objects = 0  # the first worker makes it
        self.totals = replace(self.totals, memory_bytes=used, memory_objects=objects)

    # Disk

    def _clear_unfinished(self) -> int:
        """Remove what nobody writes any more; the bytes of what is being written."""
        room = removed = 0
        try:
            entries = list(os.scandir(os.path.join(self.directory, files.FILLS)))
        except FileNotFoundError:
            return 0
        for entry in entries:
            if not self._step():
                break
            try:
                fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                continue  # finished
            try:
                status = os.fstat(fd)
                is_new = abs(self._now() - status.st_ctime) < UNFINISHED_IS_DEAD_S
                if is_new or is_being_written(fd):
                    room += status.st_blocks * 512
                elif _is_there(entry.path, status):
                    os.unlink(entry.path)
                    removed += 1
            finally:
                os.close(fd)
        self.totals = replace(self.totals, leftovers=self.totals.leftovers + removed)
        return room

    def _files_of(self, path: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if not self._step():
                        return
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield entry, status
        except FileNotFoundError:
            return

    def _count(self, unfinished: int) -> None:
        """Count again the directories in which something came or went."""
        for path in files.directories(self.directory):
            try:
                mtime_ns = os.stat(path).st_mtime_ns
            except FileNotFoundError:
                self._known.pop(path, None)
                continue
            known = self._known.get(path)
            # A change in the very tick of the clock in which it was counted would not be seen: count young ones once more.
            if known is not None and known.mtime_ns == mtime_ns and abs(self._now() - mtime_ns / 1e9) > PAUSE_S:
                continue
            size = objects = 0
            for _, status in self._files_of(path):
                size += status.st_blocks * 512
                objects += 1
            self._known[path] = _Directory(mtime_ns, size, objects)
            if self._is_stopped:
                return
        self._add_up(unfinished)

    def _add_up(self, unfinished: int) -> None:
        size = sum(each.bytes for each in self._known.values()) + unfinished
        objects = sum(each.objects for each in self._known.values())
        self.totals = replace(self.totals, disk_bytes=size, disk_objects=objects, is_counted=True)

    def _evict(self, unfinished: int) -> None:
        """Drop what was used longest ago until 90 % of both limits are left."""
        now = self._now()
        by_age: dict[int, list[int]] = {}
        size, objects = unfinished, 0
        for path in files.directories(self.directory):
            for _, status in self._files_of(path):
                age = by_age.setdefault(_age_step(now - status.st_atime), [0, 0])
                age[0] += status.st_blocks * 512
                age[1] += 1
                size += status.st_blocks * 512
                objects += 1
        too_many_bytes = size - int(self._most_bytes * LOW_MARK)
        too_many = objects - int(self._most_objects * LOW_MARK)
        step = 0
        for step in sorted(by_age, reverse=True):  # what is older goes; of this step, as much as is still needed
            if by_age[step][0] >= too_many_bytes and by_age[step][1] >= too_many:
                break
            too_many_bytes -= by_age[step][0]
            too_many -= by_age[step][1]
        evicted = evicted_bytes = 0
        for path in files.directories(self.directory):
            for entry, status in self._files_of(path):
                age_step, room = _age_step(now - status.st_atime), status.st_blocks * 512
                if age_step < step or (age_step == step and too_many_bytes <= 0 and too_many <= 0):
                    continue
                try:
                    os.unlink(entry.path)
                except FileNotFoundError:
                    continue
                if age_step == step:
                    too_many_bytes -= room
                    too_many -= 1
                evicted += 1
                evicted_bytes += room
                known = self._known.get(path)
                if known is not None:
                    known.bytes -= room
                    known.objects -= 1
        self.totals = replace(
            self.totals, evictions=self.totals.evictions + evicted, evicted_bytes=self.totals.evicted_bytes + evicted_bytes
        )
        self._add_up(unfinished)


def _age_step(age_s: float) -> int:
    """Steps of the same proportion; a use in the future (the clock was set back) counts as now."""
    whole = max(1, int(age_s))
    octave = whole.bit_length() - 1
    return octave * AGE_STEPS_PER_OCTAVE + (whole * AGE_STEPS_PER_OCTAVE >> octave) - AGE_STEPS_PER_OCTAVE


def _is_there(path: str, status: os.stat_result) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_ino, there.st_dev) == (status.st_ino, status.st_dev)
