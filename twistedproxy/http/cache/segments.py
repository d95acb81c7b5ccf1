"""Which segments of the memory tier this process owns, in which log they are, and where the next entry goes.

Two logs, probation and main, each a queue of segments whose last one is open, and a queue of free ones. When few are free, the
oldest segment of one log is emptied, a little with every put (`Arena._make_room`); should that not be done in time, the rest of it is
dropped. "Free" segments keep their old entries, which can be found and used until the moment a segment is opened again.
"""

from __future__ import annotations

import fcntl
import struct
import time
from collections import deque
from typing import Final

from twistedproxy.http.cache.geometry import GENERATION, LINE_CELLS, LOCKS_AT, LOG, OBJECTS, SEQUENCE, USED, Geometry

FREE: Final = 0
PROBATION: Final = 1
MAIN: Final = 2

PROBATION_SHARE: Final = 0.15
"""Of the owned segments."""
MOST_KEPT: Final = 0.75
"""Of a main segment that is emptied, at most this share is appended again: the work of a put stays bounded when everything is hot."""

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock on 64-bit Linux: type, whence, start, length, process."""


class Log:
    """A queue of segments, oldest first; entries are appended to the last."""

    __slots__ = ("at", "end", "generation", "kind", "line", "objects", "queue", "segment", "start")

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.queue: deque[int] = deque()
        self.close()

    def close(self) -> None:
        """No segment is open."""
        self.segment = -1
        self.generation = self.line = self.objects = 0
        self.start = self.at = self.end = 0


class Oldest:
    """The segment that is being emptied, and how far."""

    __slots__ = ("at", "end", "generation", "kept", "log", "most_kept", "segment")

    def __init__(self, segment: int, log: int, generation: int, at: int, end: int, most_kept: int) -> None:
        self.segment = segment
        self.log = log
        self.generation = generation
        self.at = at
        self.end = end
        self.kept = 0
        self.most_kept = most_kept

    def may_keep(self, size: int) -> bool:
        if self.log == MAIN and self.kept + size > self.most_kept:
            return False
        self.kept += size
        return True


class Segments:
    """The owner's book; the truth that outlives the process is in the table of the file."""

    def __init__(self, cells: memoryview[int], geometry: Geometry, fd: int) -> None:
        self._cells = cells
        self._geometry = geometry
        self._fd = fd
        self._table = geometry.table_at // 8
        self._mine: set[int] = set()
        self.logs = (Log(FREE), Log(PROBATION), Log(MAIN))
        self._free: deque[int] = deque()
        self._oldest: Oldest | None = None
        self._is_released = False
        self._spare = 0
        self._count = 0
        """Of processes, at the last `own`."""
        self._most_probation = 1
        self.is_short = False
        """Whether puts must make room."""
        self.is_urgent = False
        """Whether more is needed than that."""
        self.dropped = 0
        """Entries that went without having been looked at."""

    def close(self) -> None:
        del self._cells

    # Ownership

    @property
    def owned(self) -> int:
        return len(self._mine)

    def own(self, count: int) -> None:
        """Have ceil(all / count) segments: take free ones, give back what is too many."""
        if self._is_released:
            return
        share = -(-self._geometry.segments // max(1, count))
        if len(self._mine) > share:
            for segment in self._surplus(len(self._mine) - share):
                self._give_back(segment)
        elif len(self._mine) < share and (count != self._count or len(self._mine) < self._geometry.segments // max(1, count)):
            taken = []
            for segment in range(self._geometry.segments):
                if segment not in self._mine and self._lock(segment, fcntl.F_WRLCK):
                    self._mine.add(segment)
                    taken.append(segment)
                    if len(self._mine) >= share:
                        break
            if taken:
                self._adopt(taken)
        self._count = count
        self._size_up()

    def release(self) -> None:
        self._is_released = True
        for segment in list(self._mine):
            self._give_back(segment)
        self._size_up()

    def _lock(self, segment: int, kind: int) -> bool:
        """An open-file lock: it ends with this process, and closing some other descriptor of the file does not end it."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, LOCKS_AT + segment, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _surplus(self, count: int) -> list[int]:
        """The ones to part with: free ones, then the oldest, the open ones last."""
        logs = self.logs
        candidates = [*self._free, *logs[PROBATION].queue, *logs[MAIN].queue]
        candidates.sort(key=lambda segment: segment in (logs[PROBATION].segment, logs[MAIN].segment))
        return candidates[:count]

    def _give_back(self, segment: int) -> None:
        self._mine.discard(segment)
        if self._oldest is not None and self._oldest.segment == segment:
            self._oldest = None
        for log in self.logs:
            if segment in log.queue:
                log.queue.remove(segment)
            if log.segment == segment:
                log.close()
        if segment in self._free:
            self._free.remove(segment)
        self._lock(segment, fcntl.F_UNLCK)

    def _adopt(self, taken: list[int]) -> None:
        """Go on where the former owners ended, also when they ended in the middle of something: what they did not publish nobody sees."""
        unit_mask = 63
        for segment in taken:
            line = self._line(segment)
            kind, used = self._cells[line + LOG], self._cells[line + USED]
            if kind not in (PROBATION, MAIN) or not 0 < used <= self._geometry.segment_bytes or used & unit_mask:
                self._free.append(segment)
            else:
                self.logs[kind].queue.append(segment)
        for log in self.logs[PROBATION:]:
            if log.segment in log.queue:
                opened = log.segment
                log.queue.remove(opened)
                log.queue = deque([*sorted(log.queue, key=self._sequence), opened])
            elif log.queue:
                log.queue = deque(sorted(log.queue, key=self._sequence))
                self._open_again(log, log.queue[-1])

    def _sequence(self, segment: int) -> int:
        return self._cells[self._line(segment) + SEQUENCE]

    def _size_up(self) -> None:
        """How many segments are kept free, how many are for probation."""
        count = len(self._mine)
        self._spare = max(2, count // 32) if count >= 8 else 1 if count >= 3 else 0
        self._most_probation = max(1, round(count * PROBATION_SHARE))
        self._look()

    def _look(self) -> None:
        free = len(self._free)
        self.is_short = free < self._spare
        self.is_urgent = free < self._spare // 2 or not free

    # Appending

    def _line(self, segment: int) -> int:
        return self._table + segment * LINE_CELLS

    def open_next(self, log: Log) -> bool:
        """Have a log go on in another segment; False when this process owns nothing."""
        segment = self._take()
        if segment < 0:
            return False
        self._open(log, segment)
        return True

    def _open(self, log: Log, segment: int) -> None:
        cells, line = self._cells, self._line(segment)
        log.generation = generation = cells[line + GENERATION] + 1 & 0xFFFFFFFFFFFFFFFF
        cells[line + GENERATION] = generation  # before anything there is written over
        cells[line + USED] = cells[line + OBJECTS] = 0
        cells[line + LOG] = log.kind
        cells[line + SEQUENCE] = time.time_ns()
        log.queue.append(segment)
        log.segment, log.line, log.objects = segment, line, 0
        log.start = log.at = self._geometry.data_at + segment * self._geometry.segment_bytes
        log.end = log.start + self._geometry.segment_bytes
        self._look()

    def _open_again(self, log: Log, segment: int) -> None:
        cells, line = self._cells, self._line(segment)
        log.segment, log.line = segment, line
        log.generation, log.objects = cells[line + GENERATION], cells[line + OBJECTS]
        log.start = self._geometry.data_at + segment * self._geometry.segment_bytes
        log.at = log.start + cells[line + USED]
        log.end = log.start + self._geometry.segment_bytes

    def _take(self) -> int:
        """A segment that may be written over; -1 when there is none."""
        if self._free:
            return self._free.popleft()
        if not self._mine:
            return -1
        oldest = self._oldest or self.oldest()
        if oldest is not None:  # not emptied in time: the rest of it is dropped
            self.emptied(is_forced=True)
            return self._free.pop()
        log = max(self.logs[PROBATION:], key=lambda log: len(log.queue))  # with one or two segments
        segment = log.queue.popleft()
        if segment == log.segment:
            log.close()
        return segment

    # Emptying

    def oldest(self) -> Oldest | None:
        """The segment to empty next: of probation while that has more than its share, else of main; never an open one."""
        if self._oldest is not None:
            return self._oldest
        probation, main = self.logs[PROBATION], self.logs[MAIN]
        if len(probation.queue) > self._most_probation and probation.queue[0] != probation.segment:
            log = probation
        elif len(main.queue) > 1 and main.queue[0] != main.segment:
            log = main
        elif len(probation.queue) > 1 and probation.queue[0] != probation.segment:
            log = probation
        else:
            return None
        segment = log.queue[0]
        line = self._line(segment)
        start = self._geometry.data_at + segment * self._geometry.segment_bytes
        used = min(self._cells[line + USED], self._geometry.segment_bytes)
        most_kept = int(self._geometry.segment_bytes * MOST_KEPT)
        self._oldest = Oldest(segment, log.kind, self._cells[line + GENERATION], start, start + used, most_kept)
        return self._oldest

    def emptied(self, is_forced: bool = False) -> None:
        """What was to be kept of the oldest segment is kept elsewhere; the next entry may overwrite it."""
        oldest, self._oldest = self._oldest, None
        if oldest is None:
            return
        if is_forced:
            objects = self._cells[self._line(oldest.segment) + OBJECTS]
            self.dropped += objects * (oldest.end - oldest.at) // max(1, self._geometry.segment_bytes)
        self.logs[oldest.log].queue.remove(oldest.segment)
        self._free.append(oldest.segment)
        self._look()

    def used_bytes(self) -> int:
        """In all segments of the file, whoever owns them."""
        first = self._table
        return sum(self._cells[first + USED : first + self._geometry.segments * LINE_CELLS : LINE_CELLS].tolist())


def can_lock(fd: int) -> None:
    """Raises OSError on a file system without locks: nobody could own a segment there."""
    fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, LOCKS_AT, 1, 0))
