"""How the successor's process is started: the same program, the same log, no pid file of twistd's. The rest is in tests/system."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import ChangeRefused
from twistedproxy.succession import Origin, Succession, write_pid_file


class OriginTests(SynchronousTestCase):
    def origin(self, original: list[str], arguments: list[str]) -> Origin:
        self.patch(sys, "orig_argv", original)
        self.patch(sys, "argv", arguments)
        return Origin()

    def test_interpreter_options_and_script_are_kept_and_twistds_own_are_made_anew(self) -> None:
        """As root it may have taken another user's rights since: --uid is not said again."""
        script = "/opt/revproxy/bin/twistd"
        origin = self.origin(["python3", "-X", "utf8", script, "--uid=revproxy", "revproxy"], [script, "--uid=revproxy", "revproxy"])
        here = os.getcwd()
        command = origin.launch_command({"nodaemon": 0, "logfile": None, "pidfile": "twistd.pid"}, "/etc/x.toml")
        start = [sys.executable, "-X", "utf8", script, "--nodaemon", "--pidfile="]
        self.assertEqual(command, [*start, f"--logfile={here}/twistd.log", "revproxy", "--config", "/etc/x.toml"])
        for twistd, log in (
            ({"nodaemon": 1, "logfile": None}, []),
            ({"nodaemon": 1, "logfile": "-"}, ["--logfile=-"]),
            ({"nodaemon": 0, "logfile": "/var/log/x"}, ["--logfile=/var/log/x"]),
            ({"nodaemon": 0, "syslog": 1, "prefix": "proxy"}, ["--syslog", "--prefix=proxy"]),
        ):
            self.assertEqual(origin.launch_command(twistd, "f"), [*start, *log, "revproxy", "--config", "f"])

    def test_code_on_the_command_line(self) -> None:
        origin = self.origin(["python", "-c", "run()", "-n", "revproxy"], ["-c", "-n", "revproxy"])
        self.assertEqual(origin.command, [sys.executable, "-c", "run()"])


class RefusalTests(SynchronousTestCase):
    def test_where_there_can_be_no_successor_it_is_said_before_anything_happens(self) -> None:
        class Root:
            is_demo = False
            twistd: dict[str, Any] = {"chroot": "/jail"}

        for changed, words in (({}, "--chroot"), ({"is_demo": True}, "demo")):
            root = Root()
            for name, value in changed.items():
                setattr(root, name, value)
            with self.assertRaises(ChangeRefused) as caught:
                Succession(None, root, Origin(), None).launch()
            self.assertEqual((caught.exception.status, words in caught.exception.message), (409, True))
        self.patch(os, "getpid", lambda: 1)
        with self.assertRaises(ChangeRefused) as caught:
            Succession(None, Root(), Origin(), None).launch()
        self.assertIn("container", caught.exception.message)


class PidFileTests(SynchronousTestCase):
    def test_it_is_replaced_at_once(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = os.path.join(directory.name, "pid")
        with open(path, "w") as file:
            file.write("1")
        write_pid_file(path)
        with open(path) as file:
            self.assertEqual(file.read(), str(os.getpid()))
        self.assertEqual(os.listdir(directory.name), ["pid"])
