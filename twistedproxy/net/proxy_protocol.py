"""The PROXY protocol, both ways: who the client really is, said by a proxy in front of us, or by us to a server.

After HAProxy's ``doc/proxy-protocol.txt`` (2020/03/05). `parse` and `encode` are pure; `ProxyHeaderReader` reads the header of a fresh
connection within a time limit and then hands the connection over.

Version 1 is one line, at most 107 bytes: ``PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\\r\\n``. Version 2 is binary: 12 bytes of signature,
version and command, family, length, the two addresses, then TLVs. Strict: a header that is not exactly right is refused, since
whatever follows a misread header would be taken for the client's bytes.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from twisted.python.failure import Failure

from twistedproxy.clock import Timed, Wheel
from twistedproxy.errors import BadProxyHeader
from twistedproxy.net.transport import Transport

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MAX_V1 = 107
MAX_V2_PAYLOAD = 4096
"""Addresses and TLVs; the format would allow 65,535."""
TLV_CRC32C = 0x03

_FAMILIES = {0x1: (socket.AF_INET, 4), 0x2: (socket.AF_INET6, 16)}
_UNIX_BYTES = 216

Tlvs = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A complete PROXY header."""

    source: tuple[str, int] | None
    """(IP, port) of the client; None when the header does not say (LOCAL, UNKNOWN, UNSPEC, unix): use the socket's own."""
    destination: tuple[str, int] | None
    tlvs: Tlvs
    size: int
    """Bytes of the header; what follows belongs to the client."""
    is_local: bool = False
    """The proxy speaks for itself (a health check)."""


def parse(data: bytes) -> Parsed | None:
    """The header at the beginning of `data`; None when it is not complete yet; `BadProxyHeader` when it cannot become one."""
    if data[:1] == b"\r":
        if not SIGNATURE.startswith(data[:12]):
            raise BadProxyHeader("not a PROXY header: the version 2 signature is wrong")
        return _parse_v2(data) if len(data) >= 16 else None
    if not b"PROXY ".startswith(data[:6]):
        raise BadProxyHeader("not a PROXY header: this client must send one (accept_proxy)")
    return _parse_v1(data)


def _parse_v1(data: bytes) -> Parsed | None:
    end = data.find(b"\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise BadProxyHeader(f"PROXY version 1 header without an end within {MAX_V1} bytes")
        return None
    if data[end - 1 : end] != b"\r":
        raise BadProxyHeader("PROXY version 1 header does not end with CR LF")
    words = data[: end - 1].split(b" ")
    size = end + 1
    if len(words) > 1 and words[1] == b"UNKNOWN":
        return Parsed(None, None, (), size)
    if len(words) != 6 or words[1] not in {b"TCP4", b"TCP6"}:
        raise BadProxyHeader("PROXY version 1 header is not PROXY TCP4|TCP6|UNKNOWN SOURCE DESTINATION PORT PORT")
    family = socket.AF_INET if words[1] == b"TCP4" else socket.AF_INET6
    return Parsed((_ip(family, words[2]), _port(words[4])), (_ip(family, words[3]), _port(words[5])), (), size)


def _ip(family: socket.AddressFamily, word: bytes) -> str:
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, word.decode("ascii")))
    except (OSError, ValueError):
        raise BadProxyHeader(f"PROXY version 1 header: {word!r} is not an address of its family") from None


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (word[:1] == b"0" and word != b"0") or int(word) > 65535:
        raise BadProxyHeader(f"PROXY version 1 header: {word!r} is not a port")
    return int(word)


def _parse_v2(data: bytes) -> Parsed | None:
    version_command, family_protocol, length = struct.unpack_from("!BBH", data, 12)
    if version_command >> 4 != 2:
        raise BadProxyHeader(f"PROXY version {version_command >> 4} is not known")
    command = version_command & 0xF
    if command > 1:
        raise BadProxyHeader(f"PROXY version 2 command {command} is not known")
    family, protocol = family_protocol >> 4, family_protocol & 0xF
    if family > 3 or protocol > 2:
        raise BadProxyHeader(f"PROXY version 2 family {family_protocol:#04x} is not known")
    if length > MAX_V2_PAYLOAD:
        raise BadProxyHeader(f"PROXY version 2 header declares {length} bytes; at most {MAX_V2_PAYLOAD} are accepted")
    size = 16 + length
    if len(data) < size:
        return None
    payload = data[16:size]
    if command == 0:  # LOCAL: the receiver "must discard the protocol block including the family which is ignored"
        return Parsed(None, None, (), size, is_local=True)
    source = destination = None
    address_bytes = 0
    if family in _FAMILIES and protocol:
        kind, width = _FAMILIES[family]
        address_bytes = 2 * width + 4
        if length < address_bytes:
            raise BadProxyHeader(f"PROXY version 2 header has {length} bytes where its addresses need {address_bytes}")
        source_port, destination_port = struct.unpack_from("!HH", payload, 2 * width)
        if protocol == 1:  # a datagram's address says nothing about a stream
            source = (socket.inet_ntop(kind, payload[:width]), source_port)
            destination = (socket.inet_ntop(kind, payload[width : 2 * width]), destination_port)
    elif family == 3 and protocol:
        address_bytes = _UNIX_BYTES
        if length < address_bytes:
            raise BadProxyHeader(f"PROXY version 2 header has {length} bytes where its addresses need {address_bytes}")
    elif family or protocol:
        return Parsed(None, None, (), size)  # UNSPEC in one half: the block's layout is not defined, so nothing of it is read
    return Parsed(source, destination, _tlvs(payload[address_bytes:], data[:size], 16 + address_bytes), size)


