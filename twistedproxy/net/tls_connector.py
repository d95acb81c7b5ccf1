"""Opens a connection to a server that speaks TLS: TCP, perhaps a PROXY header and a request for TLS, both in the clear, then the handshake.

`TlsConnector.to` gives a function that is called like `connector.connect` and keeps its promises; the handshake has its own time limit.
A certificate that is not the right one fails the attempt before a byte of the request is sent, so another server may be tried.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.logger import Logger

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Endpoint
from twistedproxy.errors import ConnectFailed, ServerTlsFailed
from twistedproxy.net.connector import Attempt, connect
from twistedproxy.net.handshake import ClientHandshake
from twistedproxy.net.sparse import SparseLog
from twistedproxy.net.transport import Transport
from twistedproxy.tls.servers import ServerTlsUse


class Connect(Protocol):
    """`connector.connect` and whatever stands in for it."""

    def __call__(
        self,
        reactor: Any,
        wheel: Wheel,
        endpoint: Endpoint,
        timeout_s: float,
        on_connected: Callable[[Transport], None],
        on_failed: Callable[[ConnectFailed], None],
        write_stall_s: float = ...,
    ) -> Any: ...


class Asking(Protocol):
    """A server being asked for TLS in its own protocol."""

    @property
    def is_over(self) -> bool: ...
    def cancel(self) -> None: ...


Ask = Callable[[Transport, Wheel, float, Callable[[Transport], None], Callable[[ConnectFailed], None]], Asking]
"""Begins to ask within so many seconds; exactly one of the callbacks comes later, the first with nothing read behind the server's yes."""


class TlsConnector:
    """TLS with the servers of one pool. Without `use` its files are not there (yet): every attempt fails, nothing goes in the clear."""

    def __init__(self, pool: str, use: ServerTlsUse | None, seconds: Callable[[], float], ask: Ask | None = None) -> None:
        self.pool = pool
        self.use = use
        self.ask = ask
        """For servers that begin in the clear."""
        self._log = SparseLog(Logger(namespace="twistedproxy.net.tls_connector"), seconds)

    def to(self, address: str, preamble: bytes, handshake_s: float) -> Connect:
        """For the server at `address`, as configured; `preamble` goes first, in the clear."""

        def begin(
            reactor: Any,
            wheel: Wheel,
            endpoint: Endpoint,
            timeout_s: float,
            on_connected: Callable[[Transport], None],
            on_failed: Callable[[ConnectFailed], None],
            write_stall_s: float = 30.0,
        ) -> TlsAttempt:
            attempt = TlsAttempt(self, address, preamble, handshake_s, on_connected, on_failed)
            attempt.begin(reactor, wheel, endpoint, timeout_s, write_stall_s)
            return attempt

        return begin

    def refused(self, error: ServerTlsFailed) -> None:
        """The operator wants to know more than the 502 tells the client."""
        self._log.warn("pool {pool}: no TLS with {detail}", pool=self.pool, detail=error.detail)


class TlsAttempt:
    """A connection being opened, TLS included."""

    __slots__ = ("_connector", "_address", "_preamble", "_handshake_s", "_on_connected", "_on_failed", "_step")

    def __init__(
        self,
        connector: TlsConnector,
        address: str,
        preamble: bytes,
        handshake_s: float,
        on_connected: Callable[[Transport], None],
        on_failed: Callable[[ConnectFailed], None],
    ) -> None:
        self._connector = connector
        self._address = address
        self._preamble = preamble
        self._handshake_s = handshake_s
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._step: Attempt | Asking | ClientHandshake | None = None

    @property
    def is_over(self) -> bool:
        return self._step is None or self._step.is_over

    def begin(self, reactor: Any, wheel: Wheel, endpoint: Endpoint, timeout_s: float, write_stall_s: float) -> None:
        self._step = connect(reactor, wheel, endpoint, timeout_s, self._connected, self._not_connected, write_stall_s)

    def cancel(self) -> None:
        """Forget it; neither callback is called."""
        step, self._step = self._step, None
        if step is not None:
            step.cancel()

    def _not_connected(self, error: ConnectFailed) -> None:
        self._step = None
        self._on_failed(error)

    def _connected(self, transport: Transport) -> None:
        use = self._connector.use
        if self._preamble:
            transport.write(self._preamble)
        if use is None or transport.buffered or transport.is_closed:
            transport.abortConnection()
            what = "the files of the pool's tls cannot be used" if use is None else "it took no PROXY header"
            self._not_connected(ServerTlsFailed(f"{self._address}: {what}", blames_server=use is not None))
        elif self._connector.ask is None:
            self._shake(transport)
        else:
            self._step = self._connector.ask(transport, transport.wheel, self._handshake_s, self._shake, self._unwilling)

    def _unwilling(self, error: ConnectFailed) -> None:
        self._step = None
        error = ServerTlsFailed(f"{self._address}: {error.detail}", error.blames_server)
        self._connector.refused(error)
        self._on_failed(error)

    def _shake(self, transport: Transport) -> None:
        use, reactor = self._connector.use, transport.reactor
        assert use is not None
        reactor.forget(transport)
        handshake = self._step = ClientHandshake(
            reactor, transport.wheel, transport.sock, transport.peer, transport.peer_port, transport.write_stall_s,
            self._shaken, self._failed, use=use, address=self._address,
        )  # fmt: skip
        handshake.begin(self._handshake_s)

    def _shaken(self, transport: Transport) -> None:
        self._step = None
        self._on_connected(transport)

    def _failed(self, error: ServerTlsFailed, sock: socket.socket) -> None:
        self._step = None
        sock.close()
        self._connector.refused(error)
        self._on_failed(error)
