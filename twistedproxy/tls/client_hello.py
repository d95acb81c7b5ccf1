"""What a TLS client says first, read without taking part: the name it asks for and the protocols it offers.

How it works
    `read` looks at the beginning of a connection: one or more TLS records that carry one ClientHello (RFC 8446 4.1.2; RFC 5246
    7.4.1.2 for the older form; server_name RFC 6066 3; ALPN RFC 7301). It is pure and is called again with more bytes until it
    says that it has seen all. The cipher suites and whatever else is in there are skipped by their lengths.

    Strict where a mistake would route: a length that does not fit, a second extension of the same type, a name with anything but
    host name characters make the hello `BadHello`. An IP address as a name counts as no name.
"""

from __future__ import annotations

import functools
import re
import struct
from collections import Counter
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
_start = struct.Struct("!HBHBBH").unpack_from
"""Of a record and of the message in it: type and major version, minor version, length; type, length above 64 KiB, length."""
_head = struct.Struct("!HH").unpack_from
"""Of an extension: type, length."""
_WHOLE = HANDSHAKE << 8 | 3
_SHORT = 100
"""Longer extensions are not remembered, or a thousand clients could fill the memory with them."""


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
    if len(data) > 9:
        kind, _, length, what, far, size = _start(data)
        # Nearly all are one record and have come whole; everything else takes the long way, which knows what is wrong.
        if kind == _WHOLE and what == _CLIENT_HELLO and not far and size + 4 <= length <= 1 << 14 and length + 5 <= len(data):
            return _checked(data[9 : 9 + size], data)
    return _collect(data)


def _collect(data: bytes) -> ClientHello | Incomplete:
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
                return _checked(message[4:size], data)


def _checked(body: bytes, data: bytes) -> ClientHello:
    try:
        return _hello(body, data)
    except BadHello as e:
        e.seen = data[:64]  # whoever wrote this speaks TLS, whatever the field begins with that is wrong
        raise


def _wait(needed: int) -> Incomplete:
    if needed > MAX_BYTES:
        raise BadHello(f"no complete ClientHello within {MAX_BYTES} bytes", b"")
    return Incomplete(needed)


_CUT = "the ClientHello ends inside a field"


def _hello(body: bytes, data: bytes) -> ClientHello:
    """As few steps as can be: this is on the path of each handshake."""
    name = protocols = None
    size = len(body)
    try:
        at = 35 + body[34]  # legacy version, random, session id
        at += 2 + (body[at] << 8 | body[at + 1])  # cipher suites
        at += 1 + body[at]  # compression methods
        if at < size:
            end = at + 2 + (body[at] << 8 | body[at + 1])
            if end < size:
                raise BadHello("bytes behind the extensions of the ClientHello", data)
            at += 2
            kinds = []
            while at < size:
                kind, length = _head(body, at)
                kinds.append(kind)
                at += 4 + length
                if kind == _SERVER_NAME and at <= size:
                    name = body[at - length : at]
                elif kind == _ALPN and at <= size:
                    protocols = body[at - length : at]
            if len(set(kinds)) != len(kinds):
                raise BadHello(f"two extensions of type {Counter(kinds).most_common(1)[0][0]}", data)
            at = max(at, end)
    except (IndexError, struct.error):
        raise BadHello(_CUT, data) from None
    if at > size:
        raise BadHello(_CUT, data)
    is_short = (name is None or len(name) <= _SHORT) and (protocols is None or len(protocols) <= _SHORT)
    return _said(name, protocols) if is_short else _said.__wrapped__(name, protocols)


@functools.lru_cache(1000)
def _said(name: bytes | None, protocols: bytes | None) -> ClientHello:
    """From the two extensions, None for one that is missing. Clients of one site say the same again and again."""
    return ClientHello("" if name is None else _name(name), () if protocols is None else _protocols(protocols))


def _name(content: bytes) -> str:
    size = len(content)
    if size < 5 or 2 + (content[0] << 8 | content[1]) != size:
        raise BadHello("a malformed server_name extension", content)
    end = 5 + (content[3] << 8 | content[4])
    if end > size:
        raise BadHello(_CUT, content)
    if content[2] != 0 or end != size:
        raise BadHello("a server_name extension with more than one host name", content)
    name = content[5:]
    if _IPV4.match(name) or b":" in name:
        return ""  # RFC 6066 allows no IP addresses here; some clients send them nevertheless
    if not _NAME.fullmatch(name):
        raise BadHello("the server name is not a host name", content)
    return name.decode("ascii").lower().rstrip(".")


def _protocols(content: bytes) -> tuple[bytes, ...]:
    size = len(content)
    if size < 3 or 2 + (content[0] << 8 | content[1]) != size:
        raise BadHello("a malformed ALPN extension", content)
    found = []
    at = 2
    while at < size:
        end = at + 1 + content[at]
        if end == at + 1:
            raise BadHello("an empty name in the ALPN extension", content)
        found.append(content[at + 1 : end])
        at = end
    if at > size:
        raise BadHello(_CUT, content)
    return tuple(found)
