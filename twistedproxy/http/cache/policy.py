"""The cache's judgement: which requests may use it, which answers may be kept, which copies may be sent now (RFC 9111, shared cache).

How it works
    `may_use` looks at the request alone. `storable` judges an answer as it arrives and says why not, or what its freshness is, with
    everything `store` needs to make a `Stored` of it. `usable` judges a copy that was found. All three are pure.

What is chosen where the standard leaves a choice, or where safety asks for more than it does
    Nothing is kept without freshness that was said: by the server, or by the operator's `ttl`; guessing (4.2.2) is off unless asked for.
    Errors (400 and above) are kept only where the operator gave their status a time, and no longer than that (poisoned errors, CA-06).
    Set-Cookie: not kept, unless the answer is ``public`` or has ``s-maxage``; then it is kept without the cookie (CA-04).
    Authorization: answers to such requests are kept only with ``public`` or ``s-maxage``, and such requests get no other copies.
    Answers that end with the connection are never kept: nobody can tell a whole one from a truncated one (CA-07).
    Requests cannot make the cache fetch what it has: ``no-cache``, ``max-age`` and ``min-fresh`` of a request are ignored, as by the
    other reverse proxies, unless `honour_request_directives`. ``no-store`` always goes past the cache, as the standard demands.
    ``s-maxage`` forbids stale answers (5.2.2.10) unless the server itself named a window beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from twistedproxy.http.cache import control, keys
from twistedproxy.http.cache.stored import MAX_TEXT, Flag, Stored
from twistedproxy.http.messages import UNTIL_CLOSE, Kind, RequestHead, ResponseHead

DAY_S = 86_400.0

MAX_TAGS = 128
MAX_TAG = 1024
"""How many tags an answer may have and how long they may be; with more it is not kept, for a purge would miss it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator says about a route's cache."""

    ttl_s: float | None = None
    """In place of whatever freshness the server says (never of no-store, private or no-cache); None: the server's."""
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    """Where the server does not say it."""
    negative: Mapping[int, float] = field(default_factory=dict)
    """Status (400 and above): seconds its answers may be kept at most. Errors that are not listed are not kept."""
    heuristics: bool = False
    """Guess the freshness of answers that only have Last-Modified (RFC 9111 4.2.2)."""
    heuristic_fraction: float = 0.1
    heuristic_max_s: float = DAY_S
    honour_request_directives: bool = False
    """Let clients ask for fresher answers (no-cache, max-age, min-fresh, only-if-cached)."""
    keep_set_cookie: bool = False
    """Keep answers with Set-Cookie like any other, the cookie included: what the standard says, and what hands one visitor's session to
    the next if a server is careless."""


class Bypass(StrEnum):
    """Why a request does not use the cache at all."""

    METHOD = "method"
    BODY = "request-body"
    UPGRADE = "upgrade"
    NO_STORE = "request-no-store"


class Refused(StrEnum):
    """Why an answer is not kept: the words of ``Cache-Status: …; detail=`` and of `explain`."""

    METHOD = "method"
    REQUEST_NO_STORE = "request-no-store"
    STATUS = "status"
    ERROR = "error-status"
    PARTIAL = "partial"
    UNFRAMED = "ends-with-connection"
    NO_STORE = "no-store"
    PRIVATE = "private"
    AUTHORIZATION = "authorization"
    SET_COOKIE = "set-cookie"
    VARY = "vary"
    SELECTING = "selecting-value-too-long"
    NO_FRESHNESS = "no-freshness"
    EXPIRED = "already-stale"
    TAGS = "too-many-tags"
    VALIDATOR = "validator-too-long"
    TOO_LARGE = "too-large"
    """Said by the stores, not here."""

    @property
    def is_of_request(self) -> bool:
        """It lies in this request alone: the next one for the same URL may well be kept, so this is nothing to remember of the URL."""
        return self in (Refused.METHOD, Refused.REQUEST_NO_STORE, Refused.AUTHORIZATION, Refused.SELECTING)


