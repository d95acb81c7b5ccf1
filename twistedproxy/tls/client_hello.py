"""What a TLS client says first, read without taking part: the name it asks for and the protocols it offers.

How it works
    `read` looks at the beginning of a connection: one or more TLS records that carry one ClientHello (RFC 8446 4.1.2; RFC 5246
    7.4.1.2 for the older form; server_name RFC 6066 3; ALPN RFC 7301). It is pure and is called again with more bytes until it
    says that it has seen all. The cipher suites and whatever else is in there are skipped by their lengths.

    Strict where a mistake would route: a length that does not fit, a second extension of the same type, a name with anything but
    host name characters make the hello `BadHello`. An IP address as a name counts as no name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from twistedproxy.errors import BadHello

MAX_BYTES = 16 * 1024 + 512
"""Records and all; a ClientHello of 16 KiB is beyond anything that clients send."""
HANDSHAKE = 0x16
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16
_NAME = re.compile(rb"(?=.{1,253}\.?\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?", re.DOTALL)
_IPV4 = re.compile(rb"[0-9.]+\Z")


@dataclass(frozen=True, slots=True)
class ClientHello:
    name: str
    """The host asked for, lower case, without a trailing dot; "" for none."""
    protocols: tuple[bytes, ...]
    """ALPN, in the client's order."""


@dataclass(frozen=True, slots=True)
class Incomplete:
    needed: int
    """Bytes from the beginning that must be there before it makes sense to look again."""


def read(data: bytes) -> ClientHello | Incomplete:
    """The ClientHello at the beginning of `data`, or how much of it is wanted; `BadHello` when there is none."""
    message = b""
    at = 0
    while True:
        if len(data) <= at or len(data) < at + 5:
            if len(data) > at and data[at] != HANDSHAKE:
                raise BadHello("this is not TLS: a handshake record begins with byte 0x16", data)
            return _wait(at + 5)
        kind, major, length = data[at], data[at + 1], int.from_bytes(data[at + 3 : at + 5])
        if kind != HANDSHAKE:
            raise BadHello("this is not TLS: a handshake record begins with byte 0x16", data)
        if major != 3:
            raise BadHello(f"TLS record of version {major}.{data[at + 2]}", data)
        if not 0 < length <= 1 << 14:
            raise BadHello(f"a TLS record of {length} bytes cannot hold a ClientHello", data)
        if len(data) < at + 5 + length:
            if not message and len(data) > at + 5 and data[at + 5] != _CLIENT_HELLO:
                raise BadHello("the first TLS message is not a ClientHello", data)
            return _wait(at + 5 + length)
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if message[0] != _CLIENT_HELLO:
            raise BadHello("the first TLS message is not a ClientHello", data)
        if len(message) >= 4:
            size = 4 + int.from_bytes(message[1:4])
            if size > MAX_BYTES:
                raise BadHello(f"a ClientHello of {size} bytes; at most {MAX_BYTES} are read", data)
            if len(message) >= size:
                return _hello(message[4:size], data)


def _wait(needed: int) -> Incomplete:
    if needed > MAX_BYTES:
        raise BadHello(f"no complete ClientHello within {MAX_BYTES} bytes", b"")
    return Incomplete(needed)


class _Fields:
    """A byte string read from the front; a length that reaches beyond its end is a `BadHello`."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise BadHello("the ClientHello ends inside a field", self._data)
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def vector(self, width: int) -> bytes:
        """A field behind its own length of `width` bytes."""
        return self.take(int.from_bytes(self.take(width)))


def _hello(body: bytes, data: bytes) -> ClientHello:
    fields = _Fields(body)
    fields.take(2 + 32)  # legacy version, random
    fields.vector(1)  # session id
    fields.vector(2)  # cipher suites
    fields.vector(1)  # compression methods
    name = ""
    protocols: tuple[bytes, ...] = ()
    if fields:
        extensions = _Fields(fields.vector(2))
        if fields:
            raise BadHello("bytes behind the extensions of the ClientHello", data)
        seen: set[int] = set()
        while extensions:
            kind = int.from_bytes(extensions.take(2))
            content = extensions.vector(2)
            if kind in seen:
                raise BadHello(f"two extensions of type {kind}", data)
            seen.add(kind)
            if kind == _SERVER_NAME:
                name = _name(content)
            elif kind == _ALPN:
                protocols = _protocols(content)
    return ClientHello(name, protocols)


def _name(content: bytes) -> str:
    fields = _Fields(content)
    entries = _Fields(fields.vector(2))
    if fields or not entries:
        raise BadHello("a malformed server_name extension", content)
    kind = entries.take(1)[0]
    name = entries.vector(2)
    if kind != 0 or entries:
        raise BadHello("a server_name extension with more than one host name", content)
    if _IPV4.match(name) or b":" in name:
        return ""  # RFC 6066 allows no IP addresses here; some clients send them nevertheless
    if not _NAME.fullmatch(name):
        raise BadHello("the server name is not a host name", content)
    return name.decode("ascii").lower().rstrip(".")


def _protocols(content: bytes) -> tuple[bytes, ...]:
    fields = _Fields(content)
    entries = _Fields(fields.vector(2))
    found = []
    while entries:
        protocol = entries.vector(1)
        if not protocol:
            raise BadHello("an empty name in the ALPN extension", content)
        found.append(protocol)
    if fields or not found:
        raise BadHello("a malformed ALPN extension", content)
    return tuple(found)
