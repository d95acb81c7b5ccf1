"""The supervisor's part of the cache: its directory, who keeps it within its limits, its totals, and purges.

Workers keep and give answers by themselves; nothing here is asked when a request comes. A directory that cannot be made or written
stops nobody: workers go on without what they cannot have, and it is said once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedproxy.config.model import Cache, Model
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.cache_keeper import CacheKeeper, Totals
from twistedproxy.supervisor.fleet import Fleet, heard_by_all
from twistedproxy.supervisor.observed import Observed
from twistedproxy.supervisor.purging import FILE, Purging, Tellers


class Keeper(Protocol):
    """`cache_keeper.CacheKeeper`."""

    totals: Totals

    def start(self) -> None: ...

    def stop(self) -> None: ...


MakeKeeper = Callable[[Cache], Keeper]


class Everybody:
    """All workers, told by what is observed."""

    def __init__(self, reactor: Any, observed: Observed, fleet: Fleet) -> None:
        self._reactor = reactor
        self._observed = observed
        self._fleet = fleet

    def keep_purges(self, purges: Any) -> None:
        self._observed.keep_purges(purges)

    def reach(self) -> Deferred[tuple[int, list[int]]]:
        return heard_by_all(self._reactor, self._observed.broadcast_now())


class Caching:
    """`why_not` says why nothing may be purged at this moment, "" when it may; `publish` tells the event stream."""

    log = Logger()
    questions = frozenset({"cache", "purge"})

    def __init__(
        self,
        model: Model,
        wall: Callable[[], float],
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
        tellers: Tellers,
        *,
        publish: Callable[[str, Mapping[str, Any]], None],
        why_not: Callable[[], str],
        make_keeper: MakeKeeper,
    ) -> None:
        self._model = model
        self._why_not = why_not
        self._make_keeper = make_keeper
        self._spec: Cache | None = None
        """What is kept in order now; None: there is no cache."""
        self._keeper: Keeper | None = None
        path = os.path.join(model.state_dir, FILE) if model.state_dir else ""
        self.purging = Purging(path, wall, in_thread, tellers, publish)

    # Life

    def start(self) -> None:
        self.purging.start(is_ours=not self._why_not())
        self.follow(self._model)

    def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.stop()

    def follow(self, model: Model) -> None:
        """Keep in order what `model` asks for: nothing, unless a route has a cache."""
        self._model = model
        spec = model.cache if model.has_cache else None
        if spec == self._spec:
            return
        before, self._spec = self._keeper, spec
        if before is not None:
            before.stop()
        self._keeper = None
        if spec is None:
            return
        self._prepare(spec.directory)
        self._keeper = self._make_keeper(spec)
        if before is not None:  # counters never run backwards
            counted = before.totals
            self._keeper.totals = replace(
                self._keeper.totals, evictions=counted.evictions, evicted_bytes=counted.evicted_bytes, leftovers=counted.leftovers,
                failures=counted.failures,
            )  # fmt: skip
        self._keeper.start()

    def _prepare(self, directory: str) -> None:
        """Make it before the workers do, so that what is wrong is said once and not by each of them."""
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(13, "this user may not write there", directory)
        except OSError as e:
            self.log.error(
                "the cache directory {path} cannot be used: {why}. Requests are answered without the cache; make the directory writable for"
                " this user, or choose another with cache.path",
                path=directory, why=e.strerror or str(e),
            )  # fmt: skip

    # Answers

    @property
    def totals(self) -> dict[str, Any] | None:
        """For statistics: what all workers share, counted once; None without a cache."""
        if self._keeper is None or self._spec is None:
            return None
        now = self._keeper.totals
        return {
            "memory": {"bytes": now.memory_bytes, "objects": now.memory_objects, "limit": self._spec.memory},
            "disk": {"bytes": now.disk_bytes, "objects": now.disk_objects, "limit": self._spec.disk},
            "evicted": now.evictions,
            "failures": now.failures,
            "leftovers": now.leftovers,
            "is_counted": now.is_counted or not self._spec.disk,
            "purges": dict(self.purging.counts),
        }

    async def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what == "purge":
            why_not = self._why_not()
            if why_not:
                raise ChangeRefused(503, f"nothing was purged: {why_not}", retry_after_s=1)
            done = await self.purging.purge(arguments)
            notes = _notes(done["purged"], self._model)
            return done | {"notes": notes} if notes else done
        spec = self._spec
        return {
            "directory": spec.directory if spec is not None else None,
            "max_files": spec.files if spec is not None else None,
            "max_object": spec.max_object if spec is not None else None,
            "purges": {"total": len(self.purging), "latest": self.purging.shown()},
            "routes": [
                {"site": site.name, "path": route.path}
                for site in self._model.sites.values()
                for route in site.all_routes
                if route.cache is not None
            ],
        }


def _notes(purged: Mapping[str, Any], model: Model) -> list[str]:
    """What an operator should know who may have named something else than was meant."""
    if not model.has_cache:
        return ["no route has a cache now: nothing of this can be given"]
    ((kind, what),) = purged.items()
    if kind not in ("url", "prefix"):
        return []
    host = what.partition("://")[2].partition("/")[0].partition("?")[0]
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    names = {name, "*", *(f"*{name[at:]}" for at, character in enumerate(name) if character == "." and at)}
    if any(not names.isdisjoint(site.hosts) for site in model.sites.values()):
        return []
    known = sorted({each for site in model.sites.values() for each in site.hosts})
    shown = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
    unless = ", unless a trusted proxy names it in X-Forwarded-Host" if any(front.trusted_proxies for front in model.http) else ""
    return [f"no site serves {name}{unless}: nothing of this can be given; the sites are for {shown}"]


def keeper_of(reactor: Any) -> MakeKeeper:
    """Keepers that work in the reactor's threads."""

    def make(spec: Cache) -> Keeper:
        return CacheKeeper(
            spec.directory,
            most_bytes=spec.disk,
            most_objects=spec.files,
            arena_bytes=spec.memory,
            call_later=reactor.callLater,
            in_thread=reactor.callInThread,
            from_thread=reactor.callFromThread,
        )

    return make
