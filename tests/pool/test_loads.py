"""Who is busy on the whole machine."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.ipc.scoreboard import Scoreboard
from twistedproxy.pool.loads import EVERY_S, SMALL, Loads
from twistedproxy.pool.server import Server


class LoadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.scoreboard = Scoreboard.create(32, 2)
        self.addCleanup(self.scoreboard.close)
        self.ours = Loads(self.scoreboard.board(self.scoreboard.take_slot()))
        self.theirs = self.scoreboard.board(self.scoreboard.take_slot())

    def servers(self, count: int) -> list[Server]:
        return [Server(ServerSpec(Address(f"10.0.0.{i}:80")), 5) for i in range(count)]

    def test_full_counts_all_workers(self) -> None:
        """A server with a limit of five is full when two workers hold two and three."""
        (one,) = self.servers(1)
        one.active = 2
        self.theirs.set(7, 3)
        self.assertFalse(self.ours.is_full(one))
        self.ours.assign_row(one, 7)
        self.assertTrue(self.ours.is_full(one))
        self.theirs.set(7, 2)
        self.assertFalse(self.ours.is_full(one))

    def test_without_board(self) -> None:
        """With nothing shared the worker's own count decides."""
        (one,) = self.servers(1)
        alone = Loads(None)
        alone.assign_row(one, 3)
        self.assertEqual(one.row, -1)
        one.active = 4
        self.assertFalse(alone.is_full(one))
        one.active = 5
        self.assertTrue(alone.is_full(one))
        self.assertEqual(alone.active([one]), 5)

    def test_new_row_takes_the_count_along(self) -> None:
        """Leases open when the row changes are counted once, in the new row."""
        (one,) = self.servers(1)
        one.active = 4
        self.ours.assign_row(one, 1)
        self.ours.assign_row(one, 2)
        self.assertEqual([self.scoreboard.total("leases", row) for row in (1, 2)], [0, 4])
        self.ours.assign_row(one, -1)
        self.assertEqual((one.row, self.scoreboard.total("leases", 2)), (-1, 0))

    def test_elsewhere(self) -> None:
        """Small pools compare fresh loads; large ones loads at most a millisecond old."""
        for count in (SMALL, SMALL + 1):
            many = self.servers(count)
            for row, server in enumerate(many):
                self.ours.assign_row(server, row)
            ours = Loads(self.theirs)
            self.theirs.set(0, 1)
            ours.read(many, 1.0)
            self.theirs.set(0, 2)
            ours.read(many, 1.0 + EVERY_S / 2)
            self.assertEqual(many[0].elsewhere, 2 if count == SMALL else 1)
            ours.read(many, 1.0 + 2 * EVERY_S)
            self.assertEqual(many[0].elsewhere, 2)

    def test_active_over_workers(self) -> None:
        one, two = self.servers(2)
        self.ours.assign_row(one, 1)
        self.theirs.set(1, 3)
        two.active = 2
        self.assertEqual(self.ours.active([one, two]), 5)
