"""One worker's cache: what is found under a key, what is forgotten, and what is remembered of answers that are not kept."""

from __future__ import annotations

import itertools
import tempfile

from cache_workers import FRESH, CachingCase

from twistedproxy.config.model import Route, RouteCache, Side, Site
from twistedproxy.http.cache import cache as cache_module
from twistedproxy.http.cache import keys
from twistedproxy.http.cache.cache import PASSED_ON_AFTER_ERROR_S, PASSED_ON_FOR_S
from twistedproxy.http.cache.entries import MAX_URL

ETAG = b'ETag: "1"'


class FindingTests(CachingCase):
    def test_purged_by_url_prefix_and_tag(self) -> None:
        """What a purge covers is a miss from then on, the answer that lies ready too; everything else stays, and what comes after."""
        for by, what in (("url", "http://example.com/a"), ("prefix", "http://example.com/a"), ("tag", "red"), ("all", "")):
            self.directory = self.enterContext(tempfile.TemporaryDirectory())
            worker = self.worker()
            self.fill(worker, b"old", FRESH, b"Surrogate-Key: red blue", path=b"/a")
            self.fill(worker, b"other", FRESH, b"Surrogate-Key: green", path=b"/b")
            self.assertEqual([worker.ask(path=b"/a").body for _ in range(2)], [b"old"] * 2)
            self.bed.travel(0.1)
            worker.cache.purge(by, what, worker.wall(), is_soft=False)
            self.bed.travel(0.1)
            self.assertEqual(self.fill(worker, b"new", path=b"/a").body, b"new", by)
            self.assertEqual([worker.ask(path=b"/a").body for _ in range(2)], [b"new"] * 2)
            if by != "all":
                self.assertEqual(worker.ask(path=b"/b").body, b"other")

    def test_ca_10_what_is_on_its_way_is_purged_too(self) -> None:
        """CA-10: an answer that was asked for before the purge is not given to anybody who comes after it."""
        worker = self.worker()
        client = worker.client(self.get())
        server = worker.origin.accept()
        server.request()
        self.bed.travel(0.1)
        worker.cache.purge("url", "http://example.com/x", worker.wall(), is_soft=False)
        server.send(self.answer(b"old"))
        self.assertEqual(client.response().body, b"old")
        server.close()
        self.assertEqual(self.fill(worker, b"new").body, b"new")

    def test_ca_10_who_comes_after_a_purge_does_not_follow_what_is_on_its_way(self) -> None:
        """Not before its head is there, when any tag may be in it, nor while its body comes; nor when a copy is being renewed."""
        worker = self.worker()
        for n, (by, state) in enumerate(itertools.product(("url", "prefix", "tag", "all"), ("asking", "streaming", "renewing"))):
            path = b"/%d/x" % n
            what = {"url": f"http://example.com/{n}/x", "prefix": f"http://example.com/{n}/", "tag": f"t{n}", "all": ""}[by]
            tagged = (FRESH, ETAG, b"Surrogate-Key: t%d" % n)
            if state == "renewing":
                self.fill(worker, b"old", *tagged, path=path)
                self.bed.travel(100)
            before = worker.client(self.get(path=path))
            server = worker.origin.accept()
            server.request()
            old = self.answer(b"old", *tagged)
            if state == "streaming":
                server.send(old[:-1])
                before.head()
            self.bed.travel(0.1)
            worker.cache.purge(by, what, worker.wall(), is_soft=False)
            self.bed.travel(0.1)
            after = worker.client(self.get(path=path))
            anew = worker.origin.accept()
            anew.request()
            if state == "renewing":
                server.send(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=60\r\n\r\n')
            else:
                server.send(old[-1:] if state == "streaming" else old)
            anew.send(self.answer(b"new"))
            self.assertEqual(after.response().body, b"new", (by, state))
            self.assertEqual(before.take(3) if state == "streaming" else before.response().body, b"old")
            self.assertEqual([worker.ask(path=path).body for _ in range(2)], [b"new"] * 2, (by, state))
            for peer in (server, anew, before, after):
                peer.close()
            self.bed.until(lambda: not any(server.idle for server in worker.pool.servers), "the idle connections to be gone")

    def test_softly_purged_on_its_way(self) -> None:
        """What the server said before the purge is stale when it comes, whether it is new or a renewal."""
        for is_renewal in (False, True):
            worker = self.worker()
            path = b"/%d" % is_renewal
            if is_renewal:
                self.fill(worker, b"old", FRESH, ETAG, path=path)
                self.bed.travel(100)
            client = worker.client(self.get(path=path))
            server = worker.origin.accept()
            server.request()
            self.bed.travel(0.1)
            worker.cache.purge("url", "http://example.com" + path.decode(), worker.wall(), is_soft=True)
            self.bed.travel(0.1)
            renewal = b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=60\r\n\r\n'
            server.send(renewal if is_renewal else self.answer(b"old", FRESH, ETAG))
            self.assertEqual(client.response().body, b"old")
            client = worker.client(self.get(path=path))
            self.assertEqual(server.request().get(b"If-None-Match"), b'"1"')
            server.send(renewal)
            self.assertEqual(client.response().body, b"old")
            self.assertEqual(worker.ask(path=path).body, b"old")
            server.close()
            worker.stop()

    def test_softly_purged(self) -> None:
        """It is asked for again with its validator, and is there when the server fails."""
        worker = self.worker(rules=RouteCache(stale_if_error_s=100.0))
        self.fill(worker, b"body", FRESH, ETAG)
        worker.ask()
        self.bed.travel(0.1)
        worker.cache.purge("all", "", worker.wall(), is_soft=True)
        client = worker.client(self.get())
        server = worker.origin.accept()
        self.assertEqual(server.request().get(b"If-None-Match"), b'"1"')
        server.send(self.fakes.answer(b"", status=b"503 X"))
        self.assertEqual(client.response().body, b"body")
        self.bed.travel(0.1)
        client = worker.client(self.get())
        server.request()
        server.send(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=60\r\n\r\n')
        self.assertEqual(client.response().body, b"body")
        self.assertEqual(worker.ask().body, b"body")
        self.assertEqual(worker.origin.count, 2)

    def test_a_copy_that_cannot_be_read(self) -> None:
        """What is no copy of ours is removed, and a miss."""
        worker = self.worker()
        self.fill(worker)
        worker.client(self.get()).response()
        (key,) = worker.store._held
        worker.store.put(key, b"nonsense", b"body")
        self.assertEqual(self.fill(worker, b"new").body, b"new")

    def test_what_is_too_long_to_be_kept(self) -> None:
        """A URL or head that no store takes is passed on, and nothing fails."""
        worker = self.worker(max_request_line=2 * MAX_URL, max_head=4 * MAX_URL, max_field=4 * MAX_URL)
        path = b"/" + b"x" * (MAX_URL + 10)
        for _ in range(2):
            self.assertEqual(self.fill(worker, path=path).body, b"body")


class RememberingTests(CachingCase):
    def test_what_is_not_kept_is_remembered_for_a_while(self) -> None:
        """After an answer that may not be kept nobody waits for another for half a minute, after an error for a second."""
        for status, seconds in ((b"200 OK", PASSED_ON_FOR_S), (b"404 X", PASSED_ON_AFTER_ERROR_S)):
            worker = self.worker()
            self.fill(worker, b"", b"Cache-Control: private", status=status)
            (key,) = worker.cache.passed_on.keys
            self.assertTrue(worker.cache.passed_on.why(key))
            self.bed.travel(seconds - 0.5)
            self.assertTrue(worker.cache.passed_on.why(key))
            self.bed.travel(1)
            self.assertFalse(worker.cache.passed_on.why(key))
            self.assertEqual(worker.cache.passed_on.keys, {})

    def test_memories_are_bounded(self) -> None:
        """However many keys somebody makes up."""
        self.patch(cache_module, "MOST_PASSED_ON", 10)
        worker = self.worker()
        for n in range(100):
            worker.cache.passed_on.believe(b"%d" % n)
            worker.cache.distrust(b"%d" % n)
        self.assertLessEqual(len(worker.cache.passed_on.keys) + len(worker.cache._distrusted), 20)

    def test_a_request_of_one_user_says_nothing_about_the_others(self) -> None:
        """After an answer to credentials, which is not kept, that of the next client without them is."""
        worker = self.worker()
        self.fill(worker, b"mine", FRESH, asks=(b"Authorization: Basic eA==",))
        self.assertEqual(worker.cache.passed_on.keys, {})
        self.fill(worker, b"all", FRESH)
        self.assertEqual(worker.ask().body, b"all")

    def test_routes(self) -> None:
        """Every route, side of a split and rule whose answers are kept has its own scope; settings are made once for each."""
        worker = self.worker()
        sides = (Side("a", 1), Side("b", 1))
        rule = Route("rules[0]", "r", cache=RouteCache())
        routes = (Route("/", "web", cache=RouteCache()), Route("/no", "web"), Route("/s", split=sides, cache=RouteCache()))
        site = Site("s", ("*",), routes, rules=(rule,))
        worker.cache.follow_routes([site])
        self.assertEqual(set(worker.cache._scopes["s"]), {b"s / web", b"s /s a", b"s /s b", b"s rules[0] r"})
        spec = RouteCache(ttl_s=5.0, stale_if_error_s=7.0, negative=((404, 3.0),))
        settings = worker.cache.settings_of(spec)
        self.assertIs(worker.cache.settings_of(spec), settings)
        self.assertEqual((settings.ttl_s, settings.stale_if_error_s, settings.negative, settings.heuristics), (5.0, 7.0, {404: 3.0}, False))

    def test_invalidation_reaches_other_routes_and_locations(self) -> None:
        """A POST by a rule of its own, and the Location in its answer, make untrue what another route keeps."""
        worker = self.worker()
        self.fill(worker, b"old", FRESH, path=b"/list")
        client = worker.client(self.fakes.post(b"data", path=b"/new"))
        server = worker.origin.accept()
        server.request()
        server.send(self.fakes.answer(b"", b"Location: /list", status=b"201 Created"))
        client.response()
        server.close()
        self.assertEqual(self.fill(worker, b"new", FRESH, path=b"/list").body, b"new")

    def test_keys_of_two_scopes_differ(self) -> None:
        """CA-02: the same URL by two routes is two answers."""
        one, other = (keys.primary(b"http", b"example.com", b"/x", b"", scope) for scope in (b"s / a", b"s / b"))
        self.assertNotEqual(one, other)
