"""The memory tier: one mapped file that all workers read and write without a lock or a message.

How it works
    header page | segment table, a cache line each | index | touched bytes | dead bytes | segments

    A segment is a log that one worker owns and appends to; entries in it never change once they are published. A worker owns a segment
    by a lock on one byte of the file, which ends with the process, however it ends. The table holds each segment's generation, which
    its owner raises BEFORE it writes over what was there.

    The index is buckets of eight 64-bit cells: tag of the key | low bits of the segment's generation | place. Any process may store or
    clear any cell. Nothing is lost by that but an entry: what a cell claims is believed only when the entry's own header has the whole
    key and the segment's generation, and what was copied is believed only when the generation is still the same afterwards. A process
    also checks the checksum of each entry that it finds, once. This is what protects against bytes that a crashed machine never
    wrote, and, on processors that reorder stores, against an entry that is seen before its bytes.

    Whether an entry was used, and whether it was removed, is said by bytes apart from it, which any process may set. One that is set too
    late, when the segment was reused, speaks of a wrong entry and does little harm; within the segment it would fall into a body.

    What stays follows S3-FIFO (Yang et al., SOSP 2023): new objects go to a small *probation* log; when its oldest segment is
    emptied, entries used in the meantime move to the *main* log and the rest is dropped; used entries of main are appended to it once
    more. So one crawl over everything passes through probation and leaves the rest alone. The paper's ghost queue costs nothing here: a
    cell whose segment was reused lately names a key that was dropped lately, and such a key goes to main at once. Segments are
    emptied a few entries at a time, by the puts that need the room. `segments.py` keeps this book.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final

from twistedproxy.http.cache.checksum import crc32
from twistedproxy.http.cache.geometry import (
    BUCKET,
    DEAD_SHIFT,
    ENTRY_BYTES,
    LINE_CELLS,
    LOG,
    OBJECTS,
    TOUCHED_SHIFT,
    UNFINISHED,
    UNIT,
    USED,
    Geometry,
    NotAnArena,
)
from twistedproxy.http.cache.segments import MAIN, PROBATION, Segments

MAX_META = 64 * 1024
KEY_BYTES = 16
GHOST_AGE: Final = 8
"""A key is remembered until the segment it lay in was reused so many times."""
MOST_MOVED: Final = 64
"""Entries that one put looks at to make room."""
URGENT_BYTES: Final = 256 << 10

_HEADER = struct.Struct("@IIQ16sII")
"""Of an entry: magic, checksum, generation, key, length of meta, length of body."""
_MAGIC: Final = 0x65727054
_KEY = struct.Struct("@HHI8x")
_CELLS = struct.Struct("@8Q")
"""Native, so that each cell is loaded whole."""
_TAGS = struct.Struct("@" + ("6xH" if sys.byteorder == "little" else "H6x") * BUCKET)
_ROUND: Final = UNIT - 1
_ROTATED: Final[list[list[int]]] = [[*range(start, BUCKET), *range(start)] for start in range(BUCKET)]


class Place:
    """Where an entry lies, and what proves that it still lies there."""

    __slots__ = (
        "body_at",
        "body_length",
        "cell",
        "checksum",
        "generation",
        "generation_at",
        "index",
        "is_checked",
        "key",
        "meta_length",
        "offset",
        "touched_at",
    )

    def __init__(
        self,
        key: bytes,
        index: int,
        cell: int,
        generation_at: int,
        generation: int,
        touched_at: int,
        offset: int,
        meta_length: int,
        body_length: int,
        checksum: int,
    ) -> None:
        self.key = key
        self.index = index
        """Of the cell that names it."""
        self.cell = cell
        """That cell's value."""
        self.generation_at = generation_at
        """The cell with its segment's generation."""
        self.generation = generation
        self.touched_at = touched_at
        """Of the byte that says whether it was used."""
        self.offset = offset
        self.meta_length = meta_length
        self.body_length = body_length
        self.body_at = offset + ENTRY_BYTES + meta_length
        self.checksum = checksum
        self.is_checked = False
        """Whether this process has compared the checksum, or made the entry itself."""


