"""Values cross processes and the journal as JSON and come back the same; anything else is noticed."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import plain
from twistedproxy.config.model import Eject, HealthCheck, Model, Pool, Server, Timeouts


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    name: str
    size: int | None = None


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...] = ()
    pair: tuple[int, str] = (1, "a")
    by_name: Mapping[str, Part] = field(default_factory=dict)
    words: Sequence[str] = ()
    colour: Colour = Colour.RED
    ratio: float = 0.5
    is_on: bool = False
    either: Part | int | None = None


PARTS = st.builds(Part, st.text(), st.none() | st.integers())
WHOLES = st.builds(
    Whole,
    st.lists(PARTS, max_size=3).map(tuple),
    st.tuples(st.integers(), st.text()),
    st.dictionaries(st.text(), PARTS, max_size=3),
    st.lists(st.text(), max_size=3).map(tuple),
    st.just(Colour.RED),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none() | st.integers() | PARTS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["parts", "pair", "name", "words"]), inner, max_size=3)
    ),
    max_leaves=8,
)
MODELS = st.builds(
    Model,
    workers=st.integers(1, 64),
    timeouts=st.builds(Timeouts),
    pools=st.dictionaries(
        st.sampled_from(["web", "pg"]),
        st.builds(
            Pool,
            name=st.text(max_size=3),
            servers=st.lists(st.builds(Server, st.text(max_size=5)), max_size=3).map(tuple),
            health=st.none() | st.builds(HealthCheck, st.sampled_from(["tcp", "http"]), status=st.just(((200, 299), (304, 304)))),
            eject=st.none() | st.builds(Eject),
        ),
    ),
)

BAD = [
    (Whole, 5),
    (Whole, []),
    (Whole, {"unknown": 1}),
    (Whole, {"parts": {}}),
    (Whole, {"parts": [{}]}),
    (Whole, {"parts": [{"name": 5}]}),
    (Whole, {"pair": [1]}),
    (Whole, {"pair": ["a", 1]}),
    (Whole, {"by_name": []}),
    (Whole, {"words": "abc"}),
    (Whole, {"words": 5}),
    (Whole, {"colour": "blue"}),
    (Whole, {"colour": []}),
    (Whole, {"ratio": "1"}),
    (Whole, {"ratio": True}),
    (Whole, {"ratio": 10**400}),
    (Whole, {"is_on": 1}),
    (Whole, {"either": "x"}),
    (Part, {"name": "a", "size": True}),
    (Part, {"name": None}),
    (Part, {}),
]


class PlainTests(SynchronousTestCase):
    @given(WHOLES)
    def test_a_value_comes_back_the_same(self, value):
        self.assertEqual(plain.decode(Whole, json.loads(json.dumps(plain.encode(value)))), value)

    @given(MODELS)
    def test_a_model_comes_back_the_same(self, model):
        self.assertEqual(plain.decode(Model, json.loads(json.dumps(plain.encode(model)))), model)

    def test_what_cannot_be_the_value_is_refused(self):
        for kind, data in BAD:
            with self.assertRaises(ValueError, msg=repr(data)):
                plain.decode(kind, data)

    @given(JSON)
    def test_no_json_raises_anything_but_a_refusal(self, data):
        try:
            plain.decode(Whole, data)
        except ValueError:
            pass

    def test_a_whole_number_may_stand_for_a_float_and_what_is_absent_is_the_default(self):
        value = plain.decode(Whole, {"ratio": 1})
        self.assertEqual((value.ratio, type(value.ratio), value.pair), (1.0, float, (1, "a")))
