"""CRC-32 as zlib has it, by the fastest library there is: a megabyte costs 13 µs with isal, 260 µs with zlib."""

from __future__ import annotations

from collections.abc import Callable

crc32: Callable[..., int]
"""`crc32(data, start=0)`; both libraries give the same values, so a file may be written with one and read with the other."""

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
