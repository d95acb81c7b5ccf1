"""The life of one TCP connection: server found, bytes joined, and at every stage a client or server that goes away."""

import gc
import select
import socket
import weakref
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import errors
from twistedproxy.config.model import Address, Pool, Queue, Retry, Server, TcpListener, Timeouts
from twistedproxy.net.proxy_protocol import encode, parse
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool as RunningPool
from twistedproxy.stream.front import StreamFront
from twistedproxy.stream.session import TRANSITIONS, State


class Log:
    """Writes down what the access log is told."""

    def __init__(self):
        self.lines = []

    def log_tcp(self, ip, listener, pool, server, bytes_in, bytes_out, duration, cause, phase, session_id):
        assert isinstance(session_id, bytes)
        assert duration >= 0
        self.lines.append((ip, server, bytes_in, bytes_out, cause.value, phase.value if phase else None))


class Stream(SynchronousTestCase):
    def serve(self, servers=1, timeouts=None, listener=None, **pool):
        self.servers = [self.loop.listen() for _ in range(servers)] if isinstance(servers, int) else servers
        self.addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in self.servers]
        specs = tuple(Server(Address(a), max_connections=pool.get("max_connections")) for a in self.addresses)
        pool.pop("max_connections", None)
        self.pool = RunningPool(Pool("pg", specs, **pool), seconds=self.loop.seconds, wheel=self.loop.wheel, random=Random(1))
        self.metrics, self.log, self.closed = Metrics(), Log(), []
        self.front = StreamFront(
            TcpListener(Address("127.0.0.1:6432"), "pg", timeouts=timeouts or Timeouts(), **(listener or {})),
            self.pool,
            reactor=self.loop.reactor,
            wheel=self.loop.wheel,
            metrics=self.metrics,
            access_log=self.log,
            on_closed=lambda: self.closed.append(1),
        )

    def client(self, ip=None, port=None):
        """A client the listener has just accepted; returns its end."""
        ours, peer = self.loop.socket_pair()
        self.local = ours.getsockname()
        self.front.accept(ours, ip or peer.getsockname()[0], port or peer.getsockname()[1])
        return peer

    def server_end(self, n=0):
        self.loop.turns(5)
        self.servers[n].settimeout(5)
        return self.loop.keep(self.servers[n].accept()[0])

    def assert_over(self, sessions=0):
        """Nothing is left of it: no session, no lease, no retry, no slot."""
        self.loop.until(lambda: self.front.open == sessions)
        counts = self.metrics.listener("127.0.0.1:6432")
        self.assertEqual(counts.open, sessions)
        self.assertEqual(sum(s.active for s in self.pool.servers), sessions)
        self.assertEqual([s.sessions for s in self.pool.servers if not s.active and s.sessions], [])
        self.assertEqual(self.pool.waiting, 0)
        self.assertEqual(len(self.closed), counts.total - sessions)


