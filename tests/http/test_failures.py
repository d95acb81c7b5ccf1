"""What a client is told when something went wrong: enough to act on, nothing about what is behind the proxy."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import errors
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
            (None, False),
        ):
            response = failure_response(errors.NoRoute("x"), accepting(accept), b"id")
            self.assertEqual(fields(response)[b"Content-Type"].startswith(b"text/html"), is_page, accept)

    def test_SM_19_nothing_a_client_sent_becomes_markup(self) -> None:
        error = errors.BadHead("<script>alert(1)</script>")
        response = failure_response(error, accepting(b"text/html"), b'"><script>')
        self.assertNotIn(b"<script", response.body)
