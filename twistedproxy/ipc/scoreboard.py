"""Facts that all workers share, in memory: leases in flight, queue lengths, retries now.

How it works
    One sealed memfd holds a page of header and four tables of 64-bit cells. A table has a row per thing counted (a server, a
    pool; of cache fills a row for each value of a hash) and a column per worker slot. A cell has one writer, the worker whose slot it
    is, and is read by all: an aligned 64-bit store is never seen half done, so there is no lock, and CPython needs no
    compare-and-swap. A fact about the machine is the sum of a row; it may be stale by the requests the other workers are
    granting this very moment.

    The supervisor creates the board, gives rows to names (`RowAllocator`) and slots to workers, and zeroes the column of a worker
    once that process is reaped. A row given back is used again only when all its cells are zero, because workers may still be
    counting down leases of a server that was removed. The memory is sparse: a row never used costs nothing.

    Processes of two versions may share one board: `attach` checks magic, version and geometry.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator, Mapping

MAGIC = int.from_bytes(b"twprxysb", "little")
VERSION = 2
HEADER_BYTES = 4096
CELL_BYTES = 8
TABLES = ("leases", "queued", "retries", "fills")
COUNTING = 3
"""So many of them, the first, have a row for each server or pool."""
_SEALS = fcntl.F_ADD_SEALS
_SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# Cells of the header.
_MAGIC, _VERSION, _ROWS, _SLOTS, _WIDTH, _HEIGHT, _FILLING = range(7)
_TAKEN = 64
"""First of one cell per slot: 1 while a worker has it."""
MAX_SLOTS = HEADER_BYTES // CELL_BYTES - _TAKEN


class ScoreboardMismatch(Exception):
    """The memory handed over is not a scoreboard this version can read."""


class Column:
    """One worker's view of one table: it writes its own cells and adds up rows."""

    __slots__ = ("_cells", "_offset", "_slot", "_slots", "rows")

    def __init__(self, cells: memoryview[int], offset: int, rows: int, slots: int, slot: int) -> None:
        self._cells = cells
        self._offset = offset
        self._slots = slots
        self._slot = offset + slot
        self.rows = rows

    def set(self, row: int, value: int) -> None:
        self._cells[self._slot + row * self._slots] = value

    def get(self, row: int) -> int:
        """This worker's own cell."""
        return self._cells[self._slot + row * self._slots]

    def use_all(self) -> None:
        """Of the fills, any row may be in use from now on; before, their memory costs nothing."""
        self._cells[_FILLING] = self.rows

    @property
    def slot(self) -> int:
        return self._slot - self._offset

    @property
    def others(self) -> list[int]:
        """Slots that other workers may have."""
        return [slot for slot in range(self._cells[_WIDTH]) if slot != self.slot]

    def who(self, row: int, value: int) -> int:
        """The first other worker whose cell of `row` has this value; -1: none."""
        cells = self._cells
        start = self._offset + row * self._slots
        own = self._slot - self._offset
        found = [slot for slot, cell in enumerate(cells[start : start + cells[_WIDTH]]) if cell == value and slot != own]
        return found[0] if found else -1

    def total(self, row: int) -> int:
        """The sum over all workers."""
        cells = self._cells
        start = self._offset + row * self._slots
        return sum(cells[start : start + cells[_WIDTH]])


class LeaseBoard:
    """What one worker needs of the scoreboard: `set` and `total` of leases, and the pools' `queued` and `retries`."""

    __slots__ = ("fills", "leases", "queued", "retries", "set", "slot", "total")

    def __init__(self, leases: Column, queued: Column, retries: Column, fills: Column, slot: int) -> None:
        self.leases = leases
        self.queued = queued
        self.retries = retries
        self.fills = fills
        self.slot = slot
        self.set = leases.set
        self.total = leases.total


