"""Workers are replaced one by one: never fewer than before, and the first that does not get ready ends it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.processes import START_S
from twistedproxy.supervisor.processes import State as WorkerState
from twistedproxy.supervisor.rotation import LOOK_S, Rotation, State


class Worker:
    def __init__(self, slot: int, state: WorkerState) -> None:
        self.slot, self.state, self.connections = slot, state, 5
        self.ended: Deferred[None] = Deferred()


class Fleet:
    def __init__(self) -> None:
        self.staying: dict[int, Any] = {slot: Worker(slot, WorkerState.SERVING) for slot in (0, 1)}
        self.retired: list[Worker] = []
        self.settled: list[int] = []
        self.is_full = False

    def add(self) -> int:
        if self.is_full:
            raise ValueError("all slots are in use")
        slot = max(self.staying) + 1
        self.staying[slot] = Worker(slot, WorkerState.STARTING)
        return slot

    def settle(self, slot: int) -> None:
        self.settled.append(slot)

    def retire(self, slot: int) -> None:
        self.retired.append(self.staying.pop(slot))


class RotationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.fleet, self.why_not = Clock(), Fleet(), ""
        self.rotation = Rotation(self.clock, self.fleet, lambda: self.why_not, lambda kind, data: None, lambda: 0.0)

    def serve(self) -> None:
        """The newest worker gets ready."""
        self.fleet.staying[max(self.fleet.staying)].state = WorkerState.SERVING
        self.clock.advance(LOOK_S)

    def test_each_new_one_serves_before_an_old_one_leaves(self) -> None:
        self.rotation.start("eve")
        self.clock.advance(LOOK_S)
        self.assertEqual((sorted(self.fleet.staying), self.fleet.retired), ([0, 1, 2], []))
        self.serve()
        self.assertEqual(sorted(self.fleet.staying), [1, 2, 3])
        self.assertEqual(self.rotation.shown()["replaced"], 1)
        with self.assertRaises(ChangeRefused):
            self.rotation.start("bob")
        self.serve()
        self.assertEqual((sorted(self.fleet.staying), self.fleet.settled), ([2, 3], [2, 3]))
        self.assertEqual((self.rotation.shown()["state"], self.rotation.shown()["connections"]), ("draining", 10))
        for worker in self.fleet.retired:
            worker.ended.callback(None)
        self.assertEqual(self.rotation.shown()["state"], "done")
        self.rotation.start("bob")

    def test_one_that_does_not_get_ready_ends_it_and_costs_nobody(self) -> None:
        self.rotation.start("eve")
        self.clock.pump([1.0] * int(START_S + 2))
        self.assertEqual((self.rotation.shown()["state"], sorted(self.fleet.staying)), ("failed", [0, 1]))

    def test_one_that_dies_meanwhile_has_a_successor_already(self) -> None:
        self.rotation.start("eve")
        self.fleet.staying[0] = Worker(0, WorkerState.SERVING)
        self.serve()
        self.assertEqual([worker.slot for worker in self.fleet.retired], [2])
        self.assertEqual(self.rotation.shown()["replaced"], 1)

    def test_no_room_and_no_time_for_it(self) -> None:
        self.fleet.is_full = True
        self.rotation.start("eve")
        self.assertIn("wait until older workers have finished", self.rotation.shown()["reason"])
        self.why_not = "an upgrade is under way"
        with self.assertRaises(ChangeRefused):
            self.rotation.start("eve")
        self.assertIs(self.rotation.state, State.FAILED)
