"""Where a worker accepts: one `Place` for each configured listen address, joining its sockets to the front end that serves them.

The sockets come and go one by one (the supervisor lends and takes back), the front end changes with the configuration; a place
outlives both kinds of change, so that neither costs a connection: what the old front end holds finishes there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from twistedproxy.config.model import HttpListener, TcpListener
from twistedproxy.net.listener import Listener

ListenerSpec = HttpListener | TcpListener
CROWDED = 0.8
"""Above this share of its maximum a place is called crowded."""


class Front(Protocol):
    """What `http.front.HttpFront` and `stream.front.StreamFront` have in common."""

    @property
    def open(self) -> int:
        """Connections that are not finished."""
        ...

    def accept(self, sock: socket.socket, ip: str, port: int) -> None: ...

    def drain(self) -> None:
        """Finish what is open as soon as its protocol allows; nothing new will come."""
        ...

    def cut(self) -> None:
        """Abort what is still open."""
        ...


Make = Callable[[ListenerSpec, Callable[[], None]], Front]
"""Makes the front end for a listener; it calls the function once for each connection that has ended."""


def share(limit: int, slots: int) -> int:
    """One worker's part of a listener's maximum, rounded up."""
    return -(-limit // max(slots, 1))


class Place:
    """One listen address of this worker; `max_connections` is this worker's share."""

    def __init__(self, reactor: Any, spec: ListenerSpec, max_connections: int, make: Make) -> None:
        self.spec = spec
        self._listener = Listener(reactor, self._accept, max_connections)
        self._make = make
        self.front = make(spec, self._listener.connection_closed)

    @property
    def max_connections(self) -> int:
        return self._listener.max_connections

    @property
    def is_crowded(self) -> bool:
        return self._listener.open > CROWDED * self._listener.max_connections

    def _accept(self, sock: socket.socket, ip: str, port: int) -> None:
        self.front.accept(sock, ip, port)

    def limit(self, max_connections: int) -> None:
        """Change the maximum; when more are open, nobody is sent away."""
        self._listener.set_max_connections(max_connections)

    def serve(self, spec: ListenerSpec) -> Front:
        """From now on new connections go to a new front end; returns the one that served so far."""
        before = self.front
        self.front = self._make(spec, self._listener.connection_closed)
        self.spec = spec
        return before

    def add_socket(self, index: int, sock: socket.socket) -> None:
        self._listener.add_socket(index, sock)

    def remove_socket(self, index: int) -> None:
        self._listener.remove_socket(index)

    def pause(self, is_paused: bool) -> None:
        """Leave new connections in the kernel's queue for now."""
        if is_paused:
            self._listener.pause()
        else:
            self._listener.resume()

    def stop(self) -> None:
        """Take what still waits in the queues, then close this worker's copies of the listening sockets."""
        self._listener.take_waiting()
        self._listener.stop()
