"""The Cache-Status field (RFC 9211): one look at an answer tells whether it came from the cache, and if not, why not.

    Cache-Status: revproxy; hit; ttl=52
    Cache-Status: revproxy; fwd=uri-miss; fwd-status=200; stored; ttl=60
    Cache-Status: revproxy; fwd=uri-miss; fwd-status=200; detail=set-cookie

The key is never shown: it would tell what else to ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from twistedproxy.http.messages import ResponseHead

NAME = b"Cache-Status"
_LOWER_NAME = NAME.lower()
DEFAULT_IDENTITY = b"revproxy"
_TOKEN = re.compile(rb"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*+")


class Forwarded(StrEnum):
    """Why the server was asked (RFC 9211 2.2)."""

    BYPASS = "bypass"
    METHOD = "method"
    URI_MISS = "uri-miss"
    VARY_MISS = "vary-miss"
    MISS = "miss"
    REQUEST = "request"
    STALE = "stale"
    PARTIAL = "partial"


_WORDS = {why: why.encode("ascii") for why in Forwarded}


def identity(name: bytes) -> bytes:
    """A cache's name as the field shows it: a token where it is one, else a string."""
    if _TOKEN.fullmatch(name) is not None:
        return name
    plain = bytes(c for c in name if 0x20 <= c < 0x7F)
    return b'"' + plain.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def hit(ttl_s: float, name: bytes = DEFAULT_IDENTITY, detail: str = "") -> bytes:
    """The field line of an answer from the cache. `ttl_s`: how much longer it is fresh; negative: it is stale by so much."""
    if detail:
        return b"Cache-Status: %b; hit; ttl=%d; detail=%b\r\n" % (name, _floor(ttl_s), identity(detail.encode("latin-1", "replace")))
    return b"Cache-Status: %b; hit; ttl=%d\r\n" % (name, ttl_s // 1 if -_MOST < ttl_s < _MOST else _floor(ttl_s))


def forwarded(
    why: Forwarded,
    name: bytes = DEFAULT_IDENTITY,
    *,
    status: int | None = None,
    ttl_s: float | None = None,
    stored: bool = False,
    collapsed: bool = False,
    detail: str = "",
) -> bytes:
    """The field line of an answer that a server was asked for; `status` is the server's, where it is not the one the client gets.
    `collapsed`: another request's answer served this one too."""
    if stored and status is not None and ttl_s is not None and not collapsed and not detail and -_MOST < ttl_s < _MOST:
        return b"Cache-Status: %b; fwd=%b; fwd-status=%d; stored; ttl=%d\r\n" % (name, _WORDS[why], status, ttl_s // 1)
    parts = [b"Cache-Status: %b; fwd=%b" % (name, _WORDS[why])]
    if status is not None:
        parts.append(b"fwd-status=%d" % status)
    if stored:
        parts.append(b"stored")
    if collapsed:
        parts.append(b"collapsed")
    if ttl_s is not None:
        parts.append(b"ttl=%d" % (ttl_s // 1 if -_MOST < ttl_s < _MOST else _floor(ttl_s)))
    if detail:
        parts.append(b"detail=%b" % identity(detail.encode("latin-1", "replace")))
    return b"; ".join(parts) + b"\r\n"


_MOST = 999_999_999_999


def _floor(seconds: float) -> int:
    """Whole seconds, rounded down, so that ``ttl=0`` is still fresh and ``ttl=-1`` is not."""
    return max(-_MOST, min(_MOST, int(seconds // 1)))


def marked(head: ResponseHead, line: bytes) -> ResponseHead:
    """`head` with our Cache-Status `line` behind those of other caches."""
    return Marked(head, line)


class Marked:
    """A head with one more line, as `EditedHead` would have it, at a fraction of the cost: every answer of a server gets one."""

    __slots__ = ("_inside", "_line", "minor", "status")

    def __init__(self, inside: ResponseHead, line: bytes) -> None:
        self._inside = inside
        self._line = line
        self.minor = inside.minor
        self.status = inside.status

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    @property
    def _value(self) -> bytes:
        return self._line[len(NAME) + 2 : -2]

    def get(self, name: bytes) -> bytes | None:
        found: bytes | None = self._inside.get(name)
        return self._value if found is None and name == _LOWER_NAME else found

    def get_all(self, name: bytes) -> list[bytes]:
        found: list[bytes] = self._inside.get_all(name)
        return [*found, self._value] if name == _LOWER_NAME else found

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self._inside.fields()
        yield NAME, self._value

    def write_h1(self, start_line: bytes | None, drop: int, remove: tuple[bytes, ...], tail: bytes) -> bytes:
        return self._inside.write_h1(start_line, drop, remove, tail if _LOWER_NAME in remove else self._line + tail)
