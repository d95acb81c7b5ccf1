"""MySQL's and MariaDB's way into TLS, as pure bytes: greetings, the request for TLS, and packets that must be counted anew.

How it works
    The server speaks first, in the clear: a greeting that says whether it offers TLS (CLIENT_SSL among its capabilities). A client that
    wants it sends the first 32 bytes of its answer (SSLRequest), then a ClientHello, then the whole answer inside TLS. Packets are
    numbered from 0 across both directions until the server says OK or ERR, then each command begins at 0 again. So whoever ends TLS in
    between has one packet more on one side than on the other: until that OK or ERR, `Renumbering` gives each packet the number that its
    receiver expects, and no packet is looked at after it.

    The password is never known here, with one exception. ``caching_sha2_password`` lets a client inside TLS send it as it is; a server
    in the clear would not take it so. Then the server is asked for its RSA key, and the password goes on encrypted with
    that, as a client without TLS does it.

After "Client/Server Protocol: Connection Phase" of MySQL's internals and MariaDB's description of the same.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from twistedproxy.errors import BadHello

MAX_PACKET = 128 * 1024
"""Of the connection phase; connection attributes, the largest part, end at 64 KiB."""
CLIENT_SSL = 0x0800
_PROTOCOL_41 = 0x0200
_REQUEST_BYTES = 32
_OK, _ERR, _SWITCH = 0x00, 0xFF, 0xFE
_CACHING_SHA2 = b"caching_sha2_password"
_FULL_AUTHENTICATION = b"\x01\x04"
_WANTS_KEY = b"\x02"


USER = b"revproxy_health"
"""Who we are where a server must be answered and nobody logs in; needs no account."""
_CAPABILITIES = 0x0000_0001 | _PROTOCOL_41 | 0x0000_8000 | 0x0008_0000
"""LONG_PASSWORD, PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH."""
NOBODY = struct.pack("<IIB23x", _CAPABILITIES, 1 << 24, 33) + USER + b"\0" + b"\0" + b"mysql_native_password\0"
"""An answer to a greeting that ends in "access denied". Who leaves without one counts as an interrupted login, and after
``max_connect_errors`` of them (default 100) a server blocks this whole machine."""


class BadPacket(Exception):
    """Not what this protocol says at this point."""


def packet(sequence: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes((sequence & 0xFF,)) + payload


def error_packet(sequence: int, code: int, text: str, state: str = "HY000") -> bytes:
    return packet(sequence, b"\xff" + code.to_bytes(2, "little") + f"#{state}{text}".encode())


REFUSAL = error_packet(2, 3159, "this address wants TLS; connect with --ssl (--ssl-mode=REQUIRED)")
"""What a client in the clear is told, in its own words: ER_SECURE_TRANSPORT_REQUIRED."""


def take_packet(buffer: bytearray) -> tuple[int, bytes] | None:
    """(sequence number, payload) of the first packet, taken out of `buffer`; None while it is incomplete."""
    if len(buffer) < 4:
        return None
    size = int.from_bytes(buffer[:3], "little")
    if not 0 < size <= MAX_PACKET:
        raise BadPacket(f"a packet of {size} bytes before the login is over")
    if len(buffer) < 4 + size:
        return None
    sequence, payload = buffer[3], bytes(buffer[4 : 4 + size])
    del buffer[: 4 + size]
    return sequence, payload


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the server says first."""

    payload: bytes
    flags_at: int
    """Where the lower capabilities stand."""
    scramble: bytes

    @property
    def offers_tls(self) -> bool:
        return bool(self.payload[self.flags_at + 1] & CLIENT_SSL >> 8)

    def offering(self, tls: bool) -> bytes:
        """The same greeting, with or without an offer of TLS."""
        changed = bytearray(self.payload)
        changed[self.flags_at + 1] = changed[self.flags_at + 1] & ~(CLIENT_SSL >> 8) | (CLIENT_SSL >> 8 if tls else 0)
        return bytes(changed)


def read_greeting(payload: bytes) -> Greeting:
    """`BadPacket` with the server's own words when it refuses."""
    if payload[0] == _ERR:
        text = payload[3:].decode("utf-8", "replace")
        raise BadPacket(f"refuses: {text[6:] if text.startswith('#') else text:.200} ({int.from_bytes(payload[1:3], 'little')})")
    end = payload.find(b"\0", 1)
    flags_at = end + 1 + 4 + 8 + 1
    if payload[0] != 10 or end < 0 or len(payload) < flags_at + 2 + 1 + 2 + 2 + 1 + 10:
        raise BadPacket("does not greet as MySQL does (protocol 10)")
    rest = payload[flags_at + 18 :]
    second = max(12, payload[flags_at + 7] - 9)  # the scramble's second part has a zero behind it
    scramble = payload[flags_at - 9 : flags_at - 1] + rest[:second]
    return Greeting(payload, flags_at, scramble)


def with_tls_flag(response: bytes, is_tls: bool) -> bytes:
    """A client's answer to the greeting, as it must look to a server with or without TLS."""
    if len(response) < _REQUEST_BYTES or not response[1] & _PROTOCOL_41 >> 8:
        raise BadPacket("a client of before MySQL 4.1, or none at all")
    changed = response[1] & ~(CLIENT_SSL >> 8) | (CLIENT_SSL >> 8 if is_tls else 0)
    return response[:1] + bytes((changed,)) + response[2:]


