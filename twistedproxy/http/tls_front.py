"""The HTTPS listener in one worker: a handshake first, then connections like those of `HttpFront`.

Which certificate a client gets, and what is asked of it, is decided by `tls.certificates`; that a site is not asked for over a
handshake made for another site's terms is seen to here (421, RFC 9110 15.5.20). Plain HTTP on this port gets a hint.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.python.failure import Failure

from twistedproxy.errors import BadHello, BadProxyHeader, Misdirected, ProxyError
from twistedproxy.http.connection import FrontConnection, Reading
from twistedproxy.http.exchange import Exchange
from twistedproxy.http.front import HttpFront
from twistedproxy.http.h1 import response_head
from twistedproxy.http.local import date
from twistedproxy.http.messages import NO_BODY, LocalResponse, RequestHead
from twistedproxy.net.handshake import Preface, ServerHandshake
from twistedproxy.net.proxy_protocol import Parsed, parse
from twistedproxy.net.tls_transport import TlsTransport
from twistedproxy.net.transport import Transport
from twistedproxy.tls.certificates import ACME_TLS, PROTOCOLS, Choice, SiteCertificates
from twistedproxy.tls.client_hello import HANDSHAKE, ClientHello
from twistedproxy.tls.clients import ClientTls, client_tls

NO_PROTOCOL = 120
"""The TLS alert no_application_protocol."""
_HELD_BACK = Reading.HELD_BACK
_AUTHORITY = (ACME_TLS,)
_HINT = json.dumps({
    "type": "about:blank", "title": "Bad Request", "status": 400,
    "detail": "this port speaks HTTPS: ask for https:// instead of http://",
}).encode()  # fmt: skip


class HttpsFront(HttpFront):
    """One HTTPS listener in one worker. `certificates` may be replaced at any time; open connections keep what they have."""

    def __init__(self, *args: Any, certificates: SiteCertificates, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.certificates = certificates
        self._arrivals: set[_Arrival] = set()

    @property
    def open(self) -> int:
        return super().open + len(self._arrivals)

    def accept(self, sock: socket.socket, ip: str, port: int) -> None:
        self.counts.open += 1
        self.counts.total += 1
        arrival = _Arrival(self, sock, ip, port)
        self._arrivals.add(arrival)
        arrival.begin()

    def arrived(self, arrival: _Arrival, transport: TlsTransport, tls: ClientTls) -> None:
        """The handshake is done."""
        self._arrivals.discard(arrival)
        kind = FrontConnection if self.certificates.is_uniform else GuardedConnection
        connection = kind(self, transport)
        self._connections.add(connection)
        connection.begin(arrival.ip, arrival.port, arrival.local, b"", tls)

    def not_arrived(self, arrival: _Arrival, error: ProxyError) -> None:
        self.metrics.rejected[error.reason] += 1
        if self.access_log is not None:
            self.access_log.log_http(
                arrival.ip, None, error.status, 0, 0, "", "", "", 0.0, 0, error.cause, error.phase, self.fresh_id(), self.address
            )  # fmt: skip

    def gone(self, arrival: _Arrival) -> None:
        """It never became a connection."""
        self._arrivals.discard(arrival)
        self.counts.open -= 1
        self._on_closed()

    def cut(self) -> None:
        super().cut()
        for arrival in tuple(self._arrivals):
            arrival.cut()


class _Arrival:
    """A client between accept and the end of its handshake. `ip` and `port` are the client's own, also behind another proxy."""

    __slots__ = ("front", "ip", "port", "local", "_handshake", "_choice", "_farewell")

    def __init__(self, front: HttpsFront, sock: socket.socket, ip: str, port: int) -> None:
        self.front = front
        self.ip = ip
        self.port = port
        self.local: tuple[str, int] | None = None
        self._choice: Choice | None = None
        self._farewell: Transport | None = None
        timeouts = front.timeouts
        prefaces: Sequence[Preface] = (self._read_proxy_header,) if front.accept_proxy and front.accept_proxy.contains(ip) else ()
        self._handshake = ServerHandshake(
            front.reactor, front.wheel, sock, ip, port, timeouts.write_stall_s, self._shaken, self._failed,
            choose=self._choose, prefaces=prefaces, timeout_s=timeouts.tls_handshake_s,
        )  # fmt: skip

    def begin(self) -> None:
        self._handshake.begin()

    def _read_proxy_header(self, data: bytes, sock: socket.socket) -> tuple[int, bool] | None:
        parsed: Parsed | None = parse(data)
        if parsed is None:
            return None
        if parsed.source is not None and not parsed.is_local:
            self.ip, self.port = parsed.source
            self.local = parsed.destination
        return parsed.size, True

    def _choose(self, hello: ClientHello) -> SSL.Context:
        if hello.protocols == _AUTHORITY:
            context = self.front.certificates.challenge(hello)
            if context is not None:
                return context
        choice = self._choice = self.front.certificates.choose(hello)
        if choice is None:
            raise BadHello("no site has a certificate yet", b"\x16", alert=80)
        if hello.protocols and not any(protocol in PROTOCOLS for protocol in hello.protocols):
            raise BadHello("the client speaks none of our protocols (ALPN)", b"\x16", alert=NO_PROTOCOL)
        return choice.context

    def _shaken(self, transport: TlsTransport) -> None:
        if self._choice is None:  # an authority has seen what it wanted; nothing else is said (RFC 8737 3)
            self._farewell = transport
            transport.start(self, reading=False)
            transport.loseConnection()
            return
        assert transport.tls is not None
        self.front.arrived(self, transport, client_tls(transport.tls, self._handshake.hello.name, self._choice))

    def _failed(self, error: ProxyError, sock: socket.socket) -> None:
        front = self.front
        front.not_arrived(self, error)
        last_word = b""
        if isinstance(error, BadHello):
            if error.seen[:1] == bytes((HANDSHAKE,)):
                last_word = b"\x15\x03\x03\x00\x02\x02" + bytes((error.alert,))
            elif error.seen[:1].isalpha():
                answer = LocalResponse(400, _HINT, ((b"Content-Type", b"application/problem+json"),))
                last_word = response_head(answer, 1, False, date()) + _HINT
        if not last_word or isinstance(error, BadProxyHeader):
            sock.close()
            front.gone(self)
            return
        farewell = self._farewell = Transport(front.reactor, front.wheel, sock, self.ip, self.port, front.timeouts.write_stall_s)
        farewell.start(self, reading=False)
        farewell.write(last_word)
        farewell.linger()  # closing with the rest of the request unread would reset the connection

    def cut(self) -> None:
        if self._farewell is not None:
            self._farewell.abortConnection()
        elif not self._handshake.is_over:
            self._handshake.cancel()
            self.front.gone(self)

    def dataReceived(self, data: bytes) -> None:
        """Nothing is read any more."""

    def readConnectionLost(self) -> None:
        """It lingers, whatever the client does."""

    def connectionLost(self, reason: Failure) -> None:
        self._farewell = None
        self.front.gone(self)


class GuardedConnection(FrontConnection):
    """A connection where sites differ in what they ask of a handshake: each request must be for one that asked the same."""

    __slots__ = ()

    def _begin_exchange(self, head: RequestHead, length: int) -> None:
        front: Any = self.front
        demands = front.certificates.demands_of(head.host.decode("latin-1"))
        tls = self.client.tls
        if demands is None or tls is None or demands == tls.demands:
            super()._begin_exchange(head, length)
            return
        self.reading = _HELD_BACK
        exchange = self.exchange = Exchange(self, head, front.fresh_id(), front.seconds())
        exchange.is_request_complete = length == NO_BODY
        exchange.keep_alive = False
        exchange.fail(Misdirected("this site asks for another client certificate or TLS version; connect to it by its own name"))
