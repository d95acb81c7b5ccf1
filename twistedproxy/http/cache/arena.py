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

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Final

from twistedproxy.http.cache.arena_file import open_file
from twistedproxy.http.cache.checksum import crc32
from twistedproxy.http.cache.geometry import BUCKET, DEAD_SHIFT, ENTRY_BYTES, LINE_CELLS, LOG, OBJECTS, TOUCHED_SHIFT, UNIT, USED, Geometry
from twistedproxy.http.cache.places import CELLS, HEADER, KEY, MAGIC, MAX_META, TAGS, Place, Places, checksum_of
from twistedproxy.http.cache.segments import MAIN, PROBATION, Segments, can_lock

__all__ = ["Arena", "Place"]

GHOST_AGE: Final = 8
"""A key is remembered until the segment it lay in was reused so many times."""
MOST_MOVED: Final = 64
"""Entries that one put looks at to make room."""
URGENT_BYTES: Final = 256 << 10

_ROUND: Final = UNIT - 1
_ROTATED: Final[list[list[int]]] = [[*range(start, BUCKET), *range(start)] for start in range(BUCKET)]


class Arena(Places):
    """One process's view of the file; one per process and file, or they would compete for segments."""

    def __init__(self, fd: int, memory: mmap.mmap, geometry: Geometry, note: str = "") -> None:
        super().__init__(memory, geometry)
        self.fd = fd
        self.note = note
        """Why the file was made anew although there was one; for the log."""
        self.promoted: Callable[[Place, bytes, bytes], None] | None = None
        """Told place, meta and body of each object that moved on to the main log."""
        self.largest = geometry.largest
        """Bytes of meta and body together that `put` takes."""
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
            can_lock(fd)
            memory = mmap.mmap(fd, geometry.file_bytes)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, memory, geometry, note)

    def close(self) -> None:
        """Give up the segments and let go of the file at once, so that nothing can be read any more."""
        self._segments.release()
        self._segments.close()
        self._cells.release()
        self._memory.close()
        self.__del__()

    def __del__(self) -> None:
        """With the last reference the file is closed, and with it go the locks."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)

    # Segments

    def own(self, count: int) -> None:
        """Take or give back segments so that this process has its share of `count`; call it again from time to time."""
        self._segments.own(count)

    def release(self) -> None:
        """Give all segments back for good: this worker drains and stores nothing any more. It can still read."""
        self._segments.release()

    # Writing

    def put(self, key: bytes, meta: bytes, body: bytes) -> Place | None:
        """Keep an object; None when it is too large or this process owns no segment."""
        meta_length, body_length = len(meta), len(body)
        if meta_length + body_length > self.largest or meta_length > MAX_META:
            return None
        tag, _, bucket = KEY.unpack(key)
        at = self._first + (bucket & self._mask) * BUCKET
        row = CELLS.unpack_from(self._memory, at * 8)
        if tag in TAGS.unpack_from(self._memory, at * 8):
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
        HEADER.pack_into(memory, at, MAGIC, checksum, generation, key, meta_length, body_length)
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
            magic, checksum, generation, key, meta_length, body_length = HEADER.unpack_from(memory, at)
            entry_bytes = ENTRY_BYTES + meta_length + body_length + _ROUND & ~_ROUND
            if magic != MAGIC or generation != oldest.generation or at + entry_bytes > end:
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
        tag, _, bucket = KEY.unpack(key)
        cells = self._cells
        first = self._first + (bucket & self._mask) * BUCKET
        unit = (at - self._data) // UNIT
        index = first
        for cell in CELLS.unpack_from(self._memory, first * 8):
            if cell & 0xFFFFFFFF == unit and cell >> 48 == tag:
                break
            index += 1
        else:
            return  # replaced or removed
        body_at = at + ENTRY_BYTES + meta_length
        meta, body = self._memory[at + ENTRY_BYTES : body_at], self._memory[body_at : body_at + body_length]
        if log == PROBATION and checksum_of(meta, body) != checksum:  # main's entries were checked on their way in
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