def request_of(response: bytes) -> bytes:
    """The SSLRequest that belongs to a client's answer, or is one: the same capabilities, which servers hold it to."""
    return with_tls_flag(response[:_REQUEST_BYTES], True)


class Preface:
    """The client's request for TLS, taken off the socket to the byte; see `net.handshake.Preface`."""

    def __init__(self) -> None:
        self.request = b""

    def __call__(self, data: bytes, sock: socket.socket) -> tuple[int, bool] | None:
        if len(data) < 8:
            return None
        size, sequence, flags = int.from_bytes(data[:3], "little"), data[3], data[5]
        if sequence != 1 or not _REQUEST_BYTES <= size <= MAX_PACKET or not flags & _PROTOCOL_41 >> 8:
            raise BadHello("this is not a MySQL client's answer to the greeting", data)
        if size > _REQUEST_BYTES or not flags & CLIENT_SSL >> 8:
            sock.recv(len(data))  # closing with it unread would reset the connection before the refusal is seen
            sock.send(REFUSAL)
            raise BadHello("this listener wants TLS (for MySQL: --ssl)", data)
        if len(data) < 4 + size:
            return None
        self.request = data[4 : 4 + size]
        return 4 + size, True


class Renumbering:
    """The login between a client and a server of which exactly one is inside TLS; ends with the server's OK or ERR.

    Feed it with what either side sends; `to_client` and `to_server` are to be sent and cleared. Once `is_over`, `rest_of_client` and
    `rest_of_server` go on untouched, before whatever comes next.
    """

    def __init__(self, greeting: Greeting, *, client_is_secure: bool) -> None:
        self.to_client = bytearray()
        self.to_server = bytearray()
        self.rest_of_client = bytearray()
        self.rest_of_server = bytearray()
        self.is_over = False
        self._is_secure = client_is_secure
        self._next_of_client = 2 if client_is_secure else 1
        self._next_of_server = 1 if client_is_secure else 2
        self._is_first = True
        self._is_clients_turn = True
        self._plugin = b""
        """What the server switched to; until then it may be the greeting's or, if the account has another, the client's own choice."""
        self._scramble = greeting.scramble
        self._expects_password = False
        self._password = b""

    def from_client(self, data: bytes) -> None:
        self.rest_of_client += data
        while not self.is_over and (found := take_packet(self.rest_of_client)) is not None:
            sequence, payload = found
            if sequence != self._next_of_client & 0xFF:
                raise BadPacket(f"packet {sequence} where {self._next_of_client & 0xFF} was due")
            if not self._is_clients_turn:  # it would make the server's answer look like a wrong one
                raise BadPacket("sent a packet before the server had answered the one before")
            self._is_clients_turn = False
            self._next_of_client += 1
            if self._is_first:
                self._is_first = False
                payload = with_tls_flag(payload, not self._is_secure)
            elif self._expects_password:
                self._expects_password = False
                self._password, payload = payload, _WANTS_KEY
            self._send_server(payload)

    def from_server(self, data: bytes) -> None:
        self.rest_of_server += data
        while not self.is_over and (found := take_packet(self.rest_of_server)) is not None:
            sequence, payload = found
            if sequence != self._next_of_server & 0xFF:
                raise BadPacket(f"packet {sequence} where {self._next_of_server & 0xFF} was due")
            self._next_of_server += 1
            if self._password and payload[0] == 1:
                password, self._password = self._password, b""
                self._send_server(_encrypted(password, self._scramble, payload[1:]))
                continue
            if payload[0] == _SWITCH:
                self._plugin, _, scramble = payload[1:].partition(b"\0")
                self._scramble = scramble.removesuffix(b"\0")
            elif payload == _FULL_AUTHENTICATION and self._plugin in (b"", _CACHING_SHA2) and self._is_secure:
                self._expects_password = True
            self._is_clients_turn = True
            self.is_over = payload[0] in (_OK, _ERR)
            self.to_client += packet(self._next_of_client, payload)
            self._next_of_client += 1

    def _send_server(self, payload: bytes) -> None:
        self.to_server += packet(self._next_of_server, payload)
        self._next_of_server += 1


def _encrypted(password: bytes, scramble: bytes, pem: bytes) -> bytes:
    """As ``caching_sha2_password`` wants it from clients without TLS."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as e:
        raise BadPacket(f"the server's key for passwords cannot be read: {e}") from None
    if not isinstance(key, RSAPublicKey) or not scramble:
        raise BadPacket("the server's key for passwords is no RSA key")
    # SHA-1 is what the protocol asks for; OAEP does not rest on its resistance to collisions.
    mixed = bytes(byte ^ scramble[i % len(scramble)] for i, byte in enumerate(password))
    try:
        return key.encrypt(mixed, OAEP(MGF1(SHA1()), SHA1(), None))
    except ValueError:
        raise BadPacket("a password longer than the server's key can encrypt") from None
