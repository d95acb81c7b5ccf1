"""The journal: every live change in one append-only file of JSON lines, durable before it is acknowledged (faults: P17).

How it works
    The first line is a header with the format's version and the revision the file starts after. Every other line is one
    change: revision, at, by, reason, node, what it replaced (``change``), the change itself (``apply``), and its
    *overrides*: for each value it set, what the configuration file said then (``base``) and the new value. A line is
    one write, then fsync; only then is the change acknowledged. A line without its end is a write that a crash cut short:
    nobody was told it happened, so it is cut off. Anything else that cannot be read makes the whole file suspect: it is set aside and the
    proxy starts from its configuration.

    Replay (`overrides.py`) lays the last override of each value over the configuration, unless the file changed that very value since.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedproxy.config import changes
from twistedproxy.config.changes import Change
from twistedproxy.config.control import Entry
from twistedproxy.config.model import Model
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.overrides import Override, Overrides, Superseded, overrides_of

FORMAT = 1
KEPT_ENTRIES = 10_000
"""Entries answered from memory by `entries`; the file keeps all."""

T = TypeVar("T")
InThread = Callable[[Callable[[], None]], "Deferred[None]"]
"""Runs a blocking call elsewhere, one at a time."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What start makes of file and journal together."""

    model: Model
    revision: int
    superseded: tuple[Superseded, ...] = ()
    """Overrides that the configuration file has overtaken."""


class ChangeLog(Protocol):
    """Where revisions come from; one file today, a store shared by several machines one day."""

    revision: int

    async def append(self, model: Model, change: Change, *, by: str, reason: str) -> Entry:
        """Give `change`, valid for the running `model`, the next revision and make it durable; `ChangeRefused` (503) when that fails."""
        ...

    def replay(self, configured: Model) -> Replayed: ...

    def entries(self, after: int = 0) -> Sequence[Entry]: ...

    def watch(self, observer: Callable[[Entry], None]) -> Callable[[], None]:
        """Call `observer` for every new entry, whoever made it, until the returned function is called."""
        ...


class Corrupt(Exception):
    """The journal holds something this program did not write."""


@dataclass(frozen=True, slots=True)
class _Line:
    entry: Entry
    overrides: tuple[Override, ...]


