"""The control plane: takes changes, makes them durable, brings them to every worker, and knows how everything is.

How it works
    What operators do goes through `operations`: checked, journaled with fsync, and only then committed here: model and revision,
    `Apply` or the whole model to every worker. Observations (health, ejection, addresses, rows) are broadcast without journal and
    revision; those of one reactor turn are sent together.

The class has over 300 lines: it is the one who knows all others, and hands each question on to whom it belongs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twistedproxy.config import plain
from twistedproxy.config.changes import Change, HealthSeen
from twistedproxy.config.control import Applied, Entry, Event, Snapshot, Terms, WorkerView
from twistedproxy.config.model import Model
from twistedproxy.errors import Problem
from twistedproxy.supervisor.caching import Caching, Everybody, keeper_of
from twistedproxy.supervisor.configuration import Configuration, ConfigurationFile
from twistedproxy.supervisor.facts import Rows
from twistedproxy.supervisor.fleet import Columns, Fleet, ListeningSockets
from twistedproxy.supervisor.handover import HandOver
from twistedproxy.supervisor.journal import ChangeLog, Replayed
from twistedproxy.supervisor.nursery import Nursery
from twistedproxy.supervisor.observed import MakeChecks, MakeNames, Observed
from twistedproxy.supervisor.operations import Operations
from twistedproxy.supervisor.processes import State, Worker
from twistedproxy.supervisor.questions import Questions
from twistedproxy.supervisor.rotation import Rotation
from twistedproxy.supervisor.shifts import Shifts
from twistedproxy.supervisor.sockets import Staged, Wanted
from twistedproxy.supervisor.upgrade import Upgrade

STATS_S = 1.0

_VIEW = {State.CONFIGURING: State.STARTING}
"""States that mean the same to the operator."""

T = TypeVar("T")


class BoundSockets(ListeningSockets, Protocol):
    def stage(self, wanted: Sequence[Wanted], slots: int) -> Staged | list[Problem]: ...

    def close(self) -> None: ...

    @property
    def addresses(self) -> Mapping[str, str]: ...

    @property
    def kinds(self) -> Sequence[tuple[str, str]]: ...


class Board(Columns, Protocol):
    """`ipc.scoreboard.Scoreboard`, as far as it matters here."""

    fd: int

    @property
    def slots(self) -> int: ...


class Supervisor(Service):
    """Implements `config.control.Control` over a fleet of workers.

    `replayed` is the model to start with, `command` gives the arguments of the worker of a slot, `nursery` makes its process, `checks` and
    `names` make the probes, `wall` is the wall clock, `file` and `current` are the configuration file and what it says, `in_thread` runs
    what blocks.
    """

    name = "supervisor"
    log = Logger()

    def __init__(
        self,
        reactor: Any,
        replayed: Replayed,
        journal: ChangeLog,
        sockets: BoundSockets,
        board: Board,
        rows: Rows,
        *,
        command: Callable[[int], list[str]],
        checks: MakeChecks,
        names: MakeNames,
        nursery: Nursery | None = None,
        wall: Callable[[], float] = time.time,
        file: ConfigurationFile | None = None,
        current: Configuration | None = None,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]] = maybeDeferred,
    ) -> None:
        self.model = replayed.model
        self.revision = replayed.revision
        self._superseded = replayed.superseded
        self._reactor = reactor
        self._journal = journal
        self._sockets = sockets
        self._board = board
        self._started = reactor.seconds()
        self._observers: list[Callable[[Event], None]] = []
        self.is_stopping = False
        self._was_ready = False
        self._seen_states: dict[int, tuple[int, str]] = {}
        slots = max(self.model.workers, 1)
        self._slots = slots
        self._fleet = Fleet(
            reactor,
            slots,
            sockets,
            self,
            command=command,
            scoreboard_fd=board.fd,
            columns=board,
            on_change=self._worker_changed,
            on_failures=lambda rows: self._observed.saw_failures(rows),  # noqa: PLW0108 - made below
            nursery=nursery,
        )
        self.questions = Questions(self, wall)
        self.shifts = Shifts(self, wall, os.path.join(self.model.state_dir, "shifts.json") if self.model.state_dir else "")
        self.explainers: Callable[[], Sequence[str]] = tuple
        """Digests of the tokens that may ask for the trace of a live request."""
        self.operations = Operations(reactor, self, journal, wall, file, current, in_thread)
        self._loop = LoopingCall(self._each_second)
        self._loop.clock = reactor
        self._observed = Observed(
            reactor, self.model, rows, checks, names, wall, broadcast=self._fleet.observe, publish=self.publish
        )  # fmt: skip
        self.caching = Caching(
            self.model, wall, in_thread, Everybody(reactor, self._observed, self._fleet),
            publish=self.publish, why_not=self._why_no_purge, make_keeper=keeper_of(reactor),
        )  # fmt: skip
        self.hand_over = HandOver(
            reactor, self, journal, self._fleet, self.operations, self.shifts, self._observed, self.caching.purging,
            lambda: [a for a, _ in sockets.kinds],
        )  # fmt: skip
        self.upgrade = Upgrade(reactor, self.hand_over, wall)
        self.rotation = Rotation(reactor, self._fleet, self._why_no_rotation, self.publish, wall)

    # Life

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._started = self._reactor.seconds()
        for superseded in self._superseded:
            self.log.warn("the configuration file has overtaken a live change: {what}", what=str(superseded))
        if self.operations.current is not None:
            self.operations.current.warn()
        self.caching.start()
        self._fleet.start()
        self._observed.start()
        self._loop.start(STATS_S, now=False)
        if not self.hand_over.is_still:
            self._tell_listeners(self._sockets.addresses)
            self.operations.start()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, let the workers finish within the drain limits; `stop_now` cuts that short."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.is_stopping = True
        self.upgrade.stop()
        self.operations.stop()
        self.caching.stop()
        self._observed.stop()
        timeouts = self.model.timeouts
        limit = max(timeouts.drain_http_s, timeouts.drain_tcp_s)
        open_now = sum(worker.connections for worker in self._fleet.workers)
        self.log.info("stopping: {n} connections may finish within {limit:g} s", n=open_now, limit=limit)
        stopped = self._fleet.drain(limit).addBoth(self._stopped)
        # New clients are refused from now on; those that wait in the queues are taken by the workers before they close theirs.
        self._sockets.close()
        return stopped

    def _stopped(self, result: Any) -> Any:
        if self._loop.running:
            self._loop.stop()
        self._observed.stopped()
        self.log.info("stopped")
        return result

    def stop_now(self) -> None:
        self.log.warn("stopping at once: open connections are cut")
        self._fleet.cut()

    def reopen_logs(self) -> None:
        self._fleet.reopen_logs()

    # Control: what the admin side asks

    async def apply(
        self,
        change: Change,
        *,
        by: str,
        reason: str = "",
        expected_revision: int | None = None,
        confirm_within_s: float | None = None,
        abort_if: str | None = None,
        preview: bool = False,
    ) -> Applied:
        terms = Terms(by, reason, expected_revision, confirm_within_s, abort_if, preview)
        return await _shield(self.operations.apply(change, terms))

    async def reload(self, terms: Terms) -> Applied:
        self._observed.look_at_certificates()
        return await _shield(self.operations.reload(terms))

    def check(self, text: str) -> None:
        self.operations.check(text)

    async def undo(self, revision: int, terms: Terms) -> Applied:
        return await _shield(self.operations.undo(revision, terms))

    async def confirm(self, revision: int, by: str) -> None:
        await _shield(self.operations.confirm(revision, by))

    async def configuration_at(self, revision: int) -> Mapping[str, Any]:
        return await self.operations.configuration_at(revision)

    async def difference(self) -> Sequence[Mapping[str, Any]]:
        return await self.operations.difference()

    async def adopt(self, terms: Terms) -> tuple[str, Applied | None]:
        return await _shield(self.operations.adopt(terms))

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> Any:
        for other in (self.shifts, self.caching, self.upgrade, self.rotation):
            if what in other.questions:
                return await other.answer(what, arguments)
        return await self.questions.answer(what, arguments)

    def _why_no_rotation(self) -> str:
        if self.upgrade.is_under_way:
            return "an upgrade is under way, which replaces all workers"
        return "the proxy is stopping" if self.is_stopping else ""

    def _why_no_purge(self) -> str:
        return "another version takes over at this moment; ask again in a second" if self.hand_over.is_still else ""

    def count_elder(self, connections: int, statistics: Mapping[str, Any] | None) -> None:
        """The supervisor before this one still has `connections`, and has counted; None: it has left."""
        self._fleet.count_elder(statistics)
        self.upgrade.elder_has(connections, is_over=statistics is None)

    @property
    def slots(self) -> frozenset[int]:
        """Of the scoreboard, those of our workers."""
        return frozenset(worker.slot for worker in self._fleet.workers)

    def ask_workers(self, asked: Mapping[str, Any]) -> Deferred[list[Any]]:
        return self._fleet.ask(asked)

    # Plane: what operations act on

    def stage(self, wanted: Sequence[Wanted], slots: int) -> Staged | list[Problem]:
        if slots > self._board.slots:
            message = f"this process has room for {self._board.slots} workers: upgrade or restart the proxy to have {slots}"
            return [Problem("workers.count", message)]
        return self._sockets.stage(wanted, slots)

    def replace_listeners(self, staged: Staged, slots: int) -> Callable[[], None]:
        before = self._sockets.kinds
        removed = staged.commit()
        fresh = {address for address, _ in self._sockets.kinds} - {address for address, _ in before}
        self._fleet.hold(fresh)
        self._slots = slots
        for bound in removed:
            # Our copies: what the workers hold still accepts, until they know the new model and have emptied the queues.
            bound.close()
            self.log.info("no longer listening on {address}", address=bound.address)

        def workers_know() -> None:
            if not self.is_stopping:
                self._fleet.lend(fresh)
                self._fleet.resize(slots)
                self._tell_listeners(fresh)

        return workers_know

    def _tell_listeners(self, configured: Iterable[str]) -> None:
        for address, kind in self._sockets.kinds:
            if address in configured:
                self.log.info("listening on {address} ({kind})", address=self._sockets.addresses[address], kind=kind)

    def commit(self, model: Model, revision: int, change: Mapping[str, Any] | None) -> Deferred[tuple[int, list[int]]]:
        self.model, self.revision = model, revision
        self._observed.before_commit(model)
        self.caching.follow(model)
        acks = self._fleet.reach(revision, change)
        self._observed.after_commit()
        return acks

    def health(self) -> tuple[Mapping[tuple[str, str], HealthSeen], frozenset[tuple[str, str]]]:
        return self._observed.health, self._observed.ejected

    def unresolved(self) -> frozenset[tuple[str, str]]:
        return self._observed.unresolved

    def snapshot(self) -> Snapshot:
        workers = tuple(
            WorkerView(w.slot, w.pid, _VIEW.get(w.state, w.state).value, max(w.revision, 0), w.connections, w.requests, w.lag_seconds)
            for w in self._fleet.workers
        )
        codecs = {w.head_codec for w in self._fleet.workers if w.head_codec}
        return Snapshot(
            model=self.model,
            revision=self.revision,
            uptime_s=self._reactor.seconds() - self._started,
            head_codec="starting" if not codecs else "native" if codecs == {"native"} else "python",
            workers=workers,
            health=self._observed.health,
            ejected=self._observed.ejected,
            unresolved=self._observed.unresolved,
            addresses=self._sockets.addresses,
            certificates=self._observed.certificates,
            effective=self.operations.effective,
            is_ready=self.is_ready,
            upgrade=self.upgrade.latest,
        )

    @property
    def is_ready(self) -> bool:
        states = [(w.state, w.revision) for w in self._fleet.workers]
        is_anybody_serving = any(state is State.SERVING for state, _ in states)
        is_anybody_behind = any(state is State.LAGGING and revision < self.revision for state, revision in states)
        return is_anybody_serving and not is_anybody_behind and not self.is_stopping

    def statistics(self) -> Mapping[str, Any]:
        own = {"config_reloads": list(self.operations.reloads.items()), "health_checks": self._observed.health_checks}
        own["cache_totals"] = self.caching.totals
        return self._fleet.statistics() | own

    async def fresh_statistics(self) -> Mapping[str, Any]:
        await self._fleet.collect()
        return self.statistics()

    def history(self, after: int = 0) -> Sequence[Entry]:
        return self._journal.entries(after)

    def subscribe(self, observer: Callable[[Event], None]) -> Callable[[], None]:
        self._observers.append(observer)

        def unsubscribe() -> None:
            if observer in self._observers:
                self._observers.remove(observer)

        return unsubscribe

    def publish(self, kind: str, data: Mapping[str, Any]) -> None:
        self.questions.saw(kind, data)
        for observer in tuple(self._observers):
            try:
                observer(Event(kind, data))
            except Exception:
                self.log.failure("an observer of {kind} events failed", kind=kind)

    # World: what workers shall know

    def configuration(self, slot: int) -> dict[str, Any]:
        return {
            "model": plain.encode(self.model),
            "revision": self.revision,
            "observations": self._observed.plain(),
            "slot": slot,
            "explainers": list(self.explainers()),
            "slots": self._slots,
            "listeners": [list(pair) for pair in self._sockets.kinds],
        }

    def observations(self) -> list[dict[str, Any]]:
        return self._observed.plain()

    # What happens

    def _worker_changed(self, worker: Worker) -> None:
        shown = (worker.pid, _VIEW.get(worker.state, worker.state).value)
        if self._seen_states.get(worker.slot) == shown:
            return
        self._seen_states[worker.slot] = shown
        if worker.state is State.SERVING:
            self.log.info(
                "worker {slot} (pid {pid}) serves revision {revision}", slot=worker.slot, pid=worker.pid, revision=worker.revision
            )
        self.publish("worker", {"slot": worker.slot, "pid": worker.pid, "state": shown[1], "revision": max(worker.revision, 0)})
        if self.is_ready and not self._was_ready:
            self._was_ready = True
            self.log.info("ready")

    def _each_second(self) -> None:
        if not self.is_stopping and not self.hand_over.is_still:
            self.operations.each_second()
            self.shifts.look()
        self.caching.purging.each_second()
        self.upgrade.tell(sum(worker.connections for worker in self._fleet.workers), self._fleet.statistics)
        if not self._observers:
            return
        totals = self.statistics()
        self.publish(
            "stats",
            {
                "revision": self.revision,
                "uptime_seconds": round(self._reactor.seconds() - self._started, 3),
                "requests": sum(row[-1] for row in totals["requests"]),
                "connections": sum(row[-1] for row in totals["gauges"]["connections"]),
                "servers": merge_servers(totals),
                "workers": [plain.encode(view) for view in self.snapshot().workers],
            },
        )


def merge_servers(totals: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Leases and failures of each server, with those in flight."""
    active = {(pool, server): n for pool, server, n in totals["gauges"]["servers"]}
    return [
        {"pool": pool, "server": server, "connections": active.get((pool, server), 0), "requests": leases, "failures": failures}
        for pool, server, leases, failures in totals["servers"]
    ]


async def _shield(work: Awaitable[T]) -> T:
    """Wait for `work` without being able to cancel it."""
    mine: Deferred[T] = Deferred()
    Deferred.fromCoroutine(work).addBoth(mine.callback)  # type: ignore[arg-type]
    return await mine
