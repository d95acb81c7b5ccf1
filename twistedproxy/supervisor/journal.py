"""The journal: every live change in one append-only file of JSON lines, durable before it is acknowledged (faults: P17).

How it works
    `records` says what the lines are. A line is one write, then fsync; only then is the change acknowledged. A line without
    its end is a write that a crash cut short: nobody was told it happened, so it is cut off. Anything else that cannot be read makes the
    whole file suspect: it is set aside and the proxy starts from its configuration.

    Replay (`overrides.py`) lays the last override of each value over the configuration, unless the file changed that very value since.
    Above `COMPACT_BYTES` the file becomes ``journal-FIRST-LAST.jsonl`` beside it and a new one begins with what is in force.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedproxy.config import changes, undo
from twistedproxy.config.changes import Change, ReplaceConfig
from twistedproxy.config.control import Entry
from twistedproxy.config.model import Model
from twistedproxy.errors import ChangeRefused, one_line
from twistedproxy.supervisor import records
from twistedproxy.supervisor.guard import Watch
from twistedproxy.supervisor.overrides import Override, Overrides, Superseded, overrides_of
from twistedproxy.supervisor.records import Corrupt, Parsed, Record
from twistedproxy.supervisor.state_dir import corrupt_name

KEPT_ENTRIES = 10_000
"""Entries answered from memory by `entries`; the files keep all."""
COMPACT_BYTES = 8 * 1024 * 1024
OLDER_FILES = 4
"""So many of the files put aside are read at start, newest first: with large configurations each holds few changes."""

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


@dataclass(frozen=True, slots=True)
class Note:
    """What else is journaled with a change."""

    described: Mapping[str, Any] | None = None
    """In place of `changes.describe`."""
    undoes: int | None = None
    confirm_by: str | None = None
    guard: Watch | None = None
    configured: Model | None = None
    """Of a `ReplaceConfig`: what the text means, without live values."""
    superseded: tuple[Override, ...] = ()
    revived: tuple[Override, ...] = ()
    """Live values that are in force again."""


class ChangeLog(Protocol):
    """Where revisions come from; one file today, a store shared by several machines one day."""

    revision: int

    async def append(self, model: Model, change: Change, *, by: str, reason: str, note: Note = Note()) -> Entry:
        """Give `change`, valid for the running `model`, the next revision and make it durable; `ChangeRefused` (503) when that fails."""
        ...

    def replay(self, configured: Model, text: str | None = None) -> Replayed: ...

    def lay_over(self, configured: Model, revived: Sequence[Override] = ()) -> tuple[Model, tuple[Superseded, ...]]:
        """The live values over another configuration; nothing is changed."""
        ...

    def entries(self, after: int = 0) -> Sequence[Entry]: ...

    def record(self, revision: int) -> Record | None: ...

    def records_after(self, revision: int) -> Sequence[Record]: ...

    async def confirm(self, revision: int, by: str) -> None: ...

    def guarded(self) -> Sequence[Record]:
        """Changes with a guard that are neither confirmed nor undone; its time may be over."""
        ...

    def unconfirmed(self) -> Sequence[Entry]:
        """Changes that wait for confirmation, or did when we went down."""
        ...

    def configuration_at(self, revision: int) -> tuple[str, Overrides] | None:
        """The file's text and the live values in force at `revision`; blocking; None when it is not known any more."""
        ...

    def watch(self, observer: Callable[[Entry], None]) -> Callable[[], None]:
        """Call `observer` for every new entry, whoever made it, until the returned function is called."""
        ...

    def read_again(self, *, is_ours: bool) -> None:
        """Another supervisor wrote; `is_ours`: it does not any more, so that we may. `OSError` when that cannot be."""
        ...

    def close(self) -> None: ...


