"""How the file of the memory tier is divided; known to workers, who map it, and to the supervisor, who only reads its table."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Final

UNIT: Final = 64
"""Entries begin at multiples of this."""
ENTRY_BYTES: Final = 64
"""Header of an entry."""
BUCKET: Final = 8
"""Cells of a bucket of the index: one cache line."""
LINE_CELLS: Final = 8
"""Cells of the segment table for each segment: one cache line, since each line has one writer."""

TOUCHED_SHIFT: Final = 1
"""Two units share a touched byte: only an entry without meta and body is that short."""
DEAD_SHIFT: Final = 3
"""Eight units share a dead byte; an entry that is taken for dead by mistake is only not kept beyond its time."""

# Cells of a segment's line.
GENERATION, LOG, USED, SEQUENCE, OBJECTS = range(5)

_PAGE: Final = 4096
HEADER_BYTES: Final = _PAGE
LOCKS_AT: Final = 1 << 62
"""Segment n is owned by who has the lock on byte LOCKS_AT + n; no byte is there, the kernel does not mind."""

_MAGIC: Final = b"twprxyAR"
_VERSION: Final = 2
_HEADER = struct.Struct("<8sIIQQQQ")

MIN_BYTES: Final = 4 << 20
MAX_BYTES: Final = 256 << 30
MIN_SEGMENT: Final = 32 << 10
FULL_SEGMENT: Final = 1 << 20
LARGEST: Final = 256 << 10
WANTED_SEGMENTS: Final = 128
MOST_SEGMENTS: Final = 4096
BYTES_PER_CELL: Final = 512

UNFINISHED: Final = ".new"
"""Behind the name of a file that is being made."""
NAME = re.compile(r"memory-(\d+)\.arena")


class NotAnArena(Exception):
    """The file is not what this version would have made of that size."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Follows from the size alone, so all processes come to the same."""

    size: int
    """As configured; the file is a little smaller."""
    segments: int
    segment_bytes: int
    buckets: int

    @classmethod
    def of(cls, size: int) -> Geometry:
        if not MIN_BYTES <= size <= MAX_BYTES:
            raise ValueError(f"a memory cache has {MIN_BYTES} to {MAX_BYTES} bytes, not {size}")
        segment = min(FULL_SEGMENT, max(MIN_SEGMENT, 1 << (size // WANTED_SEGMENTS).bit_length() - 1))
        while size // segment > MOST_SEGMENTS:
            segment *= 2
        buckets = 1 << max(0, (size // (BYTES_PER_CELL * BUCKET)).bit_length() - 1)
        room = size - HEADER_BYTES - buckets * BUCKET * 8 - _PAGE
        units = segment // UNIT
        return cls(size, room // (segment + LINE_CELLS * 8 + (units >> TOUCHED_SHIFT) + (units >> DEAD_SHIFT)), segment, buckets)

    @property
    def name(self) -> str:
        return f"memory-{self.size}.arena"

    @property
    def table_at(self) -> int:
        return HEADER_BYTES

    @property
    def index_at(self) -> int:
        return HEADER_BYTES + self.segments * LINE_CELLS * 8

    @property
    def touched_at(self) -> int:
        return self.index_at + self.buckets * BUCKET * 8

    @property
    def dead_at(self) -> int:
        return self.touched_at + (self.segments * self.segment_bytes // UNIT >> TOUCHED_SHIFT)

    @property
    def data_at(self) -> int:
        end = self.dead_at + (self.segments * self.segment_bytes // UNIT >> DEAD_SHIFT)
        return -(-end // _PAGE) * _PAGE

    @property
    def file_bytes(self) -> int:
        return self.data_at + self.segments * self.segment_bytes

    @property
    def shift(self) -> int:
        """From a place in units to its segment."""
        return (self.segment_bytes // UNIT).bit_length() - 1

    @property
    def largest(self) -> int:
        """Bytes of meta and body of the largest entry."""
        return min(LARGEST, self.segment_bytes // 4) - ENTRY_BYTES

    def header(self) -> bytes:
        return _HEADER.pack(_MAGIC, _VERSION, _byte_order(), self.size, self.segments, self.segment_bytes, self.buckets)

    def check(self, fd: int) -> None:
        """Raises NotAnArena with the reason."""
        wanted = self.header()
        found = os.pread(fd, len(wanted), 0)
        if found[:8] != _MAGIC:
            raise NotAnArena("it is no memory cache")
        if found != wanted:
            raise NotAnArena("it was made by another version or for another machine")
        status = os.fstat(fd)
        if status.st_size != self.file_bytes:
            raise NotAnArena(f"it has {status.st_size} bytes instead of {self.file_bytes}")
        if status.st_blocks * 512 < self.file_bytes:
            raise NotAnArena("parts of it have no room on the disk")


def _byte_order() -> int:
    """Cells are in the machine's own order."""
    return int.from_bytes(struct.pack("@I", 0x01020304), "little")


def totals(path: str) -> tuple[int, int]:
    """Bytes and objects in the segments of an arena's file, read without mapping it. Raises OSError, NotAnArena."""
    match = NAME.fullmatch(os.path.basename(path))
    if match is None:
        raise NotAnArena("its name is not that of a memory cache")
    geometry = Geometry.of(int(match[1]))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        geometry.check(fd)
        data = os.pread(fd, geometry.segments * LINE_CELLS * 8, geometry.table_at)
    finally:
        os.close(fd)
    cells = memoryview(data).cast("Q")
    return sum(cells[USED::LINE_CELLS].tolist()), sum(cells[OBJECTS::LINE_CELLS].tolist())
