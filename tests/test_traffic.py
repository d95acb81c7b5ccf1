"""Commands about where requests go."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import traffic
from twistedproxy.cli import cli
from twistedproxy.config.words import change_in_words

SET = {"kind": "set_weight", "pool": "web", "server": "b:1", "before": 1, "after": 5}
CONFIG = """\
[listen]
http = ["127.0.0.1:8080"]
[pools.web]
servers = ["127.0.0.1:1"]
[sites."a.example"]
"/" = "web"
"/old/" = { redirect = "/new/" }
[[tests]]
request = "GET http://a.example/old/x"
expect = { redirect = "/new/x" }
"""
APPLIED = {"revision": 7, "workers": {"total": 2, "acked": 2, "lagging": []}}
SHIFT = {
    "id": "1", "site": "s", "path": "/", "from": "web", "to": "v2", "state": "running", "note": "", "share": 5.0, "next_at": "later",
}  # fmt: skip

_authority = importlib.util.spec_from_file_location("tests_conftest", Path(__file__).parent / "conftest.py")
_made: Any = importlib.util.module_from_spec(_authority)  # type: ignore[arg-type]
sys.modules["tests_conftest"] = _made  # dataclasses look there
_authority.loader.exec_module(_made)  # type: ignore[union-attr]
Authority = _made.Authority
_spec = importlib.util.spec_from_file_location("test_daemon_fakes", Path(__file__).parent / "test_daemon.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]


class OfflineTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.file = Path(directory.name, "conf.toml")
        self.file.write_text(CONFIG)

    def run_command(self, *arguments: str) -> Any:
        return CliRunner().invoke(cli, list(arguments))

    def test_explain_without_a_daemon(self) -> None:
        """FILE METHOD URL prints the steps and the request for the server; --json the whole answer."""
        result = self.run_command("explain", str(self.file), "GET", "http://a.example/x?y", "-H", "X-A: 1", "--client", "10.0.0.1")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("- path '/x' takes route '/', the longest match\n", result.output)
        self.assertIn("    X-Forwarded-For: 10.0.0.1\n", result.output)
        answer = json.loads(self.run_command("explain", "--json", str(self.file), "GET", "http://a.example/x").output)
        self.assertEqual(list(answer)[:6], ["site", "rule", "path", "pool", "split", "server"])
        self.assertEqual((answer["site"], answer["server"]), ("a.example", "127.0.0.1:1"))

    def test_explain_and_tests_for_a_client_with_a_certificate(self) -> None:
        """A rule that asks for one is explained with the very file the client has; tests in the file name what it shows."""
        authority = Authority(self.file.parent)
        friend = authority.make("friend", ("alice.staff.example",))
        site = (
            '[listen]\nhttps = ["127.0.0.1:8443"]\n[pools.web]\nservers = ["127.0.0.1:1"]\n[pools.staff]\nservers = ["127.0.0.1:2"]\n'
            '[sites."a.example"]\ntls = { cert = "friend.pem", key = "friend.key", client_ca = "root.pem" }\n"/" = "web"\n'
            '[[sites."a.example".rules]]\nwhen = { client_cert = { san = "DNS:*.staff.example" } }\npool = "staff"\n'
            'headers.request.set = { X-Names = "${client_cert_san}" }\n'
        )
        test = (
            '[[tests]]\nrequest = "GET https://a.example/"\nclient_cert = { san = "DNS:WHO.staff.example" }\nexpect = { pool = "staff" }\n'
        )
        self.file.write_text(site + test.replace("WHO", "bob"))
        arguments = ("explain", str(self.file), "GET", "https://a.example/x")
        for more, expected in (((), "no, the client has shown no certificate"), (("--client-cert", str(friend.cert)), "rules[0]: yes")):
            result = self.run_command(*arguments, *more)
            self.assertEqual(result.exit_code, 0, result.output)
            self.assertIn(expected, result.output)
        self.assertIn("    X-Names: DNS:alice.staff.example\n", result.output)
        self.assertIn("no such file", self.run_command(*arguments, "--client-cert", "/nowhere").output)
        self.assertEqual(self.run_command("check", str(self.file)).exit_code, 0)
        self.file.write_text(site + test.replace("WHO.staff", "bob"))
        refused = self.run_command("check", str(self.file))
        self.assertEqual(refused.exit_code, 1)
        self.assertIn("client_cert san is 'DNS:bob.example', not 'DNS:*.staff.example'", refused.output)

    def test_explain_says_what_is_wrong(self) -> None:
        """One sentence and exit 1."""
        for arguments, words in (
            (("GET",), "METHOD and URL"),
            ((str(self.file), "GET", "/x"), "is not a URL"),
            ((str(self.file), "GET", "http://a.example/%00"), "would be told 400"),
            ((str(self.file), "GET", "http://a.example/", "-H", "x"), "Name: value"),
        ):
            with self.subTest(arguments):
                result = self.run_command("explain", *arguments)
                self.assertEqual(result.exit_code, 1)
                self.assertIn(words, result.output)

    def test_check_runs_the_files_tests(self) -> None:
        """A broken one has its line and the trace."""
        self.assertEqual(self.run_command("check", str(self.file)).exit_code, 0)
        self.file.write_text(CONFIG.replace('"/new/x"', '"/newer/x"'))
        result = self.run_command("check", str(self.file))
        self.assertEqual(result.exit_code, 1)
        self.assertIn(
            f"{self.file}:8: tests[0]: GET http://a.example/old/x: redirect is '/new/x', not '/newer/x'. The trace:", result.output
        )


class WordsTests(SynchronousTestCase):
    def test_a_split_in_the_journal(self) -> None:
        """From which weights to which, where."""
        change = {"kind": "set_split", "site": "s", "path": "/", "before": {"a": 9, "b": 1}, "after": {"a": 8, "b": 2}}
        self.assertEqual(change_in_words(change), "set_split s /: a=9 b=1 → a=8 b=2")
        self.assertEqual(
            change_in_words({"kind": "set_maintenance", "site": "s", "before": False, "after": True}), "set_maintenance s: False → True"
        )


class OnlineTests(fakes.CommandCase):
    def ask(self, *arguments: str, answer: Any) -> tuple[str, Any]:
        """(output, what the daemon was asked)."""
        self.daemon.answers = [(200, answer)]
        result = self.revproxy(*arguments)
        self.assertEqual(result.exit_code, 0, result.output)
        return result.output, self.daemon.asked[-1]

    def test_changes_of_sites(self) -> None:
        """Splits and maintenance become PATCHes."""
        output, asked = self.ask("split", "s", "/", "web=80", "v2=20", answer=APPLIED)
        self.assertEqual(asked, ("PATCH", "/api/v1/sites/s", {"split": {"path": "/", "weights": {"web": 80, "v2": 20}}}))
        self.assertIn("revision 7", output)
        self.assertEqual(self.ask("split", "s", "/", "null", answer=APPLIED)[1][2]["split"]["weights"], None)
        self.assertEqual(self.ask("maintenance", "*", "on", answer=APPLIED)[1], ("PATCH", "/api/v1/sites/%2A", {"maintenance": True}))

    def test_shifts(self) -> None:
        """Started with everything that was said, listed, stopped."""
        output, asked = self.ask("shift", "web", "v2", "5,25,100", "--every", "5m", "--abort-if", "errors > 1%", answer=SHIFT)
        body = {"from": "web", "to": "v2", "steps": [5.0, 25.0, 100.0], "every": "5m", "abort_if": "errors > 1%"}
        self.assertEqual(asked, ("POST", "/api/v1/shifts", body))
        self.assertIn("shift 1 of s /: running, v2 at 5%, next step at later", output)
        self.assertIn("web → v2", self.ask("shifts", answer={"shifts": [SHIFT]})[0])
        self.assertEqual(self.ask("shifts", "--stop", "1", "--stay", answer=SHIFT)[1][:2], ("DELETE", "/api/v1/shifts/1?back=0"))

    def test_a_shift_is_watched_to_its_end(self) -> None:
        """Each step is said once, an answer that does not come is asked for again, and a shift that went back is an exit code."""
        self.patch(traffic, "LOOK_EVERY_S", 0)
        last = SHIFT | {"state": "done", "share": 100.0, "next_at": None, "note": "all steps were taken"}
        steps = [SHIFT, SHIFT | {"share": 100.0}, last]
        listed = [(200, {"shifts": [SHIFT | {"id": "0"}, step]}) for step in steps]
        command = ["shift", "web", "v2", "5,100", "--every", "1s", "--watch"]
        self.daemon.answers = [(200, SHIFT), (500, {"detail": "gone"}), *listed]
        result = self.revproxy(*command)
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual([re.sub(r".*: ", "", line) for line in result.output.splitlines()], [
            "running, v2 at 5%, next step at later", "running, v2 at 100%, next step at later", "done (all steps were taken), v2 at 100%",
        ])  # fmt: skip
        self.daemon.answers = [(200, SHIFT), (200, {"shifts": [SHIFT | {"state": "aborted", "note": "errors 7%"}]})]
        result = self.revproxy(*command)
        self.assertEqual((result.exit_code, "errors 7%" in result.output), (1, True))

    def test_stories(self) -> None:
        """Attempts, skipped servers, health and changes, one line each."""
        story = {
            "at": "t", "method": "GET", "host": "h", "path": "/p", "status": 502, "duration_seconds": 0.5, "detail": "refused", "site": "s",
            "route": "/", "pool": "web", "client": "c",
            "attempts": [{"server": "a:1", "failed_after_seconds": 0.1, "reason": "connect", "detail": "refused"}],
            "skipped": [{"server": "b:1", "why": "down"}],
            "health": [{"seconds": -3.0, "pool": "web", "server": "b:1", "health": "down", "reason": "timeout"}],
            "changes": [{"seconds": -60.0, "revision": 3, "by": "me", "change": SET}],
        }  # fmt: skip
        output, asked = self.ask("why", "id/1", answer={"stories": [story]})
        self.assertIn("revision 3 by me: set_weight web b:1: 1 → 5\n", output)
        self.assertEqual(asked[:2], ("GET", "/api/v1/why/id%2F1"))
        for line in ("GET h/p: 502 after 0.500 s, refused", "tried a:1: connect after 0.100 s refused", "not tried: b:1 is down",
                     "-3.0 s: web b:1 down timeout", "-60.0 s: revision 3 by me"):  # fmt: skip
            self.assertIn(line, output)
        latest = [{"id": "i", "at": 1.0, "status": 502, "reason": "connect", "site": "s", "path": "/p"}]
        self.assertIn("connect", self.ask("why", answer={"latest": latest})[0])

    def test_sites_mirrors_and_explain(self) -> None:
        """Tables for people, the daemon's own answer for explain."""
        split = [{"pool": "web", "share": 0.9, "exposure": 0.91, "requests": 9}]
        site = {
            "name": "s",
            "maintenance": True,
            "routes": [{"path": "/", "does": "split", "split": split, "pool": None, "redirect": None}],
        }
        self.assertIn("web 90.0% (taken 91.0% of 9)", self.ask("sites", answer={"sites": [site]})[0])
        mirror = {"site": "s", "path": "/", "pool": "m", "results": {"sent": 5}, "differences": {"body": 1}}
        self.assertIn("body 1", self.ask("mirrors", answer={"mirrors": [mirror]})[0])
        output, asked = self.ask("explain", "GET", "http://s/", "-H", "A: 1", answer={"steps": ["one"], "request": None})
        self.assertEqual(output, "- one\n")
        self.assertEqual(asked[1], "/api/v1/explain?method=GET&url=http%3A%2F%2Fs%2F&client=127.0.0.1&header=A%3A+1")