class Use(IntEnum):
    """What to do with a copy that was found for a request."""

    FRESH = 0
    """Send it."""
    STALE_WHILE_REVALIDATE = 1
    """Send it, and renew it in the background."""
    REVALIDATE = 2
    """Ask the server whether it still holds (`freshen.conditional_fields`)."""
    FETCH = 3
    """It cannot be validated: fetch it anew, as if it were not there, but keep it while `error_until` lasts."""
    PASS = 4
    """It is not for this request: forward it, and keep the copy."""


@dataclass(slots=True)
class Freshness:
    """Verdict on an answer that may be kept; not frozen, which would triple the cost of making one."""

    source: str
    """Where the freshness comes from: a directive's name, ``cdn-…``, ``expires``, ``heuristic``, ``ttl`` or ``negative``."""
    initial_age_s: float
    """How old it was when it arrived (RFC 9111 4.2.3)."""
    fresh_s: float
    """How much longer it is fresh, counted from its arrival; 0 or less: it has to be validated at once."""
    stale_while_revalidate_s: float
    stale_if_error_s: float
    flags: int
    vary: tuple[bytes, ...]
    selecting: tuple[bytes | None, ...]
    tags: tuple[bytes, ...]
    not_stored: tuple[bytes, ...]
    """Lower-case names of fields that are left out of the copy."""


def may_use(request: RequestHead, settings: Settings) -> Bypass | None:
    """Why this request goes past the cache; None: look it up."""
    method = request.method
    if method not in _METHODS:
        return Bypass.METHOD
    if request.body_length:
        return Bypass.BODY
    if request.upgrade is not None:
        return Bypass.UPGRADE
    if request.get(b"cache-control") is not None and control.directives(request).no_store:
        return Bypass.NO_STORE
    return None


_METHODS = (b"GET", b"HEAD")
_NO_NAMES: tuple[bytes, ...] = ()
_NO_TAGS: tuple[bytes, ...] = ()
_SET_COOKIE = (b"set-cookie",)
_NO_VALUES: tuple[bytes | None, ...] = ()

UNDERSTOOD = frozenset((200, 203, 204, 300, 301, 302, 303, 307, 308))
"""Statuses whose rules for caches are kept here (must-understand)."""
HEURISTIC = frozenset((200, 203, 204, 300, 301, 308))
"""Statuses whose answers may be kept without the server saying how long, below 400 (RFC 9110 15.1)."""


def storable(request: RequestHead, response: ResponseHead, settings: Settings, requested_at: float, now: float) -> Freshness | Refused:
    """Whether the answer that arrived `now` to a request sent at `requested_at` may be kept once it is complete, and for how long."""
    if request.method != b"GET":
        return Refused.METHOD
    if request.get(b"cache-control") is not None and control.directives(request).no_store:
        return Refused.REQUEST_NO_STORE
    return judge(request, response, settings, requested_at, now)


