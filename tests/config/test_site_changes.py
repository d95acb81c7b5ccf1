"""Live changes of sites: what they do, what they refuse, and how they go back."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes, undo
from twistedproxy.config.model import Model, Route, Side, Site
from twistedproxy.config.site_changes import SetMaintenance, SetSplit, change_from, file_says, value_of, weights_of
from twistedproxy.errors import ChangeRefused

RULE = Route("rules[0]", split=(Side("web", 1), Side("two", 1)))
MODEL = Model(sites={"s": Site("s", ("*",), (Route("/", split=(Side("web", 90), Side("two", 10))), Route("/x", "web")), rules=(RULE,))})
TO_80 = SetSplit("s", "/", (("web", 80), ("two", 20)))


class SiteChangeTests(SynchronousTestCase):
    def test_a_split_is_set_and_taken_back(self) -> None:
        """The weights move, the journal tells from what to what, undo restores the very model."""
        after = changes.apply(MODEL, TO_80)
        self.assertEqual(weights_of(after.sites["s"].routes[0]), {"web": 80, "two": 20})
        self.assertEqual(
            changes.describe(MODEL, TO_80),
            {"kind": "set_split", "site": "s", "path": "/", "before": {"web": 90, "two": 10}, "after": {"web": 80, "two": 20}},
        )
        back = undo.inverse(MODEL, TO_80)
        assert back is not None
        self.assertEqual(changes.apply(after, back), MODEL)
        self.assertEqual(changes.from_plain(changes.to_plain(TO_80)), TO_80)

    def test_a_split_of_a_rule_has_the_rules_name(self) -> None:
        """``rules[0]`` is a path like any other here, and the other splits stay."""
        after = changes.apply(MODEL, SetSplit("s", "rules[0]", (("web", 0),)))
        self.assertEqual(weights_of(after.sites["s"].rules[0]), {"web": 0, "two": 1})
        self.assertEqual(after.sites["s"].routes, MODEL.sites["s"].routes)

    def test_maintenance(self) -> None:
        """On, off, and back to the file's value."""
        on = changes.apply(MODEL, SetMaintenance("s", True))
        self.assertTrue(on.sites["s"].is_in_maintenance)
        self.assertEqual(changes.apply(on, SetMaintenance("s", None)), MODEL)
        self.assertEqual(undo.inverse(on, SetMaintenance("s", False)), SetMaintenance("s", True))
        self.assertFalse(undo.meet(undo.touched(changes.to_plain(TO_80)), undo.touched(changes.to_plain(SetMaintenance("s", True)))))

    def test_what_makes_no_sense_is_refused_with_what_exists(self) -> None:
        """Unknown site, path or side; weights out of range; nobody left to serve."""
        for change, status, words in (
            (SetMaintenance("x", True), 404, "there are: s"),
            (SetSplit("s", "/x", None), 404, "there are: rules[0], /"),
            (SetSplit("s", "/", (("three", 1),)), 400, "sides are: web, two"),
            (SetSplit("s", "/", (("web", 1001),)), 400, "allowed are 0 to 1000"),
            (SetSplit("s", "/", (("web", 0), ("two", 0))), 409, "nobody would be served"),
        ):
            with self.subTest(change):
                error = self.assertRaises(ChangeRefused, changes.apply, MODEL, change)
                self.assertEqual(error.status, status)
                self.assertIn(words, error.message)

    def test_values_survive_the_journal(self) -> None:
        """What a change sets comes back from its JSON form, and what the file says is comparable with it."""
        for change in (TO_80, SetMaintenance("s", True)):
            path, field, value = value_of(change)
            self.assertEqual(change_from("s", path, field, value), change)
        self.assertEqual(file_says(MODEL, "s", "/", "split"), [["web", 90], ["two", 10]])
        self.assertEqual((file_says(MODEL, "s", "", "maintenance"), file_says(MODEL, "x", "", "maintenance")), (False, None))
        for field, value in (("maintenance", 1), ("split", [["a"]]), ("split", "x")):
            self.assertRaises(ValueError, change_from, "s", "/", field, value)
