"""The journal: what was acknowledged is there after any crash (faults: P17, P11)."""

from __future__ import annotations

import errno
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.changes import Change, SetState, SetWeight
from twistedproxy.config.control import Entry
from twistedproxy.config.model import Address, AdminState, Model, Pool, Server
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor import journal as module
from twistedproxy.supervisor import records
from twistedproxy.supervisor.journal import Journal

A = Address("10.0.0.1:80")
FILE = Model(pools={"web": Pool("web", (Server(A),))})
NOW = 1_800_000_000.0


def at_once(work: Callable[[], None]) -> Deferred[None]:
    work()
    return succeed(None)


def write_for_ever(path: str, acks: int) -> None:
    """A process of its own: append changes and say which revisions were acknowledged, until killed."""
    try:
        journal = Journal(path, at_once, lambda: NOW)
        model = journal.replay(FILE).model
        while True:
            change = SetWeight("web", A, (journal.revision + 1) % 1000)
            Deferred.fromCoroutine(journal.append(model, change, by="writer", reason="x" * 300))
            model = changes.apply(model, change)
            os.write(acks, f"{journal.revision}\n".encode())
    finally:
        os._exit(1)


def compact_and_die(path: str, step: str, is_before: bool) -> None:
    """A process of its own: begin to compact, and be killed before or after the first `os.STEP` that it does then."""
    try:
        journal = Journal(path, at_once, lambda: NOW)
        journal.replay(FILE)
        real = getattr(os, step)

        def killed(*arguments: Any, **more: Any) -> Any:
            if not is_before:
                real(*arguments, **more)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(module.os, step, killed)
        journal._compact()
    finally:
        os._exit(1)


class JournalTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / "journal.jsonl"
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def open(self) -> Journal:
        journal = Journal(str(self.path), at_once, lambda: NOW)
        self.addCleanup(journal.close)
        journal.replay(FILE)
        return journal

    def append(self, journal: Journal, change: Change, model: Model = FILE, by: str = "eve", reason: str = "") -> Entry:
        return self.successResultOf(Deferred.fromCoroutine(journal.append(model, change, by=by, reason=reason)))

    def weight(self, journal: Journal) -> int:
        return journal.replay(FILE).model.pools["web"].servers[0].weight_now

    def written(self, count: int) -> bytes:
        journal = self.open()
        for n in range(1, count + 1):
            self.append(journal, SetWeight("web", A, n))
        journal.close()
        return self.path.read_bytes()

    def said(self, level: LogLevel) -> bool:
        return any(event.get("log_level") is level for event in self.events)


