"""Connecting: in time, with the true reason, and nobody blamed for what was our own."""

import errno
import os
import socket
from unittest import mock

from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Endpoint, endpoint
from twistedproxy.errors import ConnectFailed, ConnectTimeout
from twistedproxy.net.connector import Attempt, connect
from twistedproxy.net.transport import Transport


class Connecting(SynchronousTestCase):
    def connect(self, where, timeout_s=3.0, loop=None):
        loop = loop or self.loop
        self.connected, self.failed = [], []
        attempt = connect(loop.reactor, loop.wheel, where, timeout_s, self.connected.append, self.failed.append)
        self.assertEqual((self.connected, self.failed), ([], []), "called back from inside connect()")
        return attempt

    def outcome(self, loop=None):
        (loop or self.loop).until(lambda: self.connected or self.failed)
        return (self.connected or self.failed)[0]

    def of(self, sock):
        return endpoint(f"127.0.0.1:{sock.getsockname()[1]}")

    def test_a_tcp_server_is_reached(self):
        for reactor_class in (None, EPollReactor):
            loop = self.loop if reactor_class is None else self.fakes.Loop(reactor_class)
            if reactor_class:
                self.addCleanup(loop.close)
            listening = loop.listen()
            self.connect(self.of(listening), loop=loop)
            transport = self.outcome(loop)
            self.assertIsInstance(transport, Transport)
            peer = loop.keep(listening.accept()[0])
            recorder = self.fakes.Recorder()
            transport.start(recorder)
            peer.sendall(b"hello")
            loop.until(lambda r=recorder: r.received == b"hello")
            self.assertEqual((transport.peer, transport.peer_port), listening.getsockname())
            self.assertTrue(transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_ipv6_and_unix_servers_are_reached(self):
        listening = self.loop.listen(socket.AF_INET6)
        self.connect(endpoint(f"[::1]:{listening.getsockname()[1]}"))
        self.assertEqual(self.outcome().peer, "::1")
        path = os.path.abspath(self.mktemp())
        unix = self.loop.keep(socket.socket(socket.AF_UNIX))
        unix.bind(path)
        unix.listen()
        self.connect(endpoint(f"unix:{path}"))
        self.assertEqual(self.outcome().peer, "")

    def test_BF_04_a_refused_connection_names_the_server_and_the_reason(self):
        for reactor_class in (None, EPollReactor):
            loop = self.loop if reactor_class is None else self.fakes.Loop(reactor_class)
            if reactor_class:
                self.addCleanup(loop.close)
            listening = loop.listen()
            where = self.of(listening)
            listening.close()
            self.connect(where, loop=loop)
            error = self.outcome(loop)
            self.assertIs(type(error), ConnectFailed)
            self.assertTrue(error.blames_server and error.retryable)
            self.assertEqual(error.detail, f"{where}: connection refused")

    def test_BF_04_a_missing_unix_socket(self):
        path = os.path.abspath(self.mktemp())
        self.connect(endpoint(f"unix:{path}"))
        self.assertEqual(self.outcome().detail, f"unix:{path}: no such file or directory")
        self.assertTrue(self.failed[0].blames_server)

    def full(self):
        """A server whose queue is full: Linux drops further SYNs."""
        listening = self.loop.listen(backlog=0)
        for _ in range(3):
            filler = self.loop.keep(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        self.loop.turns()
        return listening

    def test_P8_a_silent_server_is_given_up_at_the_limit(self):
        self.connect(self.of(self.full()), timeout_s=3.0)
        self.loop.travel(2.9)
        self.assertEqual(self.failed, [])
        self.loop.travel(0.3)
        self.assertIsInstance(self.failed[0], ConnectTimeout)
        self.assertIn("within 3 s", self.failed[0].detail)

    def test_cancelled_it_says_nothing_and_closes(self):
        for where in (self.of(self.full()), self.of(self.loop.listen()), Endpoint(socket.AF_UNSPEC, "name", 1)):
            before = len(os.listdir("/proc/self/fd"))
            attempt = self.connect(where)
            attempt.cancel()
            attempt.cancel()
            self.assertTrue(attempt.is_over)
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)
            self.loop.travel(5, 0.5)
            self.assertEqual((self.connected, self.failed), ([], []))

    def test_BF_04_our_own_exhaustion_does_not_blame_the_server(self):
        for code in (errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.EMFILE, errno.EAGAIN):
            with mock.patch("socket.socket.connect_ex", return_value=code):
                self.connect(endpoint("127.0.0.1:1"))
                self.assertFalse(self.outcome().blames_server, errno.errorcode[code])
        with mock.patch("twistedproxy.net.connector.socket.socket", side_effect=OSError(errno.EMFILE, "x")):
            self.connect(endpoint("127.0.0.1:1"))
            self.assertFalse(self.outcome().blames_server)
        with mock.patch("socket.socket.connect_ex", return_value=errno.EHOSTUNREACH):
            self.connect(endpoint("127.0.0.1:1"))
            self.assertTrue(self.outcome().blames_server)

    def test_BF_04_a_full_unix_backlog_is_not_the_servers_death(self):
        path = os.path.abspath(self.mktemp())
        unix = self.loop.keep(socket.socket(socket.AF_UNIX))
        unix.bind(path)
        unix.listen(0)
        for _ in range(2):
            filler = self.loop.keep(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            filler.connect_ex(path)
        self.connect(endpoint(f"unix:{path}"))
        error = self.outcome()
        self.assertFalse(error.blames_server)
        self.assertIn("queue of waiting connections is full", error.detail)

    def test_a_name_without_an_address_fails_at_once(self):
        self.connect(endpoint("backend.example:80"))
        self.assertIn("no known address", self.outcome().detail)

    def test_a_connection_to_itself_is_a_refused_one(self):
        """A port nobody listens on may be given to our own side; TCP then connects the socket with itself."""
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        real = socket.socket.connect_ex

        def from_the_same_port(sock, address):
            sock.bind(address)
            return real(sock, address)

        with mock.patch("socket.socket.connect_ex", from_the_same_port):
            self.connect(endpoint(f"127.0.0.1:{port}"))
        error = self.outcome()
        self.assertIsInstance(error, ConnectFailed)
        self.assertIn("connection refused", error.detail)

    def test_an_event_meant_for_a_former_owner_of_the_descriptor_is_no_success(self):
        attempt = self.connect(self.of(self.full()))
        attempt.doWrite()
        attempt.hung_up(0)
        self.assertEqual((self.connected, self.failed), ([], []))
        self.assertFalse(attempt.is_over)
        self.assertIn("connecting", repr(attempt))

    def test_it_carries_no_dictionary(self):
        self.assertFalse(hasattr(Attempt(None, None, endpoint("127.0.0.1:1"), 1, None, None, 1), "__dict__"))
