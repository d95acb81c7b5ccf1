"""What a client sends is checked before anything is done with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SERVER = "/api/v1/pools/web/servers/127.0.0.1:9001"


class Bodies(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def test_wrong_bodies_name_the_field(self) -> None:
        """400 says which key is wrong and what is allowed, and changes nothing."""
        cases: list[tuple[Any, str, str]] = [
            ({"wieght": 1}, "wieght", 'did you mean "weight"?'),
            ({"weight": 1001}, "weight", "0 to 1000"),
            ({"weight": -1}, "weight", "0 to 1000"),
            ({"weight": True}, "weight", "0 to 1000"),
            ({"weight": 1.5}, "weight", "0 to 1000"),
            ({"weight": "5"}, "weight", "0 to 1000"),
            ({"state": "up"}, "state", '"drain"'),
            ({"max_connections": 0}, "max_connections", "1 to"),
            ({"weight": 1, "reason": 5}, "reason", "text"),
            ({"weight": 1, "reason": "x" * 501}, "reason", "500"),
            ({"weight": 1, "confirm_within": "10"}, "confirm_within", "is not a duration"),
            ({"weight": 1, "confirm_within": "8d"}, "confirm_within", "1s to 7d"),
            ({"weight": 1, "confirm_within": "100ms"}, "confirm_within", "1s to 7d"),
            ({"weight": 1, "abort_if": 5}, "abort_if", "text"),
            ({"reason": "nothing"}, "weight", "nothing to change"),
            (b'{"weight": 1, "weight": 2}', "weight", "given twice"),
            (b'{"weight": NaN}', "", "JSON"),
            (b"[" * 100_000, "", "JSON"),
            (b"[1]", "", "object"),
            (b"", "", "JSON"),
            (b"\xff\xfe", "", "JSON"),
        ]
        for body, field, text in cases:
            with self.subTest(str(body)[:60]):
                answer = self.admin.ask("PATCH", SERVER, body)
                self.assertEqual((answer.status, answer.json.get("field", "")), (400, field))
                self.assertIn(text, answer.json["detail"])
        self.assertEqual(self.admin.control.revision, 1)

    def test_wrong_queries_are_refused(self) -> None:
        """A parameter that does nothing is never silently ignored."""
        for method, path, body, field in (
            ("PATCH", SERVER + "?preview=maybe", {"weight": 1}, "preview"),
            ("PATCH", SERVER + "?previev=1", {"weight": 1}, "previev"),
            ("DELETE", SERVER + "?nwo=1", None, "nwo"),
            ("DELETE", SERVER + "?now=maybe", None, "now"),
            ("GET", "/api/v1/changes?after=x", None, "after"),
            ("GET", "/api/v1/changes?after=1&after=2", None, "after"),
            ("GET", "/api/v1/status?x=1", None, "x"),
        ):
            with self.subTest(path):
                answer = self.admin.ask(method, path, body)
                self.assertEqual((answer.status, answer.json["field"]), (400, field))
        self.assertEqual(self.admin.control.revision, 1)

    def test_conditions_reach_the_supervisor(self) -> None:
        """What the operator asked for beside the change is not dropped on the way."""
        body = {"weight": 1, "reason": "why", "confirm_within": "10m", "abort_if": "errors > 1%"}
        self.assertEqual(self.admin.ask("PATCH", SERVER + "?preview=1", body, headers={"If-Match": "1"}).status, 200)
        self.assertEqual(self.admin.control.terms, fakes.Terms("admin", "why", 1, 600.0, "errors > 1%", True))

    def test_if_match(self) -> None:
        """Quoted, bare or *; a stale one is 412 and changes nothing."""
        for tag, status in (('"1"', 200), ("2", 200), ("*", 200), ('"7", "4"', 200), ('"1"', 412), ('W/"5"', 412), ("abc", 412)):
            with self.subTest(tag):
                revision = self.admin.control.revision
                answer = self.admin.ask("PATCH", SERVER, {"weight": 1}, headers={"If-Match": tag})
                self.assertEqual(answer.status, status)
                self.assertEqual(self.admin.control.revision, revision + (status == 200))
