"""A named set of servers: who may connect where, right now.

How it works
    The pool keeps a `View`: the servers that are available, with their effective weights, and a picker prepared for them. It is
    computed anew only when something changed, so that the common `acquire` is: is the view still good, pick, is the pick full,
    count, done.

    A full server stays available: when all are full, requests wait in line (`queue.py`). A place that comes free in this worker
    is handed to the line at once; one that comes free in another worker is found by `re_check`.

    Walk: `acquire` → `View` → its picker → `Loads.is_full` → `Lease` … `Lease.release` → `_hand_over` to the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from twistedproxy.clock import Wheel
from twistedproxy.config.model import AdminState, Endpoint, Health
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.errors import ProxyError, QueueFull, Refusal
from twistedproxy.ipc.scoreboard import LeaseBoard
from twistedproxy.pool.budget import RetryBudget
from twistedproxy.pool.loads import Loads
from twistedproxy.pool.queue import Line, Queued
from twistedproxy.pool.server import Outcome, Server
from twistedproxy.pool.view import LONG_AGO, Nobody, View, no_server

FULL_S = 0.001
"""So long after a look that found every server full, newcomers join the line without another one: what comes free in this worker is handed
over at once, and for what comes free elsewhere a look now and then is enough."""
REPORT_S = 1.0
"""Requests without failures are reported for ejection this often; failures at the next `take_failures`."""

_OK = Outcome.OK
_FAILED = Outcome.FAILED


class Lease:
    """Permission to use one server for one request, stream or session; released exactly once, whatever happens."""

    __slots__ = ("_pool", "server")

    def __init__(self, pool: Pool, server: Server) -> None:
        self._pool: Pool | None = pool
        self.server = server

    def release(self, outcome: Outcome, latency_s: float = -1.0) -> None:
        """Give the place back; `latency_s` is the time to the response head, negative when there was none."""
        pool = self._pool
        if pool is None:
            raise AssertionError(f"the lease of {self.server.address} was released twice")
        self._pool = None
        server = self.server
        server.active = active = server.active - 1
        row = server.row
        if row >= 0:
            pool._set_leases(row, active)
        if outcome is not _OK:
            if outcome is _FAILED:
                server.failures += 1
                pool._has_failures = True
            else:
                server.neutral += 1
        if server.sessions:
            server.sessions.pop(self, None)
        if latency_s >= 0.0 and pool._reads_latency:
            server.see_latency(latency_s, outcome, pool._seconds())
        if pool._waiters:
            pool._hand_over(server)

    def forfeit(self) -> None:
        """Whoever it was given to has failed with it: the place is free, and should he release it after all, that is no error."""
        self.release(Outcome.NEUTRAL)
        self.__class__ = _Forfeited

    @property
    def is_held(self) -> bool:
        return self._pool is not None

    def on_cut(self, callback: Callable[[ProxyError], None]) -> None:
        """Call back when the server's sessions are cut (removed now, end of a maintenance deadline); `release` unregisters."""
        if self._pool is None:
            raise AssertionError(f"the lease of {self.server.address} is released already")
        self.server.sessions[self] = callback

    def __repr__(self) -> str:
        return f"<Lease {self.server.address}{'' if self.is_held else ' released'}>"


class _Forfeited(Lease):
    __slots__ = ()

    def release(self, outcome: Outcome, latency_s: float = -1.0) -> None:
        """The place was given back already."""