class Through(Stream):
    def test_a_session_from_beginning_to_end(self):
        self.serve()
        client = self.client()
        server = self.server_end()
        client.sendall(b"startup")
        self.assertEqual(self.loop.read_all(server, 7), b"startup")
        server.sendall(b"welcome!")
        self.assertEqual(self.loop.read_all(client, 8), b"welcome!")
        client.close()
        self.assertEqual(self.loop.read_all(server), b"")
        server.close()
        self.assert_over()
        self.assertEqual(self.log.lines, [("127.0.0.1", self.addresses[0], 7, 8, "ok", None)])
        counts = self.metrics.listener("127.0.0.1:6432")
        self.assertEqual((counts.total, counts.bytes_in, counts.bytes_out), (1, 7, 8))
        self.assertEqual(self.metrics.tcp_sessions, {("127.0.0.1:6432", "pg", self.addresses[0]): 1})
        self.assertEqual(self.pool.servers[0].failures, 0)

    def test_L4_04_a_server_that_speaks_first_is_heard_before_any_client_byte(self):
        self.serve()
        client = self.client()
        self.server_end().sendall(b"220 ready")
        self.assertEqual(self.loop.read_all(client, 9), b"220 ready")

    def test_L4_04_what_the_client_sent_early_reaches_the_server(self):
        self.serve()
        ours, peer = self.loop.socket_pair()
        peer.sendall(b"early")
        self.loop.turns()
        self.front.accept(ours, "127.0.0.1", 1)
        self.assertEqual(self.loop.read_all(self.server_end(), 5), b"early")

    def test_L4_04_a_client_that_only_looks_in(self):
        self.serve()
        client = self.client()
        server = self.server_end()
        client.close()
        self.assertEqual(self.loop.read_all(server), b"")
        server.close()
        self.assert_over()

    def test_L4_01_request_and_fin_together_get_their_answer(self):
        self.serve()
        client = self.client()
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        server = self.server_end()
        self.assertEqual(self.loop.read_all(server), b"request")
        server.sendall(b"answer")
        server.close()
        self.assertEqual(self.loop.read_all(client), b"answer")
        self.assert_over()
        self.assertEqual(self.log.lines[0][4], "ok")

    def test_L4_03_a_server_that_breaks_is_logged_and_counted_against_it(self):
        self.serve()
        client = self.client()
        self.loop.reset(self.server_end())
        self.assertTrue(self.loop.is_reset(client))
        self.assert_over()
        self.assertEqual(self.log.lines[0][4:], ("server", "tunnel"))
        self.assertEqual(self.pool.servers[0].failures, 1)

    def test_L4_03_a_client_that_breaks_is_not_the_servers_fault(self):
        self.serve()
        client = self.client()
        server = self.server_end()
        self.loop.reset(client)
        self.assertTrue(self.loop.is_reset(server))
        self.assert_over()
        self.assertEqual(self.log.lines[0][4:], ("client", "tunnel"))
        self.assertEqual(self.pool.servers[0].failures, 0)

    def test_L4_07_silence_ends_it_at_tcp_idle(self):
        self.serve(timeouts=Timeouts(tcp_idle_s=100.0))
        client = self.client()
        self.server_end()
        self.loop.travel(98, 1.0)
        self.assertEqual(self.front.open, 1)
        self.loop.travel(8, 1.0)
        self.assertTrue(self.loop.is_reset(client))
        self.assert_over()
        self.assertEqual(self.log.lines[0][4:], ("timeout", "tunnel"))

    def test_bytes_of_a_long_session_are_counted_before_it_ends(self):
        self.serve()
        client = self.client()
        server = self.server_end()
        client.sendall(b"12345")
        self.loop.read_all(server, 5)
        self.loop.travel(6, 0.5)
        self.assertEqual(self.metrics.listener("127.0.0.1:6432").bytes_in, 5)

    def test_nothing_of_a_session_waits_for_the_garbage_collector(self):
        self.serve()
        client = self.client()
        server = self.server_end()
        session = weakref.ref(next(iter(self.front._sessions)))
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        client.close()
        server.close()
        self.assert_over()
        self.loop.travel(6, 0.5)  # the wheel lets go of what has no deadline at its next look
        self.assertIsNone(session())


