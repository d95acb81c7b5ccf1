"""Kept answers that lie ready: the way of nearly all hits, without an exchange of its own kind.

How it works
    A route that does nothing besides keeping answers has a table of those used lately, by what clients sent. An answer in it is given
    when the request asks for nothing special and the answer is current, fresh and not purged; its head is written once a second, since
    only its age changes. Where answers vary, the table leads to a `Choice` of them by the values that the request chooses by. A client
    that has the answer already gets its 304 the same way. Everything else goes the long way, `caching`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twistedproxy.http import forwarding
from twistedproxy.http.cache import conditional, keys, policy
from twistedproxy.http.cache.entries import Entry
from twistedproxy.http.cache.status import hit
from twistedproxy.http.exchange import Exchange
from twistedproxy.http.head import RESPONSE_LIMITS, parse_response
from twistedproxy.http.messages import NO_BODY, Kind, RequestHead, ResponseHead

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache

MOST_READY = 4096
"""Of one route."""


class Ready:
    """A kept answer as it goes out: its head is written once a second."""

    __slots__ = (
        "arena", "counted", "fresh_until", "head", "not_modified", "place", "purges_seen", "second", "settings", "status", "stored"
    )  # fmt: skip

    def __init__(self, entry: Entry, arena: Any, settings: policy.Settings, counted: tuple[str, str]) -> None:
        stored = entry.stored
        self.arena = arena
        """In which `place` is; a reload may bring another one."""
        self.place = entry.copy.place
        self.stored = stored
        self.status = stored.status
        self.fresh_until = stored.fresh_until
        self.purges_seen = entry.purges_seen
        self.settings = settings
        self.counted = counted
        self.second = -1
        self.head = b""
        self.not_modified = b""
        """The head of a 304; b"": nobody asked for it in this second."""

    def render(self, now: float, second: int) -> None:
        stored = self.stored
        data = stored.head(now, extra=hit(stored.fresh_until - now))
        self.head = forwarding.response(parse_kept(data), stored.body_length, False, True)
        self.not_modified = b""
        self.second = second

    def has_already(self, head: RequestHead, now: float) -> bool | None:
        """Whether a client that sent conditions has this answer; None: more is to be thought of than can be here."""
        settings = self.settings
        if policy.may_use(head, settings) is not None or policy.usable(self.stored, head, now, settings) is not policy.Use.FRESH:
            return None
        outcome = conditional.evaluate(self.stored, head)
        if outcome is conditional.Outcome.SEND:
            return False if head.get(b"range") is None else None
        if outcome is not conditional.Outcome.NOT_MODIFIED:
            return None
        if not self.not_modified:
            data = self.stored.not_modified_head(now, extra=hit(self.stored.fresh_until - now))
            self.not_modified = forwarding.response(parse_kept(data), NO_BODY, False, True)
        return True


class Choice:
    """The answers of one URL that varies, by what requests choose by."""

    __slots__ = ("found", "names")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self.names = names
        self.found: dict[tuple[bytes | None, ...], Ready] = {}

    def of(self, head: RequestHead) -> Ready | None:
        values = keys.selecting(self.names, head)
        return None if values is None else self.found.get(values)


def is_given_at_once(cache: Cache, exchange: Exchange, ready: dict[tuple[bytes, bytes, bool], Ready | Choice]) -> bool:
    """The way of nearly all hits: a GET for an answer that lies ready in memory."""
    head, client = exchange.head, exchange.connection.client
    name = (head.authority, head.target, client.tls is None)
    found = ready.get(name)
    if found is None or head.kinds & Kind.HOP_BY_HOP or exchange.method != b"GET" or not exchange.keep_alive or not head.minor:
        return False
    if found.__class__ is Choice:
        found = found.of(head)
        if found is None:
            return False
    assert isinstance(found, Ready)
    if client.is_trusted:  # who may say more about the URL than the request line does
        return False
    now = cache.now()
    if now >= found.fresh_until or cache.purges.count != found.purges_seen or head.body_length or exchange.front.is_draining:
        return False
    arena, place = cache.store.arena, found.place
    body = arena.body(place) if arena is found.arena and arena.is_current(place) else None
    if body is None:
        del ready[name]
        return False
    arena.touch(place)
    second = int(now)
    if found.second != second:
        found.render(now, second)
    if head.kinds & Kind.CONDITIONS:
        has_already = found.has_already(head, now)
        if has_already is None:
            return False
        if has_already:
            exchange.give(found.not_modified, 304, 0)
            cache.counts[found.counted] += 1
            return True
    exchange.give(found.head + body, found.status, len(body))
    cache.counts[found.counted] += 1
    return True


def make_ready(cache: Cache, exchange: Any, entry: Entry) -> None:
    """`entry` was given to `exchange`: let the next who ask the same way have it at once, if their route does nothing else."""
    ready, head, stored, client = exchange.actions.kept, exchange.head, entry.stored, exchange.connection.client
    if ready is None or client.is_trusted or entry.copy.reader is not None:
        return
    if stored.status in (204, 304) or entry.purges_seen != cache.purges.count:
        return
    name = (head.authority, head.target, client.tls is None)
    if len(ready) >= MOST_READY and name not in ready:
        ready.clear()
    found = Ready(entry, cache.store.arena, exchange.settings, (exchange.site, "hit"))
    if not stored.vary:
        ready[name] = found
        return
    choice = ready.get(name)
    if choice.__class__ is not Choice or choice.names != stored.vary or len(choice.found) >= keys.MAX_VARIANTS:
        choice = ready[name] = Choice(stored.vary)
    choice.found[stored.selecting] = found


def parse_kept(data: bytes) -> ResponseHead:
    """A head made here, in the form servers' heads have."""
    head: ResponseHead | None = parse_response(data, RESPONSE_LIMITS)
    assert head is not None
    return head