class Scoreboard:
    """The whole board; made by the supervisor, attached to by workers and by the supervisor's successor.

    During an upgrade two supervisors give out its slots: what they look at and then write they do behind a lock of the file.
    """

    def __init__(self, fd: int, memory: mmap.mmap) -> None:
        self.fd = fd
        self._memory = memory
        self._cells = memoryview(memory).cast("q")
        self.rows = self._cells[_ROWS]
        self.slots = self._cells[_SLOTS]

    @classmethod
    def create(cls, rows: int = 4096, workers: int = 64) -> Scoreboard:
        """A new board with room for `rows` servers (and as many pools) and `workers` worker processes at a time."""
        if rows < 1 or not 1 <= workers <= MAX_SLOTS:
            raise ValueError(f"a scoreboard has at least one row and 1 to {MAX_SLOTS} workers, not {rows} and {workers}")
        fd = os.memfd_create("revproxy-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _size(rows, workers))
            fcntl.fcntl(fd, _SEALS, _SEALED)  # nobody can shorten it under a worker's feet (SIGBUS)
            memory = mmap.mmap(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        with memoryview(memory) as raw, raw.cast("q") as cells:
            cells[_VERSION] = VERSION
            cells[_ROWS] = rows
            cells[_SLOTS] = workers
            cells[_MAGIC] = MAGIC
        return cls(fd, memory)

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """The board behind a descriptor handed over by the supervisor; takes the descriptor over, also when it refuses."""
        try:
            size = os.fstat(fd).st_size
            if size < HEADER_BYTES:
                raise ScoreboardMismatch(f"not a scoreboard: {size} bytes, a header alone has {HEADER_BYTES}")
            memory = mmap.mmap(fd, 0)
            with memoryview(memory) as raw, raw.cast("q") as cells:
                magic, version, rows, slots = cells[_MAGIC], cells[_VERSION], cells[_ROWS], cells[_SLOTS]
            if magic != MAGIC:
                raise ScoreboardMismatch("not a scoreboard: wrong magic number")
            if version != VERSION:
                raise ScoreboardMismatch(f"the scoreboard has version {version}, this program reads version {VERSION}")
            if rows < 1 or not 1 <= slots <= MAX_SLOTS or size != _size(rows, slots):
                raise ScoreboardMismatch(f"the scoreboard claims {rows} rows of {slots} workers, which is not its size of {size} bytes")
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, memory)

    # The supervisor's side

    def take_slot(self) -> int:
        """A column for a new worker; `ValueError` when all are in use."""
        with self._alone():
            for slot in range(self.slots):
                if not self._cells[_TAKEN + slot]:
                    self._zero(slot)
                    self._cells[_TAKEN + slot] = 1
                    self._cells[_WIDTH] = max(self._cells[_WIDTH], slot + 1)
                    return slot
        raise ValueError(f"all {self.slots} worker slots of the scoreboard are in use")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process is here meanwhile. The lock is the process's, not the open file's, which both supervisors have in common."""
        fcntl.lockf(self.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    @property
    def taken_slots(self) -> list[int]:
        """Columns of workers, of all generations."""
        return [slot for slot in range(self.slots) if self._cells[_TAKEN + slot]]

    def free_slot(self, slot: int) -> None:
        """Forget what a worker counted. Its process must be reaped: a living one would go on writing."""
        self._zero(slot)
        self._cells[_TAKEN + slot] = 0

    def clear_slot(self, slot: int) -> None:
        """The same for a slot whose next worker comes at once: it stays taken."""
        self._zero(slot)

    def _zero(self, slot: int) -> None:
        cells = self._cells
        for table in range(len(TABLES)):
            first = self._offset(table) + slot
            rows = cells[_FILLING] if table >= COUNTING else cells[_HEIGHT]
            for cell in range(first, first + rows * self.slots, self.slots):
                cells[cell] = 0

    def total(self, table: str, row: int) -> int:
        return self._column(table, 0).total(row)

    def is_row_clear(self, row: int) -> bool:
        """Whether no worker counts anything in this row."""
        cells = self._cells
        for table in range(COUNTING):
            start = self._offset(table) + row * self.slots
            if any(cells[start : start + self.slots]):
                return False
        return True

    def use_row(self, row: int) -> None:
        """Let `free_slot` know that rows up to this one are in use."""
        if row >= self._cells[_HEIGHT]:
            with self._alone():
                self._cells[_HEIGHT] = max(self._cells[_HEIGHT], row + 1)

    # The worker's side

    def board(self, slot: int) -> LeaseBoard:
        """The view of the worker that was given `slot`."""
        if not 0 <= slot < self.slots:
            raise ValueError(f"worker slot {slot} is not on a scoreboard of {self.slots} slots")
        if not self._cells[_TAKEN + slot]:
            raise ValueError(f"worker slot {slot} was not given to anybody: take_slot() first")
        leases, queued, retries, fills = (self._column(table, slot) for table in TABLES)
        return LeaseBoard(leases, queued, retries, fills, slot)

    def _column(self, table: str, slot: int) -> Column:
        return Column(self._cells, self._offset(TABLES.index(table)), self.rows, self.slots, slot)

    def _offset(self, table: int) -> int:
        return HEADER_BYTES // CELL_BYTES + table * self.rows * self.slots

    def close(self) -> None:
        """Let go of descriptor and mapping; views given out must not be used any more."""
        os.close(self.fd)
        try:
            self._cells.release()
            self._memory.close()
        except BufferError:
            pass  # a `Column` still looks at it; the mapping goes when the last view does


def _size(rows: int, slots: int) -> int:
    return HEADER_BYTES + len(TABLES) * rows * slots * CELL_BYTES


class RowAllocator:
    """The supervisor's book of rows: which name (``pool address``, or a pool's name) has which row.

    `taken` comes from the predecessor after an upgrade, so that both generations count the same server in the same row.
    """

    def __init__(self, scoreboard: Scoreboard, taken: Mapping[str, int] | None = None) -> None:
        self._scoreboard = scoreboard
        self._rows: dict[str, int] = {}
        self._returned: dict[int, str] = {}
        """Rows that may still hold leases, and the name they counted for."""
        self._next = 0
        for name, row in (taken or {}).items():
            self._rows[name] = row
            scoreboard.use_row(row)
        used = set(self._rows.values())
        if used:
            self._next = max(used) + 1
            self._returned = {row: "" for row in range(self._next) if row not in used}

    def allocate(self, name: str) -> int:
        """The row of `name`, new or the one it has; -1 when none is free (then each worker counts for itself)."""
        row = self._rows.get(name, -1)
        if row < 0:
            row = self._find(name)
        if row >= 0:
            self._rows[name] = row
            self._returned.pop(row, None)
        return row

    def _find(self, name: str) -> int:
        for row, before in self._returned.items():
            if before == name:  # back again: what workers still count there is its own
                return row
        for row in self._returned:
            if self._scoreboard.is_row_clear(row):
                return row
        row = self._next
        if row >= self._scoreboard.rows:
            return -1
        self._next = row + 1
        self._scoreboard.use_row(row)
        return row

    def free(self, name: str) -> None:
        """Give the row back; another name gets it once its last lease has ended."""
        row = self._rows.pop(name, -1)
        if row >= 0:
            self._returned[row] = name

    def taken(self) -> dict[str, int]:
        """All names and rows, for a successor."""
        return dict(self._rows)
