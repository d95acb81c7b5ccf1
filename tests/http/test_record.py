"""What an exchange says about its server, and how far it had come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import errors
from twistedproxy.config.model import Route
from twistedproxy.http.record import outcome_of, phase_of
from twistedproxy.pool.server import Outcome


class OutcomeTests(SynchronousTestCase):
    def test_an_answer_is_judged_by_its_status(self) -> None:
        for status, outcome in ((200, Outcome.OK), (404, Outcome.OK), (499, Outcome.OK), (500, Outcome.FAILED), (503, Outcome.FAILED)):
            self.assertIs(outcome_of(None, status), outcome)

    def test_the_servers_failures_count_against_it(self) -> None:
        for error in (
            errors.ConnectFailed("x"),
            errors.ConnectTimeout("x"),
            errors.ServerClosed("x"),
            errors.BadResponse("x"),
            errors.ResponseTimeout("x"),
        ):
            self.assertIs(outcome_of(error, 0), Outcome.FAILED, repr(error))

    def test_BF_04_what_ran_out_here_does_not(self) -> None:
        self.assertIs(outcome_of(errors.ConnectFailed("no port left", blames_server=False), 0), Outcome.NEUTRAL)

    def test_the_clients_doing_does_not(self) -> None:
        for error in (
            errors.ClientGone("x"),
            errors.WriteStall("x"),
            errors.BodyTimeout("x"),
            errors.BodyTooLarge("x"),
            errors.BadBody("x"),
            errors.Drained("x"),
            errors.IdleTimeout("x"),
        ):
            self.assertIs(outcome_of(error, 0), Outcome.NEUTRAL, repr(error))


class PhaseTests(SynchronousTestCase):
    def phase(self, error: errors.ProxyError, **exchange: Any) -> str:
        return phase_of(error, cast(Any, SimpleNamespace(**{"head_at": -1.0, "status": 0, "attempts": 0, **exchange}))).value

    def test_errors_know_their_phase(self) -> None:
        self.assertEqual(self.phase(errors.ConnectTimeout("x")), "connect")
        self.assertEqual(self.phase(errors.NoRoute("x"), head_at=1.0), "route")

    def test_BF_09_a_client_that_left_is_logged_with_the_phase_it_left_in(self) -> None:
        gone = errors.ClientGone("x")
        self.assertEqual(self.phase(gone), "queue")
        self.assertEqual(self.phase(gone, attempts=1), "request")
        self.assertEqual(self.phase(gone, attempts=1, head_at=1.0, status=200), "response")
        self.assertEqual(self.phase(gone, attempts=1, head_at=1.0, status=101), "tunnel")


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

    def test_the_site_of_a_request_without_a_route_is_logged(self) -> None:
        """Who reads the log sees which site the 404 came from."""
        self.bed.proxy(hosts=("shop.test",), routes=[Route("/a/", "web")])
        for host in (b"shop.test", b"other.test"):
            client = self.bed.client(b"GET /b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host)
            self.assertEqual(client.response().status, 404)
        self.bed.logged(2)
        told = [(line.site, line.pool, line.phase.value) for line in self.bed.log.lines]
        self.assertEqual(told, [("site", "", "route"), ("", "", "route")])

    def test_a_5xx_of_the_server_is_its_failure_and_a_4xx_is_not(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get() * 2)
        for status in (b"500 No", b"404 No"):
            server.request()
            server.send(f.answer(b"", status=status))
            self.assertEqual(client.response().status, int(status[:3]))
        self.assertEqual(self.bed.pool.servers[0].failures, 1)