class Journal:
    """The `ChangeLog` in one file.

    `in_thread` runs the blocking writes; `wall` is the wall clock in seconds since the epoch.
    """

    log = Logger()

    def __init__(self, path: str, in_thread: InThread, wall: Callable[[], float]) -> None:
        self.path = path
        self._in_thread = in_thread
        self._wall = wall
        self._node = socket.gethostname()
        self._observers: list[Callable[[Entry], None]] = []
        self.revision = 0
        self._entries: deque[Entry] = deque(maxlen=KEPT_ENTRIES)
        self._overrides = Overrides()
        self._configured = Model()
        self._file = -1
        self._length = 0
        self._open()

    # Reading

    def _open(self) -> None:
        try:
            with open(self.path, "rb") as f:
                data = f.read()
        except FileNotFoundError:
            data = b""
        keep = len(data)
        try:
            revision, lines, keep = parse(data)
        except Corrupt as e:
            lines = []
            revision = self._set_aside(data, e)
            data, keep = b"", 0
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if keep < len(data):
            self.log.warn(
                "journal {path}: cut off {n} bytes of a change whose write was interrupted; it was never acknowledged",
                path=self.path, n=len(data) - keep,
            )  # fmt: skip
            os.ftruncate(self._file, keep)
        self._length = keep
        self.revision = revision
        if not keep:
            self._write(_dump({"journal": FORMAT, "revision": revision, "node": self._node}))
            sync_directory(os.path.dirname(self.path))
        elif data[keep - 1 : keep] != b"\n":
            self._write(b"\n")
        for line in lines:
            self.revision = line.entry.revision
            self._entries.append(line.entry)
            self._overrides.add(line.overrides)

    def _set_aside(self, data: bytes, why: Corrupt) -> int:
        """Keep the unreadable file for people to look at; returns the highest revision that can be read in it."""
        stamp = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = f"{self.path}.corrupt-{stamp}"
        number = 1
        while os.path.exists(aside):
            number += 1
            aside = f"{self.path}.corrupt-{stamp}-{number}"
        os.rename(self.path, aside)
        sync_directory(os.path.dirname(self.path))
        revision = 0
        for raw in data.split(b"\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                revision = max(revision, int(json.loads(raw)["revision"]))
        self.log.critical(
            "journal {path} is corrupt ({why}): set aside as {aside}. Starting from the configuration file alone, at revision {revision}: "
            "LIVE CHANGES ARE NOT IN FORCE. Look at the file (it is JSON lines) and make again what is missing.",
            path=self.path, why=str(why), aside=aside, revision=revision,
        )  # fmt: skip
        return revision

    def replay(self, configured: Model) -> Replayed:
        """Lay the overrides over what the file says; further changes are recorded against `configured`."""
        self._configured = configured
        model, superseded = self._overrides.over(configured)
        return Replayed(model, self.revision, superseded)

    def entries(self, after: int = 0) -> Sequence[Entry]:
        return [entry for entry in self._entries if entry.revision > after]

    def watch(self, observer: Callable[[Entry], None]) -> Callable[[], None]:
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    # Writing

    async def append(self, model: Model, change: Change, *, by: str, reason: str) -> Entry:
        at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = Entry(self.revision + 1, at, by, reason, changes.describe(model, change))
        overrides = overrides_of(self._configured, change)
        line = _dump(
            {
                "revision": entry.revision,
                "at": at,
                "by": by,
                "reason": reason,
                "node": self._node,
                "change": entry.change,
                "apply": changes.to_plain(change),
                "overrides": [override.to_plain() for override in overrides],
            }
        )
        try:
            await self._in_thread(lambda: self._write(line))
        except OSError as e:
            self.log.error("journal {path}: {why}; change {revision} was refused", path=self.path, why=str(e), revision=entry.revision)
            raise ChangeRefused(503, f"nothing was changed: the journal {self.path} cannot be written ({e.strerror})") from e
        self.revision = entry.revision
        self._entries.append(entry)
        self._overrides.add(overrides)
        for observer in tuple(self._observers):
            observer(entry)
        return entry

    def _write(self, line: bytes) -> None:
        """Append and make durable, or leave the file as it was."""
        try:
            if os.fstat(self._file).st_size != self._length:
                # What an earlier failure could not take back.
                os.ftruncate(self._file, self._length)
            written = os.pwrite(self._file, line, self._length)
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._length + written)
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
                os.fsync(self._file)
            raise
        self._length += len(line)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def parse(data: bytes) -> tuple[int, list[_Line], int]:
    """(Revision of the header, changes, bytes to keep) of a journal's text; `Corrupt` for anything but a torn last line."""
    lines: list[_Line] = []
    position = revision = 0
    while position < len(data):
        end = data.find(b"\n", position)
        raw = data[position : end if end >= 0 else len(data)]
        try:
            record = json.loads(raw)
            if not isinstance(record, dict):
                raise ValueError(f"expected a table, got {record!r:.60}")
            if position == 0:
                if record["journal"] != FORMAT:
                    raise ValueError(f"format {record['journal']!r}; this version reads {FORMAT}")
                first = revision = _integer(record["revision"])
            else:
                lines.append(_line(record, revision))
                revision = lines[-1].entry.revision
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            if end < 0:
                break
            number = data.count(b"\n", 0, position) + 1
            missing = f"no {e}" if isinstance(e, KeyError) else str(e)
            raise Corrupt(f"line {number}: {missing}") from None
        position = end + 1 if end >= 0 else len(data)
    return (first if position else 0), lines, position


def _integer(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a revision")
    return value


def _line(record: Mapping[str, Any], after: int) -> _Line:
    revision = _integer(record["revision"])
    if revision <= after:
        raise ValueError(f"revision {revision} after {after}")
    changes.from_plain(record["apply"])
    for key in ("at", "by", "reason"):
        if not isinstance(record[key], str):
            raise ValueError(f"{key} is {record[key]!r}")
    if not isinstance(record["change"], dict):
        raise ValueError("change is not a table")
    entry = Entry(revision, record["at"], record["by"], record["reason"], record["change"])
    return _Line(entry, tuple(Override.from_plain(o) for o in record["overrides"]))


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def sync_directory(path: str) -> None:
    """Make a creation or renaming in `path` durable."""
    directory = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
