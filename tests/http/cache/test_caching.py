"""What clients of a route with a cache get, whatever state the answer is in."""

from __future__ import annotations

import os
from typing import Any

from cache_workers import FRESH, CachingCase

from twistedproxy.config.model import Cache as CacheSpec
from twistedproxy.config.model import Retry, RouteCache, Timeouts
from twistedproxy.http.cache import policy

ETAG = b'ETag: "1"'


class HitTests(CachingCase):
    def test_ca_02_miss_then_hit_by_url_and_host(self) -> None:
        """CA-02: the second request for a URL is answered from the cache; another host, query or path is not."""
        worker = self.worker()
        first = self.fill(worker)
        self.assertEqual((first.body, first.get(b"Age")), (b"body", None))
        self.assertIn(b"fwd=uri-miss", first.get(b"Cache-Status"))
        for _ in range(3):
            hit = worker.ask()
            self.assertEqual((hit.status, hit.body, hit.get(b"Age")), (200, b"body", b"0"))
            self.assertTrue(hit.get(b"Cache-Status").startswith(b"revproxy; hit; ttl="))
        self.assertEqual(worker.origin.count, 1)
        for path, host in ((b"/x?a=1", b"example.com"), (b"/y", b"example.com"), (b"/x", b"other.example.com")):
            client = worker.client(self.get(path=path, host=host))
            server = worker.origin.accept()
            server.request()
            server.send(self.answer(b"another"))
            self.assertEqual(client.response().body, b"another")
            server.close()
        self.assertEqual(worker.counted(), {"miss": 4, "hit": 3})

    def test_every_request_is_logged_once_with_the_server_that_was_asked(self) -> None:
        """A miss names its server, a hit none; bytes and status are those of the client; no lease is left."""
        worker = self.worker()
        self.fill(worker, b"0123456789")
        line = self.bed.logged()
        self.assertEqual((line.status, line.bytes_sent, line.server, str(line.cause.value)), (200, 10, worker.origin.address, "ok"))
        worker.ask()
        line = self.bed.logged(2)
        self.assertEqual((line.status, line.bytes_sent, line.server, line.site), (200, 10, "", "site"))
        worker.ask(b"Range: bytes=2-4")
        self.assertEqual((self.bed.logged(3).status, self.bed.logged(3).bytes_sent), (206, 3))
        self.assertEqual(worker.leases, 0)

    def test_one_connection_goes_through_every_kind_of_answer(self) -> None:
        """HEAD, 304, 206 of one part and of several, 416 and 412 leave the connection good for the next request."""
        worker = self.worker()
        self.fill(worker, b"0123456789", FRESH, ETAG)
        client = worker.client()
        head = worker.ask(method=b"HEAD", client=client)
        self.assertEqual((head.status, head.get(b"Content-Length"), head.body), (200, b"10", b""))
        self.assertEqual(worker.ask(b'If-None-Match: "1"', client=client).status, 304)
        part = worker.ask(b"Range: bytes=-3", client=client)
        self.assertEqual((part.status, part.body, part.get(b"Content-Range")), (206, b"789", b"bytes 7-9/10"))
        self.assertEqual(worker.ask(b"Range: bytes=20-", client=client).status, 416)
        self.assertEqual(worker.ask(b'If-Match: "2"', client=client).status, 412)
        self.assertEqual(worker.ask(client=client).body, b"0123456789")
        self.assertEqual((worker.origin.count, worker.counted()), (1, {"miss": 1, "hit": 6}))

    def test_http_1_0(self) -> None:
        """A client that knows neither chunks nor keep-alive gets body and end, from a fill in chunks and from what is kept of it."""
        worker = self.worker()
        client = worker.client(self.get(version=b"1.0"))
        server = worker.origin.accept()
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + FRESH + b"\r\n\r\n" + self.fakes.chunked(b"abc", b"de"))
        self.assertEqual(client.response().body, b"abcde")
        client = worker.client(self.get(version=b"1.0"))
        self.assertEqual(client.response().body, b"abcde")
        self.assertEqual(worker.origin.count, 1)

    def test_large_answers_come_from_the_file(self) -> None:
        """A body that does not fit into memory is kept in a file, also one in chunks; parts of it are sent, several as well."""
        worker = self.worker()
        body = os.urandom(3_000_000)
        self.fill(worker, body, FRESH, ETAG)
        client = worker.client(self.get(path=b"/chunks"))
        server = worker.origin.accept()
        server.request()
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + FRESH + b"\r\n\r\n"
        server.send(head + self.fakes.chunked(body[:2_000_000], body[2_000_000:]))
        self.assertEqual(client.response().body, body)
        for path in (b"/x", b"/chunks"):
            self.assertEqual(worker.ask(path=path).body, body)
            part = worker.ask(b"Range: bytes=1999999-2000001", path=path)
            self.assertEqual((part.status, part.body), (206, body[1999999:2000002]))
            parts = worker.ask(b"Range: bytes=2500000-2500002,0-1", path=path)
            self.assertEqual((parts.status, parts.body.count(body[:2]) > 0, parts.body.count(body[2500000:2500003])), (206, True, 1))
            slow = worker.client(self.get(path=path), receive_buffer=4096)
            self.bed.loop.turns(20)
            self.assertEqual(slow.response().body, body)
        self.assertEqual(worker.origin.count, 2)

    def test_a_damaged_file_is_a_miss_and_is_counted(self) -> None:
        """What a disk has spoilt is not sent: the server is asked again."""
        worker = self.worker()
        body = os.urandom(2_000_000)
        self.fill(worker, body)
        files = [os.path.join(where, name) for where, _, names in os.walk(os.path.join(self.directory, "objects")) for name in names]
        self.assertEqual(len(files), 1)
        with open(files[0], "r+b") as file:
            file.seek(500_000)
            file.write(b"spoilt")
        self.assertEqual(self.fill(worker, b"new").body, b"new")
        self.assertEqual(worker.store.statistics()["disk_corrupt"], 1)
        self.assertEqual(worker.ask().body, b"new")

    def test_a_client_that_leaves_in_the_middle_of_a_kept_file(self) -> None:
        """It is counted and logged once, and nothing stays behind."""
        worker = self.worker()
        self.fill(worker, os.urandom(3_000_000))
        client = worker.client(self.get(), receive_buffer=4096)
        client.through(b"\r\n\r\n")
        client.reset()
        line = self.bed.logged(2)
        self.assertEqual((line.cause.value, line.status), ("client", 200))
        self.assertEqual(worker.counted(), {"miss": 1, "hit": 1})

    def test_only_if_cached(self) -> None:
        """A client that wants nothing but the cache's word gets 504 when that has none; the server is not asked."""
        worker = self.worker()
        # Request directives do not count by default, so the client's wish is heard only where the policy says so.
        self.patch(policy, "only_if_cached", lambda head, settings: True)
        self.assertEqual(worker.ask().status, 504)
        self.assertEqual(worker.origin.count, 0)


