"""The waiting line: in order, bounded, nobody forgotten."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.errors import NoServer, QueueTimeout
from twistedproxy.ipc.scoreboard import Scoreboard
from twistedproxy.pool.queue import Line


class LineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 100.0
        self.wheel = Wheel(lambda: self.now)
        self.told: list[object] = []

    def line(self, size: int = 2, timeout_s: float = 2.0, board: object = None) -> Line:
        line = Line("web", self.wheel, board)  # type: ignore[arg-type]
        line.size, line.timeout_s = size, timeout_s
        return line

    def test_time_runs_out(self) -> None:
        """Who waited `queue.timeout` is told so, not earlier and at most 100 ms later, once."""
        line = self.line()
        line.join(0, frozenset(), self.told.append)
        self.now = 101.99
        self.wheel.advance(self.now)
        self.assertEqual(self.told, [])
        self.now = 102.1
        self.wheel.advance(self.now)
        self.now = 110.0
        self.wheel.advance(self.now)
        self.assertEqual(([type(t) for t in self.told], len(line)), ([QueueTimeout], 0))
        self.assertIn("2 s", str(self.told[0]))

    def test_cancelled(self) -> None:
        """A client that leaves the line is never called, and its place is free."""
        line = self.line(size=1)
        queued = line.join(0, frozenset(), self.told.append)
        self.assertTrue(line.is_full())
        queued.cancel()
        queued.cancel()
        self.assertFalse(line.is_full())
        self.now = 110.0
        self.wheel.advance(self.now)
        self.assertEqual(self.told, [])
        self.assertRaises(AssertionError, queued.answer, NoServer("x"))

    def test_cancel_after_the_answer(self) -> None:
        """A client may leave in the moment it is served: nothing breaks."""
        line = self.line()
        queued = line.join(0, frozenset(), self.told.append)
        queued.answer(NoServer("x"))
        queued.cancel()
        self.assertEqual((len(self.told), len(line)), (1, 0))

    def test_broken_waiter(self) -> None:
        """An error in one request's code is logged and does not strike the request that freed the place."""

        def broken(answer: object) -> None:
            raise RuntimeError("broken request")

        line = self.line()
        line.join(0, frozenset(), broken).answer(NoServer("x"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_size_is_of_the_machine(self) -> None:
        """Two workers share one `queue.size`."""
        scoreboard = Scoreboard.create(4, 2)
        self.addCleanup(scoreboard.close)
        one, two = (self.line(board=scoreboard.board(scoreboard.take_slot()).queued) for _ in range(2))
        first = one.join(0, frozenset(), self.told.append)
        for line in (one, two):
            line.assign_row(3)
        two.join(0, frozenset(), self.told.append)
        self.assertEqual((one.is_full(), two.is_full(), scoreboard.total("queued", 3)), (True, True, 2))
        first.cancel()
        self.assertFalse(two.is_full())

    def test_P1_a_line_that_moves_fast_may_be_longer(self) -> None:
        """While servers give a place within 100 ms to everybody in line, nobody is refused, up to ten times `size`."""
        line = self.line(size=2)
        served = 0
        self.assertFalse(line.moves_fast(lambda: served), "nothing is known yet")
        for given, most in ((9, 5), (1000, 20), (0, 0)):
            self.now += 0.2
            served += given
            joined = []
            while line.moves_fast(lambda total=served: total) and len(joined) < 100:
                joined.append(line.join(0, frozenset(), self.told.append))
            self.assertEqual(len(joined), most)
            for queued in joined:
                queued.cancel()
        self.now += 60.0
        served += 60_000
        self.assertFalse(line.moves_fast(lambda: served), "how fast it was a minute ago says nothing")

    def test_no_queue(self) -> None:
        line = self.line(size=0)
        self.assertTrue(line.is_full())
        line.moves_fast(lambda: 0)
        self.now += 0.1
        self.assertFalse(line.moves_fast(lambda: 10**6))
