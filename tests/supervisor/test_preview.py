"""What would happen is told as it would happen."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.changes import Change, RemoveServer, SetState, SetWeight
from twistedproxy.config.control import Preview, ShareChange
from twistedproxy.config.model import Address, AdminState, Model, Pool, Server, TcpListener
from twistedproxy.observability.metrics import Metrics
from twistedproxy.supervisor.preview import previewed

A, B = Address("10.0.0.1:80"), Address("10.0.0.2:80")
LISTENER = TcpListener(Address("127.0.0.1:6432"), "web")
MODEL = Model(pools={"web": Pool("web", (Server(A), Server(B)))}, tcp=(LISTENER,))


class PreviewTests(SynchronousTestCase):
    def preview(self, change: Change | None, after: Model | None = None) -> Preview:
        metrics = Metrics()
        metrics.listener(LISTENER.address).open = 9
        statistics = metrics.to_plain([("web", A, 5, 0, 0)])
        after = changes.apply(MODEL, change) if change else after
        assert after is not None
        return previewed(MODEL, after, (), change, ({}, frozenset()), statistics)

    def test_shares_move_and_nothing_closes(self) -> None:
        seen = self.preview(SetWeight("web", A, 3))
        self.assertEqual(seen.shares, (ShareChange("web", A, 0.5, 0.75), ShareChange("web", B, 0.5, 0.25)))
        self.assertEqual(seen.closing, 0)
        self.assertEqual(self.preview(SetState("web", A, AdminState.DRAIN)).closing, 0)
        self.assertEqual(self.preview(RemoveServer("web", A)).closing, 0)

    def test_what_closes_sessions_counts_them(self) -> None:
        self.assertEqual(self.preview(RemoveServer("web", A, now=True)).closing, 5)
        self.assertEqual(self.preview(SetState("web", A, AdminState.MAINT)).closing, 5)
        self.assertEqual(self.preview(None, Model(pools=MODEL.pools)).closing, 9)
