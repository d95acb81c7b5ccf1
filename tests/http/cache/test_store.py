"""Both tiers behind one face."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.arena import Arena
from twistedproxy.http.cache.disk import Disk
from twistedproxy.http.cache.geometry import MIN_BYTES
from twistedproxy.http.cache.store import Copy, Store


def key(n: object) -> bytes:
    return hashlib.md5(str(n).encode()).digest()


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.jobs: list[Callable[[], object]] = []
        self.store = self.worker()
        self.store.own(1)

    def worker(self, has_arena: bool = True, has_disk: bool = True) -> Store:
        """Another worker of the same machine."""
        arena = Arena.open(self.directory, MIN_BYTES) if has_arena else None
        if arena is not None:
            self.addCleanup(arena.close)
        return Store(arena, Disk(self.directory, time.monotonic) if has_disk else None, self.jobs.append)

    def in_thread(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()

    def file(self, n: object, meta: bytes, body: bytes, store: Store | None = None) -> None:
        writer = (store or self.store).writer(key(n), meta)
        assert writer is not None
        self.assertTrue(writer.write(body) and writer.finish())

    def found(self, n: object, store: Store | None = None) -> Copy:
        copy = (store or self.store).find(key(n))
        assert copy is not None
        return copy

    def gone(self, n: object, *stores: Store) -> None:
        for store in stores or (self.store,):
            self.assertIsNone(store.find(key(n)))

    def test_a_small_object_is_in_memory_for_all_workers(self) -> None:
        """What was decoded is kept with it from its first use on, until somebody replaces or removes it."""
        other = self.worker()
        self.gone(1, self.store, other)
        self.assertIsNotNone(self.store.put(key(1), b"meta", b"body"))
        self.assertEqual(self.store.statistics()["held"], 0)  # most of what is put is never asked for again
        self.found(1).value = "decoded"
        self.assertEqual(self.found(1).value, "decoded")
        copy = self.found(1, other)
        self.assertEqual(
            (copy.meta, copy.length, copy.body(), copy.body(), copy.reader, copy.value), (b"meta", 4, b"body", b"body", None, None)
        )
        copy.value = "decoded here"
        self.assertEqual(self.found(1, other).value, "decoded here")
        self.store.put(key(1), b"meta2", b"body2")
        self.assertEqual((self.found(1, other).body(), self.found(1, other).value), (b"body2", None))
        self.assertTrue(other.remove(key(1)))
        self.gone(1, self.store, other)
        self.assertFalse(other.remove(key(1)))

    def test_a_large_object_is_on_disk_for_all_workers(self) -> None:
        """And takes the place of a small one that was in memory; its file stays open as long as it is good."""
        other = self.worker()
        body = b"x" * 300_000
        self.store.put(key(1), b"small", b"small")
        self.found(1, other)
        self.file(1, b"large", body)
        for store in (self.store, other):
            copy = self.found(1, store)
            assert copy.reader is not None
            self.assertEqual((copy.meta, copy.length, copy.reader.read(0, 400_000)), (b"large", 300_000, body))
            self.assertIs(self.found(1, store), copy)
        self.file(1, b"larger", body + b"y", other)
        self.assertEqual(self.found(1).length, 300_001)
        self.store.remove(key(1))
        self.gone(1, self.store, other)

    def test_what_proves_itself_in_memory_is_on_disk_when_memory_has_dropped_it(self) -> None:
        """Objects used again are written to disk by the thread; a crawl is not."""
        body = b"x" * 1000
        for n in range(20):
            self.store.put(key(n), b"m", body)
            self.found(n)
        for n in range(20, 6000):
            self.store.put(key(n), b"m", body)
        self.in_thread()
        self.assertEqual(self.store.statistics()["spilled"], 20)
        arena = self.store.arena
        assert arena is not None
        for n in range(20):
            arena.remove(key(n))
            self.assertEqual(self.found(n).body(), body)
            self.assertIsNone(self.found(n).reader, "back in memory")

    def test_nothing_that_was_removed_comes_back(self) -> None:
        """Removed while it waits for the disk, after it was written, and while it is carried back to memory."""
        arena, disk = self.store.arena, self.store.disk
        assert arena is not None and disk is not None
        other = self.worker()
        copy = self.store.put(key(1), b"m", b"x")
        assert copy is not None and copy.place is not None
        self.store._spill.write(copy.place, b"m", b"x")
        other.remove(key(1))
        self.in_thread()
        self.gone(1, self.store, other)

        write = disk.write

        def removed_while_written(*arguments: bytes) -> bool:
            other.remove(key(2))
            return write(*arguments)

        copy = self.store.put(key(2), b"m", b"x")
        assert copy is not None and copy.place is not None
        self.store._spill.write(copy.place, b"m", b"x")
        self.patch(disk, "write", removed_while_written)
        self.in_thread()
        self.gone(2, self.store, other)

        self.file(3, b"m", b"x")
        put = arena.put

        def removed_while_carried(*arguments: bytes) -> object:
            os.unlink(os.path.join(self.directory, "objects", key(3).hex()[:2], key(3).hex()))
            return put(*arguments)

        self.patch(arena, "put", removed_while_carried)
        self.store.find(key(3))
        self.patch(arena, "put", put)
        self.gone(3, self.store, other)

    def test_an_older_version_on_disk_does_not_come_back_when_memory_drops_the_newer(self) -> None:
        self.file(1, b"old", b"x" * 100)
        self.store.put(key(1), b"new", b"y")
        self.in_thread()
        arena = self.store.arena
        assert arena is not None
        arena.remove(key(1))
        self.gone(1)

    def test_a_new_object_that_was_missed_before_costs_no_work_on_disk(self) -> None:
        """The common case: a miss, then a put."""
        self.gone(1)
        self.store.put(key(1), b"m", b"x")
        self.assertEqual(self.jobs, [])

    def test_the_meta_of_a_file_is_renewed_without_touching_the_file(self) -> None:
        """A 304 for a large object: all workers see the new meta; another file of the same key does not get it."""
        other = self.worker()
        body = b"x" * 300_000
        self.file(1, b"old", body)
        held = self.found(1, other)
        self.assertEqual(held.meta, b"old")
        renewed = self.store.renew(self.found(1), b"new")
        assert renewed is not None
        self.assertIs(self.found(1), renewed)
        copy = self.found(1, other)
        assert copy.reader is not None
        self.assertEqual((copy.meta, copy.reader.read(0, 10)), (b"new", b"x" * 10))
        self.assertIsNone(other.renew(copy, b"not taken"), "it owns no segment")
        self.store.renew(self.found(1), b"newest")
        self.assertEqual((self.found(1).meta, self.found(1, other).meta), (b"newest", b"newest"))
        self.file(1, b"another", body)
        self.assertEqual((self.found(1).meta, self.found(1, other).meta), (b"another", b"another"))
        small = self.store.put(key(2), b"old", b"small")
        assert small is not None
        self.store.renew(small, b"new")
        self.assertEqual((self.found(2, other).meta, self.found(2, other).body()), (b"new", b"small"))
        self.store.remove(key(2))
        self.assertIsNone(self.store.renew(renewed, b"x"), "gone")

    def test_files_that_are_held_open(self) -> None:
        """The quick look says what `find` says, or nothing: nothing of what is small, was not found yet, was renewed, replaced, removed."""
        other, now, body = self.worker(), time.time(), b"x" * 300_000
        self.store.put(key(0), b"m", b"small")
        self.found(0)
        self.file(1, b"old", body)
        for n in (0, 1):
            self.assertIsNone(self.store.file(key(n), now))
        self.assertIs(self.found(1), self.store.file(key(1), now))
        self.assertEqual(self.found(1, other).meta, b"old")
        self.assertIsNotNone(other.file(key(1), now))
        self.store.renew(self.found(1), b"new")
        self.assertIsNone(other.file(key(1), now))
        self.assertEqual(self.found(1, other).meta, b"new")
        self.assertIs(self.found(1, other), other.file(key(1), now))
        self.file(1, b"another", body)
        self.assertIsNone(other.file(key(1), now))
        self.assertEqual(self.found(1, other).meta, b"another")
        self.store.remove(key(1))
        self.assertIsNone(other.file(key(1), now))
        without = self.worker(has_arena=False)
        self.file(2, b"m", body)
        self.assertIs(self.found(2, without), without.file(key(2), now))

    def test_without_memory_or_without_disk(self) -> None:
        """Each tier works alone, and none at all is a cache that misses."""
        disk_only = self.worker(has_arena=False)
        disk_only.put(key(1), b"m", b"x")
        copy = self.found(1, disk_only)
        self.assertEqual((copy.body(), copy.body(), disk_only.largest_in_memory), (b"x", b"x", 0))
        self.assertIsNone(disk_only.renew(copy, b"n"))
        disk_only.remove(key(1))
        memory_only = self.worker(has_disk=False)
        self.assertIsNone(memory_only.writer(key(1), b"m"))
        self.assertIsNone(memory_only.follow("x"))
        self.store.release()
        memory_only.own(1)
        memory_only.put(key(1), b"m", b"x")
        self.assertEqual(self.found(1, memory_only).body(), b"x")
        nothing = self.worker(False, False)
        self.assertIsNone(nothing.put(key(1), b"m", b"x"))
        self.gone(1, nothing)
        self.assertFalse(nothing.remove(key(1)))

    def test_a_draining_worker_does_not_leave_an_outdated_object_in_memory(self) -> None:
        """It cannot put the new one there: so the old one has to go, and the new one is on disk."""
        other = self.worker()
        self.store.put(key(1), b"m", b"old")
        self.store.release()
        self.assertIsNone(self.store.put(key(1), b"m", b"new"))
        self.assertEqual(self.found(1, other).body(), b"new")

    def test_a_damaged_body_is_a_miss(self) -> None:
        """In memory and on disk."""
        arena = self.store.arena
        assert arena is not None
        copy = self.store.put(key(1), b"m", b"x" * 100)
        assert copy is not None and copy.place is not None
        arena._memory[copy.place.body_at] = 0
        self.gone(1, self.worker(has_disk=False))
        self.file(2, b"m", b"x" * 100)
        path = os.path.join(self.directory, "objects", key(2).hex()[:2], key(2).hex())
        with open(path, "r+b") as file:
            file.seek(70)
            file.write(b"!")
        self.gone(2)
        statistics = self.store.statistics()
        self.assertEqual(statistics["disk_corrupt"], 1)

    def test_what_is_held_is_bounded(self) -> None:
        """Decoded entries, open files, known absences, and what waits for the disk."""
        store = Store(self.store.arena, self.store.disk, self.jobs.append, most_held=10)
        fds = len(os.listdir("/proc/self/fd"))
        for n in range(150):
            self.file(n, b"m", b"x" * 20_000, store)
            self.found(n, store)
            store.put(key(("small", n)), b"m", b"x")
        self.assertEqual(store.statistics()["held"], 10)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), fds + 10)
        for n in range(5000):
            store.find(key(("absent", n)))
        self.assertLessEqual(len(store._absent), 4096)
