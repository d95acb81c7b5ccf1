"""The division of the arena's file follows from its size alone."""

import os
import tempfile

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache import geometry
from twistedproxy.http.cache.arena import Arena
from twistedproxy.http.cache.geometry import BUCKET, DEAD_SHIFT, MAX_BYTES, MIN_BYTES, TOUCHED_SHIFT, UNIT, Geometry, NotAnArena


class GeometryTests(SynchronousTestCase):
    @given(st.integers(MIN_BYTES, MAX_BYTES))
    def test_it_fits_for_every_size(self, size: int) -> None:
        """Never larger than configured nor much smaller; all is aligned; places fit into a cell; 64 workers have one segment each."""
        of = Geometry.of(size)
        self.assertLessEqual(of.file_bytes, size)
        self.assertGreater(of.segments * of.segment_bytes, size * 0.9)
        self.assertEqual(of.segment_bytes, UNIT << of.shift)
        self.assertEqual((of.data_at % UNIT, of.index_at % UNIT), (0, 0))
        self.assertEqual(of.buckets & of.buckets - 1, 0)
        units = of.segments << of.shift
        self.assertEqual(of.touched_at - of.index_at, of.buckets * BUCKET * 8)
        self.assertGreater(of.dead_at, of.touched_at + (units - 1 >> TOUCHED_SHIFT))
        self.assertGreater(of.data_at, of.dead_at + (units - 1 >> DEAD_SHIFT))
        self.assertLess(of.segments << of.shift, 1 << 32)
        self.assertTrue(64 <= of.segments <= 4096, of.segments)
        self.assertLessEqual(of.largest + 64, min(256 << 10, of.segment_bytes // 4))

    def test_sizes_that_make_no_sense_are_refused(self) -> None:
        for size in (0, MIN_BYTES - 1, MAX_BYTES + 1):
            self.assertRaises(ValueError, Geometry.of, size)

    def test_totals_are_read_without_mapping_the_file(self) -> None:
        """What the supervisor shows: bytes and objects in the segments of all workers."""
        directory = self.enterContext(tempfile.TemporaryDirectory())
        arena = Arena.open(directory, MIN_BYTES)
        self.addCleanup(arena.close)
        arena.own(1)
        for n in range(100):
            arena.put(n.to_bytes(16, "big"), b"m", b"x" * 63)
        path = os.path.join(directory, arena.geometry.name)
        self.assertEqual(geometry.totals(path), (100 * 128, 100))
        self.assertRaises(NotAnArena, geometry.totals, os.path.join(directory, "memory.lock"))
