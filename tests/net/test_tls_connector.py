"""Connecting to servers with TLS: the PROXY header first, cancelling at every step, and nothing in the clear when files are missing."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest
from twisted.trial.unittest import TestCase

from twistedproxy.config.model import ServerTls, endpoint
from twistedproxy.errors import ConnectFailed, ServerTlsFailed
from twistedproxy.net.tls_connector import TlsConnector
from twistedproxy.net.tls_transport import TlsTransport
from twistedproxy.tls.contexts import Pair
from twistedproxy.tls.servers import ServerTlsUse


class Connecting(TestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def setUp(self):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listening.close)
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.done, self.failed = [], []

    def connect(self, has_files=True, preamble=b"", ask=None):
        vault = {("ca", ""): Pair(self.authority.ca.read_bytes(), b"")}
        use = ServerTlsUse(ServerTls(ca="ca"), vault) if has_files else None
        begin = TlsConnector("web", use, self.loop.reactor.seconds, ask).to(self.address, preamble, 2.0)
        return begin(self.loop.reactor, self.loop.wheel, endpoint(self.address), 3.0, self.done.append, self.failed.append)

    def test_the_proxy_header_goes_before_the_handshake(self):
        made = self.authority.make("s", ("127.0.0.1",))
        seen = []

        def serve():
            raw, _ = self.listening.accept()
            seen.append(raw.recv(8))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(made.cert, made.key)
            with context.wrap_socket(raw, server_side=True) as tls:
                seen.append(tls.recv(5))

        thread = threading.Thread(target=serve)
        thread.start()
        self.connect(preamble=b"PROXY...")
        self.loop.until(lambda: self.done or self.failed)
        self.assertEqual(self.failed, [])
        self.assertIsInstance(self.done[0], TlsTransport)
        self.done[0].start(self.fakes.Recorder())
        self.done[0].write(b"hello")
        thread.join(5)
        self.assertEqual(seen, [b"PROXY...", b"hello"])
        self.done[0].abortConnection()

    def test_without_its_files_nothing_is_sent(self):
        self.connect(has_files=False)
        self.loop.until(lambda: self.failed)
        self.assertIsInstance(self.failed[0], ServerTlsFailed)
        self.assertFalse(self.failed[0].blames_server)
        server, _ = self.listening.accept()
        with server:
            server.settimeout(5)
            with self.assertRaises(ConnectionResetError):
                server.recv(1)

    def test_cancelling_in_the_handshake_closes(self):
        attempt = self.connect()
        server = self.loop.keep(self.listening.accept()[0])
        server.settimeout(5)
        self.loop.turns()
        self.assertEqual(server.recv(1), b"\x16")
        attempt.cancel()
        self.loop.turns()
        self.assertEqual((self.done, self.failed, attempt.is_over), ([], [], True))

    def test_a_server_that_says_nothing_is_given_up(self):
        self.connect()
        self.loop.keep(self.listening.accept()[0])
        self.loop.turns()
        self.loop.travel(2.3)
        self.assertIsInstance(self.failed[0], ServerTlsFailed)

    def test_a_refused_connection_is_an_ordinary_failure(self):
        self.listening.close()
        self.connect()
        self.loop.until(lambda: self.failed)
        self.assertIs(type(self.failed[0]), ConnectFailed)

    def test_a_server_that_begins_in_the_clear_is_asked_first(self):
        """Behind the PROXY header; cancelled in the middle, it closes; unwilling, it fails with the server's name."""
        steps = []

        class Asked:
            is_over = False

            def __init__(self, transport, wheel, limit_s, on_willing, on_failed):
                steps.append(self)
                self.transport, self.on_willing, self.on_failed = transport, on_willing, on_failed
                transport.write(b"tls?")

            def cancel(self):
                self.transport.abortConnection()

        for end in ("willing", "unwilling", "cancel"):
            attempt = self.connect(preamble=b"PROXY...", ask=Asked)
            self.loop.until(lambda: steps)
            asked = steps.pop()
            server = self.loop.keep(self.listening.accept()[0])
            self.assertEqual(self.loop.read_all(server, 12), b"PROXY...tls?")
            if end == "willing":
                asked.on_willing(asked.transport)
                self.assertEqual(self.loop.read_all(server, 1)[:1], b"\x16")
                attempt.cancel()
            elif end == "unwilling":
                asked.cancel()
                asked.on_failed(ConnectFailed("the server says N"))
                self.assertEqual(str(self.failed.pop().detail), f"{self.address}: the server says N")
            else:
                attempt.cancel()
            self.loop.turns()
            self.assertEqual((self.done, self.failed, attempt.is_over), ([], [], True))
