"""PostgreSQL's way into TLS: a request in the clear, one byte of answer, and only then the ClientHello.

After PostgreSQL's "Frontend/Backend Protocol" (SSLRequest, GSSENCRequest). Whoever stands between client and server must see to it that
nothing is smuggled in before TLS begins: more than the one message, or more than the one byte, ends the connection
(CVE-2021-23214, CVE-2021-23222). Clients may also begin with TLS at once (``sslnegotiation=direct``, PostgreSQL 17).

Where TLS begins only here, on the way to the servers, a client that asks for it is declined, as a server without TLS does: with
``sslmode=prefer``, which is libpq's default, it then goes on in the clear, and with ``require`` it says why it does not.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.python.failure import Failure

from twistedproxy.clock import Timed, Wheel
from twistedproxy.errors import BadHello, ConnectFailed, ServerTlsFailed, TlsFailed, TlsTimeout
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


class Declining(Timed):
    """Declines what a client in the clear asks for before its start-up message, within `limit_s`.

    Then exactly one of: `on_clear(leftover)`, after which the transport is the caller's, with what came behind the requests; or
    `on_error(error)`, with the connection reset already.
    """

    __slots__ = ("_transport", "_wheel", "_limit_s", "_on_clear", "_on_error", "_buffer", "_declinable")

    def __init__(
        self,
        transport: Transport,
        wheel: Wheel,
        limit_s: float,
        on_clear: Callable[[bytes], None],
        on_error: Callable[[TlsFailed], None],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._wheel = wheel
        self._limit_s = limit_s
        self._on_clear: Callable[[bytes], None] | None = on_clear
        self._on_error: Callable[[TlsFailed], None] | None = on_error
        self._buffer = b""
        self._declinable = [SSL_REQUEST, GSS_REQUEST]
        """Each once: whoever asks again is answered by the server, with its error."""

    def begin(self, seen: bytes = b"") -> None:
        """`seen` was read from the client already."""
        self._wheel.arm(self, self._wheel.seconds() + self._limit_s)
        self._transport.start(self)
        if seen:
            self.dataReceived(seen)

    def dataReceived(self, data: bytes) -> None:
        if self._on_error is None:
            return
        data = self._buffer + data
        while data[:8] in self._declinable:
            self._declinable.remove(data[:8])
            self._transport.write(UNWILLING)
            data = data[8:]
        self._buffer = data
        if len(data) < 8 and any(request.startswith(data) for request in self._declinable or (b"",)):
            return
        told, self._on_clear, self._on_error = self._on_clear, None, None
        self._wheel.disarm(self)
        assert told is not None
        told(data)

    def _fail(self, error: TlsFailed) -> None:
        told, self._on_error, self._on_clear = self._on_error, None, None
        if told is not None:
            self._wheel.disarm(self)
            self._transport.abortConnection()
            told(error)

    def deadline_passed(self, now: float) -> None:
        self._fail(TlsTimeout(f"no complete PostgreSQL start-up message within {self._limit_s:g} s"))

    def readConnectionLost(self) -> None:
        self._fail(TlsFailed("the client closed before it had said anything of its own"))

    def connectionLost(self, reason: Failure) -> None:
        self._fail(TlsFailed("the client broke the connection before it had said anything of its own"))

    def abort(self) -> None:
        """The listener closes: `on_error` is called now."""
        self._fail(TlsFailed("the listener closed"))


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
