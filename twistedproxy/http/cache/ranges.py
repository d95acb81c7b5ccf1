"""Parts of a complete body: which ones a Range asks for, and the 206 or 416 they are sent with (RFC 9110 14).

How it works
    A Range is a wish: what cannot be read, asks for too many parts, for parts that overlap, or for parts that with their framing come
    to more than the whole, gets the whole (200). So no request can make an answer larger than the body it is about, nor cost more than a
    few dozen steps. Parts are only ever cut from complete bodies, of a length that is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from twistedproxy.http.cache.conditional import if_range_holds
from twistedproxy.http.cache.stored import Stored
from twistedproxy.http.messages import RequestHead

MAX_RANGES = 16
_MAX_VALUE = 512
_UNIT = re.compile(rb"bytes=", re.I)
_RANGE = re.compile(rb"[ \t]*+(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))[ \t]*+")
_CONTENT_RANGE = frozenset((b"content-range",))
_CONTENT_RANGE_AND_TYPE = frozenset((b"content-range", b"content-type"))


class Answer(Enum):
    """What else a Range can come to."""

    WHOLE = 200
    UNSATISFIABLE = 416


Ranges = tuple[tuple[int, int], ...]
"""(first byte, last byte) of each part, in the order asked for; at least one."""


def wanted(stored: Stored, request: RequestHead) -> Ranges | Answer:
    """What part of this copy a request is to get, when its conditions let it have it at all."""
    value = request.get(b"range")
    if value is None or request.method != b"GET" or stored.status != 200 or stored.body_length < 0 or not if_range_holds(stored, request):
        return Answer.WHOLE
    if len(request.get_all(b"range")) > 1:
        return Answer.WHOLE
    return parse(value, stored.body_length)


def parse(value: bytes, size: int) -> Ranges | Answer:
    """The parts that a Range value names of `size` bytes."""
    unit = _UNIT.match(value)
    if unit is None or len(value) > _MAX_VALUE:
        return Answer.WHOLE
    specs = value[unit.end() :].split(b",")
    if len(specs) > MAX_RANGES:
        return Answer.WHOLE
    found: list[tuple[int, int]] = []
    for spec in specs:
        match = _RANGE.fullmatch(spec)
        if match is None:
            return Answer.WHOLE
        if match[1] is None:
            length = int(match[3])
            if length and not size:  # the end of nothing is nothing, and satisfiable (14.1.2): the whole
                return Answer.WHOLE
            if length:
                found.append((max(0, size - length), size - 1))
            continue
        first = int(match[1])
        last = size - 1 if match[2] is None else int(match[2])
        if match[2] is not None and last < first:
            return Answer.WHOLE
        if first < size:
            found.append((first, min(last, size - 1)))
    if not found:
        return Answer.UNSATISFIABLE
    if len(found) > 1:
        in_order = sorted(found)
        overlap = any(before[1] >= after[0] for before, after in pairwise(in_order))
        if overlap or sum(last - first + 1 + _FRAME for first, last in found) > size:
            return Answer.WHOLE
    return tuple(found)


_FRAME = 100
"""About what the framing of one part costs."""


@dataclass(frozen=True, slots=True)
class Part:
    """`before`, then `length` bytes of the body from `first` on."""

    before: bytes
    first: int
    length: int


@dataclass(frozen=True, slots=True)
class Partial:
    """A whole 206: head, parts, and what follows the last part."""

    head: bytes
    parts: tuple[Part, ...]
    after: bytes
    body_length: int
    """Bytes that follow the head."""


def partial(stored: Stored, ranges: Ranges, now: float, boundary: bytes, extra: bytes = b"") -> Partial:
    """The 206 for these parts of this copy. `boundary` separates several; it has to be fresh randomness in hexadecimal (so that no body
    can hold it); `extra` are field lines."""
    size = stored.body_length
    if len(ranges) == 1:
        first, last = ranges[0]
        length = last - first + 1
        head = b"HTTP/1.1 206 Partial Content\r\n%bAge: %d\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n%b\r\n" % (
            stored.block_without(_CONTENT_RANGE), stored.age(now), first, last, size, length, extra,
        )  # fmt: skip
        return Partial(head, (Part(b"", first, length),), b"", length)
    kind = next((value for name, value in stored.fields() if name.lower() == b"content-type"), None)
    kind_line = b"" if kind is None else b"Content-Type: %b\r\n" % kind
    parts = tuple(
        Part(
            b"%b--%b\r\n%bContent-Range: bytes %d-%d/%d\r\n\r\n" % (b"\r\n" if number else b"", boundary, kind_line, first, last, size),
            first,
            last - first + 1,
        )
        for number, (first, last) in enumerate(ranges)
    )
    after = b"\r\n--%b--\r\n" % boundary
    length = len(after) + sum(len(part.before) + part.length for part in parts)
    head = (
        b"HTTP/1.1 206 Partial Content\r\n%bAge: %d\r\nContent-Type: multipart/byteranges; boundary=%b\r\nContent-Length: %d\r\n%b\r\n"
        % (stored.block_without(_CONTENT_RANGE_AND_TYPE), stored.age(now), boundary, length, extra)
    )
    return Partial(head, parts, after, length)


def unsatisfiable_head(stored: Stored, extra: bytes = b"") -> bytes:
    """The 416: says how long the body is, and has none of its own."""
    return b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */%d\r\nContent-Length: 0\r\n%b\r\n" % (stored.body_length, extra)
