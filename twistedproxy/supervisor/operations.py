"""What an operator may do to the running configuration, one thing at a time: change, reload, undo, confirm, preview, adopt.

How it works
    Under one lock: decide (against the running model), journal with fsync, commit. Until the journal has it nothing has
    changed, and whatever else can fail (a text that does not parse, a port that is taken) fails before. Committing cannot fail: the new
    model is the truth, and a worker that does not follow is sent all of it or replaced. Waiting for the workers' acks happens outside
    the lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from twistedproxy.config import changes, plain, shown, undo
from twistedproxy.config.changes import Change, ReplaceConfig
from twistedproxy.config.control import Applied, Entry, Preview, Terms, check_revision
from twistedproxy.config.model import Model
from twistedproxy.config.words import change_in_words
from twistedproxy.errors import ChangeRefused, ConfigurationError, Problem
from twistedproxy.supervisor import adoption
from twistedproxy.supervisor.configuration import Configuration, ConfigurationFile, keep_what_needs_a_restart, try_tests
from twistedproxy.supervisor.journal import ChangeLog, Note
from twistedproxy.supervisor.overrides import Override, Overrides
from twistedproxy.supervisor.preview import keyed_pools, previewed, together
from twistedproxy.supervisor.probation import Probation
from twistedproxy.supervisor.sockets import Staged, Wanted, wanted_listeners


class Plane(Protocol):
    """What is operated on: the supervisor."""

    model: Model
    revision: int

    @property
    def is_stopping(self) -> bool: ...

    def stage(self, wanted: Sequence[Wanted], slots: int) -> Staged | list[Problem]: ...

    def commit(self, model: Model, revision: int, change: Mapping[str, Any] | None) -> Deferred[tuple[int, list[int]]]:
        """Make this the truth and bring every worker there, by `change` or by the whole model."""
        ...

    def replace_listeners(self, staged: Staged, slots: int) -> Callable[[], None]:
        """Before a commit: take the new sockets over; what is returned is called when the workers know of them."""
        ...

    def publish(self, kind: str, data: Mapping[str, Any]) -> None: ...

    def health(self) -> tuple[Mapping[tuple[str, str], Any], frozenset[tuple[str, str]]]:
        """What is known of the servers: verdicts and ejections."""
        ...

    def unresolved(self) -> frozenset[tuple[str, str]]: ...

    def statistics(self) -> Mapping[str, Any]: ...

    def ask_workers(self, asked: Mapping[str, Any]) -> Deferred[list[Any]]: ...


class Operations:
    """`file` and `current`: the configuration file and what it said at start; None: only live changes are possible."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        plane: Plane,
        journal: ChangeLog,
        wall: Callable[[], float],
        file: ConfigurationFile | None,
        current: Configuration | None,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
    ) -> None:
        self._reactor = reactor
        self._plane = plane
        self._journal = journal
        self._wall = wall
        self._file = file
        self.current = current
        self._in_thread = in_thread
        self._lock = DeferredLock()
        self._closed_because = ""
        """Why there are no changes at this moment; "": there are."""
        self.is_file_busy = False
        """A successor reads the file."""
        self.reloads: Counter[str] = Counter({"success": 0, "refused": 0})
        self._probation = Probation(reactor, plane, journal, wall, self._take_back, self.confirm)
        self.start = self._probation.start
        """Go on waiting for confirmations and watching what is guarded."""
        self.stop = self._probation.stop
        self.each_second = self._probation.each_second

    async def freeze(self, because: str) -> None:
        """Refuse every change until `thaw`; returns when the one in work, if any, is through."""
        self._closed_because = because
        await self._lock.acquire()

    def thaw(self) -> None:
        self._closed_because = ""
        self._lock.release()

    def _check_open(self) -> None:
        if self._closed_because:
            raise ChangeRefused(503, f"nothing was changed: {self._closed_because}", retry_after_s=1)

    async def quiet(self) -> None:
        """Wait until the change in work, if any, is through; a stopping proxy begins no other."""
        async with self._lock:
            pass

    @property
    def effective(self) -> Mapping[str, Any]:
        if self.current is None:
            return {}
        return shown.running(self.current.effective, self.current.model, self._plane.model)

    # One change

    async def apply(self, change: Change, terms: Terms) -> Applied:
        self._check_open()
        async with self._lock:
            self._check(terms)
            return_now, acks = await self._change(change, terms, Note())
        return return_now if acks is None else await self._finished(return_now, acks)

    def _check(self, terms: Terms) -> None:
        self._check_open()
        if self._plane.is_stopping:
            raise ChangeRefused(503, "the proxy is stopping")
        check_revision(terms.expected_revision, self._plane.revision)
        self._probation.check(terms)

    async def _change(self, change: Change, terms: Terms, note: Note) -> tuple[Applied, Deferred[tuple[int, list[int]]] | None]:
        before = self._plane.model
        model = changes.apply(before, change)
        _check_emptied(before, model)
        if model.sites is not before.sites and model.tests:
            try_tests(model, self.current.text if self.current else "", self._file.path if self._file else "")
        if terms.is_preview:
            described = (changes.describe(before, change),)
            return await self._previewed(model, described, change), None
        if model == before and note.undoes is None:
            # A revision of its own would only stand in the way of undoing the one that did set it.
            return Applied(self._plane.revision, 0, 0, notes=("it is in force already",)), None
        note = self._probation.noted(note, changes.to_plain(change), terms)
        entry = await self._journal.append(before, change, by=terms.by, reason=terms.reason, note=note)
        acks = self._plane.commit(model, entry.revision, changes.to_plain(change))
        self._committed(entry, terms)
        return Applied(entry.revision, 0, 0, confirm_by=entry.confirm_by, guard=entry.guard), acks

    async def _previewed(self, model: Model, described: tuple[Mapping[str, Any], ...], change: Change | None, **more: Any) -> Applied:
        before = self._plane.model
        pools = keyed_pools(before, model)
        keys = together(await self._plane.ask_workers({"ask": "keys", "pools": pools})) if pools else None
        health, ejected = self._plane.health()
        known = (health, ejected | self._plane.unresolved())
        preview: Preview = previewed(before, model, described, change, known, self._plane.statistics(), keys)
        return Applied(self._plane.revision, 0, 0, preview=preview, **more)

    def _committed(self, entry: Entry, terms: Terms) -> None:
        self.log.info("revision {revision} by {by}: {what}", revision=entry.revision, by=terms.by, what=change_in_words(entry.change))
        self._plane.publish("change", plain.encode(entry))
        self._probation.begin(entry, terms)

    async def _finished(self, applied: Applied, acks: Deferred[tuple[int, list[int]]]) -> Applied:
        total, behind = await acks
        return replace(applied, total=total, acked=total - len(behind), lagging=tuple(behind))

    # The file

    async def reload(self, terms: Terms) -> Applied:
        """Make the file what is in force; `ConfigurationError` with every problem, and then nothing has changed."""
        if self._file is None:
            raise ChangeRefused(409, "this proxy runs without a configuration file")
        self._check_open()
        async with self._lock:
            self._check(terms)
            reloaded = await self._load(self._file, terms)
        return await self._loaded(*reloaded)

    async def _load(
        self, file: ConfigurationFile, terms: Terms
    ) -> tuple[Applied, Deferred[tuple[int, list[int]]] | None, Callable[[], None]]:
        try:
            return await self._replace(file.read(), terms)
        except ConfigurationError as e:
            if not terms.is_preview:
                self.reloads["refused"] += 1
                for problem in e.problems:
                    self.log.error("reload refused, nothing was changed: {problem}", problem=str(problem))
            raise

    async def _loaded(self, applied: Applied, acks: Deferred[tuple[int, list[int]]] | None, done: Callable[[], None]) -> Applied:
        if acks is None:
            return applied
        applied = await self._finished(applied, acks)
        done()
        self.reloads["success"] += 1
        return applied

    async def _replace(
        self, wanted: Configuration, terms: Terms, undoes: int | None = None, revived: tuple[Override, ...] = ()
    ) -> tuple[Applied, Deferred[tuple[int, list[int]]] | None, Callable[[], None]]:
        """Make `wanted` what is in force. Nothing changes before the journal has it, and nothing can fail after."""
        old = self.current
        if old is None:
            raise ChangeRefused(409, "this proxy runs without a configuration file")
        self._check_file_is_free()
        configured, notes = keep_what_needs_a_restart(old.model, wanted.model)
        notes += wanted.warnings
        model, superseded = self._journal.lay_over(configured, revived)
        words = tuple(str(each) for each in superseded if not each.is_agreement)
        described = {"kind": "replace_config", "changes": shown.compare(old.effective, wanted.effective)}
        if wanted.text == old.text and model == self._plane.model:
            note = "the file says what is in force already"
            return Applied(self._plane.revision, 0, 0, notes=(*notes, note)), None, _nothing
        slots = max(configured.workers, 1)
        staged = self._plane.stage(wanted_listeners(configured), slots)
        if isinstance(staged, list):
            file = self._file.path if self._file else ""
            raise ConfigurationError([Problem(p.path, p.message, p.line, p.file or file) for p in staged])
        if terms.is_preview:
            staged.abandon()
            return await self._previewed(model, (described,), None, superseded=words, notes=notes), None, _nothing
        superseded_now = tuple(s.override for s in superseded)
        note_kept = Note(described, undoes=undoes, configured=configured, superseded=superseded_now, revived=revived)
        note_kept = self._probation.noted(note_kept, {"kind": "replace_config"}, terms)
        try:
            entry = await self._journal.append(
                self._plane.model, ReplaceConfig(wanted.text), by=terms.by, reason=terms.reason, note=note_kept
            )
        except BaseException:
            staged.abandon()
            raise
        self.current = replace(wanted, model=configured)
        done = self._plane.replace_listeners(staged, slots)
        acks = self._plane.commit(model, entry.revision, None)
        self._committed(entry, terms)
        for word in words:
            self.log.warn("the configuration file has overtaken a live change: {what}", what=word)
        wanted.warn()
        return Applied(entry.revision, 0, 0, superseded=words, notes=notes, confirm_by=entry.confirm_by, guard=entry.guard), acks, done

    def _check_file_is_free(self) -> None:
        if self.is_file_busy:
            raise ChangeRefused(503, "nothing was changed: an upgrade is under way and reads the file; try again", retry_after_s=2)

    def check(self, text: str) -> None:
        if self._file is not None:
            self._file.check(text)

    # Back

    async def undo(self, revision: int, terms: Terms) -> Applied:
        return await self._undo(revision, terms, lambda: True)

    async def _take_back(self, revision: int, terms: Terms) -> Applied:
        return await self._undo(revision, terms, lambda: self._probation.wants_back(revision))

    async def _undo(self, revision: int, terms: Terms, is_due: Callable[[], bool]) -> Applied:
        done: Callable[[], None] = _nothing
        self._check_open()
        async with self._lock:
            self._check(terms)
            if not is_due():
                raise ChangeRefused(409, f"revision {revision} was confirmed or undone meanwhile")
            record = self._journal.record(revision)
            if record is None:
                raise ChangeRefused(404, f"revision {revision} is not in the journal, or so old that it is not kept in memory")
            if record.entry.undone_by is not None:
                raise ChangeRefused(409, f"revision {revision} was undone by revision {record.entry.undone_by}")
            mine = undo.touched(record.apply)
            for later in self._journal.records_after(revision):
                is_undone = later.entry.undone_by is not None or (later.undoes is not None and later.undoes > revision)
                if not is_undone and undo.meet(mine, undo.touched(later.apply)):
                    who = f"revision {later.entry.revision} by {later.entry.by}"
                    raise ChangeRefused(409, f"{who} touched the same values later; undo that one first")
            if record.inverse is not None:
                change = changes.from_plain(record.inverse)
                applied, acks = await self._change(change, terms, Note(undoes=revision))
            elif undo.CONFIG in mine:
                wanted = await self._text_before(revision)
                applied, acks, done = await self._replace(wanted, terms, undoes=revision, revived=record.superseded)
            else:
                raise ChangeRefused(409, f"revision {revision} was made by an older version, which did not note how to take it back")
        if not terms.is_preview:
            self._probation.settled(revision)
        if acks is None:
            return applied
        applied = await self._finished(applied, acks)
        done()
        return applied

    async def _text_before(self, revision: int) -> Configuration:
        found = await self._in_thread(lambda: self._journal.configuration_at(revision - 1))
        if found is None or self._file is None:
            raise ChangeRefused(409, f"the configuration before revision {revision} is not known any more")
        try:
            return self._file.parse(found[0])
        except ConfigurationError as e:
            raise ChangeRefused(409, f"the configuration before revision {revision} is not valid any more: {e.problems[0]}") from None

    async def confirm(self, revision: int, by: str) -> None:
        self._check_open()
        async with self._lock:
            self._check_open()
            waiting = self._probation.waiting()
            if revision not in waiting:
                these = ", ".join(map(str, waiting)) or "none"
                raise ChangeRefused(409, f"revision {revision} does not wait for confirmation and is not watched; these do: {these}")
            await self._journal.confirm(revision, by)
            self._probation.settled(revision)
        self.log.info("revision {revision} is confirmed by {by}", revision=revision, by=by)

    # Looking

    async def configuration_at(self, revision: int) -> Mapping[str, Any]:
        if revision == self._plane.revision:
            return self.effective
        found: tuple[str, Overrides] | None = None
        if revision < self._plane.revision:
            found = await self._in_thread(lambda: self._journal.configuration_at(revision))
        if found is None or self._file is None:
            raise ChangeRefused(404, f"the configuration at revision {revision} is not known; the newest is {self._plane.revision}")
        text, overrides = found
        try:
            then = self._file.parse(text)
        except ConfigurationError as e:
            raise ChangeRefused(409, f"the file's text at revision {revision} is not valid any more: {e.problems[0]}") from None
        return shown.running(then.effective, then.model, overrides.over(then.model)[0])

    async def difference(self) -> Sequence[Mapping[str, Any]]:
        if self._file is None:
            raise ChangeRefused(409, "this proxy runs without a configuration file")
        return adoption.difference(self._file.read().model, self._plane.model)

    async def adopt(self, terms: Terms) -> tuple[str, Applied | None]:
        """Write the live values into the file, and reload it, so that they are the file's from then on."""
        if self._file is None:
            raise ChangeRefused(409, "this proxy runs without a configuration file")
        self._check_open()
        # One lock over all of it: a value that is set while the file is written would be overtaken by what the file got.
        async with self._lock:
            self._check(terms)
            on_disk = self._file.read()
            text = adoption.edited(on_disk.text, on_disk.model, self._plane.model)
            edit = adoption.unified_diff(on_disk.text, text, self._file.path)
            if terms.is_preview or not edit:
                return edit, None
            self._check_file_is_free()
            again = self._file.parse(text)
            left = [one["path"] for one in adoption.difference(again.model, self._plane.model) if not one["path"].endswith(".state")]
            if left:
                raise ChangeRefused(409, f"{', '.join(left)} cannot be written into the file by itself; edit it by hand")
            path = self._file.path
            await self._in_thread(lambda: adoption.write(path, on_disk.text, text))
            reloaded = await self._load(self._file, replace(terms, reason=terms.reason or "live values adopted"))
        return edit, await self._loaded(*reloaded)


def _check_emptied(before: Model, after: Model) -> None:
    """As the file, so the running configuration: a pool has at least one server."""
    for name, pool in before.pools.items():
        if pool.servers and name in after.pools and not after.pools[name].servers:
            last = pool.servers[-1].address
            raise ChangeRefused(409, f"{last} is the last server of pool {name}; drain it or set it to maint instead", "server")


def _nothing() -> None:
    """Nothing is left to do."""
