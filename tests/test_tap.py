"""``twistd revproxy`` as an operator meets it: refusals before the fork, start, stop, restart (faults: F1, LC-04, LC-12)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ports import free_port
from twisted.internet.task import Clock
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import EventLog
from twistedproxy.errors import ConfigurationError
from twistedproxy.supervisor.processes import environment
from twistedproxy.tap import EventFile, Options, Root

ROOT = Path(__file__).parent.parent


def until(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)
    return value


class OptionsTests(SynchronousTestCase):
    def test_demo_and_config_exclude_each_other(self) -> None:
        with self.assertRaises(usage.UsageError):
            Options().parseOptions(["--demo", "--config", "x.toml"])

    def test_config_has_a_short_form(self) -> None:
        options = Options()
        options.parseOptions(["-c", "x.toml"])
        self.assertEqual(options["config"], "x.toml")


class EventFileTests(SynchronousTestCase):
    def test_it_is_written_anew_after_logrotate_moved_it(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name, "events.log")
        events = EventFile.open(EventLog(str(path), "json"))
        assert events is not None
        events.observer({"log_format": "one", "log_time": 0.0})
        moved = path.rename(f"{path}.1")
        events.reopen()
        events.observer({"log_format": "two", "log_time": 0.0})
        self.assertEqual([json.loads(p.read_text())["message"] for p in (moved, path)], ["one", "two"])

    def test_a_file_that_cannot_be_written_is_refused(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            EventFile.open(EventLog("/nowhere/at/all.log"))
        self.assertIn("logs.events.file", str(caught.exception))

    def test_twistds_own_log_needs_no_file(self) -> None:
        self.assertIsNone(EventFile.open(EventLog()))


class StoppingTests(SynchronousTestCase):
    def root(self) -> tuple[Any, list[str], Clock]:
        clock, did = Clock(), []
        clock.stop = lambda: did.append("stop")  # type: ignore[attr-defined]
        root = Root(clock, SimpleNamespace(passed=None), None, None)  # type: ignore[arg-type]
        self.patch(root.succession, "cut", lambda: did.append("cut"))
        return root, did, clock

    def test_the_second_time_it_ends_at_once(self) -> None:
        root, did, _ = self.root()
        root.stop()
        self.assertEqual(did, ["stop"])
        root.stop()
        self.assertEqual(did, ["stop", "cut"])

    def test_who_has_handed_over_finishes_though_it_is_told_to_stop(self) -> None:
        """A service manager tells all processes: what is open in the old version must not be cut at the first word."""
        root, did, clock = self.root()
        root.leave()
        clock.advance(0)
        root.stop()
        self.assertEqual(did, ["stop"])
        root.stop()
        self.assertEqual(did, ["stop", "cut"])


class TwistdTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.port, self.admin = free_port(), free_port()
        self.file = self.directory / "revproxy.toml"
        self.write()

    def write(self, extra: str = "") -> None:
        self.file.write_text(
            f"""
