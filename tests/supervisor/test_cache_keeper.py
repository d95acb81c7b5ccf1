"""The disk cache stays within its limits, and nobody waits for that."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache import files
from twistedproxy.http.cache.arena import Arena
from twistedproxy.http.cache.disk import Disk
from twistedproxy.http.cache.geometry import MIN_BYTES
from twistedproxy.supervisor.cache_keeper import CacheKeeper


def key(n: int) -> bytes:
    return hashlib.md5(b"%d" % n).digest()


class CacheKeeperTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.disk = Disk(self.directory, time.monotonic)
        self.now = time.time()
        self.slept = 0.0
        self.in_thread: list[Callable[[], None]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.events: list[dict[str, Any]] = []

    def keeper(self, most_bytes: int = 1 << 30, most_objects: int = 1000, arena_bytes: int = 0) -> CacheKeeper:
        return CacheKeeper(
            self.directory,
            most_bytes=most_bytes,
            most_objects=most_objects,
            arena_bytes=arena_bytes,
            call_later=lambda delay, f: self.later.append((delay, f)),
            in_thread=self.in_thread.append,
            from_thread=lambda f: f(),
            now=lambda: self.now,
            sleep=self.sleep,
            log=Logger(namespace="test", observer=self.events.append),
        )

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def store(self, n: int, size: int = 4000, age_s: float = 0) -> Path:
        self.assertTrue(self.disk.write(key(n), b"m", b"x" * size))
        path = Path(files.object_path(self.directory, key(n)))
        os.utime(path, (self.now - age_s, path.stat().st_mtime))
        return path

    def test_it_counts_what_is_there_in_a_thread_and_again_after_a_pause(self) -> None:
        """Start-up waits for nothing; the totals are exact after the first count and follow what comes and goes."""
        paths = [self.store(n) for n in range(300)]
        keeper = self.keeper()
        keeper.start()
        self.assertFalse(keeper.totals.is_counted)
        self.in_thread.pop()()
        totals = keeper.totals
        self.assertEqual((totals.is_counted, totals.disk_objects, totals.evictions), (True, 300, 0))
        self.assertEqual(totals.disk_bytes, sum(path.stat().st_blocks for path in paths) * 512)
        self.assertGreater(self.slept, 0, "it rests between steps")
        paths[0].unlink()
        self.store(1000)
        self.store(1001)
        delay, again = self.later.pop()
        self.assertGreaterEqual(delay, 2)
        again()
        self.in_thread.pop()()
        self.assertEqual(keeper.totals.disk_objects, 301)
        keeper.stop()
        self.later.pop()[1]()
        self.assertEqual(self.in_thread, [])

    def test_only_directories_in_which_something_changed_are_counted_again(self) -> None:
        """A million files cost nothing while nothing happens."""
        for n in range(50):
            self.store(n)
        self.now += 10
        keeper = self.keeper()
        keeper.tend()
        looked: list[str] = []
        scandir = os.scandir
        self.patch(os, "scandir", lambda path: looked.append(path) or scandir(path))
        path = self.store(99)
        os.utime(path.parent, (self.now, self.now - 5))
        keeper.tend()
        self.assertEqual([each for each in looked if "objects" in each], [str(path.parent)])
        self.assertEqual(keeper.totals.disk_objects, 51)

    def test_over_a_limit_the_least_recently_used_go_until_nine_tenths_are_left(self) -> None:
        """By bytes and by number; what was used in the meantime stays, also when the clock was set back since."""
        paths = {n: self.store(n, age_s=3600 * (100 - n)) for n in range(100)}
        os.utime(paths[0], (self.now + 86400, self.now))
        each = paths[1].stat().st_blocks * 512
        keeper = self.keeper(most_bytes=80 * each)
        keeper.tend()
        left = {n for n, path in paths.items() if path.exists()}
        self.assertTrue(68 <= len(left) <= 72, len(left))
        self.assertIn(0, left)
        gone = set(paths) - left
        self.assertGreater(min(left - {0}) + 8, max(gone), "the oldest, but for one step of age")
        self.assertEqual((keeper.totals.disk_objects, keeper.totals.evictions), (len(left), len(gone)))
        self.assertEqual(keeper.totals.disk_bytes, len(left) * each)
        keeper.limit(1 << 30, 50)
        keeper.tend()
        self.assertTrue(43 <= sum(path.exists() for path in paths.values()) <= 45)
        before = keeper.totals
        keeper.tend()
        self.assertEqual(keeper.totals, before, "enough is enough")

    def test_what_dead_workers_left_is_cleared_away(self) -> None:
        """Not what is being written, nor what began this very moment."""
        growing = self.disk.writer(key(1), b"m")
        assert growing is not None
        growing.write(b"x" * 10_000)
        dead = Path(files.fill_path(self.directory, key(2), 1, 0))
        dead.write_bytes(b"half")
        keeper = self.keeper()
        keeper.tend()
        self.assertTrue(dead.exists(), "its writer may not have locked it yet")
        self.now += 60
        keeper.tend()
        self.assertEqual((dead.exists(), os.path.exists(growing.path), keeper.totals.leftovers), (False, True, 1))
        self.assertGreaterEqual(keeper.totals.disk_bytes, 10_000, "what is on its way counts")
        self.assertTrue(growing.finish())

    def test_memory_files_of_another_size_are_removed_and_the_right_one_is_counted(self) -> None:
        arena = Arena.open(self.directory, MIN_BYTES)
        self.addCleanup(arena.close)
        arena.own(1)
        arena.put(key(1), b"m", b"x" * 63)
        others = [Path(self.directory, name) for name in ("memory-8388608.arena", "memory-8388608.arena.new")]
        stranger = Path(self.directory, "memory.txt")
        for path in (*others, stranger):
            path.write_bytes(b"")
        keeper = self.keeper(most_bytes=0, arena_bytes=MIN_BYTES)
        keeper.tend()
        self.assertEqual((keeper.totals.memory_bytes, keeper.totals.memory_objects), (128, 1))
        self.assertEqual([path.exists() for path in (*others, stranger)], [False, False, True])
        self.assertTrue(os.path.exists(os.path.join(self.directory, arena.geometry.name)))

    def test_a_directory_that_cannot_be_read_is_said_once_and_tried_again(self) -> None:
        keeper = self.keeper()
        keeper.directory = os.path.join(self.directory, "gone")
        for _ in range(3):
            keeper.start()
            self.in_thread.pop()()
            self.later.pop()
        self.assertEqual((keeper.totals.failures, len(self.events)), (3, 1))
        self.assertIn("gone", str(self.events[0]))
