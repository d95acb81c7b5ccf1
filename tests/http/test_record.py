"""What an exchange says about its server, and how far it had come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import errors
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
