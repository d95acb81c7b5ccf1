"""The request of a fill: what the server sees of it, and what becomes of it when the client has left."""

from __future__ import annotations

from typing import Any

from cache_workers import FRESH, CachingCase

from twistedproxy.config.model import HeaderEdits, Retry, Route, RouteCache, Site, Sticky, Timeouts
from twistedproxy.http.destination import Destination
from twistedproxy.http.routes import Router


class FetchTests(CachingCase):
    def asked(self, worker: Any, *lines: bytes) -> Any:
        """The request of a miss, as the server gets it."""
        client = worker.client(self.get(*lines))
        server = worker.origin.accept()
        seen = server.request()
        server.send(self.answer())
        self.assertIn(client.response().status, (200, 206, 304))
        return seen

    def test_the_whole_is_asked_for(self) -> None:
        """Whatever the first client has or wants a part of; what it says of itself is passed on, and so are the route's edits."""
        worker = self.worker(route={"request": HeaderEdits((("X-Ip", "${client_ip}"),))})
        since = b"If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT"
        seen = self.asked(worker, b"Range: bytes=0-1", b'If-None-Match: "1"', since, b"X-Own: 1")
        for name in (b"Range", b"If-None-Match", b"If-Modified-Since"):
            self.assertIsNone(seen.get(name), name)
        self.assertEqual((seen.get(b"X-Own"), seen.get(b"X-Ip"), seen.get(b"X-Forwarded-For")), (b"1", b"127.0.0.1", b"127.0.0.1"))

    def test_another_server_is_tried(self) -> None:
        """As for any request; the client's log line names the one that answered, and both attempts."""
        dead = self.bed.origin()
        dead.stop()
        origin = self.bed.origin()
        worker = self.worker(servers=[dead.address, origin.address], pool={"retry": Retry(tries=2, on=("connect",))})
        worker.origin = origin
        self.asked(worker)
        line = self.bed.logged()
        self.assertEqual((line.server, line.status), (origin.address, 200))
        self.assertLessEqual(line.attempts, 2)
        self.assertEqual(worker.leases, 0)

    def test_sticky_clients_stay_with_their_server(self) -> None:
        """A page that is not kept brings its client the cookie, although another exchange asked for it; with it, that server is asked."""
        origins = [self.bed.origin(), self.bed.origin()]
        worker = self.worker(servers=[origin.address for origin in origins], pool={"sticky": Sticky(cookie="srv")})
        site = Site("site", ("*",), (Route("/", "web", cache=RouteCache()),))
        worker.front.router = Router([site], lambda s, r: Destination(s, r, worker.pool, worker.metrics), frozenset({"web"}))
        for n, origin in enumerate(origins):
            client = worker.client(self.get(path=b"/%d" % n))
            server = origin.accept()
            server.request()
            server.send(self.answer(b"mine", b"Cache-Control: private"))
            cookie = client.response().get(b"Set-Cookie").partition(b";")[0]
            for path in (b"/a", b"/b"):
                again = worker.client(self.get(b"Cookie: " + cookie, path=b"%b%d" % (path, n)))
                server.request()
                server.send(self.answer(b"mine", b"Cache-Control: private"))
                self.assertEqual(again.response().all(b"Set-Cookie"), [])

    def test_its_own_deadline(self) -> None:
        """A server that says nothing fails it when the request's time is over, and the client hears 504."""
        worker = self.worker(route={"timeouts": Timeouts(request_s=3.0, response_head_s=60.0)}, pool={"retry": Retry(tries=1)})
        client = worker.client(self.get())
        server = worker.origin.accept()
        server.request()
        self.bed.travel(3.5)
        self.assertEqual(client.response().status, 504)
        server.breaks()
        self.assertEqual((worker.leases, worker.cache.fills), (0, {}))

    def test_the_client_has_left_before_it_begins_to_answer(self) -> None:
        """Nothing is written to a client that is gone, not even a 103, and the answer is kept for the next."""
        worker = self.worker()
        client = worker.client(self.get())
        server = worker.origin.accept()
        server.request()
        client.reset()
        self.bed.until(lambda: not worker.front.counts.open, "the client to be gone")
        server.send(b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n" + self.answer())
        self.bed.until(lambda: not worker.cache.fills, "the fill to be over")
        self.assertEqual(worker.ask().body, b"body")
        self.assertEqual(self.bed.log.lines[0].cause.value, "client")

    def test_a_server_that_switches_protocols_unasked(self) -> None:
        """It has failed."""
        worker = self.worker()
        client = worker.client(self.get())
        server = worker.origin.accept()
        server.request()
        server.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        self.assertEqual(client.response().status, 502)

    def test_websockets_go_past(self) -> None:
        """A handshake on a route with a cache is a tunnel as anywhere else."""
        worker = self.worker()
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        client = worker.client(self.get(b"Upgrade: websocket", b"Connection: Upgrade", key, b"Sec-WebSocket-Version: 13"))
        server = worker.origin.accept()
        server.request()
        accept = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        server.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + accept + b"\r\n\r\nhi")
        self.assertEqual(client.head().status, 101)
        self.assertEqual(client.take(2), b"hi")
        client.send(b"ho")
        self.assertEqual(server.take(2), b"ho")
        client.close()
        self.assertEqual(worker.counted(), {})

    def test_it_is_neither_counted_nor_logged(self) -> None:
        """A renewal in the background is no client's request."""
        worker = self.worker(rules=RouteCache(stale_while_revalidate_s=100.0))
        self.fill(worker, b"body", FRESH)
        self.bed.travel(61)
        worker.ask()
        server = worker.origin.accept()
        server.request()
        server.send(self.answer())
        self.bed.until(lambda: not worker.cache.fills, "the renewal")
        self.bed.logged(2)
        self.assertEqual(worker.counted(), {"miss": 1, "stale": 1})
