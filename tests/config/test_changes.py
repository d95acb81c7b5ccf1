"""Live changes: they survive the journal, apply to the right server, and refuse what makes no sense."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.changes import (
    AddServer,
    Batch,
    Ejected,
    HealthSeen,
    RemoveServer,
    Resolved,
    RowAssigned,
    SetMaxConnections,
    SetState,
    SetWeight,
    apply,
    describe,
    from_plain,
    to_plain,
)
from twistedproxy.config.model import AdminState, Health, Model, Pool, Server, Source
from twistedproxy.errors import ChangeRefused

A, B = "10.0.0.1:80", "10.0.0.2:80"
MODEL = Model(pools={"web": Pool("web", (Server(A, 3), Server(B))), "pg": Pool("pg", (Server(A),))})

NAMES, NUMBERS = st.text(max_size=8), st.none() | st.integers(0, 1000)
SINGLE = st.one_of(
    st.builds(SetWeight, NAMES, NAMES, NUMBERS),
    st.builds(SetState, NAMES, NAMES, st.none() | st.sampled_from(AdminState)),
    st.builds(SetMaxConnections, NAMES, NAMES, NUMBERS),
    st.builds(AddServer, NAMES, st.builds(Server, NAMES, st.integers(0, 1000), NUMBERS, st.booleans())),
    st.builds(RemoveServer, NAMES, NAMES, st.booleans()),
)
OBSERVATIONS = st.one_of(
    st.builds(HealthSeen, NAMES, NAMES, st.sampled_from(Health), NAMES, st.floats(0, 1e12)),
    st.builds(Ejected, NAMES, NAMES, st.floats(0, 1e12)),
    st.builds(Resolved, NAMES, NAMES, st.lists(NAMES, max_size=3).map(tuple)),
    st.builds(RowAssigned, NAMES, NAMES, st.integers(-1, 9)),
)
ALL = st.one_of(SINGLE, OBSERVATIONS, st.lists(SINGLE, max_size=3).map(lambda c: Batch(tuple(c))))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "changes", "pool", "server", "weight"]), inner, max_size=4)
    ),
    max_leaves=8,
)

WEIGHT = {"kind": "set_weight", "pool": "web", "server": A, "weight": 1}
BAD = [
    5,
    None,
    [],
    "set_weight",
    {},
    {"kind": "x"},
    {"kind": []},
    {"kind": {}},
    {"kind": "set_weight"},
    WEIGHT | {"weight": "1"},
    WEIGHT | {"extra": 1},
    {"kind": "batch"},
    {"kind": "batch", "changes": 5},
    {"kind": "batch", "changes": [5]},
    {"kind": "batch", "changes": [WEIGHT], "x": 1},
    {"kind": "batch", "changes": [{"kind": "batch", "changes": []}]},
    {"kind": "batch", "changes": [{"kind": "ejected", "pool": "web", "server": A, "until": 1.0}]},
]

# change, status, field, key word
REFUSED = [
    (SetWeight("wep", A, 1), 404, "pool", "web"),
    (SetWeight("web", "10.0.0.3:80", 1), 404, "server", B),
    (SetWeight("web", A, 1001), 400, "weight", "0 to 1000"),
    (SetWeight("web", A, -1), 400, "weight", "0 to 1000"),
    (SetState("web", "x", AdminState.DRAIN), 404, "server", A),
    (SetMaxConnections("web", A, 0), 400, "max_connections", "1 to"),
    (AddServer("web", Server(A)), 409, "address", "already"),
    (AddServer("wep", Server("c:1")), 404, "pool", "web"),
    (AddServer("web", Server("nonsense")), 400, "address", "HOST:PORT"),
    (AddServer("web", Server("C:080")), 400, "address", "'c:80'"),
    (AddServer("web", Server("c:0")), 400, "address", "1 to 65535"),
    (AddServer("web", Server("unix:x.sock")), 400, "address", "absolute"),
    (AddServer("web", Server("c:1", 1001)), 400, "weight", "0 to 1000"),
    (AddServer("web", Server("c:1", 1, 0)), 400, "max_connections", "1 to"),
    (RemoveServer("web", "c:1"), 404, "server", A),
    (Batch((SetWeight("web", A, 1), SetWeight("web", "c:1", 1))), 404, "server", "c:1"),
]


class FormTests(SynchronousTestCase):
    @given(ALL)
    def test_every_change_and_observation_comes_back_from_json_the_same(self, value):
        self.assertEqual(from_plain(json.loads(json.dumps(to_plain(value)))), value)

    @given(JSON)
    def test_no_json_raises_anything_but_a_refusal(self, data):
        try:
            from_plain(data)
        except ValueError:
            pass

    def test_a_journal_entry_of_another_kind_or_shape_is_refused(self):
        for data in BAD:
            with self.assertRaises(ValueError, msg=repr(data)):
                from_plain(data)

    def test_batches_nested_without_end_are_refused_at_once(self):
        data = {"kind": "batch", "changes": []}
        for _ in range(100_000):
            data = {"kind": "batch", "changes": [data]}
        with self.assertRaisesRegex(ValueError, "cannot hold"):
            from_plain(data)
        while data["changes"]:  # freed step by step, else freeing it recurses
            data = data["changes"].pop()


class ApplyTests(SynchronousTestCase):
    def server(self, model, pool="web", address=A):
        return model.pools[pool].server(address)

    def test_a_weight_is_set_on_one_server_of_one_pool_and_given_back(self):
        changed = apply(MODEL, SetWeight("web", A, 7))
        self.assertEqual((self.server(changed).weight_now, self.server(changed).weight), (7, 3))
        self.assertEqual(self.server(changed, address=B), self.server(MODEL, address=B))
        self.assertIs(changed.pools["pg"], MODEL.pools["pg"])
        self.assertEqual(apply(changed, SetWeight("web", A, None)), MODEL)
        self.assertEqual(self.server(MODEL).weight_now, 3, "the model before is untouched")

    def test_weight_zero_is_a_weight(self):
        self.assertEqual(self.server(apply(MODEL, SetWeight("web", A, 0))).weight_now, 0)

    def test_a_state_is_set_and_given_back(self):
        changed = apply(MODEL, SetState("web", A, AdminState.DRAIN))
        self.assertEqual(self.server(changed).state, AdminState.DRAIN)
        self.assertEqual(apply(changed, SetState("web", A, None)), MODEL)

    def test_a_limit_is_set_and_given_back(self):
        changed = apply(MODEL, SetMaxConnections("web", A, 9))
        self.assertEqual(changed.pools["web"].limit_of(self.server(changed)), 9)
        self.assertEqual(apply(changed, SetMaxConnections("web", A, None)), MODEL)

    def test_a_server_is_added_at_the_end_as_the_admins_and_removed_again(self):
        changed = apply(MODEL, AddServer("web", Server("c:1", 5)))
        self.assertEqual(changed.pools["web"].servers[-1], Server("c:1", 5, source=Source.ADMIN))
        self.assertEqual(apply(changed, RemoveServer("web", "c:1")), MODEL)

    def test_a_batch_applies_in_order(self):
        changed = apply(MODEL, Batch((AddServer("web", Server("c:1")), SetWeight("web", "c:1", 4), RemoveServer("web", A))))
        self.assertEqual([(s.address, s.weight_now) for s in changed.pools["web"].servers], [(B, 1), ("c:1", 4)])

    def test_what_makes_no_sense_is_refused_with_status_field_and_what_there_is(self):
        for change, status, field, word in REFUSED:
            with self.assertRaises(ChangeRefused, msg=repr(change)) as caught:
                apply(MODEL, change)
            error = caught.exception
            self.assertEqual((error.status, error.field), (status, field), change)
            self.assertIn(word, error.message, change)


class DescribeTests(SynchronousTestCase):
    def test_the_journal_says_what_was_before_and_after(self):
        where = {"pool": "web", "server": A}
        drained = apply(MODEL, SetState("web", A, AdminState.DRAIN))
        table = [
            (MODEL, SetWeight("web", A, 7), {"kind": "set_weight", **where, "before": 3, "after": 7}),
            (apply(MODEL, SetWeight("web", A, 7)), SetWeight("web", A, None), {"kind": "set_weight", **where, "before": 7, "after": 3}),
            (MODEL, SetState("web", A, AdminState.MAINT), {"kind": "set_state", **where, "before": "ready", "after": "maint"}),
            (drained, SetState("web", A, None), {"kind": "set_state", **where, "before": "drain", "after": "ready"}),
            (MODEL, SetMaxConnections("web", A, 5), {"kind": "set_max_connections", **where, "before": 256, "after": 5}),
        ]
        for model, change, described in table:
            self.assertEqual(describe(model, change), described)

    def test_added_and_removed_servers_are_described_whole(self):
        added = describe(MODEL, AddServer("web", Server("c:1", 5)))
        self.assertEqual((added["server"], added["before"], added["after"]["weight"]), ("c:1", None, 5))
        self.assertEqual(added["after"]["source"], "admin")
        removed = describe(MODEL, RemoveServer("web", A))
        self.assertEqual((removed["before"]["weight"], removed["after"]), (3, None))

    def test_a_batch_describes_each_part_as_of_its_turn(self):
        described = describe(MODEL, Batch((SetWeight("web", A, 7), SetWeight("web", A, 8))))
        self.assertEqual([(c["before"], c["after"]) for c in described["changes"]], [(3, 7), (7, 8)])

    def test_every_kind_has_a_word(self):
        self.assertEqual(changes.kind_of(SetWeight("web", A, 1)), "set_weight")
        self.assertEqual(changes.kind_of(RowAssigned("web", A, 1)), "row_assigned")