def _tlvs(block: bytes, header: bytes, offset: int) -> Tlvs:
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(block):
        if len(block) - at < 3:
            raise BadProxyHeader("PROXY version 2 header ends inside a TLV")
        kind, length = struct.unpack_from("!BH", block, at)
        value = block[at + 3 : at + 3 + length]
        if len(value) < length:
            raise BadProxyHeader(f"PROXY version 2 TLV {kind:#04x} is longer than the header")
        if kind == TLV_CRC32C:
            start = offset + at + 3
            if length != 4 or crc32c(header[:start] + b"\0\0\0\0" + header[start + 4 :]) != int.from_bytes(value):
                raise BadProxyHeader("the CRC32C of the PROXY version 2 header is wrong")
        found.append((kind, value))
        at += 3 + length
    return tuple(found)


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC (RFC 9260, appendix B); slow, but headers are short and few carry one."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def encode(
    version: int, source: tuple[str, int] | None, destination: tuple[str, int] | None, tlvs: Iterable[tuple[int, bytes]] = ()
) -> bytes:
    """The header for a connection from `source` to `destination`; TLVs only in version 2.

    Without IP addresses (None, or "" of a unix socket) it says UNKNOWN (1) or UNSPEC (2). IPv4 and IPv6 mixed: both as IPv6.
    """
    pair = _pair(source, destination)
    if version == 1:
        if pair is None:
            return b"PROXY UNKNOWN\r\n"
        (from_ip, from_port), (to_ip, to_port) = pair
        return f"PROXY TCP{from_ip.version} {from_ip} {to_ip} {from_port} {to_port}\r\n".encode()
    if version != 2:
        raise ValueError(f"PROXY protocol version {version}: there are 1 and 2")
    if pair is None:
        family, payload = 0x00, b""
    else:
        (from_ip, from_port), (to_ip, to_port) = pair
        family = 0x11 if from_ip.version == 4 else 0x21
        payload = from_ip.packed + to_ip.packed + struct.pack("!HH", from_port, to_port)
    has_crc = False
    for kind, value in tlvs:
        if kind == TLV_CRC32C:
            has_crc = True
        else:
            payload += struct.pack("!BH", kind, len(value) & 0xFFFF) + value  # too long a value is refused below
    if has_crc:
        payload += struct.pack("!BHI", TLV_CRC32C, 4, 0)
    if len(payload) > 0xFFFF:
        raise ValueError(f"the TLVs make the PROXY header {len(payload)} bytes long; 65535 is the most it can say")
    header = SIGNATURE + struct.pack("!BBH", 0x21, family, len(payload)) + payload
    return header[:-4] + crc32c(header).to_bytes(4) if has_crc else header


_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def _pair(source: tuple[str, int] | None, destination: tuple[str, int] | None) -> tuple[tuple[_IP, int], tuple[_IP, int]] | None:
    if not source or not source[0] or not destination or not destination[0]:
        return None
    from_ip: _IP = ipaddress.ip_address(source[0].partition("%")[0])
    to_ip: _IP = ipaddress.ip_address(destination[0].partition("%")[0])
    if from_ip.version != to_ip.version:
        from_ip, to_ip = _as_v6(from_ip), _as_v6(to_ip)
    return (from_ip, source[1]), (to_ip, destination[1])


def _as_v6(ip: _IP) -> ipaddress.IPv6Address:
    return ip if isinstance(ip, ipaddress.IPv6Address) else ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + ip.packed)


class ProxyHeaderReader(Timed):
    """Reads the PROXY header of a fresh connection within `preread_s`, however it is cut into pieces.

    Then exactly one of: `on_header(parsed, leftover)`, after which the transport is the caller's (it goes on reading; `start` it with
    another protocol), or `on_error(error)`, with the connection reset already.
    """

    __slots__ = ("_transport", "_wheel", "_preread_s", "_on_header", "_on_error", "_buffer")

    def __init__(
        self,
        transport: Transport,
        wheel: Wheel,
        preread_s: float,
        on_header: Callable[[Parsed, bytes], None],
        on_error: Callable[[BadProxyHeader], None],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._wheel = wheel
        self._preread_s = preread_s
        self._on_header: Callable[[Parsed, bytes], None] | None = on_header
        self._on_error: Callable[[BadProxyHeader], None] | None = on_error
        self._buffer = b""
        transport.start(self)
        wheel.arm(self, wheel.seconds() + preread_s)

    def dataReceived(self, data: bytes) -> None:
        if self._on_error is None:
            return
        data = self._buffer + data
        try:
            parsed = parse(data)
        except BadProxyHeader as error:
            self._fail(error)
            return
        if parsed is None:
            self._buffer = data
            return
        told, self._on_header, self._on_error = self._on_header, None, None
        self._wheel.disarm(self)
        assert told is not None
        told(parsed, data[parsed.size :])

    def _fail(self, error: BadProxyHeader) -> None:
        told, self._on_error, self._on_header = self._on_error, None, None
        if told is not None:
            self._wheel.disarm(self)
            self._transport.abortConnection()
            told(error)

    def deadline_passed(self, now: float) -> None:
        self._fail(BadProxyHeader(f"no complete PROXY header within {self._preread_s:g} s"))

    def readConnectionLost(self) -> None:
        self._fail(BadProxyHeader("the connection ended before the PROXY header was complete"))

    def connectionLost(self, reason: Failure) -> None:
        self._fail(BadProxyHeader("the connection broke before the PROXY header was complete"))

    def abort(self) -> None:
        """The listener closes: `on_error` is called now."""
        self._fail(BadProxyHeader("the listener closed"))
