"""Accepts the connections of one configured address, never more than it may have open.

How it works
    The sockets belong to the supervisor; a worker is lent one or several of them per address and gives them back without ever
    shutting one down. At most `MAX_ACCEPTS` are taken in one turn, so that a storm does not starve open connections. At
    the maximum the sockets leave epoll: the next clients wait in the kernel's queue and are not reset. Out of descriptors
    or memory, accepting stops for 250 ms instead of spinning. It stops somewhat before the last descriptor, since those who are
    inside need some too, for their servers.
"""

from __future__ import annotations

import _socket
import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.net.sparse import SparseLog
from twistedproxy.net.transport import tune

MAX_ACCEPTS = 16
RETRY_S = 0.25
FULL_TURNS_TO_GROW = 4
BACKLOG = 4096
"""More than the kernel queues for one socket."""
_Socket: type[socket.socket] = _socket.socket  # type: ignore[assignment]  # has every method that is used of the other
_STREAM = int(socket.SOCK_STREAM)
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_HARD = frozenset((errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP))


def _scarce_from() -> int:
    """All but an eighth of the descriptors this process may have open (at least 16, at most 1024 are kept back)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**31 if limit == resource.RLIM_INFINITY else limit - min(max(limit // 8, 16), 1024)


@implementer(IReadDescriptor)
class _ListeningSocket:
    """One listening socket in the reactor."""

    def __init__(self, listener: Listener, sock: socket.socket) -> None:
        self.sock = sock
        self._listener = listener
        self._is_mapped = sock.family == socket.AF_INET6
        self._is_unix = sock.family == socket.AF_UNIX
        self._family = int(sock.family)
        self._batch = 1
        self._full_turns = 0

    def fileno(self) -> int:
        return self.sock.fileno()

    def logPrefix(self) -> str:
        return "listener"

    def doRead(self) -> None:
        """Accept what waits: one while it is quiet (an accept that finds nothing costs as much as one that does), more in a storm."""
        listener = self._listener
        # `socket.accept` without the Python class around the result, whose enums cost more than the system call.
        accept, family = self.sock._accept, self._family  # type: ignore[attr-defined]
        for _ in range(self._batch):
            try:
                descriptor, name = accept()
                sock = _Socket(family, _STREAM, 0, descriptor)
            except BlockingIOError:
                self._batch = 1
                self._full_turns = 0
                return
            except OSError as e:
                if e.errno in _EXHAUSTED:
                    listener.exhausted(e.strerror or str(e))
                    return
                if e.errno in _HARD:
                    raise
                continue  # this one connection failed before we took it: ECONNABORTED, and whatever the network reports here
            sock.setblocking(False)
            if self._is_unix:
                listener.accepted(sock, "", 0)
            else:
                ip = name[0]
                if self._is_mapped and ip.startswith("::ffff:"):
                    ip = ip[7:]
                listener.accepted(sock, ip, name[1])
            if descriptor >= listener.scarce_from:
                listener.exhausted("few descriptors are left")
            if not listener.is_accepting:
                return
        self._full_turns += 1
        if self._full_turns >= FULL_TURNS_TO_GROW and self._batch < MAX_ACCEPTS:
            self._full_turns = 0
            self._batch *= 2

    def take_waiting(self) -> None:
        """Accept all that the kernel has queued: whoever closes the last copy of the socket would reset them."""
        if self._listener.is_accepting:
            self._batch = BACKLOG
            self.doRead()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor dropped it after an exception; the descriptor is the owner's to close."""


class Listener:
    """The listening sockets of one address in one worker.

    `on_connection(sock, ip, port)` gets a non-blocking, tuned socket that is from there on its to close; it must be followed by one
    `connection_closed()`. `ip` is "" for a unix socket, and plain IPv4 for an IPv4 client of an IPv6 socket.
    """

    def __init__(self, reactor: Any, on_connection: Callable[[socket.socket, str, int], None], max_connections: int) -> None:
        self._reactor = reactor
        self._on_connection = on_connection
        self.max_connections = max_connections
        self.open = 0
        """Connections accepted and not yet closed."""
        self.total = 0
        self.scarce_from = _scarce_from()
        """A connection with this descriptor or a higher one is the last for a while."""
        self._sockets: dict[int, _ListeningSocket] = {}
        self._is_paused = False
        self._retry: Any = None
        self._is_reading = False
        log = Logger(namespace="twistedproxy.net.listener")
        self._exhausted_log = SparseLog(log, reactor.seconds)
        self._crash_log = SparseLog(log, reactor.seconds, every_s=1.0)

    @property
    def is_accepting(self) -> bool:
        return self._is_reading

    def add_socket(self, index: int, sock: socket.socket) -> None:
        """Accept on socket number `index` of this address; replaces an earlier one of that number."""
        self.remove_socket(index)
        sock.setblocking(False)
        tune(sock)
        listening = self._sockets[index] = _ListeningSocket(self, sock)
        if self._is_reading:
            self._reactor.addReader(listening)
        else:
            self._update()

    def remove_socket(self, index: int) -> None:
        """Stop accepting on it and close our descriptor; the socket itself, and its queue, live on with whoever else holds it."""
        listening = self._sockets.pop(index, None)
        if listening is not None:
            self._reactor.removeReader(listening)
            listening.sock.close()

    def pause(self) -> None:
        self._is_paused = True
        self._update()

    def resume(self) -> None:
        self._is_paused = False
        self._update()

    def take_waiting(self) -> None:
        """Accept what waits in the queues now, before the sockets are closed for good."""
        for listening in tuple(self._sockets.values()):
            listening.take_waiting()

    def stop(self) -> None:
        """Give all sockets back; open connections go on."""
        for index in list(self._sockets):
            self.remove_socket(index)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._is_reading = False

    def set_max_connections(self, most: int) -> None:
        self.max_connections = most
        self.scarce_from = _scarce_from()  # `prlimit` may have changed it
        self._update()

    def connection_closed(self) -> None:
        """A slot is free again."""
        self.open -= 1
        if not self._is_reading:
            self._update()

    def accepted(self, sock: socket.socket, ip: str, port: int) -> None:
        self.open += 1
        self.total += 1
        if self.open >= self.max_connections:
            self._update()
        try:
            self._on_connection(sock, ip, port)
        except Exception:
            self._crash_log.failure("a new connection from {ip} was dropped", ip=ip)
            sock.close()
            self.connection_closed()

    def exhausted(self, why: str) -> None:
        """No descriptor or memory left for another connection: wait a little, then try again."""
        self._exhausted_log.warn(
            "cannot accept connections for now ({why}); {open} are open. Raise the limit of open files or lower max_connections.",
            why=why,
            open=self.open,
        )
        if self._retry is None:
            self._retry = self._reactor.callLater(RETRY_S, self._try_again)
            self._update()

    def _try_again(self) -> None:
        self._retry = None
        if self._is_scarce():
            self._retry = self._reactor.callLater(RETRY_S, self._try_again)
        self._update()

    def _is_scarce(self) -> bool:
        """The kernel gives the lowest free number, so the next one shows how many are taken."""
        try:
            descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        os.close(descriptor)
        return descriptor >= self.scarce_from

    def _update(self) -> None:
        """Be in epoll exactly when there is room and nobody asked us to wait."""
        should_read = bool(self._sockets) and not self._is_paused and self._retry is None and self.open < self.max_connections
        if should_read == self._is_reading:
            return
        self._is_reading = should_read
        change = self._reactor.addReader if should_read else self._reactor.removeReader
        for listening in self._sockets.values():
            change(listening)
