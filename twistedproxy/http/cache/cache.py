"""The cache of one worker: what is kept, what is on its way, what was purged; and what routes have to do with it.

How it works
    The stores are shared by all workers of the machine, so what one worker keeps the others find. What is on its way is known here
    (`fills`) and, through `neighbours`, in the other workers: a miss in one follows the fill of another.

    `find` answers with the key of the variant that a request chooses, and with its entry when it is there and no purge covers it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Cache as CacheSpec
from twistedproxy.config.model import RouteCache, Site
from twistedproxy.http.acting import act
from twistedproxy.http.cache import freshen, keys, policy
from twistedproxy.http.cache.caching import CachingExchange
from twistedproxy.http.cache.entries import MAX_URL, Entry, VariantList, decoded
from twistedproxy.http.cache.files import MAX_META
from twistedproxy.http.cache.fills import Fill, FillState
from twistedproxy.http.cache.kept import Kept
from twistedproxy.http.cache.neighbours import Neighbours, RemoteFill
from twistedproxy.http.cache.purges import KEPT_S, Purge, Purges, Verdict, covers
from twistedproxy.http.cache.ready import is_given_at_once
from twistedproxy.http.cache.stored import CorruptEntry, Flag, Stored
from twistedproxy.http.destination import Destination
from twistedproxy.http.exchange import Exchange
from twistedproxy.http.messages import RequestHead, ResponseHead
from twistedproxy.http.routes import Decision

PASSED_ON_FOR_S = 30.0
"""How long after an answer that may not be kept requests for the same key go to the server without waiting for one another."""
PASSED_ON_AFTER_ERROR_S = 1.0
"""The same after an error, which one bad request can provoke (CA-06)."""
MOST_PASSED_ON = 10_000
SURELY_FITS = 4096
"""With so many bytes of fields the meta of an answer has less than `MAX_META`, whatever its URL and what it was chosen by."""


@lru_cache(maxsize=1024)
def _scope(site: str, path: str, pool: str) -> bytes:
    return f"{site} {path} {pool}".encode()


class PassedOn:
    """Remembers for a while which keys' answers may not be kept, so that nobody waits for another's."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self.keys: dict[bytes, tuple[float, str]] = {}
        """Until when that is believed, and why it was."""

    def why(self, key: bytes) -> str:
        """Why an answer for this key was not to be kept, a moment ago; "" when it was, or none came."""
        found = self.keys.get(key)
        if found is None:
            return ""
        if found[0] > self._seconds():
            return found[1]
        del self.keys[key]
        return ""

    def note(self, fill: Fill) -> None:
        """`fill`'s answer may not be kept."""
        if fill.refused is None or not fill.refused.is_of_request:
            is_error = fill.head is not None and fill.head.status >= 400
            why = fill.refused.value if fill.refused is not None else fill.not_kept
            self.believe(fill.key, PASSED_ON_AFTER_ERROR_S if is_error else PASSED_ON_FOR_S, why)

    def believe(self, key: bytes, for_s: float = PASSED_ON_FOR_S, why: str = "") -> None:
        if len(self.keys) >= MOST_PASSED_ON:
            self.keys.clear()
        self.keys[key] = self._seconds() + for_s, why or "not-kept"


