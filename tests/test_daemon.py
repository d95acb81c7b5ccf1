"""How commands find the daemon and say what it answers."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import daemon
from twistedproxy.cli import cli
from twistedproxy.daemon import Failed, Options


class Daemon:
    """Answers every request with what a test put there, and remembers what was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, str, Any]] = []
        outer = self

        class Answer(BaseHTTPRequestHandler):
            def answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.command, self.path, json.loads(sent) if sent else None))
                status, body = outer.answers.pop(0)
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *args: object) -> None:
                """Silence."""

        self.server = HTTPServer(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


APPLIED = {"revision": 7, "workers": {"total": 2, "acked": 2, "lagging": []}}


class CommandCase(SynchronousTestCase):
    """A daemon to send commands to, `self.daemon`."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.token = Path(directory.name, "token")
        self.token.write_text("secret\n")
        self.daemon = Daemon()
        self.addCleanup(self.daemon.server.server_close)
        self.addCleanup(self.daemon.server.shutdown)

    def revproxy(self, *arguments: str, text: str | None = None) -> Any:
        """What comes of the command; `text` is typed in."""
        return CliRunner().invoke(cli, ["--admin", self.daemon.address, "--token-file", str(self.token), *arguments], input=text)


class Commands(CommandCase):
    def run_command(self, *arguments: str, answers: list[tuple[int, Any]], text: str | None = None) -> Any:
        self.daemon.answers = answers
        return self.revproxy(*arguments, text=text)

    def test_conditions_go_with_the_change(self) -> None:
        """`--confirm-within`, `--abort-if`, `--preview` and `--reason` are not lost on the way."""
        result = self.run_command(
            "weight", "web", "10.0.0.1:80", "5", "--confirm-within", "10m", "--abort-if", "errors > 1%", "--reason", "why",
            answers=[(200, APPLIED | {"confirm_by": "2026-11-21T18:00:00Z"})],
        )  # fmt: skip
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("revproxy confirm 7", result.output)
        body = {"weight": 5, "reason": "why", "confirm_within": "10m", "abort_if": "errors > 1%"}
        self.assertEqual(self.daemon.asked, [("PATCH", "/api/v1/pools/web/servers/10.0.0.1:80", body)])

    def test_a_guarded_change_says_how_long_it_is_watched_and_the_listing_what_became_of_it(self) -> None:
        guard = {"abort_if": "p95 > +20%", "until": "2999-11-21T18:00:00.000Z", "min_requests": 50, "baseline_requests": 12}
        arguments = ("weight", "web", "10.0.0.1:80", "5", "--abort-if", "p95 > +20%")
        result = self.run_command(*arguments, answers=[(200, APPLIED | {"guard": guard})])
        for words in ("(until 2999-11-21T18:00:00.000Z)", "p95 > +20%", "once 50 requests", "had 12 of the 50", "revproxy confirm 7"):
            self.assertIn(words, result.output)
        made = {"at": "now", "by": "eve", "reason": "", "change": {"kind": "x"}, "undone_by": None, "confirm_by": None, "guard": guard}
        figures = "p95 > +20%: p95 90 ms in 60 requests"
        listed = [made | {"revision": 7, "undone_by": 8}, made | {"revision": 8, "by": "revproxy", "reason": figures, "guard": None}]
        listed += [made | {"revision": 9}, made | {"revision": 10, "guard": guard | {"until": "2001-11-21T18:00:00.000Z"}}]
        result = self.run_command("changes", answers=[(200, {"changes": listed})])
        words_of_each = (
            f"guarded, undone by 8: {figures}",
            "guarded until 2999-11-21T18:00:00.000Z: undone if",
            "was guarded, and nothing",
        )
        for words in words_of_each:
            self.assertIn(words, result.output)

    def test_a_preview_says_that_nothing_was_changed(self) -> None:
        preview = {"changes": [], "shares": [{"pool": "web", "server": "10.0.0.1:80", "before": 1.0, "after": 0.25}], "closing": 3}
        result = self.run_command("drain", "web", "10.0.0.1:80", "--preview", answers=[(200, APPLIED | {"preview": preview})])
        self.assertEqual(self.daemon.asked[0][1], "/api/v1/pools/web/servers/10.0.0.1:80?preview=1")
        for words in ("nothing was changed", "100.0% → 25.0%", "3 open sessions"):
            self.assertIn(words, result.output)

    def test_a_refused_reload_prints_every_problem(self) -> None:
        """Like `check`: FILE:LINE: path: message, and exit 1."""
        problems = [
            {"file": "x.toml", "line": 3, "path": "pools", "message": "bad"},
            {"file": "x.toml", "line": 4, "path": "", "message": "worse"},
            {"file": "x.toml", "line": 0, "path": "state_dir", "message": "unknown place"},
        ]
        result = self.run_command("reload", answers=[(400, {"title": "Bad Request", "detail": "refused", "problems": problems})])
        self.assertEqual(result.exit_code, 1)
        self.assertIn("x.toml:3: pools: bad\nx.toml:4: worse\nx.toml: state_dir: unknown place", result.output)

    def test_the_listing_of_changes_cannot_be_forged(self) -> None:
        """What is in the journal already, too: a line end or an escape in a reason shows as a space."""
        change = {"kind": "set_weight", "pool": "web", "server": "a:1", "before": 1, "after": 2}
        entry = {"revision": 1, "at": "now", "by": "eve", "reason": "x\n2  now  admin\x1b[2J", "change": change, "undone_by": None}
        result = self.run_command("changes", answers=[(200, {"changes": [entry | {"confirm_by": None}]})])
        self.assertEqual(len(result.output.splitlines()), 2)
        self.assertNotIn("\x1b", result.output)

    def test_a_weight_below_zero_is_refused_as_a_weight(self) -> None:
        """Not as an option that there is not."""
        result = self.run_command("weight", "web", "a:1", "-3", answers=[])
        self.assertEqual((result.exit_code, self.daemon.asked), (1, []))
        self.assertIn("'-3' is not a whole number from 0 to 1000", result.output)
        self.assertNotEqual(self.run_command("weight", "web", "a:1", "3", "--preveiw", answers=[]).exit_code, 0)
        self.assertEqual(self.daemon.asked, [])

    def test_status_in_the_first_second(self) -> None:
        """No worker has said yet which codec it has: nothing is claimed."""
        status = {"version": "1", "revision": 1, "uptime_seconds": 0, "config_file": "x.toml", "head_codec": "starting"}
        result = self.run_command("status", answers=[(200, status | {"workers": [], "listeners": []})])
        self.assertIn("up 0s, x.toml, starting\n", result.output)

    def test_a_reload_without_differences_says_so(self) -> None:
        same = {"revision": 7, "workers": {"total": 0, "acked": 0, "lagging": []}, "notes": ["the file says what is in force already"]}
        result = self.run_command("reload", answers=[(200, same)])
        self.assertEqual(result.output, "reloaded: nothing to change, revision 7 stays\nnote: the file says what is in force already\n")

    def test_a_daemon_that_hangs_is_not_waited_for_for_ever(self) -> None:
        """It accepts and says nothing: one sentence, after the time limit (10 s)."""
        self.assertEqual(daemon.TIMEOUT_S, 10.0)
        self.patch(daemon, "TIMEOUT_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            result = CliRunner().invoke(cli, ["--admin", url, "--token-file", str(self.token), "status"])
        self.assertEqual(result.exit_code, 1)
        self.assertIn("did not answer within 0.2 s", result.output)

    def test_a_reload_tells_what_the_file_has_overtaken(self) -> None:
        result = self.run_command("reload", answers=[(200, APPLIED | {"superseded": ["weight of a"], "notes": ["restart"]})])
        self.assertIn("overtaken by the file: weight of a\nnote: restart", result.output)

    def test_adopt_shows_the_edit_before_it_asks(self) -> None:
        """Nothing is written without a yes."""
        result = self.run_command("adopt", answers=[(200, {"edit": "-3\n+5\n"})], text="n\n")
        self.assertEqual((result.exit_code, len(self.daemon.asked)), (1, 1))
        self.assertIn("-3\n+5", result.output)
        result = self.run_command("adopt", answers=[(200, {"edit": "-3\n+5\n"}), (200, {"edit": "", "applied": APPLIED})], text="y\n")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual([path for _, path, _ in self.daemon.asked[1:]], ["/api/v1/config/adopt?preview=1", "/api/v1/config/adopt"])

    def test_diff_exits_1_when_there_is_a_difference(self) -> None:
        found = [{"path": "pools.web.a.weight", "file": 3, "running": 5}]
        self.assertEqual(self.run_command("diff", answers=[(200, {"differences": found})]).exit_code, 1)
        self.assertEqual(self.run_command("diff", answers=[(200, {"differences": []})]).exit_code, 0)

    def test_undo_and_confirm(self) -> None:
        self.assertIn("revision 3 undone: revision 7", self.run_command("undo", "3", answers=[(200, APPLIED)]).output)
        self.assertIn("revision 3 stays", self.run_command("confirm", "3", answers=[(200, {"revision": 3})]).output)
        self.assertEqual([path for _, path, _ in self.daemon.asked], ["/api/v1/changes/3/undo", "/api/v1/changes/3/confirm"])


class Finding(SynchronousTestCase):
    def test_without_a_daemon_it_says_where_it_looked(self) -> None:
        self.patch(os, "environ", {})
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(directory.name)
        error = self.assertRaises(Failed, daemon.find_socket, Options())
        self.assertIn("--state DIR", error.message)
