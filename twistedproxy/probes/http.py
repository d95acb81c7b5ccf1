"""``GET /health``: a tiny HTTP/1.1 client that reads no more than a check needs and follows nothing.

How it works
    One request with ``Connection: close``. Interim (1xx) answers are skipped. Without a wanted text the status line decides as
    soon as the head is complete; else the body, de-chunked, is read until the text is seen, the body ends, or 64 KiB are reached.
"""

from __future__ import annotations

import re

from twistedproxy.config.model import HealthCheck
from twistedproxy.probes.dialogue import Dialogue, Finding

MAX_HEAD = 16 * 1024
MAX_BODY = 64 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]*)?\r\n")


class HttpCheck(Dialogue):
    """Asks for `check.path`; `host` is used as Host field when the check names none."""

    max_bytes = MAX_HEAD + 2 * MAX_BODY
    """Chunked coding may add as much again as the body."""

    def __init__(self, check: HealthCheck, host: str) -> None:
        super().__init__()
        self._check = check
        self._host = check.host or host
        self._status = 0
        self._head_ends = 0
        self._length: int | None = None
        self._is_chunked = False

    def begin(self) -> None:
        self.outgoing += (
            f"GET {self._check.path} HTTP/1.1\r\nHost: {self._host}\r\n"
            "User-Agent: revproxy-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        ).encode("ascii", "surrogateescape")

    def read(self) -> Finding | None:
        while not self._head_ends:
            end = self.received.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end < 0:
                if len(self.received) >= MAX_HEAD:
                    return Finding(False, f"response head longer than {MAX_HEAD // 1024} KiB")
                if not b"HTTP/1.".startswith(self.received[:7]):
                    return Finding(False, "not an HTTP/1 answer")
                return None
            refused = self._read_head(bytes(self.received[: end + 2]))
            if refused:
                return refused
            if 100 <= self._status < 200:
                del self.received[: end + 4]
            else:
                self._head_ends = end + 4
        if not any(low <= self._status <= high for low, high in self._check.status):
            return Finding(False, f"{self._status} (wanted {_ranges(self._check.status)})")
        if self._check.body is None:
            return Finding(True, str(self._status))
        return self._read_body(is_over=False)

    def ended(self) -> Finding:
        if self._head_ends and self._check.body is not None:
            return self._read_body(is_over=True) or super().ended()
        return super().ended()

    def _read_head(self, head: bytes) -> Finding | None:
        line = _STATUS_LINE.match(head)
        if line is None:
            return Finding(False, "not an HTTP/1 answer")
        self._status = int(line[1])
        self._length, self._is_chunked = None, False
        position = line.end()
        while position < len(head):
            field = _FIELD.match(head, position)
            if field is None:
                return Finding(False, f"{self._status} with a broken response head")
            position = field.end()
            name = field[1].lower()
            if name == b"transfer-encoding":
                self._is_chunked = field[2].lower().endswith(b"chunked")
            elif name == b"content-length":
                if not field[2].isdigit() or len(field[2]) > 18:
                    return Finding(False, f"{self._status} with a broken Content-Length")
                self._length = int(field[2])
        return None

    def _read_body(self, is_over: bool) -> Finding | None:
        wanted = (self._check.body or "").encode()
        raw = self.received[self._head_ends :]
        if self._is_chunked:
            body, ended = _dechunk(raw)
        else:
            body, ended = bytes(raw[: self._length]), self._length is not None and len(raw) >= self._length
        if wanted in body[:MAX_BODY]:
            return Finding(True, str(self._status))
        if ended or is_over or len(body) >= MAX_BODY:
            return Finding(False, f"{self._status}, but the body lacks {self._check.body!r}")
        return None


def _dechunk(raw: bytes | bytearray) -> tuple[bytes, bool]:
    """The body in the chunks received so far, and whether it is over (a broken chunk ends it too)."""
    body = bytearray()
    position = 0
    while position < len(raw):
        size = _CHUNK_SIZE.match(raw, position)
        if size is None:
            return bytes(body), b"\n" in raw[position:] or len(raw) - position > 4096
        length = int(size[1], 16)
        if length == 0:
            return bytes(body), True
        body += raw[size.end() : size.end() + length]
        position = size.end() + length + 2
    return bytes(body), False


def _ranges(status: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in status)
