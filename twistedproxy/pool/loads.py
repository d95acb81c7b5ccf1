"""How busy the servers are on the whole machine: this worker's counters plus the scoreboard.

Without a board, or for a server without a row yet, this worker's own count is all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twistedproxy.ipc.scoreboard import LeaseBoard
from twistedproxy.pool.server import Server

SMALL = 8
"""Pools up to this size read the other workers' loads for every pick, larger ones once in `EVERY_S`."""
EVERY_S = 0.001


class Loads:
    """Reads and writes the rows of one pool's servers."""

    __slots__ = ("_read_at", "is_shared", "set", "total")

    def __init__(self, board: LeaseBoard | None) -> None:
        self.is_shared = board is not None
        self.set: Callable[[int, int], None] = board.set if board else _set_nothing
        self.total: Callable[[int], int] = board.total if board else _total_nothing
        self._read_at = float("-inf")

    def assign_row(self, server: Server, row: int) -> None:
        """Count `server` in `row` from now on; -1: in this worker only."""
        if not self.is_shared or server.row == row:
            return
        if server.row >= 0:
            self.set(server.row, 0)
        server.row = row
        server.elsewhere = 0
        if row >= 0:
            self.set(row, server.active)

    def is_full(self, server: Server) -> bool:
        limit = server.limit
        return server.active >= limit or (server.row >= 0 and self.total(server.row) >= limit)

    def active(self, servers: Iterable[Server]) -> int:
        """Leases in flight at all these servers, over all workers."""
        return sum(self.total(s.row) if s.row >= 0 else s.active for s in servers)

    def read(self, servers: Sequence[Server], now: float) -> None:
        """Bring `elsewhere` up to date, for balancers that compare loads."""
        if len(servers) > SMALL and now - self._read_at < EVERY_S:
            return
        self._read_at = now
        total = self.total
        for server in servers:
            if server.row >= 0:
                server.elsewhere = total(server.row) - server.active


def _set_nothing(row: int, value: int) -> None:
    pass


def _total_nothing(row: int) -> int:
    return 0
