"""What becomes of copies afterwards: how they are validated, renewed by a 304, and invalidated by requests that change things."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from twistedproxy.errors import BadResponse
from twistedproxy.http.cache import keys
from twistedproxy.http.cache.control import format_date
from twistedproxy.http.cache.policy import Freshness, Settings, judge, store
from twistedproxy.http.cache.stored import Flag, Stored
from twistedproxy.http.head import parse_response
from twistedproxy.http.messages import Kind, RequestHead, ResponseHead
from twistedproxy.http.paths import canonical_path

CONDITIONAL = (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range")
OVERRIDES = (b"x-http-method-override", b"x-http-method", b"x-method-override", b"x-original-url", b"x-rewrite-url")
FILL_REMOVES = CONDITIONAL + OVERRIDES
"""Fields of a request that are left out when its answer is to fill the cache: a copy is always the whole thing (CA-07), and fields that
make servers answer something else than the URL says are not in the key (CA-01, CA-06). X-Forwarded-* of strangers never get that far."""

SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"QUERY", b"PROPFIND", b"REPORT", b"SEARCH"))

_KEPT_ON_RENEWAL = (b"content-encoding", b"content-length", b"content-range", b"transfer-encoding", b"trailer", b"vary")
"""What describes the body that is kept is not changed by a 304 (RFC 9111 3.2); nor is what the copy was chosen by."""
_KEPT_WITHOUT_COOKIES = (*_KEPT_ON_RENEWAL, b"set-cookie")
"""A cookie in a 304 is for one visitor: it is passed over, rather than the copy given up."""
_HOP = Kind.CONTENT_LENGTH | Kind.TRANSFER_ENCODING | Kind.CONNECTION | Kind.HOP_BY_HOP | Kind.NOMINATED | Kind.REQUEST_ID


def conditional_fields(stored: Stored) -> tuple[tuple[bytes, bytes], ...]:
    """Fields that ask the server whether this copy still holds (RFC 9111 4.3.1); set them after removing `CONDITIONAL`."""
    fields = []
    if stored.etag is not None:
        fields.append((b"If-None-Match", stored.etag))
    if stored.last_modified is not None:
        fields.append((b"If-Modified-Since", stored.last_modified))
    return tuple(fields)


def refreshed(
    stored: Stored, request: RequestHead, response: ResponseHead, settings: Settings, requested_at: float, now: float
) -> Stored | None:
    """The copy after the server's 304 (RFC 9111 4.3.4); None: the 304 is about something else, fetch it anew.

    With `Flag.DROP` it is to be sent and then forgotten: the 304 said that it may not be kept."""
    if not _is_about(stored, response):
        return None
    kept_fields = _KEPT_ON_RENEWAL if settings.keep_set_cookie else _KEPT_WITHOUT_COOKIES
    dropped = frozenset({name.lower() for name, _ in response.fields()}.difference(kept_fields) | {b"age", b"date"})
    date = b"" if response.get(b"date") is not None else b"Date: %b\r\n" % format_date(now)
    fields = response.write_h1(b"", _HOP, kept_fields, date)
    length = b"Content-Length: %d\r\n" % max(stored.body_length, 0) if stored.status != 204 else b""
    try:
        head = parse_response(b"HTTP/1.1 %d X\r\n%b%b%b\r\n" % (stored.status, stored.block_without(dropped), fields, length))
    except BadResponse:  # more fields than a head may have
        return None
    if head is None:  # pragma: no cover - the head is complete
        return None
    verdict = judge(request, head, settings, requested_at, now)
    if isinstance(verdict, Freshness):
        kept = store(request, head, verdict, now, stored.vary)
        if kept is not None:
            return kept if stored.body_length >= 0 else _without_length(kept)
    block = head.write_h1(b"", _HOP, (b"age",), b"")
    return Stored(
        stored.status, block, born=now, stored_at=now, fresh_until=0.0, flags=stored.flags | Flag.DROP, etag=head.get(b"etag"),
        last_modified=head.get(b"last-modified"), vary=stored.vary, selecting=stored.selecting, tags=stored.tags,
        body_length=stored.body_length,
    )  # fmt: skip


def _without_length(kept: Stored) -> Stored:
    return Stored(
        kept.status, kept.block, born=kept.born, stored_at=kept.stored_at, fresh_until=kept.fresh_until, stale_until=kept.stale_until,
        error_until=kept.error_until, flags=kept.flags, etag=kept.etag, last_modified=kept.last_modified, vary=kept.vary,
        selecting=kept.selecting, tags=kept.tags,
    )  # fmt: skip


def _is_about(stored: Stored, response: ResponseHead) -> bool:
    """Whether the validators of a 304 select this copy; a 304 without any is taken at its word, for we asked about this one."""
    etag = response.get(b"etag")
    if etag is not None:
        if stored.etag is None:
            return False
        if etag.startswith(b"W/"):
            return etag[2:] == stored.etag.removeprefix(b"W/")
        return etag == stored.etag.removeprefix(b"W/") if stored.etag.startswith(b"W/") else etag == stored.etag
    modified = response.get(b"last-modified")
    return modified is None or stored.last_modified is None or modified == stored.last_modified


def invalidates(
    method: bytes, response: ResponseHead, scheme: bytes, authority: bytes, path: bytes, query: bytes, scope: bytes = b""
) -> tuple[bytes, ...]:
    """Primary keys of what is no longer true after this answer to an unsafe request (RFC 9111 4.4): the URL itself, and what Location
    and Content-Location name on the same origin. Empty for safe methods and for errors."""
    if method in SAFE or not 200 <= response.status < 400:
        return ()
    found = [keys.primary(scheme, authority, path, query, scope)]
    for name in (b"location", b"content-location"):
        value = response.get(name)
        place = None if value is None else _same_origin(value, scheme, authority, path, query)
        if place is not None:
            key = keys.primary(scheme, authority, *place, scope)
            if key not in found:
                found.append(key)
    return tuple(found)


def _same_origin(value: bytes, scheme: bytes, authority: bytes, path: bytes, query: bytes) -> tuple[bytes, bytes] | None:
    """(canonical path, query) that a reference names; None: it is of another origin, or not to be understood."""
    base = f"{scheme.decode('latin-1')}://{authority.decode('latin-1')}{path.decode('latin-1')}"
    try:
        parts = urlsplit(urljoin(f"{base}?{query.decode('latin-1')}" if query else base, value.decode("latin-1")))
    except ValueError:
        return None
    there = keys.origin(parts.scheme.lower().encode("latin-1"), parts.netloc.encode("latin-1"))
    if there != keys.origin(scheme, authority):
        return None
    target = canonical_path(parts.path.encode("latin-1") or b"/")
    return None if isinstance(target, str) else (target, parts.query.encode("latin-1"))
