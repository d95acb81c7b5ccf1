"""The supervisor's side of `worker.nursery`: keeps the warm process alive and has workers forked off it (faults: P12).

A forked worker is not our child, so its end is learnt from a pidfd and its exit status from the nursery, which reaps it.
`ForkedProcess` hides the difference from `processes.Worker`: it calls the same methods as Twisted's own process.
"""

# mypy: disable-error-code="no-untyped-call"
# (FileDescriptor has no annotations)

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.process import ProcessReader
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.observability.events import publish_line

READY_S = 10.0
"""A nursery that is not ready by then is done without."""
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
MAX_ANSWER_BYTES = 4096


class ForkedProcess:
    """A worker process that the nursery forked; tells `protocol` what Twisted's own processes tell theirs."""

    def __init__(self, reactor: Any, nursery: Nursery, protocol: ProcessProtocol, pid: int, pidfd: int, stderr: int) -> None:
        self.pid: int | None = pid
        self._nursery = nursery
        self._protocol = protocol
        self._pidfd = pidfd
        os.set_blocking(stderr, False)
        self._stderr: Any = ProcessReader(reactor, self, 2, stderr)
        _Watch(reactor, pidfd, self._exited)
        self._is_reaped = False

    def signalProcess(self, name: str) -> None:
        if self._pidfd < 0:
            raise error.ProcessExitedAlready()
        try:
            signal.pidfd_send_signal(self._pidfd, signal.Signals[f"SIG{name}"])
        except ProcessLookupError:
            raise error.ProcessExitedAlready() from None

    def _exited(self) -> None:
        pid, self.pid = self.pid, None
        os.close(self._pidfd)
        self._pidfd = -1
        self._nursery.reap(pid or 0, self.reaped)

    def reaped(self, status: int | None) -> None:
        """`status` as waitpid gives it; None: nobody knows."""
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        number = -code if code is not None and code < 0 else None
        how: Exception = error.ProcessDone(status) if code == 0 else error.ProcessTerminated(None if number else code, number, status)
        self._is_reaped = True
        self._reason = Failure(how)
        self._protocol.processExited(self._reason)
        self._finish()

    def childDataReceived(self, descriptor: int, data: bytes) -> None:
        self._protocol.childDataReceived(descriptor, data)

    def childConnectionLost(self, descriptor: int, reason: Failure) -> None:
        self._stderr = None
        self._finish()

    def _finish(self) -> None:
        if self._is_reaped and self._stderr is None:
            self._protocol.processEnded(self._reason)