class FreshnessTests(CachingCase):
    def test_renewed_by_304(self) -> None:
        """A stale copy with a validator is asked for with it; after a 304 it is fresh again, the large one as well."""
        worker = self.worker()
        for path, body in ((b"/small", b"0123456789"), (b"/large", os.urandom(2_000_000))):
            self.fill(worker, body, FRESH, ETAG, path=path)
            self.bed.travel(61)
            client = worker.client(self.get(path=path))
            server = worker.origin.accept()
            self.assertEqual(server.request().get(b"If-None-Match"), b'"1"')
            server.send(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=100\r\n\r\n')
            got = client.response()
            self.assertEqual((got.status, got.body), (200, body))
            self.assertIn(b"revalidated", got.get(b"Cache-Status"))
            count = worker.origin.count
            self.bed.travel(61)
            self.assertEqual(worker.ask(path=path).body, body)
            self.assertEqual(worker.origin.count, count)
            server.close()
        self.assertEqual(worker.counted(), {"miss": 2, "revalidated": 2, "hit": 2})
        self.assertEqual(self.bed.log.lines[1].server, worker.origin.address)

    def test_ca_09_stale_if_error(self) -> None:
        """CA-09: while the server fails or is gone the copy is given, within its bound, and not longer."""
        worker = self.worker(rules=RouteCache(stale_if_error_s=100.0))
        self.fill(worker)
        self.bed.travel(61)
        client = worker.client(self.get())
        server = worker.origin.accept()
        server.request()
        server.send(self.fakes.answer(b"broken", status=b"500 X"))
        stale = client.response()
        self.assertEqual((stale.status, stale.body), (200, b"body"))
        self.assertGreaterEqual(int(stale.get(b"Age")), 61)
        server.close()
        worker.origin.stop()
        self.assertEqual(worker.ask().body, b"body")
        self.bed.travel(101)
        self.assertEqual(worker.ask().status, 502)

    def test_a_hung_server_and_a_copy_that_may_be_used(self) -> None:
        """When the request's time is over, leader and followers get the copy."""
        worker = self.worker(rules=RouteCache(stale_if_error_s=100.0), route={"timeouts": Timeouts(request_s=4.0)})
        self.fill(worker)
        self.bed.travel(61)
        clients = [worker.client(self.get()) for _ in range(3)]
        worker.origin.accept().request()
        self.bed.travel(5)
        self.assertEqual([client.response().body for client in clients], [b"body"] * 3)

    def test_ca_09_stale_if_error_for_who_asks_alone(self) -> None:
        """The copy is also given to those who do not wait for a fill: HEAD, and requests for what was not to be kept a moment ago."""
        worker = self.worker(rules=RouteCache(stale_if_error_s=100.0), pool={"retry": Retry(tries=0)})
        self.fill(worker)
        self.bed.travel(61)
        for method in (b"GET", b"HEAD"):
            for primary in list(worker.store._held):
                worker.cache.passed_on.believe(primary)
            client = worker.client(method + b" /x HTTP/1.1\r\nHost: example.com\r\n\r\n")
            server = worker.origin.accept()
            server.request()
            server.send(
                self.fakes.answer(b"broken", status=b"503 X") if method == b"GET" else b"HTTP/1.1 503 X\r\nContent-Length: 6\r\n\r\n"
            )
            stale = client.response(to=method)
            self.assertEqual((stale.status, stale.get(b"Content-Length")), (200, b"4"))
            server.breaks()
        worker.origin.stop()
        self.assertEqual(worker.ask().body, b"body")
        self.assertEqual((worker.leases, worker.counted()), (0, {"miss": 1, "stale": 3}))

    def test_stale_while_revalidate(self) -> None:
        """The stale copy is given at once; one request in the background, which no client waits for, brings the new one."""
        worker = self.worker(rules=RouteCache(stale_while_revalidate_s=100.0))
        self.fill(worker)
        self.bed.travel(61)
        for _ in range(3):
            self.assertEqual(worker.ask().body, b"body")
        server = worker.origin.accept()
        server.request()
        server.send(self.answer(b"newer"))
        self.bed.until(lambda: not worker.cache.fills, "the copy to be renewed")
        self.assertEqual(worker.ask().body, b"newer")
        self.assertEqual((worker.origin.count, len(self.bed.log.lines)), (2, 5))

    def test_ca_09_the_clock_steps(self) -> None:
        """CA-09: a wall clock that is set back gives no negative age and no error."""
        worker = self.worker()
        self.fill(worker)
        worker.began += 1000
        self.assertEqual(worker.ask().get(b"Age"), b"0")


class SafetyTests(CachingCase):
    def test_ca_01_unkeyed_input(self) -> None:
        """CA-01: what one client says of host and URL besides the request line is not in what the next one gets."""
        worker = self.worker()
        client = worker.client(self.get(b"X-Forwarded-Host: evil.example", b"X-Original-URL: /evil", b"X-HTTP-Method-Override: POST"))
        server = worker.origin.accept()
        seen = server.request()
        self.assertEqual(seen.get(b"X-Forwarded-Host"), b"example.com")
        self.assertIsNone(seen.get(b"X-Original-URL"))
        self.assertIsNone(seen.get(b"X-HTTP-Method-Override"))
        server.send(self.answer())
        client.response()

    def test_ca_01_a_trusted_proxy_may_say_more(self) -> None:
        """CA-01: what is passed on belongs to the key."""
        worker = self.worker(trusted_proxies=("127.0.0.0/8",))
        for host in (b"a.example", b"b.example"):
            client = worker.client(self.get(b"X-Forwarded-Host: " + host))
            server = worker.origin.accept()
            self.assertEqual(server.request().get(b"X-Forwarded-Host"), host)
            server.send(self.answer(host))
            self.assertEqual(client.response().body, host)
            self.assertEqual(worker.ask(b"X-Forwarded-Host: " + host).body, host)
            server.close()

    def test_ca_04_private_things_are_not_kept(self) -> None:
        """CA-04: an answer with a cookie, to credentials, or without explicit freshness goes to its client only."""
        worker = self.worker()
        asked = 0
        for lines, asks in (((FRESH, b"Set-Cookie: s=1"), ()), ((FRESH,), (b"Authorization: Basic eA==",)), ((b"X-Y: 1",), ())):
            for _ in range(2):
                path = b"/account/x%d.css" % len(lines + asks + (b"",) * (lines[0] == FRESH))
                self.assertEqual(self.fill(worker, b"mine", *lines, path=path, asks=asks).body, b"mine")
                asked += 1
        self.assertEqual(worker.origin.count, asked)

    def test_stored_is_said_of_what_is_stored_and_else_why_not(self) -> None:
        """Also of the second private answer, of what was purged or made untrue on its way, and of what neither memory nor disk takes."""
        worker = self.worker(spec=CacheSpec(self.directory, max_object=3_000_000))

        def told(got: Any) -> bytes:
            told: bytes = got.get(b"Cache-Status")
            return told

        def meanwhile(path: bytes, happens: Any, body: bytes = b"body") -> Any:
            client = worker.client(self.get(path=path))
            server = worker.origin.accept()
            server.request()
            happens()
            server.send(self.answer(body))
            got = client.response()
            server.close()
            self.bed.until(lambda: not any(server.idle for server in worker.pool.servers), "the idle connection to be gone")
            return got

        self.assertIn(b"; stored; ", told(self.fill(worker)))
        for _ in range(2):
            answer = self.fill(worker, b"mine", b"Cache-Control: private", path=b"/p")
            self.assertEqual(told(answer), b"revproxy; fwd=uri-miss; fwd-status=200; detail=private")
        for body in (b"body", b"x" * 1_000_000):
            path = b"/%d" % len(body)
            purged = meanwhile(path, lambda: worker.cache.purge("all", "", worker.wall(), is_soft=False), body)
            self.assertRegex(told(purged), rb"^revproxy; fwd=uri-miss; fwd-status=200; ttl=\d+; detail=purged$")
            made_untrue = meanwhile(path, lambda: worker.cache.forget(next(iter(worker.cache.fills))), body)
            self.assertRegex(told(made_untrue), rb"; ttl=\d+; detail=invalidated$")
            self.bed.travel(1)
            self.assertIn(b"; stored; ", told(self.fill(worker, body, path=path)))
        for _ in range(2):
            self.assertIn(b"detail=too-large", told(self.fill(worker, b"x" * 3_000_001, path=b"/large")))
        worker.store.arena = None
        self.assertIn(b"; stored; ", told(self.fill(worker, path=b"/disk")), "on disk only")
        self.patch(worker.store.disk, "writer", lambda key, meta: None)
        for body in (b"body", b"x" * 1_000_000):
            self.assertIn(b"detail=store-failed", told(self.fill(worker, body, path=b"/full/%d" % len(body))))

    def test_what_varies_is_found_again_where_memory_takes_nothing(self) -> None:
        """As in a worker that drains: both the answer and the list of its variants are on disk then."""
        worker = self.worker()
        assert worker.arena is not None
        self.patch(worker.arena, "put", lambda *_: None)
        self.fill(worker, b"varied", FRESH, b"Vary: Accept-Language")
        self.assertEqual(worker.ask().body, b"varied")

    def test_ca_06_an_error_is_not_kept_and_does_not_last(self) -> None:
        """CA-06: a 400 that one request provoked is not what the next one gets, and soon answers are kept again."""
        worker = self.worker()
        self.assertEqual(self.fill(worker, b"bad", FRESH, status=b"400 Bad", asks=(b"X-Oversize: %",)).status, 400)
        self.assertEqual(self.fill(worker, b"good").body, b"good")  # nobody waits for another just now
        self.bed.travel(1.5)
        self.fill(worker, b"good")
        self.assertEqual(worker.ask().body, b"good")

    def test_ca_07_what_breaks_off_is_not_kept(self) -> None:
        """CA-07: a client sees that the answer broke off, and the next one gets the whole."""
        worker = self.worker()
        for body in (b"x" * 100, b"x" * 2_000_000):
            client = worker.client(self.get())
            server = worker.origin.accept()
            server.request()
            server.send(self.answer(body)[: -len(body) // 2])
            client.through(b"\r\n\r\n")
            server.reset()
            client.breaks()
            self.assertEqual(self.bed.log.lines[-1].cause.value, "server")
        self.fill(worker, b"whole")
        self.assertEqual(worker.ask().body, b"whole")
        self.assertEqual(os.listdir(os.path.join(self.directory, "fills")), [])

    def test_ca_07_a_range_is_never_what_is_kept(self) -> None:
        """CA-07: the first client wants a part: the server is asked for the whole, the client gets its part of it."""
        worker = self.worker()
        client = worker.client(self.get(b"Range: bytes=2-3"))
        server = worker.origin.accept()
        self.assertIsNone(server.request().get(b"Range"))
        server.send(self.answer(b"0123456789"))
        part = client.response()
        self.assertEqual((part.status, part.body), (206, b"23"))
        self.assertEqual(worker.ask().body, b"0123456789")

    def test_an_unsafe_request_makes_copies_untrue(self) -> None:
        """After a POST that went well the copy is gone, the ready one too; after one that failed it stays."""
        worker = self.worker()
        self.fill(worker)
        worker.ask()
        for status, count in ((b"500 X", 2), (b"201 Created", 3)):
            client = worker.client(self.fakes.post(b"data", path=b"/x"))
            server = worker.origin.accept()
            server.request()
            server.send(self.fakes.answer(b"", status=status))
            self.assertIn(b"fwd=method", client.response().get(b"Cache-Status"))
            server.close()
            if count == 2:
                self.assertEqual(worker.ask().body, b"body")
        self.assertEqual(self.fill(worker, b"new").body, b"new")

    def test_a_fill_that_is_overtaken_by_a_post_is_not_kept(self) -> None:
        """What was asked for before the change is given to who asked, and not kept; the same for a renewal."""
        worker = self.worker()
        for is_renewal in (False, True):
            path = b"/r" if is_renewal else b"/n"
            if is_renewal:
                self.fill(worker, b"body", FRESH, ETAG, path=path)
                self.bed.travel(61)
            reading = worker.client(self.get(path=path))
            server = worker.origin.accept()
            server.request()
            writing = worker.client(self.fakes.post(b"data", path=path))
            other = worker.origin.accept()
            other.request()
            other.send(self.fakes.answer(b""))
            writing.response()
            server.send(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=100\r\n\r\n' if is_renewal else self.answer())
            self.assertEqual(reading.response().body, b"body")
            server.close()
            other.close()
            self.assertEqual(self.fill(worker, b"new", path=path).body, b"new")

    def test_upgrades_and_event_streams_pass(self) -> None:
        """A WebSocket's handshake goes past the cache; events come one by one."""
        worker = self.worker()
        client = worker.client(self.get(b"Accept: text/event-stream", path=b"/events"))
        server = worker.origin.accept()
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.through(b"\r\n\r\n")
        for n in range(3):
            server.send(b"8\r\ndata: %d\n\r\n" % n)
            self.assertEqual(client.take(13), b"8\r\ndata: %d\n\r\n" % n)
        client.reset()
        server.breaks()


class RouteTests(CachingCase):
    def test_location_is_put_right_for_hits_too(self) -> None:
        """A kept redirect that names the server itself is put right for the second client as for the first."""
        worker = self.worker(route={"host": "app.internal"})
        location = b"Location: http://app.internal/y"
        for got in (self.fill(worker, b"", FRESH, location, status=b"301 Moved"), worker.ask()):
            self.assertEqual((got.status, got.get(b"Location")), (301, b"http://example.com/y"))

    def test_nothing_is_counted_for_what_the_cache_has_no_part_in(self) -> None:
        """A request that is refused before the cache is asked is not among its misses."""
        worker = self.worker()
        client = worker.client(b"POST /x HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1\r\n\r\nx")
        server = worker.origin.accept()
        server.request()
        server.send(self.fakes.answer(b""))
        client.response()
        self.assertEqual(worker.counted(), {"bypass": 1})

    def test_interim_answers_reach_the_one_who_asked(self) -> None:
        """A 103 comes before the answer of a fill."""
        worker = self.worker()
        client = worker.client(self.get())
        server = worker.origin.accept()
        server.request()
        server.send(b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n")
        self.assertEqual(client.head().status, 103)
        server.send(self.answer())
        self.assertEqual(client.response().body, b"body")
