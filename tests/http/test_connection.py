"""One client's connection: keep-alive, pipelining, bodies and their deadlines, and how it ends.

It has over 500 lines: one case for each thing a client may do.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Route, Timeouts
from twistedproxy.http.connection import REQUESTS_PER_TURN, Reading
from twistedproxy.net.transport import HIGH_WATER


class Case(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def serve(self, server: Any, body: bytes = b"ok", *lines: bytes) -> Any:
        """The next request of `server`'s connection, answered."""
        request = server.request()
        server.send(self.fakes.answer(body, *lines))
        return request


class KeepAliveTests(Case):
    def test_many_requests_use_one_connection_on_either_side(self) -> None:
        f = self.fakes
        origin = self.bed.proxy()
        client = self.bed.client()
        server = None
        for i in range(5):
            client.send(f.get(b"/%d" % i))
            server = server or origin.accept()
            self.assertEqual(self.serve(server, b"%d" % i).target, b"/%d" % i)
            response = client.response()
            self.assertEqual((response.body, response.get(b"Connection")), (b"%d" % i, None))
        self.assertEqual(origin.count, 1)

    def test_100_pipelined_requests_in_one_segment_are_answered_in_order(self) -> None:
        f = self.fakes
        client, server = self.bed.start(b"".join(f.get(b"/%d" % i) for i in range(100)))
        for i in range(100):
            self.assertEqual(self.serve(server, b"answer %d" % i).target, b"/%d" % i)
        self.assertEqual([client.response().body for _ in range(100)], [b"answer %d" % i for i in range(100)])
        self.assertEqual(len(self.bed.log.lines), 100)

    def test_pipelined_requests_go_to_the_server_one_at_a_time(self) -> None:
        f = self.fakes
        _client, server = self.bed.start(f.get(b"/a") + f.get(b"/b"))
        self.assertEqual(server.head().target, b"/a")
        self.assertTrue(server.is_silent(), "the second request went out before the first was answered")

    def test_1000_pipelined_requests_answered_here_need_no_deeper_stack(self) -> None:
        f = self.fakes
        self.bed.proxy(requests_per_connection=5000)
        one = b"OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"
        client = self.bed.client(one * 1000)
        for _ in range(1000):
            self.assertEqual(client.response().status, 200)
        client.send(f.get() + one)
        server = self.bed.origins[0].accept()
        self.serve(server)
        self.assertEqual(client.response().body, b"ok")
        self.assertEqual(client.response().status, 200)

    def test_pipelined_requests_answered_here_do_not_hold_up_the_others(self) -> None:
        """One client's 999 are served in turns, and its FIN behind them cuts none of them off."""
        self.bed.proxy(hosts=("example.com",))
        client = self.bed.client(self.fakes.get(host=b"nobody.example") * 999).fin()
        most, seen = 0, 0

        def look() -> bool:
            nonlocal most, seen
            most, seen = max(most, len(self.bed.log.lines) - seen), len(self.bed.log.lines)
            return seen == 999

        self.bed.until(look, "the answers")
        self.assertLessEqual(most, 2 * REQUESTS_PER_TURN)
        self.assertEqual({client.response().status for _ in range(999)}, {404})
        client.ends()

    def test_pipelined_requests_are_answered_in_order_whoever_answers(self) -> None:
        f = self.fakes
        origin = self.bed.proxy(hosts=("example.com",))
        lost = f.get(host=b"nobody.example") * (REQUESTS_PER_TURN + 5)
        client = self.bed.client(lost + f.get() + lost)
        client.send(lost)
        server = origin.accept()
        server.request()
        self.assertTrue(server.is_silent())
        server.send(f.answer(b"ok"))
        some = [404] * (REQUESTS_PER_TURN + 5)
        self.assertEqual([client.response().status for _ in range(3 * len(some) + 1)], [*some, 200, *some, *some])

    def test_1000_pipelined_requests_no_server_can_take_need_no_deeper_stack(self) -> None:
        f = self.fakes
        self.bed.proxy(requests_per_connection=5000)
        for server in self.bed.pool.servers:
            server.weight = 0
        self.bed.pool._view.expire()
        client = self.bed.client(f.get() * 300)
        self.assertEqual({client.response().status for _ in range(300)}, {503})

    def test_a_request_may_come_in_pieces_of_any_size(self) -> None:
        f = self.fakes
        data = f.post_chunked(b"abc", b"defg", lines=(b"X-A: 1",), trailers=b"X-T: 1\r\n") + f.get(b"/next")
        origin = self.bed.proxy(requests_per_connection=100_000)
        client, server = self.bed.client(), None
        for cut in range(1, len(data)):
            client.send(data[:cut])
            self.bed.loop.turns(2)
            client.send(data[cut:])
            server = server or origin.accept()
            request = self.serve(server)
            self.assertEqual((request.method, request.body, request.trailers), (b"POST", b"abcdefg", [(b"X-T", b"1")]), f"cut at {cut}")
            self.assertEqual(self.serve(server).target, b"/next", f"cut at {cut}")
            self.assertEqual((client.response().status, client.response().status), (200, 200))

    def test_a_request_may_come_byte_by_byte(self) -> None:
        f = self.fakes
        self.bed.proxy()
        client = self.bed.client().trickle(f.post(b"0123456789", b"X-A: 1"))
        server = self.bed.origins[0].accept()
        self.assertEqual(self.serve(server).body, b"0123456789")
        self.assertEqual(client.response().body, b"ok")

    def test_the_last_request_of_a_connection_is_told_so(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get() * 3, requests_per_connection=2)
        self.serve(server)
        self.serve(server)
        self.assertIsNone(client.response().get(b"Connection"))
        self.assertEqual(client.response().get(b"Connection"), b"close")
        client.ends()
        self.assertEqual(client.rest, b"")

    def test_an_old_connection_is_closed_after_its_next_answer(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(), connection_age_s=10.0)
        self.serve(server)
        self.assertIsNone(client.response().get(b"Connection"))
        self.bed.travel(11)
        client.send(f.get())
        self.serve(self.bed.origins[0].accept())
        self.assertEqual(client.response().get(b"Connection"), b"close")
        client.ends()

    def test_connection_close_of_the_client_is_kept(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(b"/", b"Connection: close"))
        self.serve(server)
        self.assertEqual(client.response().get(b"Connection"), b"close")
        client.ends()
        self.assertEqual(self.bed.idle, 1, "the server's connection has nothing to do with it")

    def test_an_idle_connection_is_closed_without_a_word(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(), timeouts=Timeouts(keepalive_s=5.0))
        self.serve(server)
        client.response()
        self.bed.travel(4.5)
        self.assertTrue(client.is_silent())
        self.bed.travel(1)
        client.ends()
        self.assertEqual(client.rest, b"")

    def test_http10_gets_one_answer_and_the_end_of_the_connection(self) -> None:
        client, server = self.bed.start(b"GET /old HTTP/1.0\r\n\r\n")
        request = self.serve(server)
        self.assertEqual((request.start, request.get(b"Host")), (b"GET /old HTTP/1.1", self.bed.origins[0].address.encode()))
        self.assertEqual(client.response().get(b"Connection"), b"close")
        client.ends()

    def test_http10_with_keep_alive_keeps_its_connection_and_is_told(self) -> None:
        one = b"GET /old HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n"
        client, server = self.bed.start(one)
        self.assertEqual(self.serve(server).get(b"Host"), b"h")
        self.assertEqual(client.response().get(b"Connection"), b"keep-alive")
        client.send(one)
        self.serve(server)
        self.assertEqual(client.response().body, b"ok")


