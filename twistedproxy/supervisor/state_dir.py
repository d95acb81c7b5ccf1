"""The state directory: private, writable, and locked against a second instance for as long as we live (faults: LC-12)."""

from __future__ import annotations

import fcntl
import os
import stat
from datetime import UTC, datetime

from twistedproxy.errors import Problem

LOCK_NAME = "lock"


def corrupt_name(path: str, at: float) -> str:
    """The free name that the unreadable file `path` gets at the moment `at` (wall clock, seconds)."""
    first = aside = f"{path}.corrupt-{datetime.fromtimestamp(at, UTC).strftime('%Y%m%dT%H%M%SZ')}"
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = f"{first}-{number}"
    return aside


class StateDir:
    """An open, locked state directory.

    The lock belongs to the open file, so it survives twistd's fork and ends with the last process that holds the file,
    however that process ends. Workers do not inherit it.
    """

    def __init__(self, path: str, lock: int, was_unclean: bool, is_ours: bool = True) -> None:
        self.path = path
        self._lock = lock
        self._is_ours = is_ours
        """False for a successor that has the lock from the old supervisor and has not taken over yet."""
        self.was_unclean = was_unclean
        """True when the last instance did not stop in order: its workers may still be closing their sockets."""

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    @property
    def descriptor(self) -> int:
        """Of the lock: a copy of it is the lock as well."""
        return self._lock

    def claim(self) -> None:
        """Write our process id into the lock file; called again after twistd has forked, and by a successor when it takes over."""
        self._is_ours = True
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """An orderly end: nothing is left for the next instance to wait for."""
        if not self._is_ours:
            self.hand_over()
            return
        if self._lock < 0 and not self._lock_again():
            return  # the next instance has it already
        os.ftruncate(self._lock, 0)
        os.close(self._lock)
        self._lock = -1

    def hand_over(self) -> None:
        """Let the next instance in while our workers finish; what is written tells it that ports may be held for a moment."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _lock_again(self) -> bool:
        try:
            lock = os.open(self.file(LOCK_NAME), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True


def inherit_state_dir(path: str, lock: int) -> StateDir:
    """With the lock of the supervisor that we shall replace."""
    return StateDir(path, lock, was_unclean=False, is_ours=False)


def open_state_dir(path: str) -> StateDir | Problem:
    """Make the directory if needed (mode 0700), and lock it; a `Problem` says why it cannot be used."""
    key = "state_dir"
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        mode = os.stat(path).st_mode
    except OSError as e:
        return Problem(key, f"cannot make the directory {path}: {e.strerror}; choose one that this user may write")
    if mode & stat.S_IWOTH:
        return Problem(key, f"{path} is writable for everybody, who could then change the proxy's state: chmod o-w {path}")
    try:
        lock = os.open(os.path.join(path, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        return Problem(key, f"cannot write in {path}: {e.strerror}; this user needs to own the directory")
    before = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        who = f"process {before}" if before else "another process"
        return Problem(key, f"{path} is in use by {who}; stop that instance, or give this one another state_dir")
    opened = StateDir(path, lock, was_unclean=bool(before))
    opened.claim()
    return opened