class _Watch(FileDescriptor):
    """Calls `then` once, when the descriptor (which stays its owner's) becomes readable."""

    def __init__(self, reactor: Any, fd: int, then: Callable[[], None]) -> None:
        super().__init__(reactor)
        self._fd = fd
        self._then: Callable[[], None] | None = then
        self.connected = 1
        self.startReading()

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        self.stopReading()
        then, self._then = self._then, None
        if then is not None:
            then()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor dropped it: look now, or never."""
        super().connectionLost(reason)
        self.doRead()


class _Control(FileDescriptor):
    """Reads the nursery's answers."""

    def __init__(self, reactor: Any, sock: socket.socket, owner: Nursery) -> None:
        super().__init__(reactor)
        self._sock = sock
        self._owner = owner
        self.connected = 1
        self.startReading()

    def fileno(self) -> int:
        return self._sock.fileno()

    def doRead(self) -> None:
        while True:
            try:
                data = self._sock.recv(MAX_ANSWER_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.stopReading()
                self._owner.control_lost(self)
                return
            self._owner.heard(json.loads(data))

    def close(self) -> None:
        self.stopReading()
        self._sock.close()


Attach = Callable[["ForkedProcess | None"], None]


class Nursery(ProcessProtocol):
    """Has workers forked; `command` starts the process, `scoreboard_fd` is what all its children share."""

    log = Logger()

    def __init__(self, reactor: Any, command: list[str], scoreboard_fd: int, environment: Callable[[], dict[str, str]]) -> None:
        self._reactor = reactor
        self._command = command
        self._scoreboard_fd = scoreboard_fd
        self._environment = environment
        self._control: _Control | None = None
        self._sock: socket.socket | None = None
        self._process: Any = None
        self._is_ready = False
        self._is_stopping = False
        self._waiting: list[Deferred[None]] = []
        self._limit: Any = None
        self._retry: Any = None
        self._retry_s = FIRST_RETRY_S
        self._births: deque[tuple[ProcessProtocol, int, Attach]] = deque()
        self._reaps: dict[int, Callable[[int | None], None]] = {}
        self.started = 0.0
        self.pid = 0

    @property
    def is_ready(self) -> bool:
        return self._is_ready

    def start(self, null_fd: int) -> Deferred[None]:
        """Fires when workers can be forked, or when there is no hope that they can soon."""
        self._null_fd = null_fd
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        self._limit = self._reactor.callLater(READY_S, self._settled)
        self._spawn()
        return done

    def _spawn(self) -> None:
        self._retry = None
        if self._is_stopping:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.started = time.monotonic()
        files = {0: self._null_fd, 1: 1, 2: "r", 3: theirs.fileno(), 4: self._scoreboard_fd}
        with theirs:
            try:
                self._process = self._reactor.spawnProcess(self, self._command[0], self._command, env=self._environment(), childFDs=files)
            except OSError as e:
                ours.close()
                self.log.error("the nursery of the workers cannot be started: {why}", why=str(e))
                self._again()
                return
        self.pid = self._process.pid
        self._sock = ours
        self._control = _Control(self._reactor, ours, self)

    def _settled(self) -> None:
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._limit = None
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def stop(self) -> None:
        """The process ends when it finds the socket closed."""
        self._is_stopping = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._control is not None:
            self._lose()
        self._settled()

    # Orders

    def fork(self, worker: ProcessProtocol, slot: int, channel: int, attach: Attach) -> bool:
        """Have the worker of `slot` made; `attach` gets its process, or None if nothing came of it. False: not possible now."""
        if not self._is_ready or self._sock is None:
            return False
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            socket.send_fds(self._sock, [json.dumps({"slot": slot}).encode()], [channel, writing])
        except OSError as e:
            self.log.error("the nursery does not take orders: {why}", why=str(e))
            os.close(reading)
            return False
        finally:
            os.close(writing)
        self._births.append((worker, reading, attach))
        return True

    def reap(self, pid: int, then: Callable[[int | None], None]) -> None:
        """Ask for the wait status of a worker that has ended."""
        try:
            if self._sock is None:
                raise OSError("no nursery")
            self._sock.send(json.dumps({"reap": pid}).encode())
        except OSError:
            then(None)
            return
        self._reaps[pid] = then

    # Answers

    def heard(self, words: dict[str, int | None]) -> None:
        if "reaped" in words:
            then = self._reaps.pop(words["reaped"] or 0, None)
            if then is not None:
                then(words["status"])
        elif "slot" in words:
            self._born(words["pid"] or 0)
        else:
            self._is_ready = True
            self._retry_s = FIRST_RETRY_S
            self._settled()

    def _born(self, pid: int) -> None:
        worker, stderr, attach = self._births.popleft()
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as e:
            self.log.error("worker process {pid} cannot be watched: {why}", pid=pid, why=str(e))
            os.close(stderr)
            attach(None)
            return
        attach(ForkedProcess(self._reactor, self, worker, pid, pidfd, stderr))

    def control_lost(self, control: _Control) -> None:
        if control is self._control:
            self._lose()

    def _lose(self) -> None:
        """No more orders: who waits for an answer gets none."""
        control, self._control, self._sock = self._control, None, None
        self._is_ready = False
        if control is not None:
            control.close()
        births, self._births = self._births, deque()
        for _, stderr, attach in births:
            os.close(stderr)
            attach(None)
        reaps, self._reaps = self._reaps, {}
        for then in reaps.values():
            then(None)

    # The process itself

    def errReceived(self, data: bytes) -> None:
        for line in data.splitlines():
            publish_line(line, "nursery")

    def processEnded(self, reason: Failure) -> None:
        self._process = None
        self._lose()
        if not self._is_stopping:
            why = reason.getErrorMessage()
            self.log.error("the nursery of the workers ended ({why}); until the next one is ready, workers start slowly", why=why)
            self._again()

    def _again(self) -> None:
        self._settled()
        self._retry = self._reactor.callLater(self._retry_s, self._spawn)
        self._retry_s = min(LAST_RETRY_S, self._retry_s * 2)
