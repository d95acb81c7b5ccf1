"""Guarded shifts: step by step, back when it gets worse, on after a restart."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.control import Applied, Preview
from twistedproxy.config.model import Model, Route, Side, Site
from twistedproxy.config.site_changes import SetSplit, weights_of
from twistedproxy.errors import ChangeRefused
from twistedproxy.observability.metrics import BUCKETS_S
from twistedproxy.supervisor.shifts import Shifts

ROUTE = Route("/", split=(Side("web", 100), Side("v2", 0)))
MODEL = Model(sites={"s": Site("s", ("*",), (ROUTE, Route("/x", "web")))})
ASKED = {"from": "web", "to": "v2", "steps": [5, 25, 100], "every_s": 60.0, "abort_if": "errors > 1% or p95 > +20%"}


class Plane:
    """A supervisor whose changes take effect at once."""

    def __init__(self) -> None:
        self.model = MODEL
        self.reasons: list[str] = []
        self.published: list[Any] = []
        self.counts: dict[tuple[str, int], int] = {}
        self.refusal: Exception | None = None
        self.slow: dict[str, int] = {}

    async def apply(
        self, change: Any, *, by: str, reason: str = "", expected_revision: int | None = None, preview: bool = False
    ) -> Applied:
        if self.refusal is not None:
            raise self.refusal
        if preview:
            return Applied(0, 0, 0, preview=Preview(({"kind": "set_split"},)))
        self.model = changes.apply(self.model, change)
        self.reasons.append(reason)
        return Applied(len(self.reasons), 1, 1)

    def statistics(self) -> Any:
        buckets = {pool: [0] * (len(BUCKETS_S) + 1) for pool in ("web", "v2")}
        for (pool, _), n in self.counts.items():
            buckets[pool][self.slow.get(pool, 2)] += n
        return {
            "requests": [["s", pool, "a:1", code, n] for (pool, code), n in self.counts.items()],
            "durations": [["s", pool, counts, 1.0] for pool, counts in buckets.items()],
        }

    def publish(self, kind: str, data: Any) -> None:
        self.published.append((kind, data))

    def serve(self, pool: str, code: int, n: int) -> None:
        self.counts[pool, code] = self.counts.get((pool, code), 0) + n

    @property
    def weights(self) -> dict[str, int]:
        return dict(weights_of(self.model.sites["s"].routes[0]))


def now(work: Any) -> Any:
    """What a coroutine that waits for nobody returns."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    (result,) = results
    if hasattr(result, "raiseException"):
        result.raiseException()
    return result


class ShiftTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.plane = Plane()
        self.time = 1000.0
        self.path = os.path.join(tempfile.mkdtemp(), "shifts.json")
        self.shifts = self.restarted()

    def restarted(self) -> Shifts:
        return Shifts(self.plane, lambda: self.time, self.path)

    def start(self, **more: Any) -> Any:
        return now(self.shifts.start({**ASKED, **more}, "me"))

    def pass_time(self, seconds: float) -> None:
        self.time += seconds
        self.shifts.look()

    @property
    def state(self) -> Any:
        return self.shifts.all()[-1]

    def test_all_steps_when_all_is_well(self) -> None:
        """5, 25, 100 per cent, a minute apart, then done; each step says in the journal which shift it is."""
        self.start()
        self.assertEqual(self.plane.weights, {"web": 950, "v2": 50})
        self.pass_time(59)
        self.assertEqual(self.plane.weights, {"web": 950, "v2": 50})
        self.pass_time(1)
        self.assertEqual(self.plane.weights, {"web": 750, "v2": 250})
        self.pass_time(60)
        self.assertEqual(self.plane.weights, {"web": 0, "v2": 1000})
        self.pass_time(60)
        self.assertEqual((self.state.state, self.plane.reasons[-1]), ("done", "shift 1: v2 at 100%"))

    def test_errors_of_the_new_side_take_everything_back(self) -> None:
        """Back to where it began, at once, with the figures; the old side's errors are not held against the new one."""
        self.start()
        self.plane.serve("web", 500, 100)
        self.plane.serve("v2", 200, 60)
        self.pass_time(1)
        self.assertEqual(self.state.state, "running")
        self.plane.serve("v2", 502, 5)
        self.pass_time(1)
        self.assertEqual((self.state.state, self.plane.weights), ("aborted", {"web": 100, "v2": 0}))
        self.assertIn("errors > 1%", self.state.note)
        self.assertEqual(self.state.shown()["share"], 0.0)
        self.pass_time(600)
        self.assertEqual(self.plane.weights, {"web": 100, "v2": 0})

    def test_slower_than_the_old_side_beside_it(self) -> None:
        """``p95 > +20%`` compares with what the old side does in the same time."""
        self.start()
        self.plane.slow = {"web": 2, "v2": 5}
        self.plane.serve("web", 200, 100)
        self.plane.serve("v2", 200, 100)
        self.pass_time(1)
        self.assertEqual(self.state.state, "aborted")

    def test_too_few_requests_say_nothing(self) -> None:
        """A handful of errors is noise."""
        self.start()
        self.plane.serve("v2", 500, 10)
        self.pass_time(1)
        self.assertEqual(self.state.state, "running")

    def test_a_restart_goes_on_with_the_step_anew(self) -> None:
        """The state is kept in a file; no step is taken that was not watched for its whole time."""
        self.start()
        self.time += 3600
        self.shifts = self.restarted()
        self.shifts.look()
        self.assertEqual((self.state.state, self.plane.weights), ("running", {"web": 950, "v2": 50}))
        self.pass_time(60)
        self.assertEqual(self.plane.weights, {"web": 750, "v2": 250})
        now(self.shifts.stop("1", "me", back=True))
        self.assertEqual((self.restarted().all()[0].state, self.plane.weights), ("stopped", {"web": 100, "v2": 0}))

    def test_stop_here_or_go_back(self) -> None:
        """An operator decides; a stopped shift cannot be stopped again."""
        self.start()
        now(self.shifts.stop("1", "me", back=False))
        self.assertEqual((self.state.state, self.plane.weights), ("stopped", {"web": 950, "v2": 50}))
        self.assertEqual(self.assertRaises(ChangeRefused, now, self.shifts.stop("1", "me", back=True)).status, 409)
        self.assertEqual(self.assertRaises(ChangeRefused, now, self.shifts.stop("9", "me", back=True)).status, 404)
        self.start()
        now(self.shifts.stop("2", "me", back=True))
        self.assertEqual(self.plane.weights, {"web": 950, "v2": 50})  # where *it* began
        self.assertEqual(self.state.shown()["share"], 5.0)

    def test_somebody_else_at_the_wheel_ends_it(self) -> None:
        """A split set by hand is not overwritten by the next step."""
        self.start()
        self.plane.model = changes.apply(self.plane.model, SetSplit("s", "/", (("web", 50), ("v2", 50))))
        self.pass_time(60)
        self.assertEqual((self.state.state, self.plane.weights), ("stopped", {"web": 50, "v2": 50}))

    def test_a_refused_step_ends_it_where_it_is(self) -> None:
        """A test in the file, or a full disk, is not run against again and again."""
        self.start()
        self.plane.refusal = ChangeRefused(503, "the disk is full")
        self.pass_time(60)
        self.assertEqual(self.state.state, "stopped")
        self.assertIn("the disk is full", self.state.note)

    def test_a_refused_way_back_is_tried_again_also_after_a_restart(self) -> None:
        """A full disk at the wrong moment does not leave the traffic on a side that fails."""
        for restarts in (False, True):
            self.start()
            self.plane.serve("v2", 502, 60)
            self.plane.refusal = ChangeRefused(503, "the disk is full")
            self.pass_time(1)
            self.assertEqual((self.state.state, self.plane.weights), ("running", {"web": 950, "v2": 50}))
            self.assertIn("the way back is tried again: the disk is full", self.state.note)
            if restarts:
                self.shifts = self.restarted()
            self.plane.refusal = None
            self.pass_time(5)
            self.assertEqual((self.state.state, self.plane.weights), ("aborted", {"web": 100, "v2": 0}))
            self.assertIn("errors > 1%", self.state.note)

    def test_a_preview_of_the_first_step_starts_nothing(self) -> None:
        asked = now(self.shifts.answer("preview_shift", ASKED))
        self.assertEqual(asked["preview"]["changes"], [{"kind": "set_split"}])
        self.assertEqual((list(self.shifts.all()), self.plane.weights), ([], {"web": 100, "v2": 0}))

    def test_what_cannot_begin_says_why(self) -> None:
        """And leaves nothing behind."""
        for more, status, words in (
            ({"to": "v3"}, 409, "no split has just the sides"),
            ({"steps": [5, 4]}, 400, "that grow"),
            ({"steps": []}, 400, "steps are shares"),
            ({"steps": [0]}, 400, "steps are shares"),
            ({"abort_if": "nonsense"}, 400, "abort_if"),
            ({"every_s": 0.5}, 400, "every"),
            ({"site": "x"}, 404, "there are: s"),
        ):
            with self.subTest(more):
                error = self.assertRaises(ChangeRefused, self.start, **more)
                self.assertEqual(error.status, status)
                self.assertIn(words, error.message)
        self.assertEqual(list(self.shifts.all()), [])
        self.start()
        self.assertIn("shift 1 moves this split", self.assertRaises(ChangeRefused, self.start).message)

    def test_what_is_shown(self) -> None:
        """From, to, state, share, history; events for the page."""
        shown = self.start().shown()
        self.assertEqual(
            (shown["from"], shown["to"], shown["state"], shown["share"], shown["every_seconds"]), ("web", "v2", "running", 5.0, 60.0)
        )
        self.assertEqual([h["share"] for h in shown["history"]], [5.0])
        self.assertEqual({kind for kind, _ in self.plane.published}, {"shift"})

    def test_a_broken_file_of_shifts_is_told_and_left_out(self) -> None:
        """The proxy starts all the same."""
        with open(self.path, "w") as file:
            file.write("{")
        self.assertEqual(list(self.restarted().all()), [])
