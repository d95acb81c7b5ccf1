"""A client's conditions, answered from a copy: If-Match, If-Unmodified-Since, If-None-Match, If-Modified-Since, If-Range (RFC 9110 13).

A condition that cannot be read does not hold where holding would save bytes, and is ignored where the standard says so (dates).
"""

from __future__ import annotations

import re
from enum import IntEnum

from twistedproxy.http.cache.control import http_date
from twistedproxy.http.cache.stored import Stored
from twistedproxy.http.messages import RequestHead

_TAG = re.compile(rb'[ \t]*+((?:W/)?"[\x21\x23-\x7e\x80-\xff]*+")[ \t]*+(?:,|\Z)|[ \t]*+,')
MAX_TAGS = 64
"""Entity tags of one condition that are looked at."""


class Outcome(IntEnum):
    """The status a condition leads to."""

    SEND = 200
    NOT_MODIFIED = 304
    FAILED = 412


def evaluate(stored: Stored, request: RequestHead) -> Outcome:
    """What the conditions of a GET or HEAD make of this copy, in the order of RFC 9110 13.2.2; If-Range belongs to `if_range_holds`.

    Only a 200 is conditional: whatever else is kept is sent as it is (13.2.1)."""
    if stored.status != 200:
        return Outcome.SEND
    value = request.get(b"if-match")
    if value is not None:
        if not _lists(b",".join(request.get_all(b"if-match")), stored.etag, weak=False):
            return Outcome.FAILED
    else:
        value = request.get(b"if-unmodified-since")
        if value is not None:
            since, modified = http_date(value), _modified(stored)
            if since is not None and modified is not None and modified > since:
                return Outcome.FAILED
    value = request.get(b"if-none-match")
    if value is not None:
        if value == stored.etag:  # nearly always, of those that have it
            return Outcome.NOT_MODIFIED
        held = _lists(b",".join(request.get_all(b"if-none-match")), stored.etag, weak=True)
        return Outcome.NOT_MODIFIED if held else Outcome.SEND
    value = request.get(b"if-modified-since")
    if value is not None:
        if value == stored.last_modified:
            return Outcome.NOT_MODIFIED
        since, modified = http_date(value), _modified(stored)
        if since is not None and modified is not None and modified <= since:
            return Outcome.NOT_MODIFIED
    return Outcome.SEND


def if_range_holds(stored: Stored, request: RequestHead) -> bool:
    """Whether a Range may be honoured: there is no If-Range, or it names exactly this copy by a strong validator (13.1.5)."""
    value = request.get(b"if-range")
    if value is None:
        return True
    if value.startswith((b'"', b"W/")):
        return value == stored.etag and not value.startswith(b"W/")
    if stored.last_modified is None or value != stored.last_modified:
        return False
    modified, date = http_date(stored.last_modified), _date(stored)
    return modified is not None and date is not None and date - modified >= 1  # else it may have changed twice in that second (8.8.2.2)


def _lists(value: bytes, etag: bytes | None, weak: bool) -> bool:
    """Whether a list of entity tags, or ``*``, has this one."""
    if value.strip(b" \t") == b"*":
        return True
    if etag is None or (not weak and etag.startswith(b"W/")):
        return False
    opaque = etag.removeprefix(b"W/")
    at = 0
    for _ in range(MAX_TAGS):
        match = _TAG.match(value, at)
        if match is None:
            return False
        tag = match[1]
        if tag is not None and (tag.removeprefix(b"W/") if weak else tag) == opaque:
            return True
        at = match.end()
        if at >= len(value):
            return False
    return False


def _modified(stored: Stored) -> float | None:
    """Last-Modified, else Date (RFC 9111 4.3.2)."""
    modified = None if stored.last_modified is None else http_date(stored.last_modified)
    return _date(stored) if modified is None else modified


def _date(stored: Stored) -> float | None:
    for name, value in stored.fields():
        if len(name) == 4 and name.lower() == b"date":
            return http_date(value)
    return None
