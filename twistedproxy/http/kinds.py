"""What field names mean: the kind of one name, and the shape of a list of names, which the pure codec learns once.

Values never get in here, so nothing that a client or server sends in confidence is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from twistedproxy.http.messages import Kind

_OTHER, _HOST, _LENGTH, _CODING = Kind.OTHER, Kind.HOST, Kind.CONTENT_LENGTH, Kind.TRANSFER_ENCODING
_CONNECTION, _HOP, _FORWARDED, _REQUEST_ID = Kind.CONNECTION, Kind.HOP_BY_HOP, Kind.FORWARDED, Kind.REQUEST_ID
_EXPECT, _DATE, _SERVER, _VIA = Kind.EXPECT, Kind.DATE, Kind.SERVER, Kind.VIA
_INTERNAL, _NOMINATED, _CLAIM, _CONDITIONS = Kind.INTERNAL, Kind.NOMINATED, Kind.CLAIM, Kind.CONDITIONS

KNOWN: dict[bytes, int] = {
    b"host": _HOST, b"content-length": _LENGTH, b"transfer-encoding": _CODING, b"connection": _CONNECTION,
    b"keep-alive": _HOP, b"proxy-connection": _HOP, b"te": _HOP, b"trailer": _HOP, b"upgrade": _HOP,
    b"proxy-authorization": _HOP, b"http2-settings": _HOP,
    b"forwarded": _FORWARDED, b"x-forwarded-for": _FORWARDED, b"x-forwarded-proto": _FORWARDED, b"x-forwarded-host": _FORWARDED,
    b"x-forwarded-port": _FORWARDED, b"x-request-id": _REQUEST_ID, b"expect": _EXPECT, b"date": _DATE, b"server": _SERVER, b"via": _VIA,
    b"cache-control": _CONDITIONS, b"pragma": _CONDITIONS, b"authorization": _CONDITIONS, b"range": _CONDITIONS, b"if-range": _CONDITIONS,
    b"if-match": _CONDITIONS, b"if-none-match": _CONDITIONS, b"if-modified-since": _CONDITIONS, b"if-unmodified-since": _CONDITIONS,
    b"x-http-method": _CONDITIONS, b"x-http-method-override": _CONDITIONS, b"x-method-override": _CONDITIONS,
    b"x-real-ip": _CLAIM, b"x-original-url": _CLAIM, b"x-rewrite-url": _CLAIM,
}  # fmt: skip

MAX_NAME = 65535
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++")


def kind_of(name: bytes) -> int:
    """The kind of a field by its lower-case name, with ``_`` taken for ``-`` (servers of the CGI family cannot tell them apart, ID-01)."""
    kind = KNOWN.get(name)
    if kind is not None:
        return kind
    has_underscore = b"_" in name
    if has_underscore:
        name = name.replace(b"_", b"-")
        kind = KNOWN.get(name)
        if kind is not None:
            return _INTERNAL | kind & (_FORWARDED | _REQUEST_ID | _CLAIM)
    if name.startswith((b"x-revproxy", b"x-client-cert", b"x-internal-")):
        return _INTERNAL
    return _CLAIM if name.startswith(b"x-forwarded-") else _OTHER


_names: dict[bytes, tuple[bytes, int]] = {}
_MAX_NAMES = 1024
_SHORT = 40
"""Only names up to this length are remembered, in any of the tables here. A full table is emptied: junk shall not stay in it for good."""


def meaning_of(name: bytes) -> tuple[bytes, int]:
    """(lower-case name, kind), remembered for a thousand short spellings: hardly a client sends others."""
    found = _names.get(name)
    if found is None:
        low = name.lower()
        found = low, kind_of(low)
        if len(name) <= _SHORT:
            if len(_names) >= _MAX_NAMES:
                _names.clear()
            _names[name] = found
    return found


class Shape:
    """What a list of field names means, whatever the values are."""

    __slots__ = ("_kept", "at", "first", "kinds", "lower", "mask", "names", "with_keep_alive")

    def __init__(self, names: tuple[bytes, ...], lower: Sequence[bytes], kinds: Sequence[int]) -> None:
        self.names = names
        self.lower = lower
        self.kinds = kinds
        self.mask = 0
        for kind in kinds:
            self.mask |= kind
        self.first: dict[bytes, int] = {}
        """Lower-case name: index of its first field."""
        for i in range(len(lower) - 1, -1, -1):
            self.first[lower[i]] = i
        self.at = (-1, -1, -1, -1)
        """Where Host, Content-Length, Transfer-Encoding and Connection are; -1: nowhere."""
        self.with_keep_alive = self
        """The same when Connection is ``keep-alive``, which nominates a Keep-Alive field."""
        self._kept: dict[tuple[int, tuple[bytes, ...]], tuple[bool, ...]] = {}

    def kept(self, drop: int, remove: tuple[bytes, ...]) -> tuple[bool, ...]:
        """For each field whether it stays; worked out once per mask and names to remove."""
        key = (drop, remove)
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            kept = tuple([not kind & drop and low not in remove for low, kind in zip(self.lower, self.kinds, strict=True)])
            self._kept[key] = kept
        return kept


class Shapes(dict[tuple[bytes, ...], Shape]):
    """The shapes of ordinary heads seen so far: of requests, or of responses."""

    def __init__(self, is_request: bool) -> None:
        super().__init__()
        self._is_request = is_request

    def learn(self, names: tuple[bytes, ...]) -> Shape | None:
        """The shape of `names`, which may be anything; None when a head with such names needs a closer look."""
        if not names or not all(map(_TOKEN.fullmatch, names)) or max(map(len, names)) > MAX_NAME:
            return None
        learnt = [meaning_of(name) for name in names]
        lower, kinds = [low for low, _ in learnt], [kind for _, kind in learnt]
        shape = Shape(names, lower, kinds)
        hosts, lengths, codings, connections = map(kinds.count, _DECISIVE)
        if lengths + codings > 1 or connections > 1 or b"close" in shape.first:
            return None
        if self._is_request and (hosts != 1 or shape.mask & _EXPECT):
            return None
        host, length, coding, connection = [shape.first.get(name, -1) for name in _DECISIVE_NAMES]
        shape.at = host, length, coding, connection
        if b"keep-alive" in shape.first:
            shape.with_keep_alive = Shape(names, lower, [kind | _NOMINATED * (low == b"keep-alive") for low, kind in learnt])
        if len(names) <= _MAX_SHAPE and max(map(len, names)) <= _SHORT:
            if len(self) >= _MAX_SHAPES:
                self.clear()
            self[names] = shape
        return shape


_DECISIVE = _HOST, _LENGTH, _CODING, _CONNECTION
_DECISIVE_NAMES = b"host", b"content-length", b"transfer-encoding", b"connection"
_MAX_SHAPES = 512
_MAX_SHAPE = 32
_MAX_KEPT = 16

REQUEST_SHAPES = Shapes(True)
RESPONSE_SHAPES = Shapes(False)