def judge(request: RequestHead, response: ResponseHead, settings: Settings, requested_at: float, now: float) -> Freshness | Refused:
    """The same of an answer, however it came about: `freshen` puts one together from a copy and a 304."""
    status = response.status
    said = control.targeted(response)
    if said is None:
        said, targeted = control.directives(response), False
    else:
        targeted = True
    if status != 200 or said.no_store:
        refused = _refused_status(status, said, settings)
        if refused is not None:
            return refused
    if response.body_length_for(b"GET") == UNTIL_CLOSE:
        return Refused.UNFRAMED
    if said.private:
        return Refused.PRIVATE
    shared = said.public or said.s_maxage is not None
    if not shared and request.get(b"authorization") is not None:
        return Refused.AUTHORIZATION
    not_stored = tuple(said.not_stored) if said.not_stored else _NO_NAMES
    if not settings.keep_set_cookie and response.get(b"set-cookie") is not None and b"set-cookie" not in not_stored:
        if not shared:
            return Refused.SET_COOKIE
        not_stored += _SET_COOKIE

    value = response.get(b"date")
    date = None if value is None else control.http_date(value)
    initial_age = control.age(response) + max(0.0, now - requested_at)
    if date is not None:
        initial_age = max(initial_age, math.floor(now) - date)  # whole seconds, as Date has them: else each answer loses a part of one
    flags = Flag.SHARED if shared else 0
    last_modified = response.get(b"last-modified")
    etag = response.get(b"etag")
    lifetime, source = _lifetime(response, status, said, targeted, settings, now if date is None else date, last_modified)
    if lifetime is None:
        return Refused.NO_FRESHNESS
    if source == "heuristic":
        flags |= Flag.HEURISTIC
    fresh_s = lifetime if source in _FROM_ARRIVAL else lifetime - initial_age
    while_revalidated = while_failing = 0.0
    if said.no_cache:
        flags |= Flag.NO_CACHE | Flag.MUST_REVALIDATE
        fresh_s = min(fresh_s, 0.0)
    elif said.must_revalidate or said.proxy_revalidate:
        flags |= Flag.MUST_REVALIDATE
    elif status >= 400:
        flags |= Flag.NEGATIVE
    else:
        by_operator = said.s_maxage is None or source == "ttl"
        window = said.stale_while_revalidate
        while_revalidated = window if window is not None else settings.stale_while_revalidate_s if by_operator else 0.0
        window = said.stale_if_error
        while_failing = window if window is not None else settings.stale_if_error_s if by_operator else 0.0
    if fresh_s <= 0 and etag is None and last_modified is None and fresh_s + max(while_revalidated, while_failing) <= 0:
        return Refused.EXPIRED
    if (etag is not None and len(etag) > MAX_TEXT) or (last_modified is not None and len(last_modified) > MAX_TEXT):
        return Refused.VALIDATOR

    vary = keys.vary_names(response)
    if vary is None:
        return Refused.VARY
    selecting = keys.selecting(vary, request) if vary else _NO_VALUES
    if selecting is None:
        return Refused.SELECTING
    tags = _tags(response)
    if tags is None:
        return Refused.TAGS
    return Freshness(source, initial_age, fresh_s, while_revalidated, while_failing, flags, vary, selecting, tags, not_stored)


_FROM_ARRIVAL = ("ttl", "negative")
"""The operator's times begin when an answer arrives, however old it is already."""


def _refused_status(status: int, said: control.Directives, settings: Settings) -> Refused | None:
    if said.no_store and not (said.must_understand and status in UNDERSTOOD):
        return Refused.NO_STORE
    if status in (206, 416):
        return Refused.PARTIAL
    if status < 200 or status == 304 or (said.must_understand and status not in UNDERSTOOD):
        return Refused.STATUS
    return Refused.ERROR if status >= 400 and status not in settings.negative else None


def _lifetime(
    response: ResponseHead, status: int, said: control.Directives, targeted: bool, settings: Settings, date: float,
    last_modified: bytes | None,
) -> tuple[float | None, str]:  # fmt: skip
    """Seconds from `date` on (from now on, for the operator's), and where they come from."""
    if settings.ttl_s is not None and status in HEURISTIC:
        return settings.ttl_s, "ttl"
    lifetime: float | None
    if said.s_maxage is not None:
        lifetime, source = said.s_maxage, "cdn-s-maxage" if targeted else "s-maxage"
    elif said.max_age is not None:
        lifetime, source = said.max_age, "cdn-max-age" if targeted else "max-age"
    elif not targeted and (ends := control.expires(response)) is not None:
        lifetime, source = min(ends - date, control.MAX_DELTA), "expires"
    elif said.no_cache:
        lifetime, source = 0.0, "no-cache"
    else:
        lifetime, source = None, ""
        if settings.heuristics and last_modified is not None and (status in HEURISTIC or (said.public and status < 400)):
            modified = control.http_date(last_modified)
            if modified is not None:
                lifetime = min(max(0.0, date - modified) * settings.heuristic_fraction, settings.heuristic_max_s)
                source = "heuristic"
    if status >= 400:
        most = settings.negative[status]
        return (most, "negative") if lifetime is None else (min(lifetime, most), source)
    return lifetime, source


def _tags(response: ResponseHead) -> tuple[bytes, ...] | None:
    """Surrogate-Key (separated by spaces) and Cache-Tag (by commas); None: more than can be kept."""
    found: list[bytes] = []
    if response.get(b"surrogate-key") is not None:
        for value in response.get_all(b"surrogate-key"):
            found += value.split()
    if response.get(b"cache-tag") is not None:
        for value in response.get_all(b"cache-tag"):
            found += [tag for part in value.split(b",") if (tag := part.strip(b" \t"))]
    if not found:
        return _NO_TAGS
    tags = tuple(dict.fromkeys(found))
    return None if len(tags) > MAX_TAGS or max(map(len, tags)) > MAX_TAG else tags


