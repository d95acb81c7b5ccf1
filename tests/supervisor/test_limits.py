"""A promise of connections that the system's limits cannot keep is refused at start."""

from __future__ import annotations

import resource

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, HttpListener, Model
from twistedproxy.supervisor.limits import judge


class LimitsTests(SynchronousTestCase):
    def test_the_problem_says_what_to_do(self) -> None:
        model = Model(workers=2, http=(HttpListener(Address("127.0.0.1:80"), max_connections=10_000),))
        problem = judge(model, 4096)
        self.assertIn("ulimit -n 11200", str(problem))
        self.assertIsNone(judge(model, 11_200))
        self.assertIsNotNone(judge(model, 11_199))
        self.assertIsNone(judge(model, resource.RLIM_INFINITY))

    def test_without_listeners_little_is_needed(self) -> None:
        self.assertIsNone(judge(Model(), 256))