class Arena:
    """One process's view of the file. Exactly one per process and file, kept until the process ends."""

    def __init__(self, fd: int, memory: mmap.mmap, geometry: Geometry, note: str = "") -> None:
        self.fd = fd
        self.note = note
        """Why the file was made anew although there was one; for the log."""
        self.geometry = geometry
        self.promoted: Callable[[Place, bytes, bytes], None] | None = None
        """Told place, meta and body of each object that moved on to the main log."""
        self.largest = geometry.largest
        """Bytes of meta and body together that `put` takes."""
        self.corrupt = 0
        """Entries whose checksum was wrong."""
        self._memory = memory
        self._cells = memoryview(memory)[: geometry.data_at].cast("Q")
        self._first = geometry.index_at // 8
        self._mask = geometry.buckets - 1
        self._shift = geometry.shift
        self._table = geometry.table_at // 8
        self._data = geometry.data_at
        self._touched = geometry.touched_at
        self._dead = geometry.dead_at
        self._count = geometry.segments
        self._segment_bytes = geometry.segment_bytes
        self._segments = Segments(self._cells, geometry, fd)
        self._puts = 0
        self._bytes_put = 0
        self._promoted = 0
        self._kept = 0
        self._dropped = 0
        self._crowded_out = 0

    @classmethod
    def open(cls, directory: str, size: int) -> Arena:
        """The arena of `size` bytes in `directory`, made if it is not there. Raises OSError: full disk, no permission."""
        fd, geometry, note = open_file(directory, size)
        try:
            return cls(fd, mmap.mmap(fd, geometry.file_bytes), geometry, note)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Give up the segments and let go of the file; for tests, a worker just ends."""
        self._segments.release()
        self._segments.close()
        self._cells.release()
        self._memory.close()
        os.close(self.fd)

    # Segments

    def own(self, count: int) -> None:
        """Take or give back segments so that this process has its share of `count`; call it again from time to time."""
        self._segments.own(count)

    def release(self) -> None:
        """Give all segments back for good: this worker drains and stores nothing any more. It can still read."""
        self._segments.release()

    # Reading

    def find(self, key: bytes) -> Place | None:
        """Where the object is. Its body may turn out to be gone or corrupt when it is read."""
        tag, _, bucket = _KEY.unpack(key)
        at = self._first + (bucket & self._mask) * BUCKET
        if tag not in _TAGS.unpack_from(self._memory, at * 8):
            return None
        for cell in _CELLS.unpack_from(self._memory, at * 8):
            if cell >> 48 == tag and cell:
                place = self._place(key, at, cell)
                if place is not None:
                    return place
            at += 1
        return None

    def _place(self, key: bytes, index: int, cell: int) -> Place | None:
        """What the cell names, if that is `key` and still there."""
        unit = cell & 0xFFFFFFFF
        segment = unit >> self._shift
        if segment >= self._count:
            return None
        generation_at = self._table + segment * LINE_CELLS
        generation = self._cells[generation_at]
        if (cell >> 32 ^ generation) & 0xFFFF:
            return None
        offset = self._data + unit * UNIT
        magic, checksum, written_in, its_key, meta_length, body_length = _HEADER.unpack_from(self._memory, offset)
        if its_key != key or written_in != generation or magic != _MAGIC:
            return None
        left = self._segment_bytes - (unit * UNIT & self._segment_bytes - 1) - ENTRY_BYTES
        if meta_length + body_length > left or meta_length > MAX_META:
            return None
        touched_at = self._touched + (unit >> TOUCHED_SHIFT)
        return Place(key, index, cell, generation_at, generation, touched_at, offset, meta_length, body_length, checksum)

    def is_current(self, place: Place) -> bool:
        """Whether the object is still there and still this one: not dropped, not replaced, not removed."""
        cells = self._cells
        return cells[place.index] == place.cell and cells[place.generation_at] == place.generation

    def read(self, place: Place) -> tuple[bytes, bytes] | None:
        """Meta and body; None when the entry was overwritten or is corrupt."""
        at, body_at = place.offset + ENTRY_BYTES, place.body_at
        memory = self._memory
        meta, body = memory[at:body_at], memory[body_at : body_at + place.body_length]
        if self._cells[place.generation_at] != place.generation:
            return None
        if not place.is_checked:
            if _checksum(meta, body) != place.checksum:
                self._discard(place)
                return None
            place.is_checked = True
        return meta, body

    def body(self, place: Place) -> bytes | None:
        """The body alone, of a place whose meta was read before."""
        if not place.is_checked:
            both = self.read(place)
            return None if both is None else both[1]
        at = place.body_at
        body = self._memory[at : at + place.body_length]
        return body if self._cells[place.generation_at] == place.generation else None

    def touch(self, place: Place) -> None:
        """Note that the object was used; call it on a current place."""
        memory = self._memory
        if not memory[place.touched_at]:  # a page that is only read need not be written back
            memory[place.touched_at] = 1

    def _discard(self, place: Place) -> None:
        """A checksum was wrong: nobody shall find this entry again."""
        if self._cells[place.generation_at] != place.generation:
            return  # not corrupt, only overwritten
        self.corrupt += 1
        if self._cells[place.index] == place.cell:
            self._cells[place.index] = 0

    # Writing

    def put(self, key: bytes, meta: bytes, body: bytes) -> Place | None:
        """Keep an object; None when it is too large or this process owns no segment."""
        meta_length, body_length = len(meta), len(body)
        if meta_length + body_length > self.largest or meta_length > MAX_META:
            return None
        tag, _, bucket = _KEY.unpack(key)
        at = self._first + (bucket & self._mask) * BUCKET
        row = _CELLS.unpack_from(self._memory, at * 8)
        if tag in _TAGS.unpack_from(self._memory, at * 8):
            log, slot, others = self._known(key, tag, row, at)
        else:
            log, slot, others = PROBATION, -1, ()
        if slot < 0:
            slot = at + (row.index(0) if 0 in row else self._victim(row))
        size = ENTRY_BYTES + meta_length + body_length + _ROUND & ~_ROUND
        place = self._append(log, key, meta, body, crc32(body, crc32(meta, meta_length)), size)
        if place is None:
            return None
        self._puts += 1
        self._bytes_put += size
        place.index = slot
        place.cell = cell = place.cell | tag << 48
        self._cells[slot] = cell
        for other in others:
            self._cells[other] = 0
        if self._segments.is_short:
            self._make_room(size)
        return place

    def _known(self, key: bytes, tag: int, row: tuple[int, ...], at: int) -> tuple[int, int, Sequence[int]]:
        """Of a key that may have been here: which log it belongs to, which cell names it (-1: none), and which ones do so besides."""
        log, ghost, places = PROBATION, -1, []
        for index, cell in enumerate(row, at):
            if cell >> 48 != tag or not cell:
                continue
            segment = (cell & 0xFFFFFFFF) >> self._shift
            if segment >= self._count:
                continue
            age = self._cells[self._table + segment * LINE_CELLS] - (cell >> 32) & 0xFFFF
            if age:
                if age <= GHOST_AGE:  # dropped lately, and wanted again
                    log, ghost = MAIN, index
                continue
            place = self._place(key, index, cell)
            if place is not None:
                places.append(index)
                if self._memory[place.touched_at] or self._cells[self._table + segment * LINE_CELLS + LOG] == MAIN:
                    log = MAIN
        return (log, places[0], places[1:]) if places else (log, ghost, ())

    def _victim(self, row: tuple[int, ...]) -> int:
        """Which cell of a full bucket to use: one that names nothing any more, else that of an entry which can be spared."""
        start = self._puts & BUCKET - 1
        cells, table, shift = self._cells, self._table, self._shift
        for i in _ROTATED[start]:
            cell = row[i]
            segment = (cell & 0xFFFFFFFF) >> shift
            if segment >= self._count or (cells[table + segment * LINE_CELLS] ^ cell >> 32) & 0xFFFF:
                return i
        self._crowded_out += 1
        spared = start
        for i in _ROTATED[start]:
            unit = row[i] & 0xFFFFFFFF
            if not self._memory[self._touched + (unit >> TOUCHED_SHIFT)]:
                if cells[table + (unit >> shift) * LINE_CELLS + LOG] == PROBATION:
                    return i
                spared = i
        return spared

    def _append(self, kind: int, key: bytes, meta: bytes, body: bytes, checksum: int, size: int) -> Place | None:
        """Write an entry at the end of a log. Nobody sees it before a cell names it."""
        log = self._segments.logs[kind]
        at = log.at
        if at + size > log.end:
            if not self._segments.open_next(log):
                return None
            at = log.at
        memory, cells, generation = self._memory, self._cells, log.generation
        meta_length, body_length = len(meta), len(body)
        _HEADER.pack_into(memory, at, _MAGIC, checksum, generation, key, meta_length, body_length)
        meta_at = at + ENTRY_BYTES
        body_at = meta_at + meta_length
        memory[meta_at:body_at] = meta
        memory[body_at : body_at + body_length] = body
        log.at = end = at + size
        log.objects += 1
        line = log.line  # the entry is whole: what comes next goes behind it, also if this process dies now
        cells[line + USED] = end - log.start
        cells[line + OBJECTS] = log.objects
        unit = (at - self._data) // UNIT
        memory[self._dead + (unit >> DEAD_SHIFT)] = 0
        touched_at = self._touched + (unit >> TOUCHED_SHIFT)
        memory[touched_at] = 0
        place = Place(key, 0, (generation & 0xFFFF) << 32 | unit, line, generation, touched_at, at, meta_length, body_length, checksum)
        place.is_checked = True
        return place

    def remove(self, key: bytes) -> bool:
        """Forget an object, for all processes, whoever keeps it; whether there was one.

        Its entry is marked dead before its cell is cleared, so that an owner who is moving it this very moment notices.
        """
        tag, _, bucket = _KEY.unpack(key)
        at = self._first + (bucket & self._mask) * BUCKET
        was_there = False
        for _ in range(2):  # once more for an entry that was being moved
            for index, cell in enumerate(_CELLS.unpack_from(self._memory, at * 8), at):
                if cell >> 48 == tag and cell:
                    place = self._place(key, index, cell)
                    if place is not None:
                        self._memory[self._dead + ((place.offset - self._data) // UNIT >> DEAD_SHIFT)] = 1
                        self._cells[index] = 0
                        was_there = True
        return was_there

    # Replacement

    def _make_room(self, size: int) -> None:
        """Empty a little of the oldest segments: four times what the last put took, since up to three quarters may have to stay.

        When even that is too slow, because everything there is in use, as much as can be done in a fraction of a millisecond.
        """
        segments, memory = self._segments, self._memory
        left, entries = (URGENT_BYTES if segments.is_urgent else 4 * size), MOST_MOVED
        while left > 0 and entries > 0 and segments.is_short:
            oldest = segments.oldest()
            if oldest is None:
                return
            at, end = oldest.at, oldest.end
            if at >= end:
                segments.emptied()
                continue
            magic, checksum, generation, key, meta_length, body_length = _HEADER.unpack_from(memory, at)
            entry_bytes = ENTRY_BYTES + meta_length + body_length + _ROUND & ~_ROUND
            if magic != _MAGIC or generation != oldest.generation or at + entry_bytes > end:
                segments.emptied()  # nothing that can be read further on: the machine crashed, or somebody wrote there
                continue
            oldest.at = at + entry_bytes
            left -= entry_bytes
            entries -= 1
            unit = (at - self._data) // UNIT
            if (
                memory[self._touched + (unit >> TOUCHED_SHIFT)]
                and not memory[self._dead + (unit >> DEAD_SHIFT)]
                and oldest.may_keep(entry_bytes)
            ):
                self._move(oldest.log, key, at, meta_length, body_length, checksum, entry_bytes)
            else:
                self._dropped += 1

    def _move(self, log: int, key: bytes, at: int, meta_length: int, body_length: int, checksum: int, size: int) -> None:
        """Append a used entry to the main log, if it is still the one its cell names."""
        tag, _, bucket = _KEY.unpack(key)
        cells = self._cells
        first = self._first + (bucket & self._mask) * BUCKET
        unit = (at - self._data) // UNIT
        index = first
        for cell in _CELLS.unpack_from(self._memory, first * 8):
            if cell & 0xFFFFFFFF == unit and cell >> 48 == tag:
                break
            index += 1
        else:
            return  # replaced or removed
        body_at = at + ENTRY_BYTES + meta_length
        meta, body = self._memory[at + ENTRY_BYTES : body_at], self._memory[body_at : body_at + body_length]
        if log == PROBATION and _checksum(meta, body) != checksum:  # main's entries were checked on their way in
            self.corrupt += 1
            cells[index] = 0
            return
        place = self._append(MAIN, key, meta, body, checksum, size)
        if place is None or cells[index] != cell:
            return
        cells[index] = place.cell | tag << 48
        if self._memory[self._dead + (unit >> DEAD_SHIFT)]:  # removed between the two looks
            cells[index] = 0
            return
        if log == PROBATION:
            self._promoted += 1
            if self.promoted is not None:
                place.index, place.cell = index, place.cell | tag << 48
                self.promoted(place, meta, body)
        else:
            self._kept += 1

    # Figures

    def statistics(self) -> dict[str, int]:
        """Of this process: counters. Of all: the bytes in use."""
        return {
            "stored": self._puts,
            "stored_bytes": self._bytes_put,
            "promoted": self._promoted,
            "kept": self._kept,
            "evicted": self._dropped + self._segments.dropped,
            "crowded_out": self._crowded_out,
            "corrupt": self.corrupt,
            "segments": self._segments.owned,
            "used_bytes": self._segments.used_bytes(),
        }


def _checksum(meta: bytes, body: bytes) -> int:
    """Begins with the length of meta, so that the border between the two is protected as well."""
    return crc32(body, crc32(meta, len(meta)))


def open_file(directory: str, size: int) -> tuple[int, Geometry, str]:
    """Open the file for `size`, or make it. Returns the descriptor, the geometry, and why one that was there was not used."""
    geometry = Geometry.of(size)
    path = os.path.join(directory, geometry.name)
    lock = os.open(os.path.join(directory, "memory.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        note = ""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            pass
        else:
            try:
                geometry.check(fd)
            except NotAnArena as e:
                os.close(fd)
                os.unlink(path)  # who still maps it keeps it
                note = f"{path} is made anew: {e}"
            except BaseException:
                os.close(fd)
                raise
            else:
                return fd, geometry, ""
        return _create(path, geometry), geometry, note
    finally:
        os.close(lock)


def _create(path: str, geometry: Geometry) -> int:
    unfinished = path + UNFINISHED
    fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, geometry.file_bytes)  # never sparse: a full disk is an error here, not SIGBUS later
        os.pwrite(fd, geometry.header(), 0)
        os.rename(unfinished, path)
    except BaseException:
        os.close(fd)
        os.unlink(unfinished)
        raise
    return fd
