"""Whatever a cell claims: an entry is believed only when it proves itself."""

from __future__ import annotations

import hashlib
import random
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.arena import Arena
from twistedproxy.http.cache.geometry import MIN_BYTES


def key(n: int) -> bytes:
    return hashlib.md5(str(n).encode()).digest()


class PlacesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())

    def open(self) -> Arena:
        arena = Arena.open(self.directory, MIN_BYTES)
        self.addCleanup(arena.close)
        return arena

    def owned(self) -> Arena:
        arena = self.open()
        arena.own(1)
        return arena

    def test_a_flipped_bit_is_a_miss_and_counted(self) -> None:
        """In meta, in the body, in the lengths: a process that finds the entry anew does not give it out."""
        arena, other = self.owned(), self.open()
        for where in (64, 64 + 4, 64 + 103, 32, 36):
            place = arena.put(key(where), b"meta", b"b" * 100)
            assert place is not None
            at = place.offset + where
            arena._memory[at] = arena._memory[at] ^ 1
            found = other.find(key(where))
            self.assertTrue(found is None or other.read(found) is None, where)
        self.assertGreaterEqual(other.corrupt, 3)
        self.assertIsNone(other.find(key(64)), "its cell was cleared")

    def test_a_quick_look_never_overlooks(self) -> None:
        """Where nothing was put, a look at the index nearly always says so; where something was, it never does."""
        arena, other = self.owned(), self.open()
        for n in range(300):
            arena.put(key(n), b"m", b"x")
        self.assertFalse(any(other.is_vacant(other.spot(key(n))) for n in range(300)))
        self.assertGreater(sum(other.is_vacant(other.spot(key(n))) for n in range(1000, 1300)), 290)
        spot = other.spot(key(1000))
        arena.put(key(1000), b"m", b"x")
        self.assertFalse(other.is_vacant(spot))

    def test_nothing_in_the_index_can_make_it_read_outside(self) -> None:
        """Cells filled with random numbers by somebody else: misses, no error."""
        arena = self.owned()
        arena.put(key(1), b"m", b"x")
        chance = random.Random(5)
        geometry = arena.geometry
        for at in range(geometry.index_at // 8, geometry.data_at // 8):
            arena._cells[at] = chance.getrandbits(64)
        for n in range(2000):
            self.assertIsNone(arena.find(key(n)))
            arena.put(key(n), b"m", b"y")

    def test_keys_that_share_bucket_and_tag_are_told_apart(self) -> None:
        """The index knows 48 bits of a key; the rest is compared with the entry's own."""
        arena = self.owned()
        one, other = b"same bitA" + bytes(7), b"same bitB" + bytes(7)
        arena.put(one, b"1", b"one")
        self.assertIsNone(arena.find(other))
        arena.put(other, b"2", b"other")
        for each, expected in ((one, (b"1", b"one")), (other, (b"2", b"other"))):
            place = arena.find(each)
            assert place is not None
            self.assertEqual(arena.read(place), expected)
        arena.remove(one)
        self.assertIsNotNone(arena.find(other))