class SlowReaderTests(Case):
    def test_P4_pipelined_answers_to_a_client_that_does_not_read_wait_for_it(self) -> None:
        f = self.fakes
        origin = self.bed.proxy(requests_per_connection=1000)
        client = self.bed.client(f.get() * 200, receive_buffer=65536)
        server = origin.accept()
        most = 0

        def serve_all() -> None:
            nonlocal most
            server.pump()
            while b"\r\n\r\n" in server.rest:
                self.serve(server, bytes(60_000))
                self.bed.loop.turns(1)
                server.pump()
                most = max(most, self.bed.connection.transport.buffered)

        for _ in range(20):
            self.bed.loop.turns(1)
            serve_all()
        self.assertTrue(server.is_silent())
        self.assertLess(bytes(server.received).count(b"GET"), 200, "the kernel took everything: the test shows nothing")
        client.until(lambda: serve_all() or bytes(client.received).count(b"HTTP/1.1 200") == 200, "the answers")
        self.assertEqual({len(client.response().body) for _ in range(200)}, {60_000})
        self.assertLess(most, 3 * HIGH_WATER)

    def test_P4_the_answer_behind_a_full_one_is_held_back_too(self) -> None:
        f = self.fakes
        origin = self.bed.proxy()
        client = self.bed.client(receive_buffer=4096)
        client.send(f.get(b"/1"))
        server = origin.accept()
        server.request()
        first = bytes(8_000_000)
        server.send_what_fits(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = server.send_what_fits(b"%x\r\n%b\r\n0\r\n\r\n" % (len(first), first))
        self.assertLess(sent, len(first), "the kernel took everything")
        self.assertLess(self.bed.connection.transport.buffered, 3 * HIGH_WATER)


class RefusalTests(Case):
    def refused(self, data: bytes, status: int, **proxy: Any) -> Any:
        self.bed.proxy(**proxy)
        client = self.bed.client(data)
        response = client.response()
        self.assertEqual(response.status, status)
        self.assertEqual(response.get(b"Connection"), b"close")
        self.assertEqual(response.get(b"Content-Type"), b"application/problem+json")
        problem = json.loads(response.body)
        self.assertEqual((problem["status"], problem["instance"].encode()), (status, response.get(b"X-Request-Id")))
        client.ends()
        self.assertEqual(client.rest, b"")
        self.assertEqual(self.bed.origins[0].count, 0, "the server saw something of it")
        line = self.bed.logged()
        self.assertEqual((line.status, line.head, line.phase.value), (status, None, "head"))
        self.assertEqual(sum(self.bed.rejected().values()), 1)
        return response

    def test_SM_02_two_lengths_are_400_and_close(self) -> None:
        self.refused(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400)

    def test_SM_01_length_and_coding_are_400_and_what_follows_is_no_request(self) -> None:
        f = self.fakes
        bad = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        self.refused(bad + f.get(b"/smuggled"), 400)

    def test_a_long_request_line_is_414(self) -> None:
        self.refused(self.fakes.get(b"/" + b"a" * 9000), 414)

    def test_DO_04_a_long_head_is_431(self) -> None:
        self.refused(self.fakes.get(b"/", b"X-A: " + b"a" * 40_000), 431)

    def test_DO_04_the_limits_are_the_listeners_own(self) -> None:
        self.refused(self.fakes.get(b"/", *[b"X-%d: 1" % i for i in range(20)]), 431, max_fields=10)

    def test_SM_20_http2_on_this_port_is_505(self) -> None:
        self.refused(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505)

    def test_a_broken_request_behind_a_good_one_is_refused_after_its_answer(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get() + b"BROKEN\r\n\r\n")
        self.serve(server)
        self.assertEqual(client.response().status, 200)
        self.assertEqual(client.response().status, 400)
        client.ends()

    def test_DO_01_a_head_that_does_not_end_is_408_however_it_trickles(self) -> None:
        self.bed.proxy(timeouts=Timeouts(request_head_s=10.0))
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: a\r\n")
        for _ in range(19):
            client.send(b"X")
            self.bed.travel(0.5)
        self.assertTrue(client.is_silent())
        client.send(b"Y")
        self.bed.travel(0.7)
        self.assertEqual(client.response().status, 408)
        client.ends()
        self.assertEqual(self.bed.rejected(), {"head_timeout": 1})

    def test_a_stray_line_end_behind_a_request_is_no_request_that_began(self) -> None:
        """Old clients send CR LF behind a body (RFC 9112 2.2): they are let go in silence as if they had not."""
        f = self.fakes
        for stray in (b"\r\n", b"\r"):
            client, server = self.bed.start(f.get() + stray, timeouts=Timeouts(request_head_s=2.0, keepalive_s=6.0))
            self.serve(server)
            client.response()
            self.bed.travel(5.5)
            self.assertTrue(client.is_silent())
            self.bed.travel(1)
            client.ends()
            self.assertEqual((client.rest, self.bed.rejected()), (b"", {}))

    def test_DO_01_behind_a_stray_line_end_a_head_has_its_own_time_too(self) -> None:
        self.bed.proxy(hosts=("example.com",), timeouts=Timeouts(request_head_s=2.0, keepalive_s=60.0))
        lost = self.fakes.get(host=b"nobody.example")
        client = self.bed.client(lost + b"\r")
        self.assertEqual(client.response().status, 404)
        self.bed.travel(5)
        client.send(b"\n")
        self.bed.travel(5)
        client.send(lost)
        self.assertEqual(client.response().status, 404)
        client.send(b"\r\n")
        self.bed.travel(5)
        client.send(b"GET / HT")
        self.bed.travel(1.5)
        self.assertTrue(client.is_silent())
        self.bed.travel(0.7)
        self.assertEqual(client.response().status, 408)

    def test_DO_01_a_second_head_has_its_own_time_from_its_first_byte(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(), timeouts=Timeouts(request_head_s=2.0, keepalive_s=60.0))
        self.serve(server)
        client.response()
        self.bed.travel(10)
        client.send(b"GET / HT")
        self.bed.travel(1.5)
        self.assertTrue(client.is_silent())
        self.bed.travel(0.7)
        self.assertEqual(client.response().status, 408)
        client.ends()

    def test_a_client_that_says_nothing_is_let_go_without_a_word(self) -> None:
        self.bed.proxy(timeouts=Timeouts(request_head_s=2.0))
        client = self.bed.client()
        self.bed.travel(2.5)
        client.ends()
        self.assertEqual(client.rest, b"")
        self.assertEqual(self.bed.log.lines, [])


class BodyTests(Case):
    def test_DO_02_a_body_that_stops_is_408_and_the_server_is_let_go(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post(bytes(1000))[:-500], timeouts=Timeouts(body_idle_s=3.0))
        server.head()
        self.bed.travel(3.5)
        self.assertEqual(client.response().status, 408)
        client.ends()
        server.breaks()
        self.assertEqual(self.bed.rejected(), {"body_timeout": 1})
        self.assertEqual(self.bed.leases, 0)

    def test_a_route_has_its_own_word_on_silence_in_a_body(self) -> None:
        """`body_idle` of the route counts, from the first silence on, in place of the proxy's."""
        for limit_s, answer in ((3.0, 408), (60.0, 0)):
            self.bed.proxy(routes=[Route("/", "web", timeouts=Timeouts(body_idle_s=limit_s))])
            client = self.bed.client(self.fakes.post(bytes(1000))[:-500])
            self.bed.travel(3.5 if answer else 40.0)
            if answer:
                self.assertEqual(client.response().status, answer)
            else:
                self.assertEqual(self.bed.rejected(), {})

    def trickles(self, data: bytes) -> Any:
        client, server = self.bed.start(data)
        server.head()
        for _ in range(30):
            client.send(b"x")
            self.bed.travel(0.5)
            client.pump()
            if client.received:
                break
        self.assertEqual(client.response().status, 408, "slower than 500 bytes per second for 15 s")
        server.breaks()
        return self.bed.logged()

    def test_DO_02_a_body_that_comes_too_slowly_is_408(self) -> None:
        self.assertEqual(self.trickles(self.fakes.post(bytes(10_000))[:-9_000]).cause.value, "timeout")

    def test_DO_02_a_large_body_that_comes_too_slowly_is_408_too(self) -> None:
        self.assertEqual(self.trickles(self.fakes.post(bytes(1_000_000))[:-999_000]).cause.value, "timeout")

    def test_the_minimum_rate_does_not_count_the_wait_for_100_continue(self) -> None:
        f = self.fakes
        data = f.post(bytes(20_000), b"Expect: 100-continue")
        client, server = self.bed.start(data[:-20_000])
        server.head()
        self.bed.travel(12)
        server.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(client.response().status, 100)
        client.send(bytes(1000))
        self.bed.loop.turns()
        client.send(bytes(19_000))
        server.take(20_000)
        server.send(f.answer(b"ok"))
        self.assertEqual(client.response().status, 200)

    def test_SM_16_an_answer_before_the_body_is_there_ends_the_connection(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post(bytes(100))[:-90])
        server.head()
        server.send(f.answer(b"no", status=b"403 Forbidden"))
        response = client.response()
        self.assertEqual((response.status, response.get(b"Connection")), (403, b"close"))
        client.send(f.get(b"/smuggled"))
        client.ends()
        self.assertEqual(client.rest, b"")
        self.assertEqual((self.bed.origins[0].count, self.bed.idle), (1, 0), "the server's connection is owed a body")
        server.breaks()
        self.assertNotIn(b"smuggled", bytes(server.received))

    def test_SM_16_an_answer_made_here_before_the_body_is_there_ends_the_connection(self) -> None:
        f = self.fakes
        self.bed.proxy(route={"max_body": 10})
        client = self.bed.client(f.post(bytes(2000))[:-1500] + f.get(b"/smuggled"))
        response = client.response()
        self.assertEqual((response.status, response.get(b"Connection")), (413, b"close"))
        client.ends()
        self.assertEqual(client.rest, b"")
        self.assertEqual(self.bed.origins[0].count, 0)

    def test_SM_16_an_answer_made_here_after_a_whole_body_keeps_the_connection(self) -> None:
        f = self.fakes
        origin = self.bed.proxy()
        trace = b"TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\nContent-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        client = self.bed.client(trace + f.get(b"/next"))
        self.assertEqual(client.response().status, 200)
        self.assertEqual(self.serve(origin.accept()).target, b"/next")
        self.assertEqual(client.response().body, b"ok")

    def test_an_early_answer_may_last_longer_than_the_request_time_out(self) -> None:
        f = self.fakes
        timeouts = Timeouts(request_s=5.0, response_head_s=5.0, response_idle_s=60.0)
        client, server = self.bed.start(f.post(bytes(100))[:-50], timeouts=timeouts)
        server.head()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        self.assertEqual(client.head().status, 200)
        client.send(bytes(50))
        self.bed.travel(10)
        server.send(b"cd")
        self.assertEqual(client.take(4), b"abcd")
        self.assertEqual(self.bed.logged().cause.value, "ok")

    def test_413_by_length_before_a_byte_goes_to_the_server(self) -> None:
        f = self.fakes
        self.bed.proxy(route={"max_body": 1000})
        client = self.bed.client(f.post(bytes(1001), b"Expect: 100-continue")[:-1001])
        self.assertEqual(client.response().status, 413)
        client.ends()
        self.assertEqual(self.bed.origins[0].count, 0)
        self.assertEqual(self.bed.rejected(), {"body_too_large": 1})

    def test_413_by_bytes_of_a_chunked_body_and_the_server_is_let_go(self) -> None:
        f = self.fakes
        data = f.post_chunked(bytes(900), bytes(200))
        client, server = self.bed.start(data[:600], route={"max_body": 1000})
        server.head()
        client.send(data[600:])
        self.assertEqual(client.response().status, 413)
        server.breaks()
        self.assertNotIn(b"0\r\n\r\n", server.rest, "the server was told that the body is complete")
        line = self.bed.logged()
        self.assertEqual((line.cause.value, line.phase.value), ("limit", "request"))

    def test_a_body_of_exactly_max_body_is_taken(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post(bytes(1000)) + f.post_chunked(bytes(1000)), route={"max_body": 1000})
        for _ in range(2):
            self.assertEqual(len(self.serve(server).body), 1000)
            self.assertEqual(client.response().status, 200)

    def test_SM_10_a_broken_chunk_is_400_and_the_server_is_let_go(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.post_chunked(b"abc")[:-5])
        server.head()
        client.send(b"ZZ\r\n" + f.get(b"/smuggled"))
        self.assertEqual(client.response().status, 400)
        client.ends()
        server.breaks()
        self.assertNotIn(b"smuggled", bytes(server.received))
        self.assertEqual(self.bed.rejected(), {"bad_body": 1})

    def test_SM_10_a_broken_first_chunk_is_400_and_reaches_no_server(self) -> None:
        self.bed.proxy()
        client = self.bed.client(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n")
        self.assertEqual(client.response().status, 400)
        client.ends()
        self.assertEqual(self.bed.origins[0].count, 0)


class LeavingTests(Case):
    def test_BF_09_a_client_that_resets_while_idle_costs_nothing(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get())
        self.serve(server)
        client.response()
        client.reset()
        self.bed.until(lambda: self.bed.front.open == 0)
        self.assertEqual(self.bed.rejected(), {})

    def test_BF_09_a_client_that_half_closes_after_its_request_gets_the_answer_that_has_begun(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get())
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        client.through(b"ab")
        client.fin()
        self.bed.loop.turns()
        server.send(b"cd")
        self.assertEqual(client.take(2), b"cd")
        client.ends()

    def test_held_back_bytes_are_bounded(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(b"/first"), requests_per_connection=100_000)
        server.request()
        many = f.get(b"/more") * 150_000
        sent = client.send_what_fits(many)
        self.assertLess(sent, len(many))
        self.assertIs(self.bed.connection.reading, Reading.HELD_BACK)
        self.assertLess(len(self.bed.connection._buffer), 3 * HIGH_WATER)
        server.send(f.answer(b"1"))
        self.assertEqual(client.response().body, b"1")
        for _ in range(3):
            self.assertEqual(self.serve(server).target, b"/more")
            self.assertEqual(client.response().body, b"ok")
