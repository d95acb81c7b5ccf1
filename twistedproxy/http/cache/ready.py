"""Kept answers that lie ready: the way of nearly all hits, without an exchange of its own kind.

How it works
    A route that does nothing besides keeping answers has a table of those used lately, by what clients sent. An answer in it is given
    when the request asks for nothing special and the answer is current, fresh and not purged; its head is written once a second, since
    only its age changes. Where answers vary, the table leads to a `Choice` of them by the values that the request chooses by; so it does
    to those that were compressed here. A client that has the answer already gets its 304 the same way. The body comes from memory, or,
    when the store holds its file open, from there: head and file go to a plain socket without another exchange being made of this one,
    unless the client is slow. Everything else goes the long way, `caching`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twistedproxy.http import forwarding
from twistedproxy.http.cache import conditional, keys, policy
from twistedproxy.http.cache.entries import Entry
from twistedproxy.http.cache.sending import SEND_FROM, give_file
from twistedproxy.http.cache.status import hit
from twistedproxy.http.exchange import Exchange
from twistedproxy.http.head import RESPONSE_LIMITS, parse_response
from twistedproxy.http.messages import NO_BODY, Kind, RequestHead, ResponseHead
from twistedproxy.http.middleware.compression import accept_encoding

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache
    from twistedproxy.http.cache.disk import Reader

MOST_READY = 4096
"""Of one route."""
MAX_ACCEPTED = 256
"""Bytes of an Accept-Encoding that answers are made ready for."""


class Ready:
    """A kept answer as it goes out: its head is written once a second."""

    __slots__ = (
        "arena", "counted", "file", "fresh_until", "head", "not_modified", "place", "purges_seen", "second", "settings", "status",
        "stored", "whole",
    )  # fmt: skip

    def __init__(self, entry: Entry, form: Entry | None, arena: Any, settings: policy.Settings, counted: tuple[str, str]) -> None:
        given = form or entry
        stored = given.stored
        self.arena = arena
        """In which `place` is; a reload may bring another one."""
        self.place = given.copy.place
        self.file = None if given.copy.reader is None else given.key
        """The key of what is in a file; the file itself is the store's to hold and to let go of."""
        self.whole = entry.copy.place if form is not None else None
        """Of what was compressed here: where its original is, without which it is not given."""
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
        if self.whole is not None:  # it may have the original, under another validator
            return None
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
    """The answers of one URL that varies, by what requests choose by. `is_coded`: besides, by Accept-Encoding word for word, for among
    the codings that a client takes its weights decide."""

    __slots__ = ("found", "is_coded", "names")

    def __init__(self, names: tuple[bytes, ...], is_coded: bool) -> None:
        self.names = names
        self.is_coded = is_coded
        self.found: dict[tuple[bytes | None, ...], Ready] = {}

    def of(self, head: RequestHead) -> Ready | None:
        values = self.values(head)
        return None if values is None else self.found.get(values)

    def values(self, head: RequestHead) -> tuple[bytes | None, ...] | None:
        """What a request chooses by; None: too long to choose by."""
        values = keys.selecting(self.names, head)
        if not self.is_coded or values is None:
            return values
        accepted = accept_encoding(head)
        return None if len(accepted) > MAX_ACCEPTED else (accepted, *values)


def is_given_at_once(cache: Cache, exchange: Exchange, ready: dict[tuple[bytes, bytes, bool], Ready | Choice]) -> bool:
    """The way of nearly all hits: a GET for an answer that lies ready, in memory or in an open file."""
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
    reader: Reader | None = None
    body: bytes | None = None
    if found.file is not None:
        copy = cache.store.file(found.file, now)
        if copy is not None and copy.value.__class__ is Entry and copy.value.stored is found.stored:
            reader = copy.reader
    else:
        arena, place = cache.store.arena, found.place
        whole = found.whole
        if arena is found.arena and arena.is_current(place) and (whole is None or arena.is_current(whole)):
            body = arena.body(place)
    if body is not None:
        arena.touch(place)
        if whole is not None:
            arena.touch(whole)
    elif reader is None:
        del ready[name]
        return False
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
    if reader is None:
        assert body is not None
        exchange.give(found.head + body, found.status, len(body))
    else:
        give_file(exchange, found.head, found.status, reader)
    cache.counts[found.counted] += 1
    return True


def make_ready(cache: Cache, exchange: Any, entry: Entry, form: Entry | None = None) -> None:
    """`entry`, or its compressed `form`, was given to `exchange`: let the next who ask the same way have it at once, if their route does
    nothing else."""
    ready, head, stored, client = exchange.actions.kept, exchange.head, entry.stored, exchange.connection.client
    if ready is None or client.is_trusted:
        return
    if entry.copy.reader is not None and (form is not None or client.tls is not None or entry.copy.length < SEND_FROM):
        return
    if form is not None and (form.copy is None or form.copy.reader is not None):
        return
    if stored.status in (204, 304) or entry.purges_seen != cache.purges.count:
        return
    name = (head.authority, head.target, client.tls is None)
    if len(ready) >= MOST_READY and name not in ready:
        ready.clear()
    compression = exchange.actions.compression
    is_coded = compression is not None
    if is_coded and form is None and compression.plan(b"", parse_kept(stored.head(stored.stored_at)), stored.body_length) is not None:
        return  # its head says more on its way out: that others get it compressed
    found = Ready(entry, form, cache.store.arena, exchange.settings, (exchange.site, "hit"))
    if not stored.vary and not is_coded:
        ready[name] = found
        return
    choice = ready.get(name)
    is_new = choice.__class__ is not Choice or choice.names != stored.vary or choice.is_coded is not is_coded
    if is_new or len(choice.found) >= keys.MAX_VARIANTS:
        choice = ready[name] = Choice(stored.vary, is_coded)
    values = choice.values(head)
    if values is not None:
        choice.found[values] = found


def parse_kept(data: bytes) -> ResponseHead:
    """A head made here, in the form servers' heads have."""
    head: ResponseHead | None = parse_response(data, RESPONSE_LIMITS)
    assert head is not None
    return head
