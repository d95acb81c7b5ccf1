"""Live changes over a file that people edit: nothing lost, nothing forced upon an edit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.changes import AddServer, Batch, Change, RemoveServer, SetMaxConnections, SetState, SetWeight
from twistedproxy.config.model import Address, AdminState, Model, Pool, Route, Server, Side, Site, Source
from twistedproxy.config.site_changes import SetMaintenance, SetSplit
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.overrides import Override, Overrides, overrides_of

ADDRESSES = [Address(f"10.0.0.{n}:80") for n in range(1, 5)]
A, B, C, _ = ADDRESSES
FILE = Model(pools={"web": Pool("web", (Server(A, weight=3), Server(B, max_connections=9))), "pg": Pool("pg", (Server(A, backup=True),))})

POOLS = st.sampled_from(["web", "pg"])
SERVERS = st.sampled_from(ADDRESSES)
ONE: st.SearchStrategy[Change] = st.one_of(
    st.builds(SetWeight, POOLS, SERVERS, st.none() | st.integers(0, 9)),
    st.builds(SetState, POOLS, SERVERS, st.none() | st.sampled_from(AdminState)),
    st.builds(SetMaxConnections, POOLS, SERVERS, st.none() | st.integers(1, 9)),
    st.builds(AddServer, POOLS, st.builds(Server, SERVERS, weight=st.integers(0, 5))),
    st.builds(RemoveServer, POOLS, SERVERS),
)
CHANGES = st.lists(ONE | st.builds(Batch, st.lists(ONE, max_size=3).map(tuple)), max_size=12)  # type: ignore[arg-type]


def run(made: list[Change]) -> tuple[Model, Overrides]:
    model, overrides = FILE, Overrides()
    for change in made:
        try:
            model = changes.apply(model, change)
        except ChangeRefused:
            continue
        overrides.add(Override.from_plain(o.to_plain()) for o in overrides_of(FILE, change))
    return model, overrides


def as_sets(model: Model) -> dict[str, dict[str, Server]]:
    return {name: {s.address: s for s in pool.servers} for name, pool in model.pools.items()}


class OverridesTests(SynchronousTestCase):
    @given(CHANGES)
    def test_after_a_restart_everything_is_as_it_was(self, made: list[Change]) -> None:
        """With an unchanged file, replay gives exactly the model the changes had made, server by server."""
        model, overrides = run(made)
        again, superseded = overrides.over(FILE)
        self.assertEqual(as_sets(again), as_sets(model))
        self.assertEqual(superseded, ())

    def edited(self, **values: object) -> Model:
        pool = FILE.pools["web"]
        first = replace(pool.servers[0], **values)  # type: ignore[arg-type]
        return replace(FILE, pools={**FILE.pools, "web": replace(pool, servers=(first, *pool.servers[1:]))})

    def test_a_weight_the_file_changed_since_is_overtaken_and_told(self) -> None:
        _, overrides = run([SetWeight("web", A, 7), SetState("web", A, AdminState.DRAIN)])
        model, (superseded,) = overrides.over(self.edited(weight=5))
        server = model.pools["web"].servers[0]
        self.assertEqual((server.weight_now, server.state), (5, AdminState.DRAIN))
        self.assertEqual(str(superseded), f"weight of {A} in pool web: was set live to 7 over 3, the file now says 5")

    def test_an_edit_of_another_value_leaves_the_override(self) -> None:
        _, overrides = run([SetWeight("web", A, 7)])
        model, superseded = overrides.over(self.edited(max_connections=5))
        self.assertEqual((model.pools["web"].servers[0].weight_now, superseded), (7, ()))

    def test_an_override_outlives_the_absence_of_its_server(self) -> None:
        _, overrides = run([SetWeight("web", A, 7), SetState("web", B, AdminState.MAINT)])
        without = replace(FILE, pools={"pg": FILE.pools["pg"]})
        model, superseded = overrides.over(without)
        self.assertEqual((model, superseded), (without, ()))
        back, _ = overrides.over(FILE)
        self.assertEqual(back.pools["web"].servers[0].weight_now, 7)

    def test_a_server_added_live_that_the_file_has_now_is_the_files(self) -> None:
        _, overrides = run([AddServer("web", Server(C, weight=2))])
        pool = FILE.pools["web"]
        adopted = replace(FILE, pools={"web": replace(pool, servers=(*pool.servers, Server(C, weight=4)))})
        model, superseded = overrides.over(adopted)
        server = model.pools["web"].server(C)
        assert server is not None
        self.assertEqual((server.weight, server.source, len(superseded)), (4, Source.FILE, 1))

    def test_a_removed_server_stays_away_unless_the_file_changed_it(self) -> None:
        _, overrides = run([RemoveServer("web", A)])
        model, _ = overrides.over(FILE)
        self.assertIsNone(model.pools["web"].server(A))
        model, superseded = overrides.over(self.edited(weight=8))
        self.assertIsNotNone(model.pools["web"].server(A))
        self.assertEqual(len(superseded), 1)

    def test_null_returns_to_the_file_and_leaves_nothing_behind(self) -> None:
        _, overrides = run([SetWeight("web", A, 7), SetWeight("web", A, None), AddServer("web", Server(C)), RemoveServer("web", C)])
        self.assertEqual(len(overrides), 0)

    def test_a_foreign_override_is_an_error_not_a_guess(self) -> None:
        good = Override("web", A, "weight", 3, 7).to_plain()
        for field, value in (("field", "colour"), ("value", "seven"), ("pool", 3)):
            with self.assertRaises(ValueError):
                Override.from_plain({**good, field: value})


class SiteOverrideTests(SynchronousTestCase):
    """Live values of sites over a file that people edit too."""

    def setUp(self) -> None:
        self.configured = self.file(90)
        self.overrides = Overrides()
        for change in (SetSplit("s", "/", (("a", 70), ("b", 30))), SetMaintenance("s", True)):
            kept = json.loads(json.dumps([override.to_plain() for override in overrides_of(self.configured, change)]))
            self.overrides.add(Override.from_plain(each) for each in kept)

    def file(self, weight: int, **site: Any) -> Model:
        return Model(sites={"s": Site("s", ("*",), (Route("/", split=(Side("a", weight), Side("b", 10))),), **site)})

    def test_they_outlive_a_restart(self) -> None:
        """The journal brings the split and the maintenance back."""
        model, superseded = self.overrides.over(self.configured)
        self.assertEqual([side.weight_now for side in model.sites["s"].routes[0].split], [70, 30])
        self.assertTrue(model.sites["s"].is_in_maintenance)
        self.assertEqual(superseded, ())

    def test_the_file_overtakes_what_it_changed_and_nothing_else(self) -> None:
        """New weights in the file win over live ones; the maintenance, which it did not touch, stays."""
        model, (superseded,) = self.overrides.over(self.file(50))
        self.assertEqual([side.weight_now for side in model.sites["s"].routes[0].split], [50, 10])
        self.assertTrue(model.sites["s"].is_in_maintenance)
        self.assertIn("split of site s /", str(superseded))

    def test_a_site_that_is_gone_is_waited_for(self) -> None:
        """As for servers: overrides outlive an absence."""
        model, superseded = self.overrides.over(Model())
        self.assertEqual((model, superseded), (Model(), ()))
        self.assertTrue(self.overrides.over(self.configured)[0].sites["s"].is_in_maintenance)