class Cache:
    """One worker's cache. `now` is the wall clock, which answers' ages are measured by."""

    def __init__(
        self, spec: CacheSpec, store: Any, *, now: Callable[[], float], wheel: Wheel, counts: Counter[tuple[str, str]],
        neighbours: Neighbours | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.store = store
        self.now = now
        self.seconds = wheel.seconds
        self.wheel = wheel
        self.fills: dict[bytes, Fill | RemoteFill] = {}
        """By the key they fill."""
        self.purges = Purges()
        self.neighbours = neighbours
        self.counts = counts
        """(site, result): requests."""
        self._settings: dict[int, tuple[RouteCache, policy.Settings]] = {}
        """By the identity of the route's own, which is part of the value so that it stays unique."""
        self._scopes: dict[str, tuple[bytes, ...]] = {}
        """Sites with the scopes that their answers are kept under."""
        self._varying: dict[bytes, tuple[bytes, ...]] = {}
        """Primary keys of which nothing is kept yet, with what the answer that is on its way varies by."""
        self._distrusted: dict[bytes, float] = {}
        """Keys that another worker has claimed and does not bring, until when that is held against it."""
        self.passed_on = PassedOn(wheel.seconds)

    # Routes

    def act(self, exchange: Exchange, decision: Decision[Destination]) -> Decision[Destination] | None:
        """What `acting.act` does, for fronts of workers that have a cache."""
        actions = decision.actions
        if actions is None or actions.cache is None:
            return act(exchange, decision)
        if actions.kept is not None and is_given_at_once(self, exchange, actions.kept):
            return None
        exchange.__class__ = CachingExchange
        assert isinstance(exchange, CachingExchange)
        exchange.cache = self
        return exchange.begin(decision)

    def settings_of(self, spec: RouteCache | None) -> policy.Settings:
        assert spec is not None
        found = self._settings.get(id(spec))
        if found is None:
            settings = policy.Settings(
                ttl_s=spec.ttl_s,
                stale_while_revalidate_s=spec.stale_while_revalidate_s or 0.0,
                stale_if_error_s=spec.stale_if_error_s or 0.0,
                negative=dict(spec.negative),
                heuristics=spec.heuristics,
            )
            found = self._settings[id(spec)] = (spec, settings)
        return found[1]

    def scope(self, decision: Decision[Destination]) -> bytes:
        """What answers of this route are told apart by from those of others for the same URL."""
        return _scope(decision.site, decision.route.path, decision.destination.pool.name)

    def follow_routes(self, sites: Iterable[Site]) -> None:
        """Know under which scopes answers may be kept: what an unsafe request makes untrue may have come by another route."""
        self._settings.clear()
        self._scopes = {
            site.name: tuple(_scope(site.name, route.path, pool) for route in site.all_routes if route.cache for pool in route.pools)
            for site in sites
        }

    # What is kept

    @property
    def memory_max(self) -> int:
        """Bytes of a body that stay in memory."""
        largest: int = self.store.largest_in_memory
        return largest - largest // 8  # the head needs some of it

    def get(self, key: bytes) -> Entry | VariantList | None:
        """What is kept under `key`, whether it may be given or not."""
        copy = self.store.find(key)
        if copy is None:
            return None
        value: Entry | VariantList | None = copy.value
        if value is None:
            try:
                value = decoded(key, copy.meta, copy)
                if isinstance(value, Entry):  # the meta of a file was written before the end of a body in chunks
                    value.stored = value.stored.with_length(copy.length)
            except (CorruptEntry, ValueError):
                self.store.remove(key)
                return None
            copy.value = value
        return value

    def find(self, primary: bytes, request: RequestHead) -> tuple[bytes | None, Entry | None]:
        """(key of what the request chooses, None when nobody can tell; the entry if it may be used)."""
        found = self.get(primary)
        key: bytes | None = primary
        if isinstance(found, VariantList):
            key = found.variants.key_for(primary, request)
            found = self.get(key) if key is not None and key in found.variants.keys else None
        elif found is None and primary in self._varying:
            key = keys.Variants(self._varying[primary]).key_for(primary, request)
        if not isinstance(found, Entry):
            return key, None
        if found.purges_seen != self.purges.count:
            verdict = self.purges.verdict(found)
            if verdict is Verdict.GONE:
                self.store.remove(found.key)
                return key, None
            if verdict is Verdict.STALE:
                stale = Entry(found.key, found.stored.soft_purged(self.now()), found.url, found.asked_at, found.copy)
                return key, stale
        return key, found

    def body(self, entry: Entry) -> bytes | None:
        """All of it, if it is in memory; else see `reader`."""
        copy = entry.copy
        body: bytes | None = copy.body() if copy is not None and copy.reader is None else None
        return body

    def reader(self, entry: Entry) -> Any:
        """Reads the body from its file; None when it is gone."""
        copy = entry.copy
        return Kept(copy.reader) if copy is not None and copy.reader is not None else None

    def forget(self, key: bytes) -> None:
        """Keep it no longer, nor what is on its way to be kept."""
        self.store.remove(key)
        self._varying.pop(key, None)
        for fill in self.fills.values():
            if key in (fill.key, fill.primary):
                fill.is_forgotten = True

    # What comes to be kept

    def fill(self, key: bytes, leader: Any, stale: Entry | None) -> Fill | RemoteFill:
        """A new fill of `key`, or another worker's. The caller begins what is its own."""
        neighbours = self.neighbours
        fill: Fill | RemoteFill | None = None
        is_claimed = False
        if neighbours is not None and self._distrusted.get(key, 0.0) <= self.seconds():
            holder = neighbours.claim(key)
            is_claimed = holder < 0
            fill = neighbours.follow(self, key, leader, holder) if holder >= 0 else None
        if fill is None:
            fill = Fill(self, key, leader, stale)
            if is_claimed and neighbours is not None:
                neighbours.hold(key, fill)
        self.fills[key] = fill
        return fill

    def may_renew(self, key: bytes) -> bool:
        """Whether nobody renews it already, here or in another worker."""
        return key not in self.fills and (self.neighbours is None or self.neighbours.holder(key) < 0)

    def fill_over(self, fill: Fill | RemoteFill) -> None:
        self._hide(fill)
        self._varying.pop(fill.primary, None)

    def prefer(self, fill: Fill | RemoteFill) -> None:
        """`fill` has its answer: whoever gave it up, and waits for one that was begun later, may have this one."""
        rival = self.fills.get(fill.key)
        if rival is None or rival is fill or rival.state is not FillState.ASKING:
            return
        if fill.entry is not None and self.purges.verdict(fill.entry) is not Verdict.GOOD:
            return
        if fill.state is FillState.KEEPING:
            self.fills[fill.key] = fill
        rival.yield_to()

    def distrust(self, key: bytes) -> None:
        """The worker that has claimed `key` says nothing: for a while its claim does not count."""
        if len(self._distrusted) >= MOST_PASSED_ON:
            self._distrusted.clear()
        self._distrusted[key] = self.seconds() + PASSED_ON_FOR_S

    def entry_for(self, fill: Fill, head: ResponseHead, freshness: policy.Freshness, now: float) -> Entry | None:
        """What `fill` will keep, under the key of its variant; None: what it varies by is too much."""
        names: tuple[bytes, ...] | None = ()
        if freshness.vary or fill.key != fill.primary:  # else there were no variants when it was asked for, and this is none
            known = self.get(fill.primary)
            names = (known.variants if isinstance(known, VariantList) else keys.Variants()).widened(freshness.vary)
        stored = policy.store(fill.request, head, freshness, now, names) if names is not None else None
        if stored is None or names is None:
            return None
        key = keys.variant(fill.primary, names, stored.selecting) if names else fill.primary
        entry = Entry(key, stored, fill.url, fill.asked_at)
        if len(entry.url) > MAX_URL or (len(stored.block) > SURELY_FITS and len(entry.to_meta()) > MAX_META):
            return None
        if names:
            self.chose(fill, entry)
        return entry

    def chose(self, fill: Fill | RemoteFill, entry: Entry) -> None:
        """What `fill` brings is `entry`, which may be one variant of several."""
        names = entry.stored.vary
        if entry.key != fill.key and names:
            self._varying[fill.primary] = names
            if self.fills.get(fill.key) is fill:
                del self.fills[fill.key]
            fill.key = entry.key
            if self.purges.verdict(entry) is Verdict.GOOD:
                self.fills.setdefault(fill.key, fill)

    def keep(self, fill: Fill, entry: Entry, body: bytes) -> bool:
        """All of a small answer is there. False: it cannot be kept."""
        if entry.stored.body_length != len(body):
            try:
                entry.stored = entry.stored.with_length(len(body))
            except ValueError:
                return False  # another length was announced
        entry.copy = self.store.put(entry.key, entry.to_meta(), body)
        if entry.copy is None and not self.store.is_on_disk:
            return False
        if entry.stored.vary:
            self.kept(fill, entry)
        return True

    def why_untrue(self, fill: Fill | RemoteFill, entry: Entry) -> str:
        """Why what `fill` brings is not given to anybody else, though it may be kept; "" when it is."""
        if self.purges.verdict(entry) is Verdict.GONE:
            return "purged"
        return "invalidated" if fill.is_forgotten else ""

    def kept(self, fill: Fill, entry: Entry) -> None:
        """It is in the store: note it among the variants of its URL."""
        names = entry.stored.vary
        if not names:
            return
        known = self.get(fill.primary)
        variants = known.variants if isinstance(known, VariantList) else keys.Variants()
        for forgotten in variants.add(names, entry.key):
            self.store.remove(forgotten)
        self.store.put(fill.primary, VariantList(variants).to_meta(), b"")

    def is_kept_whole(self, entry: Entry, size: int) -> bool:
        """The file of a large answer is complete with `size` bytes: is that what the server announced?"""
        try:
            entry.stored = entry.stored.with_length(size)
        except ValueError:
            self.store.remove(entry.key)
            return False
        return True

    def renewed(self, entry: Entry, stored: Stored, asked_at: float, keeps: bool = True) -> Entry:
        """The server said that `entry` still holds: what is kept of it from now on is `stored`."""
        renewed = Entry(entry.key, stored, entry.url, asked_at, entry.copy)
        if stored.flags & Flag.DROP:
            self.store.remove(entry.key)
        elif keeps:
            copy = self.store.renew(entry.copy, renewed.to_meta())
            if copy is not None:
                renewed.copy = copy
            elif entry.copy.value is entry:  # no memory takes it, so at least we know
                entry.copy.value = renewed
        return renewed

    # What must not be kept

    def give_up(self, fill: Fill | RemoteFill) -> None:
        """Nobody waits for this fill any longer, here or in another worker: the next request begins another."""
        self._hide(fill)
        self.distrust(fill.key)

    def invalidate(self, exchange: Any, head: ResponseHead) -> None:
        """Forget what an answer to an unsafe request makes untrue."""
        if exchange.method in freshen.SAFE:
            return
        asked = exchange.head
        scheme = exchange.scheme.encode()
        said = keys.claims(asked) if exchange.connection.client.is_trusted else b""
        untrue: list[bytes] = []
        for scope in self._scopes.get(exchange.site, ()):
            untrue += freshen.invalidates(exchange.method, head, scheme, asked.authority, asked.path, asked.query, scope + said)
        for key in untrue:
            self.forget(key)
        if untrue and self.neighbours is not None:
            self.neighbours.forget(untrue)

    # Purges

    def purge(self, by: str, what: str, at: float, is_soft: bool) -> None:
        """Do not give any more what this covers and was asked for before `at`."""
        purge = Purge(by, what, at, is_soft)
        self.purges.add(purge)
        self.purges.forget_before(self.now() - KEPT_S)
        for fill in tuple(self.fills.values()):
            if covers(purge, fill.url, None if fill.entry is None else fill.entry.stored.tags):
                # Who waits for it gets it; who comes from now on begins another.
                fill.is_forgotten = fill.is_forgotten or not is_soft
                self._hide(fill)

    def _hide(self, fill: Fill | RemoteFill) -> None:
        """Nobody finds `fill` any more."""
        if self.fills.get(fill.key) is fill:
            del self.fills[fill.key]
        if self.neighbours is not None and isinstance(fill, Fill):
            self.neighbours.release(fill)
