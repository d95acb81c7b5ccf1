"""What a request and a response look like on the other side: hop-by-hop fields removed, the client told of, nothing of the server shown.

RFC 9110 section 7.6 (message forwarding), RFC 9112 section 9.6 (close). The names of the X-Forwarded fields follow what all peers set.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

from twistedproxy.http.messages import CHUNKED, REASONS, Kind, RequestHead, ResponseHead
from twistedproxy.net.networks import Networks

if TYPE_CHECKING:
    from twistedproxy.tls.clients import ClientTls  # with it comes OpenSSL, which plain HTTP does not need

_ALWAYS_DROPPED = Kind.TRANSFER_ENCODING | Kind.CONNECTION | Kind.HOP_BY_HOP | Kind.NOMINATED
_DROPPED_FROM_STRANGERS = _ALWAYS_DROPPED | Kind.INTERNAL | Kind.FORWARDED | Kind.REQUEST_ID | Kind.CLAIM
_DROPPED_FROM_FRIENDS = _ALWAYS_DROPPED | Kind.INTERNAL | Kind.REQUEST_ID
_X_FORWARDED_FOR = (b"x-forwarded-for",)
_X_FORWARDED_PROTO = (b"x-forwarded-proto",)
_NOTHING: tuple[bytes, ...] = ()
_SCHEMES = (b"http", b"https")
_HOP = rb"[A-Za-z0-9._:\[\]%-]{1,100}"
"""An IP address, perhaps with a port, or a name that hides one (RFC 7239 section 6.3)."""
_IS_HOP = re.compile(_HOP).fullmatch
_IS_CHAIN = re.compile(rb"%b(?:[ \t]*,[ \t]*%b)*" % (_HOP, _HOP)).fullmatch
_IS_REQUEST_ID = re.compile(rb"[!#-&(-\[\]-_a-~]{1,128}").fullmatch
"""Visible, and nothing that quotes or escapes in a log, a shell or a page: no quotes, no backslash."""

UPGRADES = frozenset({b"websocket"})
"""Protocols that may be switched to; for any other the Upgrade field is dropped, and the request goes on as plain HTTP."""


def client_address(peer: str, head: RequestHead, trusted: Networks) -> str:
    """The client's IP: the right-most X-Forwarded-For entry that is not a trusted proxy's, starting at the socket's peer.

    An entry that is not an IP ends the walk: what stands left of it was not written by anybody we trust.
    """
    address = peer
    if not trusted or not trusted.contains(peer):
        return address
    for line in reversed(head.get_all(b"x-forwarded-for")):
        for entry in reversed(line.split(b",")):
            text = entry.strip().decode("latin-1")
            if not _is_ip(text):
                return address
            address = text
            if not trusted.contains(address):
                return address
    return address


def _is_ip(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


class Client:
    """What one client connection adds to every request it sends; made once per connection."""

    __slots__ = ("ip", "is_trusted", "tls", "_fields", "_for", "_proto", "_port")

    def __init__(self, ip: str, local_port: int, is_trusted: bool, tls: ClientTls | None = None) -> None:
        self.ip = ip
        self.is_trusted = is_trusted
        self.tls = tls
        """None: it came without TLS."""
        self._for = ip.encode() or b"unknown"
        self._proto = b"http" if tls is None else b"https"
        self._port = b"%d" % local_port if local_port else b""
        port = b"X-Forwarded-Port: %b\r\n" % self._port if local_port else b""  # a unix socket has none
        self._fields = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n%bX-Forwarded-Host: " % (self._for, self._proto, port)

    @property
    def scheme(self) -> str:
        """``http`` or ``https``, as the client came."""
        return self._proto.decode()

    def request_id(self, head: RequestHead, fresh: bytes) -> bytes:
        """The id this request is known by: a trusted proxy's own, else `fresh`."""
        if self.is_trusted:
            given = head.get(b"x-request-id")
            if given and _IS_REQUEST_ID(given):
                return given
        return fresh

    def request(
        self,
        head: RequestHead,
        path: bytes | None,
        host: bytes | None,
        via: bytes,
        request_id: bytes,
        body_length: int,
        upgrade: bytes | None,
    ) -> bytes:
        """The request head for the server.

        `path` is the path to ask for (None: as received), `host` what stands in for a missing Host (None: it has one),
        `via` complete Via, Max-Forwards and X-Retry-Attempt lines or b"", `upgrade` the protocol the client asks to switch to, if that
        is allowed.
        """
        if path is None:
            start = None if head.minor == 1 else b"%b %b HTTP/1.1\r\n" % (head.method, head.target)
        else:
            target = b"%b?%b" % (path, head.query) if head.query or head.target.endswith(b"?") else path
            start = b"%b %b HTTP/1.1\r\n" % (head.method, target)
        remove = _NOTHING
        if self.is_trusted:
            drop = _DROPPED_FROM_FRIENDS
            tail, remove = self._kept_fields(head)
        else:
            drop = _DROPPED_FROM_STRANGERS
            tail = self._fields + head.authority + b"\r\n"
        if host is not None:
            if not head.authority:
                tail = tail.replace(b"X-Forwarded-Host: \r\n", b"")
            tail = b"Host: %b\r\n%b" % (host, tail)
            drop |= Kind.HOST
        elif path is not None and not head.is_canonical:
            # Absolute-form: the target's authority is what counts (RFC 9112 3.2.2); exactly one Host goes out.
            tail = b"Host: %b\r\n%b" % (head.authority, tail)
            drop |= Kind.HOST
        if via:
            tail += via
            if b"Max-Forwards: " in via:
                remove = (*remove, b"max-forwards")
            if b"X-Retry-Attempt: " in via:
                remove = (*remove, b"x-retry-attempt")
        if body_length == CHUNKED:
            tail += b"Transfer-Encoding: chunked\r\n"
            drop |= Kind.CONTENT_LENGTH
        if upgrade is not None:
            tail += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade
        return head.write_h1(start, drop, remove, tail + b"X-Request-Id: " + request_id + b"\r\n\r\n")

    def _kept_fields(self, head: RequestHead) -> tuple[bytes, tuple[bytes, ...]]:
        """Behind a trusted proxy: our fields, and the names of its own that go. X-Forwarded-For is appended to, the others are set
        only where it did not, or set nonsense."""
        chain = _sound_end(b", ".join(head.get_all(b"x-forwarded-for")))
        fields = b"X-Forwarded-For: %b, %b\r\n" % (chain, self._for) if chain else b"X-Forwarded-For: %b\r\n" % self._for
        remove: tuple[bytes, ...] = _X_FORWARDED_FOR
        schemes = head.get_all(b"x-forwarded-proto")
        if len(schemes) != 1 or schemes[0].lower() not in _SCHEMES:
            fields += b"X-Forwarded-Proto: %b\r\n" % self._proto
            remove += _X_FORWARDED_PROTO
        for name, value in ((b"X-Forwarded-Port", self._port), (b"X-Forwarded-Host", head.authority)):
            if value and head.get(name.lower()) is None:
                fields += b"%b: %b\r\n" % (name, value)
        return fields, remove


