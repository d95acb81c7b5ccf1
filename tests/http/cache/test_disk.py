"""The disk tier: whole objects or none, whatever happens to the disk."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache import files
from twistedproxy.http.cache.disk import Disk, Reader, Writer

KEY = hashlib.md5(b"an object").digest()
OTHER = hashlib.md5(b"another object").digest()
BLOCK = files.BLOCK


class DiskTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.seconds = 0.0
        self.now = 1_800_000_000.0
        self.events: list[dict[str, Any]] = []
        self.disk = self.another()

    def another(self) -> Disk:
        """As another process, or this one after a restart, would have it."""
        return Disk(self.directory, lambda: self.seconds, lambda: self.now, Logger(namespace="test", observer=self.events.append))

    def writer(self, key: bytes = KEY, meta: bytes = b"meta") -> Writer:
        writer = self.disk.writer(key, meta)
        assert writer is not None
        return writer

    def opened(self, disk: Disk | None = None, key: bytes = KEY) -> Reader:
        reader = (disk or self.disk).open(key)
        assert reader is not None
        return reader

    def path(self, key: bytes = KEY) -> Path:
        return Path(files.object_path(self.directory, key))

    def unfinished(self) -> list[str]:
        return os.listdir(os.path.join(self.directory, files.FILLS))


class StoringTests(DiskTestCase):
    @given(st.binary(max_size=5000), st.lists(st.integers(0, 2 * BLOCK), max_size=4), st.data())
    @settings(max_examples=15, deadline=None, derandomize=True)
    def test_what_was_written_is_read(self, meta: bytes, parts: list[int], data: st.DataObject) -> None:
        """In parts of any size; any range of it; by another process after a restart."""
        body = bytes(range(251)) * (sum(parts) // 251 + 1)
        writer = self.writer(meta=meta)
        at = 0
        for part in parts:
            self.assertTrue(writer.write(body[at : at + part]))
            at += part
        self.assertTrue(writer.finish())
        reader = self.opened(self.another())
        self.assertEqual((reader.meta, reader.length, reader.state()), (meta, at, "complete"))
        offset = data.draw(st.integers(0, at))
        count = data.draw(st.integers(0, at - offset))
        self.assertTrue(reader.verify(offset, count))
        self.assertEqual(reader.read(offset, count), body[offset : offset + count])
        self.assertEqual(os.pread(reader.fd, count, reader.body_offset + offset), body[offset : offset + count], "as sendfile does")
        self.assertEqual(reader.whole(), body[:at])
        self.assertEqual(reader.read(at, 10), b"", "the checksums behind are no body")

    def test_a_newer_object_replaces_the_older_in_one_step(self) -> None:
        """Who reads the old one reads it to its end."""
        self.disk.write(KEY, b"old", b"old body")
        old = self.opened()
        self.disk.write(KEY, b"new", b"new body")
        self.assertEqual((old.whole(), old.is_linked), (b"old body", False))
        self.assertEqual(self.opened().whole(), b"new body")
        self.assertTrue(self.disk.has(KEY, b"new", 8))
        self.assertFalse(self.disk.has(KEY, b"old", 8))
        self.assertTrue(self.disk.remove(KEY))
        self.assertFalse(self.disk.remove(KEY))
        self.assertIsNone(self.disk.open(KEY))
        self.assertFalse(self.disk.has(KEY, b"new", 8))

    def test_a_file_that_is_held_open_is_looked_at_before_it_is_sent(self) -> None:
        """Good, and used now; damaged; cut off; removed."""
        self.disk.write(KEY, b"m", b"x" * 5000)
        reader = self.opened()
        self.assertTrue(reader.is_ready(self.now))
        self.now += 100
        self.assertTrue(reader.is_ready(self.now))
        self.assertEqual(self.path().stat().st_atime, self.now)
        os.truncate(self.path(), 3000)
        self.assertFalse(reader.is_ready(self.now) or reader.is_linked)
        self.disk.write(KEY, b"m", b"y" * 5000)
        reader = self.opened()
        with self.path().open("r+b") as file:
            file.seek(4000)
            file.write(b"spoilt")
        self.assertEqual([reader.is_ready(self.now), reader.is_ready(self.now), self.disk.corrupt], [False, False, 1])
        self.disk.write(KEY, b"m", b"z" * 5000)
        reader = self.opened()
        self.assertTrue(reader.is_ready(self.now))
        self.disk.remove(KEY)
        self.assertFalse(reader.is_ready(self.now))

    def test_files_are_private_and_the_last_reference_closes_them(self) -> None:
        self.disk.write(KEY, b"m", b"x")
        self.assertEqual(self.path().stat().st_mode & 0o777, 0o600)
        reader = self.opened()
        fd = reader.fd
        del reader
        gc.collect()
        self.assertRaises(OSError, os.fstat, fd)

    def test_the_last_use_is_noted_once_a_minute_and_a_clock_that_jumps_does_no_harm(self) -> None:
        """Also for readers that stay open; the time of modification, which tells files apart, never changes."""
        self.disk.write(KEY, b"m", b"x")
        reader = self.opened()
        mtime = self.path().stat().st_mtime_ns
        for step, noted in ((0, True), (59, False), (2, True), (-86400, True), (30, False), (3600, True)):
            before = self.path().stat().st_atime
            self.now += step
            reader.used()
            self.assertEqual(self.path().stat().st_atime, self.now if noted else before, step)
        self.assertEqual(self.path().stat().st_mtime_ns, mtime)


class GrowingTests(DiskTestCase):
    def test_others_read_an_object_while_it_arrives(self) -> None:
        """Meta at once, the body as it comes, the end when it is there, and the same after it was renamed."""
        writer = self.writer()
        follower = self.another().follow(writer.path)
        assert follower is not None
        self.assertEqual((follower.meta, follower.length, follower.available(), follower.state()), (b"meta", None, 0, "growing"))
        writer.write(b"first ")
        self.assertEqual((follower.available(), follower.read(0, 100), follower.state()), (6, b"first ", "growing"))
        self.assertIsNone(self.disk.open(KEY), "nobody else finds it before it is complete")
        writer.write(b"second")
        writer.finish()
        self.assertEqual((follower.read(6, 100), follower.state(), follower.length), (b"second", "complete", 12))
        self.assertTrue(follower.verify(0, 12))
        self.assertIsNone(self.disk.follow(writer.path))

    def test_an_object_that_is_given_up_is_broken_for_those_who_read_it(self) -> None:
        writer = self.writer()
        writer.write(b"half")
        follower = self.disk.follow(writer.path)
        assert follower is not None
        writer.abort()
        self.assertEqual((follower.state(), follower.read(0, 10)), ("broken", b""))
        self.assertEqual((writer.write(b"more"), writer.finish(), self.unfinished(), self.disk.open(KEY)), (False, False, [], None))

    def test_a_writer_that_is_killed_leaves_nothing_that_is_believed(self) -> None:
        """kill -9: followers see at once that nobody writes any more."""
        code = (
            "import sys, time\nfrom twistedproxy.http.cache.disk import Disk\n"
            "w = Disk(sys.argv[1], time.monotonic).writer(bytes.fromhex(sys.argv[2]), b'meta')\n"
            "w.write(b'half')\nprint(w.path, flush=True)\nsys.stdin.read()\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        with subprocess.Popen(
            [sys.executable, "-c", code, self.directory, KEY.hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            assert process.stdout is not None
            path = process.stdout.readline().strip()
            follower = self.disk.follow(path)
            assert follower is not None
            self.assertEqual((follower.state(), follower.read(0, 10)), ("growing", b"half"))
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.assertEqual(follower.state(), "broken")
        self.assertIsNone(self.disk.open(KEY))


class DamageTests(DiskTestCase):
    def test_a_flipped_bit_anywhere_is_a_miss_and_counted_and_the_file_goes(self) -> None:
        """Head, meta, body, checksums: never a wrong byte."""
        body = b"x" * (BLOCK + 100)
        self.disk.write(KEY, b"meta", body)
        good = self.path().read_bytes()
        for count, at in enumerate((0, 9, 17, 30, 42, 50, 65, 70, BLOCK + 80, len(good) - 10, len(good) - 1), 1):
            bad = bytearray(good)
            bad[at] ^= 4
            self.path().write_bytes(bad)
            reader = self.disk.open(KEY)
            if reader is not None:
                fine = [reader.verify(0, 10), reader.verify(BLOCK, 10)]
                self.assertIn(False, fine)
                self.assertEqual((reader.state(), reader.read(0, 10), reader.whole()), ("broken", b"", None))
            self.assertFalse(self.path().exists(), at)
            self.assertEqual(self.disk.corrupt, count)
        self.assertEqual(len(self.events), 4, "a dying disk does not fill the log: the 1st, 2nd, 4th and 8th")

    def test_a_file_cut_short_or_under_a_wrong_name_is_a_miss(self) -> None:
        self.disk.write(KEY, b"meta", b"x" * 1000)
        good = self.path().read_bytes()
        self.path(OTHER).parent.mkdir(exist_ok=True)
        for key, content in ((KEY, good[:-1]), (KEY, good[:30]), (KEY, b""), (KEY, good + b"more"), (OTHER, good)):
            self.path(key).write_bytes(content)
            self.assertIsNone(self.disk.open(key))
            self.assertFalse(self.path(key).exists())
        self.assertEqual(self.disk.corrupt, 5)

    def test_what_was_found_good_is_not_looked_at_again_until_the_file_is_another(self) -> None:
        """So that a hit may go out with sendfile; after a replacement the new file is checked."""
        self.disk.write(KEY, b"meta", b"x" * 1000)
        self.assertTrue(self.opened().verify(0, 1000))
        status = self.path().stat()
        with self.path().open("r+b") as file:
            file.seek(100)
            file.write(b"y")
        os.utime(self.path(), ns=(status.st_atime_ns, status.st_mtime_ns))
        self.assertTrue(self.opened().verify(0, 1000), "remembered")
        self.assertFalse(self.opened(self.another()).verify(0, 1000), "not by another process")
        self.disk.write(KEY, b"meta", b"z" * 1000)
        with self.path().open("r+b") as file:
            file.seek(100)
            file.write(b"y")
        self.assertFalse(self.opened().verify(0, 1000))

    def test_a_damaged_file_that_was_replaced_meanwhile_is_not_removed(self) -> None:
        self.disk.write(KEY, b"meta", b"x" * 1000)
        data = bytearray(self.path().read_bytes())
        data[200] ^= 1
        self.path().write_bytes(data)
        reader = self.opened()
        self.disk.write(KEY, b"meta", b"good")
        self.assertFalse(reader.verify(0, 1000))
        self.assertEqual(self.opened().whole(), b"good")


class FailureTests(DiskTestCase):
    def limit_file_size(self, size: int) -> None:
        """Stands for a full disk: writing beyond is an error."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))

    def test_a_full_disk_costs_the_object_and_nothing_else(self) -> None:
        """Not stored, nothing left behind, said once, the disk left alone for 10 s, and used again when it works."""
        self.disk.write(OTHER, b"m", b"there before")
        self.limit_file_size(1 << 20)
        writer = self.writer()
        self.assertTrue(writer.write(b"x" * 500_000))
        self.assertFalse(writer.write(b"x" * 900_000))
        self.assertEqual((writer.write(b"x"), writer.finish(), self.unfinished()), (False, False, []))
        self.assertIsNone(self.disk.writer(KEY, b"m"), "left alone")
        self.assertEqual(self.opened(key=OTHER).whole(), b"there before", "reading goes on")
        self.assertEqual(len(self.events), 1)
        self.seconds += 10
        self.assertFalse(self.disk.write(KEY, b"m", b"x" * (1 << 20)))
        self.assertEqual((len(self.events), self.disk.writing.failures), (1, 2))
        self.seconds += 20
        self.assertTrue(self.disk.write(KEY, b"m", b"small"))
        self.assertEqual(len(self.events), 2)

    def test_a_disk_that_is_full_at_the_very_end_stores_nothing(self) -> None:
        """The body fits, its checksums do not."""
        writer = self.writer()
        self.limit_file_size(64 + 4 + 1000 + 3)
        self.assertTrue(writer.write(b"x" * 1000))
        self.assertFalse(writer.finish())
        self.assertIsNone(self.disk.open(KEY))
        self.assertEqual(self.unfinished(), [])

    def test_a_directory_that_cannot_be_used_means_misses(self) -> None:
        """A file stands where a directory should be: every call answers, the log has one line for writing and one for reading."""
        path = os.path.join(self.directory, "not a directory")
        Path(path).write_text("")
        self.disk = Disk(path, lambda: self.seconds, lambda: self.now, Logger(namespace="test", observer=self.events.append))
        for _ in range(3):
            self.assertIsNone(self.disk.open(KEY))
            self.assertIsNone(self.disk.writer(KEY, b"m"))
            self.assertFalse(self.disk.write(KEY, b"m", b"x"))
            self.assertFalse(self.disk.remove(KEY))
        self.assertEqual(len(self.events), 2)

    def test_read_errors_are_misses(self) -> None:
        """EIO while opening and while verifying."""

        def fails(*_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        self.disk.write(KEY, b"m", b"x" * 100)
        reader = self.opened()
        self.patch(os, "pread", fails)
        self.assertFalse(reader.verify(0, 10))
        self.assertTrue(self.disk.reading.is_open)
        self.assertIsNone(self.disk.open(KEY))
