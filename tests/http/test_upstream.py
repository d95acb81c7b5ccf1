"""Connections to servers: kept and reused only when clean, closed in time, and what each way of dying means for the request."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Keepalive, Timeouts
from twistedproxy.http.upstream import BRIEF_S, MAX_INTERIM


class Case(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def once(self, reply: bytes, request: bytes = b"", to: bytes = b"GET", **proxy: Any) -> tuple[Any, Any, Any]:
        """One exchange: the client, the server, and the response."""
        client, server = self.bed.start(request or self.fakes.get(), **proxy)
        server.request()
        server.send(reply)
        return client, server, client.response(to)

    def warm(self, **proxy: Any) -> tuple[Any, Any]:
        """A client and a server whose connections have carried one exchange already."""
        client, server, _ = self.once(self.fakes.answer(b"warm"), **proxy)
        self.bed.until(lambda: self.bed.idle == 1, "the server's connection to be kept")
        return client, server


class ReuseTests(Case):
    def test_surplus_bytes_after_an_answer_mean_that_the_connection_is_never_reused(self) -> None:
        for surplus in (b"x", self.fakes.answer(b"poison")):
            with self.subTest(surplus=surplus):
                client, server, response = self.once(self.fakes.answer(b"ok") + surplus)
                self.assertEqual(response.body, b"ok")
                self.assertEqual(self.bed.idle, 0)
                server.breaks()
                client.send(self.fakes.get())
                self.bed.origins[-1].accept().send(self.fakes.answer(b"fresh"))
                self.assertEqual(client.response().body, b"fresh")
                client.close()

    def test_SM_18_surplus_after_a_chunked_answer_means_the_same(self) -> None:
        f = self.fakes
        _, server, response = self.once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + f.chunked(b"ok") + f.answer(b"poison"))
        self.assertEqual(response.body, b"ok")
        self.assertEqual(self.bed.idle, 0)
        server.breaks()

    def test_SM_18_surplus_in_a_later_segment_closes_the_idle_connection(self) -> None:
        client, server = self.warm()
        server.send(self.fakes.answer(b"poison"))
        self.bed.until(lambda: self.bed.idle == 0)
        server.breaks()
        client.send(self.fakes.get())
        self.bed.origins[0].accept().send(self.fakes.answer(b"fresh"))
        self.assertEqual(client.response().body, b"fresh")

    def test_SM_18_surplus_behind_the_last_piece_of_a_body_means_the_same(self) -> None:
        client, server = self.bed.start(self.fakes.get())
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        client.through(b"ab")
        server.send(b"cdHTTP/1.1 200 OK\r\n\r\n")
        self.assertEqual(client.take(2), b"cd")
        self.assertEqual((client.rest, self.bed.idle), (b"", 0))
        server.breaks()

    def test_SM_18_a_body_behind_204_304_or_an_answer_to_HEAD_is_not_taken_for_the_next_answer(self) -> None:
        f = self.fakes
        for status, method in ((b"204 No Content", b"GET"), (b"304 Not Modified", b"GET"), (b"200 OK", b"HEAD")):
            with self.subTest(status=status, method=method):
                request = f.get().replace(b"GET", method)
                client, server, response = self.once(f.answer(b"poison", status=status), request, method)
                self.assertEqual((response.body, response.status), (b"", int(status[:3])))
                self.assertEqual(self.bed.idle, 0)
                server.breaks()
                self.assertTrue(client.is_silent())
                client.close()

    def test_204_304_and_HEAD_keep_a_clean_connection(self) -> None:
        f = self.fakes
        for reply, method in (
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET"),
            (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HEAD"),
        ):
            with self.subTest(reply=reply):
                client, server, response = self.once(reply, f.get().replace(b"GET", method), method)
                self.assertEqual(response.get(b"Content-Length"), b"5" if b"5" in reply else None)
                client.send(f.get())
                server.request()
                server.send(f.answer(b"ok"))
                self.assertEqual(client.response().body, b"ok")
                client.close()

    def test_connection_close_of_the_server_is_heeded(self) -> None:
        for reply in (self.fakes.answer(b"ok", b"Connection: close"), self.fakes.answer(b"ok", version=b"1.0")):
            client, server, response = self.once(reply)
            self.assertIsNone(response.get(b"Connection"), "the client's connection has nothing to do with it")
            self.assertEqual(self.bed.idle, 0)
            server.ends()
            client.close()

    def test_an_idle_connection_is_closed_before_the_server_would(self) -> None:
        _client, server = self.warm(pool={"keepalive": Keepalive(idle_s=4.0)})
        self.bed.travel(3.5)
        self.assertEqual(self.bed.idle, 1)
        self.bed.travel(0.8)
        self.assertEqual(self.bed.idle, 0)
        server.ends()

    def test_keep_alive_timeout_of_the_server_shortens_that(self) -> None:
        _, server, _ = self.once(self.fakes.answer(b"ok", b"Keep-Alive: max=5, timeout=3"))
        self.bed.travel(1.5)
        self.assertEqual(self.bed.idle, 1)
        self.bed.travel(0.8)
        server.ends()

    def test_keep_alive_timeout_of_one_second_means_no_reuse(self) -> None:
        _, server, _ = self.once(self.fakes.answer(b"ok", b"Keep-Alive: timeout=1"))
        self.assertEqual(self.bed.idle, 0)
        server.ends()

    def test_P1_more_idle_connections_than_configured_are_kept_for_a_moment_only(self) -> None:
        """Load above `size` at a time must not cost a connection per request; when it is over, `size` are left."""
        f = self.fakes
        origin = self.bed.proxy(pool={"keepalive": Keepalive(size=1)})
        clients = [self.bed.client(f.get()) for _ in range(3)]
        servers = [origin.accept() for _ in clients]
        for server in servers:
            server.request()
            server.send(f.answer(b"ok"))
        for client in clients:
            self.assertEqual(client.response().body, b"ok")
        self.assertEqual(self.bed.idle, 3)
        self.bed.travel(BRIEF_S + 0.2)
        self.assertEqual(self.bed.idle, 1)

    def test_size_0_keeps_none(self) -> None:
        _, server, _ = self.once(self.fakes.answer(b"ok"), pool={"keepalive": Keepalive(size=0)})
        self.assertEqual(self.bed.idle, 0)
        server.ends()

    def test_the_connection_used_last_is_used_first(self) -> None:
        f = self.fakes
        origin = self.bed.proxy()
        clients = [self.bed.client(f.get(b"/%d" % i)) for i in range(2)]
        servers = [origin.accept() for _ in clients]
        for server in servers:
            server.request()
        for server in (servers[1], servers[0]):
            server.send(f.answer(b"ok"))
            self.bed.loop.turns()
        clients[0].response()
        clients[0].send(f.get(b"/again"))
        self.assertEqual(servers[0].request().target, b"/again")

    def test_a_connection_that_has_sent_a_PROXY_header_carries_one_request(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(), pool={"send_proxy": 1})
        line = server.through(b"\r\n")
        self.assertEqual(line.split()[:3], [b"PROXY", b"TCP4", b"127.0.0.1"])
        server.request()
        server.send(f.answer(b"ok"))
        self.assertEqual(client.response().body, b"ok")
        self.assertEqual(self.bed.idle, 0)
        server.ends()

    def test_an_upload_on_a_reused_connection_may_take_longer_than_that_connection_could_be_idle(self) -> None:
        f = self.fakes
        client, server = self.warm(pool={"keepalive": Keepalive(idle_s=4.0)})
        data = f.post(bytes(20_000))
        client.send(data[:-10_000])
        server.head()
        for _ in range(9):
            self.bed.travel(1)
            client.send(bytes(1000))
        client.send(bytes(1000))
        server.take(20_000)
        server.send(f.answer(b"done"))
        self.assertEqual(client.response().body, b"done")


class InterimTests(Case):
    def test_1xx_are_passed_on_before_the_answer(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get())
        server.request()
        early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n"
        server.send(b"HTTP/1.1 102 Processing\r\n\r\n" + early + f.answer(b"ok"))
        self.assertEqual(client.response().status, 102)
        hints = client.response()
        self.assertEqual((hints.status, hints.fields), (103, [(b"Link", b"</a.css>")]))
        self.assertEqual(client.response().body, b"ok")

    def test_an_HTTP10_client_gets_no_1xx(self) -> None:
        f = self.fakes
        client, server = self.bed.start(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        server.request()
        server.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + f.answer(b"ok"))
        self.assertEqual(client.response().status, 200)

    def test_SM_18_a_flood_of_1xx_is_a_502(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get())
        server.request()
        server.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000)
        for _ in range(MAX_INTERIM):
            self.assertEqual(client.response().status, 103)
        self.assertEqual(client.response().status, 502)
        server.breaks()
        self.assertEqual(self.bed.rejected(), {"bad_response": 1})

    def test_100_continue_passes_and_then_the_body(self) -> None:
        f = self.fakes
        data = f.post(b"body", b"Expect: 100-continue")
        client, server = self.bed.start(data[:-4])
        self.assertEqual(server.head().get(b"Expect"), b"100-continue")
        server.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(client.response().status, 100)
        client.send(b"body")
        self.assertEqual(server.take(4), b"body")
        server.send(f.answer(b"ok"))
        self.assertEqual(client.response().status, 200)

    def test_a_refusal_instead_of_100_continue_ends_the_connection(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post(b"body", b"Expect: 100-continue")[:-4])
        server.head()
        server.send(f.answer(b"no", status=b"417 Expectation Failed"))
        response = client.response()
        self.assertEqual((response.status, response.get(b"Connection")), (417, b"close"))
        client.ends()

    def test_a_reused_connection_that_dies_after_a_1xx_is_not_tried_again(self) -> None:
        for how in ("close", "reset"):
            client, server = self.warm()
            client.send(self.fakes.get())
            server.request()
            server.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            self.assertEqual(client.response().status, 103)
            getattr(server, how)()
            self.assertEqual(client.response().status, 502)
            self.assertEqual(self.bed.origins[-1].count, 1)
            client.close()


class BrokenAnswerTests(Case):
    def refused(self, reply: bytes, request: bytes = b"") -> None:
        client, server, response = self.once(reply, request)
        self.assertEqual(response.status, 502)
        self.assertIsNone(response.get(b"Connection"), "the client may go on")
        server.breaks()
        self.assertEqual(self.bed.rejected(), {"bad_response": 1})
        line = self.bed.logged()
        self.assertEqual((line.status, line.cause.value, line.phase.value), (502, "server", "response"))
        self.assertEqual(self.bed.pool.servers[0].failures, 1)
        client.close()

    def test_BF_10_garbage_is_502(self) -> None:
        self.refused(b"\x15\x03\x01\x00\x02\x02\x0a")

    def test_SM_18_length_and_coding_are_502(self) -> None:
        self.refused(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")

    def test_SM_18_two_lengths_are_502(self) -> None:
        self.refused(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")

    def test_BF_10_a_head_without_end_is_502(self) -> None:
        self.refused(b"HTTP/1.1 200 OK\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 3000)

    def test_a_broken_first_chunk_is_502(self) -> None:
        self.refused(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n")

    def test_UP_02_a_101_nobody_asked_for_is_502(self) -> None:
        self.refused(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbytes")

    def test_a_head_may_come_byte_by_byte(self) -> None:
        client, server = self.bed.start(self.fakes.get())
        server.request()
        server.trickle(b"HTTP/1.1 103 Early Hints\r\n\r\n" + self.fakes.answer(b"ok", b"X-A: 1"))
        self.assertEqual(client.response().status, 103)
        self.assertEqual(client.response().body, b"ok")
        self.assertEqual(self.bed.idle, 1)


class DyingTests(Case):
    def truncated(self, reply: bytes, how: str, request: bytes = b"") -> bytes:
        """The server sends `reply` and dies; returns what the client got, whose connection must have ended."""
        client, server = self.bed.start(request or self.fakes.get())
        server.request()
        server.send(reply)
        client.through(b"part")
        getattr(server, how)()
        client.breaks()
        self.assertEqual(self.bed.idle, 0)
        line = self.bed.logged()
        self.assertEqual((line.status, line.cause.value, line.phase.value), (200, "server", "response"))
        self.was_reset = client.is_reset
        data = bytes(client.received)
        client.close()
        self.bed.log.lines.clear()
        return data

    def test_P7_BF_02_a_body_with_a_length_that_breaks_off_ends_short(self) -> None:
        for how in ("close", "reset"):
            data = self.truncated(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart", how)
            self.assertTrue(data.endswith(b"\r\n\r\npart"), data)

    def test_P7_BF_02_a_chunked_body_that_breaks_off_has_no_last_chunk(self) -> None:
        for tail in (b"4\r\npart\r\n", b"100\r\npart", b"4\r\npart\r\n0\r\n", b"4\r\npart\r\n0\r\nX-T"):
            for how in ("close", "reset"):
                data = self.truncated(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + tail, how)
                self.assertTrue(data.endswith(b"4\r\npart\r\n"), data)

    def test_P7_a_broken_chunk_in_the_middle_has_no_last_chunk(self) -> None:
        client, server = self.bed.start(self.fakes.get())
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
        client.through(b"part\r\n")
        server.send(b"ZZ\r\n")
        client.breaks()
        self.assertEqual(client.rest, b"")
        server.breaks()

    def test_P7_a_body_until_close_that_is_reset_has_no_last_chunk(self) -> None:
        data = self.truncated(b"HTTP/1.1 200 OK\r\n\r\npart", "reset")
        self.assertTrue(data.endswith(b"4\r\npart\r\n"), data)

    def test_P7_an_HTTP10_client_sees_a_reset_where_only_the_end_would_tell(self) -> None:
        old = b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"
        for reply, how in (
            (b"HTTP/1.1 200 OK\r\n\r\npart", "reset"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", "close"),
        ):
            data = self.truncated(reply, how, old)
            self.assertTrue(data.endswith(b"\r\n\r\npart"), data)
            self.assertTrue(self.was_reset, "the client cannot know that something is missing")

    def test_P7_a_silent_server_in_the_middle_of_a_body_is_given_up(self) -> None:
        client, server = self.bed.start(self.fakes.get(), timeouts=Timeouts(response_idle_s=3.0))
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        for _ in range(3):
            self.bed.travel(2)
            server.send(b"more")
        client.through(b"partmoremoremore")
        self.bed.travel(3.5)
        client.breaks()
        server.breaks()
        self.assertEqual(self.bed.logged().cause.value, "timeout")

    def test_P8_silence_before_the_head_is_504(self) -> None:
        client, server = self.bed.start(self.fakes.get(), timeouts=Timeouts(response_head_s=3.0))
        server.request()
        self.bed.travel(2.5)
        self.assertTrue(client.is_silent())
        self.bed.travel(0.7)
        self.assertEqual(client.response().status, 504)
        server.breaks()
        self.assertEqual((self.bed.leases, self.bed.rejected()), (0, {"response_timeout": 1}))

    def test_P8_the_request_time_out_covers_it_all(self) -> None:
        client, server = self.bed.start(self.fakes.get(), timeouts=Timeouts(response_head_s=60.0, request_s=2.0))
        server.request()
        self.bed.travel(2.3)
        self.assertEqual(client.response().status, 504)
        server.breaks()

    def test_a_head_that_breaks_off_is_502(self) -> None:
        for how in ("close", "reset"):
            client, server = self.warm()
            client.send(self.fakes.get())
            server.request()
            server.send(b"HTTP/1.1 200 O")
            self.bed.loop.turns()
            getattr(server, how)()
            self.assertEqual(client.response().status, 502)
            self.assertEqual(self.bed.origins[-1].count, 1, "some of an answer was there: no second try")
            client.close()
