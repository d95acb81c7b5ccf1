"""Changes that may be taken back by themselves: not confirmed in time, or condemned by the figures of their guard.

A way back that the journal cannot take (a full disk) is tried again until it can; one that somebody else's later change blocks is given
up, for then it was decided by hand. All of it outlives a restart: deadline, condition and baseline are in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedproxy.config.control import Entry, Terms
from twistedproxy.config.model import Model
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.guard import MIN_REQUESTS, Guard, Watch, scope_of
from twistedproxy.supervisor.journal import ChangeLog, Note, rfc3339
from twistedproxy.supervisor.pending import Pending

OURSELVES = "revproxy"
"""Who takes back what was not confirmed."""
GUARD_S = 120.0
"""How long `abort_if` watches a change that needs no confirmation."""
TRY_AGAIN_S = 5.0
"""When a way back that the journal could not take is tried again."""


class Plane(Protocol):
    model: Model

    @property
    def is_stopping(self) -> bool: ...

    def statistics(self) -> Mapping[str, Any]: ...


class Probation:
    """`undo` and `confirm` are those of `operations`."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        plane: Plane,
        journal: ChangeLog,
        wall: Callable[[], float],
        undo: Callable[[int, Terms], Coroutine[Any, Any, Any]],
        confirm: Callable[[int, str], Coroutine[Any, Any, None]],
    ) -> None:
        self._plane = plane
        self._journal = journal
        self._wall = wall
        self._undo = undo
        self._confirm = confirm
        self._pending = Pending(reactor, self._ran_out)
        self._guard = Guard(reactor.seconds, plane.statistics, self._take_back, self._passed)
        self.each_second = self._guard.look
        self._ways_back: dict[int, str] = {}
        """Why revisions are to be taken back that could not be yet."""

    def start(self) -> None:
        """Go on waiting and watching; what ran out while we were down is taken back now."""
        for entry in self._journal.unconfirmed():
            self._pending.wait(entry.revision, seconds_until(entry.confirm_by or "", self._wall()))
        for record in self._journal.guarded():
            revision, guard = record.entry.revision, record.guard
            if guard is not None and (left := seconds_until(guard.until, self._wall())):
                self.log.info("revision {revision} is still watched: undone if {what}", revision=revision, what=guard.abort_if)
                self._guard.watch(revision, guard.abort_if, left, scope_of(record.apply, self._plane.model), guard.before)

    def stop(self) -> None:
        self._pending.stop()

    def check(self, terms: Terms) -> None:
        """`ChangeRefused` when its condition is none."""
        self._guard.check(terms.abort_if)

    def noted(self, note: Note, apply: Mapping[str, Any], terms: Terms) -> Note:
        """`note` with what is to be journaled of a change that begins now."""
        now = self._wall()
        within = terms.confirm_within_s
        confirm_by = None if within is None else rfc3339(now + within)
        watch = None
        if terms.abort_if is not None:
            before = self._guard.baseline(scope_of(apply, self._plane.model))
            watch = Watch(terms.abort_if, rfc3339(now + (within or GUARD_S)), before)
        return replace(note, confirm_by=confirm_by, guard=watch)

    def begin(self, entry: Entry, terms: Terms) -> None:
        """It is committed: wait and watch from now on."""
        within = terms.confirm_within_s
        if within is not None:
            self._pending.wait(entry.revision, within)
        record = self._journal.record(entry.revision)
        if record is not None and record.guard is not None:
            scope = scope_of(record.apply, self._plane.model)
            self._guard.watch(entry.revision, record.guard.abort_if, within or GUARD_S, scope, record.guard.before)

    def waiting(self) -> list[int]:
        """The revisions that something may still happen to by itself, so that a confirmation means something."""
        unconfirmed = {entry.revision for entry in self._journal.unconfirmed()}
        guarded = {record.entry.revision for record in self._journal.guarded()}
        return sorted(unconfirmed | {revision for revision in guarded if self._guard.watches(revision) or revision in self._ways_back})

    def settled(self, revision: int) -> None:
        """It is confirmed, or undone: nothing happens to it by itself any more."""
        self._pending.forget(revision)
        self._guard.forget(revision)
        self._ways_back.pop(revision, None)

    def wants_back(self, revision: int) -> bool:
        """Asked when its turn has come: a confirmation may have been first."""
        return revision in self._ways_back

    def _passed(self, revision: int, requests: int) -> None:
        said = "revision {revision} was watched and is kept: {n} requests since, and no condition was true"
        if requests < MIN_REQUESTS:
            said = "revision {revision} was watched, and nothing could be judged: {n} requests since, at least {least} are needed"
        self.log.info(said, revision=revision, n=requests, least=MIN_REQUESTS)

    def _ran_out(self, revision: int) -> None:
        self._take_back(revision, self._ways_back.get(revision, "not confirmed in time"))

    def _take_back(self, revision: int, why: str) -> None:
        if revision not in self._ways_back:
            self.log.warn("revision {revision} is taken back: {why}", revision=revision, why=why)
        self._ways_back[revision] = why
        undone = Deferred.fromCoroutine(self._undo(revision, Terms(OURSELVES, why)))
        undone.addErrback(lambda failure: self._cannot_take_back(revision, failure))

    def _cannot_take_back(self, revision: int, failure: Any) -> None:
        if revision not in self._ways_back:
            return  # confirmed, or undone by somebody, while we waited for our turn
        refused = failure.value if failure.check(ChangeRefused) else None
        if refused is not None and refused.status == 503:
            # A full disk, most likely: the reason to take it back is as good as before.
            if not self._plane.is_stopping:
                self.log.warn("revision {revision} is taken back later: {why}", revision=revision, why=refused.message)
                self._pending.wait(revision, TRY_AGAIN_S)
            return
        self._ways_back.pop(revision, None)
        self.log.error("revision {revision} cannot be taken back and stays: {why}", revision=revision, why=failure.getErrorMessage())
        if refused is not None and refused.status == 409 and any(e.revision == revision for e in self._journal.unconfirmed()):
            kept = Deferred.fromCoroutine(self._confirm(revision, OURSELVES))
            kept.addErrback(lambda f: self.log.error("{why}", why=f.getErrorMessage()))


def seconds_until(at: str, now: float) -> float:
    try:
        return max(0.0, datetime.fromisoformat(at).timestamp() - now)
    except ValueError:
        return 0.0
