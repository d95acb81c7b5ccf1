"""Who is asking, and may they: tokens, roles, the brake on guessing, and the names this API answers to."""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from twistedproxy.config.model import Admin
from twistedproxy.errors import ConfigurationError, Problem


class Role(enum.IntEnum):
    """What an identity may do; each role includes the ones before it."""

    VIEW = 1
    OPERATE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Identity:
    name: str
    """Goes to the journal as `by`."""
    role: Role


FILE_IDENTITY = "admin"
"""Name of whoever holds the token of the token file."""


def token_from_file(path: str) -> str:
    """The token kept in `path`; a new one is made (mode 0600) when there is no such file. Raises `ConfigurationError`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read_token(path)
    except OSError as e:
        raise _unusable(f"the token file {path} cannot be made: {e.strerror}; make its directory writable or set another file") from None
    token = secrets.token_urlsafe(32)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as e:
        raise _unusable(f"the token file {path} cannot be read: {e}; it must hold one line of ASCII, the token") from None
    if not token or len(token.split()) != 1:
        raise _unusable(f"the token file {path} must hold the token alone; remove the file and a new one is made at the next start")
    return token


def _unusable(message: str) -> ConfigurationError:
    return ConfigurationError([Problem("admin.token_file", message)])


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class Tokens:
    """Finds the identity behind a token, in the same time whatever the token is.

    Compares digests of fixed length, and always all of them, so that neither the length of a guess nor the place of its
    first wrong byte shows in the clock.
    """

    def __init__(self, file_token: str, admin: Callable[[], Admin]) -> None:
        self._file_digest = _digest(file_token.encode())
        self._admin = admin

    def operators(self) -> list[str]:
        """Digests, in hexadecimal, of the tokens that may operate."""
        named = [known.sha256 for known in self._admin().tokens if Role[known.role.upper()] >= Role.OPERATE]
        return [self._file_digest.hex(), *named]

    def identify(self, token: bytes) -> Identity | None:
        given = _digest(token)
        found: Identity | None = None
        if hmac.compare_digest(given, self._file_digest):
            found = Identity(FILE_IDENTITY, Role.ADMIN)
        for known in self._admin().tokens:
            if hmac.compare_digest(given, bytes.fromhex(known.sha256)):
                found = found or Identity(known.name, Role[known.role.upper()])
        return found


class GuessBrake:
    """Slows down who sends wrong tokens. A right one always passes, so that nobody can lock out those who share an address;
    tokens of 256 bits are not found by trying, this keeps the trying cheap and tells of it.

    Counts per address, for IPv6 per /64. Remembers at most `MAX_PEERS` peers; the one silent for longest is forgotten first.
    """

    FAILURES = 10
    WINDOW_S = 1.0
    MAX_PEERS = 4096

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._windows: dict[str, tuple[float, int]] = {}

    def is_blocked(self, peer: str) -> bool:
        since, failures = self._windows.get(_guesser(peer), (0.0, 0))
        return failures >= self.FAILURES and self._seconds() - since < self.WINDOW_S

    def failed(self, peer: str) -> int:
        """Count one failure; returns how many there are in this window."""
        key, now = _guesser(peer), self._seconds()
        since, failures = self._windows.pop(key, (now, 0))
        if now - since >= self.WINDOW_S:
            since, failures = now, 0
        self._windows[key] = (since, failures + 1)
        if len(self._windows) > self.MAX_PEERS:
            del self._windows[next(iter(self._windows))]
        return failures + 1


def _guesser(peer: str) -> str:
    address = _plain_ip(peer)
    return str(ipaddress.ip_network((address, 64), strict=False)) if ":" in address else address


def _plain_ip(text: str) -> str:
    """Canonical text of an IP address, without zone; a mapped IPv4 address as IPv4. Whatever is no address stays as it is."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    return str(getattr(address, "ipv4_mapped", None) or address)


def bearer(values: Iterable[bytes]) -> bytes | None:
    """The token of the one ``Authorization: Bearer`` field; None when there is none, or more than one field."""
    fields = list(values)
    if len(fields) != 1:
        return None
    scheme, _, token = fields[0].partition(b" ")
    token = token.strip()
    return token if scheme.lower() == b"bearer" and token else None


def host_of(field: str) -> str:
    """The host in a Host field, lower case, without port, brackets and trailing dot; "" when it is none."""
    host = field.strip().lower()
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and not _is_port(rest)):
            return ""
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            return ""
    name, colon, port = host.partition(":")
    if colon and not _is_port(":" + port):
        return ""
    return name[:-1] if name.endswith(".") else name


def _is_port(text: str) -> bool:
    return text[0] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


def is_our_name(host: str, admin: Admin, arrived_at: str) -> bool:
    """Whether a browser that believes `host` to be us is right, so that no foreign page reaches us by DNS rebinding.

    Loopback names, the listen address, the IP address the connection came in at (what a wildcard listen address means),
    and the operator's `names`.
    """
    if not host:
        return False
    if host in ("localhost", "::1", _plain_ip(arrived_at)) or host in map(str.lower, admin.names):
        return True
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        pass
    return admin.listen is not None and not admin.listen.startswith("unix:") and host == host_of(admin.listen)
