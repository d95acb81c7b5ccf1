"""The file of the memory tier: opened, or made by whoever comes first."""

from __future__ import annotations

import fcntl
import os

from twistedproxy.http.cache.geometry import UNFINISHED, Geometry, NotAnArena


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
