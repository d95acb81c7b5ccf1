"""The tests in the file."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.model import Address, Model, Pool, Route, Server, Side, Site, Sticky, Test
from twistedproxy.config.site_changes import SetMaintenance, SetSplit
from twistedproxy.http.trials import broken

ROUTES = (
    Route("/", split=(Side("web", 1), Side("two", 1))),
    Route("/api/", "web", strip=True, host="app"),
    Route("/old/", redirect="/new/", status=301),
)
MODEL = Model(
    pools={name: Pool(name, (Server(Address("10.0.0.1:80")),)) for name in ("web", "two")}, sites={"*": Site("*", ("*",), ROUTES)}
)
GOOD = (
    Test("GET http://x/api/y", pool="web", path="/y", host="app", rule="", expect_headers=(("x-forwarded-host", "x"),)),
    Test("GET https://x/old/y", redirect="/new/y", status=301),
    Test("GET http://x/", split=(("two", None), ("web", None))),
    Test("GET http://x/", split=(("web", 1), ("two", 1))),
    Test("GET http://x/%00", status=400),
)
BAD = {
    Test("GET http://x/api/y", pool="two"): "pool is 'web', not 'two'",
    Test("GET http://x/api/y", path="/api/y"): "path is '/y', not '/api/y'",
    Test("GET http://x/api/y", host="x"): "host is 'app', not 'x'",
    Test("GET http://x/api/y", redirect="/y"): "redirect is none",
    Test("GET http://x/api/y", status=200): "status is none",
    Test("GET http://x/api/y", rule="rules[0]"): "rule is ''",
    Test("GET http://x/api/y", expect_headers=(("X-A", "1"),)): "header X-A is absent",
    Test("GET http://x/", pool="web"): "expect split instead",
    Test("GET http://x/", split=(("web", None),)): "split is web 1, two 1",
    Test("GET http://x/", split=(("web", 2), ("two", 1))): "split is web 1, two 1",
    Test("GET http://x/%00"): "the request is refused",
}


class TrialTests(SynchronousTestCase):
    def test_good_ones_pass(self) -> None:
        """What is so is so."""
        self.assertEqual([str(each) for each in broken(replace(MODEL, tests=GOOD))], [])

    def test_each_expectation_can_fail_and_says_how(self) -> None:
        """The objection comes with the trace."""
        for test, words in BAD.items():
            with self.subTest(words):
                (found,) = broken(replace(MODEL, tests=(GOOD[0], test)))
                self.assertEqual(found.index, 1)
                self.assertIn(words, str(found))

    def test_the_larger_side_of_a_sticky_split_is_not_the_only_one(self) -> None:
        """A client without a cookie may get either side, whatever the shares; one with a cookie gets its own."""
        route = Route("/", split=(Side("web", 99), Side("two", 1)), sticky=Sticky("ab"))
        model = replace(MODEL, sites={"*": Site("*", ("*",), (route,))})
        (found,) = broken(replace(model, tests=(Test("GET http://x/", pool="web"),)))
        self.assertIn("expect split instead", str(found))
        self.assertEqual(broken(replace(model, tests=(Test("GET http://x/", (("Cookie", "ab=two"),), pool="two"),))), ())

    def test_a_live_change_can_break_one_and_maintenance_cannot(self) -> None:
        """A side that is closed is no side any more; entering maintenance must always be possible."""
        model = replace(MODEL, tests=GOOD)
        self.assertEqual(len(broken(changes.apply(model, SetSplit("*", "/", (("two", 0),))))), 2)
        self.assertEqual(broken(changes.apply(model, SetMaintenance("*", True))), ())
