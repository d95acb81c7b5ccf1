"""The head codec in plain Python: what runs where there was no compiler, and what the native codec is tested against.

How it works
    The order of judgement is line by line, each looked at once: its limits, its grammar (``lines``), then what it means for framing. So a
    head is refused at the first byte that breaks a rule, except rules about a whole value, which wait for the line's end. That is
    ``_read_fields``; ``_head.pyx`` takes the same steps in the same order: change both, or the differential tests will say so.

    Python pays for each step, so nearly all heads go a shorter way, ``_read_ordinary``, which looks at all lines together: a head that is
    complete, spelled ``Name: value`` without a tab or two spaces in a row, and whose names have been seen in this order before. What is
    known about such a list of names (kinds, which one is Host, which stay under a mask) is a ``Shape``, learnt once. This way never
    refuses anything: whatever it does not take goes the long way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress

from twistedproxy.http.kinds import KNOWN, MAX_NAME, REQUEST_SHAPES, RESPONSE_SHAPES, Shape, Shapes, meaning_of
from twistedproxy.http.lines import first_line, odd_line
from twistedproxy.http.messages import CHUNKED, MAX_LOG_PIECES, NO_BODY, UNTIL_CLOSE, Kind, LogPieces
from twistedproxy.http.paths import coding_rule, host_of, read_target
from twistedproxy.http.refusals import refuse_request, refuse_response

_HOST, _LENGTH, _CODING = Kind.HOST, Kind.CONTENT_LENGTH, Kind.TRANSFER_ENCODING
_CONNECTION, _EXPECT, _NOMINATED = Kind.CONNECTION, Kind.EXPECT, Kind.NOMINATED
_FRAMING = _HOST | _LENGTH | _CODING
_DECISIVE = _FRAMING | _CONNECTION | _EXPECT

MAX_OPTIONS = 32
MAX_LENGTH = 2**63 - 1

_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)\r\n")
_PROTOCOL = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++(?:/[!#$%&'*+.^_`|~0-9A-Za-z-]++)?")
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}+) ([\x21-\x7e]++) HTTP/1\.([01])\r\n")
_ORDINARY_REQUEST = re.compile(
    rb"(?!CONNECT )([A-Z]{1,32}+) (((?:/(?![/.])[A-Za-z0-9_~!$&'()*+,;=:@.-]*+)++)(?:\?([\x21\x22\x24-\x7e]*+))?) HTTP/1\.1\r\n"
)
"""Method, target, path, query; the target is origin-form and canonical (``paths``)."""
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*+)?\r\n")
_ORDINARY_STATUS = re.compile(rb"HTTP/1\.1 ([1-9][0-9][0-9]) [\x20-\x7e]*+\r\n")
_OK = b"HTTP/1.1 200 OK\r\n"
_UNUSUAL = bytes(c < 32 or c == 127 for c in range(256))
"""Translates to 1 what may not stand in the value of an ordinary head: a tab may be there, but is for the long way to judge."""
_NOT_PLAIN = bytes(c < 32 or c > 126 or c in b'"\\' for c in range(256))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a listener accepts of one head: bytes in all, of the first line, of one field line, and how many fields."""

    max_head: int = 32 * 1024
    max_request_line: int = 8 * 1024
    max_field: int = 16 * 1024
    max_fields: int = 100


RESPONSE_LIMITS = Limits(max_head=64 * 1024, max_request_line=8 * 1024, max_field=64 * 1024, max_fields=200)
"""For heads of servers, of interim (1xx) ones too."""


