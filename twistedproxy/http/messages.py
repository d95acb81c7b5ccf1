"""What the exchange knows of a message, whatever HTTP version carried it.

Field names handed in are lower-case bytes; values are bytes without surrounding white space.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

NO_BODY = 0
CHUNKED = -1
UNTIL_CLOSE = -2
"""Body lengths: a number of bytes (0: none), or one of these two. A request is never UNTIL_CLOSE."""


class Kind:
    """Bits for fields the codec recognises while parsing, so that dropping them on the way out is one mask test per field."""

    OTHER = 0
    HOST = 1
    CONTENT_LENGTH = 2
    TRANSFER_ENCODING = 4
    CONNECTION = 8
    HOP_BY_HOP = 16
    """Keep-Alive, Proxy-Connection, TE, Trailer, Upgrade, Proxy-Authorization (RFC 9110 7.6.1), HTTP2-Settings."""
    FORWARDED = 32
    """Forwarded, X-Forwarded-For, -Proto, -Host, -Port (and any name that differs from one of these only by underscores)."""
    REQUEST_ID = 64
    """X-Request-Id."""
    EXPECT = 128
    DATE = 256
    SERVER = 512
    VIA = 1024
    INTERNAL = 2048
    """X-Revproxy-*, X-Client-Cert-*, X-Internal-*: ours alone, removed from whatever a client sends; and names that an underscore keeps
    from being Content-Length, Transfer-Encoding, Host … (``Content_Length``): some servers cannot tell the difference."""
    NOMINATED = 4096
    """Named in a Connection field of the same message (never Host, Content-Length or Transfer-Encoding: those are refused)."""
    CONDITIONS = 65536
    """Cache-Control, Pragma, Authorization, Range, If-*, X-HTTP-Method-Override: a request without them takes a kept answer as it is.
    Only in `Head.kinds`."""
    CLAIM = 8192
    """What only a trusted proxy may say besides FORWARDED: X-Real-IP, any other X-Forwarded-*, X-Original-URL, X-Rewrite-URL."""


class Head(Protocol):
    """A validated message head. `raw` bytes are kept; an object is built only for what is asked."""

    size: int
    """Bytes of the head in the buffer it was parsed from, empty line included."""
    minor: int
    """HTTP/1 minor version: 0 or 1."""
    content_length: int
    """-1 when the field is absent."""
    is_chunked: bool
    """Transfer-Encoding is exactly ``chunked``."""
    wants_close: bool
    """Connection: close, or HTTP/1.0 without keep-alive."""
    upgrade: bytes | None
    """(HTTP/1.1 only) Lower-case protocol when Connection nominates Upgrade and there is exactly one; else None."""

    kinds: int
    """All bits of `Kind` that some field of this head has."""

    def get(self, name: bytes) -> bytes | None:
        """Value of the first field of that name."""
        ...

    def get_all(self, name: bytes) -> list[bytes]: ...

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        """(name as sent, value) in order."""
        ...

    def write_h1(self, start_line: bytes | None, drop: int, remove: tuple[bytes, ...], tail: bytes) -> bytes:
        """The head as HTTP/1 bytes: `start_line` (with CRLF; None: the one received), then every field whose kind is not in the
        mask `drop` and whose name is not in `remove`, re-serialised from validated values, then `tail` (ends the head)."""
        ...


LogPieces = tuple[str, str, str, str | None, str | None]
"""(method, target, version, Referer, User-Agent) of a request; None: the field is absent."""
MAX_LOG_PIECES = 1000
"""Characters of them together, but for the version."""


class RequestHead(Head, Protocol):
    method: bytes
    target: bytes
    """As received; absolute-form is kept here, `path` is what routing uses."""
    host: bytes
    """Host as the client means it (absolute-form wins over the field): lower case, no trailing dot, no port; b"" when HTTP/1.0 has none."""
    authority: bytes
    """The same as received, with its port: what is forwarded as Host."""
    path: bytes
    """Canonical path: dot segments resolved, slashes merged, unreserved characters decoded, upper-case escapes; ``*`` for ``OPTIONS *``;
    b"" for CONNECT."""
    query: bytes
    """Raw, without the question mark; b"" when absent."""
    expects_continue: bool
    body_length: int
    """CHUNKED, or the number of bytes that follow: 0 without a length, since a request never lasts until close."""
    is_canonical: bool
    """The request line as received may be forwarded unchanged: HTTP/1.1, and its target is `path` with the query (not absolute-form)."""

    def log_pieces(self) -> LogPieces | None:
        """What a log says of this head, when that is short and printable ASCII without quotes and backslashes; else None."""
        ...


class ResponseHead(Head, Protocol):
    status: int

    def body_length_for(self, method: bytes) -> int:
        """How long the body of this answer to a request of that method is (RFC 9112 6.3): NO_BODY, a number of bytes, CHUNKED or
        UNTIL_CLOSE. After a 101 the bytes that follow are no body but the tunnel's."""
        ...


@dataclass(frozen=True, slots=True)
class LocalResponse:
    """An answer made here rather than by a server."""

    status: int
    body: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = field(default=())


REASONS = {
    100: b"Continue", 101: b"Switching Protocols", 200: b"OK", 201: b"Created", 202: b"Accepted", 204: b"No Content",
    301: b"Moved Permanently", 302: b"Found", 303: b"See Other", 304: b"Not Modified", 307: b"Temporary Redirect",
    308: b"Permanent Redirect", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict", 410: b"Gone", 411: b"Length Required",
    412: b"Precondition Failed", 413: b"Content Too Large", 414: b"URI Too Long", 417: b"Expectation Failed", 418: b"I'm a Teapot",
    421: b"Misdirected Request", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large",
    451: b"Unavailable For Legal Reasons", 500: b"Internal Server Error", 501: b"Not Implemented", 502: b"Bad Gateway",
    503: b"Service Unavailable", 504: b"Gateway Timeout", 505: b"HTTP Version Not Supported", 508: b"Loop Detected",
}  # fmt: skip
