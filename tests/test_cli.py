"""The `revproxy` command, run as users run it, against a real admin service on its unix socket."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy import cli
from twistedproxy.admin.api import AdminService
from twistedproxy.config.model import AdminState, Health

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "admin" / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

ROOT = Path(cli.__file__).parent.parent
Result = subprocess.CompletedProcess[str]


def run(*arguments: str, cwd: str | None = None, **environment: str) -> Result:
    """The command in a process of its own, with nothing inherited that could lead it to another daemon."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **environment}
    command = [sys.executable, "-m", "twistedproxy.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=cwd, env=env, check=False)


class AgainstTheDaemon(TestCase):
    """What operators type."""

    def setUp(self) -> None:
        self.directory = os.path.relpath(self.mktemp())
        os.makedirs(self.directory)
        self.state = os.path.abspath(self.directory)
        self.control = fakes.FakeControl(fakes.sample_model(self.state))
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.tcp.close)
        socket_path = os.path.join(self.directory, "admin.sock")
        self.service = AdminService(self.control, self.control.model, reactor, lambda *_: b"", self.tcp, socket_path)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    async def revproxy(self, *arguments: str, **environment: str) -> Result:
        # From the daemon's directory: the path of its socket must be short.
        result = await deferToThread(lambda: run(*arguments, cwd=self.directory, **environment))
        self.assertNotIn("Traceback", result.stderr)
        return result

    def server(self) -> Any:
        return self.control.model.pools["web"].servers[0]

    async def test_weight_and_changes(self) -> None:
        """A weight set by command is in force and in the journal, with its reason; null takes it back."""
        result = await self.revproxy("weight", "web", "127.0.0.1:9001", "7", "--reason", "cache warm", "--state", ".")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(result.stdout, "127.0.0.1:9001 in web: weight 7: revision 2, in force in 2 of 2 workers\n")
        self.assertEqual(self.server().weight_set, 7)
        changes = await self.revproxy("--state", ".", "changes")
        self.assertIn("cache warm", changes.stdout)
        self.assertIn("set_weight web 127.0.0.1:9001: 3 → 7", changes.stdout)
        await self.revproxy("--state", ".", "weight", "web", "127.0.0.1:9001", "null")
        self.assertIsNone(self.server().weight_set)

    async def test_a_preview_is_asked_for_on_either_side_of_the_command(self) -> None:
        """--preview may stand before the command too; a command that has none refuses, and does nothing."""
        change = ("weight", "web", "127.0.0.1:9001", "7")
        for arguments in (("--preview", *change), (*change, "--preview")):
            self.control.terms = None
            await self.revproxy("--state", ".", *arguments)
            self.assertTrue(self.control.terms.is_preview)
        revision = self.control.revision
        refused = await self.revproxy("--state", ".", "--preview", "adopt", "--yes")
        self.assertEqual((refused.returncode, refused.stdout), (2, ""))
        self.assertIn("'adopt' has no --preview", refused.stderr)
        self.assertEqual(self.control.revision, revision)

    async def test_states(self) -> None:
        """drain, maint and ready do what they are called."""
        for command in ("drain", "maint", "ready"):
            result = await self.revproxy(command, "web", "127.0.0.1:9001", REVPROXY_STATE=".")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(self.server().state, AdminState(command))

    async def test_add_and_remove(self) -> None:
        """A server in the file's short form, and a unix socket, come and go."""
        result = await self.revproxy("add", "web", "127.0.0.1:9003 weight=2 backup", "--max-connections", "9", "--state", ".")
        self.assertEqual(result.returncode, 0, result.stderr)
        added = self.control.model.pools["web"].server("127.0.0.1:9003")
        self.assertEqual((added.weight, added.backup, added.max_connections), (2, True, 9))
        result = await self.revproxy("remove", "odd", "unix:/run/app.sock", "--now", "--reason", "old", "--state", ".")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIsNone(self.control.model.pools["odd"].server("unix:/run/app.sock"))
        self.assertEqual(self.control.entries[-1].reason, "old")

    async def test_status_and_pools(self) -> None:
        """Aligned text for people, the API's JSON for scripts, options on either side of the command."""
        self.control.see("web", "127.0.0.1:9001", Health.UP, "200 in 1.2 ms")
        status = await self.revproxy("--state", ".", "status")
        self.assertIn("revproxy 0.1.0, revision 1, up 12s, revproxy.toml, native head codec", status.stdout)
        self.assertIn("127.0.0.1:8080  http  17", status.stdout)
        pools = await self.revproxy("pools", "web", "--state", ".")
        self.assertIn("web (round_robin, 5 of 128 waiting)", pools.stdout)
        self.assertIn("up: 200 in 1.2 ms", pools.stdout)
        self.assertNotIn("odd", pools.stdout)
        for arguments in (("--json", "--state", ".", "pools"), ("pools", "--json", "--state", ".")):
            answer = json.loads((await self.revproxy(*arguments)).stdout)
            self.assertEqual([pool["name"] for pool in answer["pools"]], ["web", "odd"])

    async def test_over_tcp_with_a_token(self) -> None:
        """--admin and --token-file reach a daemon elsewhere; a wrong token is said to be wrong."""
        url = f"http://127.0.0.1:{self.tcp.getsockname()[1]}"
        token_file = os.path.abspath(self.service.token_file)
        good = await self.revproxy("--admin", url, "--token-file", token_file, "status", "--json")
        self.assertEqual(json.loads(good.stdout)["revision"], 1)
        Path(self.directory, "bad").write_text("nonsense")
        for arguments, word in (
            (("--admin", url, "--token-file", "bad", "status"), "token"),
            (("--admin", url, "--token-file", "missing", "status"), "missing"),
            (("--admin", url, "status"), "--token-file"),
            (("--admin", "ftp://x", "status"), "http://127.0.0.1:9901"),
        ):
            result = await self.revproxy(*arguments)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertIn(word, result.stderr)
            self.assertEqual(result.stderr.count("\n"), 1)

    async def test_the_daemon_s_refusals_are_passed_on(self) -> None:
        """A typo in a name is answered with the names there are, in one line, exit 1."""
        for arguments, word in (
            (("weight", "wbe", "127.0.0.1:9001", "1"), "odd, web"),
            (("weight", "web", "127.0.0.1:1", "1"), "127.0.0.1:9001"),
            (("weight", "web", "127.0.0.1:9001", "1001"), "0 to 1000"),
            (("weight", "web", "127.0.0.1:9001", "much"), "much"),
            (("add", "web", "127.0.0.1:9001"), "already"),
            (("add", "web", "127.0.0.1:9007 wieght=1"), "wieght=1"),
        ):
            result = await self.revproxy("--state", ".", *arguments)
            self.assertEqual((result.returncode, result.stdout), (1, ""), arguments)
            self.assertIn(word, result.stderr)
            self.assertEqual(result.stderr.count("\n"), 1)
        self.assertEqual(self.control.revision, 1)

    async def test_the_daemon_is_found_by_the_default_file(self) -> None:
        """In the directory of revproxy.toml no option is needed, with state_dir in the file or without."""
        Path(self.directory, "revproxy.toml").write_text('state_dir = "."\n')
        self.assertEqual((await self.revproxy("status")).returncode, 0)
        Path(self.directory, "revproxy.toml").write_text("")
        os.symlink(".", Path(self.directory, ".revproxy"))
        self.assertEqual((await self.revproxy("status")).returncode, 0)


