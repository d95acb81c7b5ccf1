"""What would become of a request, and why."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, HeaderEdits, Health, Model, Pool, Route, RouteCache, Server, Side, Site, Sticky, When
from twistedproxy.errors import BadHead
from twistedproxy.http.explain import explain, question
from twistedproxy.http.sticky import server_token
from twistedproxy.http.trials import offline_router
from twistedproxy.pool.twin import Known

WEB = Pool("web", (Server(Address("10.0.0.1:80"), weight=3), Server(Address("10.0.0.2:80")), Server(Address("db.example:80"))))
MODEL = Model(
    pools={"web": WEB, "two": Pool("two", (Server(Address("10.0.0.3:80")),))},
    sites={
        "a.example": Site(
            "a.example", ("a.example",),
            (
                Route("/", split=(Side("web", 3), Side("two", 1)), sticky=Sticky("ab")),
                Route("/api/", "web", strip=True, request=HeaderEdits((("X-S", "${server}"),))),
                Route("/old", redirect="/new"),
            ),
            via="proxy",
            rules=(
                Route("rules[0]", "two", when=When(method=("POST",), header=(("X-Beta", ("1",)),))),
                Route("rules[1]", "two", when=When(path="/two/*")),
            ),
        )
    },
)  # fmt: skip


def ask(
    line: str, *headers: tuple[str, str], draw: float = 0.0, health: Any = None, ejected: Any = frozenset(), model: Model = MODEL
) -> Any:
    method, _, url = line.partition(" ")
    asked = question(method, url, headers)
    return explain(
        offline_router(model), asked, lambda name: Known(model.pools[name], health or {}, ejected), model.via_of, draw
    )  # fmt: skip


class ExplainTests(SynchronousTestCase):
    def test_every_rule_tells_why_not(self) -> None:
        """The trace names the site, each rule with the key that failed, the path, each server and the pick."""
        answer = ask("POST http://a.example/api/x?q=1", health={"10.0.0.2:80": Health.DOWN}, ejected=frozenset({"db.example:80"}))
        self.assertEqual(
            answer["steps"],
            [
                "host 'a.example' is site 'a.example'",
                "rules[0]: no, header X-Beta is absent",
                "rules[1]: no, path does not match '/two/*'",
                "path '/api/x' takes route '/api/', the longest match",
                "path '/api/x' becomes '/x'",
                "server 10.0.0.1:80: weight 3, ready, unknown: picked",
                "server 10.0.0.2:80: weight 1, ready, down: not available: down",
                "server db.example:80: weight 1, ready, unknown: not available: ejected",
                "pool 'web' (round_robin) picks 10.0.0.1:80",
                "the server is asked: POST /x?q=1 HTTP/1.1",
            ],
        )
        self.assertEqual({k: answer[k] for k in ("site", "rule", "path", "pool", "split", "server")}, {
            "site": "a.example", "rule": None, "path": "/api/", "pool": "web", "split": None, "server": "10.0.0.1:80",
        })  # fmt: skip
        fields = dict(answer["request"]["headers"])
        self.assertEqual((fields["X-S"], fields["Via"], fields["Host"]), ("10.0.0.1:80", "1.1 proxy", "a.example"))

    def test_a_rule_that_matches_ends_the_search(self) -> None:
        """Rules behind it are not tried, and the answer names it."""
        answer = ask("POST http://a.example/two/x", ("X-Beta", "1"))
        self.assertEqual((answer["rule"], answer["path"], answer["pool"]), ("rules[0]", None, "two"))
        self.assertIn("rules[0]: yes, all of it matches", answer["steps"])
        self.assertFalse([step for step in answer["steps"] if "rules[1]" in step])

    def test_all_sides_of_a_split_are_listed(self) -> None:
        """With their shares; the draw or the client's cookie picks one, and the trace says which of the two it was."""
        answer = ask("GET http://a.example/", draw=0.8)
        self.assertEqual([(s["pool"], s["share"], s["is_chosen"]) for s in answer["split"]], [("web", 0.75, False), ("two", 0.25, True)])
        self.assertIn("split over web 75.0%, two 25.0%: two, for a draw of 0.8", answer["steps"])
        self.assertIn(
            "split over web 75.0%, two 25.0%: web, this client's side",
            ask("GET http://a.example/", ("Cookie", "ab=web"), draw=0.8)["steps"],
        )
        # A large side is not a client's own because most draws fall on it.
        self.assertIn("split over web 75.0%, two 25.0%: web, for a draw of 0.1", ask("GET http://a.example/", draw=0.1)["steps"])

    def test_answers_made_here(self) -> None:
        """Redirects, unknown hosts and paths, and maintenance say what the client gets."""
        self.assertEqual(ask("GET http://a.example/old/x")["response"], {"status": 308, "location": "/new/x"})
        unknown = ask("GET http://b.example/")
        self.assertEqual((unknown["response"], unknown["site"]), ({"status": 404, "location": None}, None))
        self.assertIn("there are: a.example", unknown["steps"][0])

    def test_the_cache_of_a_route(self) -> None:
        """Whether it may be used for this request, and by which settings."""
        spec = RouteCache(ttl_s=60, stale_if_error_s=3600, negative=((404, 10),))
        model = Model(pools={"web": WEB}, sites={"*": Site("*", ("*",), (Route("/", "web", cache=spec),))})
        asked = "the cache of this route is asked first: fresh for 60 s, stale for 3600 s when the server fails, 404 for 10 s"
        self.assertIn(asked, ask("GET http://x/", model=model)["steps"])
        self.assertIn("the cache of this route is not used for this request: method", ask("POST http://x/", model=model)["steps"])
        bypass = "the cache of this route is not used for this request: request-no-store"
        self.assertIn(bypass, ask("GET http://x/", ("Cache-Control", "no-store"), model=model)["steps"])
        self.assertFalse([step for step in ask("GET http://a.example/two/x")["steps"] if "cache" in step])

    def test_nobody_is_available(self) -> None:
        """Every server says why not."""
        answer = ask("GET http://a.example/two/x", health={"10.0.0.3:80": Health.DOWN})
        self.assertEqual((answer["server"], answer["servers"][0]["why_not"]), (None, "down"))
        self.assertIn("pool 'two' has no server for it: 503", answer["steps"])

    def test_a_sticky_client_gets_its_server(self) -> None:
        """The cookie's server is the pick."""
        model = Model(
            pools={"web": Pool("web", WEB.servers, sticky=Sticky("srv"))}, sites={"*": Site("*", ("*",), (Route("/", "web"),))}
        )  # fmt: skip
        answer = ask("GET http://x/", ("Cookie", f"srv={server_token('web', '10.0.0.2:80')}"), model=model)
        self.assertEqual(answer["server"], "10.0.0.2:80")

    def test_bad_questions(self) -> None:
        """What is no request is told apart from what a client would be told."""
        for method, url, headers in (("GET", "/x", ()), ("GET", "ftp://a/", ()), ("GET", "http://a/", (("X", "a\r\nY: b"),))):
            self.assertRaises(ValueError, question, method, url, headers)
        self.assertRaises(BadHead, question, "GET", "http://a/%00", ())
