"""Opens one connection to one endpoint, within a time limit, and says exactly why it could not.

Callbacks never run inside `connect` or `Attempt.cancel`: exactly one of them comes from a later turn of the reactor (or of the
wheel, for the time limit), none after `cancel`. The reason tells the server's fault from our own exhaustion, which must not count
against the server.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.clock import Timed, Wheel
from twistedproxy.config.model import Endpoint
from twistedproxy.errors import ConnectFailed, ConnectTimeout
from twistedproxy.net.transport import Transport, tune_tcp

OUR_FAULT = frozenset((errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN))
"""No local port, memory or descriptor left, or the backlog of a unix socket full: says nothing about the server's health."""
EPHEMERAL_FROM = 1024
"""A connection to a local port nobody listens on may meet itself (simultaneous open) if the port may be chosen for our own side."""


def _text(endpoint: Endpoint, code: int) -> str:
    hint = {
        errno.EADDRNOTAVAIL: " (no local port left for this address)",
        errno.EAGAIN: " (its queue of waiting connections is full)" if endpoint.family == socket.AF_UNIX else "",
        errno.EMFILE: " (raise the limit of open files)",
    }.get(code, "")
    return f"{endpoint}: {os.strerror(code).lower()}{hint}"


@implementer(IWriteDescriptor)
class Attempt(Timed):
    """A connection being opened."""

    __slots__ = ("_reactor", "_wheel", "_endpoint", "_timeout_s", "_write_stall_s", "_sock", "_fd", "_on_connected", "_on_failed")

    stays_watched = True

    def __init__(
        self,
        reactor: Any,
        wheel: Wheel,
        endpoint: Endpoint,
        timeout_s: float,
        on_connected: Callable[[Transport], None],
        on_failed: Callable[[ConnectFailed], None],
        write_stall_s: float,
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._wheel = wheel
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._write_stall_s = write_stall_s
        self._on_connected: Callable[[Transport], None] | None = on_connected
        self._on_failed: Callable[[ConnectFailed], None] | None = on_failed
        self._sock: socket.socket | None = None
        self._fd = -1

    def __repr__(self) -> str:
        return f"<Attempt {self._endpoint} {'over' if self._on_failed is None else 'connecting'}>"

    @property
    def is_over(self) -> bool:
        return self._on_failed is None

    def begin(self) -> None:
        endpoint = self._endpoint
        family = endpoint.family
        if family == socket.AF_UNSPEC:
            self._fail_soon(ConnectFailed(f"{endpoint}: the host name has no known address yet", blames_server=True))
            return
        try:
            sock = self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._fd = sock.fileno()
            if family != socket.AF_UNIX:
                tune_tcp(sock)
            code = sock.connect_ex(endpoint.sockaddr)
        except OSError as e:
            code = e.errno or errno.EINVAL
        if code in (0, errno.EINPROGRESS):
            self._reactor.addWriter(self)
            self._wheel.arm(self, self._wheel.seconds() + self._timeout_s)
        else:
            self._fail_soon(self._error(code))

    def cancel(self) -> None:
        """Forget it; neither callback is called."""
        self._on_connected = self._on_failed = None
        self._close()

    def _error(self, code: int) -> ConnectFailed:
        return ConnectFailed(_text(self._endpoint, code), blames_server=code not in OUR_FAULT)

    def _fail_soon(self, error: ConnectFailed) -> None:
        self._reactor.callLater(0, self._fail, error)

    def _fail(self, error: ConnectFailed) -> None:
        told = self._on_failed
        if told is not None:
            self.cancel()
            told(error)

    def _close(self) -> None:
        self._wheel.disarm(self)
        if self._sock is not None:
            self._leave_reactor()
            self._sock.close()
            self._sock = None
            self._fd = -1

    def _leave_reactor(self) -> None:
        forget = getattr(self._reactor, "forget", None)
        if forget is not None:
            forget(self)
        else:
            self._reactor.removeWriter(self)

    def doWrite(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            peer = sock.getpeername()
        except OSError:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(self._error(code))
            return  # without an error: an event of the descriptor's former owner; still connecting
        endpoint = self._endpoint
        if endpoint.port >= EPHEMERAL_FROM and sock.getsockname() == peer:
            self._fail(self._error(errno.ECONNREFUSED))  # we met ourselves
            return
        told = self._on_connected
        assert told is not None
        self._wheel.disarm(self)
        self._on_connected = self._on_failed = None
        host = "" if endpoint.family == socket.AF_UNIX else endpoint.host
        reactor = self._reactor
        transport = Transport(reactor, self._wheel, sock, host, endpoint.port, self._write_stall_s)
        hand_over = getattr(reactor, "hand_over", None)
        if hand_over is not None:
            hand_over(self, transport)
        else:
            reactor.removeWriter(self)
        fd = self._fd
        self._sock = None
        self._fd = -1
        told(transport)
        if hand_over is not None and transport.fileno() == fd:
            reactor.settle(fd)

    def deadline_passed(self, now: float) -> None:
        self._fail(ConnectTimeout(f"{self._endpoint}: no connection within {self._timeout_s:g} s"))

    def hung_up(self, event: int) -> None:
        self.doWrite()

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "connector"

    def connectionLost(self, reason: Failure) -> None:
        """A reactor that is not ours reports a failed connection so."""
        if self._sock is not None and self._on_failed is not None:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._fail(self._error(code or errno.ECONNABORTED))


def connect(
    reactor: Any,
    wheel: Wheel,
    endpoint: Endpoint,
    timeout_s: float,
    on_connected: Callable[[Transport], None],
    on_failed: Callable[[ConnectFailed], None],
    write_stall_s: float = 30.0,
) -> Attempt:
    """Begin to connect; the transport handed to `on_connected` is not started yet."""
    attempt = Attempt(reactor, wheel, endpoint, timeout_s, on_connected, on_failed, write_stall_s)
    attempt.begin()
    return attempt
