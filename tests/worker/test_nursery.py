"""The process that workers are forked off: forks, reaps, ends with its supervisor."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.worker import nursery


class NurseryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(10)
        self.addCleanup(self.control.close)
        self.pid = os.fork()
        if not self.pid:
            self.control.close()
            try:
                nursery.ignore_signals()
                nursery.serve(theirs, self.live, 9)
            finally:
                os._exit(0)
        theirs.close()
        self.addCleanup(self.end)
        self.assertEqual(self.hear(), {"ready": self.pid})

    def end(self) -> None:
        self.control.close()
        self.assertEqual(os.waitpid(self.pid, 0)[1], 0)

    @staticmethod
    def live(slot: int) -> None:
        """What a worker does here: tells its slot over its channel, its sorrow over standard error, and ends as told."""
        os.write(2, b"sorrow")
        with socket.socket(fileno=9) as channel:
            channel.sendall(b"%d" % slot)
            told = channel.recv(100)
        if told == b"exit":
            sys.exit(3)
        if told == b"crash":
            raise ZeroDivisionError("told to")

    def hear(self) -> Any:
        return json.loads(self.control.recv(4096))

    def fork(self, slot: int) -> tuple[int, socket.socket, int]:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        reading, writing = os.pipe()
        socket.send_fds(self.control, [json.dumps({"slot": slot}).encode()], [theirs.fileno(), writing])
        theirs.close()
        os.close(writing)
        answer = self.hear()
        self.assertEqual(answer["slot"], slot)
        self.addCleanup(ours.close)
        self.addCleanup(os.close, reading)
        self.assertEqual(ours.recv(100), b"%d" % slot)
        return answer["pid"], ours, reading

    def reap(self, pid: int) -> int | None:
        pidfd = os.pidfd_open(pid)
        select.select([pidfd], [], [], 10)
        os.close(pidfd)
        self.control.send(json.dumps({"reap": pid}).encode())
        answer = self.hear()
        self.assertEqual(answer["reaped"], pid)
        status: int | None = answer["status"]
        return status

    def test_a_worker_has_its_channel_its_stderr_and_its_end(self) -> None:
        for slot, (word, code) in enumerate(((b"", 0), (b"exit", 3), (b"crash", 1))):
            pid, channel, stderr = self.fork(slot)
            channel.sendall(word) if word else channel.close()
            status = self.reap(pid)
            assert status is not None
            self.assertEqual(os.waitstatus_to_exitcode(status), code)
            said = os.read(stderr, 65536)
            self.assertTrue(said.startswith(b"sorrow"))
            self.assertEqual(b"ZeroDivisionError" in said, word == b"crash")

    def test_a_killed_worker_is_told_as_killed_and_a_foreign_one_as_unknown(self) -> None:
        pid, _, _ = self.fork(0)
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(self.reap(pid), signal.SIGKILL)
        self.assertIsNone(nursery.reap(1))

    def test_signals_for_the_whole_group_end_neither_it_nor_its_workers(self) -> None:
        pid, channel, _ = self.fork(0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(self.pid, number)
            os.kill(pid, number)
        other, _, _ = self.fork(1)
        channel.sendall(b"exit")
        status = self.reap(pid)
        assert status is not None
        self.assertEqual(os.waitstatus_to_exitcode(status), 3)
        os.kill(other, signal.SIGKILL)
        self.reap(other)
