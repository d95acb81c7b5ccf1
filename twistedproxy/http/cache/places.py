"""The memory tier as any process sees it: find an object, copy it, note its use, have it forgotten. What owners do is in `arena.py`."""

from __future__ import annotations

import mmap
import struct
import sys
from typing import Final

from twistedproxy.http.cache.checksum import crc32
from twistedproxy.http.cache.geometry import BUCKET, DEAD_SHIFT, ENTRY_BYTES, LINE_CELLS, TOUCHED_SHIFT, UNIT, Geometry

MAX_META: Final = 64 * 1024

HEADER = struct.Struct("@IIQ16sII")
"""Of an entry: magic, checksum, generation, key, length of meta, length of body."""
MAGIC: Final = 0x65727054
KEY = struct.Struct("@HHI8x")
"""Tag, unused, bucket."""
CELLS = struct.Struct("@8Q")
"""Native, so that each cell is loaded whole."""
TAGS = struct.Struct("@" + ("6xH" if sys.byteorder == "little" else "H6x") * BUCKET)


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


class Places:
    """The mapped file, without anything that only an owner of segments may do."""

    def __init__(self, memory: mmap.mmap, geometry: Geometry) -> None:
        self.geometry = geometry
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

    def find(self, key: bytes) -> Place | None:
        """Where the object is. Its body may turn out to be gone or corrupt when it is read."""
        tag, _, bucket = KEY.unpack(key)
        at = self._first + (bucket & self._mask) * BUCKET
        if tag not in TAGS.unpack_from(self._memory, at * 8):
            return None
        for cell in CELLS.unpack_from(self._memory, at * 8):
            if cell >> 48 == tag and cell:
                place = self._place(key, at, cell)
                if place is not None:
                    return place
            at += 1
        return None

    def spot(self, key: bytes) -> tuple[int, int]:
        """Where to look for an object that is nearly never there; see `is_vacant`."""
        tag, _, bucket = KEY.unpack(key)
        return tag, (self._first + (bucket & self._mask) * BUCKET) * 8

    def is_vacant(self, spot: tuple[int, int]) -> bool:
        """Whether `find` would surely find nothing, at a fraction of its cost."""
        return spot[0] not in TAGS.unpack_from(self._memory, spot[1])

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
        magic, checksum, written_in, its_key, meta_length, body_length = HEADER.unpack_from(self._memory, offset)
        if its_key != key or written_in != generation or magic != MAGIC:
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
            if checksum_of(meta, body) != place.checksum:
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

    def remove(self, key: bytes) -> bool:
        """Forget an object, for all processes, whoever keeps it; whether there was one.

        Its entry is marked dead before its cell is cleared, so that an owner who is moving it this very moment notices.
        """
        tag, _, bucket = KEY.unpack(key)
        at = self._first + (bucket & self._mask) * BUCKET
        was_there = False
        for _ in range(2):  # once more for an entry that was being moved
            for index, cell in enumerate(CELLS.unpack_from(self._memory, at * 8), at):
                if cell >> 48 == tag and cell:
                    place = self._place(key, index, cell)
                    if place is not None:
                        self._memory[self._dead + ((place.offset - self._data) // UNIT >> DEAD_SHIFT)] = 1
                        self._cells[index] = 0
                        was_there = True
        return was_there


def checksum_of(meta: bytes, body: bytes) -> int:
    """Begins with the length of meta, so that the border between the two is protected as well."""
    return crc32(body, crc32(meta, len(meta)))
