"""What operators ask: explain, why, mirrors."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import HealthSeen
from twistedproxy.config.control import Entry
from twistedproxy.config.model import Address, Health, Model, Pool, Route, Server, Site
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.questions import Questions

A, B = Address("10.0.0.1:80"), Address("bogus.invalid:80")
STORY = {"id": "i", "at": 1000.0, "status": 502, "pool": "web", "duration_seconds": 1.0, "attempts": [], "skipped": []}


class Knowledge:
    def __init__(self) -> None:
        self.model = Model(pools={"web": Pool("web", (Server(A), Server(B)))}, sites={"*": Site("*", ("*",), (Route("/", "web"),))})
        self.revision = 1
        self.answers: list[Any] = []
        self.asked: Any = None

    def health(self) -> Any:
        return {("web", A): HealthSeen("web", A, Health.DOWN, "refused", 0.0)}, frozenset()

    def unresolved(self) -> Any:
        return frozenset({("web", B), ("other", A)})

    def history(self, after: int = 0) -> Any:
        change = {"kind": "set_weight", "pool": "web", "server": A, "before": 1, "after": 0}
        times = ("1970-01-01T00:16:00Z", "1970-01-01T00:30:00Z")
        return [Entry(n + 1, at, "me", "", change) for n, at in enumerate(times)]

    def ask_workers(self, asked: Any) -> Deferred[list[Any]]:
        self.asked = asked
        return succeed(self.answers)


class QuestionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.knowledge = Knowledge()
        self.wall = 0.0
        self.questions = Questions(self.knowledge, lambda: self.wall)

    def ask(self, what: str, **arguments: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(self.questions.answer(what, arguments)))

    def refusal(self, what: str, **arguments: Any) -> ChangeRefused:
        failure = self.failureResultOf(Deferred.fromCoroutine(self.questions.answer(what, arguments)), ChangeRefused)
        error = failure.value
        assert isinstance(error, ChangeRefused)
        return error

    def test_explain_knows_health_and_follows_the_model(self) -> None:
        """A server that is down is not picked, and a changed model is routed by at once."""
        answer = self.ask("explain", url="http://x/", header=["X-A: 1"])
        self.assertEqual((answer["server"], [s["why_not"] for s in answer["servers"]]), (None, ["down", "unresolved"]))
        self.assertIn(["X-A", "1"], answer["request"]["headers"])
        self.knowledge.model = Model(sites={"*": Site("*", ("*",), (Route("/", redirect="/y"),))})
        self.assertEqual(self.ask("explain", url="http://x/")["response"]["status"], 308)

    def test_explain_says_what_is_wrong_with_a_question(self) -> None:
        """400 and the parameter's name."""
        for arguments, field in (
            ({"url": "x"}, "url"),
            ({"url": "http://x/%00"}, "url"),
            ({"url": "http://x/", "header": ["X"]}, "header"),
        ):
            error = self.refusal("explain", **arguments)
            self.assertEqual((error.status, error.field), (400, field))

    def test_why_joins_health_and_changes_around_it(self) -> None:
        """Health within 30 s of the same pool, changes within 5 minutes; what lies further away is left out."""
        for at, pool, health in ((980.0, "web", "down"), (980.0, "other", "down"), (1029.0, "web", "up"), (1100.0, "web", "down")):
            self.wall = at
            self.questions.saw("health", {"pool": pool, "server": A, "health": health})
            self.questions.saw("stats", {})
        self.knowledge.answers = [[], [STORY]]
        (story,) = self.ask("why", id="i")["stories"]
        self.assertEqual([(h["seconds"], h["health"]) for h in story["health"]], [(-20.0, "down"), (29.0, "up")])
        self.assertEqual([(c["revision"], c["seconds"]) for c in story["changes"]], [(1, -40.0)])
        self.assertEqual((story["at"], self.knowledge.asked), ("1970-01-01T00:16:40.000Z", {"ask": "why", "id": "i"}))

    def test_why_of_what_nobody_knows(self) -> None:
        """404 says for how long things are known."""
        self.knowledge.answers = [[], []]
        error = self.refusal("why", id="x")
        self.assertEqual(error.status, 404)
        self.assertIn("the last 500", error.message)

    def test_the_newest_without_an_id(self) -> None:
        """All workers' newest, newest first."""
        self.knowledge.answers = [[{"id": "a", "at": 1.0}], [{"id": "b", "at": 2.0}]]
        self.assertEqual([s["id"] for s in self.ask("why")["latest"]], ["b", "a"])

    def test_mirrors_are_added_up(self) -> None:
        """Counts of all workers together, samples of all."""
        one = {"results": [["s", "/", "m", "sent", 2]], "differences": [["s", "/", "m", "body", 1]], "samples": []}
        two = {"results": [["s", "/", "m", "sent", 3]], "differences": [], "samples": [{"site": "s", "path": "/", "pool": "m"}]}
        self.knowledge.answers = [one, two]
        (mirror,) = self.ask("mirrors")["mirrors"]
        self.assertEqual((mirror["results"], mirror["differences"], len(mirror["samples"])), ({"sent": 5}, {"body": 1}, 1))
