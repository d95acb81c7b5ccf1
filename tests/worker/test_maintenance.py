"""Which sessions end when servers are taken away; that they do is shown in test_service."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.changes import Batch, RemoveServer, SetState, SetWeight
from twistedproxy.config.model import Address, AdminState, Model, Pool, Server, Timeouts
from twistedproxy.worker.maintenance import Cuts

A, B = Address("10.0.0.1:80"), Address("10.0.0.2:80")


class LiveServer:
    def __init__(self, address: str, cut: list[str]) -> None:
        self.address = address
        self._cut = cut

    def cut(self, error: Exception) -> None:
        self._cut.append(self.address)


class LivePool:
    name = "web"

    def __init__(self, cut: list[str]) -> None:
        self._cut = cut

    def server(self, address: str) -> Any:
        return LiveServer(address, self._cut) if address in (A, B) else None


class CutsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.cut = Clock(), []  # type: ignore[var-annotated]
        self.cuts = Cuts(self.clock, {"web": LivePool(self.cut)})  # type: ignore[dict-item]
        self.model = Model(pools={"web": Pool("web", (Server(A), Server(B)))}, timeouts=Timeouts(drain_tcp_s=5))

    def follow(self, *steps: changes.Change) -> None:
        for step in steps:
            self.model = changes.apply(self.model, step)
            self.cuts.follow(self.model)

    def test_back_in_time_its_sessions_stay(self) -> None:
        self.follow(SetState("web", A, AdminState.MAINT), SetState("web", B, AdminState.MAINT), SetState("web", A, None))
        self.clock.advance(5)
        self.assertEqual(self.cut, [B])

    def test_another_change_gives_no_more_time(self) -> None:
        self.follow(SetState("web", A, AdminState.MAINT))
        self.clock.advance(4)
        self.follow(SetWeight("web", A, 3))
        self.clock.advance(1)
        self.assertEqual(self.cut, [A])

    def test_stopped_it_cuts_nobody(self) -> None:
        self.follow(SetState("web", A, AdminState.MAINT))
        self.cuts.stop()
        self.clock.advance(5)
        self.assertEqual(self.cut, [])

    def test_only_what_is_removed_now_is_cut_at_once(self) -> None:
        found = self.cuts.at_once(Batch((RemoveServer("web", A, now=True), RemoveServer("web", B, now=False))))
        self.assertEqual([each and each[1].address for each in found], [A])
