"""A listen address outlives both its sockets and its front ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, TcpListener
from twistedproxy.worker.places import Place, share

SPEC = TcpListener(Address("127.0.0.1:6432"), "pg")


class Front:
    def __init__(self, spec: Any, on_closed: Callable[[], None]) -> None:
        self.spec, self.on_closed = spec, on_closed
        self.accepted: list[socket.socket] = []

    @property
    def open(self) -> int:
        return len(self.accepted)

    def accept(self, sock: socket.socket, ip: str, port: int) -> None:
        self.accepted.append(sock)

    def close_one(self) -> None:
        self.accepted.pop().close()
        self.on_closed()

    def drain(self) -> None:
        """Nothing to finish."""

    def cut(self) -> None:
        while self.accepted:
            self.close_one()


class ShareTests(SynchronousTestCase):
    def test_share(self) -> None:
        """All shares together are at least the maximum, and one more worker than connections still serves one each."""
        for limit, slots, expected in ((100, 4, 25), (101, 4, 26), (1, 8, 1), (5, 1, 5), (5, 0, 5)):
            self.assertEqual(share(limit, slots), expected)


class PlaceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.place = Place(self.reactor, SPEC, 2, Front)
        self.first = self.place.front
        assert isinstance(self.first, Front)
        self.addCleanup(self.place.stop)
        self.addCleanup(self.first.cut)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.server.close)
        self.place.add_socket(0, socket.socket(fileno=os.dup(self.server.fileno())))

    def connect(self, count: int = 1) -> None:
        for _ in range(count):
            self.addCleanup(socket.create_connection(self.server.getsockname()).close)

    def poll(self) -> None:
        for _ in range(5):
            for reader in list(self.reactor.getReaders()):
                reader.doRead()

    def test_p2_maximum(self) -> None:
        """P2: above the maximum clients wait in the kernel's queue; a place that comes free is taken at once."""
        self.connect(3)
        self.poll()
        self.assertEqual(self.first.open, 2)
        self.first.close_one()
        self.poll()
        self.assertEqual(self.first.open, 2)

    def test_maximum_counts_over_front_ends(self) -> None:
        """Connections that finish at the replaced front end still count, and free their place."""
        self.connect(3)
        self.poll()
        before = self.place.serve(TcpListener(Address("127.0.0.1:6432"), "other"))
        self.assertIs(before, self.first)
        self.poll()
        self.assertEqual(self.place.front.open, 0)
        self.first.close_one()
        self.poll()
        second = self.place.front
        assert isinstance(second, Front)
        self.assertEqual((self.first.open, second.open), (1, 1))
        self.connect()
        second.close_one()
        self.poll()
        self.assertEqual((self.first.open, second.open), (1, 1))
        second.cut()

    def test_raise_the_maximum(self) -> None:
        """A higher maximum lets those in who wait."""
        self.connect(3)
        self.poll()
        self.place.limit(3)
        self.poll()
        self.assertEqual(self.first.open, 3)

    def test_return(self) -> None:
        """A socket given back is accepted on no more here, and keeps its queue."""
        self.place.remove_socket(0)
        self.connect()
        self.poll()
        self.assertEqual(self.first.open, 0)
        self.server.settimeout(1)
        self.server.accept()[0].close()