state_dir = "state"
[listen]
http = ["127.0.0.1:{self.port}"]
[admin]
listen = "127.0.0.1:{self.admin}"
[workers]
count = 2
[pools.web]
servers = ["127.0.0.1:1"]
[sites."*"]
"/" = "web"
{extra}"""
        )

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *options, "revproxy", "--config", str(self.file)]

    def start(self) -> subprocess.Popen[str]:
        log = open(self.directory / "out.log", "a")  # noqa: SIM115 - closed with the test
        self.addCleanup(log.close)
        process: subprocess.Popen[str] = subprocess.Popen(
            self.command("-n", "--pidfile="), env=environment(), cwd=self.directory, stdout=log, stderr=subprocess.STDOUT, text=True
        )

        def end() -> None:
            if process.poll() is None:
                process.kill()
            process.wait()

        self.addCleanup(end)
        return process

    def out(self) -> str:
        return (self.directory / "out.log").read_text()

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        token = (self.directory / "state" / "admin.token").read_text().strip()
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}", method=method)
        request.add_header("Authorization", f"Bearer {token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def ready(self, log_before: int = 0) -> None:
        try:
            until(lambda: self.out()[log_before:].count(") serves revision") >= 2)
        except AssertionError:
            raise AssertionError(self.out()[log_before:]) from None

    def refused(self) -> str:
        done = subprocess.run(
            self.command("-n", "--pidfile="), env=environment(), cwd=self.directory, capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual(done.returncode, 1, done)
        return done.stderr

    def test_refusals_come_before_the_fork_with_file_and_line(self) -> None:
        """A broken file, a taken port and a second instance: told on standard error, exit 1, no traceback."""
        self.write('"/x" = "nope"')
        error = self.refused()
        self.assertRegex(error, rf"^{re.escape(str(self.file))}:\d+: ")
        self.assertIn("nope", error)
        self.write()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", self.port))
            other.listen()
            error = self.refused()
        self.assertIn("listen.http[0]", error)
        self.assertIn(f"pid {os.getpid()}", error)
        self.assertNotIn("Traceback", error)

    def test_start_change_second_instance_and_orderly_stop_lc_12(self) -> None:
        process = self.start()
        self.ready()
        out = self.out()
        for line in (f"listening on 127.0.0.1:{self.port} (http)", "worker 0 (pid", f"admin: http://127.0.0.1:{self.admin}/"):
            self.assertIn(line, out)
        self.assertEqual((self.directory / "state").stat().st_mode & 0o777, 0o700)
        answer = self.ask("/api/v1/pools/web/servers/127.0.0.1:1", "PATCH", {"weight": 5})
        self.assertEqual(answer["workers"], {"total": 2, "acked": 2, "lagging": []})
        error = self.refused()
        self.assertIn(f"in use by process {process.pid}", error)
        process.send_signal(signal.SIGHUP)
        until(lambda: "the file says what is in force already" in self.out())
        process.send_signal(signal.SIGUSR1)
        until(lambda: "logs are open anew" in self.out())
        self.write('"/x" = "nope"')
        process.send_signal(signal.SIGUSR2)
        until(lambda: "upgrade failed, nothing was changed" in self.out())
        self.assertIn("nope", self.ask("/api/v1/status")["upgrade"]["reason"])
        self.assertEqual(len(self.ask("/api/v1/status")["workers"]), 2)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(20), 0)
        self.assertNotIn("Traceback", self.out())
        self.assertEqual((self.directory / "state" / "lock").read_text(), "")

    def test_killed_and_started_again_it_binds_and_remembers_lc_04(self) -> None:
        process = self.start()
        self.ready()
        workers = [worker["pid"] for worker in self.ask("/api/v1/status")["workers"]]
        self.ask("/api/v1/pools/web/servers/127.0.0.1:1", "PATCH", {"weight": 5})
        process.kill()
        process.wait()
        seen = len(self.out())
        self.start()
        self.ready(seen)
        self.assertEqual(self.ask("/api/v1/pools/web")["servers"][0]["weight"]["set"], 5)
        self.assertEqual(self.ask("/api/v1/status")["revision"], 1)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 6.0)

    def test_as_a_daemon_it_keeps_lock_and_sockets(self) -> None:
        """twistd forks after everything was bound: the parent says 0, the daemon serves, the pid file is right."""
        pid_file = self.directory / "twistd.pid"
        done = subprocess.run(
            self.command("--pidfile", str(pid_file), "--logfile", str(self.directory / "out.log")),
            env=environment(), cwd=self.directory, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done)
        pid = int(until(lambda: pid_file.exists() and pid_file.read_text()))
        try:
            self.ready()
            self.assertEqual((self.directory / "state" / "lock").read_text(), f"{pid}\n")
            self.assertIn("in use by process", self.refused())
            self.assertEqual(len(self.ask("/api/v1/status")["workers"]), 2)
        finally:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists())
        self.assertFalse(pid_file.exists())

    def test_a_restart_need_not_wait_for_the_last_session(self) -> None:
        """While one TCP session keeps the old instance, the new one has ports, state, admin side and pid file."""
        pid_file = self.directory / "twistd.pid"
        daemon = [*self.command("--pidfile", str(pid_file), "--logfile", str(self.directory / "out.log"))]
        backend, tcp = socket.create_server(("127.0.0.1", 0)), free_port()
        self.addCleanup(backend.close)
        self.write(f'[pools.raw]\nservers = ["127.0.0.1:{backend.getsockname()[1]}"]\n[tcp."127.0.0.1:{tcp}"]\npool = "raw"')
        pids: list[int] = []

        def start() -> None:
            seen = len(self.out()) if pids else 0
            done = subprocess.run(
                daemon, env=environment(), cwd=self.directory, capture_output=True, text=True, timeout=60, check=False
            )  # fmt: skip
            self.assertEqual(done.returncode, 0, done)
            pids.append(int(until(lambda: pid_file.exists() and pid_file.read_text())))
            self.ready(seen)

        start()
        self.addCleanup(lambda: [os.kill(pid, signal.SIGTERM) for pid in pids if Path(f"/proc/{pid}").exists()])
        with socket.create_connection(("127.0.0.1", tcp), timeout=10) as client, backend.accept()[0] as server:
            os.kill(pids[0], signal.SIGTERM)
            until(lambda: "a new instance can be started now" in self.out())
            began = time.monotonic()
            start()
            self.assertLess(time.monotonic() - began, 15)
            self.assertEqual(
                self.ask(f"/api/v1/pools/raw/servers/127.0.0.1:{backend.getsockname()[1]}", "PATCH", {"weight": 5})["revision"], 1
            )
            client.sendall(b"still here")
            self.assertEqual(server.recv(100), b"still here")
            server.sendall(b"and back")
            self.assertEqual(client.recv(100), b"and back")
        until(lambda: not Path(f"/proc/{pids[0]}").exists())
        self.assertEqual(int(pid_file.read_text()), pids[1])
        self.assertTrue((self.directory / "state" / "admin.sock").exists())
        self.assertEqual((self.directory / "state" / "lock").read_text(), f"{pids[1]}\n")
        os.kill(pids[1], signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pids[1]}").exists())
        self.assertEqual([pid_file.exists(), "Traceback" in self.out()], [False, False])

    def test_a_clock_step_fires_no_timer_f1(self) -> None:
        """The supervisor's reactor runs on the monotonic clock from the first act of makeService."""
        script = (
            "import time, sys\n"
            "from twistedproxy import tap\n"
            "options = tap.Options(); options.parseOptions(['--config', sys.argv[1]])\n"
            "tap.makeService(options)\n"
            "from twisted.internet import reactor\n"
            "assert reactor.seconds is time.monotonic\n"
        )
        subprocess.run([sys.executable, "-c", script, str(self.file)], env=environment(), check=True, timeout=60)

    def test_the_plugin_is_there_and_twisteds_packages_are_untouched(self) -> None:
        self.assertFalse((ROOT / "twisted" / "__init__.py").exists())
        self.assertFalse((ROOT / "twisted" / "plugins" / "__init__.py").exists())
        script = (
            "from twisted.plugin import getPlugins; from twisted.application.service import IServiceMaker; "
            "print([p.tapname for p in getPlugins(IServiceMaker)])"
        )
        done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, timeout=60)
        self.assertIn("'revproxy'", done.stdout)
