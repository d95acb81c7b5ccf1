"""A request's life from the first byte to the log line: where it goes, how it is tried again, and who hears what when somebody leaves."""

from __future__ import annotations

import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Queue, Timeouts
from twistedproxy.http import exchange
from twistedproxy.http.exchange import TRANSITIONS, State
from twistedproxy.net.transport import HIGH_WATER

MB = 1_000_000
PATTERN = bytes(range(256)) * 4000


class Case(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def serve(self, server: Any, body: bytes = b"ok") -> Any:
        request = server.request()
        server.send(self.fakes.answer(body))
        return request


class StateTests(SynchronousTestCase):
    def test_every_state_can_end_and_the_end_is_final(self) -> None:
        for state in State:
            self.assertEqual(State.DONE in TRANSITIONS[state], state is not State.DONE, state)
        self.assertEqual(set(TRANSITIONS), set(State))


class BodiesTests(Case):
    """Bodies arrive byte-exact, however they are framed on either side."""

    def test_SM_12_a_chunked_request_is_framed_anew(self) -> None:
        f = self.fakes
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
        body = head + b"5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n"
        client, server = self.bed.start(body)
        request = server.head()
        self.assertEqual(request.get(b"Transfer-Encoding"), b"chunked")
        self.assertEqual((request.get(b"Content-Length"), request.get(b"Trailer")), (None, None))
        self.assertEqual(server.through(b"\r\n\r\n"), b"6\r\nhello!\r\n0\r\nX-T: 1\r\n\r\n")
        server.send(f.answer(b"ok"))
        client.response()
        self.assertEqual(self.bed.logged().bytes_received, 6)

    def test_SM_11_dangerous_trailers_go_nowhere(self) -> None:
        f = self.fakes
        bad = b"Content-Length: 5\r\nAuthorization: x\r\nHost: b\r\nX-Good: 1\r\n"
        client, server = self.bed.start(f.post_chunked(b"x", trailers=bad))
        self.assertEqual(server.request().trailers, [(b"X-Good", b"1")])
        server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + f.chunked(b"y", trailers=b"Set-Cookie: a\r\nX-Sum: 2\r\n"))
        response = client.response()
        self.assertEqual((response.body, response.trailers), (b"y", [(b"X-Sum", b"2")]))

    def test_SM_17_GET_and_DELETE_with_a_body_keep_it(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post(b"abc", method=b"GET") + f.post(b"def", method=b"DELETE"))
        for method, body in ((b"GET", b"abc"), (b"DELETE", b"def")):
            request = self.serve(server)
            self.assertEqual((request.method, request.body), (method, body))
            self.assertEqual(client.response().status, 200)
            if method == b"GET":  # a server that left the body unread would take it for the next request
                server.ends()
                server = self.bed.origins[0].accept()

    def test_a_server_that_ends_a_body_with_its_FIN_gets_ours_and_no_reset(self) -> None:
        client, server = self.bed.start(self.fakes.get())
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\n\r\nhello").fin()
        self.assertEqual(client.response().body, b"hello")
        server.ends()

    def test_a_body_until_close_becomes_chunked(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get())
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\n\r\nsome ")
        client.through(b"some ")
        server.send(b"more")
        server.close()
        self.assertEqual(client.through(b"0\r\n\r\n"), b"\r\n4\r\nmore\r\n0\r\n\r\n")
        client.send(f.get(b"/next"))
        self.assertEqual(self.serve(self.bed.origins[0].accept()).target, b"/next")
        self.assertEqual(client.response().body, b"ok")

    def test_an_HTTP10_client_gets_a_chunked_body_until_close(self) -> None:
        f = self.fakes
        client, server = self.bed.start(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nHost: a\r\n\r\n")
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + f.chunked(b"abc", b"def", trailers=b"X-T: 1\r\n"))
        response = client.response()
        self.assertEqual((response.body, response.get(b"Connection")), (b"abcdef", b"close"))

    def test_an_answer_may_come_byte_by_byte(self) -> None:
        f = self.fakes
        for reply in (f.answer(b"hello"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + f.chunked(b"he", b"llo")):
            client, server = self.bed.start(f.get())
            server.request()
            server.trickle(reply)
            self.assertEqual(client.response().body, b"hello")
            client.close()

    def test_a_large_download_is_byte_exact_and_both_connections_go_on(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get())
        for head, tail in ((f.answer(PATTERN), b""), (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", f.chunked(PATTERN))):
            server.request()
            server.send(head + tail)
            self.assertTrue(client.response().body == PATTERN)
            self.assertEqual(self.bed.log.lines[-1].bytes_sent, len(PATTERN))
            client.send(f.get())
        self.serve(server)
        client.response()
        self.assertGreater(self.bed.front.counts.bytes_out, 2 * len(PATTERN))

    def test_a_large_upload_is_byte_exact_and_both_connections_go_on(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post(PATTERN)[:300])
        client.send(f.post(PATTERN)[300:])
        self.assertTrue(self.serve(server).body == PATTERN)
        client.response()
        client.send(f.post_chunked(PATTERN[: MB // 2], PATTERN[MB // 2 :]))
        self.assertTrue(self.serve(server).body == PATTERN)
        client.response()
        client.send(f.get())
        self.serve(server)
        client.response()
        self.assertEqual([line.bytes_received for line in self.bed.log.lines], [len(PATTERN), len(PATTERN), 0])
        self.assertGreater(self.bed.front.counts.bytes_in, 2 * len(PATTERN))

    def test_a_pipelined_request_behind_a_large_upload_is_not_swallowed(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post(PATTERN) + f.get(b"/next"))
        self.assertTrue(self.serve(server).body == PATTERN)
        client.response()
        self.assertEqual(self.serve(server).target, b"/next")
        self.assertEqual(client.response().body, b"ok")


class BackpressureTests(Case):
    def test_P4_a_slow_client_stops_the_server(self) -> None:
        f = self.fakes
        for framing in (b"Content-Length: 40000000", b"Transfer-Encoding: chunked"):
            with self.subTest(framing=framing):
                client, server = self.bed.start(f.get())
                server.request()
                server.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
                body = bytes(40 * MB)
                sent = server.send_what_fits(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if b"chunked" in framing else body)
                self.assertLess(sent, len(body), "the proxy took all of it from the server")
                self.assertLess(self.bed.connection.transport.buffered, 3 * HIGH_WATER)
                client.close()

    def test_P4_a_slow_client_is_not_taken_for_a_silent_server(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(), timeouts=Timeouts(response_idle_s=2.0, write_stall_s=600.0))
        server.request()
        body = bytes(40 * MB)
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        sent = server.send_what_fits(body)
        self.bed.travel(20)
        rest = body[sent:]
        client.head()
        while rest:
            rest = rest[server.send_what_fits(rest[:MB]) :]
            client.pump()
        self.assertEqual(len(client.take(len(body))), len(body))

    def test_DO_03_a_client_that_takes_nothing_is_cut_off(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(), timeouts=Timeouts(write_stall_s=5.0))
        server.request()
        server.send_what_fits(f.answer(bytes(40 * MB)))
        self.bed.travel(7)
        server.breaks()
        line = self.bed.logged()
        self.assertEqual((line.status, line.cause.value), (200, "timeout"))
        self.assertEqual(self.bed.rejected(), {"write_stall": 1})
        client.breaks()

    def test_BF_03_a_slow_server_stops_the_client(self) -> None:
        f = self.fakes
        body = bytes(40 * MB)
        for data in (f.post(body), f.post_chunked(body)):
            client, server = self.bed.start(data[:200])
            sent = client.send_what_fits(data[200:])
            self.assertLess(sent, len(body))
            self.assertLess(self.bed.connection.exchange._upstream.transport.buffered, 3 * HIGH_WATER)
            server.close()
            client.close()

    def test_BF_03_a_slow_server_stops_the_client_whose_body_had_waited_in_the_queue(self) -> None:
        f = self.fakes
        original = exchange.connect

        def connect(reactor: Any, wheel: Any, endpoint: Any, timeout_s: float, on_connected: Any, *more: Any) -> Any:
            def with_a_small_buffer(transport: Any) -> None:
                transport.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                on_connected(transport)

            return original(reactor, wheel, endpoint, timeout_s, with_a_small_buffer, *more)

        self.patch(exchange, "connect", connect)
        origin = self.bed.proxy(self.bed.origin(receive_buffer=4096), pool={"max_connections": 1})
        first = self.bed.client(f.get())
        server = origin.accept()
        server.request()
        client = self.bed.client()
        body = bytes(40 * MB)
        client.send_what_fits(f.post_chunked(body)[:MB])
        self.assertEqual(self.bed.pool.waiting, 1)
        held = max(len(c.exchange._held or b"") for c in self.bed.front._connections)
        self.assertLess(held, 3 * HIGH_WATER)
        server.send(f.answer(b"1", b"Connection: close"))
        first.response()
        second = origin.accept()
        client.send_what_fits(body)
        (upload,) = [c.exchange for c in self.bed.front._connections if c.exchange is not None]
        self.assertLess(upload._upstream.transport.buffered, 4 * HIGH_WATER)
        self.assertEqual(second.head().method, b"POST")

    def test_DO_02_a_slow_server_does_not_make_its_client_a_slow_one(self) -> None:
        f = self.fakes
        data = f.post(bytes(20 * MB))
        client, server = self.bed.start(data[:200], min_body_rate=1_000_000_000.0)
        sent = 200 + client.send_what_fits(data[200:])
        self.bed.travel(15)
        server.head()
        while sent < len(data):
            sent += client.send_what_fits(data[sent : sent + MB])
            server.pump()
        server.take(20 * MB)
        server.send(f.answer(b"ok"))
        self.assertEqual(client.response().status, 200)

    def test_BF_03_a_server_that_takes_nothing_is_504(self) -> None:
        f = self.fakes
        for make in (f.post, f.post_chunked):
            client, server = self.begin_upload(make)
            self.bed.travel(7)
            self.assertEqual(client.response().status, 504)
            self.assertEqual(self.bed.rejected(), {"server_stall": 1})
            server.breaks()
            client.close()

    def begin_upload(self, make: Any) -> tuple[Any, Any]:
        data = make(bytes(40 * MB))
        client, server = self.bed.start(data[:200], timeouts=Timeouts(write_stall_s=5.0, body_idle_s=3.0))
        client.send_what_fits(data[200:])
        return client, server


class LeavingTests(Case):
    """BF-09: whoever works for a client that has left may stop."""

    def left(self, cause: str = "client", status: int = 499) -> Any:
        self.bed.until(lambda: self.bed.leases == 0 and self.bed.pool.waiting == 0, "lease and queue place to be given back")
        line = self.bed.log.lines[-1]
        self.assertEqual((line.status, line.cause.value), (status, cause))
        return line

    def test_BF_09_gone_while_queued(self) -> None:
        f = self.fakes
        for how in ("fin", "reset"):
            origin = self.bed.proxy(pool={"max_connections": 1, "queue": Queue(timeout_s=60.0)})
            first = self.bed.client(f.get())
            server = origin.accept()
            second = self.bed.client(f.get(b"/second"))
            self.bed.until(lambda: self.bed.pool.waiting == 1)
            getattr(second, how)()
            self.bed.until(lambda: self.bed.pool.waiting == 0)
            line = self.bed.log.lines[-1]
            self.assertEqual((line.status, line.phase.value, line.attempts), (499, "queue", 0))
            self.serve(server)
            self.assertEqual(first.response().body, b"ok")
            self.assertTrue(server.is_silent(), "the request of the client that left was sent")
            first.close()

    def test_BF_09_gone_while_connecting(self) -> None:
        hole = self.bed.black_hole()
        self.bed.proxy(servers=[hole])
        for how in ("fin", "reset"):
            client = self.bed.client(self.fakes.get())
            self.bed.until(lambda: self.bed.leases == 1)
            getattr(client, how)()
            self.left()
            client.close()

    def test_BF_09_gone_while_waiting_for_the_head(self) -> None:
        for how in ("fin", "reset"):
            client, server = self.bed.start(self.fakes.get())
            server.request()
            getattr(client, how)()
            server.breaks()
            self.assertEqual(self.left().phase.value, "request")
            client.close()

    def test_BF_09_gone_in_the_middle_of_the_answer(self) -> None:
        for length in (100, 100 * MB):
            client, server = self.bed.start(self.fakes.get())
            server.request()
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\npart" % length)
            client.through(b"part")
            client.reset()
            server.breaks()
            self.assertEqual(self.left(status=200).phase.value, "response")

    def test_BF_09_gone_in_the_middle_of_the_body(self) -> None:
        f = self.fakes
        for size in (1000, 10 * MB):
            for how in ("fin", "reset"):
                data = f.post(bytes(size))
                client, server = self.bed.start(data[: len(data) - size + 500])
                server.head()
                client.send(bytes(size // 2))
                server.until(lambda server=server, size=size: len(server.received) >= size // 2, "half of the body")
                getattr(client, how)()
                server.breaks()
                self.left()
                client.close()

    def test_P7_gone_in_the_middle_of_a_chunked_body_leaves_it_unfinished(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post_chunked(b"abc")[:-5])
        server.through(b"abc\r\n")
        client.fin()
        server.breaks()
        self.assertEqual(server.rest, b"")
        self.left()
