"""All worker processes: one per slot, replaced when they end, with the listening sockets lent to those that serve.

Lending is one rule, `sockets.assign`, applied anew whenever a worker's state changes (faults: P12, LC-04, LC-05, LC-06).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twistedproxy.observability.metrics import merge, without_gauges
from twistedproxy.supervisor.nursery import Nursery
from twistedproxy.supervisor.processes import LAG_S, State, Worker, World, null_device
from twistedproxy.supervisor.sockets import SocketKey, assign

CHECK_S = 0.25
STALL_S = 1.0
"""A check that comes this much too late means that we stood still, not the workers."""
COLLECT_S = 1.0
ASK_S = 2.0
CRASH_LIVED_S = 10.0
FIRST_DELAY_S = 0.1
LAST_DELAY_S = 10.0
CUT_GRACE_S = 5.0
"""After the drain limits have passed, a worker may take this long to end."""


class ListeningSockets(Protocol):
    @property
    def counts(self) -> Mapping[str, int]: ...

    def descriptor(self, key: SocketKey) -> int: ...


class Columns(Protocol):
    """The slots of `ipc.scoreboard.Scoreboard`: one column of cells for each worker."""

    def take_slot(self) -> int: ...

    def free_slot(self, slot: int) -> None: ...

    def clear_slot(self, slot: int) -> None:
        """Forget what a dead worker counted; its successor has the same slot."""
        ...


class Backoff:
    """How long a slot waits before its next worker: not at all after one that lived, ever longer in a crash loop."""

    def __init__(self) -> None:
        self._next = FIRST_DELAY_S

    def delay(self, lived_s: float) -> float:
        if lived_s >= CRASH_LIVED_S:
            self._next = FIRST_DELAY_S
            return 0.0
        delay = self._next
        self._next = min(LAST_DELAY_S, delay * 2)
        return delay


class Fleet:
    """The workers.

    `command` gives the arguments that start the worker of a slot; `columns` are the slots of the scoreboard;
    `on_change` hears of every change of a worker's state; `on_failures` gets rows of `commands.Failures`;
    `nursery` makes the processes (None: each is started by itself).
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        slots: int,
        sockets: ListeningSockets,
        world: World,
        *,
        command: Callable[[int], list[str]],
        scoreboard_fd: int,
        columns: Columns,
        on_change: Callable[[Worker], None],
        on_failures: Callable[[list[list[Any]]], None],
        nursery: Nursery | None = None,
    ) -> None:
        self._reactor = reactor
        self._wanted = slots
        self._sockets = sockets
        self._world = world
        self._command = command
        self._scoreboard_fd = scoreboard_fd
        self._columns = columns
        self._on_change = on_change
        self._on_failures = on_failures
        self._nursery = nursery
        self._null_fd = -1
        self._workers: dict[int, Worker] = {}
        self._backoffs: dict[int, Backoff] = {}
        self._retiring: set[int] = set()
        """Slots whose worker finishes and gets no successor."""
        self._respawns: dict[int, Any] = {}
        self._lent: dict[SocketKey, tuple[Worker, ...]] = {}
        self._held: set[str] = set()
        self._totals = Totals()
        self.count_elder = self._totals.count_elder
        self._extra: set[int] = set()
        """Slots of workers that will take another's place."""
        self._has_begun = False
        self._is_stopping = False
        self._checked = 0.0
        self._loop = LoopingCall(self._check)
        self._loop.clock = reactor

    # Life

    def start(self) -> None:
        self._null_fd = null_device()
        self._checked = self._reactor.seconds()
        self._loop.start(CHECK_S, now=False)
        if self._nursery is None:
            self._spawn_all()
        else:
            self._nursery.start(self._null_fd).addCallback(lambda _: self._spawn_all())

    def _spawn_all(self) -> None:
        if self._is_stopping:
            return
        self._has_begun = True
        self._fill()

    def _spawn(self, slot: int) -> None:
        self._respawns.pop(slot, None)
        if self._is_stopping:
            return
        worker = Worker(self._reactor, slot, self._world, self)
        self._workers[slot] = worker
        try:
            worker.start(self._command(slot), self._scoreboard_fd, self._null_fd, self._nursery)
        except OSError as e:
            self.log.error("worker {slot} cannot be started: {why}", slot=slot, why=str(e))
            worker.ended.callback(None)
            self._replace(worker)
            return
        worker.ended.addCallback(lambda _: self._replace(worker))
        self._on_change(worker)

    def _replace(self, worker: Worker) -> None:
        """The process is dead: keep what it counted, start the next."""
        if worker.statistics is not None:
            self._totals.keep(worker.statistics)
            worker.statistics = None
        if worker.slot in self._retiring:
            self._retiring.discard(worker.slot)
            del self._workers[worker.slot]
            self._columns.free_slot(worker.slot)
            self._fill()  # if it had to wait for a slot
            return
        if self._is_stopping:
            self._columns.free_slot(worker.slot)  # the board may be a successor's by now
            return
        self._columns.clear_slot(worker.slot)
        delay = self._backoffs.setdefault(worker.slot, Backoff()).delay(self._reactor.seconds() - worker.started)
        if delay >= 1:
            self.log.error(
                "worker {slot} ends again and again soon after its start: next try in {delay:.1f} s. Its last words above say why; "
                "the other workers serve meanwhile.",
                slot=worker.slot, delay=delay,
            )  # fmt: skip
        self._respawns[worker.slot] = self._reactor.callLater(delay, self._spawn, worker.slot)

    def resize(self, slots: int) -> None:
        """More workers, or fewer: the last ones finish what they have, and their sockets are lent to the others meanwhile."""
        self._wanted = slots
        if not self._has_begun or self._is_stopping:
            return
        staying = sorted(self._workers.keys() - self._retiring - self._extra)
        for slot in staying[slots:]:
            self.retire(slot)
        self._fill()

    def _fill(self) -> None:
        """Start what is missing; those for which there is no slot start when older workers have finished."""
        if not self._has_begun or self._is_stopping:
            return
        staying = self._workers.keys() - self._retiring - self._extra
        for n in range(self._wanted - len(staying)):
            try:
                slot = self._columns.take_slot()
            except ValueError as e:
                self.log.warn(
                    "{n} of {wanted} workers start when older ones have finished: {why}",
                    n=self._wanted - len(staying) - n, wanted=self._wanted, why=str(e),
                )  # fmt: skip
                return
            self._spawn(slot)

    def retire(self, slot: int) -> None:
        """Its worker finishes what it has, and gets no successor."""
        self._extra.discard(slot)
        if slot in self._retiring or slot not in self._workers:
            return
        self._retiring.add(slot)
        respawn = self._respawns.pop(slot, None)
        if respawn is not None:
            respawn.cancel()
            self._retiring.discard(slot)
            del self._workers[slot]
            self._columns.free_slot(slot)
        else:
            self._workers[slot].drain()

    def add(self) -> int:
        """Start one worker more, in a slot of its own, to take another's place; `ValueError` when there is no slot left."""
        slot = self._columns.take_slot()
        self._extra.add(slot)
        self._spawn(slot)
        return slot

    def settle(self, slot: int) -> None:
        """An added worker stays."""
        self._extra.discard(slot)

    @property
    def staying(self) -> Mapping[int, Worker]:
        """By slot, those that are not told to finish."""
        return {slot: worker for slot, worker in self._workers.items() if slot not in self._retiring}

    def drain(self, within_s: float) -> Deferred[None]:
        """Let every worker finish; fires when all have ended, at the latest `within_s` and a grace later."""
        self._is_stopping = True
        for respawn in self._respawns.values():
            respawn.cancel()
        self._respawns.clear()
        for worker in self._living():
            worker.drain()
        limit = self._reactor.callLater(within_s + CUT_GRACE_S, self.cut)
        done: Deferred[None] = DeferredList([_when(worker.ended) for worker in self._living()]).addCallback(lambda _: None)

        def finish(_: None) -> None:
            if limit.active():
                limit.cancel()
            if self._loop.running:
                self._loop.stop()
            if self._nursery is not None:
                self._nursery.stop()

        return done.addCallback(finish)

    def cut(self) -> None:
        """End every worker at once."""
        for worker in self._living():
            worker.kill("stopping at once")

    def _living(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if not worker.ended.called]

    def _check(self) -> None:
        now = self._reactor.seconds()
        late = now - self._checked - CHECK_S
        self._checked = now
        for worker in self._living():
            if late > STALL_S:
                worker.excuse(late)
            worker.check(now)

    # What workers tell

    def worker_moved(self, worker: Worker) -> None:
        self._lend()
        self._on_change(worker)

    def worker_failures(self, rows: list[list[Any]]) -> None:
        self._on_failures(rows)

    def hold(self, listeners: Iterable[str]) -> None:
        """New listeners that no worker knows of yet: not lent before `lend`."""
        self._held |= set(listeners)

    def lend(self, listeners: Iterable[str]) -> None:
        self._held -= set(listeners)
        self._lend()

    def _lend(self) -> None:
        """Bring the sockets to whom they belong now: adopt first, give back after, so that each always has somebody."""
        if self._is_stopping:
            return
        serving = {worker.slot: worker for worker in self._workers.values() if worker.state is State.SERVING}
        if not serving:
            # Better a laggard than nobody.
            serving = {worker.slot: worker for worker in self._workers.values() if worker.state is State.LAGGING}
        counts = {address: count for address, count in self._sockets.counts.items() if address not in self._held}
        wanted = {key: tuple(serving[slot] for slot in slots) for key, slots in assign(counts, serving).items()}
        before, self._lent = self._lent, wanted
        for key, workers in wanted.items():
            for worker in workers:
                if worker not in before.get(key, ()):
                    worker.adopt(*key, self._sockets.descriptor(key))
        for key, workers in before.items():
            for worker in workers:
                if worker not in wanted.get(key, ()) and worker.state in (State.SERVING, State.LAGGING):
                    worker.give_back(*key)

    # What workers are told

    @property
    def workers(self) -> Sequence[Worker]:
        return [self._workers[slot] for slot in sorted(self._workers)]

    def reach(self, revision: int, change: Mapping[str, Any] | None) -> Deferred[tuple[int, list[int]]]:
        """Bring every live worker to `revision`, by `change` or (None) by the whole model.

        Fires after 5 s at the latest with (how many were asked, slots that did not answer).
        """
        asked = [w for w in self.workers if w.state in (State.SERVING, State.LAGGING)]
        answers = [worker.reach_whole(revision) if change is None else worker.reach(revision, change) for worker in asked]
        done: Deferred[tuple[int, list[int]]] = Deferred()
        left = len(answers)

        def finish() -> None:
            if limit.active():
                limit.cancel()
            behind = [w for w in asked if w.revision < revision]
            for worker in behind:
                worker.lags(f"did not answer revision {revision} within {LAG_S:g} s")
            done.callback((len(asked), [w.slot for w in behind]))

        def answered(_: bool) -> None:
            nonlocal left
            left -= 1
            if not left and not done.called:
                finish()

        limit = self._reactor.callLater(LAG_S if answers else 0, finish)
        for answer in answers:
            answer.addCallback(answered)
        return done

    def observe(self, observations: list[dict[str, Any]]) -> list[tuple[Worker, Deferred[Any]]]:
        """Returns who is told, each with the answer to come."""
        return [(worker, answer) for worker in self._living() if (answer := worker.observe(observations)) is not None]

    def reopen_logs(self) -> None:
        for worker in self._living():
            worker.reopen_logs()

    def statistics(self) -> dict[str, Any]:
        """Totals over the living and the gone; counters never run backwards."""
        return self._totals.over([w.statistics for w in self._workers.values() if w.statistics is not None])

    def ask(self, asked: Mapping[str, Any]) -> Deferred[list[Any]]:
        """What every living worker answers, within 2 s; those that do not are left out."""
        waiting = [worker.ask(asked) for worker in self.workers if worker.state in (State.SERVING, State.LAGGING)]
        return _within(self._reactor, ASK_S, waiting)

    def collect(self) -> Deferred[None]:
        """Ask everybody for fresh statistics; fires after 1 s at the latest."""
        asked = [worker.collect() for worker in self.workers if worker.state in (State.SERVING, State.LAGGING)]
        return _within(self._reactor, COLLECT_S, asked).addCallback(lambda _: None)