class Head:
    """A parsed head as lines ``Name: value``; see ``messages.Head`` for what each member means.

    What is as nearly always stays on the class: setting a dozen attributes costs more than finding a field.
    """

    size: int
    kinds: int
    minor = 1
    content_length = -1
    is_chunked = False
    wants_close = False
    expects_continue = False
    upgrade: bytes | None = None
    _first: bytes
    _lines: list[bytes]
    _shape: Shape

    def get(self, name: bytes) -> bytes | None:
        """Value of the first field of that (lower-case) name."""
        at = self._shape.first.get(name)
        return None if at is None else self._lines[at][len(name) + 2 :]

    def get_all(self, name: bytes) -> list[bytes]:
        """Values of all fields of that (lower-case) name, in order."""
        start = len(name) + 2
        return [line[start:] for low, line in zip(self._shape.lower, self._lines, strict=True) if low == name]

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        """(name as sent, value) in order."""
        for name, line in zip(self._shape.names, self._lines, strict=True):
            yield name, line[len(name) + 2 :]

    def write_h1(self, start_line: bytes | None, drop: int, remove: tuple[bytes, ...], tail: bytes) -> bytes:
        """First line, the fields neither masked nor removed, tail."""
        kept = list(compress(self._lines, self._shape.kept(drop, remove)))
        if kept:
            kept.append(tail)
            tail = b"\r\n".join(kept)
        return (self._first if start_line is None else start_line) + tail


class RequestHead(Head):
    """A request; ``target`` as received, ``path`` and ``host`` canonical."""

    method: bytes
    target: bytes
    path: bytes
    query: bytes
    host = authority = b""
    is_canonical = True
    body_length = NO_BODY

    def log_pieces(self) -> LogPieces | None:
        """What a log says of this head, when that is short and printable ASCII without quotes and backslashes; else None."""
        method, target, referer, agent = self.method, self.target, self.get(b"referer"), self.get(b"user-agent")
        text = b"".join((method, target, referer or b"", agent or b""))
        if len(text) > MAX_LOG_PIECES or 1 in text.translate(_NOT_PLAIN):
            return None
        return (
            method.decode("ascii"), target.decode("ascii"), "HTTP/1.1" if self.minor else "HTTP/1.0",
            None if referer is None else referer.decode("ascii"), None if agent is None else agent.decode("ascii"),
        )  # fmt: skip


class ResponseHead(Head):
    """A response."""

    status: int

    def body_length_for(self, method: bytes) -> int:
        """How long the body of this answer to a request of that method is (RFC 9112 6.3)."""
        status = self.status
        if method == b"HEAD" or status < 200 or status in (204, 304):
            return NO_BODY
        if self.is_chunked:
            return CHUNKED
        return self.content_length if self.content_length >= 0 else UNTIL_CLOSE


def _options(value: bytes, nominated: list[bytes]) -> str | None:
    """Adds the options of one Connection field to `nominated`."""
    for part in value.lower().split(b","):
        option = part.strip(b" \t")
        if option:
            if len(nominated) >= MAX_OPTIONS:
                return "connection_long"
            if KNOWN.get(option, 0) & _FRAMING:
                return "connection_nominates"
            nominated.append(option)
    return None


def _meaning(head: Head, kind: int, value: bytes, is_request: bool, seen: int) -> str | None:
    """What a field that decides framing does to the head; the rule it breaks."""
    if kind == _LENGTH:
        if seen & _LENGTH:
            return "length_twice"
        if not value.isdigit() or len(value) > 19 or int(value) > MAX_LENGTH:
            return "length"
        if seen & _CODING:
            return "length_and_coding"
        head.content_length = int(value)
    elif kind == _CODING:
        if seen & _CODING:
            return "coding_twice"
        if value.lower() != b"chunked":
            return coding_rule(value)
        if not head.minor:
            return "coding_old"
        if seen & _LENGTH:
            return "length_and_coding"
        head.is_chunked = True
    elif kind == _EXPECT and is_request:
        if value.lower() != b"100-continue":
            return "expectation"
        head.expects_continue = head.minor == 1
    return None