class Pool:
    """One pool in one worker.

    `seconds` is CLOCK_MONOTONIC, the same the wheel runs on. `board` is None where nothing is shared with other workers.
    """

    def __init__(
        self, spec: PoolSpec, *, seconds: Callable[[], float], wheel: Wheel, random: Random, board: LeaseBoard | None = None
    ) -> None:
        self.name = spec.name
        self._seconds = seconds
        self._random = random
        self._loads = Loads(board)
        self._set_leases = self._loads.set
        self._view = View(spec.balance, random)
        self._line = Line(spec.name, wheel, board.queued if board else None)
        self._waiters = self._line.places  # to be asked "anybody there?" on every request
        self._budget = RetryBudget(spec.retry.budget, lambda: self._loads.active(self.servers), board.retries if board else None)
        self._departed: dict[str, Server] = {}
        """Servers no longer in the pool that still have leases, by address."""
        self._has_failures = False
        self._report_at = LONG_AGO
        self._is_handing_over = False
        self._full_until = LONG_AGO
        self._freed: list[Server] = []
        self.tls: Any = None
        """How to connect with TLS (`net.tls_connector.TlsConnector`); None: without."""
        self._by_address: dict[str, Server] = {}
        for server in spec.servers:
            self._by_address[server.address] = Server(server, spec.limit_of(server), spec.slow_start_s)
        self._configure(spec)

    # What the pool is

    @property
    def spec(self) -> PoolSpec:
        """What the pool was last told to be."""
        return self._spec

    @property
    def waiting(self) -> int:
        """Requests of this worker in line."""
        return len(self._line)

    def server(self, address: str) -> Server | None:
        """The server of this canonical address, if it is in the pool."""
        return self._by_address.get(address)

    def update(self, spec: PoolSpec) -> list[Server]:
        """Be what `spec` says; returns the servers that left, which live on until their leases end.

        A server that stays keeps its object, counters and turn. One that comes back while leases from before are open is the same
        object again, so that its limit holds; its verdicts start afresh.
        """
        now = self._seconds()
        before = self._by_address
        if spec.balance != self._spec.balance:
            self._view.set_balance(spec.balance)
        self._by_address = {}
        for wanted in spec.servers:
            limit = spec.limit_of(wanted)
            server = before.pop(wanted.address, None)
            if server is not None:
                was_open = server.state is AdminState.READY and server.weight > 0
                server.configure(wanted, limit, spec.slow_start_s)
                if not was_open and server.state is AdminState.READY and server.weight > 0:
                    server.ramp_from = now
            else:
                server = self._departed.pop(wanted.address, None)
                if server is None:
                    server = Server(wanted, limit, spec.slow_start_s)
                else:
                    server.configure(wanted, limit, spec.slow_start_s)
                    server.health = Health.UNKNOWN
                    server.ejected_until = 0.0
                server.ramp_from = now
            self._by_address[wanted.address] = server
        left = list(before.values())
        self._departed.update((s.address, s) for s in left)
        self._prune()
        self._configure(spec)
        self._changed(now)
        return left

    def _configure(self, spec: PoolSpec) -> None:
        self._spec = spec
        self.servers = tuple(self._by_address.values())
        self._reads_loads = self._view.reads_loads and self._loads.is_shared
        self._reads_latency = self._view.reads_latency
        self._line.size = spec.queue.size
        self._line.timeout_s = spec.queue.timeout_s
        self._budget.share = spec.retry.budget

    def _prune(self) -> None:
        self._departed = {address: server for address, server in self._departed.items() if server.active}

    # Observations. An address the pool does not know (any more) is ignored: they travel apart from changes.

    def observe_health(self, address: str, health: Health) -> None:
        server = self._by_address.get(address)
        if server is None:
            return
        now = self._seconds()
        if server.health is Health.DOWN and health is not Health.DOWN:
            server.ramp_from = now
        server.health = health
        self._changed(now)

    def eject(self, address: str, until: float) -> None:
        """Nothing new for the server until the clock shows `until`; 0 takes it back."""
        server = self._by_address.get(address)
        if server is None:
            return
        now = self._seconds()
        if until <= now < server.ejected_until:
            server.ramp_from = now
        server.ejected_until = until
        self._changed(now)

    def resolve(self, address: str, endpoints: Sequence[Endpoint]) -> None:
        server = self._by_address.get(address)
        if server is not None:
            server.endpoints = tuple(endpoints)
            self._changed(self._seconds())

    def assign_row(self, address: str, row: int) -> None:
        """Count the server's leases in this row of the scoreboard from now on; the address "" means the pool's queue and retries."""
        if not address:
            self._line.assign_row(row)
            self._budget.assign_row(row)
            return
        server = self._by_address.get(address)
        if server is not None:
            self._loads.assign_row(server, row)

    def _changed(self, now: float) -> None:
        self._view.expire()
        if self._waiters:
            self._serve(now)

    # Leases

    def acquire(
        self, key: int, tried: frozenset[Server], waiter: Callable[[Lease | Refusal], None], prefer: Server | None = None
    ) -> Lease | Refusal | Queued:
        """A lease at once, a refusal at once, or a place in the queue, whose `waiter` then gets a lease or a refusal.

        `key` is what hashing balancers go by. `prefer` is the server this client was on before: it gets it even while draining.
        """
        now = self._seconds()
        view = self._view
        if now >= view.until:
            view.look(self.servers, now)
        if self._reads_loads:
            self._loads.read(self.servers, now)
        if prefer is not None and self._takes_back(prefer, tried, now):
            return self._grant(prefer)
        if self._waiters:
            view.saw(key, now)
            return self._acquire_slowly(key, tried, waiter, now)
        server = view.pick(key, now, self._random, tried)
        if server is None or self._loads.is_full(server):
            return self._acquire_slowly(key, tried, waiter, now)
        # `_grant`, unrolled: this is the path of nearly every request.
        server.leases += 1
        server.active = active = server.active + 1
        row = server.row
        if row >= 0:
            self._set_leases(row, active)
        return Lease(self, server)

    def _grant(self, server: Server) -> Lease:
        server.leases += 1
        server.active += 1
        if server.row >= 0:
            self._set_leases(server.row, server.active)
        return Lease(self, server)

    def _takes_back(self, prefer: Server, tried: frozenset[Server], now: float) -> bool:
        is_here = self._by_address.get(prefer.address) is prefer and prefer not in tried
        return is_here and prefer.is_available_sticky(now) and not self._loads.is_full(prefer)

    def _acquire_slowly(
        self, key: int, tried: frozenset[Server], waiter: Callable[[Lease | Refusal], None], now: float
    ) -> Lease | Refusal | Queued:
        if self._waiters and (now < self._full_until or self._serve(now) is Nobody.FULL) and not tried:
            return self._wait(key, tried, waiter)
        server = self._view.choose(key, now, tried, self._loads.is_full)
        if isinstance(server, Server):
            return self._grant(server)
        if server is Nobody.NONE:
            return no_server(self.name, self.servers, tried, now)
        return self._wait(key, tried, waiter)

    def _wait(self, key: int, tried: frozenset[Server], waiter: Callable[[Lease | Refusal], None]) -> Refusal | Queued:
        if self._line.is_full() and not self._line.moves_fast(lambda: sum(server.leases for server in self.servers)):
            return QueueFull(f"all servers of pool {self.name!r} are busy and {self._line.size} requests wait already")
        return self._line.join(key, tried, waiter)

    # The line

    def re_check(self, now: float) -> None:
        """Serve those who wait with what came free elsewhere; the worker calls it on every tick."""
        if self._waiters:
            self._serve(now)

    def _serve(self, now: float) -> Nobody | None:
        """Answer everybody in line who can be; `FULL` when every server is known to be full after it."""
        if self._is_handing_over:
            return None
        self._is_handing_over = True
        self._full_until = LONG_AGO
        try:
            if now >= self._view.until:
                self._view.look(self.servers, now)
            if self._reads_loads:
                self._loads.read(self.servers, now)
            for queued in self._line:
                if not queued.is_waiting:
                    continue
                server = self._view.choose(queued.key, now, queued.tried, self._loads.is_full)
                if isinstance(server, Server):
                    queued.answer(self._grant(server))
                elif server is Nobody.NONE:
                    queued.answer(no_server(self.name, self.servers, queued.tried, now))
                elif not queued.tried:
                    self._full_until = now + FULL_S
                    return Nobody.FULL
            return None
        finally:
            self._is_handing_over = False
            if self._freed:
                self._hand_over(self._freed.pop())

    def _hand_over(self, server: Server) -> None:
        """A place came free at `server`: the first in line who can use it gets it.

        A waiter may release what it gets before it returns; a loop instead of recursion keeps the stack flat.
        """
        self._freed.append(server)
        if self._is_handing_over:
            return
        self._is_handing_over = True
        try:
            while self._freed:
                server = self._freed.pop()
                now = self._seconds()
                if now >= self._view.until:
                    self._view.look(self.servers, now)
                if server not in self._view.available or self._loads.is_full(server):
                    continue
                for queued in self._line.places:  # no copy of a long line: the first answer ends the loop
                    if server not in queued.tried:
                        queued.answer(self._grant(server))
                        break
        finally:
            self._is_handing_over = False

    # Retries

    def may_retry(self) -> bool:
        """Whether the retry budget allows one more; each True is followed by one `retry_done`."""
        return self._budget.take()

    def retry_done(self) -> None:
        self._budget.give_back()

    # What others want to know

    def take_failures(self) -> list[tuple[str, int, int]]:
        """(address, failures, requests) since the last call, for the supervisor's ejections.

        Servers that failed come at once, the others' requests once a second: failures are weighed against them.
        """
        if self._spec.eject is None:
            return []
        now = self._seconds()
        is_time = now >= self._report_at
        if is_time:
            self._report_at = now + REPORT_S
        elif not self._has_failures:
            return []
        self._has_failures = False
        reports = ((s.address, *s.take_report(is_time)) for s in self.servers)
        return [(address, failures, requests) for address, failures, requests in reports if failures or requests]

    def statistics(self) -> Iterator[tuple[str, int, int, int]]:
        """(address, active, leases ever, failures ever) of every server, those included that left with leases open."""
        self._prune()
        for server in (*self.servers, *self._departed.values()):
            yield server.address, server.active, server.leases, server.failures


def forget_connections(pool: Pool) -> None:
    """Idle connections are closed, and those in use will not be idle again: how the servers are talked to has changed."""
    for server in (*pool._by_address.values(), *pool._departed.values()):
        idle, server.idle = server.idle, []
        for connection in tuple(idle):
            connection.close()


def recent_keys(pool: Pool) -> list[tuple[int, int]]:
    """(key, how often) of a sample of the last two minutes' requests; none where the balancer does not go by keys."""
    recent = pool._view.recent
    return recent.counts(pool._seconds()) if recent is not None else []
