"""Guarded shifts: traffic of a split moves from one side to another step by step, and back to where it began when things get worse.

How it works
    A shift is a list of steps (the share of `target` in per cent), a pause between them, and a condition to abort on. Each step is
    an ordinary change of the split, journaled and undoable. Once a second the target's requests since the step began are held
    against the source's in the same time (`guard`); too few requests say nothing. Somebody else who changes the split meanwhile
    ends the shift: two hands on one wheel are worse than either. A way back that is refused (a full disk) is tried again until it
    is taken. What is under way is kept in ``shifts.json`` in the state
    directory; after a restart the current step begins anew, so that no step is taken that nobody watched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedproxy.config import plain
from twistedproxy.config.changes import Change
from twistedproxy.config.control import Applied
from twistedproxy.config.model import Model, Route
from twistedproxy.config.site_changes import SetSplit, find_site, find_split, weights_of
from twistedproxy.errors import ChangeRefused, ConfigurationError
from twistedproxy.supervisor import guard
from twistedproxy.supervisor.guard import MIN_REQUESTS, Sample
from twistedproxy.supervisor.journal import rfc3339

RUNNING, DONE, ABORTED, STOPPED = "running", "done", "aborted", "stopped"
KEPT = 50
MOST_STEPS = 50
LEAST_PAUSE_S = 1.0
TRY_AGAIN_S = 5.0
"""Pause between attempts to go back."""


@dataclass(frozen=True, slots=True)
class Shift:
    """One shift, as it is kept and shown."""

    id: str
    site: str
    path: str
    source: str
    target: str
    steps: tuple[float, ...]
    """Share of the target, in per cent."""
    every_s: float
    abort_if: str | None
    by: str
    reason: str
    before: tuple[tuple[str, int], ...] | None
    """Live weights where it began; None: the file's."""
    state: str = RUNNING
    step: int = -1
    """Index of the step in force; -1: none yet."""
    next_at: float = 0.0
    """Wall clock, when the next step is due."""
    note: str = ""
    going_back: str = ""
    """Why it is on its way back to where it began; "": it is not."""
    history: tuple[tuple[str, float, int], ...] = field(default=())
    """(when, share of the target, revision)."""

    def shown(self) -> dict[str, Any]:
        facts: dict[str, Any] = plain.encode(self)
        facts["from"], facts["to"] = facts.pop("source"), facts.pop("target")
        facts["every_seconds"] = facts.pop("every_s")
        facts["share"] = self.history[-1][1] if self.history else None
        facts["next_at"] = rfc3339(self.next_at) if self.state == RUNNING else None
        facts["history"] = [{"at": at, "share": share, "revision": revision} for at, share, revision in self.history]
        return facts


class Plane(Protocol):
    """What shifts act on: the supervisor."""

    model: Model

    async def apply(
        self, change: Change, *, by: str, reason: str = "", expected_revision: int | None = None, preview: bool = False
    ) -> Applied: ...

    def statistics(self) -> Mapping[str, Any]: ...

    def publish(self, kind: str, data: Mapping[str, Any]) -> None: ...


