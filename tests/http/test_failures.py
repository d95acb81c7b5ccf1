"""What a client is told when something went wrong: enough to act on, nothing about what is behind the proxy."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import errors
from twistedproxy.config.model import Queue, Route
from twistedproxy.http.failures import failure_response
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.http.messages import LocalResponse

SECRET = "10.9.8.7:4321 in pool 'secret'"


def every_error() -> list[errors.ProxyError]:
    found: list[errors.ProxyError] = []
    classes = [errors.ProxyError]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        found.append(cls(SECRET))
    return found


def accepting(accept: bytes | None) -> Any:
    line = b"" if accept is None else b"Accept: %b\r\n" % accept
    return parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % line, Limits())


def fields(response: LocalResponse) -> dict[bytes, bytes]:
    assert len(dict(response.fields)) == len(response.fields)
    return dict(response.fields)


class FailureTests(SynchronousTestCase):
    def test_every_error_has_a_whole_answer(self) -> None:
        for error in every_error():
            response = failure_response(error, None, b"id-1")
            problem = json.loads(response.body)
            self.assertEqual((response.status, problem["status"], problem["instance"]), (error.status, error.status, "id-1"))
            self.assertTrue(problem["title"] and problem["detail"])
            sent = fields(response)
            self.assertEqual((sent[b"X-Request-Id"], sent[b"Cache-Control"]), (b"id-1", b"no-store"))
            self.assertEqual(sent[b"Content-Type"], b"application/problem+json")

    def test_nothing_names_a_server_or_a_pool(self) -> None:
        for error in every_error():
            if error.status >= 500:
                for accept in (None, b"text/html"):
                    self.assertNotIn(b"secret", failure_response(error, accepting(accept), b"id").body, repr(error))

    def test_the_clients_own_mistakes_are_explained(self) -> None:
        self.assertIn(b"5 bytes too many", failure_response(errors.BodyTooLarge("5 bytes too many"), None, b"id").body)

    def test_Retry_After_says_when_waiting_may_help(self) -> None:
        refusal = errors.NoServer("x")
        self.assertEqual(fields(failure_response(refusal, None, b"id"))[b"Retry-After"], b"1")
        refusal.retry_after_s = 30
        self.assertEqual(fields(failure_response(refusal, None, b"id"))[b"Retry-After"], b"30")
        self.assertNotIn(b"Retry-After", fields(failure_response(errors.ServerClosed("x"), None, b"id")))

    def test_405_says_what_is_allowed(self) -> None:
        self.assertIn(b"GET", fields(failure_response(errors.BadHead("x", 405), None, b"id"))[b"Allow"])

    def test_a_page_for_those_who_ask_for_one(self) -> None:
        for accept, is_page in (
            (b"text/html,application/xhtml+xml,*/*;q=0.8", True),
            (b"*/*", False),
            (b"application/json", False),
            (b"application/problem+json, text/html", False),
            (b"application/json, text/html;q=0.1", False),
            (b"text/html, application/json; q=0.5", True),
            (b"application/json;q=0.2, Text/HTML;q=0.3, */*;q=0.1", True),
            (b"text/html, */*", True),
            (b"text/html;q=0, */*", False),
            (b"text/html;q=a lot", False),
            (None, False),
        ):
            response = failure_response(errors.NoRoute("x"), accepting(accept), b"id")
            self.assertEqual(fields(response)[b"Content-Type"].startswith(b"text/html"), is_page, accept)

    def test_SM_19_nothing_a_client_sent_becomes_markup(self) -> None:
        error = errors.BadHead("<script>alert(1)</script>")
        response = failure_response(error, accepting(b"text/html"), b'"><script>')
        self.assertNotIn(b"<script", response.body)


class Case(SynchronousTestCase):
    """Whole exchanges."""

    uses_bed = True
    bed: Any
    fakes: Any

    def serve(self, server: Any, body: bytes = b"ok") -> Any:
        request = server.request()
        server.send(self.fakes.answer(body))
        return request


class WholeExchangeTests(Case):
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
        self.assertEqual((line.cause.value, line.phase.value, line.site), ("client", "route", "site"))
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
