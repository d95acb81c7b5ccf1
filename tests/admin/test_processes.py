"""Upgrade and replacement of workers through the API: who may, what is asked, what a stale revision does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import ChangeRefused

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]


class ProcessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def test_only_an_admin_begins_one_and_everybody_sees_it(self) -> None:
        for path, begin, look in (("upgrade", "start_upgrade", "upgrade"), ("workers/restart", "restart_workers", "rotation")):
            with self.subTest(path):
                self.assertEqual(self.admin.ask("POST", f"/api/v1/{path}", {}, role="operate").status, 403)
                answer = self.admin.ask("POST", f"/api/v1/{path}", {"reason": "new version"})
                self.assertEqual((answer.status, answer.json), (200, {"asked": begin}))
                asked, arguments = self.admin.control.asked
                self.assertEqual((asked, arguments["reason"], bool(arguments["by"])), (begin, "new version", True))
                self.assertEqual(self.admin.ask("GET", f"/api/v1/{path}", role="view").json, {"asked": look})

    def test_a_stale_revision_is_412(self) -> None:
        answer = self.admin.ask("POST", "/api/v1/upgrade", {}, headers={"If-Match": '"999"'})
        self.assertEqual(answer.status, 412)

    def test_what_is_refused_for_a_moment_says_when_to_ask_again(self) -> None:
        """During the hand-over: 503 with Retry-After; other refusals have none."""
        for refusal, after in ((ChangeRefused(503, "a new version takes over", retry_after_s=1), "1"), (ChangeRefused(409, "no"), None)):
            self.admin.control.raises = refusal
            answer = self.admin.ask("PATCH", "/api/v1/pools/web/servers/127.0.0.1:9001", {"weight": 5})
            self.assertEqual((answer.status, answer.headers["Retry-After"]), (refusal.status, after))