def _sound_end(chain: bytes) -> bytes:
    """What stands right of the last entry that is no address at all.

    Not that entry alone goes: what stands left of it would seem to be vouched for by who wrote what stands right of it.
    """
    if not chain or _IS_CHAIN(chain):
        return chain
    entries = [entry.strip(b" \t") for entry in chain.split(b",")]
    bad = max((index for index, entry in enumerate(entries) if not _IS_HOP(entry)), default=-1)
    return b", ".join(entries[bad + 1 :])


_RESPONSE_DROPPED = _ALWAYS_DROPPED | Kind.INTERNAL


def response(head: ResponseHead, body_length: int, is_http10: bool, keep_alive: bool) -> bytes:
    """The response head for the client. With `keep_alive` False it announces the close."""
    if keep_alive and body_length > 0 and not is_http10 and head.minor == 1:  # nearly always
        return head.write_h1(None, _RESPONSE_DROPPED, _NOTHING, _TAIL)
    start = None if head.minor == 1 else b"HTTP/1.1 %d %b\r\n" % (head.status, REASONS.get(head.status, b""))
    drop = _RESPONSE_DROPPED
    if body_length < 0 or head.status == 204:  # which ends with its head, whatever it says (RFC 9110 8.6)
        drop |= Kind.CONTENT_LENGTH
        if body_length < 0 and not is_http10:
            return head.write_h1(start, drop, _NOTHING, _CHUNKED_TAIL if keep_alive else _CHUNKED_CLOSE_TAIL)
    if not keep_alive:
        return head.write_h1(start, drop, _NOTHING, _CLOSE_TAIL)
    return head.write_h1(start, drop, _NOTHING, _KEEP_ALIVE_TAIL if is_http10 else _TAIL)


_TAIL = b"\r\n"
_CLOSE_TAIL = b"Connection: close\r\n\r\n"
_KEEP_ALIVE_TAIL = b"Connection: keep-alive\r\n\r\n"
_CHUNKED_TAIL = b"Transfer-Encoding: chunked\r\n\r\n"
_CHUNKED_CLOSE_TAIL = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def switching(head: ResponseHead, upgrade: bytes) -> bytes:
    """The 101 for the client: hop-by-hop fields removed and this hop's own put in."""
    start = None if head.minor == 1 else b"HTTP/1.1 101 Switching Protocols\r\n"
    drop = _RESPONSE_DROPPED | Kind.CONTENT_LENGTH
    return head.write_h1(start, drop, _NOTHING, b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n" % upgrade)


def interim(head: ResponseHead) -> bytes:
    """A 1xx other than 101 for the client."""
    start = None if head.minor == 1 else b"HTTP/1.1 %d %b\r\n" % (head.status, REASONS.get(head.status, b""))
    return head.write_h1(start, _RESPONSE_DROPPED | Kind.CONTENT_LENGTH, _NOTHING, _TAIL)
