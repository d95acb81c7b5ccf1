"""Mirrors: copies that the client never notices, and what they tell of the difference between two pools."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, Mirror, Pool, Route, Server, Site
from twistedproxy.http.destination import Destination
from twistedproxy.http.mirror import MAX_ANSWER, MAX_BODY, MAX_IN_FLIGHT, Mirrors
from twistedproxy.http.routes import Router
from twistedproxy.pool.pool import Pool as RunningPool

KEY = ("site", "/", "shadow")


class MirrorTests(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def start(self, **mirror: Any) -> Any:
        """A proxy whose route mirrors everything to another server; returns the two servers."""
        spec = Mirror("shadow", **({"percent": 100.0} | mirror))
        origin = self.bed.proxy(routes=[Route("/", "web", mirror=spec)])
        other = self.bed.origin()
        pool = RunningPool(
            Pool("shadow", (Server(Address(other.address)),)), seconds=self.bed.loop.seconds, wheel=self.bed.loop.wheel,
            random=random.Random(1),
        )  # fmt: skip
        self.bed.pools.append(pool)
        self.mirrors = self.bed.front.mirrors = Mirrors(lambda name: pool, self.bed.metrics.mirrors)
        return origin, other

    def results(self) -> dict[str, int]:
        return {result: n for (*_, result), n in self.bed.metrics.mirrors.items() if n}

    def test_a_copy_of_request_and_body_arrives_and_its_answer_goes_nowhere(self) -> None:
        """The client gets the real answer; the other server sees the same request with its body."""
        origin, other = self.start()
        client = self.bed.client(b"POST /x?a=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
        server = origin.accept()
        self.assertEqual(server.request().body, b"hello")
        shadow = other.accept()
        copy = shadow.request()
        self.assertEqual((copy.method, copy.target, copy.body), (b"POST", b"/x?a=1", b"hello"))
        shadow.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nbad")
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
        self.assertEqual(client.response().body, b"good")
        self.bed.until(lambda: self.results() == {"sent": 1}, "the copy to be counted")
        self.assertEqual(self.mirrors.in_flight, 0)

    def test_a_chunked_body_is_copied_when_it_is_whole(self) -> None:
        """Nothing is sent before the original request is complete."""
        origin, other = self.start()
        client = self.bed.client(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        server = origin.accept()
        self.assertEqual(other.count, 0)
        client.send(b"2\r\nde\r\n0\r\n\r\n")
        self.assertEqual(server.request().body, b"abcde")
        shadow = other.accept()
        self.assertEqual(shadow.request().body, b"abcde")
        shadow.close()
        server.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        self.assertEqual(client.response().status, 204)
        self.bed.until(lambda: self.results() == {"failed": 1}, "the failure to be counted")

    def test_a_body_over_the_bound_is_not_copied(self) -> None:
        """Memory for copies is bounded: a large upload passes without one."""
        origin, other = self.start()
        size = MAX_BODY + 1
        client = self.bed.client(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        server = origin.accept()
        self.assertEqual(len(server.request().body), size)
        server.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        self.assertEqual(client.response().status, 204)
        self.assertEqual((other.count, self.results()), (0, {"large": 1}))

    def test_when_too_many_are_on_their_way_the_copy_is_dropped(self) -> None:
        """A dead mirror costs a bounded number of copies and no client anything."""
        origin, other = self.start()
        self.mirrors.in_flight = MAX_IN_FLIGHT
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        server = origin.accept()
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(client.response().status, 200)
        self.assertEqual((other.count, self.results()), (0, {"dropped": 1}))

    def test_a_mirror_that_cannot_be_reached_fails_nobody(self) -> None:
        """The connection to the mirror is refused: the client never learns of it."""
        origin, other = self.start()
        other.stop()
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        server = origin.accept()
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self.assertEqual(client.response().body, b"ok")
        self.bed.until(lambda: self.results() == {"failed": 1}, "the failure to be counted")

    def test_a_mirror_that_hangs_costs_the_client_nothing(self) -> None:
        """It takes the copy and never answers: the client has its answer at once, and the place is free when the time is up."""
        origin, other = self.start(compare=True)
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        server = origin.accept()
        server.request()
        other.accept().request()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self.assertEqual(client.response().body, b"ok")
        self.assertEqual((self.mirrors.in_flight, self.results()), (1, {}))
        self.bed.travel(61.0)
        self.assertEqual((self.mirrors.in_flight, self.results()), (0, {"failed": 1}))

    def test_of_a_long_answer_only_the_beginning_is_read(self) -> None:
        """A download is not fetched twice in full; that the copy's was broken off is no difference."""
        origin, other = self.start(compare=True)
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        server = origin.accept()
        server.request()
        shadow = other.accept()
        shadow.request()
        body = b"x" * (MAX_ANSWER + 70_000)
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body)
        server.send(head + body + b"\r\n0\r\n\r\n")
        self.assertEqual(len(client.response().body), len(body))
        shadow.send(head + body + b"\r\n")
        self.bed.until(lambda: self.mirrors.in_flight == 0, "the copy to be over without its end")
        self.assertEqual(self.results(), {"sent": 1, "same": 1})

    def test_an_endless_answer_is_broken_off(self) -> None:
        """A byte now and then does not keep the place for good."""
        origin, other = self.start()
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        server = origin.accept()
        server.request()
        server.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        self.assertEqual(client.response().status, 204)
        shadow = other.accept()
        shadow.request()
        shadow.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            shadow.send(b"1\r\nx\r\n")
            self.bed.travel(50.0)
        self.bed.until(lambda: self.mirrors.in_flight == 0, "the copy to be over")

    def test_only_the_wanted_share_and_methods_are_copied(self) -> None:
        """0 % means nobody, and a list of methods leaves out the others."""
        for mirror in ({"percent": 0.0}, {"methods": ("POST",)}):
            with self.subTest(mirror):
                exchange = type("E", (), {"method": b"GET"})()
                self.assertIsNone(Mirrors(lambda name: None, Counter()).shadow(exchange, Mirror("shadow", **mirror), 0.0))

    def compare(self, one: bytes, two: bytes, **mirror: Any) -> Any:
        origin, other = self.start(compare=True, **mirror)
        client = self.bed.client(b"GET /secret?token=1 HTTP/1.1\r\nHost: h\r\n\r\n")
        server = origin.accept()
        server.request()
        shadow = other.accept()
        shadow.request()
        shadow.send(two)
        server.send(one)
        client.response()
        self.bed.until(lambda: "same" in self.results() or "different" in self.results(), "a comparison")
        return self.mirrors.to_plain()

    def test_equal_answers_are_the_same(self) -> None:
        """No difference, no sample."""
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\nok"
        seen = self.compare(answer, answer.replace(b"a/b", b"a/b\r\nDate: now"))
        self.assertEqual((seen["differences"], seen["samples"]), ([], []))

    def test_differences_are_classed_and_sampled_without_secrets(self) -> None:
        """Status, a chosen field and the body differ; the sample shows neither cookies nor the query."""
        seen = self.compare(
            b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nSet-Cookie: s=hidden1\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 404 No\r\nContent-Type: a/c\r\nSet-Cookie: s=hidden2\r\nContent-Length: 3\r\n\r\nnot",
            headers=("content-type", "set-cookie"),
        )
        kinds = {row[3] for row in seen["differences"]}
        self.assertEqual(kinds, {"status 200 404", "header content-type", "header set-cookie", "body"})
        (sample,) = seen["samples"]
        self.assertEqual((sample["request"], sample["original"]["headers"]["content-type"]), ("GET /secret", "a/b"))
        self.assertNotIn("hidden", repr(sample))
        self.assertNotIn("token", repr(sample))

    def test_a_request_refused_before_it_is_sent_leaves_nothing_behind(self) -> None:
        """A body over the route's limit: no copy, and the room for copies is free again."""
        spec = Mirror("shadow")
        origin, other = self.start()
        self.bed.front.router = Router(
            [Site("site", ("*",), (Route("/", "web", mirror=spec, max_body=3),))],
            lambda s, r: Destination(s, r, self.bed.pool, self.bed.metrics),
        )
        self.assertEqual(self.bed.client(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nabcd").response().status, 413)
        self.assertEqual((origin.count, other.count, self.mirrors.in_flight, self.results()), (0, 0, 0, {"incomplete": 1}))
