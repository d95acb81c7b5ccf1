"""HTTP/1 framing: chunked coding in both directions, and the heads of answers made here.

How it works
    How long a body is the heads say (``body_length``, ``body_length_for``); everything ambiguous was refused with the head.
    ``ChunkedReader`` takes a chunked body apart (RFC 9112 7.1): runs of complete chunks without extensions go through
    ``take_chunks`` (native where it could be built), everything else through a small state machine, line by line. Lines end with
    CR LF only; extensions are checked and dropped; trailers are checked and the dangerous ones dropped. We always write our own chunks:
    nothing of the sender's chunking reaches the other side.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable

from twistedproxy.errors import BadBody, BadResponse
from twistedproxy.http.head import take_chunks
from twistedproxy.http.kinds import kind_of
from twistedproxy.http.lines import field_fault
from twistedproxy.http.messages import REASONS, Kind, LocalResponse

MAX_SIZE_LINE = 1024
"""Bytes of one chunk-size line, extensions included."""
MAX_EXTENSION_BYTES = 16 * 1024
"""Bytes of chunk extensions in one body."""
MAX_TRAILER_BYTES = 8 * 1024
MAX_TRAILER_FIELDS = 32
_MAX_CHUNK = 2**63 - 1

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t !\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -\x7e\x80-\xff])*+"'
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})((?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*+)\r\n")
_SIZE_SO_FAR = re.compile(rb"[0-9A-Fa-f]{1,16}(?:;[^\x00-\x08\x0a-\x1f\x7f]*+)?\r?")

_FORBIDDEN_TRAILERS = frozenset(
    b"authorization www-authenticate proxy-authenticate cookie set-cookie cache-control pragma age expires vary warning max-forwards "
    b"range if-match if-none-match if-modified-since if-unmodified-since if-range content-encoding content-type content-range "
    b"content-location location retry-after accept accept-encoding accept-language accept-charset origin referer user-agent "
    b"sec-websocket-key sec-websocket-accept x-http-method-override x-method-override".split()
)
"""Fields that decide routing, authentication, caching or how content is read mean nothing good behind a body (RFC 9110 6.5.1)."""


class Part(enum.Enum):
    """What a ChunkedReader expects next."""

    SIZE = "size"
    DATA = "data"
    DATA_END = "data end"
    TRAILERS = "trailers"
    DONE = "done"


_SIZE_LINE, _DATA, _DATA_END, _TRAILERS, _DONE = Part


class ChunkedReader:
    """Takes one chunked body apart. `error` is what is raised when it breaks the grammar: BadResponse for a server's."""

    __slots__ = ("_error", "_extension_bytes", "_kept", "_left", "_part", "_pending", "_trailer_bytes", "_trailer_count", "leftover")

    def __init__(self, error: Callable[[str], BadBody | BadResponse] = BadBody) -> None:
        self._error = error
        self._part = _SIZE_LINE
        self._left = 0
        self._pending = b""
        self._extension_bytes = self._trailer_bytes = self._trailer_count = 0
        self._kept: list[tuple[bytes, bytes]] = []
        self.leftover = b""
        """Bytes fed that come after the end of the body."""

    def __repr__(self) -> str:
        return f"<ChunkedReader: {self._part.value}>"

    @property
    def is_done(self) -> bool:
        """True when the last chunk and the trailers have been read."""
        return self._part is _DONE

    @property
    def trailers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The harmless trailer fields; complete when `is_done`."""
        return tuple(self._kept)

    def feed(self, data: bytes) -> bytes:
        """The payload found in `data`; b"" when there is none yet."""
        if self._part is _DATA and self._left >= len(data):
            self._left -= len(data)
            if not self._left:
                self._part = _DATA_END
            return data
        pending = self._pending
        if pending:
            data = pending + data
            self._pending = b""
        pieces: list[bytes] = []
        at, size = 0, len(data)
        # What was pending held no line end, so the search for one starts behind it.
        fresh = len(pending)
        while at < size:
            part = self._part
            if part is _SIZE_LINE:
                payload, at = take_chunks(data, at)
                if payload:
                    pieces.append(payload)
                    fresh = at
                    if at == size:
                        break
                at = self._size_line(data, at, max(at, fresh))
            elif part is _DATA:
                stop = at + self._left
                pieces.append(data[at:stop])
                if stop > size:
                    self._left = stop - size
                    break
                at, self._left, self._part = stop, 0, _DATA_END
            elif part is _DATA_END:
                at = self._data_end(data, at)
            elif part is _TRAILERS:
                at = self._trailer(data, at, max(at, fresh))
            else:
                self.leftover += data[at:]
                break
            if at < 0:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _size_line(self, data: bytes, at: int, fresh: int) -> int:
        """Reads a chunk-size line. Returns where it ends, or -1 when it is incomplete and kept."""
        found = data.find(b"\n", fresh, at + MAX_SIZE_LINE)
        if found < 0:
            if len(data) - at >= MAX_SIZE_LINE:
                raise self._error(f"a chunk-size line is longer than {MAX_SIZE_LINE} bytes")
            self._pending = data[at:] if at else data
            if not _SIZE_SO_FAR.fullmatch(self._pending):
                raise self._error("a chunk size is not 1 to 16 hexadecimal digits, or its line does not end with CR LF")
            return -1
        match = _SIZE.fullmatch(data, at, found + 1)
        if match is None:
            raise self._error("a chunk-size line is not hexadecimal digits with well-formed extensions and CR LF")
        size = int(match[1], 16)
        if size > _MAX_CHUNK:
            raise self._error("a chunk is larger than 2^63")
        self._extension_bytes += len(match[2])
        if self._extension_bytes > MAX_EXTENSION_BYTES:
            raise self._error(f"the body has more than {MAX_EXTENSION_BYTES} bytes of chunk extensions")
        self._left = size
        self._part = _DATA if size else _TRAILERS
        return found + 1

    def _data_end(self, data: bytes, at: int) -> int:
        end = data[at : at + 2]
        if end == b"\r\n":
            self._part = _SIZE_LINE
            return at + 2
        if end == b"\r":
            self._pending = end
            return -1
        raise self._error("chunk data is not followed by CR LF where its size says it ends")

    def _trailer(self, data: bytes, at: int, fresh: int) -> int:
        """Reads one trailer line, or the empty line that ends the body. Returns as `_size_line`."""
        budget = MAX_TRAILER_BYTES - self._trailer_bytes
        found = data.find(b"\n", fresh, at + budget)
        if found < 0:
            if len(data) - at >= budget:
                raise self._error(f"the trailers are longer than {MAX_TRAILER_BYTES} bytes")
            self._pending = data[at:] if at else data
            self._refuse_line(self._pending.removesuffix(b"\r"), False)
            return -1
        self._trailer_bytes += found + 1 - at
        if found == at or data[found - 1] != 0x0D:
            raise self._error("a trailer line ends with LF alone")
        line = data[at : found - 1]
        if not line:
            self._part = _DONE
            if found + 1 < len(data):
                self.leftover = data[found + 1 :]
            return -1
        self._refuse_line(line, True)
        self._trailer_count += 1
        if self._trailer_count > MAX_TRAILER_FIELDS:
            raise self._error(f"the body has more than {MAX_TRAILER_FIELDS} trailer fields")
        name, _, value = line.partition(b":")
        lower = name.lower()
        if kind_of(lower) == Kind.OTHER and lower.replace(b"_", b"-") not in _FORBIDDEN_TRAILERS:
            self._kept.append((name, value.strip(b" \t")))
        return found + 1

    def _refuse_line(self, line: bytes, is_complete: bool) -> None:
        if line and (len(line) <= MAX_SIZE_LINE or is_complete) and field_fault(line, is_complete) is not None:
            raise self._error("a trailer line is not a well-formed field")


def chunk(data: bytes) -> bytes:
    """`data` as one chunk; nothing for no data, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """What ends a chunked body. `trailers` are those of a ChunkedReader."""
    return b"0\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % trailer for trailer in trailers]) if trailers else b"0\r\n\r\n"


def status_line(status: int) -> bytes:
    """``HTTP/1.1 404 Not Found`` with CR LF."""
    return b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b""))


_CONTROLS = bytes((*range(9), *range(10, 32), 127))


def response_head(local: LocalResponse, minor: int, keep_alive: bool, date: bytes = b"") -> bytes:
    """The head of an answer made here, for a client of HTTP/1.`minor`; its Content-Length is that of the whole body, for HEAD too.

    Control characters are taken out of the values: nothing a client sends can add a line to our answers (SM-19).
    """
    parts = [status_line(local.status)]
    if date:
        parts.append(b"Date: %b\r\n" % date)
    for name, value in local.fields:
        parts.append(b"%b: %b\r\n" % (name.translate(None, _CONTROLS), value.translate(None, _CONTROLS)))
    if local.status >= 200 and local.status not in (204, 304):
        parts.append(b"Content-Length: %d\r\n" % len(local.body))
    if not keep_alive:
        parts.append(b"Connection: close\r\n")
    elif not minor:
        parts.append(b"Connection: keep-alive\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)
