"""Sites, splits, shifts, explanations and stories through the API."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import Batch
from twistedproxy.config.model import Route, Side, Site
from twistedproxy.config.site_changes import SetMaintenance, SetSplit

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SITE = Site(
    "s.example", ("s.example", "*.s.example"), (Route("/", split=(Side("web", 95), Side("odd", 5))), Route("/old", redirect="/new"))
)
PATH = "/api/v1/sites/s.example"


class TrafficTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()
        control = self.admin.control
        self.changes: list[Any] = []
        whole = control.apply

        def noted(change: Any, **terms: Any) -> Any:
            self.changes.append(change)
            return whole(change, **terms)

        control.apply = noted
        control.model = replace(control.model, sites={"s.example": SITE})

    def test_sites_show_routes_splits_and_exposure(self) -> None:
        """Enough to read the result of an A/B test: weights, shares, how often each side was taken."""
        answer = self.admin.ask("GET", "/api/v1/sites", role="view")
        (site,) = answer.json["sites"]
        self.assertEqual((site["name"], site["maintenance"], site["hosts"]), ("s.example", False, ["s.example", "*.s.example"]))
        split, redirect = site["routes"]
        self.assertEqual((redirect["does"], redirect["redirect"]), ("redirect", "/new"))
        self.assertEqual([(s["pool"], s["share"], s["weight"]["effective"]) for s in split["split"]], [("web", 0.95, 95), ("odd", 0.05, 5)])

    def test_a_site_is_changed(self) -> None:
        """Maintenance, a split, or both in one revision."""
        split = {"path": "/", "weights": {"web": 80, "odd": 20}}
        for body, wanted in (
            ({"maintenance": True}, SetMaintenance("s.example", True)),
            ({"maintenance": None}, SetMaintenance("s.example", None)),
            ({"split": split}, SetSplit("s.example", "/", (("web", 80), ("odd", 20)))),
            ({"split": {"path": "/", "weights": None}}, SetSplit("s.example", "/", None)),
        ):
            with self.subTest(body):
                self.assertEqual(self.admin.ask("PATCH", PATH, body).status, 200)
                self.assertEqual(self.changes[-1], wanted)
        self.assertEqual(self.admin.ask("PATCH", PATH, {"maintenance": True, "split": split}).status, 200)
        self.assertIsInstance(self.changes[-1], Batch)

    def test_what_is_wrong_is_named(self) -> None:
        """400 and the field; 404 and the sites there are."""
        for body, field in (
            ({}, "maintenance"),
            ({"maintenance": "yes"}, "maintenance"),
            ({"split": []}, "split"),
            ({"split": {"path": "/"}}, "split"),
            ({"split": {"path": "/", "weights": {"web": 1.5}}}, "split"),
            ({"split": {"path": "/", "weights": {"web": True}}}, "split"),
        ):
            with self.subTest(body):
                answer = self.admin.ask("PATCH", PATH, body)
                self.assertEqual((answer.status, answer.json.get("field")), (400, field))
        answer = self.admin.ask("PATCH", "/api/v1/sites/x", {"maintenance": True})
        self.assertEqual(answer.status, 404)
        self.assertIn("s.example", answer.json["detail"])

    def test_questions_reach_the_supervisor(self) -> None:
        """Explain with several headers, why with an id, mirrors, shifts."""
        url = "/api/v1/explain?method=POST&url=http%3A%2F%2Fs.example%2F&header=A%3A%201&header=B%3A%202&client=10.0.0.1"
        self.assertEqual(self.admin.ask("GET", url, role="view").status, 200)
        wanted = {"method": "POST", "url": "http://s.example/", "header": ["A: 1", "B: 2"], "client": "10.0.0.1"}
        self.assertEqual(self.admin.control.asked, ("explain", wanted))
        self.assertEqual(self.admin.ask("GET", "/api/v1/explain", role="view").json["field"], "url")
        for path, asked in (
            ("/api/v1/why/abc", ("why", {"id": "abc"})), ("/api/v1/why", ("why", {})), ("/api/v1/mirrors", ("mirrors", {})),
            ("/api/v1/shifts", ("shifts", {})),
        ):  # fmt: skip
            self.assertEqual(self.admin.ask("GET", path, role="view").status, 200)
            self.assertEqual(self.admin.control.asked, asked)

    def test_shifts_are_started_and_stopped(self) -> None:
        """Durations are read here; who asks is noted."""
        body = {"from": "web", "to": "odd", "steps": [5, 50.5, 100], "every": "5m", "abort_if": "errors > 1%"}
        self.assertEqual(self.admin.ask("POST", "/api/v1/shifts", body).status, 200)
        what, arguments = self.admin.control.asked
        self.assertEqual((what, arguments["every_s"], arguments["steps"], arguments["by"]), ("start_shift", 300.0, [5, 50.5, 100], "admin"))
        self.assertEqual(self.admin.ask("POST", "/api/v1/shifts?preview=1", body, headers={"If-Match": '"1"'}).status, 200)
        what, arguments = self.admin.control.asked
        self.assertEqual((what, arguments["expected_revision"]), ("preview_shift", 1))
        self.assertEqual(self.admin.ask("POST", "/api/v1/shifts", body, headers={"If-Match": '"7"'}).status, 412)
        self.assertEqual(self.admin.ask("DELETE", "/api/v1/shifts/1", headers={"If-Match": '"7"'}).status, 412)
        self.assertEqual(self.admin.ask("POST", "/api/v1/shifts", {**body, "steps": ["x"]}).json["field"], "steps")
        self.assertEqual(self.admin.ask("POST", "/api/v1/shifts", {**body, "every": "x"}).json["field"], "every")
        self.assertEqual(self.admin.ask("DELETE", "/api/v1/shifts/1?back=0").status, 200)
        self.assertEqual(self.admin.control.asked, ("stop_shift", {"id": "1", "by": "admin", "back": False}))
