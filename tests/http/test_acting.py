"""What a route with actions does to a request and its answer, on real connections."""

from __future__ import annotations

import json
import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import (
    Address,
    HeaderEdits,
    Pool,
    Respond,
    Retry,
    Rewrite,
    Route,
    Server,
    Side,
    Site,
    Sticky,
    Use,
    When,
)
from twistedproxy.http.destination import Destination
from twistedproxy.http.explain import Question, explain
from twistedproxy.http.messages import LocalResponse
from twistedproxy.http.routes import Router
from twistedproxy.http.sticky import server_token
from twistedproxy.http.stories import Stories
from twistedproxy.pool.pool import Pool as RunningPool
from twistedproxy.pool.twin import Known

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class ActingTests(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def ask(
        self, route: Route, request: bytes = b"GET /a/b HTTP/1.1\r\nHost: www.example.com\r\n\r\n", answer: bytes = OK, **proxy: Any
    ) -> Any:
        """(request as the server got it, answer as the client got it)."""
        origin = self.bed.proxy(routes=[route], **proxy)
        client = self.bed.client(request)
        server = origin.accept()
        seen = server.request()
        server.send(answer)
        return seen, client.response()

    def locally(self, site: Site, request: bytes = b"GET /a/b HTTP/1.1\r\nHost: www.example.com\r\n\r\n") -> Any:
        """The answer to a request that no server sees."""
        origin = self.bed.proxy()
        self.bed.front.router = Router([site], lambda s, r: Destination(s, r, self.bed.pool, self.bed.metrics))
        answer = self.bed.client(request).response()
        self.assertEqual(origin.count, 0)
        return answer

    def test_strip_and_the_way_back(self) -> None:
        """The server is asked without the prefix; its Location and cookie paths get it back."""
        answer = b"HTTP/1.1 302 Found\r\nLocation: /login\r\nSet-Cookie: s=1; Path=/; HttpOnly\r\nContent-Length: 0\r\n\r\n"
        seen, got = self.ask(Route("/a/", "web", strip=True), answer=answer)
        self.assertEqual(seen.target, b"/b")
        self.assertEqual((got.get(b"Location"), got.get(b"Set-Cookie")), (b"/a/login", b"s=1; Path=/a; HttpOnly"))

    def test_rewrite_and_host(self) -> None:
        """Path, query and Host are those the route says; X-Forwarded-Host tells what the client asked for."""
        route = Route("/", "web", rewrite=Rewrite("^/a/(.*)$", "/$1?v=1"), host="app.internal")
        seen, _ = self.ask(route, b"GET /a/b?x=2 HTTP/1.1\r\nHost: www.example.com:81\r\n\r\n")
        self.assertEqual((seen.target, seen.get(b"Host")), (b"/b?v=1&x=2", b"app.internal"))
        self.assertEqual(seen.get(b"X-Forwarded-Host"), b"www.example.com:81")

    def test_header_edits_with_variables(self) -> None:
        """Set replaces, also what we set ourselves; add goes besides; remove takes out; variables are filled in."""
        request = HeaderEdits((("X-Real-IP", "${client_ip}"), ("X-Forwarded-Proto", "wss")), (("X-B", "2"),), ("X-Debug",))
        response = HeaderEdits((("X-Pool", "${pool}:${server}"),), (), ("Server",))
        answer = b"HTTP/1.1 200 OK\r\nServer: s\r\nX-Pool: theirs\r\nContent-Length: 2\r\n\r\nok"
        line = b"GET / HTTP/1.1\r\nHost: h\r\nX-Real-IP: 6.6.6.6\r\nX-Debug: 1\r\nX-B: 1\r\n\r\n"
        seen, got = self.ask(Route("/", "web", request=request, response=response), line, answer)
        self.assertEqual((seen.get(b"X-Real-IP"), seen.get(b"X-Forwarded-Proto")), (b"127.0.0.1", b"wss"))
        self.assertEqual((seen.all(b"X-B"), seen.get(b"X-Debug")), ([b"1", b"2"], None))
        self.assertEqual(got.get(b"X-Pool"), b"web:" + self.bed.pool.servers[0].address.encode())
        self.assertEqual((got.get(b"Server"), got.body), (None, b"ok"))

    def test_security_headers_fill_gaps_only(self) -> None:
        """What the server says stays; what it does not say is filled in; a route's own edit wins over the preset."""
        route = Route("/", "web", use=(Use("security_headers"),), response=HeaderEdits((("X-Frame-Options", "DENY"),)))
        answer = b"HTTP/1.1 200 OK\r\nReferrer-Policy: no-referrer\r\nX-Powered-By: p\r\nContent-Length: 2\r\n\r\nok"
        _, got = self.ask(route, answer=answer)
        self.assertEqual((got.get(b"Referrer-Policy"), got.get(b"X-Frame-Options")), (b"no-referrer", b"DENY"))
        self.assertEqual((got.get(b"X-Content-Type-Options"), got.get(b"X-Powered-By")), (b"nosniff", None))
        self.assertIsNone(got.get(b"Strict-Transport-Security"))

    def test_redirect_keeps_the_rest(self) -> None:
        """Path and query go on behind the new beginning; no server is asked (SM-19: no field can be smuggled in)."""
        site = Site("s", ("*",), (Route("/old/", redirect="/new/", status=301),))
        got = self.locally(site, b"GET /old/x%0ay?a=%0d%0aX:1 HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual(got.status, 400)
        got = self.locally(site, b"GET /old/x/y?a=%0d%0aX:1 HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual((got.status, got.get(b"Location")), (301, b"/new/x/y?a=%0d%0aX:1"))

    def test_respond_with_a_body_still_to_come(self) -> None:
        """An answer made here does not wait for the request's body, and the connection ends in order."""
        site = Site("s", ("*",), (Route("/", respond=Respond(418, "short ${method}")),))
        got = self.locally(site, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab")
        self.assertEqual((got.status, got.body, got.get(b"Connection")), (418, b"short POST", b"close"))
        self.assertEqual((got.start, got.get(b"Content-Type")), (b"HTTP/1.1 418 I'm a Teapot", b"text/plain; charset=utf-8"))

    def test_maintenance_and_who_is_let_in(self) -> None:
        """503 with Retry-After for everybody, also where no route is, but for the networks that are allowed."""
        shut = Site("s", ("*",), (Route("/", "web"),), maintenance=True, maintenance_allow=("10.0.0.0/8",))
        got = self.locally(shut)
        self.assertEqual((got.status, got.get(b"Retry-After")), (503, b"60"))
        got = self.locally(Site("s", ("*",), (Route("/x", "web"),), maintenance=True))
        self.assertEqual(got.status, 503)
        got = self.locally(Site("s", ("*",), (Route("/x", "web"),), maintenance=True, maintenance_allow=("127.0.0.1",)))
        self.assertEqual(got.status, 404)

    def test_a_rule_is_asked_before_the_paths(self) -> None:
        """A request with the header takes the rule's route, others the path's."""
        rule = Route("rules[0]", respond=Respond(201, "rule"), when=When(header=(("X-Beta", ("1",)),)))
        site = Site("s", ("*",), (Route("/", respond=Respond(200, "path")),), rules=(rule,))
        self.assertEqual(self.locally(site, b"GET / HTTP/1.1\r\nHost: h\r\nx-beta: 1\r\n\r\n").body, b"rule")
        self.assertEqual(self.locally(site, b"GET / HTTP/1.1\r\nHost: h\r\nx-beta: 2\r\n\r\n").body, b"path")

    def split(self, *weights: int) -> tuple[Any, Any]:
        """A proxy that splits over two pools, with a cookie; the two servers."""
        origin = self.bed.proxy()
        other = self.bed.origin()
        pool = RunningPool(
            Pool("two", (Server(Address(other.address)),)),
            seconds=self.bed.loop.seconds,
            wheel=self.bed.loop.wheel,
            random=random.Random(1),
        )
        self.bed.pools.append(pool)
        pools = {"web": self.bed.pool, "two": pool}
        route = Route("/", split=(Side("web", weights[0]), Side("two", weights[1])), sticky=Sticky("ab"))
        self.bed.front.router = Router([Site("s", ("*",), (route,))], lambda s, r: Destination(s, r, pools[r.pool], self.bed.metrics))
        return origin, other

    def test_a_split_remembers_by_cookie_and_counts(self) -> None:
        """A new client gets a side and a cookie; one with a cookie of an open side keeps it; the exposure is counted."""
        origin, other = self.split(0, 1)
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        server = other.accept()
        server.request()
        server.send(OK)
        self.assertEqual(client.response().get(b"Set-Cookie"), b"ab=two; Path=/; HttpOnly; SameSite=Lax")
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\nCookie: ab=two\r\n\r\n")
        server.request()
        server.send(OK)
        self.assertIsNone(client.response().get(b"Set-Cookie"))
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\nCookie: ab=web\r\n\r\n")
        server.request()  # the side of before is closed: it must move
        server.send(OK)
        self.assertEqual(client.response().get(b"Set-Cookie"), b"ab=two; Path=/; HttpOnly; SameSite=Lax")
        self.assertEqual((dict(self.bed.metrics.splits), origin.count), ({("s", "/", "two"): 3}, 0))

    def test_all_sides_closed(self) -> None:
        """Weights of 0 on all sides are 503, not a crash."""
        self.split(0, 0)
        self.assertEqual(self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").response().status, 503)

    def test_a_sticky_pool_brings_the_client_back(self) -> None:
        """The cookie names the server without giving its address away; with it the same server is asked again."""
        one, two = self.bed.origin(), self.bed.origin()
        self.bed.proxy(one, two, pool={"sticky": Sticky("srv")})
        pool = self.bed.pool
        site = Site("s", ("*",), (Route("/", "web"),))
        self.bed.front.router = Router([site], lambda s, r: Destination(s, r, pool, self.bed.metrics), frozenset({"web"}))
        for server, origin in ((pool.servers[1], two), (pool.servers[1], two), (pool.servers[0], one)):
            token = server_token("web", server.address)
            before = len(origin.connections)
            client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\nCookie: a=b; srv=%b\r\n\r\n" % token.encode())
            self.bed.until(lambda o=origin, n=before: o.pump() or len(o.connections) > n, "the server to be asked")
            peer = origin.connections[-1]
            peer.request()
            peer.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            self.assertIsNone(client.response().get(b"Set-Cookie"))
            self.assertNotIn(server.address, token)
            client.close()
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\nCookie: srv=gone\r\n\r\n")
        self.bed.until(lambda: any(o.pump() or len(o.connections) > n for o, n in ((one, 1), (two, 2))), "a server")
        peer = (one.connections[1:] or two.connections[2:])[0]
        peer.request()
        peer.send(OK)
        self.assertIn(b"srv=", client.response().get(b"Set-Cookie"))

    def test_a_route_may_differ_from_its_pool_in_retries(self) -> None:
        """`retry` of a route counts instead of the pool's."""
        origin = self.bed.proxy(routes=[Route("/", "web", retry=Retry(tries=0, on=()))], pool={"retry": {"tries": 2, "on": ("503",)}})
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        server = origin.accept()
        server.request()
        server.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual((client.response().status, origin.count), (503, 1))

    def test_the_trace_of_a_live_request(self) -> None:
        """A token that is known gets the trace, another is as if it were not there, and the field never reaches a server."""
        origin = self.bed.proxy()
        self.bed.front.explainer = lambda e: (
            LocalResponse(200, json.dumps({"steps": []}).encode()) if e.head.get(b"x-revproxy-explain") == b"good" else None
        )
        self.assertEqual(
            self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\nX-Revproxy-Explain: good\r\n\r\n").response().body, b'{"steps": []}'
        )
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: h\r\nX-Revproxy-Explain: bad\r\n\r\n")
        server = origin.accept()
        self.assertIsNone(server.request().get(b"X-Revproxy-Explain"))
        server.send(OK)
        self.assertEqual(client.response().body, b"ok")

    def test_the_trace_shows_the_request_that_the_server_gets(self) -> None:
        """Field by field, also behind a trusted proxy, with a body, and with variables of this very connection."""
        edits = HeaderEdits((("X-From", "${client_ip} ${client_port}"), ("X-Id", "${request_id}")))
        route = Route("/a/", "web", strip=True, request=edits)
        origin = self.bed.proxy(routes=[route], trusted_proxies=("127.0.0.1",))
        known = Known(self.bed.pool.spec)
        traces: list[Any] = []

        def trace(exchange: Any) -> None:
            asked = Question(exchange.head, exchange.client_ip, "http", exchange.connection.local[1], exchange)
            traces.append(explain(self.bed.front.router, asked, lambda pool: known, lambda site: None, 0.0))

        self.bed.front.explainer = trace
        lines = b"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nX-Revproxy-Explain: t\r\nContent-Length: 2\r\n"
        self.bed.client(b"POST /a/b? HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\nhi")
        got = origin.accept().request()
        (answer,) = traces
        self.assertEqual(answer["request"]["line"].encode(), got.start)
        self.assertEqual([tuple(part.encode() for part in pair) for pair in answer["request"]["headers"]], got.fields)
        self.assertEqual(got.all(b"X-Forwarded-For"), [b"9.9.9.9, 127.0.0.1"])

    def test_a_failure_leaves_its_story(self) -> None:
        """The id in a 502 finds what was tried and why it failed."""
        origin = self.bed.proxy(pool={"retry": {"tries": 1}})
        stories = self.bed.front.stories = Stories()
        origin.stop()
        got = self.bed.client(b"GET /p?secret=1 HTTP/1.1\r\nHost: h\r\n\r\n").response()
        (story,) = stories.find(got.get(b"X-Request-Id").decode())
        self.assertEqual((story["status"], story["path"], story["pool"], story["reason"]), (502, "/p", "web", "connect"))
        self.assertIn("refused", story["attempts"][0]["detail"])
        self.assertNotIn("secret", repr(story))
