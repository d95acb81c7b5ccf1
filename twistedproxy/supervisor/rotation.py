"""Workers replaced one by one: a new one serves before an old one stops accepting, and what the old one holds finishes there."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor import processes
from twistedproxy.supervisor.journal import rfc3339
from twistedproxy.supervisor.processes import START_S, Worker

LOOK_S = 0.05


class State(enum.Enum):
    NONE = "none"
    RUNNING = "running"
    DRAINING = "draining"
    """All are replaced, the old ones finish."""
    DONE = "done"
    FAILED = "failed"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.NONE: frozenset({State.RUNNING}),
    State.RUNNING: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.RUNNING, State.DONE}),
    State.DONE: frozenset({State.RUNNING}),
    State.FAILED: frozenset({State.RUNNING}),
}


class Workers(Protocol):
    """`fleet.Fleet`."""

    @property
    def staying(self) -> Mapping[int, Worker]: ...

    def add(self) -> int: ...

    def settle(self, slot: int) -> None: ...

    def retire(self, slot: int) -> None: ...


class Rotation:
    """The latest one. `why_not` says why there can be none now; "": there can."""

    log = Logger()
    questions = frozenset({"rotation", "restart_workers"})

    def __init__(
        self, reactor: Any, fleet: Workers, why_not: Callable[[], str], publish: Callable[[str, Mapping[str, Any]], None],
        wall: Callable[[], float],
    ) -> None:  # fmt: skip
        self._reactor = reactor
        self._fleet = fleet
        self._why_not = why_not
        self._publish = publish
        self._wall = wall
        self.state = State.NONE
        self._facts: dict[str, Any] = {}
        self._old: list[Worker] = []

    async def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what == "restart_workers":
            self.start(str(arguments.get("by", "")), str(arguments.get("reason", "")))
        return self.shown()

    def shown(self) -> dict[str, Any]:
        left = [worker for worker in self._old if not worker.ended.called]
        if self.state is State.DRAINING and not left:
            self._move(State.DONE)
        return {"state": self.state.value, **self._facts, "connections": sum(w.connections for w in left)}

    def _move(self, to: State, **facts: Any) -> None:
        if to not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a replacement of workers that is {self.state.value} cannot become {to.value}")
        self.state = to
        self._facts.update(facts)

    def start(self, by: str, reason: str = "") -> None:
        """`ChangeRefused` when one is under way, or may not be."""
        if self.state is State.RUNNING:
            raise ChangeRefused(409, "the workers are being replaced already; wait until that is done")
        why_not = self._why_not()
        if why_not:
            raise ChangeRefused(409, why_not)
        workers = [self._fleet.staying[slot] for slot in sorted(self._fleet.staying)]
        self._facts = {"started_at": rfc3339(self._wall()), "by": by, "replaced": 0, "total": len(workers), "reason": ""}
        self._old = []
        self._move(State.RUNNING)
        because = f" ({reason})" if reason else ""
        self.log.info("{n} workers are replaced one by one, by {by}{because}", n=len(workers), by=by, because=because)
        Deferred.fromCoroutine(self._run(workers)).addErrback(self._broke)

    def _broke(self, failure: Any) -> None:
        self.log.failure("the replacement of workers failed", failure)
        if self.state is State.RUNNING:
            self._fail(failure.getErrorMessage())

    def _fail(self, why: str) -> None:
        self._move(State.FAILED, reason=why)
        done, total = self._facts["replaced"], self._facts["total"]
        self.log.error("the replacement of workers ended after {n} of {total}: {why}", n=done, total=total, why=why)
        self._publish("rotation", self.shown())

    async def _run(self, workers: list[Worker]) -> None:
        for worker in workers:
            why_not = self._why_not()
            if why_not:
                self._fail(why_not)
                return
            if not await self._replace(worker):
                return
            self._facts["replaced"] += 1
            self._publish("rotation", self.shown())
        self._move(State.DRAINING)
        self.log.info("all workers are replaced; {n} connections finish in the old ones", n=self.shown()["connections"])
        self._publish("rotation", self.shown())

    async def _replace(self, old: Worker) -> bool:
        if self._fleet.staying.get(old.slot) is not old:
            return True  # it ended by itself and has a successor already, or it leaves
        try:
            slot = self._fleet.add()
        except ValueError as e:
            self._fail(f"{e}: wait until older workers have finished")
            return False
        new = self._fleet.staying[slot]
        deadline = self._reactor.seconds() + START_S
        while new.state is not processes.State.SERVING:
            if new.ended.called or self._fleet.staying.get(slot) is not new or self._reactor.seconds() > deadline:
                self._fleet.retire(slot)
                self._fail("a new worker did not get ready; its last words are in the log")
                return False
            await deferLater(self._reactor, LOOK_S)
        if self._fleet.staying.get(old.slot) is old:
            self._fleet.settle(slot)
            self._old.append(old)
            self._fleet.retire(old.slot)
        else:
            self._fleet.retire(slot)
        return True
