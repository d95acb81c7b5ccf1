"""The memory tier: shared by processes without a lock, and never a wrong byte."""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.arena import Arena, Place
from twistedproxy.http.cache.geometry import LINE_CELLS, LOG, MIN_BYTES, Geometry
from twistedproxy.http.cache.segments import MAIN, PROBATION

STRESS = Path(__file__).with_name("arena_stress.py")


def key(n: int | str) -> bytes:
    return hashlib.md5(str(n).encode()).digest()


class ArenaTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())

    def open(self, size: int = MIN_BYTES) -> Arena:
        arena = Arena.open(self.directory, size)
        self.addCleanup(arena.close)
        return arena

    def owned(self, size: int = MIN_BYTES) -> Arena:
        arena = self.open(size)
        arena.own(1)
        return arena


class KeepingTests(ArenaTestCase):
    def test_what_one_process_stores_every_process_finds(self) -> None:
        """Two views of the file; only one of them owns segments, each finds, reads, touches and removes."""
        one, other = self.owned(), self.open()
        one.put(key(1), b"meta", b"body" * 100)
        place = other.find(key(1))
        assert place is not None
        self.assertEqual(other.read(place), (b"meta", b"body" * 100))
        self.assertEqual(other.body(place), b"body" * 100)
        self.assertTrue(other.is_current(place))
        self.assertIsNone(other.find(key(2)))
        self.assertIsNone(other.put(key(2), b"", b""), "owns no segment")
        self.assertTrue(other.remove(key(1)))
        self.assertFalse(other.is_current(place))
        self.assertIsNone(one.find(key(1)))
        self.assertFalse(one.remove(key(1)))

    def test_a_newer_object_takes_the_place_of_the_older(self) -> None:
        """A hit that was decoded before sees at once that it is outdated."""
        arena = self.owned()
        old = arena.put(key(1), b"m", b"old")
        new = arena.put(key(1), b"m", b"new")
        assert old is not None and new is not None
        self.assertFalse(arena.is_current(old))
        found = arena.find(key(1))
        assert found is not None
        self.assertEqual(arena.read(found), (b"m", b"new"))

    def test_the_largest_object_fits_and_no_larger_one(self) -> None:
        arena = self.owned()
        place = arena.put(key(1), b"m", b"x" * (arena.largest - 1))
        assert place is not None
        self.assertEqual(arena.body(place), b"x" * (arena.largest - 1))
        self.assertIsNone(arena.put(key(2), b"m", b"x" * arena.largest))
        self.assertEqual(Geometry.of(256 << 20).largest, (256 << 10) - 64)

    def test_it_survives_a_restart(self) -> None:
        """The next process finds what the last one stored, and goes on in the segments it left."""
        arena = Arena.open(self.directory, MIN_BYTES)
        arena.own(1)
        for n in range(500):
            arena.put(key(n), b"m", b"%d" % n * 50)
        arena.close()
        again = self.owned()
        self.assertEqual(again.note, "")
        used = again.statistics()["used_bytes"]
        again.put(key("more"), b"m", b"")
        self.assertEqual(again.statistics()["used_bytes"], used + 128, "the open segment is filled up, none is wasted")
        for n in range(500):
            place = again.find(key(n))
            assert place is not None, n
            self.assertEqual(again.read(place), (b"m", b"%d" % n * 50))

    @given(
        st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["put", "remove", "touch"]), st.binary(max_size=40), st.integers(0, 8000)))
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def test_it_never_gives_anything_but_the_last_that_was_put(self, steps: list[tuple[int, str, bytes, int]]) -> None:
        """Against a dict: whatever happens, an object found is the last one put under its key."""
        arena = Arena.open(self.directory, MIN_BYTES)
        self.addCleanup(arena.close)
        arena.own(1)
        expected: dict[bytes, tuple[bytes, bytes]] = {}
        for n in range(13):
            arena.remove(key(n))
        for n, what, meta, length in steps:
            if what == "put":
                expected[key(n)] = meta, bytes([n]) * length
                self.assertIsNotNone(arena.put(key(n), *expected[key(n)]))
            elif what == "remove":
                arena.remove(key(n))
                expected.pop(key(n), None)
            elif (place := arena.find(key(n))) is not None:
                arena.touch(place)
            for each in map(key, range(13)):
                found = arena.find(each)
                self.assertEqual(None if found is None else arena.read(found), expected.get(each))
        arena.release()

    def test_two_cells_for_one_key_become_one_with_the_next_put(self) -> None:
        """Two processes stored the same object in the same moment: its older version must not turn up behind the newer."""
        arena = self.owned()
        old = arena.put(key(1), b"m", b"old")
        assert old is not None
        bucket = (old.index - arena._first) // 8 * 8 + arena._first
        for at in range(bucket, bucket + 8):
            arena._cells[at] = old.cell
        new = arena.put(key(1), b"m", b"new")
        assert new is not None
        arena._cells[new.index] = 0
        self.assertIsNone(arena.find(key(1)))


