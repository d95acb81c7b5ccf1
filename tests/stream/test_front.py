"""Who may come in through a TCP listener, and as whom."""

import socket
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, Pool, Server, TcpListener
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool as RunningPool
from twistedproxy.stream.front import StreamFront

HERE = "127.0.0.1:6432"


class Front(SynchronousTestCase):
    def serve(self, log=True, **listener):
        self.server = self.loop.listen()
        spec = Pool("pg", (Server(Address(f"127.0.0.1:{self.server.getsockname()[1]}")),))
        pool = RunningPool(spec, seconds=self.loop.seconds, wheel=self.loop.wheel, random=Random(1))
        self.metrics, self.lines, self.closed = Metrics(), [], []
        self.log_tcp = lambda *facts: self.lines.append(facts)
        self.front = StreamFront(
            TcpListener(Address(HERE), "pg", **listener),
            pool,
            reactor=self.loop.reactor,
            wheel=self.loop.wheel,
            metrics=self.metrics,
            access_log=self if log else None,
            on_closed=lambda: self.closed.append(1),
        )

    def client(self, ip="127.0.0.1"):
        ours, peer = self.loop.socket_pair()
        self.front.accept(ours, ip, 1234)
        return peer

    def served(self):
        self.loop.turns(5)
        self.server.setblocking(False)
        try:
            return self.loop.keep(self.server.accept()[0])
        except BlockingIOError:
            return None

    def is_closed(self, client):
        try:
            return self.loop.read_all(client) == b""
        except ConnectionResetError:
            return True

    def causes(self):
        return [(facts[0], facts[7].value, facts[8].value) for facts in self.lines]


class Admission(Front):
    def test_everybody_may_come_in_by_default(self):
        self.serve()
        self.client("203.0.113.9")
        self.assertIsNotNone(self.served())

    def test_deny_wins_over_allow_and_the_rest_is_kept_out(self):
        self.serve(allow=("10.0.0.0/8",), deny=("10.6.6.0/24",))
        for ip, is_in in (("10.1.1.1", True), ("10.6.6.6", False), ("192.0.2.1", False), ("::ffff:10.1.1.1", True), ("", False)):
            client = self.client(ip)
            self.assertEqual(self.served() is not None, is_in, ip)
            if not is_in:
                self.assertTrue(self.is_closed(client))
        self.assertEqual(self.metrics.rejected, {"denied": 3})
        self.assertEqual(self.causes(), [(ip, "client", "accept") for ip in ("10.6.6.6", "192.0.2.1", "")])
        self.assertEqual((self.front.open, len(self.closed)), (2, 3))
        self.assertEqual(self.metrics.listener(HERE).open, 2)

    def test_without_a_log_it_works_as_well(self):
        self.serve(log=False, deny=("127.0.0.0/8",))
        self.assertTrue(self.is_closed(self.client()))


class Announced(Front):
    def test_ID_02_the_header_of_a_trusted_proxy_names_the_client(self):
        self.serve(accept_proxy=("127.0.0.1",), deny=("192.0.2.66",))
        proxy = self.client()
        proxy.sendall(b"PROXY TCP4 192.0.2.1 198.51.100.1 5555 5432\r\nhello")
        self.loop.until(lambda: self.front._sessions)
        server = self.served()
        self.assertEqual(self.loop.read_all(server, 5), b"hello")
        proxy.close()
        server.close()
        self.loop.until(lambda: not self.front.open)
        self.assertEqual(self.lines[0][0], "192.0.2.1")

    def test_ID_02_deny_means_the_client_and_not_the_proxy(self):
        self.serve(accept_proxy=("127.0.0.1",), deny=("192.0.2.66",))
        proxy = self.client()
        proxy.sendall(b"PROXY TCP4 192.0.2.66 198.51.100.1 5555 5432\r\n")
        self.assertTrue(self.is_closed(proxy))
        self.assertEqual(self.causes(), [("192.0.2.66", "client", "accept")])
        self.assertEqual(len(self.closed), 1)

    def test_ID_02_local_means_the_proxys_own_connection(self):
        self.serve(accept_proxy=("127.0.0.1",))
        proxy = self.client()
        proxy.sendall(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")
        self.assertIsNotNone(self.served())
        self.assertEqual(next(iter(self.front._sessions)).ip, "127.0.0.1")

    def test_ID_02_from_others_it_is_payload(self):
        self.serve(accept_proxy=("10.0.0.0/8",))
        stranger = self.client()
        line = b"PROXY TCP4 192.0.2.1 198.51.100.1 5555 5432\r\n"
        stranger.sendall(line)
        self.assertEqual(self.loop.read_all(self.served(), len(line)), line)

    def test_ID_02_without_a_good_header_in_time_nobody_gets_in(self):
        self.serve(accept_proxy=("127.0.0.1",))
        late, broken = self.client(), self.client()
        broken.sendall(b"SELECT 1")
        self.assertTrue(self.is_closed(broken))
        self.assertEqual(self.front.open, 1)
        self.loop.travel(3.3)
        self.assertTrue(self.is_closed(late))
        self.assertIsNone(self.served())
        self.assertEqual(self.metrics.rejected, {"bad_proxy_header": 2})
        self.assertEqual((self.front.open, len(self.closed)), (0, 2))

    def test_a_second_header_is_payload(self):
        self.serve(accept_proxy=("127.0.0.1",))
        line = b"PROXY TCP4 192.0.2.1 198.51.100.1 5555 5432\r\n"
        self.client().sendall(line * 2)
        self.loop.until(lambda: self.front._sessions)
        self.assertEqual(self.loop.read_all(self.served(), len(line)), line)

    def test_a_request_and_its_fin_behind_the_header_get_their_answer(self):
        self.serve(accept_proxy=("127.0.0.1",))
        proxy = self.client()
        proxy.sendall(b"PROXY UNKNOWN\r\nrequest")
        proxy.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: self.front._sessions)
        server = self.served()
        self.assertEqual(self.loop.read_all(server), b"request")
        server.sendall(b"answer")
        server.close()
        self.assertEqual(self.loop.read_all(proxy), b"answer")

    def test_UP_who_has_come_before_a_drain_becomes_a_session_and_a_cut_waits_for_nobody(self):
        self.serve(accept_proxy=("127.0.0.1",))
        proxy = self.client()
        self.front.drain()
        proxy.sendall(b"PROXY UNKNOWN\r\nrequest")
        self.assertEqual(self.loop.read_all(self.served(), 7), b"request")
        self.serve(accept_proxy=("127.0.0.1",))
        proxy = self.client()
        self.front.cut()
        self.assertTrue(self.is_closed(proxy))
        self.assertEqual(self.front.open, 0)
