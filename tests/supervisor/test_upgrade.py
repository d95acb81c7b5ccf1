"""The old supervisor: every way in which a successor can fail leaves it as it was; a good one gets all of it, in the right order."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy import __version__
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor import upgrade
from twistedproxy.supervisor.upgrade import HAND_OVER_S, READY_S, TRANSITIONS, Launch, State, Upgrade

_spec = importlib.util.spec_from_file_location("test_estate_sample", Path(__file__).parent / "test_estate.py")
estates: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(estates)  # type: ignore[union-attr]

reactor: Any = global_reactor


class Plane:
    def __init__(self) -> None:
        self.is_stopping = False
        self.did: list[Any] = []
        self.frozen: Deferred[None] = Deferred()
        self.frozen.callback(None)

    def foresee(self, is_expected: bool) -> None:
        self.did.append(("foresee", is_expected))

    async def freeze(self) -> None:
        self.did.append("freeze")
        await self.frozen

    def thaw(self) -> None:
        self.did.append("thaw")

    def legacy(self) -> dict[str, Any]:
        return {"connections": 4}

    def publish(self, kind: str, data: Any) -> None:
        self.did.append((kind, data["state"]))


class UpgradeTests(SynchronousTestCase):
    """Over a wire and a process that are played."""

    def setUp(self) -> None:
        self.clock, self.plane = Clock(), Plane()
        self.said: list[Any] = []
        self.killed: list[Any] = []
        self.upgrade = Upgrade(self.clock, self.plane, lambda: 1_800_000_000.0)
        self.upgrade.launch = lambda: Launch(["x"], {}, None, estates.sample())
        self.upgrade.leave = lambda pid: self.said.append(("leave", pid))
        self.upgrade.resume = lambda: self.plane.did.append("resume")
        self.patch(Upgrade, "_spawn", self.spawn)

    def spawn(self, launch: Any) -> None:
        self.upgrade._successor = upgrade._Successor(self.upgrade._ended)
        self.upgrade._successor.kill = lambda: self.killed.append(1)  # type: ignore[method-assign]
        self.upgrade._wire = upgrade.Wire(lambda word: None, lambda: None)
        self.upgrade._wire.say = self.said.append  # type: ignore[method-assign, assignment]
        self.upgrade._facts["pid"] = 77

    def hear(self, *words: str) -> None:
        for word in words:
            self.upgrade._heard({word: "2.0"})

    def assert_failed(self, why: str, *did: Any) -> None:
        self.assertIs(self.upgrade.state, State.FAILED)
        self.assertIn(why, self.upgrade.shown()["reason"])
        self.assertEqual(self.killed, [1])
        done = [each for each in self.plane.did if isinstance(each, str)]
        self.assertEqual(done, list(did))
        self.assertIn(("foresee", False), self.plane.did)
        self.clock.advance(READY_S + HAND_OVER_S)
        self.assertEqual(self.upgrade.latest, self.upgrade.shown())

    def test_all_goes_well(self) -> None:
        self.upgrade.start("eve")
        self.assertEqual(self.upgrade.shown()["state"], "starting")
        self.hear("ready")
        self.assertEqual(self.plane.did[-1], "freeze")
        self.assertEqual(self.said[-1]["take_over"]["upgrade"]["by"], "eve")
        self.hear("caught_up")
        self.assertEqual(self.said[-1], {"yours": True})
        self.assertNotIn(("leave", 77), self.said)
        self.hear("serving")
        self.assertEqual(self.said[-2:], [("leave", 77), {"main": True}])
        self.upgrade.tell(3, dict)
        self.assertEqual((self.said[-1], self.upgrade.shown()["connections"]), ({"draining": 3, "statistics": {}}, 3))
        wire: Any = self.upgrade._wire
        wire.makeConnection(transport := StringTransport())
        transport.producer.pauseProducing()  # the successor hangs: nothing piles up for it, and it gets the latest when it goes on
        self.upgrade.tell(2, dict)
        self.assertEqual((self.said[-1]["draining"], self.upgrade.shown()["connections"]), (3, 2))
        transport.producer.resumeProducing()
        self.upgrade.tell(1, dict)
        self.assertEqual(self.said[-1]["draining"], 1)
        self.clock.advance(READY_S + HAND_OVER_S)
        self.assertIs(self.upgrade.state, State.DRAINING)
        self.assertNotIn("thaw", self.plane.did)

    def test_a_second_one_is_refused_while_one_is_on(self) -> None:
        self.upgrade.start("eve")
        for word in ((), ("ready",), ("caught_up",)):
            self.hear(*word)
            with self.assertRaises(ChangeRefused) as caught:
                self.upgrade.start("SIGUSR2")
            self.assertEqual((caught.exception.status, self.upgrade.shown()["by"]), (409, "eve"))
        self.plane.is_stopping = True
        fresh = Upgrade(self.clock, self.plane, lambda: 0.0)
        with self.assertRaises(ChangeRefused):
            fresh.start("x")

    def test_who_has_left_starts_nothing_any_more(self) -> None:
        self.upgrade.start("eve")
        self.hear("ready", "caught_up", "serving")
        with self.assertRaises(ChangeRefused) as caught:
            self.upgrade.start("SIGUSR2")
        self.assertEqual((caught.exception.status, self.upgrade.shown()["state"]), (503, "draining"))

    def test_the_end_of_an_older_wire_is_no_end_of_this_one(self) -> None:
        self.upgrade.start("eve")
        older: Any = self.upgrade._wire
        self.upgrade._heard({"failed": "no"})
        self.upgrade.start("eve")
        self.upgrade._lost(older)
        self.clock.advance(2)
        self.assertIs(self.upgrade.state, State.STARTING)
        now: Any = self.upgrade._wire
        self.upgrade._lost(now)
        self.clock.advance(2)
        self.assertIn("closed the wire", self.upgrade.shown()["reason"])

    def test_it_says_no(self) -> None:
        self.upgrade.start("eve")
        self.upgrade._heard({"failed": "x.toml:3: nope"})
        self.assert_failed("x.toml:3: nope")

    def test_it_hangs_before_it_is_ready(self) -> None:
        self.upgrade.start("eve")
        self.clock.advance(READY_S)
        self.assert_failed("not ready within 60 s")

    def test_it_hangs_with_our_journal_closed(self) -> None:
        self.upgrade.start("eve")
        self.hear("ready")
        self.clock.advance(HAND_OVER_S)
        self.assert_failed("did not take over", "freeze", "thaw")

    def test_it_hangs_with_pid_file_and_lock(self) -> None:
        self.upgrade.start("eve")
        self.hear("ready", "caught_up")
        self.clock.advance(HAND_OVER_S)
        self.assert_failed("did not take over", "freeze", "resume", "thaw")
        self.upgrade.start("eve")  # and the next one may be better
        self.assertIs(self.upgrade.state, State.STARTING)

    def test_it_fails_while_we_wait_for_the_change_in_work(self) -> None:
        self.plane.frozen = Deferred()
        self.upgrade.start("eve")
        self.hear("ready")
        self.upgrade._heard({"failed": "too late"})
        with self.assertRaises(ChangeRefused):
            self.upgrade.start("eve")
        self.plane.frozen.callback(None)
        done = [each for each in self.plane.did if isinstance(each, str)]
        self.assertEqual(done, ["freeze", "thaw"])

    def test_we_are_told_to_stop(self) -> None:
        self.upgrade.start("eve")
        self.upgrade.stop()
        self.assert_failed("told to stop")

    def test_only_known_moves(self) -> None:
        for before in State:
            for after in State:
                one = Upgrade(self.clock, self.plane, lambda: 0.0)
                one.state = before
                if after in TRANSITIONS[before]:
                    one._move(after)
                else:
                    self.assertRaises(RuntimeError, one._move, after)

    def test_the_new_version_shows_how_the_old_one_finishes(self) -> None:
        new = Upgrade(self.clock, self.plane, lambda: 0.0)
        self.assertIsNone(new.latest)
        new.came_from("1.0", 6, {"by": "eve", "connections": 4})
        self.assertEqual((new.shown()["by"], new.shown()["to"], new.shown()["connections"]), ("eve", __version__, 4))
        new.elder_has(2, is_over=False)
        self.assertEqual((new.shown()["state"], new.shown()["connections"]), ("draining", 2))
        new.elder_has(0, is_over=True)
        self.assertEqual(new.shown()["state"], "done")


class ProcessTests(TestCase):
    """With real processes that are no successors."""

    timeout = 30

    async def failed(self, script: str) -> str:
        plane = Plane()
        one = Upgrade(reactor, plane, lambda: 0.0)
        descriptors = {name: os.open(os.devnull, os.O_RDONLY) for name in ("lock", "board", "local")}
        estate = estates.sample(listeners=(), handed={}, **descriptors)
        one.launch = lambda: Launch([sys.executable, "-c", script], dict(os.environ), None, estate)
        ended: Deferred[None] = Deferred()
        one._plane = plane
        publish = plane.publish

        def noted(kind: str, data: Any) -> None:
            publish(kind, data)
            if data["state"] == "failed":
                reactor.callLater(0, ended.callback, None)

        self.patch(plane, "publish", noted)
        one.start("eve")
        process, gone = one._successor, Deferred[None]()
        assert process is not None
        told = process._ended
        process._ended = lambda successor, how: (told(successor, how), gone.callback(None))  # type: ignore[assignment, return-value]
        await ended
        await gone
        for fd in descriptors.values():
            os.close(fd)
        return str(one.shown()["reason"])

    async def test_one_that_crashes_leaves_its_last_words_as_the_reason(self) -> None:
        self.assertIn("No module named 'nowhere'", await self.failed("import nowhere"))

    async def test_one_that_only_closes_the_wire(self) -> None:
        self.assertIn("closed the wire", await self.failed("import os, time; os.close(3); time.sleep(60)"))

    async def test_it_gets_every_descriptor(self) -> None:
        script = (
            "import os, sys\n"
            "from twistedproxy.supervisor.estate import inherited, tell_failure\n"
            "wire, estate = inherited(os.environ)\n"
            "[os.fstat(fd) for fd in estate.descriptors]\n"
            "tell_failure(wire, f'{len(estate.descriptors)} of 4')\n"
            "sys.stdin.read(); import time; time.sleep(60)\n"
        )
        self.assertEqual(await self.failed(script), "4 of 4")
