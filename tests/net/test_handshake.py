"""Both sides' handshakes on loopback sockets: what comes before TLS, what fails, and who is told."""

from __future__ import annotations

import gc
import socket
import ssl
import threading
import weakref

import pytest
from twisted.trial.unittest import TestCase

from twistedproxy.config.model import ServerTls
from twistedproxy.errors import BadHello, ServerTlsFailed, TlsFailed
from twistedproxy.net.handshake import ClientHandshake, HelloReader, ServerHandshake
from twistedproxy.net.transport import Transport
from twistedproxy.tls.contexts import Pair, server_context
from twistedproxy.tls.servers import ServerTlsUse


class Handshakes(TestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def setUp(self):
        self.made = self.authority.make("a", ("a.example", "127.0.0.1"))
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listening.close)
        self.done, self.failed = [], []

    def fail(self, error, sock=None):
        if sock is None:
            return super().fail(error)
        self.failed.append(error)
        sock.close()
        return None

    def serve(self, kind=ServerHandshake, **how):
        sock, _ = self.listening.accept()
        sock.setblocking(False)
        context = server_context(Pair(self.made.chain_pem, self.made.key_pem), ())
        handshake = kind(
            self.loop.reactor, self.loop.wheel, sock, "127.0.0.1", 1, 30.0, self.done.append, self.fail,
            **{"choose": lambda hello: context, "timeout_s": 10.0} | how,
        )  # fmt: skip
        handshake.begin()
        return handshake

    def connect(self):
        client = self.loop.keep(socket.create_connection(self.listening.getsockname()))
        client.settimeout(5)
        return client

    def in_thread(self, talk):
        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 5)

    def test_a_client_that_leaves_is_told_once(self):
        client = self.connect()
        handshake = self.serve()
        client.sendall(b"\x16\x03\x01")
        self.loop.turns()
        client.close()
        self.loop.until(lambda: self.failed)
        self.assertIsInstance(self.failed[0], TlsFailed)
        self.assertTrue(handshake.is_over)
        handshake.cancel()
        self.assertEqual((len(self.failed), self.done), (1, []))

    def test_cancel_closes_and_tells_nobody(self):
        client = self.connect()
        self.serve().cancel()
        self.assertEqual(client.recv(1), b"")
        self.loop.turns()
        self.assertEqual((self.failed, self.done), ([], []))

    def test_TL_02_half_a_hello_costs_no_cpu(self):
        """While the rest is awaited, epoll is silent."""
        client = self.connect()
        handshake = self.serve()
        looks = []
        look = ServerHandshake._look
        self.patch(ServerHandshake, "_look", lambda h: (looks.append(1), look(h)))
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(100))
        self.loop.turns(50)
        self.assertLessEqual(len(looks), 3)
        handshake.cancel()

    def test_what_choose_refuses_is_passed_on(self):
        client = self.connect()

        def refuse(hello):
            raise BadHello("no", b"\x16", alert=112)

        self.serve(choose=refuse)
        context = ssl.create_default_context()
        self.in_thread(lambda: self.assertRaises(OSError, context.wrap_socket, client, server_hostname="a.example"))
        self.loop.until(lambda: self.failed)
        self.assertEqual(self.failed[0].alert, 112)

    def test_a_bug_on_the_way_costs_one_connection_and_its_owner_is_told(self):
        """Or the listener would count it as open for ever."""
        client = self.connect()

        def crash(hello):
            raise ZeroDivisionError("made up")

        self.serve(choose=crash)
        context = ssl.create_default_context()
        self.in_thread(lambda: self.assertRaises(OSError, context.wrap_socket, client, server_hostname="a.example"))
        self.loop.until(lambda: self.failed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_one_that_is_over_is_freed_at_once(self):
        """Although it knows its owner and the owner knows it: there is one for each connection, and the collector seldom comes."""

        class Owner:
            def choose(self, hello):
                return context

        context = server_context(Pair(self.made.chain_pem, self.made.key_pem), ())
        owner, client = Owner(), self.connect()
        owner.handshake = self.serve(choose=owner.choose)
        trusting = ssl.create_default_context(cafile=str(self.authority.ca))
        self.in_thread(lambda: self.loop.keep(trusting.wrap_socket(client, server_hostname="a.example")))
        self.loop.until(lambda: self.done)
        gc.disable()
        self.addCleanup(gc.enable)
        remains = weakref.ref(owner)
        del owner
        self.assertIsNone(remains())

    def test_reading_a_hello_takes_nothing(self):
        """For passthrough: the transport is plain, and the greeting is still there for the server, to the byte."""
        client = self.connect()
        seen = []
        self.serve(HelloReader, choose=seen.append, timeout_s=3.0)
        out, context = ssl.MemoryBIO(), ssl.create_default_context()
        with self.assertRaises(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="b.example").do_handshake()
        hello = out.read()
        client.sendall(hello[:10])
        self.loop.turns()
        client.sendall(hello[10:])
        self.loop.until(lambda: self.done)
        self.assertIs(type(self.done[0]), Transport)
        self.assertEqual(seen[0].name, "b.example")
        recorder = self.fakes.Recorder()
        self.done[0].start(recorder)
        self.loop.until(lambda: bytes(recorder.received) == hello)
        self.done[0].abortConnection()

    def ask(self, serve, **spec):
        """We are the client of a server in a thread."""

        def run():
            raw, _ = self.listening.accept()
            try:
                serve(raw)
            except OSError:
                pass
            finally:
                raw.close()

        self.in_thread(run)
        sock = socket.create_connection(self.listening.getsockname())
        sock.setblocking(False)
        vault = {("ca", ""): Pair(self.authority.ca.read_bytes(), b"")}
        address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        use = ServerTlsUse(ServerTls(**{"ca": "ca"} | spec), vault)
        ClientHandshake(
            self.loop.reactor, self.loop.wheel, sock, "127.0.0.1", 1, 30.0, self.done.append, self.fail, use=use, address=address
        ).begin(3.0)
        self.loop.until(lambda: self.done or self.failed)

    def tls_server(self, raw):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.made.cert, self.made.key)
        with context.wrap_socket(raw, server_side=True) as tls:
            tls.send(b"hello")
            tls.recv(1)

    def test_a_verified_server_is_talked_to(self):
        self.ask(self.tls_server)
        recorder = self.fakes.Recorder()
        self.done[0].start(recorder)
        self.loop.until(lambda: recorder.received == b"hello")
        self.done[0].loseConnection()
        self.loop.turns()

    def test_TL_03_a_server_with_another_name_is_not(self):
        """Nothing of the request is sent, and the error says which name was found."""
        self.ask(self.tls_server, name="other.example")
        self.assertIsInstance(self.failed[0], ServerTlsFailed)
        self.assertIn("for a.example, 127.0.0.1, not for other.example", str(self.failed[0]))

    def test_TL_04_a_server_without_tls_fails_at_once(self):
        """Plain bytes where a handshake should be are an error, never data."""
        self.ask(lambda raw: (raw.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), raw.recv(1000)))
        self.assertIn("TLS handshake", str(self.failed[0]))
        self.assertTrue(self.failed[0].retryable)
