"""Kinds of value within pydantic: placeholders are converted, and stay hidden when they do not fit."""

from __future__ import annotations

from typing import Annotated

from pydantic import TypeAdapter, ValidationError
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import kinds, schema
from twistedproxy.config.kinds import Origin
from twistedproxy.config.placeholders import Resolved

KINDS = {
    "flag": kinds.Flag,
    "integer": Annotated[int, kinds.integer(1, 9)],
    "fraction": Annotated[float, kinds.fraction(0, 1)],
    "duration": Annotated[float, kinds.duration("1ms", "1h")],
    "size": Annotated[int, kinds.size("1B", "1MB")],
    "choice": Annotated[str, kinds.choice("v1", "v2")],
    "listen": kinds.Listen,
    "listen or off": kinds.ListenOrOff,
    "address": kinds.ServerAddress,
    "host": kinds.Host,
    "network": kinds.Network,
    "balance": kinds.Balance,
    "statuses": kinds.Statuses,
    "mode": kinds.Mode,
    "sha256": kinds.Sha256,
    "get": kinds.Get,
    "server": schema.ServerOrText,
    "health": schema.Pool.model_fields["health"].rebuild_annotation(),
    "eject": schema.Pool.model_fields["eject"].rebuild_annotation(),
}


def read(kind, value):
    return TypeAdapter(KINDS[kind]).validate_python(value, context=Origin("/base"))


def complaint(kind, value):
    try:
        result = read(kind, value)
    except ValidationError as e:
        return "; ".join(str(item.get("ctx", {}).get("error", item["msg"])) for item in e.errors(include_input=False))
    raise AssertionError(f"{kind} took {value!r} for {result!r}")


class KindTests(SynchronousTestCase):
    def test_placeholders_become_the_type_of_the_key(self):
        good = {
            "flag": ("true", True), "integer": ("5", 5), "fraction": ("0.5", 0.5), "duration": ("5s", 5.0), "size": ("5kB", 5000),
            "choice": ("v1", "v1"), "listen": (":1", "[::]:1"), "listen or off": ("false", None),
            "mode": ("0600", 0o600), "eject": ("false", None),
        }  # fmt: skip
        for kind, (text, value) in good.items():
            self.assertEqual(read(kind, Resolved(text, "${env:X}")), value, kind)

    def test_numbers_and_flags_in_quotes_are_no_numbers_and_flags(self):
        for kind, value in {"flag": "true", "integer": "5", "fraction": "0.5"}.items():
            self.assertIn("text", complaint(kind, value))

    def test_what_does_not_fit_is_never_quoted_when_it_came_from_a_placeholder(self):
        for kind in KINDS:
            message = complaint(kind, Resolved("hunter2 = s3cret", "a${env:X}"))
            self.assertNotIn("hunter2", message)
            self.assertNotIn("s3cret", message)
            self.assertIn("'a${env:X}'", message)
            self.assertIn("needed is", message)

    def test_values_read_from_placeholders_are_plain_text_for_the_rest_of_the_program(self):
        for kind, text in {"choice": "v1", "address": "db:1", "host": "a.b", "balance": "random", "get": "GET /x"}.items():
            self.assertIs(type(read(kind, Resolved(text, "${env:X}"))), str, kind)

    def test_a_range_is_named_when_a_value_is_out_of_it(self):
        for kind, value, words in (
            ("duration", "0s", "1ms to 1h"),
            ("size", "2MB", "1B to 1MB"),
            ("integer", 10, "1 to 9"),
            ("fraction", 2, "0 to 1"),
        ):
            self.assertIn(words, complaint(kind, value))

    def test_lists_and_tables_are_seen_inside_annotations(self):
        self.assertEqual(kinds.inner_section(dict[str, schema.RouteOrPool]), (schema.Route, True))
        self.assertEqual(kinds.inner_section(tuple[schema.ServerOrText, ...] | None), (schema.Server, True))
        self.assertEqual(kinds.inner_section(schema.Timeouts | None), (schema.Timeouts, False))
        self.assertEqual(kinds.inner_section(tuple[str, ...]), (None, True))
