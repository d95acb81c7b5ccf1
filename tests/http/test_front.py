"""The HTTP listener as its users see it: connections are counted, drained and cut, and PROXY headers believed only where configured."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Timeouts

PROXY_LINE = b"PROXY TCP4 192.0.2.7 10.0.0.1 5555 8443\r\n"


class Case(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def serve(self, server: Any) -> Any:
        request = server.request()
        server.send(self.fakes.answer(b"ok"))
        return request


class CountingTests(Case):
    def test_connections_are_counted_while_they_are_open(self) -> None:
        self.bed.proxy()
        clients = [self.bed.client() for _ in range(3)]
        self.bed.until(lambda: self.bed.front.open == 3)
        self.assertEqual((self.bed.front.counts.open, self.bed.front.counts.total), (3, 3))
        clients[0].close()
        clients[1].reset()
        self.bed.until(lambda: self.bed.front.open == 1)
        self.assertEqual((self.bed.front.counts.open, self.bed.front.counts.total), (1, 3))
        self.assertEqual(self.bed.listeners[0].open, 1, "the listener was not told that there is room again")

    def test_ids_differ_between_fronts_and_requests(self) -> None:
        f = self.fakes
        ids = set()
        for _ in range(2):
            client, server = self.bed.start(f.get() * 2)
            for _ in range(2):
                ids.add(self.serve(server).get(b"X-Request-Id"))
                client.response()
            client.close()
        self.assertEqual(len(ids), 4)


class ProxyHeaderTests(Case):
    def test_ID_02_the_client_is_who_the_PROXY_header_says(self) -> None:
        f = self.fakes
        client, server = self.bed.start(PROXY_LINE + f.get(), accept_proxy=("127.0.0.0/8",))
        request = self.serve(server)
        self.assertEqual((request.get(b"X-Forwarded-For"), request.get(b"X-Forwarded-Port")), (b"192.0.2.7", b"8443"))
        client.response()
        self.assertEqual(self.bed.logged().client_ip, "192.0.2.7")

    def test_ID_02_LOCAL_means_the_sender_itself(self) -> None:
        f = self.fakes
        local = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
        client, server = self.bed.start(local + f.get(), accept_proxy=("127.0.0.0/8",))
        self.assertEqual(self.serve(server).get(b"X-Forwarded-For"), b"127.0.0.1")
        client.response()

    def test_ID_02_a_PROXY_header_from_a_stranger_is_a_broken_request(self) -> None:
        self.bed.proxy(accept_proxy=("10.0.0.0/8",))
        client = self.bed.client(PROXY_LINE + self.fakes.get())
        self.assertEqual(client.response().status, 400)

    def test_ID_02_a_second_PROXY_header_is_a_broken_request(self) -> None:
        self.bed.proxy(accept_proxy=("127.0.0.0/8",))
        client = self.bed.client(PROXY_LINE * 2 + self.fakes.get())
        self.assertEqual(client.response().status, 400)

    def test_ID_02_without_the_required_header_the_connection_is_closed(self) -> None:
        for data in (self.fakes.get(), PROXY_LINE[:20]):
            self.bed.proxy(accept_proxy=("127.0.0.0/8",), timeouts=Timeouts(preread_s=3.0))
            client = self.bed.client(data)
            self.bed.loop.turns()
            self.bed.travel(3.3)
            client.breaks()
            self.assertEqual(client.rest, b"")
            self.bed.until(lambda: self.bed.front.open == 0)
            self.assertEqual(self.bed.rejected(), {"bad_proxy_header": 1})

    def test_ID_01_who_comes_through_a_trusted_PROXY_sender_is_a_stranger_nevertheless(self) -> None:
        f = self.fakes
        claims = f.get(b"/", b"X-Forwarded-For: 10.9.9.9", b"X-Forwarded-Proto: https", b"X-Request-Id: mine")
        nets = ("127.0.0.0/8",)
        client, server = self.bed.start(PROXY_LINE + claims, accept_proxy=nets, trusted_proxies=nets)
        request = self.serve(server)
        self.assertEqual((request.get(b"X-Forwarded-For"), request.get(b"X-Forwarded-Proto")), (b"192.0.2.7", b"http"))
        self.assertNotEqual(request.get(b"X-Request-Id"), b"mine")
        client.response()

    def test_ID_01_a_trusted_proxy_behind_a_PROXY_sender_is_trusted(self) -> None:
        f = self.fakes
        data = PROXY_LINE + f.get(b"/", b"X-Forwarded-For: 10.9.9.9")
        client, server = self.bed.start(data, accept_proxy=("127.0.0.0/8",), trusted_proxies=("192.0.2.0/24",))
        self.assertEqual(self.serve(server).get(b"X-Forwarded-For"), b"10.9.9.9, 192.0.2.7")
        client.response()
        self.assertEqual(self.bed.logged().client_ip, "10.9.9.9")


class DrainTests(Case):
    def test_P15_who_is_served_gets_the_answer_and_the_announcement_of_the_close(self) -> None:
        client, server = self.bed.start(self.fakes.get())
        server.head()
        self.bed.front.drain()
        server.send(self.fakes.answer(b"ok"))
        response = client.response()
        self.assertEqual((response.body, response.get(b"Connection")), (b"ok", b"close"))
        client.ends()
        self.assertEqual(self.bed.front.open, 0)

    def test_P15_an_idle_connection_may_send_one_last_request(self) -> None:
        client, server = self.bed.start(self.fakes.get())
        self.serve(server)
        client.response()
        self.bed.front.drain()
        self.bed.travel(1)
        client.send(self.fakes.get())
        self.serve(server)
        self.assertEqual(client.response().get(b"Connection"), b"close")
        client.ends()

    def test_P15_an_idle_connection_is_let_go_after_5_s(self) -> None:
        client, server = self.bed.start(self.fakes.get())
        self.serve(server)
        client.response()
        silent = self.bed.client()
        self.bed.loop.turns()
        self.bed.front.drain()
        self.bed.travel(4.5)
        self.assertTrue(client.is_silent() and silent.is_silent())
        self.bed.travel(1)
        client.ends()
        silent.ends()

    def test_P15_one_whose_answer_had_begun_is_let_go_after_5_s_too(self) -> None:
        client, server = self.bed.start(self.fakes.get())
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        client.through(b"ab")
        self.bed.front.drain()
        server.send(b"cd")
        client.take(2)
        self.bed.travel(6)
        client.ends()

    def test_an_answer_made_here_announces_the_close_too(self) -> None:
        self.bed.proxy(hosts=("other.example",))
        client = self.bed.client()
        self.bed.until(lambda: self.bed.front.open == 1)
        self.bed.front.drain()
        client.send(self.fakes.get())
        self.assertEqual(client.response().get(b"Connection"), b"close")
        client.ends()


class CutTests(Case):
    def test_LC_11_everything_ends_at_once(self) -> None:
        f = self.fakes
        origin = self.bed.proxy(pool={"max_connections": 2}, accept_proxy=("127.0.0.2/32",))
        waiting = self.bed.client(f.get())
        first = origin.accept()
        downloading = self.bed.client(f.get())
        second = origin.accept()
        second.request()
        second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        downloading.through(b"part")
        queued = self.bed.client(f.get())
        idle = self.bed.client()
        begun = self.bed.client(b"GET / HT")
        self.bed.until(lambda: self.bed.front.open == 5 and self.bed.pool.waiting == 1)
        self.bed.front.drain()
        self.bed.front.cut()
        for client in (waiting, downloading, queued, idle, begun):
            client.breaks()
        first.breaks()
        second.breaks()
        self.bed.until(lambda: self.bed.front.open == 0)
        self.assertEqual((self.bed.leases, self.bed.pool.waiting), (0, 0))
        self.assertEqual(sorted(line.status for line in self.bed.log.lines), [200, 503, 503])
        self.assertEqual({line.cause.value for line in self.bed.log.lines}, {"proxy"})

    def test_the_end_of_the_time_for_requests_leaves_tunnels_alone(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(b"/", b"Connection: Upgrade", b"Upgrade: websocket"))
        server.request()
        server.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        client.head()
        waiting = self.bed.client(f.get())
        self.bed.origins[0].accept().request()
        self.bed.front.drain()
        self.bed.front.cut_requests()
        waiting.breaks()
        client.send(b"x")
        self.assertEqual(server.take(1), b"x")
        self.assertEqual(self.bed.front.open, 1)

    def test_LC_11_one_that_has_not_said_who_it_is_ends_too(self) -> None:
        self.bed.proxy(accept_proxy=("127.0.0.0/8",))
        client = self.bed.client(b"PROXY ")
        self.bed.until(lambda: self.bed.front.open == 1)
        self.bed.front.cut()
        client.breaks()
        self.bed.until(lambda: self.bed.front.open == 0)
