"""The way from memory to disk: bounded, in order, and nothing is forgotten in it."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.arena import Arena, Place
from twistedproxy.http.cache.disk import Disk
from twistedproxy.http.cache.geometry import MIN_BYTES
from twistedproxy.http.cache.spill import MOST_WAITING, MOST_WAITING_BYTES, Spill


def key(n: object) -> bytes:
    return hashlib.md5(str(n).encode()).digest()


class SpillTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = self.enterContext(tempfile.TemporaryDirectory())
        self.jobs: list[Callable[[], object]] = []
        self.arena = Arena.open(directory, MIN_BYTES)
        self.addCleanup(self.arena.close)
        self.arena.own(1)
        self.disk = Disk(directory, time.monotonic)
        self.spill = Spill(self.arena, self.disk, self.jobs.append)

    def place(self, n: object, meta: bytes = b"m", body: bytes = b"x") -> Place:
        place = self.arena.put(key(n), meta, body)
        assert place is not None
        return place

    def is_on_disk(self, n: object) -> bool:
        return self.disk.open(key(n)) is not None

    def test_one_thread_at_a_time_does_all_that_waits(self) -> None:
        for n in range(3):
            self.spill.write(self.place(n), b"m", b"x")
        self.spill.unlink(key("other"))
        self.assertEqual(len(self.jobs), 1)
        self.jobs.pop()()
        self.assertEqual((self.spill.written, [self.is_on_disk(n) for n in range(3)]), (3, [True] * 3))
        self.spill.unlink(key(1))
        self.assertEqual(len(self.jobs), 1, "the thread had ended")
        self.jobs.pop()()
        self.assertFalse(self.is_on_disk(1))

    def test_what_was_forgotten_or_replaced_meanwhile_is_not_written(self) -> None:
        self.spill.write(self.place(1), b"m", b"x")
        self.spill.write(self.place(2), b"m", b"x")
        self.spill.forget(key(1))
        self.place(2, b"newer")
        self.jobs.pop()()
        self.assertEqual((self.spill.written, self.is_on_disk(1), self.is_on_disk(2)), (0, False, False))

    def test_a_removal_that_waits_does_not_hit_what_is_newer(self) -> None:
        self.spill.unlink(key(1))
        self.spill.unlink(key(1))
        self.assertEqual(len(self.spill._outdated), 1)
        self.disk.write(key(1), b"newer", b"x")
        self.spill.forget(key(1))  # as the store does whenever something is written
        self.jobs.pop()()
        self.assertTrue(self.is_on_disk(1))

    def test_what_waits_is_bounded_in_number_and_bytes(self) -> None:
        place = self.place(1)
        for size in (1, 100_000):
            spill = Spill(self.arena, self.disk, self.jobs.append)
            for n in range(3000):
                place.key = key(n)
                spill.write(place, b"m", b"x" * size)
            kept = min(MOST_WAITING, MOST_WAITING_BYTES // (size + 1))
            self.assertEqual((len(spill._waiting), spill._waiting_bytes), (kept, kept * (size + 1)))
            self.assertEqual(spill.not_written, 3000 - kept)
            for n in range(3000):
                spill.forget(key(n))
            self.assertEqual((spill._waiting, spill._waiting_bytes), ({}, 0))

    def test_a_disk_that_fails_is_counted_and_one_that_breaks_stops_nothing_for_good(self) -> None:
        self.patch(self.disk, "write", lambda *_: False)
        self.spill.write(self.place(1), b"m", b"x")
        self.jobs.pop()()
        self.assertEqual((self.spill.written, self.spill.not_written), (0, 1))

        def broken(_: bytes) -> bool:
            raise RuntimeError("broken")

        self.patch(self.disk, "remove", broken)
        self.spill.unlink(key(1))
        self.assertRaises(RuntimeError, self.jobs.pop())
        self.spill.unlink(key(2))
        self.assertEqual(len(self.jobs), 1, "the next one gets a thread again")

    def test_nothing_is_left_behind_when_work_comes_in_the_moment_the_thread_ends(self) -> None:
        """What is outdated on disk would be found again once memory drops the newer version."""
        threads: list[threading.Thread] = []

        def in_thread(work: Callable[[], object]) -> None:
            threads.append(threading.Thread(target=work))
            threads[-1].start()

        removed: list[bytes] = []
        self.patch(self.disk, "remove", removed.append)
        spill = Spill(self.arena, self.disk, in_thread)
        for n in range(5000):
            spill.unlink(key(n))
            if n % 50 == 0:
                time.sleep(0)
        for thread in threads:
            thread.join(10)
        self.assertEqual(removed, [key(n) for n in range(5000)])