class WithoutADaemon(SynchronousTestCase):
    """What it says when there is nothing to talk to, and what needs no daemon."""

    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.makedirs(self.directory)

    def test_no_daemon_says_what_to_do(self) -> None:
        """One sentence on standard error, exit 1."""
        for arguments in (("--state", ".", "status"), ("status",)):
            result = run(*arguments, cwd=self.directory)
            self.assertEqual((result.returncode, result.stdout, result.stderr.count("\n")), (1, "", 1))
            self.assertIn("--state", result.stderr)

    def test_help_is_quick_and_lists_only_what_works(self) -> None:
        """--help imports neither Twisted nor pydantic nor rich, and promises nothing that is not built."""
        began = time.monotonic()
        result = run("--help")
        self.assertLess(time.monotonic() - began, 5)
        for command in (
            "check",
            "schema",
            "status",
            "pools",
            "weight",
            "ready",
            "drain",
            "maint",
            "add",
            "remove",
            "changes",
            "reload",
            "undo",
            "confirm",
            "diff",
            "adopt",
            "purge",
        ):
            self.assertIn(f"\n  {command} ", result.stdout)
        code = "import sys, twistedproxy.cli; print([m for m in ('twisted', 'pydantic', 'rich', 'klein') if m in sys.modules])"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        self.assertEqual(loaded.stdout, "[]\n")

    def test_check(self) -> None:
        """A good file is ok with exit 0; a bad one has all its problems as FILE:LINE: path: message, exit 1."""
        good, bad = Path(self.directory, "good.toml"), Path(self.directory, "bad.toml")
        good.write_text('[listen]\nhttp = ["127.0.0.1:8080"]\n[pools.web]\nservers = ["127.0.0.1:9001"]\n[sites."*"]\n"/" = "web"\n')
        result = run("check", str(good))
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(result.stdout, f"{good}: ok (1 listener, 1 site, 1 pool, 1 server)\n")
        good.write_text(good.read_text().replace('"/" =', 'timeouts = { keepalive = "5s" }\n"/" ='))
        result = run("check", str(good))
        self.assertEqual(result.returncode, 0)
        warned = rf"^{good}:6: warning: sites\.\S+\.timeouts\.keepalive: has no effect here: .*\[timeouts\]\n.*: ok \("
        self.assertRegex(result.stdout, warned)
        (warning,) = json.loads(run("check", "--json", str(good)).stdout)["warnings"]
        self.assertEqual(warning["line"], 6)
        bad.write_text('[pools.web]\nservers = ["127.0.0.1:9001"]\nbalnce = "random"\n[sites."*"]\n"/" = "nowhere"\n')
        result = run("check", str(bad))
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"{bad}:3: ", result.stdout)
        self.assertIn("balance", result.stdout)
        self.assertIn(f"{bad}:5: ", result.stdout)
        as_json = json.loads(run("check", "--json", str(bad)).stdout)
        self.assertEqual({problem["line"] for problem in as_json["problems"]}, {3, 5})

    def test_check_of_a_missing_file(self) -> None:
        """A wrong name is a problem, not a traceback."""
        result = run("check", "nothing.toml", cwd=self.directory)
        self.assertEqual(result.returncode, 1)
        self.assertIn("nothing.toml", result.stdout + result.stderr)
        self.assertNotIn("Traceback", result.stderr)

    def test_schema(self) -> None:
        """The schema is JSON that editors take."""
        result = run("schema")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("pools", json.loads(result.stdout)["properties"])
