"""Purges of the cache: checked, on disk before anybody is told, and with every worker before they are answered.

How it works
    A purge is an observation like others (`changes.CachePurged`), but one that may not be lost: what the owner of a page has taken back
    must not be given again after a restart. So those that count are in ``purges.json`` in the state directory, written to a new file that
    takes the old one's place. Purges that come while it is being written go into the next writing together.

    What counts and for how long is `http.cache.purges`, the same for us and for the workers.

    A file that cannot be read is set aside, and one that says "everything until now" takes its place before that: whatever it said, nothing
    is given again that somebody took back.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedproxy.config import plain
from twistedproxy.config.changes import CachePurged
from twistedproxy.errors import ChangeRefused, one_line
from twistedproxy.http.cache.purges import KEPT_S, Purge, Purges, spelled
from twistedproxy.supervisor.journal import rfc3339, sync_directory
from twistedproxy.supervisor.state_dir import corrupt_name

FILE = "purges.json"
FORMAT = 1
KINDS = ("url", "prefix", "tag", "all")
SHOWN = 50
MAX_SAID = 500
"""Characters that are kept of who purged and why."""
MOST_SECONDS = 1e11
"""Since the epoch; a time beyond that was not written here."""
MOST_AHEAD_S = 86400.0
"""How far the clock may have been set back with purges still covering what was kept before that."""


class Tellers(Protocol):
    """How workers are told: `observed.Observed`, with the fleet behind it."""

    def keep_purges(self, purges: Sequence[CachePurged]) -> None:
        """These are all that count; tell those that are new."""
        ...

    def reach(self) -> Deferred[tuple[int, list[int]]]:
        """When everybody knows: (how many live, slots of those who have not taken it in within 5 s)."""
        ...


class Purging:
    """All purges that count. `path` is the file they are kept in, "" keeps them in memory only; `in_thread` runs what blocks."""

    log = Logger()

    def __init__(
        self,
        path: str,
        wall: Callable[[], float],
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
        tellers: Tellers,
        publish: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._path = path
        self._wall = wall
        self._in_thread = in_thread
        self._tellers = tellers
        self._publish = publish
        self._purges = Purges()
        self._told: dict[tuple[str, str, bool], tuple[str, str]] = {}
        """Who purged it and why, by `_key`: for people, so workers are not told."""
        self._waiting: list[tuple[Purge, Deferred[None]]] = []
        self._is_writing = False
        self._latest = 0.0
        self.counts: Counter[str] = Counter()
        """Purges by kind, since the start."""

    def start(self, *, is_ours: bool = True) -> None:
        """What earlier supervisors were told still counts. `is_ours`: no other supervisor writes the file, so that we may."""
        for seen in self._read(is_ours):
            self._purges.add(Purge(seen.by, seen.what, seen.at, seen.is_soft))
        self._purges.forget_before(self._wall() - KEPT_S)
        self._tellers.keep_purges(list(map(_observation, self._purges)))

    def read_again(self) -> None:
        """Another supervisor took purges until now: our workers shall know of them before they accept."""
        self.start()
        self._tellers.reach()

    @property
    def is_quiet(self) -> bool:
        """All that was taken is written."""
        return not self._is_writing

    def each_second(self) -> None:
        self._latest = max(self._latest, self._wall())

    def _now(self) -> float:
        """The latest moment that answers may have been asked for at, also when the clock was set back since."""
        now = self._wall()
        self._latest = max(self._latest, now)
        return min(self._latest, now + MOST_AHEAD_S)

    def shown(self) -> list[dict[str, Any]]:
        """The latest ones, newest first."""
        latest = sorted(self._purges, key=lambda purge: -purge.at)[:SHOWN]
        return [
            {"at": rfc3339(purge.at), "by": purge.by, "what": purge.what, "soft": purge.is_soft, "who": who, "reason": reason}
            for purge in latest
            for who, reason in (self._told.get(_key(purge), ("", "")),)
        ]

    def __len__(self) -> int:
        return len(self._purges)

    async def purge(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Do as ``{"url" | "prefix" | "tag": TEXT or "all": true, "soft", "reason", "by"}`` says; `ChangeRefused` says why not."""
        by, what = _wanted(arguments)
        purge = Purge(by, what, self._now(), bool(arguments.get("soft", False)))
        who, reason = str(arguments.get("by", "")), str(arguments.get("reason", ""))
        before = self._told.get(_key(purge))
        self._told[_key(purge)] = one_line(who)[:MAX_SAID], one_line(reason)[:MAX_SAID]
        try:
            await self._keep(purge)
        except ChangeRefused:
            self._told.pop(_key(purge), None)
            if before is not None:
                self._told[_key(purge)] = before
            raise
        self.counts[by] += 1
        total, behind = await self._tellers.reach()
        return self._done(purge, who, reason, total, behind)

    def _done(self, purge: Purge, who: str, reason: str, total: int, behind: list[int]) -> dict[str, Any]:
        named = purge.by if purge.by == "all" else f"{purge.by} {purge.what}"
        because = f" ({one_line(reason)})" if reason else ""
        self.log.info(
            "cache purged{softly} by {who}: {named}{because}",
            who=who or "somebody", named=named, softly=" (soft)" if purge.is_soft else "", because=because,
        )  # fmt: skip
        if behind:
            self.log.error("workers {slots} have not taken in the purge of {named} in time", slots=behind, named=named)
        done = {
            "purged": {purge.by: True if purge.by == "all" else purge.what},
            "soft": purge.is_soft,
            "at": rfc3339(purge.at),
            "workers": {"total": total, "acked": total - len(behind), "lagging": behind},
        }
        self._publish("purge", done | {"by": who, "reason": reason})
        return done

    # Keeping

    def _keep(self, purge: Purge) -> Deferred[None]:
        """On disk, or `ChangeRefused`."""
        kept: Deferred[None] = Deferred()
        self._waiting.append((purge, kept))
        if not self._is_writing:
            Deferred.fromCoroutine(self._write_all())
        return kept

    async def _write_all(self) -> None:
        self._is_writing = True
        while self._waiting:
            batch, self._waiting = self._waiting, []
            after = self._purges.copy()
            after.forget_before(self._wall() - KEPT_S)
            for purge, _ in batch:
                after.add(purge)
            refused = await self._written(after)
            if refused is None:
                self._purges = after
                kept_keys = {_key(purge) for purge in after} | {_key(purge) for purge, _ in self._waiting}
                self._told = {key: told for key, told in self._told.items() if key in kept_keys}
                self._tellers.keep_purges(list(map(_observation, after)))
            for _, kept in batch:
                kept.callback(None) if refused is None else kept.errback(refused)
        self._is_writing = False

    async def _written(self, purges: Purges) -> ChangeRefused | None:
        """Why not."""
        try:
            await self._in_thread(lambda: self._write(purges))
        except OSError as e:
            self.log.error("a purge is refused, {path} cannot be written: {why}", path=self._path, why=str(e))
            why = f"nothing was purged: {self._path} cannot be written ({e.strerror or e}), and a restart would bring back what was there"
            return ChangeRefused(503, f"{why}; make room on that disk and try again")
        except Exception:
            self.log.failure("a purge is refused")
            return ChangeRefused(503, "nothing was purged: it cannot be written down at this moment; the log says more")
        return None

    def _write(self, purges: Purges) -> None:
        """In a thread. The file is whole at every moment."""
        if not self._path:
            return
        self._write_fresh(purges)
        os.replace(self._fresh, self._path)
        sync_directory(os.path.dirname(self._path))

    @property
    def _fresh(self) -> str:
        return f"{self._path}.new"

    def _write_fresh(self, purges: Purges) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._fresh)  # it may be another user's, who ran the proxy once
        with open(self._fresh, "w", encoding="utf-8", opener=_for_us) as file:
            what = [plain.encode(_observation(purge)) for purge in purges]
            told = [self._told.get(_key(purge), ("", "")) for purge in purges]
            json.dump({"purges": FORMAT, "all": what, "told": told}, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())

    def _read(self, is_ours: bool) -> list[CachePurged]:
        if not self._path:
            return []
        try:
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
            if not isinstance(found, dict) or found.get("purges") != FORMAT or not isinstance(found.get("all"), list):
                raise ValueError(f"it is no list of purges of format {FORMAT}")
            purges = [plain.decode(CachePurged, each) for each in found["all"]]
            if not all(0 <= purge.at < MOST_SECONDS for purge in purges):
                raise ValueError("a time is none")
            told = found.get("told")
            if isinstance(told, list) and len(told) == len(purges):  # other versions may not say it
                self._told = {(p.by, p.what, p.is_soft): plain.decode(tuple[str, str], t) for p, t in zip(purges, told, strict=True)}
            return purges
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, RecursionError) as e:
            # What was purged is not known: then it must be everything.
            everything = Purge("all", "", self._now())
            self._told = {_key(everything): ("revproxy", f"{FILE} could not be read")}
            if is_ours:
                self._set_aside(everything, e)
            return [_observation(everything)]

    def _set_aside(self, everything: Purge, why: Exception) -> None:
        """Keep what cannot be read for people to look at. The new file comes first: none at all would forget purges."""
        means = (
            "{path} cannot be read ({why}): which answers were purged is not known. So EVERYTHING in the cache that is older than this"
            " start counts as purged, the servers are asked anew, and nothing that was purged is given again."
        )
        purges = Purges()
        purges.add(everything)
        aside = corrupt_name(self._path, everything.at)
        try:
            self._write_fresh(purges)
            try:
                os.link(self._path, aside)  # so that there is one at every moment
            except OSError:
                os.rename(self._path, aside)  # a directory, another user's file, or no links there
            os.replace(self._fresh, self._path)
            sync_directory(os.path.dirname(self._path))
        except OSError as e:
            more = " It could not be set aside ({failed}): purges may be refused until {path} is taken away by hand."
            self.log.critical(means + more, path=self._path, why=str(why), failed=str(e))
            return
        more = " It is set aside as {aside}; there is nothing to do but to find out what damaged it."
        self.log.critical(means + more, path=self._path, why=str(why), aside=aside)


def _for_us(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _key(purge: Purge) -> tuple[str, str, bool]:
    return purge.by, purge.what, purge.is_soft


def _observation(purge: Purge) -> CachePurged:
    return CachePurged(purge.by, purge.what, purge.at, purge.is_soft)


def _wanted(arguments: Mapping[str, Any]) -> tuple[str, str]:
    given = [kind for kind in KINDS if arguments.get(kind) not in (None, False)]
    if len(given) != 1:
        said = f"{', '.join(given)} are given" if given else "nothing is given"
        raise ChangeRefused(400, f'{said}; name one of "url", "prefix", "tag", or "all": true', given[1] if given else "url")
    by = given[0]
    try:
        return by, spelled(by, str(arguments[by]))
    except ValueError as error:
        raise ChangeRefused(400, f"{by}: {error}", by) from None
