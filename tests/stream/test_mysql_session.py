"""TCP listeners with `protocol = "mysql"`: logins through TLS on either side, and how they end early."""

from __future__ import annotations

import ssl
import threading
from random import Random

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, Pool, Server, ServerTls, SiteTls, TcpListener, Timeouts
from twistedproxy.net.tls_connector import TlsConnector
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool as RunningPool
from twistedproxy.stream.mysql import NOBODY, packet, request_of
from twistedproxy.stream.mysql_session import STEPS, MysqlFront, Step
from twistedproxy.tls.contexts import Pair, server_context
from twistedproxy.tls.servers import ServerTlsUse

GREETING = b"\x0a8.0\0" + b"\x01\0\0\0" + b"12345678\0" + bytes((0xFE, 0xF7, 45, 2, 0, 0xFF, 0xDF, 21)) + bytes(10) + b"123456789012\0p\0"
OFFER = GREETING[:19] + b"\xff" + GREETING[20:]
OK = b"\0\0\0\2\0\0\0"


class Sessions(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def serve(self, ends_tls=True, begins_tls=False, servers=1, **listener):
        self.made = self.authority.make("a", ("127.0.0.1",))
        context = server_context(Pair(self.made.chain_pem, self.made.key_pem), ())
        self.servers = [self.loop.listen() for _ in range(servers)]
        members = tuple(Server(Address(f"127.0.0.1:{sock.getsockname()[1]}")) for sock in self.servers)
        spec = Pool("one", members, tls=ServerTls(ca="ca", starttls="mysql") if begins_tls else None)
        pool = RunningPool(spec, seconds=self.loop.seconds, wheel=self.loop.wheel, random=Random(1))
        if begins_tls:
            vault = {("ca", ""): Pair(self.authority.ca.read_bytes(), b"")}
            pool.tls = TlsConnector("one", ServerTlsUse(spec.tls, vault), self.loop.seconds)
        self.metrics, self.lines, self.closed = Metrics(), [], []
        tcp = TcpListener(Address("127.0.0.1:3306"), "one", protocol="mysql", tls=SiteTls("pair") if ends_tls else None, **listener)
        self.front = MysqlFront(
            tcp, pool, context=(lambda: context) if ends_tls else None, reactor=self.loop.reactor, wheel=self.loop.wheel,
            metrics=self.metrics, access_log=self, on_closed=lambda: self.closed.append(1),
        )  # fmt: skip

    def log_tcp(self, *facts):
        self.lines.append(facts)

    def client(self):
        ours, peer = self.loop.socket_pair()
        self.front.accept(ours, "127.0.0.1", 1234)
        return peer

    def served(self, index=0):
        listening = self.servers[index]
        listening.setblocking(False)
        found = []

        def accept():
            try:
                found.append(self.loop.keep(listening.accept()[0]))
            except BlockingIOError:
                return False
            return True

        self.loop.until(accept, "a connection")
        found[0].settimeout(5)
        return found[0]

    def beside(self, talk):
        """Run `talk` in a thread while the reactor turns; its result."""
        found = []

        def run():
            try:
                found.append(talk())
            except OSError as e:
                found.append(e)

        threading.Thread(target=run, daemon=True).start()
        self.loop.until(lambda: found, "the talk to end")
        if isinstance(found[0], OSError):
            raise found[0]
        return found[0]

    def read(self, peer, *payloads):
        """`peer` gets exactly these (number, payload)."""
        wanted = b"".join(packet(*each) for each in payloads)
        self.assertEqual(self.loop.read_all(peer, len(wanted)), wanted)
        peer.setblocking(True)

    def test_tls_ends_here_and_each_side_counts_its_own_way(self):
        self.serve()
        client, server = self.client(), self.served()
        server.sendall(packet(0, GREETING))
        self.read(client, (0, OFFER))
        context = ssl.create_default_context(cafile=str(self.authority.ca))

        def log_in():
            client.sendall(packet(1, request_of(NOBODY)))
            tls = context.wrap_socket(client, server_hostname="127.0.0.1")
            tls.sendall(packet(2, request_of(NOBODY) + NOBODY[32:]))
            return tls

        tls = self.beside(log_in)
        self.read(server, (1, NOBODY))
        server.sendall(packet(2, OK))
        self.assertEqual(self.beside(lambda: tls.recv(100)), packet(3, OK))
        tls.sendall(packet(0, b"\x03select 1"))
        self.read(server, (0, b"\x03select 1"))
        tls.close()
        server.close()
        self.loop.until(lambda: self.closed)
        self.assertEqual((self.front.open, len(self.lines)), (0, 1))

    def test_tls_begins_here_and_a_wrong_server_gets_nothing(self):
        """The server is asked with the client's own capabilities; with another's certificate the client is told and no login goes on."""
        for issuer, is_right in (("root", True), (None, False)):
            self.serve(ends_tls=False, begins_tls=True)
            client, server = self.client(), self.served()
            server.sendall(packet(0, OFFER))
            self.read(client, (0, GREETING))
            client.sendall(packet(1, NOBODY))
            self.read(server, (1, request_of(NOBODY)))
            made = self.authority.make("s", ("127.0.0.1",), issuer=issuer)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(made.cert, made.key)
            if is_right:
                tls = self.beside(lambda context=context, server=server: context.wrap_socket(server, server_side=True))
                self.assertEqual(self.beside(lambda tls=tls: tls.recv(200)), packet(2, request_of(NOBODY) + NOBODY[32:]))
                self.beside(lambda tls=tls: tls.sendall(packet(3, OK) + b"more"))
                self.read(client, (2, OK))
                self.assertEqual(self.loop.read_all(client, 4), b"more")
                tls.close()
            else:
                with self.assertRaises(OSError):
                    self.beside(lambda context=context, server=server: context.wrap_socket(server, server_side=True))
                self.assertIn(b"could not reach the server", self.loop.read_all(client))
                server.close()
            client.close()
            self.loop.until(lambda: self.closed)
            self.assertEqual(self.front.open, 0)

    def test_another_server_is_tried_until_one_greets(self):
        """Full, silent about TLS, or gone: the client hears of none of them, and of the last in words it understands."""
        self.serve(servers=2)
        client = self.client()
        self.served(0).sendall(packet(0, b"\xff\x10\x04#08004Too many connections"))
        self.served(1).sendall(packet(0, GREETING))
        self.read(client, (0, OFFER))
        client.close()
        self.serve(begins_tls=True, ends_tls=False)
        client = self.client()
        self.served(0).sendall(packet(0, GREETING))  # offers no TLS
        self.assertIn(b"no server for this connection", self.loop.read_all(client))
        self.assertEqual(self.metrics.rejected["connect"], 1)

    def test_nothing_is_smuggled_in(self):
        """Bytes behind the greeting, and bytes between the request for TLS and the handshake."""
        self.serve()
        client, server = self.client(), self.served()
        server.sendall(packet(0, GREETING) + b"x")
        self.assertIn(b"no server", self.loop.read_all(client))
        client, server = self.client(), self.served()
        server.sendall(packet(0, GREETING))
        self.read(client, (0, OFFER))
        client.sendall(packet(1, request_of(NOBODY)) + packet(2, NOBODY))
        self.loop.until(lambda: len(self.closed) == 2)
        self.assertEqual(self.metrics.rejected["bad_client_hello"], 1)

    def test_a_server_is_left_politely(self):
        """A client that goes away, or will not have TLS, must not count as an interrupted login, which makes servers block us."""
        for goodbye in (b"", packet(1, NOBODY)):
            self.serve()
            client, server = self.client(), self.served()
            server.sendall(packet(0, GREETING))
            self.read(client, (0, OFFER))
            if goodbye:
                client.sendall(goodbye)
                self.assertIn(b"wants TLS", self.loop.read_all(client))
            else:
                client.close()
            self.assertEqual(self.loop.read_all(server), packet(1, NOBODY))

    def test_no_client_gets_a_server_ejected_by_not_logging_in(self):
        """A server gives a stranger little time and then closes: while the client's TLS begins, and within its login."""
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        for both in (True, False):
            self.serve(begins_tls=both)
            client, server = self.client(), self.served()
            server.sendall(packet(0, OFFER))
            self.read(client, (0, OFFER))
            client.sendall(packet(1, request_of(NOBODY)))
            if both:
                server.close()
            tls = self.beside(lambda client=client: context.wrap_socket(client, server_hostname="127.0.0.1"))
            if not both:
                tls.sendall(packet(2, request_of(NOBODY) + NOBODY[32:]))
                self.read(server, (1, NOBODY))
                server.close()
            self.loop.until(lambda: self.closed)
            tls.close()
            self.assertEqual([each.failures for each in self.front.pool.servers], [0], both)

    def test_it_ends_in_time_and_when_it_is_cut(self):
        self.serve(timeouts=Timeouts(tls_handshake_s=3.0))
        client, server = self.client(), self.served()
        self.loop.travel(3.3)  # no greeting
        self.assertIn(b"no server", self.loop.read_all(client))
        client, server = self.client(), self.served()
        server.sendall(packet(0, GREETING))
        self.read(client, (0, OFFER))
        self.loop.travel(3.3)  # no request for TLS
        self.assertEqual(self.metrics.rejected["tls_timeout"], 1)
        self.assertEqual(self.front.open, 0)
        client, server = self.client(), self.served()
        server.sendall(packet(0, GREETING))
        self.read(client, (0, OFFER))
        self.front.cut()
        self.assertEqual((self.front.open, len(self.closed)), (0, 3))

    def test_every_step_can_be_left(self):
        for step in Step:
            self.assertTrue(step is Step.OVER or Step.OVER in STEPS[step], step)
