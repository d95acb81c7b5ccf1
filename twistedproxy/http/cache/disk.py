"""The disk tier: a plain file for each object, read by any worker, written beside and renamed when it is whole.

How it works
    `Writer` makes `fills/<key>.<pid>.<n>` and holds a lock on it; other processes may open it by its path and read what is there
    so far. When the body is complete it becomes `objects/ab/<key>` in one step. Nothing is synced: after a crash of the machine a file
    may hold anything, so each block of a body is compared with its checksum before a process uses it for the first time, and can then be
    sent by the kernel (`sendfile`). Whatever is wrong with a file, it is removed, counted, and a miss.

    The time of access is the last use; it is set by us, at most once a minute. The time of modification never changes, and tells with
    inode and size whether a file is one that was verified before. The supervisor (`cache_keeper`) keeps the limits.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import struct
import time
from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from twistedproxy.http.cache import files
from twistedproxy.http.cache.breaker import Breaker
from twistedproxy.http.cache.checksum import crc32
from twistedproxy.http.cache.files import BROKEN, GROWING, HEADER_BYTES, LENGTH, LENGTH_AT, Corrupt, Head

_log = Logger()

TOUCH_EVERY_S: Final = 60.0
FIRST_READ: Final = 4096
"""Header and, mostly, meta in one read."""
MOST_VERIFIED: Final = 4096
"""Files whose verified blocks are remembered."""

_IDENTITY = struct.Struct("<QqQ")

Identity = tuple[int, int, int]
"""Inode, time of modification, size."""


class Reader:
    """An open object; close it, or let go of it: its descriptor is closed with the last reference."""

    __slots__ = (
        "_disk",
        "_identity",
        "_is_broken",
        "_table",
        "_used_at",
        "_verified",
        "body_offset",
        "fd",
        "head",
        "key",
        "length",
        "meta",
        "path",
    )

    def __init__(self, disk: Disk, path: str, fd: int, head: Head, meta: bytes, status: os.stat_result) -> None:
        self._disk = disk
        self.path = path
        self.fd = fd
        self.head = head
        self.key = head.key
        self.meta = meta
        self.body_offset = head.body_offset
        """Where the body begins in the file."""
        self.length: int | None = head.length if head.length < BROKEN else None
        """Of the body; None while it grows."""
        self._identity: Identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        self._used_at = status.st_atime
        self._is_broken = head.length == BROKEN
        self._table: tuple[int, ...] | None = None
        self._verified: bytearray | None = None

    def __repr__(self) -> str:
        return f"<Reader {self.path} {'broken' if self._is_broken else 'growing' if self.length is None else 'complete'}>"

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def is_linked(self) -> bool:
        """Whether this is still the object of its key: not replaced, removed or evicted, nor cut off."""
        if self._is_broken:
            return False
        status = os.fstat(self.fd)
        return status.st_nlink > 0 and status.st_size == self._identity[2]

    @property
    def identity(self) -> bytes:
        """Which file this is; another one of the same key has another."""
        return _IDENTITY.pack(*self._identity)

    def is_ready(self, now: float) -> bool:
        """Whether a complete file can be sent from its beginning: it is still that of its key, and its first block is good. At `now`, on
        the wall clock, it counts as used by that."""
        if not self.is_linked:
            return False
        if not -TOUCH_EVERY_S < now - self._used_at < TOUCH_EVERY_S:
            self.used()
        verified = self._verified
        return (verified is not None and verified[0] == 1) or self.verify(0, 1)

    # While it grows

    def available(self) -> int:
        """Bytes of the body that can be read now."""
        if self.length is None:
            size = os.fstat(self.fd).st_size  # before the length: see files.py
            self._look_again()
            if self.length is None:
                return max(0, size - self.body_offset)
        return self.length

    def state(self) -> str:
        """``growing``, ``complete`` or ``broken``: given up by its writer, or its writer is dead, or found damaged."""
        if self.length is None and not self._is_broken:
            self._look_again()
            if self.length is None and not self._is_broken and not is_being_written(self.fd):
                self._look_again()  # it may have ended between the two looks
                self._is_broken = self.length is None
        return "broken" if self._is_broken else "growing" if self.length is None else "complete"

    def _look_again(self) -> None:
        length = LENGTH.unpack(os.pread(self.fd, LENGTH.size, LENGTH_AT))[0]
        if length == BROKEN:
            self._is_broken = True
        elif length != GROWING:
            self.length = length

    # The body

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes of the body, fewer when fewer are there, none when it is broken. Not verified: call `verify` first."""
        count = min(count, self.available() - offset)
        if count <= 0 or self._is_broken:
            return b""
        try:
            return os.pread(self.fd, count, self.body_offset + offset)
        except OSError as e:
            self._damaged(e)
            return b""

    def verify(self, offset: int, count: int) -> bool:
        """Whether these bytes of a complete body are what was stored; each block is looked at once per process and file.

        When they are not, the file is removed and counted, and this reader is broken from now on.
        """
        if self._is_broken or self.length is None:
            return False
        block = self.head.block
        first, last = offset // block, -(-min(offset + count, self.length) // block)
        verified = self._verified
        if verified is None:
            verified = self._verified = self._disk.verified_blocks(self._identity, -(-self.length // block))
        for n in range(first, last):
            if not verified[n]:
                if not self._verify_block(n):
                    return False
                verified[n] = 1
        return True

    def whole(self) -> bytes | None:
        """The body of a small object, verified; None when it is damaged."""
        if self.length is None or not self.verify(0, self.length):
            return None
        body = self.read(0, self.length)
        return body if len(body) == self.length else None

    def _verify_block(self, n: int) -> bool:
        assert self.length is not None
        block = self.head.block
        try:
            if self._table is None:
                data = os.pread(self.fd, files.table_bytes(self.length, block), self.body_offset + self.length)
                self._table = files.parse_table(data, self.length, block)
            at = n * block
            data = os.pread(self.fd, min(block, self.length - at), self.body_offset + at)
            if len(data) != min(block, self.length - at) or crc32(data) != self._table[n]:
                raise Corrupt(f"block {n} is damaged")
        except (OSError, Corrupt) as e:
            self._damaged(e)
            return False
        return True

    def _damaged(self, error: Exception) -> None:
        self._is_broken = True
        self._disk.damaged(self.path, error, self.fd)

    def used(self) -> None:
        """Note the last use."""
        now = self._disk.now()
        if -TOUCH_EVERY_S < now - self._used_at < TOUCH_EVERY_S:
            return
        self._used_at = now
        try:
            os.utime(self.fd, ns=(int(now * 1e9), self._identity[1]))
        except OSError:
            pass  # it is removed a little early, no more; a disk that fails is noticed when it is read or written


class Writer:
    """An object on its way to the disk. When writing fails it cleans up after itself, and `write` and `finish` answer False."""

    __slots__ = ("_block_checksum", "_block_left", "_checksums", "_disk", "_fd", "key", "on_finished", "path", "size")

    def __init__(self, disk: Disk, key: bytes, meta: bytes, path: str) -> None:
        """Raises OSError."""
        self._disk = disk
        self.key = key
        self.path = path
        """Where others can read it while it grows."""
        self.size = 0
        """Bytes of the body so far."""
        self.on_finished: Callable[[bytes], None] | None = None
        """Told the key when the object can be found."""
        self._checksums: list[int] = []
        self._block_checksum = 0
        self._block_left = files.BLOCK
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(files.pack_head(key, meta) + meta)
        except OSError:
            self._drop()
            raise

    def __del__(self) -> None:
        self.abort()

    def _write(self, data: bytes | memoryview) -> None:
        done = os.write(self._fd, data)
        if done < len(data):
            rest = memoryview(data)[done:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def write(self, data: bytes | memoryview) -> bool:
        if self._fd < 0:
            return False
        try:
            self._write(data)
        except OSError as e:
            self._failed(e)
            return False
        self.size += len(data)
        if len(data) < self._block_left:
            self._block_checksum = crc32(data, self._block_checksum)
            self._block_left -= len(data)
        else:
            self._count(memoryview(data))
        return True

    def _count(self, data: memoryview) -> None:
        while len(data) >= self._block_left:
            self._checksums.append(crc32(data[: self._block_left], self._block_checksum))
            data = data[self._block_left :]
            self._block_checksum, self._block_left = 0, files.BLOCK
        self._block_checksum = crc32(data, self._block_checksum)
        self._block_left -= len(data)

    def finish(self) -> bool:
        """The body is complete: from now on the object can be found."""
        if self._fd < 0:
            return False
        if self._block_left < files.BLOCK:
            self._checksums.append(self._block_checksum)
        try:
            os.pwrite(self._fd, LENGTH.pack(self.size), LENGTH_AT)
            self._write(files.pack_table(self._checksums))
            self._disk.publish(self.path, self.key)
        except OSError as e:
            self._failed(e)
            return False
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._disk.finished(self.size)
        if self.on_finished is not None:
            self.on_finished(self.key)
        return True

    def leave(self) -> None:
        """The body is complete and is not to be kept: whoever has it open already reads it to its end."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.pwrite(fd, LENGTH.pack(self.size), LENGTH_AT)
            os.unlink(self.path)
        except OSError as e:
            e.filename = e.filename or self.path
            self._disk.writing.fail(e)
        finally:
            os.close(fd)

    def abort(self) -> None:
        """The object is not to be kept; readers see that it is broken. Harmless after the end."""
        if getattr(self, "_fd", -1) >= 0:
            self._drop()

    def _failed(self, error: OSError) -> None:
        error.filename = error.filename or self.path
        self._drop()
        self._disk.writing.fail(error)

    def _drop(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            os.pwrite(fd, LENGTH.pack(BROKEN), LENGTH_AT)
            os.unlink(self.path)
        except OSError:
            pass  # the keeper removes and counts it; readers see that its lock is gone
        finally:
            os.close(fd)


class Disk:
    """The directory, as one process uses it."""

    def __init__(self, directory: str, seconds: Callable[[], float], now: Callable[[], float] = time.time, log: Logger = _log) -> None:
        self.directory = directory
        self.now = now
        """Wall-clock seconds."""
        self.writing = Breaker("write", seconds, log)
        self.reading = Breaker("read", seconds, log)
        self.corrupt = 0
        """Files that were damaged."""
        self.stored = 0
        self.stored_bytes = 0
        self._log = log
        self._verified: dict[Identity, bytearray] = {}
        self._numbers = itertools.count()
        self._pid = os.getpid()

    def open(self, key: bytes) -> Reader | None:
        """The object of `key`; None when there is none, it is damaged, or the disk fails."""
        if self.reading.is_open:
            return None
        reader = self._open(files.object_path(self.directory, key))
        if reader is None:
            return None
        if reader.key != key or reader.length is None or reader._identity[2] != files.file_bytes(reader.head):
            reader._damaged(Corrupt("it is not complete, or not that of its name"))
            return None
        self.reading.succeed()
        return reader

    def has(self, key: bytes, meta: bytes, length: int) -> bool:
        """Whether this very object is there already, by its lengths and the checksum of its meta."""
        try:
            fd = os.open(files.object_path(self.directory, key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False  # writing it will tell what is wrong
        try:
            head = files.parse_head(os.pread(fd, HEADER_BYTES, 0))
        except (OSError, Corrupt):
            return False
        finally:
            os.close(fd)
        return (head.length, head.meta_length, head.meta_checksum) == (length, len(meta), crc32(meta))

    def follow(self, path: str) -> Reader | None:
        """An object that some process is writing; it may have become complete in the meantime. None: it is not there any more."""
        return self._open(path)

    def _open(self, path: str) -> Reader | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as e:
            self.reading.fail(e)
            return None
        try:
            data = os.pread(fd, FIRST_READ, 0)
            head = files.parse_head(data)
            if len(data) < head.body_offset:
                data += os.pread(fd, head.body_offset - len(data), len(data))
            meta = data[HEADER_BYTES : head.body_offset]
            if len(meta) != head.meta_length or crc32(meta) != head.meta_checksum:
                raise Corrupt("meta is damaged")
            return Reader(self, path, fd, head, meta, os.fstat(fd))
        except (OSError, Corrupt) as e:
            self.damaged(path, e, fd)
            os.close(fd)
            return None

    def writer(self, key: bytes, meta: bytes) -> Writer | None:
        """None when nothing can be written now."""
        if self.writing.is_open:
            return None
        path = files.fill_path(self.directory, key, self._pid, next(self._numbers))
        try:
            try:
                return Writer(self, key, meta, path)
            except FileNotFoundError:
                files.make_directories(self.directory)
                return Writer(self, key, meta, path)
        except OSError as e:
            e.filename = e.filename or path
            self.writing.fail(e)
            return None

    def write(self, key: bytes, meta: bytes, body: bytes) -> bool:
        """A whole object at once."""
        writer = self.writer(key, meta)
        return writer is not None and writer.write(body) and writer.finish()

    def publish(self, path: str, key: bytes) -> None:
        target = files.object_path(self.directory, key)
        try:
            os.rename(path, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            os.rename(path, target)

    def finished(self, size: int) -> None:
        self.stored += 1
        self.stored_bytes += size
        self.writing.succeed()

    def remove(self, key: bytes) -> bool:
        """Whether there was one."""
        return self._unlink(files.object_path(self.directory, key))

    def _unlink(self, path: str) -> bool:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as e:
            self.writing.fail(e)
            return False
        return True

    def damaged(self, path: str, error: Exception, fd: int) -> None:
        """Count it and, if `path` still is that very file, remove it."""
        self.corrupt += 1
        if isinstance(error, OSError) and error.errno != errno.ENODATA:
            error.filename = error.filename or path
            self.reading.fail(error)
        if self.corrupt & self.corrupt - 1 == 0:  # the 1st, 2nd, 4th, 8th …: a dying disk does not fill the log
            self._log.warn(
                "the cached object {path} is removed: {reason} ({count} damaged so far)", path=path, reason=str(error), count=self.corrupt
            )
        try:
            here, there = os.fstat(fd), os.stat(path, follow_symlinks=False)
            is_same = (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)
        except OSError:
            return  # gone already
        if is_same:
            self._unlink(path)

    def verified_blocks(self, identity: Identity, blocks: int) -> bytearray:
        """One byte for each block of a file: 1 when it was found good."""
        known = self._verified.get(identity)
        if known is None:
            if len(self._verified) >= MOST_VERIFIED:
                del self._verified[next(iter(self._verified))]
            known = self._verified[identity] = bytearray(blocks)
        return known

    def statistics(self) -> dict[str, int]:
        return {
            "stored": self.stored,
            "stored_bytes": self.stored_bytes,
            "corrupt": self.corrupt,
            "write_failures": self.writing.failures,
            "read_failures": self.reading.failures,
        }


def is_being_written(fd: int) -> bool:
    """Whether a living process holds the file as its `Writer`; `fd` is the caller's own descriptor of it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
