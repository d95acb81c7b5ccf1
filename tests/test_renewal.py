"""`revproxy upgrade` and `restart-workers`: each step is shown once, and a failure is an exit code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twistedproxy import renewal

_spec = importlib.util.spec_from_file_location("test_daemon_fakes", Path(__file__).parent / "test_daemon.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

FACTS = {"from": "1.0", "to": "2.0", "pid": 7, "old_pid": 6, "connections": 3, "reason": "", "by": "eve", "started_at": "now"}


class RenewalTests(fakes.CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(renewal, "LOOK_EVERY_S", 0)

    def run_command(self, *arguments: str, answers: list[dict[str, Any]]) -> Any:
        self.daemon.answers = [(200, answer) for answer in answers]
        return self.revproxy(*arguments)

    def test_an_upgrade_is_followed_until_the_new_version_serves(self) -> None:
        states = ["starting", "starting", "ready", "draining"]
        result = self.run_command("upgrade", "--reason", "2.0", answers=[FACTS | {"state": state} for state in states])
        self.assertEqual(result.exit_code, 0, result.output)
        lines = [
            "upgrade: a new version starts",
            "upgrade: it is ready",
            "upgrade: version 2.0 (pid 7) serves; the old one finishes 3 connections",
        ]
        self.assertEqual(result.output.splitlines(), lines)
        self.assertEqual(self.daemon.asked[0], ("POST", "/api/v1/upgrade", {"reason": "2.0"}))
        self.assertEqual(self.daemon.asked[1][:2], ("GET", "/api/v1/upgrade"))

    def test_one_that_fails_says_why_and_exits_with_1(self) -> None:
        result = self.run_command("upgrade", answers=[FACTS | {"state": "starting"}, FACTS | {"state": "failed", "reason": "no module"}])
        self.assertEqual(result.exit_code, 1)
        self.assertIn("upgrade failed, nothing was changed: no module", result.output)

    def test_nobody_need_wait(self) -> None:
        result = self.run_command("upgrade", "--no-wait", answers=[FACTS | {"state": "starting"}])
        self.assertEqual((result.exit_code, result.output, len(self.daemon.asked)), (0, "upgrade: starting\n", 1))

    def test_an_answer_that_does_not_come_while_one_follows_the_other_is_asked_for_again(self) -> None:
        self.daemon.answers = [(200, FACTS | {"state": "starting"}), (500, {"detail": "gone"}), (200, FACTS | {"state": "done"})]
        result = self.revproxy("upgrade")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("the old one has left", result.output)

    def test_workers_are_counted(self) -> None:
        facts = {"total": 2, "connections": 0, "reason": "", "by": "eve", "started_at": "now"}
        steps = [
            {"state": "running", "replaced": 0},
            {"state": "running", "replaced": 1},
            {"state": "draining", "replaced": 2, "connections": 1},
        ]
        result = self.run_command("restart-workers", answers=[facts | step for step in steps])
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(
            result.output.splitlines()[1:], ["1 of 2 workers replaced", "2 of 2 workers replaced; the old ones finish 1 connection"]
        )
        failed = self.run_command("restart-workers", answers=[facts | {"state": "failed", "replaced": 1, "reason": "no slot"}])
        self.assertEqual((failed.exit_code, failed.output), (1, "1 of 2 workers replaced, then it ended: no slot\n"))
