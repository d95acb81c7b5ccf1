"""What takes a change back restores exactly what was there, and a later change of the same value is noticed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes, undo
from twistedproxy.config.changes import AddServer, Batch, Change, RemoveServer, ReplaceConfig, SetMaxConnections, SetState, SetWeight
from twistedproxy.config.model import Address, AdminState, Model, Pool, Route, Server, Side, Site
from twistedproxy.config.site_changes import SetMaintenance, SetSplit
from twistedproxy.errors import ChangeRefused

ADDRESSES = [Address(f"10.0.0.{n}:80") for n in range(1, 4)]
A, B, _ = ADDRESSES
SITE = Site("s", ("s",), (Route("/", split=(Side("web", 3), Side("pg", 1))),))
MODEL = Model(pools={"web": Pool("web", (Server(A, weight=3), Server(B, max_connections=9))), "pg": Pool("pg")}, sites={"s": SITE})

SERVERS = st.sampled_from(ADDRESSES)
ONE: st.SearchStrategy[Change] = st.one_of(
    st.builds(SetWeight, st.just("web"), SERVERS, st.none() | st.integers(0, 9)),
    st.builds(SetState, st.just("web"), SERVERS, st.none() | st.sampled_from(AdminState)),
    st.builds(SetMaxConnections, st.just("web"), SERVERS, st.none() | st.integers(1, 9)),
    st.builds(AddServer, st.just("web"), st.builds(Server, SERVERS, weight=st.integers(0, 5))),
    st.builds(RemoveServer, st.just("web"), SERVERS),
    st.builds(SetMaintenance, st.just("s"), st.none() | st.booleans()),
    st.builds(SetSplit, st.just("s"), st.just("/"), st.none() | st.just((("web", 1), ("pg", 2)))),
)
SOME = st.lists(ONE | st.builds(Batch, st.lists(ONE, min_size=1, max_size=3).map(tuple)), max_size=8)  # type: ignore[arg-type]


def as_sets(model: Model) -> object:
    return {name: {(s.address, s.weight_now, s.state, pool.limit_of(s)) for s in pool.servers} for name, pool in model.pools.items()}


class InverseTests(SynchronousTestCase):
    @given(SOME)
    def test_undone_one_by_one_everything_is_as_it_was(self, made: list[Change]) -> None:
        model, backwards = MODEL, []
        for change in made:
            try:
                after = changes.apply(model, change)
            except ChangeRefused:
                continue
            back = undo.inverse(model, change)
            assert back is not None
            backwards.append((changes.from_plain(changes.to_plain(back)), model))
            model = after
        for back, before in reversed(backwards):
            model = changes.apply(model, back)
            self.assertEqual(as_sets(model), as_sets(before))
            self.assertEqual(model.sites, before.sites)

    def test_a_configuration_is_taken_back_by_the_text_before_it(self) -> None:
        self.assertIsNone(undo.inverse(MODEL, ReplaceConfig("x")))


class TouchedTests(SynchronousTestCase):
    def touched(self, change: Change) -> frozenset[undo.Value]:
        return undo.touched(changes.to_plain(change))

    def test_only_the_same_value_meets(self) -> None:
        weight = self.touched(SetWeight("web", A, 1))
        for other, meets in (
            (SetWeight("web", A, 2), True),
            (SetWeight("web", B, 2), False),
            (SetState("web", A, AdminState.DRAIN), False),
            (RemoveServer("web", A), True),
            (AddServer("pg", Server(A)), False),
            (Batch((SetState("web", B, None), SetWeight("web", A, 5))), True),
            (ReplaceConfig("x"), False),
            (SetMaintenance("s", True), False),
        ):
            self.assertEqual(undo.meet(weight, self.touched(other)), meets, other)
        self.assertTrue(undo.meet(self.touched(ReplaceConfig("x")), self.touched(ReplaceConfig("y"))))
        self.assertFalse(undo.meet(self.touched(SetMaintenance("s", True)), self.touched(SetSplit("s", "/", None))))
