"""Kept answers that lie ready: the way of nearly all hits, without an exchange of its own kind.

How it works
    A route that does nothing besides keeping answers has a table of those used lately, by what clients sent. An answer in it is given
    when the request asks for nothing special and the answer is current, fresh and not purged; its head is written once a second, since
    only its age changes. Everything else goes the long way, `caching`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twistedproxy.http import forwarding
from twistedproxy.http.cache.entries import Entry
from twistedproxy.http.cache.status import hit
from twistedproxy.http.exchange import Exchange
from twistedproxy.http.head import RESPONSE_LIMITS, parse_response
from twistedproxy.http.messages import Kind, ResponseHead

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache

NOT_PLAIN = Kind.CONDITIONS | Kind.HOP_BY_HOP
"""What a request must not have to get the answer that lies ready."""
MOST_READY = 4096
"""Of one route."""


class Ready:
    """A kept answer as it goes out: its head is written once a second."""

    __slots__ = ("arena", "counted", "fresh_until", "head", "place", "purges_seen", "second", "status", "stored")

    def __init__(self, entry: Entry, arena: Any, counted: tuple[str, str]) -> None:
        stored = entry.stored
        self.arena = arena
        """In which `place` is; a reload may bring another one."""
        self.place = entry.copy.place
        self.stored = stored
        self.status = stored.status
        self.fresh_until = stored.fresh_until
        self.purges_seen = entry.purges_seen
        self.counted = counted
        self.second = -1
        self.head = b""

    def render(self, now: float, second: int) -> None:
        stored = self.stored
        data = stored.head(now, extra=hit(stored.fresh_until - now))
        self.head = forwarding.response(parse_kept(data), stored.body_length, False, True)
        self.second = second


def is_given_at_once(cache: Cache, exchange: Exchange, ready: dict[tuple[bytes, bytes], Ready]) -> bool:
    """The way of nearly all hits: a plain GET for an answer that lies ready in memory."""
    head = exchange.head
    found = ready.get((head.authority, head.target))
    if found is None or head.kinds & NOT_PLAIN or exchange.method != b"GET" or not exchange.keep_alive or not head.minor:
        return False
    if exchange.connection.client.is_trusted:  # who may say more about the URL than the request line does
        return False
    now = cache.now()
    if now >= found.fresh_until or cache.purges.count != found.purges_seen or head.body_length or exchange.front.is_draining:
        return False
    arena, place = cache.store.arena, found.place
    body = arena.body(place) if arena is found.arena and arena.is_current(place) else None
    if body is None:
        del ready[(head.authority, head.target)]
        return False
    arena.touch(place)
    second = int(now)
    if found.second != second:
        found.render(now, second)
    exchange.give(found.head + body, found.status, len(body))
    cache.counts[found.counted] += 1
    return True


def make_ready(cache: Cache, exchange: Any, entry: Entry) -> None:
    """`entry` was given to `exchange`: let the next who ask the same way have it at once, if their route does nothing else."""
    ready, head, stored = exchange.actions.kept, exchange.head, entry.stored
    is_plain = not head.kinds & NOT_PLAIN and not stored.vary and entry.copy.reader is None
    if ready is None or not is_plain or stored.status in (204, 304) or entry.purges_seen != cache.purges.count:
        return
    if len(ready) >= MOST_READY:
        ready.clear()
    ready[(head.authority, head.target)] = Ready(entry, cache.store.arena, (exchange.site, "hit"))


def parse_kept(data: bytes) -> ResponseHead:
    """A head made here, in the form servers' heads have."""
    head: ResponseHead | None = parse_response(data, RESPONSE_LIMITS)
    assert head is not None
    return head
