"""Numbers shared by all workers: what one writes the others read, whatever dies or is replaced."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.ipc.scoreboard import HEADER_BYTES, TABLES, RowAllocator, Scoreboard, ScoreboardMismatch


def make(test: SynchronousTestCase, rows: int = 16, workers: int = 4) -> Scoreboard:
    board = Scoreboard.create(rows, workers)
    test.addCleanup(board.close)
    return board


class SharingTests(SynchronousTestCase):
    def test_total_is_the_sum_over_workers(self) -> None:
        """Two workers' leases at one server count together, and rows do not touch one another."""
        scoreboard = make(self)
        one, two = scoreboard.board(scoreboard.take_slot()), scoreboard.board(scoreboard.take_slot())
        one.set(3, 5)
        two.set(3, 7)
        two.set(4, 100)
        self.assertEqual((one.total(3), two.total(3), one.total(4), one.total(2)), (12, 12, 100, 0))

    def test_tables_are_apart(self) -> None:
        """The length of a queue is never mistaken for leases or retries."""
        scoreboard = make(self)
        board = scoreboard.board(scoreboard.take_slot())
        tables = (board.leases, board.queued, board.retries, board.fills)
        for number, table in enumerate(tables):
            for row in range(scoreboard.rows):
                table.set(row, 100 * number + row)
        for number, (name, table) in enumerate(zip(TABLES, tables, strict=True)):
            for row in range(scoreboard.rows):
                expected = 100 * number + row
                self.assertEqual((table.get(row), table.total(row), scoreboard.total(name, row)), (expected,) * 3)

    def test_who_else_has_a_value(self) -> None:
        """A claim in a row is found by the others, never by who wrote it; a dead worker's is gone with its column."""
        scoreboard = make(self)
        one, two, three = (scoreboard.board(scoreboard.take_slot()).fills for _ in range(3))
        self.assertEqual((one.slot, two.slot, two.others), (0, 1, [0, 2]))
        two.use_all()
        two.set(5, 99)
        self.assertEqual((one.who(5, 99), two.who(5, 99), one.who(5, 98), one.who(6, 99)), (1, -1, -1, -1))
        three.set(5, 99)
        self.assertEqual((one.who(5, 99), two.who(5, 99)), (1, 2))
        last = scoreboard.rows - 1
        two.set(last, 7)
        scoreboard.clear_slot(1)
        self.assertEqual((one.who(5, 99), one.who(last, 7)), (2, -1))

    def test_another_process_sees_it(self) -> None:
        """A worker that is a real process of its own reads our cells and we read its."""
        scoreboard = make(self)
        ours, theirs = scoreboard.take_slot(), scoreboard.take_slot()
        board = scoreboard.board(ours)
        board.set(2, 40)
        fd = os.dup(scoreboard.fd)
        os.set_inheritable(fd, True)
        self.addCleanup(os.close, fd)
        program = (
            "import sys; from twistedproxy.ipc.scoreboard import Scoreboard\n"
            f"board = Scoreboard.attach({fd}).board({theirs})\n"
            "board.set(2, 2); print(board.total(2), flush=True)"
        )
        done = subprocess.run([sys.executable, "-c", program], pass_fds=[fd], capture_output=True, text=True, timeout=20, check=False)
        self.assertEqual(done.stdout.strip(), "42", done.stderr)
        self.assertEqual(board.total(2), 42)

    def test_dead_workers_column_is_zeroed(self) -> None:
        """A killed worker's leases do not keep a server full for ever; the others' stay."""
        scoreboard = make(self)
        rows = RowAllocator(scoreboard)
        row = [rows.allocate(f"web 10.0.0.{i}:80") for i in range(3)][2]
        alive, dead = scoreboard.take_slot(), scoreboard.take_slot()
        scoreboard.board(alive).set(row, 3)
        for table in ("leases", "queued", "retries"):
            getattr(scoreboard.board(dead), table).set(row, 9)
        scoreboard.free_slot(dead)
        self.assertEqual([scoreboard.total(t, row) for t in ("leases", "queued", "retries")], [3, 0, 0])
        self.assertEqual(scoreboard.take_slot(), dead)

    def test_slots_run_out(self) -> None:
        """More workers than slots is an error that says so, not two workers writing one column."""
        scoreboard = make(self, workers=2)
        self.assertEqual([scoreboard.take_slot(), scoreboard.take_slot()], [0, 1])
        self.assertIn("all 2 worker slots", str(self.assertRaises(ValueError, scoreboard.take_slot)))

    def test_two_supervisors_never_take_the_same_slot(self) -> None:
        """In an upgrade, both replace workers: while one looks for a free slot and takes it, the other one waits."""
        scoreboard = make(self)
        program = (
            "import sys; from twistedproxy.ipc.scoreboard import Scoreboard\n"
            f"board = Scoreboard.attach({scoreboard.fd})\n"
            "zero, board._zero = board._zero, lambda slot: (print('in', flush=True), sys.stdin.readline(), zero(slot))\n"
            "print(board.take_slot(), flush=True); sys.stdin.readline()"
        )
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, pass_fds=[scoreboard.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None and other.stdout is not None
            self.addCleanup(other.kill)
            self.assertEqual(other.stdout.readline(), "in\n")
            self.assertRaises(BlockingIOError, fcntl.lockf, scoreboard.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.stdin.write("go on\n")
            other.stdin.flush()
            self.assertEqual((scoreboard.take_slot(), other.stdout.readline()), (1, "0\n"))
            other.communicate("the end\n", timeout=20)

    def test_only_given_slots_can_be_written(self) -> None:
        """A worker that mistakes its slot is stopped before it writes into another's column."""
        scoreboard = make(self)
        self.assertRaises(ValueError, scoreboard.board, 0)
        self.assertRaises(ValueError, scoreboard.board, 4)
        self.assertRaises(ValueError, scoreboard.board, -1)

    def test_unused_rows_cost_no_memory(self) -> None:
        """The default board has room for thousands of servers and takes a few pages."""
        scoreboard = Scoreboard.create()
        self.addCleanup(scoreboard.close)
        board = scoreboard.board(scoreboard.take_slot())
        board.set(0, 1)
        self.assertLess(os.fstat(scoreboard.fd).st_blocks * 512, 64 * 1024)
        self.assertGreaterEqual(os.fstat(scoreboard.fd).st_size, 3 * 4096 * 64 * 8)


class AttachTests(SynchronousTestCase):
    def test_generations_share(self) -> None:
        """After an upgrade the new supervisor reads what the old one's workers count, slots included."""
        old = make(self)
        slot = old.take_slot()
        old.board(slot).set(1, 6)
        new = Scoreboard.attach(os.dup(old.fd))
        self.addCleanup(new.close)
        self.assertEqual((new.rows, new.slots, new.total("leases", 1)), (16, 4, 6))
        self.assertNotEqual(new.take_slot(), slot)

    def refused(self, size: int, cells: dict[int, int]) -> str:
        fd = os.memfd_create("test")
        os.ftruncate(fd, size)
        if size:
            with mmap.mmap(fd, 0) as memory, memoryview(memory) as raw, raw.cast("q") as view:
                for index, value in cells.items():
                    view[index] = value
        error = self.assertRaises(ScoreboardMismatch, Scoreboard.attach, fd)
        self.assertRaises(OSError, os.fstat, fd)
        return str(error)

    def test_wrong_memory_is_refused(self) -> None:
        """A descriptor that is something else, or of another version, is refused with the reason and closed."""
        magic = int.from_bytes(b"twprxysb", "little")
        self.assertIn("0 bytes", self.refused(0, {}))
        self.assertIn("magic", self.refused(HEADER_BYTES, {}))
        self.assertIn("version 1", self.refused(HEADER_BYTES, {0: magic, 1: 1}))
        self.assertIn("size", self.refused(HEADER_BYTES, {0: magic, 1: 2, 2: 16, 3: 4}))
        self.assertIn("size", self.refused(HEADER_BYTES, {0: magic, 1: 2, 2: -1, 3: 4}))

    def test_memory_cannot_be_shortened(self) -> None:
        """Nobody who holds the descriptor can crash the workers by truncating it."""
        self.assertRaises(PermissionError, os.ftruncate, make(self).fd, 0)

    def test_silly_sizes(self) -> None:
        self.assertRaises(ValueError, Scoreboard.create, 0, 4)
        self.assertRaises(ValueError, Scoreboard.create, 4, 0)
        self.assertRaises(ValueError, Scoreboard.create, 4, 100_000)


class RowTests(SynchronousTestCase):
    def test_rows_are_kept_by_name(self) -> None:
        rows = RowAllocator(make(self))
        self.assertEqual([rows.allocate(n) for n in ("a", "b", "a")], [0, 1, 0])

    def test_row_is_reused_when_its_leases_ended(self) -> None:
        """A removed server's open leases are never charged to the server added next."""
        scoreboard = make(self, rows=3)
        rows = RowAllocator(scoreboard)
        board = scoreboard.board(scoreboard.take_slot())
        rows.allocate("a")
        board.set(0, 2)
        rows.free("a")
        self.assertEqual(rows.allocate("b"), 1)
        board.set(0, 0)
        self.assertEqual(rows.allocate("c"), 0)

    def test_row_comes_back_to_its_server(self) -> None:
        """A server removed and added again while sessions are open goes on being counted in one place."""
        scoreboard = make(self)
        rows = RowAllocator(scoreboard)
        rows.allocate("a")
        scoreboard.board(scoreboard.take_slot()).set(0, 2)
        rows.free("a")
        self.assertEqual(rows.allocate("a"), 0)
        self.assertEqual(rows.allocate("b"), 1)

    def test_full_board(self) -> None:
        """With no row left a server is still served: -1 lets each worker count for itself."""
        rows = RowAllocator(make(self, rows=1))
        self.assertEqual([rows.allocate("a"), rows.allocate("b")], [0, -1])
        rows.free("a")
        self.assertEqual(rows.allocate("b"), 0)

    def test_successor_goes_on(self) -> None:
        """The new generation counts the same server in the same row, and reuses the gaps."""
        scoreboard = make(self)
        old = RowAllocator(scoreboard)
        for name in "abc":
            old.allocate(name)
        old.free("b")
        new = RowAllocator(scoreboard, old.taken())
        self.assertEqual([new.allocate(n) for n in ("c", "d", "e")], [2, 1, 3])


class FillTests(SynchronousTestCase):
    """Claims of cache fills: who has which mark, without a lock."""

    def test_who_has_a_mark(self) -> None:
        """A worker sees another's mark and never its own; a worker that died leaves none behind."""
        scoreboard = make(self)
        slots = [scoreboard.take_slot() for _ in range(3)]
        one, two, three = (scoreboard.board(slot).fills for slot in slots)
        one.use_all()
        last = scoreboard.rows - 1
        one.set(last, 1 << 62)
        self.assertEqual((one.who(last, 1 << 62), two.who(last, 1 << 62), three.who(last, 1 << 62)), (-1, slots[0], slots[0]))
        self.assertEqual((two.who(last, 7), two.who(0, 1 << 62)), (-1, -1))
        two.set(last, 1 << 62)
        self.assertEqual((one.who(last, 1 << 62), three.who(last, 1 << 62)), (slots[1], slots[0]))
        scoreboard.free_slot(slots[0])
        self.assertEqual((two.who(last, 1 << 62), three.who(last, 1 << 62)), (-1, slots[1]))
        self.assertTrue(scoreboard.is_row_clear(last), "a claim is not a count of a server")
