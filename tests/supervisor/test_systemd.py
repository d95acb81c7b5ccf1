"""Under systemd: readiness is told when it is there, sockets are taken over, and outside of it nothing happens."""

from __future__ import annotations

import os
import socket
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address
from twistedproxy.supervisor import systemd
from twistedproxy.supervisor.sockets import Sockets, Wanted
from twistedproxy.supervisor.systemd import Notifier, listening_sockets


class NotifierTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "notify")
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(self.path)
        self.manager.setblocking(False)

    def test_the_words_of_a_life(self) -> None:
        environ = {"NOTIFY_SOCKET": self.path, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
        notifier = Notifier(environ)
        self.assertEqual((environ, notifier.watchdog_s), ({}, 15.0))
        for tell in (lambda: notifier.ready("serving"), notifier.reloading, notifier.alive, notifier.stopping):
            tell()
        first = [self.manager.recv(200).split(b"\n")[0] for _ in range(4)]
        self.assertEqual(first, [b"READY=1", b"RELOADING=1", b"WATCHDOG=1", b"STOPPING=1"])

    def test_nobody_listens(self) -> None:
        for environ in ({}, {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}):
            notifier = Notifier(environ)
            notifier.ready("serving")
            self.assertIsNone(notifier.watchdog_s)


class SocketTests(SynchronousTestCase):
    def test_a_socket_that_was_handed_over_is_used_and_outlives_its_listener(self) -> None:
        handed = socket.create_server(("127.0.0.1", 0))
        address = Address(systemd.address_of(handed))
        self.patch(systemd, "FIRST_FD", handed.detach())
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
        found = listening_sockets(environ)
        self.addCleanup(found[address].close)
        self.assertEqual((environ, list(found)), ({}, [address]))
        sockets = Sockets(2, lambda sock: None, print, found)
        for _ in range(2):
            self.assertEqual(sockets.bind([Wanted(address, "tcp", "x")]), [])
            self.assertEqual(sockets.counts, {address: 1})
            socket.create_connection(found[address].getsockname(), 5).close()
            sockets.close()

    def test_sockets_for_another_process_are_left_alone(self) -> None:
        self.assertEqual(listening_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}), {})
