"""A real worker process, with the test as its supervisor."""

from __future__ import annotations

import contextlib
import gc
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol, ServerFactory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy.config import changes, plain
from twistedproxy.config.changes import RowAssigned, SetWeight
from twistedproxy.config.model import AccessLog, Address, HttpListener, Logs, Model, Pool, Route, Server, Site, TcpListener
from twistedproxy.ipc import commands
from twistedproxy.ipc.commands import Channel
from twistedproxy.ipc.scoreboard import Scoreboard
from twistedproxy.worker import main

reactor: Any = installed
ROOT = Path(__file__).resolve().parents[2]
LISTENER = Address("127.0.0.1:6432")
"""As configured; the test hands over a socket on a free port."""
BANNED = ("twisted.web", "klein", "treq", "prometheus_client", "pydantic", "twisted.protocols.portforward", "twistedproxy.supervisor")


class Supervisor(Channel):
    def __init__(self) -> None:
        super().__init__()
        self.hello: Deferred[str] = Deferred()
        self.heartbeats: list[dict[str, Any]] = []
        self.totals: list[dict[str, Any]] = []

    @commands.Hello.responder
    def _hello(self, pid: int, head_codec: str) -> dict[str, Any]:
        self.hello.callback(head_codec)
        return {}

    @commands.Heartbeat.responder
    def _heartbeat(self, **facts: Any) -> dict[str, Any]:
        self.heartbeats.append(facts)
        return {}

    @commands.Statistics.responder
    def _statistics(self, transfer: int) -> dict[str, Any]:
        self.totals.append(self.take_value(transfer))
        return {}

    @commands.Failures.responder
    def _failures(self, transfer: int) -> dict[str, Any]:
        self.take_value(transfer)
        return {}


class Process(ProcessProtocol):
    def __init__(self) -> None:
        self.ended: Deferred[int | None] = Deferred()
        self.stderr = b""

    def errReceived(self, data: bytes) -> None:
        self.stderr += data

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(reason.value.exitCode)  # type: ignore[attr-defined]


class _One(ServerFactory):
    noisy = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: Any) -> Channel:
        return self._channel


