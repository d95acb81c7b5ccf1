"""What would happen is told as it would happen."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.changes import Change, RemoveServer, SetState, SetWeight
from twistedproxy.config.control import Preview, ShareChange, SplitChange
from twistedproxy.config.model import Address, AdminState, Model, Pool, Route, Server, Side, Site, TcpListener
from twistedproxy.config.site_changes import SetSplit
from twistedproxy.observability.metrics import Metrics
from twistedproxy.supervisor.preview import keyed_pools, previewed, together

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

    def test_a_split_that_moves_says_by_how_much(self) -> None:
        """Of a route's traffic, side by side."""
        sides = (Side("web", 9), Side("v2", 1))
        before = Model(sites={"s": Site("s", ("s",), routes=(Route("/", split=sides),))})
        after = changes.apply(before, SetSplit("s", "/", (("web", 1), ("v2", 1))))
        seen = previewed(before, after, (), None, ({}, frozenset()), Metrics().to_plain())
        self.assertEqual(seen.splits, (SplitChange("s", "/", "web", 0.9, 0.5), SplitChange("s", "/", "v2", 0.1, 0.5)))

    def test_few_recorded_requests_are_chance(self) -> None:
        """Shares are by weight then; what is recorded is told all the same, and only where keys mean the same before and after."""
        keyed = replace(MODEL, pools={"web": replace(MODEL.pools["web"], balance="source_ip")})
        after = changes.apply(keyed, SetWeight("web", A, 3))
        self.assertEqual(keyed_pools(keyed, after), ["web"])
        self.assertEqual(keyed_pools(MODEL, after), [])
        self.assertEqual(keyed_pools(keyed, keyed), [])
        seen = previewed(keyed, after, (), None, ({}, frozenset()), Metrics().to_plain(), together([{"web": [[7, 2]]}, {"web": [[7, 1]]}]))
        self.assertEqual((seen.replays[0].requests, seen.shares[0]), (3, ShareChange("web", A, 0.5, 0.75)))

    def test_what_closes_sessions_counts_them(self) -> None:
        self.assertEqual(self.preview(RemoveServer("web", A, now=True)).closing, 5)
        self.assertEqual(self.preview(SetState("web", A, AdminState.MAINT)).closing, 5)
        self.assertEqual(self.preview(None, Model(pools=MODEL.pools)).closing, 9)
