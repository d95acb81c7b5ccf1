"""A client's conditions, answered from a copy (RFC 9110 13)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.conditional import Outcome, evaluate, if_range_holds
from twistedproxy.http.cache.stored import Stored

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]
ask, answer, keep, T0 = heads.ask, heads.answer, heads.keep, heads.T0

MODIFIED = "Wed, 01 Jan 2025 00:00:00 GMT"
EARLIER, LATER = "Tue, 31 Dec 2024 00:00:00 GMT", "Thu, 02 Jan 2025 00:00:00 GMT"
SEND, SAME, FAILED = Outcome.SEND, Outcome.NOT_MODIFIED, Outcome.FAILED


def copy(*fields: str) -> Stored:
    stored: Stored = keep(["Cache-Control: max-age=60", *fields])
    return stored


STRONG, WEAK, DATED, PLAIN = (
    copy('ETag: "x"', f"Last-Modified: {MODIFIED}"),
    copy('ETag: W/"x"'),
    copy(f"Last-Modified: {MODIFIED}"),
    copy(),
)

TABLE: list[tuple[Stored, list[str], Outcome]] = [
    (STRONG, [], SEND),
    (STRONG, ['If-None-Match: "x"'], SAME),
    (STRONG, ['If-None-Match: W/"x"'], SAME),
    (STRONG, ['If-None-Match: "y"'], SEND),
    (STRONG, ['If-None-Match: "a", "b,\\", W/"x" , "c"'], SAME),
    (STRONG, ['If-None-Match: "a"', 'If-None-Match: "x"'], SAME),
    (STRONG, ["If-None-Match: *"], SAME),
    (STRONG, ["If-None-Match: x"], SEND),
    (STRONG, ['If-None-Match: w/"x"'], SEND),
    (STRONG, ['If-None-Match: "a" "x"'], SEND),
    (WEAK, ['If-None-Match: "x"'], SAME),
    (WEAK, ['If-None-Match: W/"x"'], SAME),
    (PLAIN, ['If-None-Match: "x"'], SEND),
    (PLAIN, ["If-None-Match: *"], SAME),
    # If-None-Match silences If-Modified-Since
    (STRONG, ['If-None-Match: "y"', f"If-Modified-Since: {LATER}"], SEND),
    (STRONG, ['If-None-Match: "x"', f"If-Modified-Since: {EARLIER}"], SAME),
    (DATED, [f"If-Modified-Since: {MODIFIED}"], SAME),
    (DATED, [f"If-Modified-Since: {LATER}"], SAME),
    (DATED, [f"If-Modified-Since: {EARLIER}"], SEND),
    (DATED, ["If-Modified-Since: Wednesday, 01-Jan-25 00:00:00 GMT"], SAME),
    (DATED, ["If-Modified-Since: yesterday"], SEND),
    # without Last-Modified its Date counts
    (PLAIN, ["If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT"], SAME),
    (PLAIN, [f"If-Modified-Since: {MODIFIED}"], SEND),
    (STRONG, ['If-Match: "x"'], SEND),
    (STRONG, ['If-Match: "y", "x"'], SEND),
    (STRONG, ["If-Match: *"], SEND),
    (STRONG, ['If-Match: "y"'], FAILED),
    (STRONG, ['If-Match: W/"x"'], FAILED),
    (WEAK, ['If-Match: W/"x"'], FAILED),
    (WEAK, ['If-Match: "x"'], FAILED),
    (PLAIN, ['If-Match: "x"'], FAILED),
    # If-Match silences If-Unmodified-Since
    (STRONG, ['If-Match: "x"', f"If-Unmodified-Since: {EARLIER}"], SEND),
    (DATED, [f"If-Unmodified-Since: {EARLIER}"], FAILED),
    (DATED, [f"If-Unmodified-Since: {MODIFIED}"], SEND),
    (DATED, ["If-Unmodified-Since: yesterday"], SEND),
    (STRONG, ['If-Match: "x"', 'If-None-Match: "x"'], SAME),
    (STRONG, ['If-Match: "y"', 'If-None-Match: "x"'], FAILED),
]


class EvaluateTests(SynchronousTestCase):
    def test_table(self) -> None:
        """Every condition, alone and with those it silences."""
        wrong = [
            (stored, fields, outcome) for stored, fields, expected in TABLE if (outcome := evaluate(stored, ask(fields))) is not expected
        ]
        self.assertEqual(wrong, [])

    def test_only_of_a_200(self) -> None:
        """A kept redirect has nothing to compare: it is sent as it is."""
        stored = keep(["Cache-Control: max-age=60", 'ETag: "x"', "Location: /y"], status=301)
        self.assertIs(evaluate(stored, ask(['If-None-Match: "x"'])), SEND)

    def test_long_lists_cost_little(self) -> None:
        """Only so many tags are looked at."""
        long = ",".join(f'"{n}"' for n in range(1000))
        self.assertIs(evaluate(STRONG, ask([f'If-None-Match: {long}, "x"'])), SEND)

    @settings(deadline=None, derandomize=True)
    @given(st.text(alphabet='"W/x, *\\', max_size=30))
    def test_anything_is_read(self, value: str) -> None:
        """No value raises anything; a 304 only for a tag that is there, or a star."""
        outcome = evaluate(STRONG, ask([f"If-None-Match: {value}"]))
        if outcome is SAME:
            self.assertTrue('"x"' in value or value.strip() == "*", value)


class IfRangeTests(SynchronousTestCase):
    def test_table(self) -> None:
        """A part is sent only of exactly the answer the client has the rest of."""
        fresh = copy("Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT")
        table: list[tuple[Stored, list[str], bool]] = [
            (STRONG, [], True), (STRONG, ['If-Range: "x"'], True), (STRONG, ['If-Range: "y"'], False), (STRONG, ['If-Range: W/"x"'], False),
            (WEAK, ['If-Range: W/"x"'], False), (WEAK, ['If-Range: "x"'], False), (STRONG, [f"If-Range: {MODIFIED}"], True),
            (STRONG, [f"If-Range: {LATER}"], False), (PLAIN, [f"If-Range: {MODIFIED}"], False), (STRONG, ["If-Range: x"], False),
            (fresh, ["If-Range: Thu, 01 Jan 2026 00:00:00 GMT"], False),  # it may change again in this very second
        ]  # fmt: skip
        wrong = [(stored, fields) for stored, fields, expected in table if if_range_holds(stored, ask(fields)) is not expected]
        self.assertEqual(wrong, [])
