"""Who owns which segment, and which one is emptied next."""

import fcntl
import os
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.geometry import GENERATION, LINE_CELLS, LOG, MIN_BYTES, SEQUENCE, USED, Geometry
from twistedproxy.http.cache.segments import MAIN, PROBATION, Segments


class SegmentsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.geometry = Geometry.of(MIN_BYTES)
        self.file = self.enterContext(tempfile.NamedTemporaryFile())
        self.cells = memoryview(bytearray(self.geometry.data_at)).cast("Q")

    def segments(self) -> Segments:
        fd = os.open(self.file.name, os.O_RDWR)
        self.addCleanup(os.close, fd)
        return Segments(self.cells, self.geometry, fd)

    def line(self, segment: int) -> int:
        return self.geometry.table_at // 8 + segment * LINE_CELLS

    def describe(self, segment: int, log: int, used: int, sequence: int) -> None:
        self.cells[self.line(segment) + LOG] = log
        self.cells[self.line(segment) + USED] = used
        self.cells[self.line(segment) + SEQUENCE] = sequence

    def test_closing_another_descriptor_of_the_file_keeps_the_segments(self) -> None:
        """Process-wide locks would be gone by then, and two workers would write into one segment."""
        one = self.segments()
        one.own(1)
        os.close(os.open(self.file.name, os.O_RDWR))
        other = self.segments()
        other.own(1)
        self.assertEqual((one.owned, other.owned), (self.geometry.segments, 0))

    def test_the_generation_rises_before_a_segment_is_written_over(self) -> None:
        segments = self.segments()
        segments.own(1)
        log = segments.logs[PROBATION]
        seen = []
        for _ in range(3 * self.geometry.segments):
            self.assertTrue(segments.open_next(log))
            seen.append((log.segment, self.cells[self.line(log.segment) + GENERATION]))
            self.assertEqual(self.cells[self.line(log.segment) + USED], 0)
        self.assertEqual(len(set(seen)), len(seen), "no segment twice with the same generation")
        self.assertEqual({generation for _, generation in seen}, {1, 2, 3})

    def test_a_new_owner_goes_on_where_the_old_one_ended(self) -> None:
        """By the order in which segments were opened, however the clock stood; impossible figures mean: free."""
        full = self.geometry.segment_bytes
        for segment, log, used, sequence in (
            (0, MAIN, 640, 30), (1, MAIN, full, 10), (2, MAIN, full, 20), (3, PROBATION, full, 7), (4, PROBATION, 64, 8),
            (5, MAIN, full + 64, 1), (6, 77, 64, 1), (7, PROBATION, 63, 1),
        ):  # fmt: skip
            self.describe(segment, log, used, sequence)
        segments = self.segments()
        segments.own(1)
        main, probation = segments.logs[MAIN], segments.logs[PROBATION]
        self.assertEqual((list(main.queue), main.segment, main.at - main.start), ([1, 2, 0], 0, 640))
        self.assertEqual((list(probation.queue), probation.segment, probation.at - probation.start), ([3, 4], 4, 64))

    def test_probation_is_emptied_while_it_has_more_than_its_share_and_main_after_that(self) -> None:
        segments = self.segments()
        segments.own(1)
        main, probation = segments.logs[MAIN], segments.logs[PROBATION]
        share = round(self.geometry.segments * 0.15)
        for _ in range(share + 1):
            segments.open_next(probation)
        for _ in range(3):
            segments.open_next(main)
        oldest = segments.oldest()
        assert oldest is not None
        self.assertEqual((oldest.log, oldest.segment), (PROBATION, probation.queue[0]))
        segments.emptied()
        oldest = segments.oldest()
        assert oldest is not None
        self.assertEqual((oldest.log, oldest.segment), (MAIN, main.queue[0]))
        segments.emptied()
        segments.emptied()  # nothing is being emptied: harmless

    def test_nobody_owns_more_than_a_lock_says(self) -> None:
        """A segment locked by somebody else is left alone."""
        fd = os.open(self.file.name, os.O_RDWR)
        self.addCleanup(os.close, fd)
        other = Segments(self.cells, self.geometry, fd)
        self.assertTrue(other._lock(5, fcntl.F_WRLCK))
        segments = self.segments()
        segments.own(1)
        self.assertEqual(segments.owned, self.geometry.segments - 1)
        other._lock(5, fcntl.F_UNLCK)