class Totals:
    """What was counted by those who count no more."""

    log = Logger()

    def __init__(self) -> None:
        self._gone = merge([])
        self._elder: Mapping[str, Any] | None = None
        """Latest totals of the supervisor before this one, while it finishes."""
        self._is_strange = False

    def over(self, living: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return merge([self._gone, *living] if self._elder is None else [self._gone, *living, self._elder])

    def keep(self, statistics: Mapping[str, Any]) -> None:
        """The last ones of a worker."""
        self._gone = merge([self._gone, without_gauges(statistics)])

    def count_elder(self, statistics: Mapping[str, Any] | None) -> None:
        """What the supervisor before this one has counted; None: it has left, and adds no more."""
        if statistics is None:
            if self._elder is not None:
                self.keep(self._elder)
                self._elder = None
            return
        try:
            merge([statistics])
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            if not self._is_strange:
                self._is_strange = True
                self.log.warn("what the version before this one counted is not understood and not added: {why}", why=repr(e))
        else:
            self._elder = statistics


def heard_by_all(reactor: Any, told: Sequence[tuple[Worker, Deferred[Any]]]) -> Deferred[tuple[int, list[int]]]:
    """Of those who are told something: (how many live, slots of those that have not taken it in after 5 s); the latter are behind."""
    done: Deferred[tuple[int, list[int]]] = Deferred()
    behind = {worker.slot: worker for worker, _ in told}
    left = len(told)

    def finish() -> None:
        if limit.active():
            limit.cancel()
        living = [worker for worker, _ in told if worker.state is not State.GONE]
        lagging = [worker for worker in living if worker.slot in behind]
        for worker in lagging:
            worker.lags("it did not take in what it was told")
        done.callback((len(living), [worker.slot for worker in lagging]))

    def answered(answer: Any, slot: int) -> None:
        nonlocal left
        left -= 1
        if answer is not None:
            del behind[slot]
        if not left and not done.called:
            finish()

    limit = reactor.callLater(LAG_S if told else 0, finish)
    for worker, answer in told:
        answer.addCallback(answered, worker.slot)
    return done


def _within(reactor: Any, seconds: float, waiting: Sequence[Deferred[Any]]) -> Deferred[list[Any]]:
    """The answers that come in time."""
    answers: list[Any] = []
    done: Deferred[list[Any]] = Deferred()
    left = len(waiting)

    def finish() -> None:
        if limit.active():
            limit.cancel()
        if not done.called:
            done.callback(list(answers))

    def answered(answer: Any) -> None:
        nonlocal left
        left -= 1
        if answer is not None:
            answers.append(answer)
        if not left:
            finish()

    limit = reactor.callLater(seconds if waiting else 0, finish)
    for each in waiting:
        each.addCallback(answered)
    return done


def _when(ended: Deferred[None]) -> Deferred[None]:
    """A Deferred of one's own that fires after `ended`."""
    mine: Deferred[None] = Deferred()

    def passed_on(result: None) -> None:
        mine.callback(None)

    ended.addCallback(passed_on)
    return mine
