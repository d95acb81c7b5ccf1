"""The control plane over stub workers: changes are durable, reach everybody, and are told (faults: P17, LC-09)."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from twistedproxy.config import changes
from twistedproxy.config.changes import AddServer, Batch, HealthSeen, RemoveServer, SetMaxConnections, SetState, SetWeight
from twistedproxy.config.control import Applied, Event
from twistedproxy.config.model import Address, AdminState, Eject, Health, Model, Pool, Server, TcpListener, Timeouts
from twistedproxy.errors import ChangeRefused
from twistedproxy.ipc.scoreboard import RowAllocator, Scoreboard
from twistedproxy.supervisor.facts import Rows
from twistedproxy.supervisor.journal import Journal
from twistedproxy.supervisor.service import Supervisor

A, B, C = Address("10.0.0.1:80"), Address("10.0.0.2:80"), Address("10.0.0.3:80")


class Probes:
    """Stands for `Checker` and `Resolver`."""

    def __init__(self) -> None:
        self.models: list[Model] = []
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.stopped = False

    def __call__(self, reactor: Any, tell: Callable[[Any], None], count: Callable[[str, str, str], None] | None = None) -> Probes:
        self.tell = tell
        self.count = count
        return self

    def update(self, model: Model, resolved: Any = None) -> None:
        self.models.append(model)

    def stop(self) -> None:
        self.stopped = True


class SupervisorTestCase(TestCase):
    bench: Any
    workers = 1
    timeout = 60

    async def setUp(self) -> None:
        self.patch(os, "environ", {**os.environ, "STUB": ""})
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "journal.jsonl")
        self.file = Model(
            workers=self.workers,
            tcp=(TcpListener(self.bench.LISTENER, "web"),),
            pools={"web": Pool("web", (Server(A, weight=3), Server(B)), eject=Eject(errors=5))},
            timeouts=Timeouts(drain_http_s=0.1, drain_tcp_s=0.2),
        )
        self.checker, self.resolver = Probes(), Probes()
        self.pending: list[Deferred[None]] = []
        self.is_held = False
        await self.start()

    async def start(self) -> None:
        self.journal = Journal(self.path, self.in_thread, lambda: 1_800_000_000.0)
        self.sockets = self.bench.sockets(self.workers)
        self.board = Scoreboard.create()
        allocator = RowAllocator(self.board)
        self.supervisor = Supervisor(
            reactor,
            self.journal.replay(self.file),
            self.journal,
            self.sockets,
            self.board,
            Rows(allocator.allocate, allocator.free),
            command=self.bench.command,
            checks=self.checker,
            names=self.resolver,
        )
        self.told: list[Event] = []
        self.supervisor.subscribe(self.told.append)
        self.supervisor.startService()
        await self.bench.until(lambda: [w.state for w in self.supervisor.snapshot().workers] == ["serving"] * self.workers)

    async def tearDown(self) -> None:
        await self.supervisor.stopService()
        self.sockets.close()
        self.journal.close()
        self.board.close()

    def in_thread(self, work: Callable[[], None]) -> Deferred[None]:
        if not self.is_held:
            work()
            return succeed(None)
        held: Deferred[None] = Deferred()
        self.pending.append(held)
        return held.addCallback(lambda _: work())

    async def apply(self, change: changes.Change, expected: int | None = None) -> Applied:
        return await self.supervisor.apply(change, by="eve", reason="because", expected_revision=expected)

    async def refused(self, change: changes.Change, expected: int | None = None) -> ChangeRefused:
        with self.assertRaises(ChangeRefused) as caught:
            await self.apply(change, expected)
        return caught.exception

    def kinds(self, kind: str) -> list[Any]:
        return [event.data for event in self.told if event.kind == kind]


@pytest.mark.usefixtures("bench")
class TwoWorkersTests(SupervisorTestCase):
    workers = 2

    async def test_a_weight_change_is_journaled_acked_by_all_and_told(self) -> None:
        self.assertEqual(await self.apply(SetWeight("web", A, 7)), Applied(1, 2, 2, ()))
        snapshot = self.supervisor.snapshot()
        self.assertEqual(snapshot.model.pools["web"].servers[0].weight_now, 7)
        self.assertEqual([w.revision for w in snapshot.workers], [1, 1])
        (entry,) = self.supervisor.history()
        self.assertEqual((entry.by, entry.reason, entry.change["before"], entry.change["after"]), ("eve", "because", 3, 7))
        self.assertEqual([data["revision"] for data in self.kinds("change")], [1])

    async def test_a_hundred_writers_never_lose_an_update_lc_09(self) -> None:
        """Each read-modify-write with If-Match happens on the state it read; the rest are 412."""
        results = await gatherResults(
            [
                self.bench.run(self.apply(SetWeight("web", A, n), expected=n // 10)).addErrback(
                    lambda f: f.trap(ChangeRefused) and f.value.status
                )
                for n in range(100)
            ]
        )
        done = [r.revision for r in results if isinstance(r, Applied)]
        self.assertEqual(done, list(range(1, 11)))
        self.assertEqual(results.count(412), 90)
        self.assertEqual({w.revision for w in self.supervisor.snapshot().workers}, {10})

    async def test_more_workers_than_there_is_room_for_are_refused_before_anything_changes(self) -> None:
        refused = self.supervisor.stage([], self.board.slots + 1)
        self.assertEqual([problem.path for problem in refused], ["workers.count"])
        self.assertIn(f"room for {self.board.slots} workers", refused[0].message)

    async def test_ready_as_long_as_one_worker_serves(self) -> None:
        self.assertTrue(self.supervisor.is_ready)
        for worker in self.supervisor.snapshot().workers[:1]:
            os.kill(worker.pid, signal.SIGKILL)
        await self.bench.until(lambda: {w.state for w in self.supervisor.snapshot().workers} != {"serving"})
        self.assertTrue(self.supervisor.is_ready)
        self.assertIn("gone", [data["state"] for data in self.kinds("worker")])


@pytest.mark.usefixtures("bench")
class ControlTests(SupervisorTestCase):
    async def test_a_restart_keeps_revision_and_changes(self) -> None:
        await self.apply(SetWeight("web", A, 7))
        await self.apply(AddServer("web", Server(C)))
        before = self.supervisor.snapshot()
        await self.tearDown()
        await self.start()
        after = self.supervisor.snapshot()
        self.assertEqual((after.model, after.revision), (before.model, 2))

    async def test_nonsense_is_refused_and_not_journaled(self) -> None:
        for change, status in (
            (SetWeight("web", A, 1001), 400),
            (SetWeight("web", C, 1), 404),
            (SetWeight("nope", A, 1), 404),
            (AddServer("web", Server(A)), 409),
            (Batch((SetWeight("web", A, 9), RemoveServer("web", C))), 404),
        ):
            self.assertEqual((await self.refused(change)).status, status)
        self.assertEqual((self.supervisor.revision, os.stat(self.path).st_size < 200), (0, True))
        self.assertEqual(self.supervisor.model.pools["web"].servers[0].weight_now, 3)

    async def test_a_stale_revision_is_412(self) -> None:
        await self.apply(SetWeight("web", A, 7), expected=0)
        self.assertEqual((await self.refused(SetWeight("web", A, 8), expected=0)).status, 412)
        await self.apply(SetWeight("web", A, 8), expected=1)

    async def test_nothing_takes_effect_before_it_is_durable(self) -> None:
        self.is_held = True
        applying = self.bench.run(self.apply(SetWeight("web", A, 7)))
        await self.bench.until(lambda: self.pending)
        self.assertEqual((self.supervisor.revision, self.kinds("change")), (0, []))
        self.pending[0].callback(None)
        self.assertEqual((await applying).revision, 1)

    async def test_a_caller_that_leaves_does_not_tear_a_change_apart(self) -> None:
        self.is_held = True
        applying = self.bench.run(self.apply(SetWeight("web", A, 7)))
        await self.bench.until(lambda: self.pending)
        applying.addErrback(lambda _: None)
        applying.cancel()
        self.is_held = False
        self.pending[0].callback(None)
        self.assertEqual((await self.apply(SetWeight("web", A, 8))).revision, 2)
        self.assertEqual([e.change["after"] for e in self.supervisor.history()], [7, 8])

    async def test_a_full_disk_refuses_the_change_everywhere(self) -> None:
        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        self.patch(os, "pwrite", full)
        self.assertEqual((await self.refused(SetWeight("web", A, 7))).status, 503)
        self.assertEqual((self.supervisor.revision, self.supervisor.model.pools["web"].servers[0].weight_now), (0, 3))

    async def test_added_servers_are_probed_and_get_a_row_removed_ones_are_forgotten(self) -> None:
        await self.apply(AddServer("web", Server(C)))
        self.assertIsNotNone(self.checker.models[-1].pools["web"].server(C))
        rows = {o["server"] for o in self.supervisor.observations() if o["kind"] == "row_assigned"}
        self.assertEqual(rows, {"", A, B, C})
        self.checker.tell(HealthSeen("web", C, Health.UP, "ok", 0.0))
        await self.apply(RemoveServer("web", C))
        self.assertEqual([o for o in self.supervisor.observations() if o["server"] == C], [])
        self.checker.tell(HealthSeen("web", C, Health.DOWN, "late", 0.0))
        self.assertEqual(self.supervisor.snapshot().health, {})

    async def test_health_is_logged_and_told_once_per_change_and_has_no_revision(self) -> None:
        lines: list[str] = []
        observer = lambda event: lines.append(event.get("reason", ""))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for reason in ("connection refused", "timed out"):
            self.checker.tell(HealthSeen("web", A, Health.DOWN, reason, 0.0))
        self.assertEqual(lines.count("connection refused"), 1)
        self.assertEqual(lines.count("timed out"), 0)
        self.assertEqual([data["reason"] for data in self.kinds("health")], ["connection refused"])
        self.assertEqual(self.supervisor.snapshot().health["web", A].reason, "timed out")
        self.assertEqual(self.supervisor.revision, 0)

    async def test_failures_of_a_worker_eject_the_server_everywhere(self) -> None:
        await self.bench.talk(self.sockets, b"fail")
        await self.bench.until(lambda: self.supervisor.snapshot().ejected == {("web", A)})
        self.assertTrue(self.kinds("health")[-1]["ejected"])

    async def test_a_batch_counts_as_one_change(self) -> None:
        batch = Batch((SetWeight("web", A, 0), SetState("web", B, AdminState.DRAIN), SetMaxConnections("web", B, 5)))
        self.assertEqual((await self.apply(batch)).revision, 1)

    async def test_statistics_are_told_each_second(self) -> None:
        await self.bench.talk(self.sockets)
        await self.supervisor.fresh_statistics()
        await self.bench.until(lambda: self.kinds("stats"), 3.0)
        self.assertEqual(len(self.kinds("stats")[-1]["workers"]), 1)
        self.assertEqual([row[1] for row in self.supervisor.statistics()["listeners"]], [1])
        self.checker.count("web", A, "ok")
        self.assertEqual(self.supervisor.statistics()["health_checks"], [("web", A, "ok", 1)])

    async def test_while_stopping_changes_are_refused(self) -> None:
        stopping = self.supervisor.stopService()
        self.assertEqual((await self.refused(SetWeight("web", A, 7))).status, 503)
        self.assertFalse(self.supervisor.is_ready)
        await stopping
        self.assertTrue(self.checker.stopped and self.resolver.stopped)
        self.patch(self, "tearDown", lambda: None)
        self.sockets.close()

    async def test_an_observer_that_fails_hurts_nobody(self) -> None:
        def broken(event: Event) -> None:
            raise RuntimeError("oops")

        leave = self.supervisor.subscribe(broken)
        await self.apply(SetWeight("web", A, 7))
        leave()
        leave()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.kinds("change")), 1)
