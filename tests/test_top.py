"""`revproxy top` tells the truth, as lines and on a terminal, and leaves the terminal as it was."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import queue
import select
import socket
import subprocess
import sys
import termios
import time
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy import cli, top
from twistedproxy.admin import live, views
from twistedproxy.admin.api import AdminService
from twistedproxy.config import changes
from twistedproxy.config.model import Address, AdminState, Health

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "admin" / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

ROOT = Path(cli.__file__).parent.parent


def stats(second: int, per_second: int = 100, errors: int = 0) -> dict[str, Any]:
    """The event of this second, when so much happens in each; every request takes 2 ms."""
    done = second * per_second
    return {
        "revision": 4,
        "uptime_seconds": float(second),
        "requests": done,
        "errors": second * errors,
        "connections": 7,
        "durations": [0, done, *[0] * (len(live.BOUNDS_S) - 1)],
        "servers": [
            {"pool": "web", "server": "127.0.0.1:9001", "connections": 2, "requests": done * 3 // 4, "failures": 1},
            {"pool": "web", "server": "127.0.0.1:9002", "connections": 1, "requests": done // 4, "failures": 0},
        ],
        "workers": [{"slot": 0, "pid": 4711, "state": "serving", "revision": 4, "connections": 7, "requests": done, "lag_seconds": 0.0004}],
    }


RECENT = {"bounds": live.BOUNDS_S, "columns": live.COLUMNS, "rows": [live.row(stats(n)) for n in range(1, 4)]}


class Meter(SynchronousTestCase):
    def setUp(self) -> None:
        self.meter = top.Meter()
        self.meter.recent(RECENT)

    def test_rates_errors_and_latency_of_the_last_seconds(self) -> None:
        """Counts become requests per second, a percentage of errors, percentiles, and each server's part."""
        for second in range(4, 9):
            self.meter.add(stats(second, errors=5))
        seen = self.meter.figures()
        self.assertEqual((seen["requests_per_second"], seen["error_percent"], seen["connections"]), (100.0, 5.0, 7))
        self.assertTrue(1.0 < seen["p50_ms"] < seen["p95_ms"] <= 2.5, seen)
        self.assertEqual([server["per_second"] for server in seen["servers"]], [75.0, 25.0])
        self.assertEqual((seen["workers"][0]["per_second"], seen["workers"][0]["lag_ms"]), (100.0, 0.4))

    def test_the_minutes_before_are_drawn(self) -> None:
        """Whoever begins to watch sees what just happened."""
        self.assertEqual(list(self.meter.history), [100.0, 100.0])

    def test_a_restart_is_no_negative_rate(self) -> None:
        """Counts that begin anew are another process, not minus a million requests."""
        self.meter.add(stats(500))
        self.meter.add(stats(1))
        self.assertFalse(self.meter.has_rates)
        self.meter.add(stats(2))
        self.assertEqual(self.meter.figures()["requests_per_second"], 100.0)

    def test_percentiles(self) -> None:
        """Within a bucket the time is interpolated; without requests there is none; the last bucket ends where the table ends."""
        bounds = [0.1, 0.2]
        self.assertAlmostEqual(top.percentile(bounds, [0, 10, 0], 0.5) or 0, 0.15)
        self.assertIsNone(top.percentile(bounds, [0, 0, 0], 0.5))
        self.assertEqual(top.percentile(bounds, [0, 0, 3], 0.95), 0.2)

    def test_events_are_read_from_lines(self) -> None:
        """Comments and fields that mean nothing here are passed over."""
        text = b'retry: 2000\n\n: still here\n\nevent: change\nid: 7\ndata: {"a":1}\n\nevent: half\n'
        self.assertEqual(list(top.events(text.splitlines(keepends=True))), [("change", {"a": 1})])


