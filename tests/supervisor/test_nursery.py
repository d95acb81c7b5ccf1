"""Workers forked off a warm process look like any other process to the supervisor, and without it they start all the same."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import pytest
from twisted.internet import error, reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from twistedproxy.supervisor.nursery import ForkedProcess, Nursery
from twistedproxy.supervisor.processes import environment

CODE = """
import os, socket, sys
from twistedproxy.worker import nursery
def live(slot):
    os.write(2, b"hello from %d\\n" % slot)
    word = socket.socket(fileno=3).recv(100)
    sys.exit(int(word) if word else 0)
control = socket.socket(fileno=os.dup(3))
nursery.serve(control, live, 3)
"""


class Child(ProcessProtocol):
    def __init__(self) -> None:
        self.process: ForkedProcess | None = None
        self.attached: Deferred[Any] = Deferred()
        self.ended: Deferred[Any] = Deferred()
        self.words = b""
        self.exited: list[Any] = []

    def attach(self, process: ForkedProcess | None) -> None:
        self.process = process
        self.attached.callback(process)

    def errReceived(self, data: bytes) -> None:
        self.words += data

    def processExited(self, reason: Failure) -> None:
        self.exited.append(reason.value)

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(reason.value)


@pytest.mark.usefixtures("bench")
class NurseryTests(TestCase):
    bench: Any
    timeout = 30

    async def setUp(self) -> None:
        self.null = os.open(os.devnull, os.O_RDONLY)
        self.addCleanup(os.close, self.null)
        self.board = os.memfd_create("board")
        self.addCleanup(os.close, self.board)
        self.nursery = Nursery(reactor, [sys.executable, "-c", CODE], self.board, environment)
        await self.nursery.start(self.null)

    async def tearDown(self) -> None:
        self.nursery.stop()
        await self.bench.until(lambda: self.nursery._process is None)

    async def fork(self, slot: int = 4) -> tuple[Child, socket.socket]:
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        child = Child()
        self.assertTrue(self.nursery.fork(child, slot, theirs.fileno(), child.attach))
        theirs.close()
        await child.attached
        return child, ours

    async def test_it_speaks_exits_and_is_reaped(self) -> None:
        child, channel = await self.fork()
        assert child.process is not None
        self.assertTrue(self.bench.is_alive(child.process.pid))
        channel.sendall(b"3")
        how = await child.ended
        self.assertEqual((how.exitCode, how.signal, child.words), (3, None, b"hello from 4\n"))
        self.assertEqual(len(child.exited), 1)
        with self.assertRaises(error.ProcessExitedAlready):
            child.process.signalProcess("KILL")

    async def test_a_kill_is_told_as_one_and_a_clean_end_as_that(self) -> None:
        child, _ = await self.fork()
        assert child.process is not None
        child.process.signalProcess("KILL")
        self.assertEqual((await child.ended).signal, signal.SIGKILL)
        child, channel = await self.fork()
        channel.close()
        self.assertIsInstance(await child.ended, error.ProcessDone)

    async def test_without_it_workers_are_watched_on_and_it_comes_back(self) -> None:
        """The nursery is killed: its workers live, their end is noticed, new ones are started otherwise until it is back."""
        child, _ = await self.fork()
        assert child.process is not None
        before = self.nursery.pid
        os.kill(before, signal.SIGKILL)
        await self.bench.until(lambda: not self.nursery.is_ready)
        self.assertFalse(self.nursery.fork(Child(), 5, 0, lambda _: None))
        child.process.signalProcess("KILL")
        await child.ended
        await self.bench.until(lambda: self.nursery.is_ready)
        self.assertNotEqual(self.nursery.pid, before)
        again, channel = await self.fork()
        channel.close()
        await again.ended
