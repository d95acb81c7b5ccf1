"""The successor does each thing when it is told to, and nothing that is the old one's before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.supervisor.heir import ORPHANS_S, Heir


class House:
    def __init__(self) -> None:
        self.did: list[Any] = []
        self.raises: Exception | None = None

    async def catch_up(self, legacy: Mapping[str, Any]) -> None:
        self.did.append(("catch_up", legacy))
        if self.raises is not None:
            raise self.raises

    def move_in(self) -> None:
        self.did.append("move_in")
        if self.raises is not None:
            raise self.raises

    def settled(self) -> None:
        self.did.append("settled")

    def give_up(self) -> None:
        self.did.append("give_up")

    def elder(self, connections: int, statistics: Any) -> None:
        self.did.append(("elder", connections, statistics))

    def orphaned(self) -> None:
        self.did.append("orphaned")


class HeirTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.house, self.said = Clock(), House(), []  # type: ignore[var-annotated]
        self.heir = Heir(self.clock, self.house)
        self.patch(self.heir.wire, "say", self.said.append)

    def hear(self, **word: Any) -> None:
        self.heir._heard(word)

    def test_step_by_step(self) -> None:
        self.heir.ready()
        self.hear(take_over={"x": 1})
        self.assertFalse(self.heir.has_moved_in)
        self.hear(yours=True)
        self.hear(main=True)
        self.hear(draining=2, statistics={})
        self.hear(draining=0, statistics={})
        self.heir._lost()
        self.assertEqual([next(iter(word)) for word in self.said], ["ready", "caught_up", "serving"])
        did = [("catch_up", {"x": 1}), "move_in", "settled", ("elder", 2, {}), ("elder", 0, {}), ("elder", 0, None)]
        self.assertEqual(self.house.did, did)
        self.successResultOf(self.heir.left)
        self.clock.advance(ORPHANS_S + 1)
        self.assertEqual(self.house.did, did)

    def test_if_the_old_one_vanishes_before_it_gives_up(self) -> None:
        self.hear(take_over={})
        self.heir._lost()
        self.assertIn("give_up", self.house.did)
        self.assertNotIn("move_in", self.house.did)

    def test_what_cannot_be_done_is_said(self) -> None:
        self.house.raises = OSError("disk full")
        self.hear(take_over={})
        self.assertEqual(self.said, [{"failed": "disk full"}])
        self.said.clear()
        self.hear(yours=True)
        self.assertEqual((self.said, self.heir.has_moved_in), ([{"failed": "disk full"}], False))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 2)

    def test_an_old_one_that_is_killed_while_it_drains_leaves_no_counts_behind(self) -> None:
        self.hear(take_over={})
        self.hear(yours=True)
        self.hear(draining=2, statistics={})
        self.heir._lost()
        self.assertNotIn("orphaned", self.house.did)
        self.clock.advance(ORPHANS_S)
        self.assertEqual(self.house.did[-1], "orphaned")

    def test_an_old_one_that_is_killed_right_after_it_gave_all_away(self) -> None:
        """Nobody tells us that we are the main process: we say it ourselves; and no count of its workers stays, though it told none."""
        self.hear(take_over={})
        self.hear(yours=True)
        self.heir._lost()
        self.assertEqual(self.house.did[1:], ["move_in", "settled", ("elder", 0, None)])
        self.clock.advance(ORPHANS_S)
        self.assertEqual(self.house.did[-1], "orphaned")
