"""One kept answer without its body: what a store keeps beside the body, ready to be sent again.

How it works
    Everything that has to be worked out is worked out once, when the answer arrives: the moment it was born (so that its age is one
    subtraction), the moments until which it is fresh, usable while it is renewed, usable when the server fails. A hit compares one float.
    The header fields are kept as the lines in which HTTP/1 sends them, so that a hit writes its head by joining bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from twistedproxy.http.messages import REASONS

FORMAT = 1
"""First byte of the stored form; another one is not read (the entry counts as corrupt, which a store treats as a miss)."""

_HEADER = struct.Struct("<BBHIHHHHIdddddq")
_PLAIN = struct.Struct("<BBHIHHHHIdddddqHH")
"""The same and the lengths of the validators: all there is before the texts where nothing chooses and nothing is tagged."""
_UNKNOWN = -1
_ABSENT = 0xFFFF
MAX_TEXT = 0xFFFE
"""Bytes of one validator or of one selecting value: what is longer is not stored."""

_NOT_IN_304 = frozenset(
    (b"content-type", b"content-encoding", b"content-language", b"content-range", b"content-md5", b"content-digest", b"content-length")
)
"""A 304 describes no content (RFC 9110 15.4.5)."""


class CorruptEntry(ValueError):
    """Bytes that are not the stored form of anything: the entry is to be thrown away."""


class Flag:
    """What is remembered of the directives."""

    MUST_REVALIDATE = 1
    """Never sent stale: must-revalidate, proxy-revalidate, no-cache, or s-maxage without windows of its own."""
    NO_CACHE = 2
    """Validated before every use."""
    SHARED = 4
    """public or s-maxage: may be kept even when the request had Authorization."""
    NEGATIVE = 8
    """An error kept for a short time because the operator asked for it."""
    HEURISTIC = 16
    """The freshness was guessed from Last-Modified."""
    DROP = 32
    """To be sent once and not kept: its renewal said so."""


class Stored:
    """A kept answer; treat it as immutable."""

    __slots__ = (
        "_not_modified", "block", "body_length", "born", "error_until", "etag", "flags", "fresh_until", "last_modified", "selecting",
        "stale_until", "status", "stored_at", "tags", "vary",
    )  # fmt: skip

    def __init__(
        self, status: int, block: bytes, *, born: float, stored_at: float, fresh_until: float, stale_until: float = 0.0,
        error_until: float = 0.0, flags: int = 0, etag: bytes | None = None, last_modified: bytes | None = None,
        vary: tuple[bytes, ...] = (), selecting: tuple[bytes | None, ...] = (), tags: tuple[bytes, ...] = (),
        body_length: int = _UNKNOWN,
    ) -> None:  # fmt: skip
        self.status = status
        self.block = block
        """Field lines ``Name: value CRLF``: no Age, no Content-Length, nothing of one hop; always with Date."""
        self.born = born
        """When the server made it: now minus this is its age (RFC 9111 4.2.3)."""
        self.stored_at = stored_at
        """When it arrived here, or was last validated."""
        self.fresh_until = fresh_until
        self.stale_until = stale_until
        """Until then it may be sent while it is renewed (stale-while-revalidate)."""
        self.error_until = error_until
        """Until then it may be sent instead of an error (stale-if-error)."""
        self.flags = flags
        self.etag = etag
        self.last_modified = last_modified
        self.vary = vary
        """Lower-case names of the request fields that chose this answer."""
        self.selecting = selecting
        """The request's normalised values of them; None: absent."""
        self.tags = tags
        self.body_length = body_length
        """Bytes; -1 while the length is not known."""
        self._not_modified: bytes | None = None

    def __repr__(self) -> str:
        return f"<Stored {self.status} {self.body_length} bytes, fresh for {self.fresh_until - self.stored_at:.0f} s>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stored) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]

    def age(self, now: float) -> int:
        """Whole seconds; never less than it was on arrival, whatever the clock does."""
        age = now - self.born
        least = self.stored_at - self.born
        return int(age if age > least else least)

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        """(name as sent, value) in order."""
        for line in self.block.split(b"\r\n")[:-1]:
            name, _, value = line.partition(b": ")
            yield name, value

    def head(self, now: float, *, extra: bytes = b"", with_length: bool = True) -> bytes:
        """The whole HTTP/1 head of this answer with its Age, Content-Length and `extra` field lines, empty line included."""
        status = self.status
        if with_length and self.body_length >= 0 and status != 204:
            return b"HTTP/1.1 %d %b\r\n%bAge: %d\r\nContent-Length: %d\r\n%b\r\n" % (
                status, REASONS.get(status, b""), self.block, self.age(now), self.body_length, extra,
            )  # fmt: skip
        return b"HTTP/1.1 %d %b\r\n%bAge: %d\r\n%b\r\n" % (status, REASONS.get(status, b""), self.block, self.age(now), extra)

    def not_modified_head(self, now: float, *, extra: bytes = b"") -> bytes:
        """The 304 for a client that has this very answer."""
        block = self._not_modified
        if block is None:
            block = self._not_modified = self.block_without(_NOT_IN_304)
        return b"HTTP/1.1 304 Not Modified\r\n%bAge: %d\r\n%b\r\n" % (block, self.age(now), extra)

    def block_without(self, names: frozenset[bytes]) -> bytes:
        """The field lines but for those of these lower-case names."""
        lines = self.block.split(b"\r\n")[:-1]
        return b"".join([line + b"\r\n" for line in lines if line[: line.index(b":")].lower() not in names])

    def with_length(self, received: int) -> Stored:
        """The same with its body complete at `received` bytes. Raises ValueError when another length was announced (CA-07)."""
        if self.body_length not in (_UNKNOWN, received):
            raise ValueError(f"{received} bytes came of {self.body_length} announced: not the whole answer")
        if self.body_length == received:
            return self
        return self._changed(body_length=received)

    def soft_purged(self, now: float) -> Stored:
        """The same, stale from now on: renewed at its next use, yet there for stale-while-revalidate and stale-if-error."""
        return self._changed(fresh_until=min(self.fresh_until, now))

    def in_form(self, block: bytes, etag: bytes | None, body_length: int) -> Stored:
        """The same answer in another coding: other field lines, another validator, another length."""
        return Stored(
            self.status, block, born=self.born, stored_at=self.stored_at, fresh_until=self.fresh_until, stale_until=self.stale_until,
            error_until=self.error_until, flags=self.flags, etag=etag, last_modified=self.last_modified, tags=self.tags,
            body_length=body_length,
        )  # fmt: skip

    def _changed(self, *, fresh_until: float | None = None, body_length: int | None = None) -> Stored:
        return Stored(
            self.status, self.block, born=self.born, stored_at=self.stored_at,
            fresh_until=self.fresh_until if fresh_until is None else fresh_until, stale_until=self.stale_until,
            error_until=self.error_until, flags=self.flags, etag=self.etag, last_modified=self.last_modified, vary=self.vary,
            selecting=self.selecting, tags=self.tags, body_length=self.body_length if body_length is None else body_length,
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """The stored form, which `from_bytes` reads; it says nothing of its own length and has no checksum: that is the store's."""
        etag, last_modified, block = self.etag, self.last_modified, self.block
        if not self.vary and not self.tags:
            etag_size = _ABSENT if etag is None else len(etag)
            modified_size = _ABSENT if last_modified is None else len(last_modified)
            etag, last_modified = etag or b"", last_modified or b""
            return (
                _PLAIN.pack(
                    FORMAT, self.flags, self.status, len(block), 0, 0, 0, 0, len(etag) + len(last_modified), self.born, self.stored_at,
                    self.fresh_until, self.stale_until, self.error_until, self.body_length, etag_size, modified_size,
                )
                + etag
                + last_modified
                + block
            )  # fmt: skip
        texts = (etag, last_modified, *self.vary, *self.selecting, *self.tags)
        lengths = struct.pack(f"<{len(texts)}H", *[_ABSENT if text is None else len(text) for text in texts])
        header = _HEADER.pack(
            FORMAT, self.flags, self.status, len(block), len(self.vary), len(self.selecting), len(self.tags), 0,
            sum([len(text) for text in texts if text]), self.born, self.stored_at, self.fresh_until, self.stale_until, self.error_until,
            self.body_length,
        )  # fmt: skip
        return b"".join((header, lengths, *[text for text in texts if text], block))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Stored:
        """Reads the stored form. Raises CorruptEntry."""
        data = bytes(data)
        try:
            (
                form, flags, status, block_size, varying, chosen, tagged, zero,
                text_size, born, stored_at, fresh_until, stale_until, error_until, body_length,
            ) = _HEADER.unpack_from(data)  # fmt: skip
            count = 2 + varying + chosen + tagged
            at = _HEADER.size + 2 * count
            if form != FORMAT or zero or varying != chosen or at + text_size + block_size != len(data) or not 200 <= status <= 599:
                raise CorruptEntry("not an entry of this version")
            texts: list[bytes | None] = []
            for length in struct.unpack_from(f"<{count}H", data, _HEADER.size):
                if length == _ABSENT:
                    texts.append(None)
                else:
                    texts.append(data[at : at + length])
                    at += length
        except struct.error as error:
            raise CorruptEntry(str(error)) from None
        block = data[at:]
        if len(block) != block_size or (block and not block.endswith(b"\r\n")) or body_length < _UNKNOWN:
            raise CorruptEntry("lengths do not add up")
        names, tags = texts[2 : 2 + varying], texts[2 + varying + chosen :]
        return cls(
            status, block, born=born, stored_at=stored_at, fresh_until=fresh_until, stale_until=stale_until, error_until=error_until,
            flags=flags, etag=texts[0], last_modified=texts[1], vary=tuple([name for name in names if name is not None]),
            selecting=tuple(texts[2 + varying : 2 + varying + chosen]), tags=tuple([tag for tag in tags if tag is not None]),
            body_length=body_length,
        )  # fmt: skip
