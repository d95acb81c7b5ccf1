"""The files of the disk tier: their names and their form. No sockets, no clock, no memory of what was done: workers and supervisor read it.

A file is a header | meta | body | one CRC-32 per block of the body | the CRC-32 of those. While it grows, the header has no length of the
body; the length is written after the last byte of the body and before the table. So whoever first looks at the size and then finds no
length knows that all bytes behind meta are body.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

from twistedproxy.http.cache.checksum import crc32

OBJECTS: Final = "objects"
FILLS: Final = "fills"
BLOCK: Final = 1 << 20
HEADER_BYTES: Final = 64
LENGTH_AT: Final = 16
"""Where the length of the body stands."""
LENGTH = struct.Struct("<Q")
GROWING: Final = (1 << 64) - 1
BROKEN: Final = (1 << 64) - 2
"""In place of the length."""
MAX_META: Final = 64 * 1024
MAX_BODY: Final = 1 << 50

_HEADER = struct.Struct("<8sIIQ16sII")
_CHECK = struct.Struct("<I")
_MAGIC: Final = b"twprxyOB"
_VERSION: Final = 1


class Corrupt(ValueError):
    """A file that this program did not finish, or that was changed since."""


class Head(NamedTuple):
    """What the header says."""

    key: bytes
    length: int
    """Of the body; or GROWING, BROKEN."""
    block: int
    meta_length: int
    meta_checksum: int

    @property
    def body_offset(self) -> int:
        return HEADER_BYTES + self.meta_length


def directories(root: str) -> list[str]:
    """All that may hold objects."""
    return [os.path.join(root, OBJECTS, f"{n:02x}") for n in range(256)]


def object_path(root: str, key: bytes) -> str:
    name = key.hex()
    return f"{root}/{OBJECTS}/{name[:2]}/{name}"


def fill_path(root: str, key: bytes, pid: int, number: int) -> str:
    return f"{root}/{FILLS}/{key.hex()}.{pid}.{number}"


def make_directories(root: str) -> None:
    """Raises OSError."""
    os.makedirs(os.path.join(root, FILLS), mode=0o700, exist_ok=True)
    os.makedirs(os.path.join(root, OBJECTS), mode=0o700, exist_ok=True)


def pack_head(key: bytes, meta: bytes, length: int = GROWING) -> bytes:
    fixed = _HEADER.pack(_MAGIC, _VERSION, BLOCK, length, key, len(meta), crc32(meta))
    return (fixed + _CHECK.pack(_head_checksum(fixed))).ljust(HEADER_BYTES, b"\0")


def _head_checksum(fixed: bytes) -> int:
    """Without the length, which changes; a wrong length shows in the size of the file."""
    return crc32(fixed[LENGTH_AT + LENGTH.size :], crc32(fixed[:LENGTH_AT]))


def parse_head(data: bytes) -> Head:
    """Raises Corrupt."""
    if len(data) < HEADER_BYTES:
        raise Corrupt(f"{len(data)} bytes are no header")
    fixed = data[: _HEADER.size]
    magic, version, block, length, key, meta_length, meta_checksum = _HEADER.unpack(fixed)
    if magic != _MAGIC or version != _VERSION:
        raise Corrupt("no object of this version")
    if _CHECK.unpack_from(data, _HEADER.size)[0] != _head_checksum(fixed):
        raise Corrupt("the header is damaged")
    if meta_length > MAX_META or block < 4096 or (length > MAX_BODY and length not in (GROWING, BROKEN)):
        raise Corrupt("impossible lengths")
    return Head(key, length, block, meta_length, meta_checksum)


def table_bytes(length: int, block: int = BLOCK) -> int:
    """Of the checksums behind a body."""
    return (-(-length // block) + 1) * 4


def file_bytes(head: Head) -> int:
    """Of a finished file."""
    return head.body_offset + head.length + table_bytes(head.length, head.block)


def pack_table(checksums: list[int]) -> bytes:
    table = struct.pack(f"<{len(checksums)}I", *checksums)
    return table + _CHECK.pack(crc32(table))


def parse_table(data: bytes, length: int, block: int) -> tuple[int, ...]:
    """Raises Corrupt."""
    if len(data) != table_bytes(length, block) or _CHECK.unpack(data[-4:])[0] != crc32(data[:-4]):
        raise Corrupt("the checksums are damaged")
    return struct.unpack(f"<{len(data) // 4 - 1}I", data[:-4])
