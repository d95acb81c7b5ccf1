"""PostgreSQL's way into TLS: a request in the clear, one byte of answer, and only then the ClientHello.

After PostgreSQL's "Frontend/Backend Protocol" (SSLRequest, GSSENCRequest). Whoever stands between client and server must see to it that
nothing is smuggled in before TLS begins: more than the one message, or more than the one byte, ends the connection
(CVE-2021-23214, CVE-2021-23222). Clients may also begin with TLS at once (``sslnegotiation=direct``, PostgreSQL 17).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.python.failure import Failure

from twistedproxy.clock import Timed, Wheel
from twistedproxy.errors import BadHello, ConnectFailed, ServerTlsFailed
from twistedproxy.net.transport import Transport


def _error(code: str, text: str) -> bytes:
    """An ErrorResponse: severity, SQLSTATE and message."""
    fields = f"SFATAL\0VFATAL\0C{code}\0M{text}\0\0".encode()
    return b"E" + (len(fields) + 4).to_bytes(4) + fields


SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
GSS_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x30"
REFUSAL = _error("28000", "this address wants TLS; connect with sslmode=require")
"""What a client in the clear is told, in its own words."""
WILLING = b"S"
UNWILLING = b"N"


class Preface:
    """What a PostgreSQL client says before TLS, answered; clients of anything else are let through untouched."""

    def __init__(self) -> None:
        self.was_postgres = False

    def __call__(self, data: bytes, sock: socket.socket) -> tuple[int, bool] | None:
        """See `net.handshake.Preface`."""
        if data[:1] != SSL_REQUEST[:1]:
            return 0, True
        if len(data) < len(SSL_REQUEST):
            if SSL_REQUEST.startswith(data[:7]) or GSS_REQUEST.startswith(data[:7]):
                return None
            raise BadHello("this is neither TLS nor PostgreSQL's request for it", data)
        request = data[:8]
        if request not in (SSL_REQUEST, GSS_REQUEST):
            sock.recv(len(data))  # closing with it unread would reset the connection before the refusal is seen
            sock.send(REFUSAL)
            raise BadHello("this listener wants TLS (for PostgreSQL: sslmode=require)", data)
        if len(data) > len(request):
            raise BadHello("bytes came before TLS was agreed upon", data)
        if request == GSS_REQUEST:
            sock.send(UNWILLING)  # the client then asks for TLS
            return len(request), False
        self.was_postgres = True
        sock.send(WILLING)
        return len(request), True


class SslRequest(Timed):
    """Asks a PostgreSQL server for TLS on behalf of a client that asked us; then exactly one of the two callbacks."""

    __slots__ = ("_transport", "_wheel", "_limit_s", "_on_willing", "_on_failed")

    def __init__(
        self,
        transport: Transport,
        wheel: Wheel,
        limit_s: float,
        on_willing: Callable[[Transport], None],
        on_failed: Callable[[ConnectFailed], None],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._wheel = wheel
        self._limit_s = limit_s
        self._on_willing: Callable[[Transport], None] | None = on_willing
        self._on_failed: Callable[[ConnectFailed], None] | None = on_failed
        wheel.arm(self, wheel.seconds() + limit_s)
        transport.start(self)
        transport.write(SSL_REQUEST)

    @property
    def is_over(self) -> bool:
        return self._on_failed is None

    def cancel(self) -> None:
        """Forget it and close; nobody is told."""
        self._on_willing = self._on_failed = None
        self._wheel.disarm(self)
        self._transport.abortConnection()

    def _fail(self, why: str) -> None:
        told = self._on_failed
        if told is not None:
            self.cancel()
            told(ServerTlsFailed(f"the PostgreSQL server {why}"))

    def dataReceived(self, data: bytes) -> None:
        told = self._on_willing
        if data == WILLING and told is not None:
            self._on_willing = self._on_failed = None
            self._wheel.disarm(self)
            self._transport.pauseProducing()
            told(self._transport)
        elif data == UNWILLING:
            self._fail("speaks no TLS (it answered N; ssl = on in postgresql.conf)")
        else:
            self._fail("answered the request for TLS with something else")

    def readConnectionLost(self) -> None:
        self._fail("closed the connection when it was asked for TLS")

    def connectionLost(self, reason: Failure) -> None:
        self._fail("broke the connection when it was asked for TLS")

    def deadline_passed(self, now: float) -> None:
        self._fail(f"did not answer the request for TLS within {self._limit_s:g} s")
