"""A purge is on disk before anybody is told, with everybody before it is answered, and outlives restarts; or it is refused."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import CachePurged
from twistedproxy.errors import ChangeRefused
from twistedproxy.http.cache.purges import KEPT_S, MOST
from twistedproxy.supervisor.purging import FILE, MOST_AHEAD_S, Purging

NOW = 1_800_000_000.0
URL = "https://www.example.com/a"
AT = '{"purges": 1, "all": [{"by": "tag", "what": "t", "at": %s, "is_soft": false}]}'


class Workers:
    """Two of them; `answer` decides when they have taken it in."""

    def __init__(self) -> None:
        self.known: list[CachePurged] = []
        self.answer: Callable[[], Deferred[tuple[int, list[int]]]] = lambda: succeed((2, []))

    def keep_purges(self, purges: Sequence[CachePurged]) -> None:
        self.known = list(purges)

    def reach(self) -> Deferred[tuple[int, list[int]]]:
        return self.answer()


class PurgingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(self.directory, FILE)
        self.now = NOW
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.writing: list[tuple[Deferred[None], Callable[[], Any]]] = []
        self.is_held = False
        self.begin()

    def begin(self, **how: bool) -> None:
        self.workers = Workers()
        self.purging = Purging(self.path, lambda: self.now, self.in_thread, self.workers, lambda kind, data: self.told.append((kind, data)))
        self.purging.start(**how)

    def in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        if not self.is_held:
            return maybeDeferred(work)
        held: Deferred[Any] = Deferred()
        self.writing.append((held, work))
        return held

    def write(self) -> None:
        """The thread gets on with it."""
        writing, self.writing = self.writing, []
        for held, work in writing:
            work()
            held.callback(None)

    def ask(self, **arguments: Any) -> Deferred[dict[str, Any]]:
        return Deferred.fromCoroutine(self.purging.purge({"by": "eve", **arguments}))

    def purge(self, **arguments: Any) -> dict[str, Any]:
        return self.successResultOf(self.ask(**arguments))

    def refusal(self, **arguments: Any) -> ChangeRefused:
        refused: ChangeRefused = self.failureResultOf(self.ask(**arguments), ChangeRefused).value
        return refused

    def test_what_was_purged_how_and_who_knows_is_answered_and_told(self) -> None:
        answer = self.purge(url="HTTPS://www.example.com:443/a", soft=True, reason="new\nprices")
        self.assertEqual(
            answer,
            {"purged": {"url": URL}, "soft": True, "at": "2027-01-15T08:00:00.000Z", "workers": {"total": 2, "acked": 2, "lagging": []}},
        )
        self.assertEqual(self.told, [("purge", answer | {"by": "eve", "reason": "new\nprices"})])
        self.assertEqual(self.workers.known, [CachePurged("url", URL, NOW, True)])
        self.assertEqual(self.purge(all=True)["purged"], {"all": True})
        self.assertEqual(self.purging.counts, {"url": 1, "all": 1})

    def test_workers_are_told_after_it_is_on_disk_and_asked_before_it_is_answered(self) -> None:
        self.is_held = True
        knowing: Deferred[tuple[int, list[int]]] = Deferred()
        self.workers.answer = lambda: knowing
        asked = self.ask(tag="t")
        self.assertEqual(self.workers.known, [])
        self.assertFalse(self.purging.is_quiet)
        self.write()
        self.assertTrue(self.purging.is_quiet)
        self.assertEqual(self.workers.known, [CachePurged("tag", "t", NOW)])
        self.assertNoResult(asked)
        knowing.callback((2, [1]))
        self.assertEqual(self.successResultOf(asked)["workers"], {"total": 2, "acked": 1, "lagging": [1]})

    def test_those_that_come_while_one_is_written_are_written_together(self) -> None:
        self.is_held = True
        asked = [self.ask(tag=f"{n}") for n in range(5)]
        self.assertEqual(len(self.writing), 1)
        self.write()
        self.assertEqual(len(self.writing), 1)
        self.write()
        for each in asked:
            self.successResultOf(each)
        self.assertEqual([purge.what for purge in self.workers.known], ["0", "1", "2", "3", "4"])

    def test_they_outlive_a_restart(self) -> None:
        self.purge(url=URL)
        self.purge(tag="t", soft=True, reason="new\nprices")
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.begin()
        self.assertEqual(self.workers.known, [CachePurged("url", URL, NOW), CachePurged("tag", "t", NOW, True)])
        self.assertEqual([each["what"] for each in self.purging.shown()], [URL, "t"])
        self.assertEqual([(each["who"], each["reason"]) for each in self.purging.shown()], [("eve", ""), ("eve", "new prices")])
        with open(self.path, encoding="utf-8") as file:
            kept = json.load(file)
        del kept["told"]
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump(kept, file)
        self.begin()
        self.assertEqual([each["what"] for each in self.purging.shown()], [URL, "t"], "an older version does not say who and why")

    def test_who_takes_over_tells_its_workers_what_came_meanwhile(self) -> None:
        elder, reached = self.purging, []
        self.begin()
        self.workers.answer = lambda: reached.append(list(self.workers.known)) or succeed((2, []))  # type: ignore[func-returns-value]
        self.successResultOf(Deferred.fromCoroutine(elder.purge({"tag": "t"})))
        self.purging.read_again()
        self.assertEqual(reached, [[CachePurged("tag", "t", NOW)]])

    def test_on_a_full_disk_it_is_refused_and_nothing_has_changed(self) -> None:
        self.purge(tag="before")
        os.mkdir(f"{self.path}.new")  # where the new file would be written
        refused = self.refusal(tag="t")
        self.assertEqual(refused.status, 503)
        self.assertIn("nothing was purged", refused.message)
        self.assertIn("make room", refused.message)
        self.assertEqual([purge.what for purge in self.workers.known], ["before"])
        os.rmdir(f"{self.path}.new")
        self.purge(tag="t")
        self.assertEqual([purge.what for purge in self.workers.known], ["before", "t"])

    def test_a_file_that_nobody_can_read_purges_everything(self) -> None:
        for text in ("", "{", '{"purges": 2, "all": []}', '{"purges": 1, "all": [{"by": 3}]}', AT % "NaN", AT % "1e300", "[" * 100_000):
            with open(self.path, "w", encoding="utf-8") as file:
                file.write(text)
            self.begin(is_ours=False)
            self.assertEqual(self.workers.known, [CachePurged("all", "", NOW)], text[:40])
        self.assertEqual(os.listdir(self.directory), [FILE], "it is the other supervisor's, which writes there")

    def test_what_nobody_can_read_is_set_aside_so_that_later_purges_and_starts_are_as_ever(self) -> None:
        os.mkdir(self.path)
        self.begin()
        with open(self.path, "w", encoding="utf-8") as file:
            file.write('{"purges": 1, "al')
        self.begin()
        aside = sorted(set(os.listdir(self.directory)) - {FILE})
        self.assertEqual(aside, [f"{FILE}.corrupt-20270115T080000Z", f"{FILE}.corrupt-20270115T080000Z-2"])
        with open(os.path.join(self.directory, aside[1]), encoding="utf-8") as file:
            self.assertEqual(file.read(), '{"purges": 1, "al')
        (why,) = {each["reason"] for each in self.purging.shown()}
        self.assertEqual(why, "purges.json could not be read")
        self.now += 60
        self.purge(tag="t")
        self.begin()
        known = [CachePurged("all", "", NOW), CachePurged("tag", "t", NOW + 60)]
        self.assertEqual(self.workers.known, known, "what is kept since the first start is not purged by the next")

    def test_what_cannot_be_meant_is_refused_with_what_can(self) -> None:
        for arguments, field, word in (
            ({}, "url", "nothing is given"),
            ({"all": False}, "url", '"all": true'),
            ({"url": URL, "tag": "t"}, "tag", "url, tag are given"),
            ({"url": "/a"}, "url", "whole URL"),
            ({"prefix": "https://a/#"}, "prefix", "#"),
            ({"tag": "a,b"}, "tag", "commas"),
        ):
            refused = self.refusal(**arguments)
            self.assertEqual((refused.status, refused.field), (400, field), arguments)
            self.assertIn(word, refused.message)

    def test_their_number_and_their_time_are_bounded(self) -> None:
        self.purge(tag="old")
        self.now += KEPT_S + 1
        for n in range(MOST + 10):
            self.now += 1
            self.purge(tag=f"{n}")
        with open(self.path, encoding="utf-8") as file:
            kept = json.load(file)["all"]
        self.assertLessEqual(len(kept), MOST)
        self.assertEqual(len(kept), len(self.workers.known))
        self.assertNotIn("old", [each["what"] for each in kept])
        self.assertIn("all", [each["by"] for each in kept], "which stands for the oldest of them")

    def test_a_clock_that_was_set_back_does_not_save_what_was_kept_before(self) -> None:
        self.purging.each_second()
        self.now -= 3600
        self.purge(tag="t")
        self.assertEqual(self.workers.known[0].at, NOW)
        self.now -= 10 * MOST_AHEAD_S
        self.purge(tag="u")
        self.assertEqual(self.workers.known[1].at, self.now + MOST_AHEAD_S)