class JournalTests(JournalTestCase):
    def test_a_change_survives_a_restart_and_revisions_go_on(self) -> None:
        journal = self.open()
        journal.replay(FILE)
        entry = self.append(journal, SetWeight("web", A, 5), reason="cache warm")
        journal.close()
        again = self.open()
        self.assertEqual((self.weight(again), again.revision), (5, 1))
        self.assertEqual(again.entries(), [entry])
        self.assertEqual(self.append(again, SetState("web", A, AdminState.DRAIN)).revision, 2)
        self.assertEqual([e.revision for e in again.entries(after=1)], [2])

    def test_a_reason_is_one_line(self) -> None:
        """A line end in it would forge a row of `revproxy changes`."""
        entry = self.append(self.open(), SetWeight("web", A, 5), reason="ok\n9 eve \x1b[2Jnothing\r")
        self.assertEqual(entry.reason, "ok 9 eve  [2Jnothing ")

    def test_entries_say_who_when_why_before_and_after(self) -> None:
        journal = self.open()
        entry = self.append(journal, SetWeight("web", A, 5), by="admin", reason="cache warm")
        self.assertEqual((entry.at, entry.by, entry.reason), ("2027-01-15T08:00:00.000Z", "admin", "cache warm"))
        self.assertEqual(entry.change, {"kind": "set_weight", "pool": "web", "server": A, "before": 1, "after": 5})

    def test_watchers_hear_of_new_entries_until_they_leave(self) -> None:
        journal = self.open()
        heard: list[int] = []
        leave = journal.watch(lambda entry: heard.append(entry.revision))
        self.append(journal, SetWeight("web", A, 5))
        leave()
        self.append(journal, SetWeight("web", A, 6))
        self.assertEqual(heard, [1])

    def test_the_file_is_for_its_owner_alone(self) -> None:
        self.written(1)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_it_is_durable_before_it_is_acknowledged(self) -> None:
        synced: list[int] = []
        real = os.fsync
        self.patch(os, "fsync", lambda fd: (synced.append(self.path.stat().st_size), real(fd)))
        journal = self.open()
        self.append(journal, SetWeight("web", A, 5))
        self.assertEqual(synced[-1], self.path.stat().st_size)
        self.assertEqual(len(synced), 3)  # header, directory, change

    def test_truncated_at_every_byte_it_keeps_every_complete_change(self) -> None:
        """Wherever a crash cut the file: it opens, keeps what was complete, and goes on."""
        self.patch(os, "fsync", lambda fd: None)
        data = self.written(2)
        for length in range(len(data) + 1):
            self.path.write_bytes(data[:length])
            journal = self.open()
            ended = data[: length + 1] if data[length : length + 1] == b"\n" else data[:length]
            complete = max(0, ended.count(b"\n") - 1)
            self.assertEqual(journal.revision, complete, length)
            self.append(journal, SetWeight("web", A, 900))
            journal.close()
            again = self.open()
            self.assertEqual((again.revision, self.weight(again)), (complete + 1, 900), length)
            again.close()
        self.assertEqual(list(self.directory.glob("*.corrupt*")), [])

    def test_a_torn_last_line_is_told(self) -> None:
        data = self.written(2)
        self.path.write_bytes(data[:-20])
        self.open()
        self.assertTrue(self.said(LogLevel.warn))

    def test_corruption_sets_the_file_aside_and_starts_from_the_configuration_p11(self) -> None:
        """The operator's file is kept for inspection, the revision does not go backwards, the log is loud."""
        data = self.written(3)
        lines = data.split(b"\n")
        broken = [
            b"\n".join([lines[0], b"\0" * 40, *lines[2:]]),
            b"\n".join([lines[0], lines[2], lines[1], *lines[3:]]),
            b"\n".join([lines[0], lines[1], lines[1], *lines[2:]]),
            b"\n".join([lines[0], lines[1].replace(b'"set_weight","pool"', b'"set_colour","pool"', 2), *lines[2:]]),
            b"\n".join([lines[0].replace(b'"journal":1', b'"journal":2'), *lines[1:]]),
            b"\n".join([lines[0], lines[1], b"[1]", *lines[3:]]),
            b"\n".join([lines[0], lines[1], b"[" * 100_000, *lines[3:]]),
            b"\n".join([lines[0], lines[1], b'{"revision":2}', *lines[3:]]),
            b"\xff\xfe" + data,
            b"\n".join(lines[1:]),
        ]
        for number, text in enumerate(broken, 1):
            self.path.write_bytes(text)
            self.events.clear()
            journal = self.open()
            self.assertEqual(self.weight(journal), 1, text[:80])
            self.assertEqual(journal.revision, 3)
            aside = [p for p in self.directory.glob("journal.jsonl.corrupt-20270115T080000Z*") if p.read_bytes() == text]
            self.assertEqual(len(aside), 1)
            self.assertEqual(len(list(self.directory.glob("*.corrupt*"))), number)
            self.assertTrue(self.said(LogLevel.critical))
            self.assertEqual(self.append(journal, SetWeight("web", A, 8)).revision, 4)
            journal.close()
            again = self.open()
            self.assertEqual((again.revision, self.weight(again)), (4, 8))
            again.close()

    def test_a_full_disk_refuses_the_change_and_leaves_the_file_as_it_was(self) -> None:
        journal = self.open()
        self.append(journal, SetWeight("web", A, 5))
        before = self.path.read_bytes()
        real = os.pwrite

        calls = 0

        def partly(fd: int, data: bytes, offset: int) -> int:
            nonlocal calls
            calls += 1
            if calls == 1:
                return real(fd, data[:10], offset)
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(module.os, "pwrite", partly)
        refused = self.failureResultOf(
            Deferred.fromCoroutine(journal.append(FILE, SetWeight("web", A, 6), by="eve", reason="")), ChangeRefused
        ).value
        self.assertEqual(refused.status, 503)
        self.assertIn("No space left", refused.message)
        self.assertEqual(self.path.read_bytes(), before)
        self.assertEqual(journal.revision, 1)
        self.patch(module.os, "pwrite", real)
        self.assertEqual(self.append(journal, SetWeight("web", A, 7)).revision, 2)

    def test_killed_at_any_moment_nothing_acknowledged_is_lost_p17(self) -> None:
        """200 times kill -9 while changes are written and the file is compacted: it opens each time and holds all that was acknowledged."""
        self.patch(module, "COMPACT_BYTES", 4096)  # some six changes: the kill often comes in the middle of it
        acknowledged = 0
        seeded = random.Random(17)
        for _ in range(200):
            reading, writing = os.pipe()
            writer = os.fork()
            if not writer:
                write_for_ever(str(self.path), writing)
            os.close(writing)
            with open(reading, "rb") as acks:
                for _ in range(seeded.randrange(1, 12)):
                    acknowledged = int(acks.readline())
                time.sleep(seeded.random() / 2000)  # into the middle of a write, not only after one
                os.kill(writer, signal.SIGKILL)
                os.waitpid(writer, 0)
                acknowledged = int([acknowledged, *acks.read().split()][-1])
            journal = self.open()
            self.assertIn(journal.revision, (acknowledged, acknowledged + 1))
            self.assertEqual(self.weight(journal), journal.revision % 1000)
            journal.close()
            acknowledged = journal.revision
        self.assertEqual(list(self.directory.glob("*.corrupt*")), [])
        # Every change ever acknowledged is still there to be read, in the rotated files or in the journal.
        rotated = sorted(self.directory.glob("journal-*.jsonl"))
        self.assertGreater(len(rotated), 20)
        kept = {r.entry.revision for path in (*rotated, self.path) for r in records.parse(path.read_bytes()).records}
        self.assertEqual(kept, set(range(1, acknowledged + 1)))

    def test_killed_at_every_step_of_a_compaction(self) -> None:
        """Before and after each thing that it does on the disk: the journal opens, nothing is lost, and the next one succeeds."""
        for step in ("open", "write", "fsync", "link", "rename"):
            for is_before in (True, False):
                for path in self.directory.iterdir():
                    path.unlink()
                self.written(3)
                child = os.fork()
                if not child:
                    compact_and_die(str(self.path), step, is_before)
                self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), -signal.SIGKILL, step)
                with self.subTest(step, is_before=is_before):
                    journal = self.open()
                    self.assertEqual((journal.revision, self.weight(journal)), (3, 3))
                    self.assertEqual([e.revision for e in journal.entries()], [1, 2, 3])
                    self.patch(module, "COMPACT_BYTES", 1)
                    self.assertEqual(self.append(journal, SetWeight("web", A, 4)).revision, 4)
                    self.patch(module, "COMPACT_BYTES", 1 << 20)
                    journal.close()
                    again = self.open()
                    self.assertEqual((again.revision, self.weight(again), [e.revision for e in again.entries()]), (4, 4, [1, 2, 3, 4]))
                    again.close()
        self.assertEqual(list(self.directory.glob("*.corrupt*")), [])

    def test_a_disk_that_fills_up_while_compacting_refuses_the_change_and_keeps_the_journal(self) -> None:
        journal = self.open()
        self.append(journal, SetWeight("web", A, 5))
        before = self.path.read_bytes()
        self.patch(module, "COMPACT_BYTES", 1)

        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        real = os.write
        self.patch(module.os, "write", full)
        refused = self.failureResultOf(
            Deferred.fromCoroutine(journal.append(FILE, SetWeight("web", A, 6), by="eve", reason="")), ChangeRefused
        ).value
        self.patch(module.os, "write", real)
        self.assertEqual((refused.status, self.path.read_bytes(), journal.revision), (503, before, 1))
        self.assertEqual(sorted(p.name for p in self.directory.iterdir()), ["journal.jsonl"])
        self.assertEqual(self.append(journal, SetWeight("web", A, 7)).revision, 2)
        self.assertEqual([e.revision for e in self.open().entries()], [1, 2])

    def test_a_compaction_that_fails_at_its_last_step_loses_nothing_later(self) -> None:
        """The new file has the name already: what is acknowledged from then on must not go into the old one."""
        journal = self.open()
        self.append(journal, SetWeight("web", A, 5))
        real = module.sync_directory

        def broken(path: str) -> None:
            raise OSError(errno.EIO, "Input/output error")

        self.patch(module, "COMPACT_BYTES", 1)
        self.patch(module, "sync_directory", broken)
        self.failureResultOf(Deferred.fromCoroutine(journal.append(FILE, SetWeight("web", A, 6), by="eve", reason="")), ChangeRefused)
        self.patch(module, "sync_directory", real)
        self.patch(module, "COMPACT_BYTES", 1 << 20)
        self.assertEqual(self.append(journal, SetWeight("web", A, 7)).revision, 2)
        again = self.open()
        self.assertEqual((again.revision, self.weight(again), [e.revision for e in again.entries()]), (2, 7, [1, 2]))

    def test_one_that_cannot_be_read_again_knows_what_it_knew(self) -> None:
        """After a successor that failed: revisions do not begin anew."""
        journal = self.open()
        self.append(journal, SetWeight("web", A, 5))

        def broken(journal: Journal) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(Journal, "_open", broken)
        self.assertRaises(OSError, journal.read_again, is_ours=True)
        self.assertEqual((journal.revision, self.weight(journal), len(journal.entries())), (1, 5, 1))

    def test_a_batch_is_one_revision(self) -> None:
        journal = self.open()
        batch = changes.Batch((SetWeight("web", A, 2), SetState("web", A, AdminState.MAINT)))
        self.assertEqual(self.append(journal, batch).revision, 1)
        server = journal.replay(FILE).model.pools["web"].servers[0]
        self.assertEqual((server.weight_now, server.state), (2, AdminState.MAINT))
