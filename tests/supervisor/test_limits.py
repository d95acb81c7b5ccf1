"""What the system's limit of open files cannot hold is refused when somebody chose it, and fitted when it is the default."""

from __future__ import annotations

import resource
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, HttpListener, Model, TcpListener
from twistedproxy.errors import Problem
from twistedproxy.supervisor.limits import DEFAULT, fit, raise_descriptor_limit


def model(limit: int = DEFAULT, workers: int = 2) -> Model:
    return Model(
        workers=workers,
        http=(HttpListener(Address("127.0.0.1:80"), max_connections=limit),),
        tcp=(TcpListener(Address("127.0.0.1:81"), "pg"),),
    )


class LimitsTests(SynchronousTestCase):
    def test_a_chosen_number_that_does_not_fit_is_refused_with_what_to_do(self) -> None:
        problem = fit(model(20_000), 4096)
        assert isinstance(problem, Problem)
        self.assertIn("ulimit -n 22236", str(problem))
        self.assertIn("at most 3508 together", str(problem))
        self.assertIsInstance(fit(model(20_000), 22_236), Model)
        self.assertIsInstance(fit(model(3508), 4096), Model)
        self.assertIsInstance(fit(model(3510), 4096), Problem)

    def test_P3_all_listeners_together_must_fit(self) -> None:
        """Each of them alone would: but they may all be full at once."""
        both = replace(model(3000), tcp=(TcpListener(Address("127.0.0.1:81"), "pg", max_connections=500),))
        self.assertEqual(fit(both, 4096), both)
        more = replace(both, tcp=(TcpListener(Address("127.0.0.1:81"), "pg", max_connections=600),))
        problem = fit(more, 4096)
        assert isinstance(problem, Problem)
        self.assertIn("1800 client connections per worker", str(problem))

    def test_P3_listeners_at_the_default_share_what_is_left(self) -> None:
        fitted = fit(model(3000), 4096)
        assert isinstance(fitted, Model)
        self.assertEqual([listener.max_connections for listener in (*fitted.http, *fitted.tcp)], [3000, 540])

    def test_the_default_never_refuses_a_start(self) -> None:
        """A plain configuration runs on a machine with few descriptors, with fewer connections."""
        fitted = fit(model(workers=1), 4096)
        assert isinstance(fitted, Model)
        self.assertEqual([listener.max_connections for listener in (*fitted.http, *fitted.tcp)], [885, 885])

    def test_where_there_is_room_nothing_is_changed(self) -> None:
        self.assertEqual(fit(model(), 1_000_000), model())
        self.assertEqual(fit(model(), resource.RLIM_INFINITY), model())

    def test_a_limit_that_holds_nothing_is_refused(self) -> None:
        self.assertIsInstance(fit(model(), 200), Problem)

    def test_the_soft_limit_becomes_the_hard_one(self) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        self.assertEqual(raise_descriptor_limit(), before[1])
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (before[1], before[1]))
