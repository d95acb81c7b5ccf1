"""A request's life from the first byte to the log line: where it goes, how it is tried again, and who hears what when somebody leaves."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Keepalive, Queue, Route, Timeouts
from twistedproxy.http.exchange import TRANSITIONS, State
from twistedproxy.net.transport import HARD_CAP, HIGH_WATER

MB = 1_000_000
PATTERN = bytes(range(256)) * 4000


class Case(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def warm(self, *origins: Any, **proxy: Any) -> tuple[Any, Any]:
        """A client and a server whose connections have carried one exchange already."""
        f = self.fakes
        origin = self.bed.proxy(*origins, **proxy)
        client = self.bed.client(f.get(b"/warm"))
        server = origin.accept()
        server.request()
        server.send(f.answer(b"warm"))
        client.response()
        self.bed.log.lines.clear()
        return client, server

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
        body = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n"
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
        exchange = next(c.exchange for c in self.bed.front._connections if c.exchange is not None)
        self.assertLess(exchange._upstream.transport.buffered, 3 * HIGH_WATER)
        self.assertEqual(second.head().method, b"POST")

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


class RetryTests(Case):
    """Tried again where that is safe, and nowhere else (limits 3.1)."""

    def closed_address(self) -> str:
        origin = self.bed.origin()
        origin.stop()
        return str(origin.address)

    def test_a_server_that_refuses_is_replaced_by_another_whatever_the_method(self) -> None:
        f = self.fakes
        good = self.bed.origin()
        for request in (f.get(), f.post(b"body")):
            self.bed.proxy(servers=[self.closed_address(), good.address])
            clients = [self.bed.client(request) for _ in range(2)]
            servers = [good.accept() for _ in clients]
            for server in servers:
                self.assertEqual(self.serve(server).body, b"body" if b"POST" in request else b"")
            for client in clients:
                self.assertEqual(client.response().status, 200)
                client.close()
            self.assertEqual(sorted(line.attempts for line in self.bed.log.lines), [1, 2])
            self.assertEqual(dict(self.bed.metrics.retries), {("web", "connect"): 1})
            self.bed.log.lines.clear()

    def test_an_upload_that_has_only_begun_goes_to_another_server_too(self) -> None:
        f = self.fakes
        good = self.bed.origin()
        self.bed.proxy(servers=[self.closed_address(), good.address])
        for _ in range(2):
            client = self.bed.client(f.post(b"0123456789")[:-5])
            server = good.accept()
            server.head()
            client.send(b"56789")
            self.assertEqual(server.take(10), b"0123456789")
            server.send(f.answer(b"ok", b"Connection: close"))
            client.response()

    def test_BF_04_no_server_accepts_502_and_the_attempts_are_bounded(self) -> None:
        self.bed.proxy(servers=[self.closed_address() for _ in range(5)])
        client = self.bed.client(self.fakes.get())
        response = client.response()
        self.assertEqual(response.status, 502)
        line = self.bed.logged()
        self.assertEqual((line.attempts, line.cause.value, line.phase.value), (3, "server", "connect"))

    def test_BF_04_an_only_server_that_refuses_is_502_and_not_no_server(self) -> None:
        self.bed.proxy(servers=[self.closed_address()])
        client = self.bed.client(self.fakes.get() * 2)
        self.assertEqual([client.response().status for _ in range(2)], [502, 502])

    def test_without_connect_in_the_list_one_failure_is_final(self) -> None:
        good = self.bed.origin()
        self.bed.proxy(servers=[self.closed_address(), good.address], pool={"retry": {"on": ()}})
        clients = [self.bed.client(self.fakes.get()) for _ in range(2)]
        self.serve(good.accept())
        self.assertEqual(sorted(c.response().status for c in clients), [200, 502])

    def test_BF_01_a_reused_connection_that_dies_is_replaced_by_a_fresh_one(self) -> None:
        f = self.fakes
        for how in ("close", "reset"):
            for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"):
                with self.subTest(how=how, method=method):
                    client, server = self.warm()
                    body = b"body" if method == b"PUT" else b""
                    client.send(f.post(body, method=method))
                    self.assertEqual(server.request().body, body)
                    getattr(server, how)()
                    second = self.bed.origins[-1].accept()
                    request = second.request()
                    self.assertEqual((request.method, request.body), (method, body))
                    second.send(f.answer(b""))
                    self.assertEqual(client.response(method).status, 200)
                    self.assertEqual(dict(self.bed.metrics.retries), {("web", "reused"): 1})
                    client.close()
                    self.bed.log.lines.clear()

    def test_BF_01_a_POST_is_never_sent_twice(self) -> None:
        f = self.fakes
        for how in ("close", "reset"):
            for method in (b"POST", b"PATCH", b"X-OWN"):
                client, server = self.warm()
                client.send(f.post(b"pay", method=method))
                self.assertEqual(server.request().body, b"pay")
                getattr(server, how)()
                self.assertEqual(client.response().status, 502)
                self.assertEqual(self.bed.origins[-1].count, 1)
                client.close()

    def test_BF_01_it_is_tried_again_once_only_and_not_on_another_kept_connection(self) -> None:
        f = self.fakes
        origin = self.bed.proxy()
        clients = [self.bed.client(f.get()) for _ in range(3)]
        servers = [origin.accept() for _ in clients]
        for server in servers:
            self.serve(server)
        for client in clients:
            client.response()
        self.assertEqual(self.bed.idle, 3)
        clients[0].send(f.get(b"/x"))
        servers[2].until(lambda: any(s.pump() or s.rest for s in servers), "the request")
        (used,) = [s for s in servers if s.rest]
        used.close()
        fresh = origin.accept()
        self.assertEqual(fresh.request().target, b"/x")
        fresh.close()
        self.assertEqual(clients[0].response().status, 502)
        self.assertEqual(origin.count, 4)

    def test_a_fresh_connection_that_dies_after_the_request_is_502(self) -> None:
        f = self.fakes
        for how in ("close", "reset"):
            client, server = self.bed.start(f.get())
            server.request()
            getattr(server, how)()
            self.assertEqual(client.response().status, 502)
            self.assertEqual(self.bed.origins[-1].count, 1)
            line = self.bed.logged()
            self.assertEqual((line.cause.value, line.phase.value, line.attempts), ("server", "response", 1))
            self.bed.log.lines.clear()
            client.close()

    def test_BF_01_an_upload_of_which_some_is_gone_is_not_replayed(self) -> None:
        f = self.fakes
        client, server = self.warm()
        data = f.post(b"0123456789", method=b"PUT")
        client.send(data[:-5])
        server.head()
        client.send(data[-5:])
        server.take(10)
        server.close()
        self.assertEqual(client.response().status, 502)
        self.assertEqual(self.bed.origins[0].count, 1)

    def test_a_status_is_tried_again_only_where_that_is_wanted(self) -> None:
        f = self.fakes
        for on, count in ((("connect",), 1), (("503",), 2)):
            a, b = self.bed.origin(), self.bed.origin()
            self.bed.proxy(a, b, pool={"retry": {"on": on}})
            client = self.bed.client(f.get())
            server = self.first_of(a, b)
            server.request()
            server.send(f.answer(b"busy", status=b"503 Service Unavailable"))
            if count == 2:
                other = b if server in a.connections else a
                self.serve(other.accept())
            response = client.response()
            self.assertEqual((response.status, response.body), (503, b"busy") if count == 1 else (200, b"ok"))
            client.close()

    def test_a_status_that_no_other_server_can_better_is_passed_on_as_it_is(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(), pool={"retry": {"on": ("502", "504")}})
        server.request()
        server.send(f.answer(b"late", status=b"504 Gateway Timeout"))
        self.assertEqual(client.response().status, 504)

    def test_a_POST_is_not_tried_again_for_its_status(self) -> None:
        f = self.fakes
        a, b = self.bed.origin(), self.bed.origin()
        self.bed.proxy(a, b, pool={"retry": {"on": ("503",)}})
        client = self.bed.client(f.post(b"pay"))
        server = self.first_of(a, b)
        server.request()
        server.send(f.answer(b"busy", status=b"503 Service Unavailable"))
        self.assertEqual(client.response().body, b"busy")
        self.assertEqual(a.count + b.count, 1)

    def first_of(self, *origins: Any) -> Any:
        self.bed.until(lambda: any(o.pump() or o.connections for o in origins), "a connection to one of the servers")
        return next(o.accept() for o in origins if o.connections)

    def test_a_time_out_is_tried_again_only_where_that_is_wanted(self) -> None:
        f = self.fakes
        for on in (("connect", "reused"), ("timeout",)):
            a, b = self.bed.origin(), self.bed.origin()
            self.bed.proxy(a, b, pool={"retry": {"on": on}}, timeouts=Timeouts(response_head_s=2.0))
            client = self.bed.client(f.get())
            server = self.first_of(a, b)
            server.request()
            self.bed.travel(2.5)
            if on == ("timeout",):
                self.serve((b if server in a.connections else a).accept())
                self.assertEqual(client.response().status, 200)
            else:
                self.assertEqual(client.response().status, 504)
            server.breaks()
            client.close()

    def test_BF_06_retries_stay_within_the_budget(self) -> None:
        f = self.fakes
        bad = [self.bed.origin() for _ in range(2)]
        self.bed.proxy(*bad, pool={"retry": {"on": ("timeout",), "budget": 0.2}}, timeouts=Timeouts(response_head_s=2.0))
        clients = [self.bed.client(f.get()) for _ in range(20)]
        self.bed.until(lambda: sum(o.count for o in bad) == 20)
        self.bed.travel(10)
        self.assertEqual({c.response().status for c in clients}, {504})
        self.assertLessEqual(sum(o.count for o in bad), 20 * 1.3)
        self.assertGreater(sum(o.count for o in bad), 20)

    def test_P8_a_black_hole_is_given_up_for_another_server(self) -> None:
        f = self.fakes
        hole = self.bed.loop.listen(backlog=0)
        fillers = []
        import socket

        for _ in range(4):
            filler = self.bed.loop.keep(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
            fillers.append(filler)
        good = self.bed.origin()
        self.bed.proxy(servers=["127.0.0.1:%d" % hole.getsockname()[1], good.address], timeouts=Timeouts(connect_s=3.0))
        clients = [self.bed.client(f.get()) for _ in range(2)]
        server = good.accept()
        self.serve(server)
        self.bed.travel(2.5)
        self.assertTrue(server.is_silent())
        self.bed.travel(0.7)
        self.serve(server)
        for client in clients:
            self.assertEqual(client.response().status, 200)


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
        import socket

        hole = self.bed.loop.listen(backlog=0)
        for _ in range(4):
            filler = self.bed.loop.keep(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        self.bed.proxy(servers=["127.0.0.1:%d" % hole.getsockname()[1]])
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


class RefusalTests(Case):
    def refusal(self, client: Any, status: int, retry_after: bool = False) -> Any:
        response = client.response()
        self.assertEqual(response.status, status)
        problem = json.loads(response.body)
        self.assertEqual(set(problem), {"type", "title", "status", "detail", "instance"})
        self.assertEqual(response.get(b"X-Request-Id").decode(), problem["instance"])
        self.assertEqual(response.get(b"Retry-After") is not None, retry_after)
        line = self.bed.log.lines[-1]
        self.assertEqual((line.status, line.request_id.decode()), (status, problem["instance"]))
        return line

    def test_no_route_is_404_and_the_connection_goes_on(self) -> None:
        f = self.fakes
        self.bed.proxy(routes=[Route("/api/", "web")])
        client = self.bed.client(f.get(b"/other") + f.get(b"/api/x"))
        line = self.refusal(client, 404)
        self.assertEqual((line.cause.value, line.phase.value, line.site), ("client", "route", ""))
        self.serve(self.bed.origins[0].accept())
        self.assertEqual(client.response().status, 200)

    def test_no_site_is_404(self) -> None:
        self.bed.proxy(hosts=("other.example",))
        self.refusal(self.bed.client(self.fakes.get()), 404)

    def test_no_server_is_503_with_Retry_After(self) -> None:
        self.bed.proxy()
        self.bed.pool.servers[0].weight = 0
        self.bed.pool._view.expire()
        line = self.refusal(self.bed.client(self.fakes.get()), 503, retry_after=True)
        self.assertEqual((line.cause.value, line.phase.value, line.server), ("server", "queue", ""))

    def test_a_full_queue_and_a_long_wait_in_it_are_503(self) -> None:
        f = self.fakes
        origin = self.bed.proxy(pool={"max_connections": 1, "queue": Queue(size=1, timeout_s=2.0)})
        self.bed.client(f.get())
        origin.accept()
        waits = self.bed.client(f.get())
        self.bed.until(lambda: self.bed.pool.waiting == 1)
        self.assertEqual(self.refusal(self.bed.client(f.get()), 503, retry_after=True).cause.value, "limit")
        self.bed.travel(2.3)
        self.assertEqual(self.refusal(waits, 503, retry_after=True).cause.value, "timeout")

    def test_who_waits_in_the_queue_is_served_in_turn(self) -> None:
        f = self.fakes
        origin = self.bed.proxy(pool={"max_connections": 1})
        clients = []
        for i in range(3):
            clients.append(self.bed.client(f.get(b"/%d" % i)))
            self.bed.until(lambda i=i: self.bed.pool.waiting == i)
        server = origin.accept()
        for i, client in enumerate(clients):
            self.assertEqual(self.serve(server, b"%d" % i).target, b"/%d" % i)
            self.assertEqual(client.response().body, b"%d" % i)
        self.assertEqual(origin.count, 1)

    def test_SM_22_CONNECT_is_405_as_every_refusal_looks(self) -> None:
        self.bed.proxy()
        client = self.bed.client(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
        client.until(lambda: b"\r\n\r\n" in client.rest, "the answer")
        self.assertIn(b"\r\nAllow: GET, HEAD", client.rest)
        self.assertEqual(self.refusal(client, 405).cause.value, "client")

    def test_HEAD_is_refused_without_a_body(self) -> None:
        self.bed.proxy(routes=[Route("/api/", "web")])
        client = self.bed.client(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + self.fakes.get())
        head = client.response(b"HEAD")
        self.assertEqual(head.status, 404)
        self.assertGreater(int(head.get(b"Content-Length")), 0)
        self.assertEqual(client.response().status, 404)

    def test_a_browser_gets_a_page(self) -> None:
        self.bed.proxy(routes=[Route("/api/", "web")])
        response = self.bed.client(self.fakes.get(b"/", b"Accept: text/html,*/*;q=0.8")).response()
        self.assertEqual(response.get(b"Content-Type"), b"text/html; charset=utf-8")
        self.assertIn(response.get(b"X-Request-Id"), response.body)

    def test_nothing_of_ours_names_a_server(self) -> None:
        origin = self.bed.origin()
        origin.stop()
        self.bed.proxy(origin)
        client = self.bed.client(self.fakes.get())
        client.response()
        self.assertNotIn(origin.address.encode(), bytes(client.received))
        self.assertNotIn(b"web", bytes(client.received))


class AddedFieldsTests(Case):
    def seen(self, request: bytes, **proxy: Any) -> Any:
        client, server = self.bed.start(request, **proxy)
        message = self.serve(server)
        client.response()
        client.close()
        return message

    def test_ID_01_what_a_stranger_claims_is_replaced(self) -> None:
        f = self.fakes
        claims = [b"X-Forwarded-For: 10.1.1.1", b"X-Forwarded-Proto: https", b"Forwarded: for=1.1.1.1", b"X-Request-Id: mine"]
        claims += [b"X-Real-IP: 1.1.1.1", b"X-Forwarded-Scheme: https", b"X-Original-URL: /admin", b"X-Rewrite-URL: /admin"]
        claims += [b"X_Forwarded_For: 1.1.1.1", b"X-Internal-User: root", b"X-Client-Cert-Subject: root", b"X-Revproxy-Explain: t"]
        request = self.seen(f.get(b"/", *claims))
        port = b"%d" % self.bed.port
        self.assertEqual(request.get(b"X-Forwarded-For"), b"127.0.0.1")
        self.assertEqual(request.get(b"X-Forwarded-Proto"), b"http")
        self.assertEqual(request.get(b"X-Forwarded-Host"), b"example.com")
        self.assertEqual(request.get(b"X-Forwarded-Port"), port)
        self.assertEqual(request.get(b"X-Request-Id"), self.bed.logged().request_id)
        names = {name.lower() for name, _ in request.fields}
        self.assertEqual(
            names, {b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-request-id"}
        )

    def test_ID_01_what_a_trusted_proxy_says_is_kept(self) -> None:
        f = self.fakes
        claims = [b"X-Forwarded-For: 1.1.1.1, 2.2.2.2", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: www", b"X-Request-Id: id-7"]
        request = self.seen(f.get(b"/", *claims, b"X-Real-IP: 1.1.1.1"), trusted_proxies=("127.0.0.0/8",))
        self.assertEqual(request.get(b"X-Forwarded-For"), b"1.1.1.1, 2.2.2.2, 127.0.0.1")
        self.assertEqual(request.get(b"X-Forwarded-Proto"), b"https")
        self.assertEqual(request.get(b"X-Forwarded-Host"), b"www")
        self.assertEqual(request.get(b"X-Forwarded-Port"), b"%d" % self.bed.port)
        self.assertEqual(request.get(b"X-Real-IP"), b"1.1.1.1")
        self.assertEqual(request.get(b"X-Request-Id"), b"id-7")
        line = self.bed.logged()
        self.assertEqual((line.client_ip, line.request_id), ("2.2.2.2", b"id-7"))

    def test_hop_by_hop_and_nominated_fields_stay_on_their_hop(self) -> None:
        f = self.fakes
        hop = [b"Connection: X-Mine, keep-alive", b"X-Mine: 1", b"Keep-Alive: timeout=5", b"TE: trailers", b"Proxy-Connection: x"]
        client, server = self.bed.start(f.get(b"/", *hop, b"Upgrade: h2c", b"HTTP2-Settings: AAA", b"Accept: a"))
        request = server.request()
        for name in (b"Connection", b"X-Mine", b"Keep-Alive", b"TE", b"Proxy-Connection", b"Upgrade", b"HTTP2-Settings"):
            self.assertEqual(request.all(name), [], name)
        self.assertEqual(request.get(b"Accept"), b"a")
        server.send(
            f.answer(b"", b"Connection: X-Theirs", b"X-Theirs: 1", b"Keep-Alive: timeout=9", b"X-Revproxy-Y: 1", b"Set-Cookie: a=1")
        )
        response = client.response()
        self.assertEqual([n for n, _ in response.fields], [b"Content-Length", b"Set-Cookie"])

    def test_SM_13_connection_cannot_take_away_our_own_fields(self) -> None:
        f = self.fakes
        request = self.seen(f.get(b"/", b"Connection: x-forwarded-for, x-request-id, authorization", b"Authorization: a"))
        self.assertEqual(request.get(b"X-Forwarded-For"), b"127.0.0.1")
        self.assertIsNotNone(request.get(b"X-Request-Id"))

    def test_via_is_added_to_what_is_there(self) -> None:
        request = self.seen(self.fakes.get(b"/", b"Via: 1.0 before"), via="edge")
        self.assertEqual(request.all(b"Via"), [b"1.0 before", b"1.1 edge"])

    def test_max_forwards_is_counted_down_and_sent_once(self) -> None:
        request = self.seen(b"OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n")
        self.assertEqual(request.get(b"Max-Forwards"), b"2")

    def test_max_forwards_means_nothing_to_GET(self) -> None:
        self.assertEqual(self.seen(self.fakes.get(b"/", b"Max-Forwards: 3")).get(b"Max-Forwards"), b"3")

    def test_SM_20_absolute_form_becomes_a_path_and_its_host(self) -> None:
        request = self.seen(b"GET http://Other.example:81/a%7Eb/../c?q HTTP/1.1\r\nHost: example.com\r\n\r\n")
        self.assertEqual((request.start, request.get(b"Host")), (b"GET /c?q HTTP/1.1", b"Other.example:81"))
        self.assertEqual(request.get(b"X-Forwarded-Host"), b"Other.example:81")

    def test_RT_04_what_is_matched_is_what_is_forwarded(self) -> None:
        self.assertEqual(self.seen(self.fakes.get(b"//a/./b/../%61?x=%61/../")).target, b"/a/a?x=%61/../")

    def test_strip_removes_the_prefix_and_keeps_a_slash(self) -> None:
        for path, expected in ((b"/api/x?y", b"/x?y"), (b"/api/", b"/"), (b"/api", b"/"), (b"/api?q", b"/?q"), (b"/api//x?", b"/x?")):
            request = self.seen(self.fakes.get(path), routes=[Route("/api", "web", strip=True)])
            self.assertEqual((request.target, request.get(b"Host")), (expected, b"example.com"))

    def test_X_Request_Id_is_new_for_every_request(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get() * 3)
        ids = {self.serve(server).get(b"X-Request-Id") for _ in range(3)}
        self.assertEqual(len(ids), 3)
        for _ in range(3):
            client.response()


class RecordTests(Case):
    def test_what_is_counted_and_logged_of_a_request(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post(b"12345"))
        self.serve(server, b"1234567")
        client.response()
        line = self.bed.logged()
        self.assertEqual((line.status, line.bytes_sent, line.bytes_received, line.attempts), (200, 7, 5, 1))
        self.assertEqual((line.site, line.pool, line.server), ("site", "web", self.bed.origins[0].address))
        self.assertEqual((line.cause.value, line.phase, line.client_ip), ("ok", None, "127.0.0.1"))
        self.assertEqual(self.bed.metrics.http("site", "web").codes, {(self.bed.origins[0].address, 200): 1})
        counts = self.bed.front.counts
        self.assertEqual((counts.open, counts.total), (1, 1))
        self.assertEqual(counts.bytes_in, len(f.post(b"12345")))
        self.assertEqual(counts.bytes_out, len(client.received))

    def test_a_5xx_of_the_server_is_its_failure_and_a_4xx_is_not(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get() * 2)
        for status in (b"500 No", b"404 No"):
            server.request()
            server.send(f.answer(b"", status=status))
            self.assertEqual(client.response().status, int(status[:3]))
        self.assertEqual(self.bed.pool.servers[0].failures, 1)

    def test_the_limit_of_what_may_wait_for_a_client_is_far_above_what_ever_does(self) -> None:
        self.assertGreaterEqual(HARD_CAP, 8 * HIGH_WATER)
        self.assertLess(Keepalive().idle_s, 5.0, "servers close idle connections after 5 s and more: ours must go first")
