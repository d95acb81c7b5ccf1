"""The configuration as it may be shown: live values in it, secrets not."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes, shown
from twistedproxy.config.changes import AddServer, SetState, SetWeight
from twistedproxy.config.loader import read
from twistedproxy.config.model import Address, AdminState, Server
from twistedproxy.config.site_changes import SetMaintenance

TEXT = """
[listen]
http = ["127.0.0.1:8080"]
[pools.web]
servers = ["${env:HOST}:80 weight=3", "10.0.0.2:80"]
health = "GET ${env:SECRET}"
[sites."*"]
"/" = "web"
"""
LOADED = read(TEXT, environ={"HOST": "10.0.0.1", "SECRET": "/hidden"})
A, B, C = Address("10.0.0.1:80"), Address("10.0.0.2:80"), Address("10.0.0.3:80")


class ShownTests(SynchronousTestCase):
    def test_placeholders_stay_as_written(self) -> None:
        whole = shown.running(LOADED.effective, LOADED.model, LOADED.model)
        self.assertEqual(whole["pools"]["web"]["servers"], ["${env:HOST}:80 weight=3", "10.0.0.2:80"])
        self.assertNotIn("hidden", str(whole))

    def test_live_values_are_in_it(self) -> None:
        model = LOADED.model
        drain = SetState("web", B, AdminState.DRAIN)
        for change in (SetWeight("web", B, 7), drain, AddServer("web", Server(C)), SetMaintenance("*", True)):
            model = changes.apply(model, change)
        whole = shown.running(LOADED.effective, LOADED.model, model)
        self.assertEqual(
            whole["pools"]["web"]["servers"],
            ["${env:HOST}:80 weight=3", {"address": B, "weight": 7, "state": "drain"}, {"address": C, "weight": 1}],
        )
        self.assertTrue(whole["sites"]["*"]["maintenance"])
        self.assertEqual(LOADED.effective["pools"]["web"]["servers"][1], "10.0.0.2:80")

    def test_differences_are_lines_for_people(self) -> None:
        before = {"a": {"b": 1, "c": [1, 2], "sha256": "x"}, "gone": 1}
        after = {"a": {"b": 2, "c": [2, 3], "sha256": "y"}, "new": 1}
        self.assertEqual(
            shown.compare(before, after),
            ["a.b: 1 → 2", "a.c: removed 1", "a.c: added 3", "a.sha256: changed", "gone: removed", "new: added"],
        )
        self.assertEqual(shown.compare(before, before), [])

    def test_a_very_long_difference_is_cut(self) -> None:
        lines = shown.compare({}, {str(n): n for n in range(200)})
        self.assertEqual((len(lines), lines[-1]), (51, "and 150 more"))