_NOT_STORED_KINDS = (
    Kind.CONTENT_LENGTH | Kind.TRANSFER_ENCODING | Kind.CONNECTION | Kind.HOP_BY_HOP | Kind.NOMINATED | Kind.REQUEST_ID | Kind.INTERNAL
)
_NOT_STORED = (b"age", b"proxy-authenticate", b"proxy-authentication-info")
"""Fields of one hop or of one moment (RFC 9111 3.1)."""


def store(
    request: RequestHead, response: ResponseHead, freshness: Freshness, now: float, vary: tuple[bytes, ...] | None = None
) -> Stored | None:
    """The copy of an answer that `storable` let pass at the same `now`. `vary`: the names after `keys.Variants.widened`, where this URL
    varies by more than this answer says; None is returned when one of these fields of the request is too long to choose by.

    Its `body_length` is what was announced, -1 without that: call `with_length` when the body is there."""
    selecting = freshness.selecting
    if vary is None or vary == freshness.vary:
        vary = freshness.vary
    else:
        wider = keys.selecting(vary, request)
        if wider is None:
            return None
        selecting = wider
    fresh_until = 0.0 if freshness.flags & Flag.NO_CACHE else now + freshness.fresh_s
    stale_from = now + freshness.fresh_s
    remove = _NOT_STORED + freshness.not_stored if freshness.not_stored else _NOT_STORED
    tail = b"" if response.get(b"date") is not None else b"Date: %b\r\n" % control.format_date(now)
    length = response.body_length_for(b"GET")
    return Stored(
        response.status, response.write_h1(b"", _NOT_STORED_KINDS, remove, tail), born=now - freshness.initial_age_s, stored_at=now,
        fresh_until=fresh_until, stale_until=stale_from + freshness.stale_while_revalidate_s if freshness.stale_while_revalidate_s else 0.0,
        error_until=stale_from + freshness.stale_if_error_s if freshness.stale_if_error_s else 0.0, flags=freshness.flags,
        etag=response.get(b"etag"), last_modified=response.get(b"last-modified"), vary=vary, selecting=selecting, tags=freshness.tags,
        body_length=length if length >= 0 else -1,
    )  # fmt: skip


def matches(stored: Stored, request: RequestHead) -> bool:
    """Whether the request chooses this variant (RFC 9111 4.1)."""
    return not stored.vary or keys.selecting(stored.vary, request) == stored.selecting


def usable(stored: Stored, request: RequestHead, now: float, settings: Settings) -> Use:
    """What may be done with this copy, which the request chooses (`matches`), at this moment."""
    if not stored.flags & Flag.SHARED and request.get(b"authorization") is not None:
        return Use.PASS
    if settings.honour_request_directives and _wants_fresher(stored, request, now):
        return Use.FETCH if stored.etag is None and stored.last_modified is None else Use.REVALIDATE
    if now < stored.fresh_until:
        return Use.FRESH
    if now < stored.stale_until:
        return Use.STALE_WHILE_REVALIDATE
    return Use.FETCH if stored.etag is None and stored.last_modified is None else Use.REVALIDATE


def may_serve_on_error(stored: Stored, request: RequestHead, now: float) -> bool:
    """Whether this copy may be sent because the server failed (RFC 5861 4): no connection, a time-out, or 500, 502, 503, 504."""
    return now < max(stored.error_until, stored.fresh_until) and (bool(stored.flags & Flag.SHARED) or request.get(b"authorization") is None)


def only_if_cached(request: RequestHead, settings: Settings) -> bool:
    """Whether a miss is to be answered with 504 rather than fetched (RFC 9111 5.2.1.7)."""
    return settings.honour_request_directives and control.directives(request).only_if_cached


def _wants_fresher(stored: Stored, request: RequestHead, now: float) -> bool:
    wanted = control.directives(request)
    if wanted is control.NOTHING:
        return b"no-cache" in (request.get(b"pragma") or b"").lower()
    if wanted.no_cache or (wanted.max_age is not None and stored.age(now) > wanted.max_age):
        return True
    return wanted.min_fresh is not None and stored.fresh_until - now < wanted.min_fresh
