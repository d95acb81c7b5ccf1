"""What is stopped, passed on and begun anew in the control plane when one supervisor takes over from another.

`upgrade` (the old one) and `heir` (the new one) decide when; both sides of each step stand here side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedproxy.config.model import Model
from twistedproxy.supervisor.fleet import Fleet
from twistedproxy.supervisor.journal import ChangeLog, Replayed
from twistedproxy.supervisor.observed import Observed
from twistedproxy.supervisor.operations import Operations
from twistedproxy.supervisor.processes import State
from twistedproxy.supervisor.purging import Purging
from twistedproxy.supervisor.shifts import Shifts

STEP_S = 6.0
"""A step of a shift is through by then: its change is acked within 5 s."""
PASSED_ON = ("health_seen", "ejected", "resolved")


class Plane(Protocol):
    """The supervisor."""

    model: Model
    revision: int

    @property
    def is_stopping(self) -> bool: ...

    def commit(self, model: Model, revision: int, change: Mapping[str, Any] | None) -> Deferred[tuple[int, list[int]]]: ...

    def publish(self, kind: str, data: Mapping[str, Any]) -> None: ...


class HandOver:
    """`listeners` gives the configured addresses."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        plane: Plane,
        journal: ChangeLog,
        fleet: Fleet,
        operations: Operations,
        shifts: Shifts,
        observed: Observed,
        purging: Purging,
        listeners: Callable[[], list[str]],
    ) -> None:
        self._reactor = reactor
        self._plane = plane
        self._journal = journal
        self._fleet = fleet
        self._operations = operations
        self._shifts = shifts
        self._observed = observed
        self._purging = purging
        self._listeners = listeners
        self.is_still = False
        """True while nothing may happen by itself: shifts, guards, deadlines are the other supervisor's."""

    # The old one (`upgrade.Plane`)

    @property
    def is_stopping(self) -> bool:
        return self._plane.is_stopping

    def publish(self, kind: str, data: Mapping[str, Any]) -> None:
        self._plane.publish(kind, data)

    def foresee(self, is_expected: bool) -> None:
        self._operations.is_file_busy = is_expected

    async def freeze(self) -> None:
        self.is_still = True
        self._observed.hold_orders()
        deadline = self._reactor.seconds() + STEP_S
        while not (self._shifts.is_quiet and self._purging.is_quiet) and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, 0.05)
        await self._operations.freeze("a new version takes over at this moment; ask again in a second")
        self._journal.close()

    def thaw(self) -> None:
        try:
            self._journal.read_again(is_ours=True)
        except OSError as e:
            self.log.error("the journal cannot be opened again, changes are refused until a restart: {why}", why=str(e))
        if self._journal.revision != self._plane.revision:
            # The other one has served for a moment, and has journaled.
            current = self._operations.current
            model = self._plane.model if current is None else self._journal.lay_over(current.model)[0]
            self._plane.commit(model, self._journal.revision, None)
        self._purging.read_again()  # it may have been told of purges, which are not journaled
        self._operations.thaw()
        self._observed.go_on_ordering()
        self.is_still = False

    def legacy(self) -> dict[str, Any]:
        seen = [each for each in self._observed.plain() if each["kind"] in PASSED_ON]
        connections = sum(worker.connections for worker in self._fleet.workers)
        return {"observations": seen, "statistics": self._fleet.statistics(), "connections": connections}

    # The new one

    def wait(self) -> None:
        """Before the start: workers shall be there and accept nothing."""
        self.is_still = True
        self._observed.hold_orders()
        self._fleet.hold(self._listeners())

    @property
    def is_ready(self) -> bool:
        """All workers are there, not just one: nobody shall be slower for the upgrade."""
        workers = self._fleet.workers
        return bool(workers) and all(worker.state is State.SERVING for worker in workers)

    async def catch_up(self, replayed: Replayed, legacy: Mapping[str, Any]) -> None:
        """Be where the old one stopped."""
        self._observed.take_over(legacy.get("observations", ()))
        self._fleet.count_elder(legacy.get("statistics"))
        if (replayed.model, replayed.revision) != (self._plane.model, self._plane.revision):
            total, behind = await self._plane.commit(replayed.model, replayed.revision, None)
            if behind or not total:
                raise RuntimeError(f"{len(behind) or 'all'} of its workers did not take over revision {replayed.revision}")

    def begin(self) -> None:
        """From now on it is ours: accept, and go on with what waits."""
        self._purging.read_again()
        self._fleet.lend(self._listeners())
        self._shifts.read_again()
        self._observed.go_on_ordering()
        self._operations.start()
        self.is_still = False