class Screen(SynchronousTestCase):
    def test_everything_is_on_one_screen(self) -> None:
        """Traffic, servers with share by weight and now, health with reason, and workers; names are shown as they are."""
        control = fakes.FakeControl(fakes.sample_model())
        control.see("web", "127.0.0.1:9002", Health.DOWN, "[red]refused[/]")
        control.model = changes.apply(control.model, changes.SetState("web", Address("127.0.0.1:9002"), AdminState.DRAIN))
        snapshot = control.snapshot()
        pools = [views.pool(pool, snapshot, control.statistics()) for pool in snapshot.model.pools.values()]
        meter = top.Meter()
        meter.recent(RECENT)
        meter.add(stats(4))
        meter.add(stats(5))
        console = Console(file=StringIO(), width=120, force_terminal=False)
        console.print(top.screen(meter.figures(), pools, meter.history))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        self.assertRegex(text, r"100 requests/s +0 % errors +p50 \d.* 7 connections")
        self.assertRegex(text, r"127\.0\.0\.1:9001 +ready +unknown not checked yet +3 +100% +75% +75\.0 +2/256 +1")
        self.assertIn("down [red]refused[/]", text)
        self.assertRegex(text, r"127\.0\.0\.1:9002 +drain, 1 to finish")
        self.assertRegex(text, r"0 \(4711\) +serving +100\.0 +7 +0\.4 ms")

    def test_eighty_columns_are_enough(self) -> None:
        """One line for each server, nothing broken in two; why a server is down stands under the table."""
        control = fakes.FakeControl(fakes.sample_model())
        control.see("web", "127.0.0.1:9002", Health.DOWN, "connection refused " + "again " * 20)
        snapshot = control.snapshot()
        pools = [views.pool(pool, snapshot, control.statistics()) for pool in snapshot.model.pools.values()]
        meter = top.Meter()
        meter.recent(RECENT)
        meter.add(stats(4))
        meter.add(stats(5))
        console = Console(file=StringIO(), width=80, force_terminal=False)
        console.print(top.screen(meter.figures(), pools, meter.history, width=80))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        lines = text.splitlines()
        self.assertRegex(lines[0], r"^revproxy  rev\. \d+  100/s  0 % errors .* 7 open *$")
        self.assertRegex(text, r"\n  127\.0\.0\.1:9001 +unknown +3 +75%/100% +75\.0 +2 +1 *\n")
        self.assertRegex(text, r"\n  127\.0\.0\.1:9002 +down ")
        self.assertRegex(text, r"\n127\.0\.0\.1:9002 down: connection refused again .*…\n")
        self.assertEqual(len([line for line in lines if "9002" in line]), 2)


class Lines(SynchronousTestCase):
    def test_an_ended_stream_ends_the_lines_with_the_reason(self) -> None:
        """A script that reads lines is told when there will be no more."""

        class Ended:
            events: queue.Queue[top.Event] = queue.Queue()

        Ended.events.put(("gone", "no daemon answers"))
        self.assertEqual(top.print_lines(Ended(), None), "no daemon answers")  # type: ignore[arg-type]


class AgainstTheDaemon(TestCase):
    """The command itself, on the unix socket of a running admin service."""

    def setUp(self) -> None:
        self.directory = os.path.relpath(self.mktemp())
        os.makedirs(self.directory)
        control = fakes.FakeControl(fakes.sample_model(os.path.abspath(self.directory)))
        tcp = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(tcp.close)
        self.service = AdminService(control, control.model, reactor, lambda *_: b"", tcp, os.path.join(self.directory, "admin.sock"))
        self.service.startService()
        self.addCleanup(self.service.stopService)
        self.second = 0

        def tell() -> None:
            self.second += 1
            base = {k: v for k, v in stats(self.second).items() if k not in ("errors", "durations")}
            control.tell("stats", base)

        telling = LoopingCall(tell)
        telling.start(0.05)
        self.addCleanup(telling.stop)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "twistedproxy.cli", "--state", ".", "top", *arguments]

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}

    async def test_json_lines(self) -> None:
        """Each update is a line of JSON; after N of them it ends."""
        done = await deferToThread(
            lambda: subprocess.run(
                self.command("--json", "-n", "2"), cwd=self.directory, env=self.env, capture_output=True, text=True, timeout=30, check=False
            )
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([line["requests_per_second"] for line in lines], [100.0, 100.0])

    async def test_no_terminal_says_what_to_use(self) -> None:
        """In a pipe, without --json, nothing is drawn."""
        done = await deferToThread(
            lambda: subprocess.run(
                self.command(), cwd=self.directory, env=self.env, capture_output=True, text=True, timeout=30, check=False
            )
        )
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("--json", done.stderr)

    async def test_q_quits_and_the_terminal_is_as_before(self) -> None:
        """The view fills a terminal; q ends it, the keys echo again, the former screen is back."""

        def use() -> tuple[int, str, bool]:
            keyboard, terminal = pty.openpty()
            before = termios.tcgetattr(terminal)
            shown = b""
            process = subprocess.Popen(self.command(), cwd=self.directory, env=self.env, stdin=terminal, stdout=terminal, stderr=terminal)
            try:
                deadline = time.monotonic() + 20
                while b"q quits" not in shown and time.monotonic() < deadline:
                    if select.select([keyboard], [], [], 0.1)[0]:
                        shown += os.read(keyboard, 65536)
                os.write(keyboard, b"q")
                while process.poll() is None and time.monotonic() < deadline:
                    if select.select([keyboard], [], [], 0.1)[0]:
                        shown += os.read(keyboard, 65536)
                return process.wait(1), shown.decode(errors="replace"), termios.tcgetattr(terminal) == before
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                os.close(keyboard)
                os.close(terminal)

        code, shown, is_restored = await deferToThread(use)
        self.assertEqual((code, is_restored), (0, True), shown[-2000:])
        self.assertIn("127.0.0.1:9001", shown)
        self.assertIn("\x1b[?1049l", shown)