def _read_fields(head: Head, data: bytes, at: int, limits: Limits, is_request: bool) -> str | int:
    """Reads field lines from `at` on. Returns the mask of the kinds seen, -1 when incomplete, or the rule that is broken."""
    lower: list[bytes] = []
    names: list[bytes] = []
    lines: list[bytes] = []
    kinds: list[int] = []
    max_field, max_head, max_fields = limits.max_field, limits.max_head, limits.max_fields
    seen = 0
    nominated: list[bytes] = []
    while True:
        match = _FIELD.match(data, at)
        if match is None:
            break
        end = match.end()
        if end - at - 2 > max_field:
            return "field_long"
        if end > max_head:
            return "head_long"
        if len(names) >= max_fields:
            return "fields_many"
        if match.end(1) - at > MAX_NAME:
            return "field_long"
        at = end
        name, value = match.groups()
        value = value.rstrip(b" \t")
        low, kind = meaning_of(name)
        if kind & _DECISIVE:
            rule: str | None = None
            if kind == _CONNECTION:
                rule = _options(value, nominated)
            elif kind == _HOST:
                if is_request:
                    rule = "host_twice" if seen & _HOST else _host(head, value)
            else:
                rule = _meaning(head, kind, value, is_request, seen)
            if rule is not None:
                return rule
        seen |= kind
        lower.append(low)
        names.append(name)
        lines.append(b"%b: %b" % (name, value))
        kinds.append(kind)
    rule = odd_line(data, at, limits, len(names))
    if rule is not None:
        return rule or -1
    head.size = at + 2
    head._lines = lines
    _connection(head, nominated, lower, kinds)
    head._shape = Shape(tuple(names), lower, kinds)
    head.kinds = head._shape.mask
    if b"upgrade" in nominated and head.minor:
        protocols = head.get_all(b"upgrade")
        if len(protocols) == 1:
            head.upgrade = protocol_of(protocols[0])
    return seen


_hosts: dict[bytes, bytes] = {}
_MAX_HOSTS = 512
"""Host fields seen lately and their canonical form."""


def _read_ordinary(head: Head, data: bytes, after: int, limits: Limits, shapes: Shapes) -> bool:
    """Reads the fields from `after` on when they are complete and spelled as nearly all are; else leaves `head` to the long way."""
    end = data.find(b"\r\n\r\n", after)
    if end < 0 or end + 4 > limits.max_head:
        return False
    lines = data[after:end].split(b"\r\n")
    text = b" ".join(lines)
    # Two spaces in `text` are two in a line, or one at its beginning or end.
    if b"  " in text or text[-1:] == b" " or 1 in text.translate(_UNUSUAL):
        return False
    if len(lines) > limits.max_fields or (len(text) > limits.max_field and max(map(len, lines)) > limits.max_field):
        return False
    names = tuple([name for line in lines for name, colon, _ in (line.partition(b": "),) if colon])
    shape = shapes.get(names) or shapes.learn(names)
    if shape is None or len(names) < len(lines):
        return False
    host, length, coding, connection = shape.at
    if host >= 0 and isinstance(head, RequestHead):
        authority = lines[host][6:]
        name = _hosts.get(authority)
        if name is None:
            name = host_of(authority)
            if name is None:
                return False
            if len(_hosts) >= _MAX_HOSTS:
                _hosts.clear()
            _hosts[authority] = name
        head.authority, head.host = authority, name
    if length >= 0:
        digits = lines[length][16:]
        if not digits.isdigit() or len(digits) > 18:
            return False
        head.content_length = int(digits)
    elif coding >= 0:
        if lines[coding][19:].lower() != b"chunked":
            return False
        head.is_chunked = True
    if connection >= 0:
        option = lines[connection][12:].lower()
        if option == b"close":
            head.wants_close = True
        elif option == b"keep-alive":
            shape = shape.with_keep_alive
        else:
            return False
    head._lines = lines
    head._shape = shape
    head.kinds = shape.mask
    head.size = end + 4
    return True


def _connection(head: Head, nominated: list[bytes], lower: list[bytes], kinds: list[int]) -> None:
    """What the Connection options mean, once all fields are known."""
    head.wants_close = b"close" in nominated or (not head.minor and b"keep-alive" not in nominated)
    if nominated:
        for i, name in enumerate(lower):
            if name in nominated:
                kinds[i] |= _NOMINATED


def protocol_of(value: bytes) -> bytes | None:
    """The one protocol an Upgrade field offers, in lower case; None when it offers several or none."""
    return value.lower() if _PROTOCOL.fullmatch(value) else None