class Journal:
    """The `ChangeLog` in one file.

    `in_thread` runs the blocking writes; `wall` is the wall clock in seconds since the epoch.
    """

    log = Logger()

    def __init__(self, path: str, in_thread: InThread, wall: Callable[[], float], is_ours: bool = True) -> None:
        self.path = path
        self._is_ours = is_ours
        """False for a successor, while the old supervisor still writes: the file is read and not touched."""
        self._in_thread = in_thread
        self._wall = wall
        self._node = socket.gethostname()
        self._observers: list[Callable[[Entry], None]] = []
        self.revision = 0
        self._first = 0
        self._text: str | None = None
        self._records: deque[Record] = deque(maxlen=KEPT_ENTRIES)
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
        if not self._is_ours:
            # What the old one has not finished writing is no change yet; if it cannot be read, that is dealt with when it is ours.
            with contextlib.suppress(Corrupt):
                self._take(records.parse(data))
            return
        try:
            parsed = records.parse(data)
        except Corrupt as e:
            parsed = Parsed(revision=self._set_aside(data, e))
            data = b""
        keep = parsed.keep
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if keep < len(data):
            self.log.warn(
                "journal {path}: cut off {n} bytes of a change whose write was interrupted; it was never acknowledged",
                path=self.path, n=len(data) - keep,
            )  # fmt: skip
            os.ftruncate(self._file, keep)
        self._length = keep
        self._first = parsed.first if keep else parsed.revision
        if not keep:
            self._write(records.header(parsed.revision, self._node))
            sync_directory(os.path.dirname(self.path))
        elif data[keep - 1 : keep] != b"\n":
            self._write(b"\n")
        self._take(parsed)

    def _take(self, parsed: Parsed) -> None:
        self.revision = parsed.revision
        self._records.extend(self._before(parsed.first) if parsed.first else ())
        for record in parsed.records:
            if record.undoes is not None:
                records.settle(self._records, record.undoes, record.entry.revision)
            self._records.append(record)
        for revision in parsed.confirmed:
            records.settle(self._records, revision)
        self._overrides = overrides_in(parsed, parsed.revision)
        if parsed.texts:
            self._text = parsed.texts[max(parsed.texts)]

    def _before(self, first: int) -> Sequence[Record]:
        """The changes of the files that compaction put aside last."""
        older: list[Record] = []
        for path in older_files(self.path)[:OLDER_FILES]:
            try:
                with open(path, "rb") as f:
                    parsed = records.parse(f.read())
            except (OSError, Corrupt) as e:
                self.log.warn("{path}: older changes are not listed: {why}", path=path, why=str(e))
                break
            before = [record for record in parsed.records if record.entry.revision <= first]
            for record in older:
                if record.undoes is not None:
                    records.settle(before, record.undoes, record.entry.revision)
            older[:0] = before
            first = min(first, parsed.first)
            if not first or len(older) >= KEPT_ENTRIES:
                break
        return older

    def _set_aside(self, data: bytes, why: Corrupt) -> int:
        """Keep the unreadable file for people to look at; returns the highest revision that can be read in it."""
        aside = corrupt_name(self.path, self._wall())
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

    def replay(self, configured: Model, text: str | None = None) -> Replayed:
        """Lay the overrides over what the file says; further changes are recorded against `configured`.

        A `text` that differs from the one last in force was edited while we were down: that is a change like any other.
        """
        model, superseded = self._overrides.over(configured)
        self._configured = configured
        if text is not None and text != self._text and self._is_ours:
            try:
                self._remember(configured, text, tuple(s.override for s in superseded))
            except OSError as e:
                self.log.error("journal {path}: the edit of the configuration is not recorded: {why}", path=self.path, why=str(e))
        return Replayed(model, self.revision, superseded)

    def _remember(self, configured: Model, text: str, superseded: tuple[Override, ...]) -> None:
        if self._text is None:
            self._write(records.dump({"config": text, "revision": self.revision, "at": self._now()}))
            self._text = text
            return
        described = {"kind": "replace_config", "changes": ["the file was edited while the proxy was down"]}
        note = Note(described, configured=configured, superseded=superseded)
        record, line = self._made(Model(), ReplaceConfig(text), "start", "", note)
        self._write(line)
        self._keep(record, ReplaceConfig(text), note)

    def lay_over(self, configured: Model, revived: Sequence[Override] = ()) -> tuple[Model, tuple[Superseded, ...]]:
        overrides = self._overrides.copy()
        overrides.add(revived)
        return overrides.over(configured)

    def entries(self, after: int = 0) -> Sequence[Entry]:
        return [record.entry for record in self._records if record.entry.revision > after]

    def record(self, revision: int) -> Record | None:
        return next((record for record in self._records if record.entry.revision == revision), None)

    def records_after(self, revision: int) -> Sequence[Record]:
        return [record for record in self._records if record.entry.revision > revision]

    def guarded(self) -> Sequence[Record]:
        return [record for record in self._records if record.guard is not None]

    def unconfirmed(self) -> Sequence[Entry]:
        return [entry for entry in self.entries() if entry.confirm_by is not None]

    def configuration_at(self, revision: int) -> tuple[str, Overrides] | None:
        text, overrides = None, None
        for path in (self.path, *older_files(self.path)):
            with open(path, "rb") as f:
                parsed = records.parse(f.read())
            if parsed.first > revision:
                continue
            if overrides is None:
                overrides = overrides_in(parsed, revision)
            known = [since for since in parsed.texts if since <= revision]
            if known:
                text = parsed.texts[max(known)]
                break
        return None if text is None or overrides is None else (text, overrides)

    def watch(self, observer: Callable[[Entry], None]) -> Callable[[], None]:
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    # Writing

    async def append(self, model: Model, change: Change, *, by: str, reason: str, note: Note = Note()) -> Entry:
        record, line = self._made(model, change, by, reason, note)
        await self._durable(line, f"change {record.entry.revision}")
        self._keep(record, change, note)
        for observer in tuple(self._observers):
            observer(record.entry)
        return record.entry

    async def confirm(self, revision: int, by: str) -> None:
        """Take the deadline off a change."""
        await self._durable(records.dump({"confirm": revision, "at": self._now(), "by": by}), f"the confirmation of {revision}")
        records.settle(self._records, revision)

    async def _durable(self, line: bytes, what: str) -> None:
        def write() -> None:
            if self._file < 0:
                raise OSError(errno.EBADF, "it is closed, the proxy is stopping")
            if self._length + len(line) > COMPACT_BYTES and self.revision > self._first and not self.unconfirmed():
                self._compact()
            self._write(line)

        try:
            await self._in_thread(write)
        except OSError as e:
            self.log.error("journal {path}: {why}; {what} was refused", path=self.path, why=str(e), what=what)
            raise ChangeRefused(503, f"nothing was changed: the journal {self.path} cannot be written ({e.strerror})") from e

    def _now(self) -> str:
        return rfc3339(self._wall())

    def _made(self, model: Model, change: Change, by: str, reason: str, note: Note) -> tuple[Record, bytes]:
        described = changes.describe(model, change) if note.described is None else note.described
        guard = None if note.guard is None else note.guard.shown
        entry = Entry(self.revision + 1, self._now(), by, one_line(reason), described, confirm_by=note.confirm_by, guard=guard)
        backwards = undo.inverse(model, change)
        is_config = isinstance(change, ReplaceConfig)
        record = Record(
            entry,
            {"kind": "replace_config"} if is_config else changes.to_plain(change),
            None if backwards is None else changes.to_plain(backwards),
            note.revived if is_config else overrides_of(self._configured, change),
            note.superseded,
            note.undoes,
            note.guard,
        )
        return record, records.change_line(record, change, self._node)

    def _keep(self, record: Record, change: Change, note: Note) -> None:
        """It is durable: from now on it counts."""
        self.revision = record.entry.revision
        if record.undoes is not None:
            records.settle(self._records, record.undoes, self.revision)
        self._records.append(record)
        self._overrides.drop(record.superseded)
        self._overrides.add(record.overrides)
        if isinstance(change, ReplaceConfig):
            self._text = change.text
            self._configured = note.configured or self._configured

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

    def _compact(self) -> None:
        """Put the file aside under its revisions and go on with what is in force; at every moment one of the two is the journal."""
        fresh = records.header(self.revision, self._node, self._overrides.all())
        if self._text is not None:
            fresh += records.dump({"config": self._text, "revision": self.revision, "at": self._now()})
        temporary = f"{self.path}.new"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, fresh) < len(fresh):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
            aside = f"{self.path.removesuffix('.jsonl')}-{self._first}-{self.revision}.jsonl"
            with contextlib.suppress(FileExistsError):
                os.link(self.path, aside)
            os.rename(temporary, self.path)
        except OSError:
            os.close(file)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        # At once: whatever fails from here on, the next line must go where the name leads.
        os.close(self._file)
        self._file, self._length, self._first = file, len(fresh), self.revision
        sync_directory(os.path.dirname(self.path))

    def read_again(self, *, is_ours: bool) -> None:
        """Another supervisor wrote; `is_ours`: it does not any more, so that we may. `OSError` when that cannot be."""
        self.close()
        self._is_ours = is_ours
        known = self._records, self._overrides, self._text, self.revision
        self._records, self._overrides, self._text, self.revision = deque(maxlen=KEPT_ENTRIES), Overrides(), None, 0
        try:
            self._open()
        except OSError:
            self._records, self._overrides, self._text, self.revision = known
            raise

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def older_files(path: str) -> list[str]:
    """What compaction put aside, newest first."""
    stem = path.removesuffix(".jsonl")
    found = [(re.fullmatch(r"(\d+)-(\d+)", p[len(stem) + 1 : -6]), p) for p in glob.glob(glob.escape(stem) + "-*.jsonl")]
    return [path for _, _, path in sorted(((int(m[1]), int(m[2]), path) for m, path in found if m), reverse=True)]


def overrides_in(parsed: Parsed, revision: int) -> Overrides:
    """The live values in force at `revision`."""
    overrides = Overrides()
    overrides.add(parsed.overrides)
    for record in parsed.records:
        if record.entry.revision <= revision:
            overrides.drop(record.superseded)
            overrides.add(record.overrides)
    return overrides


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sync_directory(path: str) -> None:
    """Make a creation or renaming in `path` durable."""
    directory = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
