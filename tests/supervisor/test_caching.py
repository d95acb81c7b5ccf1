"""The supervisor keeps the cache directory in order while a route has a cache, and what is wrong with it stops nobody."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Cache, Model, Route, RouteCache, Site
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.cache_keeper import Totals
from twistedproxy.supervisor.caching import Caching, Everybody
from twistedproxy.supervisor.fleet import heard_by_all
from twistedproxy.supervisor.processes import LAG_S, State


class Keeper:
    def __init__(self, spec: Cache) -> None:
        self.spec, self.totals, self.state = spec, Totals(memory_bytes=10, disk_bytes=20, disk_objects=2), "new"

    def start(self) -> None:
        self.state = "started"

    def stop(self) -> None:
        self.state = "stopped"


class Workers:
    def keep_purges(self, purges: Any) -> None: ...

    def reach(self) -> Deferred[tuple[int, list[int]]]:
        return succeed((1, []))


def model(directory: str, has_cache: bool = True, **cache: Any) -> Model:
    route = Route("/", "web", cache=RouteCache() if has_cache else None)
    return Model(sites={"a": Site("a", ("*.b.example", "[::1]"), routes=(route,))}, cache=Cache(f"{directory}/cache", **cache))


class CachingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.keepers: list[Keeper] = []
        self.why_not = ""
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.saw)
        self.addCleanup(globalLogPublisher.removeObserver, self.saw)

    def saw(self, event: Any) -> None:
        if event.get("log_format"):
            self.lines.append(event["log_format"].format(**event))

    def caching(self, spec: Model) -> Caching:
        made = Caching(
            spec, lambda: 100.0, maybeDeferred, Workers(), publish=lambda kind, data: None, why_not=lambda: self.why_not,
            make_keeper=self.make,
        )  # fmt: skip
        made.start()
        return made

    def make(self, spec: Cache) -> Keeper:
        self.keepers.append(Keeper(spec))
        return self.keepers[-1]

    def test_nothing_is_made_before_a_route_has_a_cache(self) -> None:
        caching = self.caching(model(self.directory, has_cache=False))
        self.assertEqual((self.keepers, os.listdir(self.directory), caching.totals), ([], [], None))
        caching.follow(model(self.directory))
        self.assertEqual([keeper.state for keeper in self.keepers], ["started"])
        self.assertEqual(os.stat(f"{self.directory}/cache").st_mode & 0o777, 0o700)
        caching.follow(model(self.directory, has_cache=False))
        self.assertEqual(([keeper.state for keeper in self.keepers], caching.totals), (["stopped"], None))

    def test_a_reload_with_other_limits_changes_them_and_counts_on(self) -> None:
        caching = self.caching(model(self.directory))
        caching.follow(model(self.directory))
        self.assertEqual(len(self.keepers), 1, "nothing changed")
        self.keepers[0].totals = Totals(evictions=7, failures=1)
        caching.follow(model(self.directory, disk=5, memory=6))
        self.assertEqual([keeper.state for keeper in self.keepers], ["stopped", "started"])
        assert caching.totals is not None
        self.assertEqual((caching.totals["evicted"], caching.totals["failures"]), (7, 1))
        self.assertEqual(caching.totals["disk"], {"bytes": 20, "objects": 2, "limit": 5})
        caching.stop()
        self.assertEqual(self.keepers[1].state, "stopped")

    def test_a_directory_that_cannot_be_made_is_said_once_and_stops_nobody(self) -> None:
        with open(f"{self.directory}/cache", "w", encoding="utf-8"):
            pass
        caching = self.caching(model(self.directory))
        caching.follow(model(self.directory))
        self.assertEqual(self.keepers[0].state, "started")
        said = [line for line in self.lines if "cannot be used" in line]
        self.assertEqual(len(said), 1)
        self.assertIn(f"{self.directory}/cache", said[0])
        self.assertIn("cache.path", said[0])

    def test_it_tells_what_has_a_cache_and_what_was_purged(self) -> None:
        caching = self.caching(model(self.directory))
        ask = lambda what, **arguments: Deferred.fromCoroutine(caching.answer(what, arguments))  # noqa: E731
        self.assertEqual(self.successResultOf(ask("purge", tag="t", by="eve"))["purged"], {"tag": "t"})
        told = self.successResultOf(ask("cache"))
        self.assertEqual(told["routes"], [{"site": "a", "path": "/"}])
        self.assertEqual((told["purges"]["total"], told["purges"]["latest"][0]["what"]), (1, "t"))
        for what, is_noted in (
            ({"url": "https://WWW.b.example:8443/x?y"}, False), ({"prefix": "https://b.example/"}, True),
            ({"url": "http://[::1]:80/"}, False),
            ({"tag": "t"}, False), ({"prefix": "https://other.example"}, True),
        ):  # fmt: skip
            answer = self.successResultOf(ask("purge", **what))
            self.assertEqual("notes" in answer, is_noted, what)
        self.assertIn("no site serves other.example: ", answer["notes"][0])
        caching.follow(model(self.directory, has_cache=False))
        self.assertIn("no route has a cache", self.successResultOf(ask("purge", tag="t"))["notes"][0])
        self.why_not = "another version takes over"
        refused = self.failureResultOf(ask("purge", tag="t"), ChangeRefused).value
        self.assertEqual((refused.status, refused.retry_after_s), (503, 1))


class Told:
    """A worker, as far as `heard_by_all` looks at it."""

    def __init__(self, slot: int) -> None:
        self.slot, self.state, self.said = slot, State.SERVING, ""

    def lags(self, why: str) -> None:
        self.said = why


class HeardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.workers = [Told(0), Told(1), Told(2)]
        self.answers: list[Deferred[Any]] = [Deferred(), Deferred(), Deferred()]
        observed: Any = type("Observed", (), {"broadcast_now": lambda _: list(zip(self.workers, self.answers, strict=True))})()
        self.heard = Everybody(self.clock, observed, None).reach()  # type: ignore[arg-type]

    def test_it_is_over_when_all_have_answered(self) -> None:
        for answer in self.answers:
            self.assertNoResult(self.heard)
            answer.callback({})
        self.assertEqual(self.successResultOf(self.heard), (3, []))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_hangs_and_one_that_could_not_are_behind_and_one_that_died_is_not(self) -> None:
        self.workers[1].state = State.GONE
        self.answers[1].callback(None)
        self.answers[2].callback(None)
        self.assertNoResult(self.heard)
        self.clock.advance(LAG_S)
        self.assertEqual(self.successResultOf(self.heard), (2, [0, 2]))
        self.assertTrue(self.workers[0].said and self.workers[2].said, "they are sent everything anew")
        self.assertFalse(self.workers[1].said)
        self.answers[0].callback({})

    def test_nobody_to_tell_is_nobody_to_wait_for(self) -> None:
        heard = heard_by_all(self.clock, [])
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(heard), (0, []))