class RaceTests(ArenaTestCase):
    """What takes two processes and bad luck, made to happen."""

    def recycle(self, arena: Arena, place: Place) -> None:
        """The owner's next round: the same bytes belong to another object."""
        n = 0
        while arena._cells[place.generation_at] == place.generation or arena._memory[place.offset + 100] != 0x7A:
            arena.put(key(("next", n)), b"m", b"z" * 1000)
            n += 1

    def test_what_is_overwritten_while_it_is_copied_is_not_given_out(self) -> None:
        """Also when this process has checked the entry before."""
        owner, reader = self.owned(), self.open()
        for is_checked in (False, True):
            for read in (reader.read, reader.body):
                owner.put(key(1), b"m", b"y" * 1000)
                place = reader.find(key(1))
                assert place is not None
                if is_checked:
                    self.assertIsNotNone(reader.read(place))
                memory = reader._memory
                reader._memory = Meddling(memory, lambda place=place: self.recycle(owner, place))  # type: ignore[assignment]
                self.assertIsNone(read(place))
                reader._memory = memory
                self.assertFalse(reader.is_current(place))
        self.assertEqual(reader.corrupt, 0, "that is no damage")

    def test_a_use_noted_too_late_does_not_fall_into_another_object(self) -> None:
        """Nor does a removal: between the look at an entry and the mark its segment was reused."""
        owner, other = self.owned(), self.open()
        for late in ("touch", "remove"):
            owner.put(key(1), b"m", b"y" * 1000)
            place = other.find(key(1))
            assert place is not None
            if late == "remove":
                self.patch(other, "_place", lambda *_, place=place: (self.recycle(owner, place), place)[1])
                other.remove(key(1))
            else:
                self.recycle(owner, place)
                other.touch(place)
            for n in range(3500):
                found = owner.find(key(("next", n)))
                if found is not None:
                    found.is_checked = False
                    self.assertIn(owner.read(found), ((b"m", b"z" * 1000), None))
            self.assertEqual(owner.corrupt, 0)

    def test_a_generation_is_told_by_all_its_bits(self) -> None:
        """A cell has 16 of them: after 65,536 rounds it looks right again."""
        arena = self.owned()
        place = arena.put(key(1), b"m", b"x")
        assert place is not None
        arena._cells[place.generation_at] += 1 << 16
        self.assertIsNone(arena.find(key(1)))
        self.assertFalse(arena.is_current(place))

    def test_what_is_removed_or_replaced_is_not_kept_on(self) -> None:
        """Before the owner comes to move it, or by another process in the very middle of that."""
        owner, other = self.owned(), self.open()
        append = owner._append

        def meddled(log: int, its_key: bytes, *rest: Any) -> Place | None:
            if log == MAIN and its_key == key(2):
                other.remove(key(2))
            if log == MAIN and its_key == key(5) and (found := other.find(key(5))) is not None:
                other._cells[found.index] = 0
            return append(log, its_key, *rest)

        for n in (1, 2, 3, 4, 5):
            place = owner.put(key(n), b"m", b"x" * 500)
            assert place is not None
            owner.touch(place)
        owner.remove(key(1))
        owner.put(key(4), b"m", b"new")
        self.patch(owner, "_append", meddled)
        for n in range(10_000):
            owner.put(key(("next", n)), b"m", b"z" * 1000)
        self.assertEqual([owner.find(key(n)) is not None for n in (1, 2, 3, 4, 5)], [False, False, True, True, False])
        place = owner.find(key(4))
        assert place is not None
        self.assertEqual(owner.body(place), b"new")


class Meddling:
    """Memory in which something happens between the first copy and the next look."""

    def __init__(self, memory: Any, happens: Callable[[], None]) -> None:
        self._memory = memory
        self._happens = happens
        self._is_done = False

    def __getitem__(self, where: Any) -> Any:
        found = self._memory[where]
        if isinstance(where, slice) and not self._is_done:
            self._is_done = True
            self._happens()
        return found


