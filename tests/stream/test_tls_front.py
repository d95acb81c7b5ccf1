"""TCP listeners with `tls` and `sni`: who is led where, and what becomes of those who are not TLS clients."""

from __future__ import annotations

import ssl
import threading
from random import Random

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, Pool, Server, SiteTls, TcpListener, Timeouts
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool as RunningPool
from twistedproxy.stream.postgres import SSL_REQUEST
from twistedproxy.stream.tls_front import SniPools, TlsStreamFront
from twistedproxy.tls.contexts import Pair, server_context

HERE = "127.0.0.1:6432"


def greeting(name):
    """What a client of `name` says first."""
    out, context = ssl.MemoryBIO(), ssl.create_default_context()
    context.check_hostname = False
    try:
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


class TlsFronts(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def serve(self, sni=(), context=None, send_proxy=0, **listener):
        self.servers = {name: self.loop.listen() for name in ("one", "two")}
        pools = {
            name: RunningPool(
                Pool(name, (Server(Address(f"127.0.0.1:{sock.getsockname()[1]}")),), send_proxy=send_proxy),
                seconds=self.loop.seconds, wheel=self.loop.wheel, random=Random(1),
            )
            for name, sock in self.servers.items()
        }  # fmt: skip
        self.metrics, self.lines, self.closed = Metrics(), [], []
        spec = TcpListener(Address(HERE), "" if sni else "one", sni=sni, tls=None if sni else SiteTls("pair"), **listener)
        self.front = TlsStreamFront(
            spec, pools, context=context, reactor=self.loop.reactor, wheel=self.loop.wheel, metrics=self.metrics,
            access_log=self, on_closed=lambda: self.closed.append(1),
        )  # fmt: skip

    def log_tcp(self, *facts):
        self.lines.append(facts)

    def client(self, ip="127.0.0.1"):
        ours, peer = self.loop.socket_pair()
        self.front.accept(ours, ip, 1234)
        return peer

    def served(self, name):
        server = self.servers[name]
        server.setblocking(False)
        found = []

        def accept():
            try:
                found.append(self.loop.keep(server.accept()[0]))
            except BlockingIOError:
                return False
            return True

        self.loop.until(accept, f"a connection to {name}")
        return found[0]

    def test_names_lead_to_pools_and_tls_goes_on_untouched(self):
        self.serve((("a.example", "one"), ("*.b.example", "two")))
        for name, pool in (("A.example", "one"), ("x.y.b.example", "two")):
            hello = greeting(name)
            client = self.client()
            client.sendall(hello[:50])
            self.loop.turns(3)
            client.sendall(hello[50:])
            server = self.served(pool)
            self.assertEqual(self.loop.read_all(server, len(hello)), hello)
            client.close()
            server.close()
        self.loop.until(lambda: self.front.open == 0)
        self.assertEqual([line[2] for line in self.lines], ["one", "two"])

    def test_unknown_names_get_an_alert(self):
        """unrecognized_name (112), and a line in the log; the other way is a "*"."""
        self.serve((("a.example", "one"),))
        client = self.client()
        client.sendall(greeting("nobody.example"))
        self.assertEqual(self.loop.read_all(client, 7), b"\x15\x03\x03\x00\x02\x02\x70")
        self.loop.until(lambda: self.closed)
        self.assertEqual((self.front.open, len(self.lines)), (0, 1))
        pools = SniPools((("*", "p"), ("a", "q")), {"p": 1, "q": 2})
        self.assertEqual([pools.find(name) for name in ("", "a", "b.c")], [1, 2, 1])

    def test_a_proxy_header_for_the_server_tells_the_name(self):
        self.serve((("a.example", "one"),), send_proxy=2)
        client = self.client()
        client.sendall(greeting("a.example"))
        self.assertIn(b"\x02\x00\x09a.example", self.loop.read_all(self.served("one"), 60))

    def test_postgres_is_asked_for_tls_as_its_client_asked(self):
        self.serve((("a.example", "one"),))
        client = self.client()
        client.sendall(SSL_REQUEST)
        self.assertEqual(self.loop.read_all(client, 1), b"S")
        hello = greeting("a.example")
        client.sendall(hello)
        server = self.served("one")
        self.assertEqual(self.loop.read_all(server, 8), SSL_REQUEST)
        server.setblocking(True)
        server.sendall(b"S")
        self.assertEqual(self.loop.read_all(server, len(hello)), hello)

    def test_silence_is_cut_at_preread_and_a_hello_in_the_middle_of_a_drain_is_not(self):
        self.serve((("a.example", "one"),), timeouts=Timeouts(preread_s=3.0))
        self.client().sendall(b"\x16\x03")
        self.loop.travel(3.3)
        self.assertEqual(self.front.open, 0)
        self.assertEqual(self.metrics.rejected["tls_timeout"], 1)
        hello = greeting("a.example")
        client = self.client()
        client.sendall(hello[:20])
        self.loop.turns(3)
        self.front.drain()
        client.sendall(hello[20:])
        self.assertEqual(self.loop.read_all(self.served("one"), len(hello)), hello)

    def test_who_is_kept_out_is_kept_out_before_tls(self):
        self.serve((("a.example", "one"),), deny=("203.0.113.0/24",), accept_proxy=("10.0.0.0/8",))
        self.client("203.0.113.9")
        self.assertEqual(self.metrics.rejected["denied"], 1)
        client = self.client("10.0.0.1")
        client.sendall(b"PROXY TCP4 203.0.113.9 10.0.0.1 5 443\r\n" + greeting("a.example"))
        self.loop.until(lambda: len(self.closed) == 2)
        self.assertEqual(self.metrics.rejected["denied"], 2)
        client = self.client("10.0.0.1")
        hello = greeting("a.example")
        client.sendall(b"PROXY TCP4 192.0.2.9 10.0.0.1 5 443\r\n" + hello)
        server = self.served("one")
        self.assertEqual(self.loop.read_all(server, len(hello)), hello)
        client.close()
        server.close()
        self.loop.until(lambda: self.front.open == 0)
        self.assertEqual(self.lines[-1][0], "192.0.2.9")

    def test_tls_ends_here(self):
        made = self.authority.make("a", ("a.example",))
        context = server_context(Pair(made.chain_pem, made.key_pem), ())
        self.serve(context=lambda: context)
        client = self.client()
        got = []

        def talk():
            tls = ssl.create_default_context(cafile=str(self.authority.ca)).wrap_socket(client, server_hostname="a.example")
            tls.sendall(b"question")
            got.append(tls.recv(100))
            tls.unwrap()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        server = self.served("one")
        self.assertEqual(self.loop.read_all(server, 8), b"question")
        server.setblocking(True)
        server.sendall(b"answer")
        self.assertEqual(self.loop.read_all(server), b"")  # the client's close_notify has become FIN
        server.close()
        self.loop.until(lambda: self.front.open == 0)
        thread.join(5)
        self.assertEqual(got, [b"answer"])

    def test_without_a_certificate_nobody_gets_in_in_the_clear(self):
        self.serve(context=lambda: None)
        client = self.client()
        client.sendall(greeting("a.example"))
        self.assertEqual(self.loop.read_all(client, 7)[:2], b"\x15\x03")
        client = self.client()
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        self.loop.until(lambda: len(self.closed) == 2)
        self.assertEqual(self.front.open, 0)
