"""The tree of failures: what the client is told and what the log says follow from the class."""

from __future__ import annotations

import inspect

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import errors
from twistedproxy.errors import Cause, ConfigurationError, Phase, Problem, ProxyError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, ProxyError)]


class TreeTests(SynchronousTestCase):
    def test_every_failure_has_a_status_a_cause_a_phase_and_a_reason(self):
        self.assertGreater(len(CLASSES), 20)
        for cls in CLASSES:
            self.assertTrue(400 <= cls.status <= 599, cls)
            self.assertIsInstance(cls.cause, Cause)
            self.assertIsInstance(cls.phase, Phase)
            self.assertRegex(cls.reason, r"\A[a-z_]+\Z", "a label of a metric")
            self.assertIsNot(cls.cause, Cause.OK)

    def test_only_failures_before_anything_was_sent_are_safe_to_repeat(self):
        self.assertEqual({c for c in CLASSES if c.retryable}, {errors.ConnectFailed, errors.ConnectTimeout, errors.ServerTlsFailed})

    def test_an_unavailable_pool_tells_the_client_when_to_come_back(self):
        for cls in CLASSES:
            if cls.status == 503:
                self.assertGreater(cls.retry_after_s, 0, cls)

    def test_time_outs_say_so_in_the_log(self):
        for cls in CLASSES:
            if "Timeout" in cls.__name__ or "Stall" in cls.__name__:
                self.assertIs(cls.cause, Cause.TIMEOUT, cls)

    def test_the_detail_is_the_sentence_given_or_the_reason_in_words(self):
        self.assertEqual(errors.NoServer("all 3 servers are down").detail, "all 3 servers are down")
        self.assertEqual(errors.NoServer().detail, "no server")

    def test_a_bad_head_carries_its_own_status(self):
        self.assertEqual(errors.BadHead("what", 501, "not_implemented").status, 501)
        self.assertEqual(errors.HeadTooLarge("what", 414).status, 414)
        self.assertEqual(errors.HeadTooLarge("what").reason, "head_too_large")

    def test_local_exhaustion_does_not_blame_the_server(self):
        self.assertTrue(errors.ConnectFailed("refused").blames_server)
        self.assertFalse(errors.ConnectFailed("no port left", blames_server=False).blames_server)


class ProblemTests(SynchronousTestCase):
    def test_a_problem_prints_as_editors_and_people_expect(self):
        self.assertEqual(str(Problem("a.b", "is wrong", 3, "f.toml")), "f.toml:3: a.b: is wrong")
        self.assertEqual(str(Problem("", "is wrong", 3, "f.toml")), "f.toml:3: is wrong")
        self.assertEqual(str(Problem("a.b", "is wrong")), "a.b: is wrong")
        self.assertEqual(str(Problem("a.b", "is wrong", file="f.toml")), "f.toml: a.b: is wrong")

    def test_a_configuration_error_holds_and_prints_all_problems(self):
        error = ConfigurationError([Problem("a", "x"), Problem("b", "y")])
        self.assertEqual(str(error), "a: x\nb: y")
        self.assertEqual(len(error.problems), 2)

    def test_a_refused_change_carries_what_the_api_answers(self):
        error = errors.ChangeRefused(409, "it is there", "address")
        self.assertEqual((error.status, error.message, error.field, str(error)), (409, "it is there", "address", "it is there"))