def _host(head: Head, value: bytes) -> str | None:
    assert isinstance(head, RequestHead)
    host = host_of(value)
    if host is None:
        return "host"
    if not head.authority:
        head.authority, head.host = value, host
    return None


def parse_request(data: bytes, limits: Limits) -> RequestHead | None:
    """The head at the beginning of `data`; None when it is incomplete so far and breaks no rule. Raises BadHead, HeadTooLarge."""
    match = _ORDINARY_REQUEST.match(data)
    if match is not None:
        after = match.end()
        if after - 2 <= limits.max_request_line:
            head = RequestHead()
            if _read_ordinary(head, data, after, limits, REQUEST_SHAPES):
                head._first = match[0]
                head.method, head.target, head.path, query = match.groups()
                head.query = query or b""
                if head.is_chunked:
                    head.body_length = CHUNKED
                elif head.content_length > 0:
                    head.body_length = head.content_length
                return head
    return _parse_request(data, limits)


def _parse_request(data: bytes, limits: Limits) -> RequestHead | None:
    """The long way."""
    start = 0
    if data[:1] == b"\r":
        if len(data) == 1:
            return None
        if data[1] != 0x0A:
            raise refuse_request("bare_cr")
        start = 2
    match = _REQUEST.match(data, start)
    after = match.end() if match is not None else 0
    if match is None or after - 2 - start > limits.max_request_line or after > limits.max_head:
        rule = first_line(data, start, limits, True)[1]
        if rule is not None:
            raise refuse_request(rule)
        return None
    head = RequestHead()
    head.method, head.target, minor = match.groups()
    head.minor = int(minor)
    head._first = match[0]
    target = read_target(head.method, head.target)
    if isinstance(target, str):
        raise refuse_request(target)
    authority, head.path, head.query = target
    if authority is not None:
        head.authority, head.host = authority, host_of(authority) or b""
    head.is_canonical = head.minor == 1 and authority is None and head.target.partition(b"?")[0] == head.path
    result = _read_fields(head, data, after, limits, True)
    if isinstance(result, str):
        raise refuse_request(result)
    if result < 0:
        return None
    if head.minor and not result & _HOST:
        raise refuse_request("host_missing")
    head.body_length = CHUNKED if head.is_chunked else max(head.content_length, NO_BODY)
    return head


def parse_response(data: bytes, limits: Limits | None = None) -> ResponseHead | None:
    """The same for a response. Raises BadResponse."""
    limits = RESPONSE_LIMITS if limits is None else limits
    status, first = 200, _OK
    if not data.startswith(_OK):
        match = _ORDINARY_STATUS.match(data)
        if match is None:
            return _parse_response(data, limits)
        status, first = int(match[1]), match[0]
    if len(first) - 2 <= limits.max_request_line:
        head = ResponseHead()
        if _read_ordinary(head, data, len(first), limits, RESPONSE_SHAPES):
            head.status, head._first = status, first
            return head
    return _parse_response(data, limits)


def _parse_response(data: bytes, limits: Limits) -> ResponseHead | None:
    """The long way."""
    match = _STATUS.match(data)
    after = match.end() if match is not None else 0
    if match is None or after - 2 > limits.max_request_line or after > limits.max_head:
        rule = first_line(data, 0, limits, False)[1]
        if rule is not None:
            raise refuse_response(rule)
        return None
    head = ResponseHead()
    head.minor, head.status, head._first = int(match[1]), int(match[2]), match[0]
    result = _read_fields(head, data, after, limits, False)
    if isinstance(result, str):
        raise refuse_response(result)
    return head if result >= 0 else None


_SIMPLE_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")


def take_chunks(data: bytes, at: int) -> tuple[bytes, int]:
    """(payload, where it ends) of the complete, non-empty chunks without extensions that follow one another from `at` on."""
    pieces: list[bytes] = []
    while (match := _SIMPLE_CHUNK.match(data, at)) is not None:
        start = match.end()
        size = int(match[1], 16)
        stop = start + size
        if not size or data[stop : stop + 2] != b"\r\n":
            break
        pieces.append(data[start:stop])
        at = stop + 2
    return b"".join(pieces), at
