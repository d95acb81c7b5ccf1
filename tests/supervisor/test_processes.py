"""One worker as the supervisor sees it: its states, its patience, its words (time is passed in)."""

from __future__ import annotations

import itertools
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.supervisor import processes
from twistedproxy.supervisor.processes import TRANSITIONS, State, Worker


class World:
    revision = 1

    def configuration(self, slot: int) -> dict[str, Any]:
        return {}

    def observations(self) -> list[dict[str, Any]]:
        return []


class Owner:
    def __init__(self) -> None:
        self.moves: list[State] = []

    def worker_moved(self, worker: Worker) -> None:
        self.moves.append(worker.state)

    def worker_failures(self, rows: list[list[Any]]) -> None: ...


class WorkerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.owner = Owner()
        self.worker = Worker(self.clock, 0, World(), self.owner)
        self.killed: list[Any] = []
        self.patch(self.worker, "signal", self.killed.append)

    def move(self, *states: State) -> None:
        for state in states:
            self.worker._move(state)

    def wait(self, seconds: float, heartbeats: bool = False) -> None:
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)
            if heartbeats:
                self.worker.last_heard = self.clock.seconds()
            self.worker.check(self.clock.seconds())

    def test_only_the_transitions_of_the_table_are_possible(self) -> None:
        for before, after in itertools.product(State, State):
            self.worker.state = before
            if after in TRANSITIONS[before]:
                self.move(after)
                self.assertIs(self.worker.state, after)
            else:
                with self.assertRaises(RuntimeError):
                    self.move(after)

    def test_the_owner_hears_of_every_step(self) -> None:
        self.move(State.CONFIGURING, State.SERVING, State.GONE)
        self.assertEqual(self.owner.moves, [State.CONFIGURING, State.SERVING, State.GONE])
        self.assertIn("gone", repr(self.worker))

    def test_silence_lends_the_sockets_after_2_5_s_and_kills_after_5_s(self) -> None:
        self.move(State.CONFIGURING, State.SERVING)
        self.wait(2.5)
        self.assertIs(self.worker.state, State.SERVING)
        self.wait(0.25)
        self.assertIs(self.worker.state, State.LAGGING)
        self.wait(2.25)
        self.assertEqual(self.killed, [])
        self.wait(0.25)
        self.assertEqual(len(self.killed), 1)

    def test_one_that_stays_behind_with_a_beating_heart_is_killed_5_s_later(self) -> None:
        self.move(State.CONFIGURING, State.SERVING)
        self.worker.lags("a change")
        self.wait(5.0, heartbeats=True)
        self.assertEqual(self.killed, [])
        self.wait(0.25, heartbeats=True)
        self.assertEqual(len(self.killed), 1)

    def test_a_start_that_never_ends_is_ended(self) -> None:
        self.wait(30.0)
        self.assertEqual(self.killed, [])
        self.wait(0.25)
        self.assertEqual((len(self.killed), self.worker.state), (1, State.STOPPING))

    def test_a_supervisor_that_stood_still_does_not_blame_the_worker(self) -> None:
        """After a suspended machine wakes up nobody is killed for the time that nobody ran."""
        self.move(State.CONFIGURING, State.SERVING)
        self.clock.advance(600.0)
        self.worker.excuse(600.0)
        self.worker.check(self.clock.seconds())
        self.assertIs(self.worker.state, State.SERVING)

    def test_a_slow_start_is_not_silence(self) -> None:
        """A worker that took long to start has its full time for the first heartbeat."""
        self.clock.advance(20.0)
        self.worker.said_hello(1, "native")
        self.worker._configured({"revision": 1}, [])
        self.wait(2.5)
        self.assertIs(self.worker.state, State.SERVING)

    def test_whoever_waits_for_a_revision_hears_of_the_end(self) -> None:
        self.move(State.CONFIGURING, State.SERVING)
        reached = self.worker.reach(2, {})
        self.move(State.GONE)
        self.assertIs(self.successResultOf(reached), False)
        self.assertIs(self.successResultOf(self.worker.reach(3, {})), False)


class LinesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lines = processes._Lines("worker 0", self.clock.seconds)
        self.said: list[str] = []
        observer = lambda event: self.said.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def test_last_words_without_a_line_end_are_kept(self) -> None:
        self.lines.received(b"one\ntw")
        self.lines.received(b"o\nthree")
        self.lines.finish()
        self.assertEqual(self.said, ["one", "two", "three"])

    def test_a_mad_worker_cannot_fill_the_disk(self) -> None:
        self.lines.received(b"x\n" * 10_000)
        self.assertEqual(len(self.said), processes.LINES_BURST)
        self.clock.advance(1.0)
        self.lines.received(b"again\n")
        self.assertEqual(self.said[-2:], ["9500 lines were dropped: more than 50 a second", "again"])

    def test_an_endless_line_is_cut(self) -> None:
        self.lines.received(b"x" * 100_000)
        self.assertEqual(len(self.lines._rest), 0)


class EnvironmentTests(SynchronousTestCase):
    def test_workers_find_this_very_package(self) -> None:
        import twistedproxy  # noqa: PLC0415

        home = str(twistedproxy.__file__).rsplit("/twistedproxy/", 1)[0]
        path = processes.environment().get("PYTHONPATH", "")
        self.assertTrue(home in path.split(":") or "site-packages" in home)