class Elsewhere(Stream):
    """A server cannot be reached: nothing was sent, so another one is as good."""

    def serve_with_dead(self, dead=1, alive=1, **pool):
        sockets = [self.loop.listen() for _ in range(dead + alive)]
        self.serve(sockets, **pool)
        for sock in sockets[:dead]:
            sock.close()

    def connected(self):
        """Clients until one met a dead server first."""
        while not self.metrics.retries:
            client = self.client()
            self.loop.turns(5)
        return client

    def test_P6_the_next_server_is_tried_and_the_client_notices_nothing(self):
        self.serve_with_dead()
        client = self.connected()
        servers = []
        self.servers[1].setblocking(False)

        def accept_all():
            try:
                while True:
                    servers.append(self.loop.keep(self.servers[1].accept()[0]))
            except BlockingIOError:
                return bool(servers)

        self.loop.until(accept_all)
        client.sendall(b"hello")
        self.loop.turns()
        self.assertEqual(servers[-1].recv(10), b"hello")
        self.assertEqual(self.metrics.retries, {("pg", "connect"): 1})
        dead = self.pool.servers[0]
        self.assertEqual((dead.failures, dead.active), (1, 0))

    def test_P6_it_ends_when_the_tries_are_used_up(self):
        self.serve_with_dead(dead=5, alive=0, retry=Retry(tries=2))
        client = self.client()
        self.assertEqual(self.loop.read_all(client), b"")
        self.assert_over()
        self.assertEqual(sum(s.failures for s in self.pool.servers), 3)
        self.assertEqual(self.metrics.retries, {("pg", "connect"): 2})
        self.assertEqual(self.log.lines[0][4:], ("server", "connect"))
        self.assertEqual(self.metrics.rejected, {"connect": 1})

    def test_when_every_server_was_tried_the_reason_is_the_last_ones_and_not_that_none_is_left(self):
        self.serve_with_dead(dead=1, alive=0)
        self.client()
        self.assert_over()
        self.assertEqual(self.log.lines[0][4:], ("server", "connect"))

    def test_without_connect_in_retry_there_is_one_try(self):
        self.serve_with_dead(dead=3, alive=0, retry=Retry(tries=2, on=("reused",)))
        self.client()
        self.assert_over()
        self.assertEqual(sum(s.failures for s in self.pool.servers), 1)
        self.assertEqual(self.metrics.retries, {})

    def test_P8_a_black_hole_costs_connect_s_and_no_more(self):
        silent = self.loop.listen(backlog=0)
        for _ in range(3):
            filler = self.loop.keep(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        self.serve([silent])
        client = self.client()
        self.loop.travel(2.8)
        self.assertEqual(self.front.open, 1)
        self.loop.travel(0.5)
        self.assertEqual(self.loop.read_all(client), b"")
        self.assert_over()
        self.assertEqual(self.log.lines[0][4:], ("timeout", "connect"))

    def test_no_server_at_all_closes_the_client_and_says_why(self):
        self.serve(0)
        client = self.client()
        self.assertEqual(self.loop.read_all(client), b"")
        self.assert_over()
        self.assertEqual(self.log.lines, [("127.0.0.1", "", 0, 0, "server", "queue")])
        self.assertEqual(self.metrics.rejected, {"no_server": 1})

    def test_a_host_name_without_an_address_yet_is_a_server_that_cannot_be_reached(self):
        self.serve()
        self.client()
        self.pool.servers[0].endpoints = ()
        self.client()
        self.assert_over(sessions=1)
        self.assertEqual(self.log.lines[0][4:], ("server", "connect"))


class GoneEarly(Stream):
    """The client went away while we were queued or connecting."""

    def queued(self):
        self.serve(max_connections=1, queue=Queue(size=10, timeout_s=5.0))
        first = self.client()
        self.server_end()
        second = self.client()
        self.loop.turns()
        self.assertEqual(self.pool.waiting, 1)
        return first, second

    def connecting(self):
        silent = self.loop.listen(backlog=0)
        for _ in range(3):
            filler = self.loop.keep(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        self.serve([silent])
        client = self.client()
        self.loop.turns()
        return client

    def test_BF_09_the_client_went_away_while_we_were_queued(self):
        _, second = self.queued()
        second.close()
        self.loop.until(lambda: self.front._sessions)
        self.loop.travel(0.5)
        self.assertEqual((self.pool.waiting, self.front.open), (0, 1))
        self.assertEqual(self.log.lines[0][4:], ("client", "queue"))

    def test_BF_09_the_client_reset_while_we_were_queued(self):
        _, second = self.queued()
        self.loop.reset(second)
        self.loop.until(lambda: self.pool.waiting == 0, limit=1)
        self.assertEqual(self.log.lines[0][4:], ("client", "queue"))
        self.assert_over(sessions=1)

    def test_BF_09_the_client_went_away_while_we_were_connecting(self):
        client = self.connecting()
        client.close()
        self.loop.turns()
        self.loop.travel(0.5)
        self.assert_over()
        self.assertEqual(self.log.lines[0][4:], ("client", "connect"))
        self.assertEqual(self.pool.servers[0].failures, 0)

    def test_BF_09_the_client_reset_while_we_were_connecting(self):
        client = self.connecting()
        self.loop.reset(client)
        self.loop.until(lambda: not self.front.open, limit=1)
        self.assert_over()

    def test_a_client_that_only_waits_is_not_given_up_for_an_event_that_was_none_of_its(self):
        self.queued()
        (session,) = (s for s in self.front._sessions if s.state is State.WAITING)
        session._client.hung_up(select.EPOLLRDHUP)
        self.loop.travel(1.0)
        self.assertEqual(self.pool.waiting, 1)

    def test_BF_09_the_client_reset_while_we_were_queued_with_its_request_unread(self):
        _, second = self.queued()
        second.sendall(b"request")
        self.loop.turns()
        self.loop.reset(second)
        self.loop.until(lambda: self.pool.waiting == 0, limit=1)
        self.assertEqual(self.log.lines[0][4:], ("client", "queue"))
        self.assert_over(sessions=1)

    def test_a_request_with_its_fin_is_no_client_that_went_away(self):
        first, second = self.queued()
        second.sendall(b"request")
        second.shutdown(socket.SHUT_WR)
        self.loop.turns()
        self.loop.travel(1.0)
        self.assertEqual(self.pool.waiting, 1)
        self.loop.reset(first)
        server = self.server_end()
        self.assertEqual(self.loop.read_all(server), b"request")

    def test_a_silent_client_with_its_fin_still_gets_what_a_near_server_says_first(self):
        """``nc -N`` with nothing to say, reading a banner: the server is found well within the grace."""
        self.serve()
        ours, peer = self.loop.socket_pair()
        peer.shutdown(socket.SHUT_WR)
        self.loop.turns()
        self.front.accept(ours, "127.0.0.1", 1)
        server = self.server_end()
        server.sendall(b"banner")
        server.close()
        self.assertEqual(self.loop.read_all(peer), b"banner")
        self.assert_over()

    def test_a_place_in_the_queue_that_comes_too_late_is_not_taken(self):
        first, second = self.queued()
        self.loop.reset(second)
        self.loop.until(lambda: self.pool.waiting == 0)
        first.close()
        self.pool.servers[0].cut(errors.Drained())
        self.assert_over()
        self.servers[0].setblocking(False)
        self.assertRaises(BlockingIOError, self.servers[0].accept)


class Queueing(Stream):
    def test_a_full_server_makes_the_next_client_wait_its_turn(self):
        self.serve(max_connections=1)
        first = self.client()
        server = self.server_end()
        second = self.client()
        second.sendall(b"me too")
        self.loop.turns()
        self.assertEqual(self.pool.waiting, 1)
        first.close()
        server.close()
        other = self.server_end()
        self.assertEqual(self.loop.read_all(other, 6), b"me too")

    def test_the_queue_has_a_time_limit(self):
        self.serve(max_connections=1)
        self.client()
        self.server_end()
        second = self.client()
        self.loop.travel(1.8)
        self.assertEqual(self.pool.waiting, 1)
        self.loop.travel(0.4)
        self.assertEqual(self.loop.read_all(second), b"")
        self.assert_over(sessions=1)
        self.assertEqual(self.log.lines[0][4:], ("timeout", "queue"))
        self.assertEqual(self.metrics.rejected, {"queue_timeout": 1})


class Cut(Stream):
    def test_L4_06_sessions_of_a_server_that_is_removed_end_at_once(self):
        self.serve()
        clients = [self.client() for _ in range(5)]
        self.loop.turns()
        self.pool.servers[0].cut(errors.Drained("removed"))
        for client in clients:
            self.assertTrue(self.loop.is_reset(client))
        self.assert_over()
        self.assertEqual({line[4:] for line in self.log.lines}, {("proxy", "tunnel")})
        self.assertEqual(self.pool.servers[0].failures, 0)

    def test_also_one_that_is_still_connecting(self):
        silent = self.loop.listen(backlog=0)
        for _ in range(3):
            filler = self.loop.keep(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        self.serve([silent])
        self.client()
        self.loop.turns()
        self.pool.servers[0].cut(errors.Drained("removed"))
        self.assert_over()

    def test_L4_06_draining_leaves_sessions_alone_and_cutting_ends_them(self):
        self.serve()
        client = self.client()
        server = self.server_end()
        self.front.drain()
        client.sendall(b"x")
        self.assertEqual(self.loop.read_all(server, 1), b"x")
        self.assertEqual(self.front.open, 1)
        self.front.cut()
        self.assertTrue(self.loop.is_reset(client))
        self.assert_over()


class ToldTheServer(Stream):
    def test_send_proxy_comes_before_the_first_byte(self):
        for version in (1, 2):
            self.serve(send_proxy=version)
            client = self.client(ip="192.0.2.7", port=4711)
            client.sendall(b"hello")
            data = self.loop.read_all(self.server_end(), len(self.expected(version)) + 5)
            parsed = parse(data)
            self.assertEqual((parsed.source, parsed.destination), (("192.0.2.7", 4711), self.local))
            self.assertEqual(data[parsed.size :], b"hello")
            self.assertEqual(sum(self.metrics.tcp_sessions.values()), 1)

    def expected(self, version):
        return encode(version, ("192.0.2.7", 4711), self.local)

    def test_source_ip_keeps_a_client_on_its_server(self):
        self.serve(4, balance="source_ip")
        for ip in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
            for _ in range(3):
                self.client(ip=ip)
        self.loop.turns()
        self.front.cut()
        used = {}
        for ip, server, *_ in self.log.lines:
            used.setdefault(ip, set()).add(server)
        self.assertEqual([len(servers) for servers in used.values()], [1, 1, 1])


class States(SynchronousTestCase):
    def test_every_state_ends_and_nothing_follows_the_end(self):
        self.assertEqual(set(TRANSITIONS), set(State))
        for state, after in TRANSITIONS.items():
            self.assertEqual(State.OVER in after, state is not State.OVER)
        self.assertEqual(TRANSITIONS[State.OVER], frozenset())
