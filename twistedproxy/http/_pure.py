"""The head codec in plain Python: what runs where there was no compiler, and what the native codec is tested against.

How it works
    Line by line, each looked at once. For a line that is complete: the limits first, then its end (CR LF), then its grammar, then what it
    means for framing. For the last, incomplete line: the limits, then whether what is there can still become a valid line. So a
    head is refused at the first byte that breaks a rule, except rules about a whole value, which wait for the line's end.
    ``_head.pyx`` takes the same steps in the same order; change both, or the differential tests will say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from twistedproxy.http.messages import Kind
from twistedproxy.http.paths import coding_rule, host_of, read_target
from twistedproxy.http.refusals import refuse_request, refuse_response

_OTHER, _HOST, _LENGTH, _CODING = Kind.OTHER, Kind.HOST, Kind.CONTENT_LENGTH, Kind.TRANSFER_ENCODING
_CONNECTION, _HOP, _FORWARDED, _REQUEST_ID = Kind.CONNECTION, Kind.HOP_BY_HOP, Kind.FORWARDED, Kind.REQUEST_ID
_EXPECT, _DATE, _SERVER, _VIA = Kind.EXPECT, Kind.DATE, Kind.SERVER, Kind.VIA
_INTERNAL, _NOMINATED, _CLAIM = Kind.INTERNAL, Kind.NOMINATED, Kind.CLAIM
_FRAMING = _HOST | _LENGTH | _CODING
_DECISIVE = _FRAMING | _CONNECTION | _EXPECT

KNOWN: dict[bytes, int] = {
    b"host": _HOST, b"content-length": _LENGTH, b"transfer-encoding": _CODING, b"connection": _CONNECTION,
    b"keep-alive": _HOP, b"proxy-connection": _HOP, b"te": _HOP, b"trailer": _HOP, b"upgrade": _HOP,
    b"proxy-authorization": _HOP, b"http2-settings": _HOP,
    b"forwarded": _FORWARDED, b"x-forwarded-for": _FORWARDED, b"x-forwarded-proto": _FORWARDED, b"x-forwarded-host": _FORWARDED,
    b"x-forwarded-port": _FORWARDED, b"x-request-id": _REQUEST_ID, b"expect": _EXPECT, b"date": _DATE, b"server": _SERVER, b"via": _VIA,
    b"x-real-ip": _CLAIM, b"x-original-url": _CLAIM, b"x-rewrite-url": _CLAIM,
}  # fmt: skip

MAX_OPTIONS = 32
MAX_METHOD = 32
MAX_NAME = 65535
MAX_LENGTH = 2**63 - 1

_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)\r\n")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*+")
_PROTOCOL = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++(?:/[!#$%&'*+.^_`|~0-9A-Za-z-]++)?")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}+) ([\x21-\x7e]++) HTTP/1\.([01])\r\n")
_TARGET = re.compile(rb"[\x21-\x7e]*+")
_VERSION = b"HTTP/\0.\0"
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*+)?\r\n")
_STATUS_FORM = b"HTTP/1.\0 \1\2\2 "


@dataclass(frozen=True, slots=True)
class Limits:
    """What a listener accepts of one head: bytes in all, of the first line, of one field line, and how many fields."""

    max_head: int = 32 * 1024
    max_request_line: int = 8 * 1024
    max_field: int = 16 * 1024
    max_fields: int = 100


RESPONSE_LIMITS = Limits(max_head=64 * 1024, max_request_line=8 * 1024, max_field=64 * 1024, max_fields=200)
"""For heads of servers, of interim (1xx) ones too."""


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


def _learn(name: bytes) -> tuple[bytes, int]:
    """(lower-case name, kind), remembered for the first thousand short spellings: hardly a client sends others."""
    low = name.lower()
    found = low, kind_of(low)
    if len(_names) < _MAX_NAMES and len(name) <= 40:
        _names[name] = found
    return found


class Head:
    """A parsed head as lists; see ``messages.Head`` for what each member means."""

    __slots__ = (
        "_first", "_kinds", "_lower", "_names", "_values", "content_length", "expects_continue", "is_chunked", "kinds", "minor", "size",
        "upgrade", "wants_close",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lower: list[bytes] = []
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._kinds: list[int] = []
        self._first = b""
        self.size = 0
        self.kinds = 0
        self.minor = 1
        self.content_length = -1
        self.is_chunked = False
        self.wants_close = False
        self.expects_continue = False
        self.upgrade: bytes | None = None

    def get(self, name: bytes) -> bytes | None:
        """Value of the first field of that (lower-case) name."""
        try:
            return self._values[self._lower.index(name)]
        except ValueError:
            return None

    def get_all(self, name: bytes) -> list[bytes]:
        """Values of all fields of that (lower-case) name, in order."""
        return [value for lower, value in zip(self._lower, self._values, strict=True) if lower == name]

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        """(name as sent, value) in order."""
        return zip(self._names, self._values, strict=True)

    def write_h1(self, start_line: bytes | None, drop: int, remove: tuple[bytes, ...], tail: bytes) -> bytes:
        """First line, the fields neither masked nor removed, tail."""
        parts = [self._first if start_line is None else start_line]
        for i, kind in enumerate(self._kinds):
            if not kind & drop and (not remove or self._lower[i] not in remove):
                parts.append(b"%b: %b\r\n" % (self._names[i], self._values[i]))
        parts.append(tail)
        return b"".join(parts)


class RequestHead(Head):
    """A request; ``target`` as received, ``path`` and ``host`` canonical."""

    __slots__ = ("authority", "host", "is_canonical", "method", "path", "query", "target")

    def __init__(self) -> None:
        super().__init__()
        self.method = self.target = self.host = self.authority = self.path = self.query = b""
        self.is_canonical = False


class ResponseHead(Head):
    """A response."""

    __slots__ = ("status",)

    def __init__(self) -> None:
        super().__init__()
        self.status = 0


def _matches_form(text: bytes, form: bytes) -> bool:
    """Whether `text` can be the beginning of `form`, in which NUL is any digit but see ``_STATUS_FORM`` for 1 (1–9) and 2 (digit)."""
    for have, want in zip(text, form, strict=False):
        if want > 2:
            if have != want:
                return False
        elif not (0x31 if want == 1 else 0x30) <= have <= 0x39:
            return False
    return True


def request_line_fault(line: bytes, is_complete: bool) -> str | None:
    """The rule broken by a request line without its CR LF; None when it may still become a valid one."""
    end = len(line)
    name = _NAME.match(line)
    at = name.end() if name else 0
    if at > MAX_METHOD:
        return "method"
    if at == end:
        return None if not is_complete else "no_version" if at else "method"
    if not at or line[at] != 0x20:
        return "method"
    at += 1
    target = _TARGET.match(line, at)
    stop = target.end() if target else at
    if stop == end:
        return None if not is_complete else "no_version" if stop > at else "target_bytes"
    if stop == at or line[stop] != 0x20:
        return "target_bytes"
    version = line[stop + 1 :]
    if not version and is_complete:
        return "version_form"
    if not _matches_form(version, _VERSION):
        return "version_form"
    if len(version) >= 8 and version[:8] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return "version"
    return "version_form" if len(version) > 8 or (is_complete and len(version) != 8) else None


def status_line_fault(line: bytes, is_complete: bool) -> str | None:
    """The same for a status line; the space after the status may be absent with the reason."""
    if not _matches_form(line, _STATUS_FORM) or (len(line) > 7 and line[7] not in b"01") or (is_complete and len(line) < 12):
        return "status_line"
    return "status_line" if _BAD_VALUE.search(line) else None


def field_fault(line: bytes, is_complete: bool) -> str | None:
    """The same for a field line that is not empty."""
    if line[0] in b" \t":
        return "field_fold"
    name = _NAME.match(line)
    at = name.end() if name else 0
    if at == len(line):
        return "field_name" if is_complete else None
    if not at or line[at] != 0x3A:
        return "field_name"
    bad = _BAD_VALUE.search(line, at)
    if bad is None:
        return None
    return "bare_cr" if bad[0] == b"\r" else "field_value"


def first_line(data: bytes, start: int, limits: Limits, is_request: bool) -> tuple[int, str | None]:
    """(offset after the first line, or 0 when it is incomplete; the rule it breaks)."""
    found = data.find(b"\n", start, start + limits.max_request_line + 2)
    stop = found if found >= 0 else len(data)
    end = stop - 1 if stop > start and data[stop - 1] == 0x0D else stop
    if end - start > limits.max_request_line:
        return 0, "request_line_long" if is_request else "status_line_long"
    if (found + 1 if found >= 0 else len(data)) > limits.max_head:
        return 0, "head_long"
    if found >= 0 and end == found:
        return 0, "bare_lf"
    fault = request_line_fault if is_request else status_line_fault
    return (found + 1 if found >= 0 else 0), fault(data[start:end], found >= 0)


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
    lower, names, values, kinds = head._lower, head._names, head._values, head._kinds
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
        known = _names.get(name)
        low, kind = known if known is not None else _learn(name)
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
        values.append(value)
        kinds.append(kind)
    rule = odd_line(data, at, limits, len(names))
    if rule is not None:
        return rule or -1
    head.size = at + 2
    head.kinds = seen
    _connection(head, nominated)
    return seen


def odd_line(data: bytes, at: int, limits: Limits, count: int) -> str | None:
    """Judges a line that is no complete valid field: None when it is the empty line, "" when incomplete, else the rule it breaks."""
    found = data.find(b"\n", at, at + limits.max_field + 2)
    stop = found if found >= 0 else len(data)
    end = stop - 1 if stop > at and data[stop - 1] == 0x0D else stop
    if end - at > limits.max_field:
        return "field_long"
    if (found + 1 if found >= 0 else len(data)) > limits.max_head:
        return "head_long"
    if found >= 0 and end == found:
        return "bare_lf"
    if end == at:
        return None if found >= 0 else ""
    if count >= limits.max_fields:
        return "fields_many"
    return field_fault(data[at:end], found >= 0) or ("" if found < 0 else "field_name")


def _connection(head: Head, nominated: list[bytes]) -> None:
    """What the Connection options mean, once all fields are known."""
    head.wants_close = b"close" in nominated or (not head.minor and b"keep-alive" not in nominated)
    if not nominated:
        return
    for i, name in enumerate(head._lower):
        if name in nominated:
            head._kinds[i] |= _NOMINATED
            head.kinds |= _NOMINATED
    if b"upgrade" in nominated and head.minor:
        protocols = head.get_all(b"upgrade")
        if len(protocols) == 1:
            head.upgrade = protocol_of(protocols[0])


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
    return head


def parse_response(data: bytes, limits: Limits | None = None) -> ResponseHead | None:
    """The same for a response. Raises BadResponse."""
    limits = RESPONSE_LIMITS if limits is None else limits
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