class Echo(threading.Thread):
    """A little server on a free port that sends back what it gets."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"127.0.0.1:{self.socket.getsockname()[1]}")

    def run(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(ConnectionResetError):
            while data := client.recv(65536):
                client.sendall(data)

    def stop(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None:
        """Silence."""


async def until(true: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        await deferLater(reactor, 0.01)


class ProcessTests(TestCase):
    timeout = 25

    def setUp(self) -> None:
        self.echo = Echo()
        self.echo.start()
        self.addCleanup(self.echo.stop)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listening.close)
        self.board = Scoreboard.create(rows=16, workers=2)
        self.addCleanup(self.board.close)
        self.slot = self.board.take_slot()
        self.model = Model(
            tcp=(TcpListener(LISTENER, "pg"),),
            pools={"pg": Pool("pg", (Server(self.echo.address), Server(Address("127.0.0.1:1"), weight=0)))},
        )
        self.supervisor = Supervisor()
        self.connected: list[socket.socket] = []
        self.process = Process()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, _One(self.supervisor))
        ours.close()
        command = [sys.executable, "-X", "importtime", "-m", "twistedproxy.worker.main", "--slot", str(self.slot)]
        files = {0: 0, 1: 1, 2: "r", 3: theirs.fileno(), 4: self.board.fd}
        self.transport = reactor.spawnProcess(self.process, command[0], command, env=None, path=str(ROOT), childFDs=files)
        theirs.close()
        self.addCleanup(self.end)

    async def end(self) -> None:
        if not self.process.ended.called:
            self.transport.signalProcess("KILL")
            await self.process.ended
        if self.supervisor.transport is not None and self.supervisor.transport.connected:  # type: ignore[attr-defined]
            self.supervisor.transport.abortConnection()  # type: ignore[attr-defined]
            await deferLater(reactor, 0)

    async def start(self) -> None:
        await until(lambda: self.supervisor.hello.called or self.process.ended.called, 10.0)
        self.assertFalse(self.process.ended.called, self.process.stderr[-2000:].decode())
        value = {
            "model": plain.encode(self.model),
            "revision": 1,
            "observations": [changes.to_plain(RowAssigned("pg", self.echo.address, 3))],
            "slot": self.slot,
            "slots": 2,
            "listeners": [[LISTENER, "tcp"]],
        }
        answer = await self.supervisor.callRemote(commands.Configure, transfer=self.supervisor.send_value(value))
        self.assertEqual(answer, {"revision": 1})
        descriptor = self.listening.fileno()
        await self.supervisor.callRemote(commands.AdoptSocket, listener=LISTENER, index=0, descriptor=descriptor)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.process.stderr.splitlines() if line.startswith(b"{")]

    async def connect(self) -> socket.socket:
        sock = await deferToThread(socket.create_connection, self.listening.getsockname(), 5)
        self.addCleanup(sock.close)
        self.connected.append(sock)
        await self.echoes(sock)
        return sock

    async def echoes(self, sock: socket.socket, data: bytes = b"hello") -> None:
        def talk() -> bytes:
            sock.sendall(data)
            received = b""
            while len(received) < len(data) and (more := sock.recv(65536)):
                received += more
            return received

        self.assertEqual(await deferToThread(talk), data)

    async def test_a_life(self) -> None:
        """Configured over the channel, it relays TCP, applies a change, counts, ignores Ctrl-C, drains and leaves with 0."""
        await self.start()
        sock = await self.connect()
        await self.echoes(sock, os.urandom(30_000))
        self.assertEqual(self.board.total("leases", 3), 1)

        change = changes.to_plain(SetWeight("pg", self.echo.address, 9))
        answer = await self.supervisor.callRemote(commands.Apply, revision=2, transfer=self.supervisor.send_value(change))
        self.assertEqual(answer, {"revision": 2})
        await self.echoes(sock)

        self.transport.signalProcess("INT")
        await self.supervisor.callRemote(commands.Collect)
        total = self.supervisor.totals[-1]
        self.assertEqual(total["gauges"]["connections"], [[LISTENER, 1]])
        self.assertIn(["pg", self.echo.address, 1], total["gauges"]["servers"])
        beats = len(self.supervisor.heartbeats)
        await until(lambda: len(self.supervisor.heartbeats) > beats)
        beat = self.supervisor.heartbeats[-1]
        self.assertEqual((beat["revision"], beat["connections"]), (2, 1))

        imported = {line.rpartition(b"|")[2].strip().decode() for line in self.process.stderr.splitlines() if b"import time:" in line}
        self.assertIn("twistedproxy.worker.service", imported)
        self.assertEqual([name for name in imported if name.startswith(BANNED)], [])

        await self.supervisor.callRemote(commands.Drain)
        await deferLater(reactor, 0.3)
        self.assertFalse(self.process.ended.called)
        await self.echoes(sock)
        sock.close()
        self.assertEqual(await self.process.ended, 0)
        self.assertEqual(self.board.total("leases", 3), 0)
        self.assertEqual([e for e in self.events() if e["level"] not in ("info", "debug")], [], self.process.stderr[-3000:])

    async def test_http_with_access_log(self) -> None:
        """The same worker speaks HTTP by the model's routes and writes its own lines into the access log."""
        backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        self.addCleanup(backend.server_close)
        self.addCleanup(backend.shutdown)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        file = os.path.join(folder.name, "access.log")
        self.model = Model(
            http=(HttpListener(LISTENER),),
            pools={"web": Pool("web", (Server(Address(f"127.0.0.1:{backend.server_port}")),))},
            sites={"*": Site("*", ("*",), (Route("/", "web"),))},
            logs=Logs(AccessLog(file)),
        )
        await self.start()

        def get() -> bytes:
            with socket.create_connection(self.listening.getsockname(), 5) as sock:
                sock.sendall(b"GET /hi HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return b"".join(iter(lambda: sock.recv(65536), b""))

        answer = await deferToThread(get)
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
        self.assertTrue(answer.endswith(b"hello"), answer)
        await until(lambda: os.path.getsize(file))
        with open(file) as f:
            self.assertIn('"GET /hi HTTP/1.1" 200 ', line := f.read())
        self.assertIn(f" * web 127.0.0.1:{backend.server_port} ", line)
        self.assertIn(" ok/- ", line)
        os.rename(file, file + ".1")
        await self.supervisor.callRemote(commands.ReopenLogs)
        self.assertTrue(os.path.exists(file))
        await self.supervisor.callRemote(commands.Drain)
        self.assertEqual(await self.process.ended, 0)

    async def test_lc_04_supervisor_dies(self) -> None:
        """LC-04: when its supervisor dies a worker stops accepting at once, and ends within 5 s though a session is open."""
        await self.start()
        sock = await self.connect()
        started = time.monotonic()
        self.supervisor.transport.loseConnection()  # type: ignore[union-attr]
        inode = os.fstat(self.listening.fileno()).st_ino
        await until(lambda: inode not in open_sockets(self.transport.pid), 1.0)
        await self.echoes(sock)
        self.assertEqual(await self.process.ended, 0)
        self.assertLess(time.monotonic() - started, 5.0)

    async def test_signals_are_the_supervisors_to_understand(self) -> None:
        """SIGTERM and SIGINT to a worker alone change nothing: it would stop accepting without anybody lending its sockets."""
        await self.start()
        sock = await self.connect()
        for name in ("TERM", "INT", "HUP"):
            self.transport.signalProcess(name)
        await deferLater(reactor, 0.2)
        await self.echoes(sock)
        await self.connect()
        await self.supervisor.callRemote(commands.Drain)
        for each in (sock, *self.connected):
            each.close()
        self.assertEqual(await self.process.ended, 0)


def open_sockets(pid: int | None) -> set[int]:
    """Inodes of the sockets a process holds."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(fd)
        except OSError:
            continue
        if name.startswith("socket:["):
            found.add(int(name[8:-1]))
    return found


class StartTests(SynchronousTestCase):
    def test_started_by_hand(self) -> None:
        """Who starts a worker by hand is told who does that."""
        done = subprocess.run(
            [sys.executable, "-m", "twistedproxy.worker.main", "--slot", "0"],
            cwd=ROOT, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.assertEqual(done.returncode, 2)
        self.assertIn("workers are started by `twistd revproxy`", done.stderr)

    def test_settle(self) -> None:
        """After start the collector leaves alone what lives for ever, and looks less often."""
        before = gc.get_threshold()
        try:
            main.settle()
            self.assertGreater(gc.get_freeze_count(), 1000)
            self.assertEqual(gc.get_threshold()[0], main.GENERATION_0)
        finally:
            gc.unfreeze()
            gc.set_threshold(*before)

    def test_sigint_number(self) -> None:
        """The pytest process itself still takes Ctrl-C: importing the module changes no signal."""
        self.assertNotEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)


class StderrTests(SynchronousTestCase):
    def test_a_supervisor_that_does_not_read(self) -> None:
        """Events never block the data plane; the loss is told when there is room again."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        stderr = main.Stderr(writer)
        for n in range(2000):
            stderr.write(f"event {n} {'x' * 100}\n")
        os.read(reader, 1 << 20)
        stderr.write("after\n")
        last = os.read(reader, 1 << 20).decode()
        self.assertRegex(last, r"^\d+ events were dropped: the supervisor does not read\nafter\n$")