class Shifts:
    """All shifts of one supervisor. `path` is the file they are kept in; "" keeps them in memory only."""

    log = Logger()

    def __init__(self, plane: Plane, wall: Callable[[], float], path: str = "") -> None:
        self._plane = plane
        self._wall = wall
        self._path = path
        self._all: dict[str, Shift] = {}
        self._busy: set[str] = set()
        """Those with a step on its way."""
        self._starts: dict[str, tuple[Sample, Sample, Sample]] = {}
        """By id: totals of source and target when the step began, and what the source did before it."""
        self._load()

    # What operators do

    questions = frozenset({"shifts", "start_shift", "preview_shift", "stop_shift"})

    async def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the admin side asks of shifts, as it shows them."""
        if what == "preview_shift":
            return {"preview": plain.encode((await self.preview(arguments)).preview)}
        if what == "start_shift":
            return (await self.start(arguments, arguments["by"])).shown()
        if what == "stop_shift":
            return (await self.stop(arguments["id"], arguments["by"], arguments["back"])).shown()
        return {"shifts": [shift.shown() for shift in self.all()]}

    def all(self) -> Sequence[Shift]:
        return tuple(self._all.values())

    async def preview(self, arguments: Mapping[str, Any]) -> Applied:
        """What the first step would do."""
        shift = self._wanted(arguments, "")
        weights = tuple(_weights(shift, 0).items())
        return await self._plane.apply(SetSplit(shift.site, shift.path, weights), by="", preview=True)

    async def start(self, arguments: Mapping[str, Any], by: str) -> Shift:
        """Take the first step; `ChangeRefused` says what is wrong."""
        shift = self._wanted(arguments, by)
        self._all[shift.id] = shift
        try:
            return await self._take_step(shift, arguments.get("expected_revision"))
        except BaseException:
            del self._all[shift.id]
            self._save()
            raise

    def _wanted(self, arguments: Mapping[str, Any], by: str) -> Shift:
        steps = _steps(arguments["steps"])
        source, target = str(arguments["from"]), str(arguments["to"])
        if arguments["every_s"] < LEAST_PAUSE_S:
            raise ChangeRefused(400, f"every is {arguments['every_s']:g} s; allowed are {LEAST_PAUSE_S:g} s and more", "every")
        abort_if = arguments.get("abort_if")
        if abort_if is not None:
            guard.parse(abort_if)
        site, route = self._find(source, target, arguments.get("site"), arguments.get("path"))
        for other in self._all.values():
            if other.state == RUNNING and (other.site, other.path) == (site, route.path):
                raise ChangeRefused(409, f"shift {other.id} moves this split already; stop it first")
        before = tuple(weights_of(route).items()) if any(s.weight_set is not None for s in route.split) else None
        number = max((int(known) for known in self._all), default=0) + 1
        return Shift(
            str(number),
            site,
            route.path,
            source,
            target,
            steps,
            arguments["every_s"],
            abort_if,
            by,
            str(arguments.get("reason", "")),
            before,
        )

    async def stop(self, shift_id: str, by: str, back: bool) -> Shift:
        """End a shift where it is, or with `back` where it began."""
        shift = self._all.get(shift_id)
        if shift is None:
            raise ChangeRefused(404, f"no shift {shift_id!r:.40}; there are: {', '.join(self._all) or 'none'}", "id")
        if shift.state != RUNNING:
            raise ChangeRefused(409, f"shift {shift_id} is {shift.state} already")
        if back:
            await self._go_back(shift, STOPPED, f"stopped by {by}")
        else:
            self._put(replace(shift, state=STOPPED, note=f"stopped by {by}", going_back=""))
        return self._all[shift_id]

    def _find(self, source: str, target: str, site: str | None, path: str | None) -> tuple[str, Route]:
        """The one split that has both sides and no other."""
        model = self._plane.model
        sites = [find_site(model, site)] if site is not None else list(model.sites.values())
        found = [
            (each.name, route)
            for each in sites
            for route in each.all_routes
            if {side.pool for side in route.split} == {source, target} and path in (None, route.path)
        ]
        if not found:
            raise ChangeRefused(
                409,
                f"no split has just the sides {source!r} and {target!r}; write "
                f'"/" = {{ split = {{ {source} = 100, {target} = 0 }} }} in the file first',
            )
        if len(found) > 1:
            places = ", ".join(f"{name} {route.path}" for name, route in found)
            raise ChangeRefused(409, f"several splits have these sides: {places}; name one with site and path")
        return found[0]

    # Steps

    def look(self) -> None:
        """Called once a second."""
        for shift in tuple(self._all.values()):
            if shift.state == RUNNING and shift.id not in self._busy:
                self._look_at(shift)

    @property
    def is_quiet(self) -> bool:
        """No step is on its way."""
        return not self._busy

    def read_again(self) -> None:
        """Another supervisor went on with them until now."""
        self._all.clear()
        self._starts.clear()
        self._load()

    def _look_at(self, shift: Shift) -> None:
        now = self._wall()
        route = self._route(shift)
        if route is None or dict(weights_of(route)) != _weights(shift, shift.step):
            self._put(replace(shift, state=STOPPED, note="somebody else changed the split", going_back=""))
            return
        if shift.going_back:
            if now >= shift.next_at:
                self._run(shift, self._go_back(shift, ABORTED, shift.going_back))
            return
        figures = self._judge(shift)
        if figures:
            self.log.warn("shift {id} goes back to where it began: {why}", id=shift.id, why=figures)
            self._put(replace(shift, going_back=figures))
            self._run(shift, self._go_back(shift, ABORTED, figures))
        elif now >= shift.next_at:
            if shift.step + 1 < len(shift.steps):
                self._run(shift, self._take_step(shift))
            else:
                self._put(replace(shift, state=DONE, note="all steps were taken"))

    def _route(self, shift: Shift) -> Route | None:
        try:
            return find_split(find_site(self._plane.model, shift.site), shift.path)
        except ChangeRefused:
            return None

    def _judge(self, shift: Shift) -> str:
        """The figures that condemn the step in force; "" for none."""
        if shift.abort_if is None:
            return ""
        source, target, before = self._starts.setdefault(shift.id, (*self._totals(shift), Sample(0, 0, ())))
        source_now, target_now = self._totals(shift)
        beside = source_now.since(source)
        baseline = beside if beside.requests >= MIN_REQUESTS or not before.requests else before
        return guard.tripped(guard.parse(shift.abort_if), baseline, target_now.since(target))

    def _totals(self, shift: Shift) -> tuple[Sample, Sample]:
        statistics = self._plane.statistics()

        def of(pool: str) -> Sample:
            rows = {name: [r for r in statistics[name] if tuple(r[:2]) == (shift.site, pool)] for name in ("requests", "durations")}
            return guard.sample(rows)

        return of(shift.source), of(shift.target)

    async def _take_step(self, shift: Shift, expected: int | None = None) -> Shift:
        step = shift.step + 1
        old = self._starts.get(shift.id)
        source, target = self._totals(shift)
        before = (
            source.since(old[0]) if old is not None and source.requests - old[0].requests >= MIN_REQUESTS else (old[2] if old else None)
        )
        share = shift.steps[step]
        self._put(replace(shift, step=step, next_at=self._wall() + shift.every_s))
        applied = await self._set(shift, tuple(_weights(shift, step).items()), f"shift {shift.id}: {shift.target} at {share:g}%", expected)
        self._starts[shift.id] = (source, target, before or Sample(0, 0, ()))
        taken = (rfc3339(self._wall()), share, applied.revision)
        shift = replace(shift, step=step, next_at=self._wall() + shift.every_s, history=(*shift.history, taken))
        self._put(shift)
        return shift

    async def _go_back(self, shift: Shift, state: str, why: str) -> None:
        applied = await self._set(shift, shift.before, f"shift {shift.id} {state}: {why}")
        route = self._route(shift)
        weights = weights_of(route) if route is not None else {}
        share = round(100 * weights.get(shift.target, 0) / (sum(weights.values()) or 1), 3)
        taken = (rfc3339(self._wall()), share, applied.revision)
        self._put(replace(shift, state=state, note=why, going_back="", history=(*shift.history, taken)))

    async def _set(self, shift: Shift, weights: tuple[tuple[str, int], ...] | None, reason: str, expected: int | None = None) -> Applied:
        if shift.reason:
            reason = f"{reason} ({shift.reason})"
        change = SetSplit(shift.site, shift.path, weights)
        return await self._plane.apply(change, by=shift.by, reason=reason, expected_revision=expected)

    def _run(self, shift: Shift, work: Coroutine[Any, Any, Any]) -> None:
        self._busy.add(shift.id)

        def over(result: Any) -> None:
            self._busy.discard(shift.id)

        def failed(failure: Any) -> None:
            if failure.check(ChangeRefused, ConfigurationError) is None:
                self.log.failure("shift {id} failed", failure, id=shift.id)
            known, why = self._all[shift.id], failure.getErrorMessage()[:300]
            if known.going_back and failure.check(ChangeRefused) and failure.value.status == 503:
                self._put(replace(known, next_at=self._wall() + TRY_AGAIN_S, note=f"the way back is tried again: {why}"))
            else:
                self._put(replace(known, state=STOPPED, note=f"a step was refused: {why}", going_back=""))

        Deferred.fromCoroutine(work).addErrback(failed).addBoth(over)

    # Keeping

    def _put(self, shift: Shift) -> None:
        known = self._all.get(shift.id)
        self._all[shift.id] = shift
        if shift.state != RUNNING:
            self._starts.pop(shift.id, None)
        self._save()
        if known is None or known.state != shift.state:
            self.log.info("shift {id}: {state} {note}", id=shift.id, state=shift.state, note=shift.note)
        self._plane.publish("shift", shift.shown())

    def _save(self) -> None:
        over = [shift.id for shift in self._all.values() if shift.state != RUNNING]
        for shift_id in over[:-KEPT]:
            del self._all[shift_id]
        if not self._path:
            return
        fresh = f"{self._path}.new"
        try:
            with open(fresh, "w", encoding="utf-8") as file:
                json.dump([plain.encode(shift) for shift in self._all.values()], file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._path)
        except OSError as e:
            self.log.error("shifts cannot be kept in {path}, a restart would lose them: {why}", path=self._path, why=str(e))

    def _load(self) -> None:
        if not self._path:
            return
        try:
            with open(self._path, encoding="utf-8") as file:
                known = [plain.decode(Shift, each) for each in json.load(file)]
        except FileNotFoundError:
            return
        except (OSError, ValueError) as e:
            self.log.error("{path} cannot be read, no shift goes on: {why}", path=self._path, why=str(e))
            return
        for shift in known:
            is_on = shift.state == RUNNING
            pause = 0.0 if shift.going_back else shift.every_s
            self._all[shift.id] = replace(shift, next_at=self._wall() + pause) if is_on else shift


def _steps(given: Any) -> tuple[float, ...]:
    wrong = ChangeRefused(400, f"steps are shares in per cent that grow, such as [5, 25, 50, 100]; at most {MOST_STEPS}", "steps")
    if not isinstance(given, list) or not 0 < len(given) <= MOST_STEPS:
        raise wrong
    if not all(type(step) in (int, float) and 0 < step <= 100 for step in given) or sorted(set(given)) != given:
        raise wrong
    return tuple(float(step) for step in given)


def _weights(shift: Shift, step: int) -> dict[str, int]:
    """Weights of a thousand, so that tenths of a per cent count."""
    share = round(shift.steps[step] * 10)
    weights = {shift.source: 1000 - share, shift.target: share}
    return weights
