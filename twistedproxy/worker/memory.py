"""How much of the memory it may use a worker's family has taken, and giving back what a peak has left behind.

How it works
    The limit is the tightest of the cgroup's (v2 ``memory.max`` and ``memory.high``, v1 ``memory.limit_in_bytes``, any level up) and
    the configured one. Against a cgroup's limit counts what the kernel counts, less file pages it can drop at any time; against the
    configured one, which is divided over the workers, this process' resident memory. A look costs a few small reads, once a second;
    without any limit it costs nothing.

    An allocator keeps what was freed for the next peak. When most connections of a peak have left, that is given back to the system.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

LOOKS_PER_SEARCH = 60
"""The limits themselves are looked for anew after so many looks."""
WORTH_A_CLOSE_LOOK = 0.75
PEAK = 64
"""Fewer connections leave nothing behind worth giving back."""
AGAIN_AFTER = 4
"""Looks: the timer wheel lets go of the last connections some seconds after they are closed."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT = 2**60
"""cgroup v1 says so with a number near 2^63."""


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup with a limit."""

    usage: str
    """File with the bytes in use."""
    stat: str
    cache: re.Pattern[bytes]
    """Finds the file pages that can be dropped in `stat`."""
    limit: int

    def taken(self) -> float:
        """The share of the limit that is in use; 0.0 when it cannot be told."""
        usage = _number(self.usage) or 0
        if usage > self.limit * WORTH_A_CLOSE_LOOK:
            found = self.cache.search(_read(self.stat))
            usage -= int(found[1]) if found else 0
        return usage / self.limit


class Memory:
    """The memory of one worker; `root` is where ``proc`` and ``sys`` are looked for."""

    def __init__(self, root: str = "/", give_back: Callable[[], None] | None = None) -> None:
        self._root = root
        self._groups: list[Group] = []
        self._looks = 0
        self._peak = 0
        self._again_in = 0
        self._give_back = give_back or trim

    def taken(self, limit: int | None) -> float:
        """The share of the tightest limit that is in use; `limit` is this worker's part of the configured one."""
        if self._looks % LOOKS_PER_SEARCH == 0:
            self._groups = list(_groups(self._root))
        self._looks += 1
        shares = [group.taken() for group in self._groups]
        if limit is not None:
            shares.append(self.resident() / limit)
        return max(shares, default=0.0)

    def resident(self) -> int:
        """Bytes of this process in memory."""
        words = _read(os.path.join(self._root, "proc/self/statm")).split()
        return int(words[1]) * _PAGE if len(words) > 1 else 0

    def see(self, connections: int) -> None:
        """Called once a second: when most of many connections are gone, what they needed is given back."""
        self._peak = max(self._peak, connections)
        if self._again_in:
            self._again_in -= 1
            if not self._again_in:
                self._give_back()
        if self._peak >= PEAK and connections <= self._peak // 2:
            self._peak = connections
            self._give_back()
            self._again_in = AGAIN_AFTER


def trim() -> None:
    """Free pages of the C allocator go back to the system; takes milliseconds."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl needs it not
    if trim is not None:
        trim(0)


def _groups(root: str) -> list[Group]:
    """Those of this process that have a limit, and of all levels above."""
    found = []
    for line in _read(os.path.join(root, "proc/self/cgroup")).decode("utf-8", "replace").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        limits: tuple[str, ...]
        if number == "0" and not controllers:
            mount, limits, usage, cache = "sys/fs/cgroup", ("memory.max", "memory.high"), "memory.current", b"^inactive_file (\\d+)"
        elif "memory" in controllers.split(","):
            mount, limits, usage, cache = (
                "sys/fs/cgroup/memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", b"^total_inactive_file (\\d+)",
            )  # fmt: skip
        else:
            continue
        for directory in _levels(os.path.join(root, mount), group):
            numbers = [n for name in limits if (n := _number(os.path.join(directory, name))) is not None and 0 < n < _NO_LIMIT]
            if numbers:
                files = os.path.join(directory, usage), os.path.join(directory, "memory.stat")
                found.append(Group(*files, re.compile(cache, re.MULTILINE), min(numbers)))
    return found


def _levels(mount: str, group: str) -> list[str]:
    """The directories of the group and of all above it: in a container the group's own may be invisible, the root is not."""
    directories = []
    group = os.path.normpath("/" + group).lstrip("/")
    while True:
        directories.append(os.path.join(mount, group))
        if not group:
            return directories
        group = os.path.dirname(group)


def _number(path: str) -> int | None:
    """None for ``max``, and for a file that is not there."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(65536) or b""
    except OSError:
        return b""
