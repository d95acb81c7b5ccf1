"""Workers that die, hang or crash at start: replaced in time, their sockets lent, nothing counted lost (faults: P12, LC-04..06)."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy.supervisor.fleet import Backoff, Fleet
from twistedproxy.supervisor.processes import State, Worker
from twistedproxy.supervisor.sockets import Sockets


class BackoffTests(SynchronousTestCase):
    def test_a_crash_loop_slows_down_to_ten_seconds_and_is_forgiven_lc_05(self) -> None:
        backoff = Backoff()
        self.assertEqual([round(backoff.delay(0.1), 1) for _ in range(9)], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
        self.assertEqual(backoff.delay(10.0), 0.0)
        self.assertEqual(backoff.delay(0.1), 0.1)

    @given(st.lists(st.floats(0, 20)))
    def test_no_worker_waits_longer_than_ten_seconds(self, lives: list[float]) -> None:
        backoff = Backoff()
        for lived in lives:
            self.assertLessEqual(backoff.delay(lived), 10.0)


class World:
    revision = 1

    def configuration(self, slot: int) -> dict[str, Any]:
        return {"revision": self.revision, "model": {"filler": "x" * 150_000}}

    def observations(self) -> list[dict[str, Any]]:
        return []


class Columns:
    def __init__(self, cleared: list[int]) -> None:
        self.cleared = cleared
        self.taken: set[int] = set()
        self.room = 100

    def take_slot(self) -> int:
        slot = min(set(range(self.room)) - self.taken)
        self.taken.add(slot)
        return slot

    def free_slot(self, slot: int) -> None:
        self.taken.remove(slot)

    def clear_slot(self, slot: int) -> None:
        assert slot in self.taken
        self.cleared.append(slot)


@pytest.mark.usefixtures("bench")
class FleetTests(TestCase):
    bench: Any
    timeout = 60
    slots = 2

    def setUp(self) -> None:
        self.world = World()
        self.sockets: Sockets = self.bench.sockets(self.slots)
        self.zeroed: list[int] = []
        self.failures: list[Any] = []
        self.patch(os, "environ", {**os.environ, "STUB": ""})
        self.board = os.memfd_create("board")
        self.fleet = Fleet(
            reactor,
            self.slots,
            self.sockets,
            self.world,
            command=self.bench.command,
            scoreboard_fd=self.board,
            columns=Columns(self.zeroed),
            on_change=lambda worker: None,
            on_failures=self.failures.extend,
        )
        self.addCleanup(self._end)

    async def _end(self) -> None:
        drained = self.fleet.drain(0)
        self.fleet.cut()
        await drained
        self.sockets.close()
        os.close(self.board)

    def states(self) -> list[State]:
        return [worker.state for worker in self.fleet.workers]

    async def serving(self) -> list[Worker]:
        await self.bench.until(lambda: self.states() == [State.SERVING] * self.slots, what="all serve")
        return list(self.fleet.workers)

    async def test_workers_start_and_each_accepts_on_its_own_socket(self) -> None:
        self.fleet.start()
        workers = await self.serving()
        self.assertEqual([w.revision for w in workers], [1, 1])
        self.assertEqual([w.head_codec for w in workers], ["native", "native"])
        seen: set[tuple[int, int]] = set()
        for _ in range(200):
            seen.add(await self.bench.talk(self.sockets))
            if len(seen) == 2:
                break
        self.assertEqual(seen, {(w.slot, w.pid) for w in workers})

    async def test_a_killed_workers_sockets_are_lent_within_250_ms_and_it_is_replaced_p12(self) -> None:
        self.fleet.start()
        first, second = await self.serving()
        killed = time.monotonic()
        os.kill(first.pid, signal.SIGKILL)
        await self.bench.until(lambda: first.state is State.GONE)
        self.assertLess(time.monotonic() - killed, 0.25)
        for _ in range(20):
            self.assertEqual((await self.bench.talk(self.sockets))[1], second.pid)
        spawned = await self.bench.until(lambda: self.fleet.workers[0] is not first and self.fleet.workers[0].pid)
        self.assertLess(time.monotonic() - killed, 2.0)
        self.assertEqual(self.zeroed, [0])
        await self.serving()
        seen = set()
        for _ in range(200):
            seen.add((await self.bench.talk(self.sockets))[1])
            if len(seen) == 2:
                break
        self.assertEqual(seen, {spawned, second.pid})

    async def test_a_hung_worker_is_lent_killed_and_replaced(self) -> None:
        self.fleet.start()
        await self.serving()
        _, pid = await self.bench.talk(self.sockets, b"hang")
        (hung,) = [w for w in self.fleet.workers if w.pid == pid]
        (other,) = [w for w in self.fleet.workers if w.pid != pid]
        await self.bench.until(lambda: hung.state is State.LAGGING, 4.0)
        for _ in range(10):
            self.assertEqual((await self.bench.talk(self.sockets))[1], other.pid)
        await self.bench.until(lambda: hung.state is State.GONE, 4.0)
        self.assertFalse(self.bench.is_alive(pid))
        await self.serving()

    async def test_totals_never_run_backwards_when_a_worker_dies(self) -> None:
        self.fleet.start()
        first, _ = await self.serving()
        for _ in range(10):
            await self.bench.talk(self.sockets)
        await self.fleet.collect()
        self.assertEqual(self.fleet.statistics()["listeners"], [["x", 10, 0, 0]])
        os.kill(first.pid, signal.SIGKILL)
        await self.bench.until(lambda: first.ended.called)
        self.assertEqual(self.fleet.statistics()["listeners"], [["x", 10, 0, 0]])
        await self.serving()
        await self.fleet.collect()
        self.assertEqual(self.fleet.statistics()["listeners"], [["x", 10, 0, 0]])

    async def test_a_change_reaches_every_worker(self) -> None:
        self.fleet.start()
        workers = await self.serving()
        self.world.revision = 2
        self.assertEqual(await self.fleet.reach(2, {"kind": "x"}), (2, []))
        self.assertEqual([w.revision for w in workers], [2, 2])

    async def test_a_worker_that_starts_during_changes_serves_the_latest(self) -> None:
        before = self.world.configuration

        def changed_meanwhile(slot: int) -> dict[str, Any]:
            sent = before(slot)
            self.world.revision = 7
            return sent

        self.patch(self.world, "configuration", changed_meanwhile)
        self.fleet.start()
        await self.serving()
        self.assertEqual([w.revision for w in self.fleet.workers], [7, 7])

    async def test_failures_reach_the_supervisor(self) -> None:
        self.fleet.start()
        await self.serving()
        await self.bench.talk(self.sockets, b"fail")
        await self.bench.until(lambda: self.failures)
        self.assertEqual(self.failures, [["web", "10.0.0.1:80", 5, 5]])

    async def test_a_crash_loop_does_not_spin_lc_05(self) -> None:
        os.environ["STUB"] = "die"
        pids: set[int] = set()

        def tried() -> bool:
            pids.add(self.fleet.workers[0].pid)
            return len(pids) >= 4

        self.fleet.start()
        began = time.monotonic()
        await self.bench.until(tried, what="three replacements")
        self.assertGreater(time.monotonic() - began, 0.1 + 0.2 + 0.4)
        os.environ["STUB"] = ""
        await self.serving()

    async def test_a_worker_that_never_acks_is_told_of_sent_everything_and_serves_again(self) -> None:
        os.environ["STUB"] = "mute-apply"
        self.patch(__import__("twistedproxy.supervisor.fleet", fromlist=["x"]), "LAG_S", 0.3)
        self.fleet.start()
        await self.serving()
        self.world.revision = 2
        self.assertEqual(await self.fleet.reach(2, {"kind": "x"}), (2, [0, 1]))
        await self.serving()
        self.assertEqual([w.revision for w in self.fleet.workers], [2, 2])

    async def test_drain_lets_workers_end_by_themselves(self) -> None:
        self.fleet.start()
        workers = await self.serving()
        await self.fleet.drain(10)
        self.assertEqual([w.state for w in workers], [State.GONE] * 2)
        self.assertFalse(any(self.bench.is_alive(w.pid) for w in workers))

    async def test_workers_for_whom_there_is_no_slot_come_when_older_ones_have_finished(self) -> None:
        self.fleet.start()
        old = await self.serving()
        columns: Any = self.fleet._columns
        columns.room = 2
        self.fleet.resize(3)
        self.assertEqual(len(self.fleet.workers), 2)
        columns.room = 3
        self.fleet.retire(old[0].slot)
        self.slots = 3
        self.assertNotIn(old[0], await self.serving())

    async def test_a_second_word_ends_a_drain_at_once_lc_11(self) -> None:
        os.environ["STUB"] = "hang-drain"
        self.fleet.start()
        await self.serving()
        drained = self.fleet.drain(300)
        await deferLater(reactor, 0.1)
        self.assertFalse(drained.called)
        self.fleet.cut()
        began = time.monotonic()
        await drained
        self.assertLess(time.monotonic() - began, 2.0)