class ReplacementTests(ArenaTestCase):
    def test_a_crawl_does_not_flush_what_is_used(self) -> None:
        """Objects in use stay while ten times the whole arena passes by, and a plain LRU of the same size would have lost them."""
        arena = self.owned()
        hot = [key(f"hot {n}") for n in range(500)]
        body = b"x" * 1000
        for each in hot:
            arena.put(each, b"m", body)
        for n in range(40_000):
            arena.put(key(n), b"m", body)
            if n % 4 == 0 and (place := arena.find(hot[n // 4 % 500])) is not None:
                arena.touch(place)
        self.assertEqual(sum(arena.find(each) is not None for each in hot), 500)

    def test_hit_ratio_on_a_zipf_trace_with_a_crawl(self) -> None:
        """At least as many hits as an LRU with the same bytes without the crawl, and a tenth more with it."""
        for crawl, margin in ((0.0, 0.99), (0.5, 1.1)):
            ours, lru = hit_ratios(self.owned(4 << 20), crawl, seed=7)
            self.assertGreaterEqual(ours, lru * margin, f"with {crawl:.0%} crawl: {ours:.1%} against {lru:.1%}")
            self.directory = self.enterContext(tempfile.TemporaryDirectory())

    def test_what_was_dropped_lately_and_comes_again_is_kept_at_once(self) -> None:
        """Asked for twice, but too far apart for probation: the second time it goes to the main log; something new does not."""
        arena = self.owned()
        arena.put(key("again"), b"m", b"x")
        for n in range(4500):
            arena.put(key(n), b"m", b"x" * 1000)
        self.assertIsNone(arena.find(key("again")))
        for each, log in (("again", MAIN), ("new", PROBATION)):
            place = arena.put(key(each), b"m", b"x")
            assert place is not None
            self.assertEqual(arena._cells[place.generation_at + LOG], log)

    def test_a_put_does_a_bounded_amount_of_work(self) -> None:
        """No put looks at more than 64 old entries, however small they are and however large the new object is."""
        arena = self.owned()
        for n in range(60_000):
            arena.put(key(n), b"", b"")
        moved = []
        for n in range(200):
            before = arena.statistics()["evicted"] - arena._segments.dropped
            arena.put(key(f"large {n}"), b"", b"x" * 8000)
            moved.append(arena.statistics()["evicted"] - arena._segments.dropped - before)
        self.assertLessEqual(max(moved), 64)
        self.assertGreater(max(moved), 0)

    def test_one_or_two_segments_are_enough_to_work(self) -> None:
        """As many workers as segments: each has one, and still keeps what came last."""
        for share in (1, 2, 3):
            arena = self.open()
            arena.own(-(-arena.geometry.segments // share))
            self.assertEqual(arena.statistics()["segments"], share)
            for n in range(2000):
                place = arena.put(key((share, n)), b"m", b"%d" % n * 20)
                assert place is not None
                self.assertEqual(arena.body(place), b"%d" % n * 20)
            arena.release()


class OwnershipTests(ArenaTestCase):
    def test_each_worker_takes_its_share_and_gives_back_what_is_too_much(self) -> None:
        """2, 3, then 4 workers: all segments are owned, by one worker each, and nothing that was stored is lost by the change."""
        arenas = [self.open()]
        total = arenas[0].geometry.segments
        arenas[0].own(1)
        for n in range(1000):
            arenas[0].put(key(n), b"m", b"x" * 1000)
        for count in (2, 3, 4):
            arenas.append(self.open())
            for _ in range(2):
                for arena in arenas:
                    arena.own(count)
            owned = [arena.statistics()["segments"] for arena in arenas]
            self.assertEqual(sum(owned), total)
            self.assertLessEqual(max(owned), -(-total // count))
            self.assertGreater(min(owned), 0)
        self.assertEqual(sum(arenas[3].find(key(n)) is not None for n in range(1000)), 1000)
        for number, arena in enumerate(arenas):
            self.assertIsNotNone(arena.put(key(f"by {number}"), b"m", b""))

    def test_an_arena_nobody_refers_to_any_more_has_no_segments(self) -> None:
        """The size of the memory was changed and changed back: the first one must not hold what the last one needs."""
        arena = Arena.open(self.directory, MIN_BYTES)
        arena.own(1)
        del arena
        gc.collect()
        self.assertEqual(self.owned().statistics()["segments"], Geometry.of(MIN_BYTES).segments)

    def test_a_draining_worker_stores_nothing_and_reads_on(self) -> None:
        old, new = self.owned(), self.open()
        place = old.put(key(1), b"m", b"x")
        assert place is not None
        new.own(1)
        self.assertEqual(new.statistics()["segments"], 0)
        old.release()
        new.own(1)
        self.assertEqual(new.statistics()["segments"], new.geometry.segments)
        self.assertIsNone(old.put(key(2), b"m", b"x"))
        old.own(1)
        self.assertIsNone(old.put(key(2), b"m", b"x"), "released for good")
        self.assertEqual(old.body(place), b"x")
        self.assertIsNotNone(new.put(key(2), b"m", b"x"))


class DamageTests(ArenaTestCase):
    def test_random_bytes_in_segments_and_table_stop_nobody(self) -> None:
        """After a crash of the machine the file may hold anything: it is gone through without an error, and written over."""
        arena = self.owned()
        for n in range(8000):
            place = arena.put(key(n), b"m", b"x" * 1000)
            assert place is not None
            arena.touch(place)
        chance = random.Random(6)
        geometry = arena.geometry
        arena.close()
        self._cleanups.pop()
        path = os.path.join(self.directory, geometry.name)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            for at in range(geometry.data_at, geometry.file_bytes, 4096):
                memory[at : at + 64] = chance.randbytes(64)
            for segment in range(0, geometry.segments, 3):
                at = geometry.table_at + segment * LINE_CELLS * 8
                memory[at : at + 40] = chance.randbytes(40)
        again = self.owned()
        for n in range(8000):
            found = again.find(key(n))
            both = again.read(found) if found is not None else None
            self.assertIn(both, (None, (b"m", b"x" * 1000)))
        for n in range(8000, 16_000):
            place = again.put(key(n), b"m", b"y" * 1000)
            assert place is not None
            self.assertEqual(again.read(place), (b"m", b"y" * 1000))


class ProcessTests(ArenaTestCase):
    def test_no_wrong_or_torn_body_while_segments_are_reused_all_the_time(self) -> None:
        """2 writers and 2 readers on one small file; every body read belongs to its key, is of one piece, and is found by its checksum."""
        Arena.open(self.directory, MIN_BYTES).close()
        writers = [start("write", self.directory, str(n), "40000") for n in (1, 2)]
        readers = [start("read", self.directory, str(n), "80000") for n in (3, 4)]
        for process in writers + readers:
            out, error = process.communicate(timeout=120)
            self.assertEqual((process.returncode, error), (0, ""))
            if process in readers:
                self.assertGreater(int(out.split()[0]), 100, "it has hits")

    def test_a_writer_killed_in_the_middle_of_anything_does_no_harm(self) -> None:
        """kill -9, some times: its segments are free at once, what it had published is whole, what it had not is not there."""
        arena = self.open()
        chance = random.Random(3)
        for round_ in range(4):
            process = start("write", self.directory, "1", "1000000")
            assert process.stdout is not None
            process.stdout.readline()  # it has stored something
            for _ in range(chance.randrange(1, 30)):
                for n in range(200):
                    place = arena.find(key(n))
                    if place is not None and (both := arena.read(place)) is not None:
                        check_body(self, n, *both)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            arena.own(1)
            self.assertEqual(arena.statistics()["segments"], arena.geometry.segments)
            self.assertEqual(arena.corrupt, 0)
            for n in range(200):
                place = arena.find(key(n))
                if place is not None:
                    both = arena.read(place)
                    assert both is not None
                    check_body(self, n, *both)
            for n in range(3000):
                place = arena.put(key(f"{round_} {n}"), b"m", b"x" * 1000)
                assert place is not None
            self.assertEqual(arena.corrupt, 0)
            arena.release()
            arena = self.open()


def check_body(test: SynchronousTestCase, n: int, meta: bytes, body: bytes) -> None:
    """What arena_stress.py writes: number and length in meta, one word repeated in the body."""
    number, length, word = struct.unpack("<III", meta)
    test.assertEqual(number, n)
    test.assertEqual(body, struct.pack("<I", word) * length)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(STRESS), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


def hit_ratios(arena: Arena, crawl: float, seed: int, requests: int = 60_000, objects: int = 20_000) -> tuple[float, float]:
    """Of the arena and of an LRU that holds the same bytes, over zipf (0.9) requests between which a crawler asks for everything once."""
    chance = random.Random(seed)
    weights = [1 / (n + 1) ** 0.9 for n in range(objects)]
    wanted = iter(chance.choices(range(objects), weights, k=requests))
    body = b"x" * 900
    most = arena.geometry.segments * arena.geometry.segment_bytes // 1024
    lru: OrderedDict[int, None] = OrderedDict()
    ours = theirs = 0
    crawled = objects
    for n in wanted:
        if chance.random() < crawl:
            crawled += 1
            if arena.find(key(crawled)) is None:
                arena.put(key(crawled), b"m", body)
            lru[crawled] = None
        place = arena.find(key(n))
        if place is not None:
            arena.touch(place)
            ours += 1
        else:
            arena.put(key(n), b"m", body)
        if n in lru:
            lru.move_to_end(n)
            theirs += 1
        lru[n] = None
        while len(lru) > most:
            lru.popitem(last=False)
    return ours / requests, theirs / requests
