"""One worker process as the supervisor sees it: its states, its control channel, its words on standard error.

How it works
    STARTING     spawned, has not said Hello
    CONFIGURING  the whole model is on its way
    SERVING      at the revision of everybody, accepting
    LAGGING      a change unanswered for 5 s, or silent for 2.5 s: its sockets are lent out and it is sent the whole model
    STOPPING     told to drain, or about to be killed
    GONE         no process, or one that has lost its channel

    A worker silent for 5 s, or lagging for 5 s more, is killed: `fleet.Fleet` starts another in its slot. Revisions are
    reached in order: `reach` sends one change to a serving worker and the whole model to any other.
"""

from __future__ import annotations

import enum
import os
import signal
import socket
import sysconfig
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet import error
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

import twistedproxy
from twistedproxy.ipc import commands
from twistedproxy.observability.events import publish_line
from twistedproxy.supervisor.nursery import ForkedProcess, Nursery

START_S = 30.0
"""From spawn to SERVING."""
LAG_S = 5.0
QUIET_S = 2.5
"""Heartbeats come each second; after this long without one its sockets are lent."""
SILENT_S = 5.0
LINE_BYTES = 32 * 1024
LINES_PER_S = 50
LINES_BURST = 500


class State(enum.Enum):
    STARTING = "starting"
    CONFIGURING = "configuring"
    SERVING = "serving"
    LAGGING = "lagging"
    STOPPING = "stopping"
    GONE = "gone"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.STARTING: frozenset({State.CONFIGURING, State.STOPPING, State.GONE}),
    State.CONFIGURING: frozenset({State.SERVING, State.STOPPING, State.GONE}),
    State.SERVING: frozenset({State.LAGGING, State.STOPPING, State.GONE}),
    State.LAGGING: frozenset({State.SERVING, State.STOPPING, State.GONE}),
    State.STOPPING: frozenset({State.GONE}),
    State.GONE: frozenset(),
}


class World(Protocol):
    """What all workers shall know."""

    revision: int

    def configuration(self, slot: int) -> dict[str, Any]:
        """The value of `commands.Configure`."""
        ...

    def observations(self) -> list[dict[str, Any]]: ...


class Owner(Protocol):
    """Whom a worker tells what happens to it."""

    def worker_moved(self, worker: Worker) -> None:
        """Its state changed."""
        ...

    def worker_failures(self, rows: list[list[Any]]) -> None: ...


class Worker(ProcessProtocol):
    """One process in one slot, from spawn to end."""

    log = Logger()

    def __init__(self, reactor: Any, slot: int, world: World, owner: Owner) -> None:
        self.slot = slot
        self.state = State.STARTING
        self.pid = 0
        self.revision = -1
        self.head_codec = ""
        self.connections = 0
        self.requests = 0
        self.lag_seconds = 0.0
        self.statistics: Mapping[str, Any] | None = None
        """Its last totals."""
        self.started = reactor.seconds()
        self.last_heard = self.started
        self.ended: Deferred[None] = Deferred()
        """Fires when the process is no more."""
        self._reactor = reactor
        self._world = world
        self._owner = owner
        self._channel: _WorkerEnd | None = None
        self._process: IProcessTransport | ForkedProcess | None = None
        self._is_configuring = False
        self._knows_model = False
        self._since = self.started
        self._waiting: list[tuple[int, Deferred[bool]]] = []
        self._stderr = _Lines(f"worker {slot}", reactor.seconds)

    def __repr__(self) -> str:
        return f"<Worker slot={self.slot} pid={self.pid} {self.state.value} revision={self.revision}>"

    def _move(self, to: State) -> None:
        if to not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self!r} cannot become {to.value}")
        self.state = to
        self._since = self._reactor.seconds()
        if to is State.GONE:
            waiting, self._waiting = self._waiting, []
            for _, reached in waiting:
                reached.callback(False)
        self._owner.worker_moved(self)

    # Starting and ending

    def start(self, command: list[str], scoreboard_fd: int, null_fd: int, nursery: Nursery | None = None) -> None:
        """Have the process forked or, where there is no nursery, spawn it; `OSError` when the kernel will not."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            ours.setblocking(False)
            self._channel = _WorkerEnd(self)
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, _One(self._channel))
            if nursery is not None and nursery.fork(self, self.slot, theirs.fileno(), self._attach):
                return
            files = {0: null_fd, 1: 1, 2: "r", 3: theirs.fileno(), 4: scoreboard_fd}
            try:
                self._process = self._reactor.spawnProcess(self, command[0], command, env=environment(), childFDs=files)
            except OSError:
                self.lost()
                raise
        self.pid = self._process.pid or 0

    def _attach(self, process: ForkedProcess | None) -> None:
        """The nursery has made the process, or nothing came of it."""
        if process is None:
            self.processExited(Failure(error.ProcessTerminated()))
            return
        self._process = process
        self.pid = process.pid or 0
        if self.state in (State.STOPPING, State.GONE):
            self.signal(signal.SIGKILL)
        else:
            self._owner.worker_moved(self)

    def kill(self, why: str) -> None:
        """End it at once; the slot's next worker comes when the kernel says that it is dead."""
        if self.state not in (State.STOPPING, State.GONE):
            self.log.warn("worker {slot} (pid {pid}) is killed: {why}", slot=self.slot, pid=self.pid, why=why)
            self._move(State.STOPPING)
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                self._process.signalProcess(number.name[3:])
            except error.ProcessExitedAlready:
                pass  # what was wanted

    def drain(self) -> None:
        """Let it finish what is open; `ended` tells when."""
        if self.state in (State.STOPPING, State.GONE):
            return
        knew_model = self._knows_model
        self._move(State.STOPPING)
        if knew_model and self._channel is not None:
            self._call(commands.Drain)
        else:
            self.signal(signal.SIGKILL)

    def lost(self) -> None:
        """The channel is closed: whatever the process still does, it serves nobody."""
        channel, self._channel = self._channel, None
        if channel is not None and channel.transport is not None:
            channel.transport.abortConnection()  # type: ignore[attr-defined]
        if self.state is State.STOPPING:
            return
        if self.state is not State.GONE:
            self._move(State.GONE)
            self.signal(signal.SIGKILL)

    def errReceived(self, data: bytes) -> None:
        self._stderr.received(data)

    def processExited(self, reason: Failure) -> None:
        how = reason.value
        expected = self.state is State.STOPPING and isinstance(how, error.ProcessDone)
        tell = self.log.info if expected else self.log.error
        code = getattr(how, "signal", None) or getattr(how, "exitCode", None)
        word = f"signal {code}" if getattr(how, "signal", None) else f"exit code {code or 0}"
        tell("worker {slot} (pid {pid}) ended: {how}", slot=self.slot, pid=self.pid, how=word)
        self._process = None
        if self.state is not State.GONE:
            self._move(State.GONE)
        self.lost()
        self.ended.callback(None)

    def processEnded(self, reason: Failure) -> None:
        self._stderr.finish()

    # Watching

    def excuse(self, seconds: float) -> None:
        """The supervisor itself stood still for so long: do not hold it against the worker."""
        self.started += seconds
        self.last_heard += seconds
        self._since += seconds

    def check(self, now: float) -> None:
        """Called several times a second: find out whether it hangs."""
        in_state_s = now - self._since
        silent_s = now - self.last_heard
        if self.state in (State.STARTING, State.CONFIGURING):
            if now - self.started > START_S:
                self.kill(f"not ready {START_S:g} s after its start")
        elif self.state is State.SERVING:
            if silent_s > QUIET_S:
                self.lags(f"silent for {silent_s:.1f} s")
        elif self.state is State.LAGGING:
            if silent_s > SILENT_S:
                self.kill(f"no heartbeat for {silent_s:.1f} s")
            elif in_state_s > LAG_S:
                self.kill(f"still behind {in_state_s:.1f} s after it was sent the whole model")

    def lags(self, why: str) -> None:
        """It is behind the others: lend its sockets, send it the whole model."""
        if self.state is State.SERVING:
            self.log.warn("worker {slot} (pid {pid}) lags: {why}", slot=self.slot, pid=self.pid, why=why)
            self._move(State.LAGGING)
            self._configure()

    # Speaking

    def _call(self, command: type[amp.Command], **arguments: Any) -> Deferred[Any]:
        """The worker's answer, or None: a channel that broke is noticed elsewhere."""
        if self._channel is None:
            done: Deferred[Any] = Deferred()
            done.errback(error.ConnectionDone())
        else:
            done = self._channel.callRemote(command, **arguments)  # type: ignore[no-untyped-call]
        done.addErrback(self._refused, command.__name__)
        return done

    def _refused(self, failure: Failure, what: str) -> None:
        if failure.check(error.ConnectionDone, error.ConnectionLost) is None and self.state is not State.GONE:
            self.log.error("worker {slot} did not do {what}: {why}", slot=self.slot, what=what, why=failure.getErrorMessage())

    def said_hello(self, pid: int, head_codec: str) -> None:
        self.head_codec = head_codec
        self.last_heard = self._reactor.seconds()
        if self.state is State.STARTING:
            self._move(State.CONFIGURING)
            self._configure()

    def _configure(self) -> None:
        """Send the whole model, unless it is on its way already; what changes meanwhile is noticed when it answers."""
        if self._is_configuring or self._channel is None:
            return
        self._is_configuring = True
        self._knows_model = True
        observations = self._world.observations()
        transfer = self._channel.send_value(self._world.configuration(self.slot))
        self._call(commands.Configure, transfer=transfer).addCallback(self._configured, observations)

    def _configured(self, answer: Mapping[str, Any] | None, observations: list[dict[str, Any]]) -> None:
        self._is_configuring = False
        self.last_heard = self._reactor.seconds()
        if self.state not in (State.CONFIGURING, State.LAGGING, State.SERVING):
            return
        if answer is None:
            if self.state is State.SERVING:
                self.lags("it could not take over a configuration")
            else:
                self.kill("it refused the configuration")
            return
        self._reached(answer["revision"])
        if self.state in (State.STOPPING, State.GONE):
            return  # by whoever waited for this
        if self.revision < self._world.revision:
            self._configure()
            return
        now_seen = self._world.observations()
        if now_seen != observations:
            self.observe(now_seen)
        if self.state is not State.SERVING:
            self._move(State.SERVING)

    def reach(self, revision: int, change: Mapping[str, Any]) -> Deferred[bool]:
        """Bring it to `revision`; fires with True when it is there, with False when it is gone."""
        reached: Deferred[bool] = Deferred()
        if self.state is State.GONE:
            reached.callback(False)
            return reached
        self._waiting.append((revision, reached))
        if self.state is State.SERVING and self._channel is not None:
            transfer = self._channel.send_value(change)
            self._call(commands.Apply, revision=revision, transfer=transfer).addCallback(self._applied)
        elif self.state is State.LAGGING:
            self._configure()
        return reached

    def reach_whole(self, revision: int) -> Deferred[bool]:
        """The same by the whole model: for what no single change says."""
        reached: Deferred[bool] = Deferred()
        if self.state is State.GONE:
            reached.callback(False)
            return reached
        self._waiting.append((revision, reached))
        if self.state in (State.SERVING, State.LAGGING):
            self._configure()
        return reached

    def _applied(self, answer: Mapping[str, Any] | None) -> None:
        if answer is None:
            self.lags("it could not apply a change")
        else:
            self._reached(answer["revision"])

    def _reached(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        there = [item for item in self._waiting if item[0] <= self.revision]
        self._waiting = [item for item in self._waiting if item[0] > self.revision]
        for _, reached in there:
            reached.callback(True)

    def observe(self, observations: list[dict[str, Any]]) -> Deferred[Any] | None:
        """Its answer to come, which is None when it could not; None: it learns them with its configuration, or leaves."""
        if not self._knows_model or self._channel is None or self.state is State.STOPPING:
            return None
        return self._call(commands.Observe, transfer=self._channel.send_value(observations))

    def adopt(self, listener: str, index: int, descriptor: int) -> None:
        # A copy of our own: the channel sends it a little later, when the caller's may be closed already.
        copy = os.dup(descriptor)
        sent = self._call(commands.AdoptSocket, listener=listener, index=index, descriptor=copy)
        sent.addBoth(lambda _: os.close(copy))

    def give_back(self, listener: str, index: int) -> None:
        self._call(commands.ReturnSocket, listener=listener, index=index)

    def collect(self) -> Deferred[Any]:
        """Fires when fresh statistics have come."""
        return self._call(commands.Collect)

    def ask(self, asked: Mapping[str, Any]) -> Deferred[Any]:
        """The worker's answer; None when there is none."""
        if self._channel is None or not self._knows_model:
            return succeed(None)
        channel = self._channel
        answer = self._call(commands.Ask, transfer=channel.send_value(asked))
        return answer.addCallback(lambda said: None if said is None else channel.take_value(said["transfer"]))

    def reopen_logs(self) -> None:
        if self._knows_model:
            self._call(commands.ReopenLogs)

    # Listening

    def heard(self, revision: int, connections: int, requests: int, lag_seconds: float) -> None:
        self.last_heard = self._reactor.seconds()
        self.connections, self.requests, self.lag_seconds = connections, requests, lag_seconds
        if self.state is State.LAGGING and not self._is_configuring:
            self._configure()

    def counted(self, statistics: Mapping[str, Any]) -> None:
        self.statistics = statistics

    def failed(self, rows: list[list[Any]]) -> None:
        self._owner.worker_failures(rows)


class _WorkerEnd(commands.Channel):
    """The channel's commands, handed to the `Worker`."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    @commands.Hello.responder
    def _hello(self, pid: int, head_codec: str) -> dict[str, Any]:
        self._worker.said_hello(pid, head_codec)
        return {}

    @commands.Heartbeat.responder
    def _heartbeat(self, revision: int, connections: int, requests: int, lag_seconds: float) -> dict[str, Any]:
        self._worker.heard(revision, connections, requests, lag_seconds)
        return {}

    @commands.Statistics.responder
    def _statistics(self, transfer: int) -> dict[str, Any]:
        self._worker.counted(self.take_value(transfer))
        return {}

    @commands.Failures.responder
    def _failures(self, transfer: int) -> dict[str, Any]:
        self._worker.failed(self.take_value(transfer))
        return {}

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._worker.lost()


class _One(ServerFactory):
    """Builds exactly the protocol it was given."""

    noisy = False

    def __init__(self, channel: _WorkerEnd) -> None:
        self._channel = channel

    def buildProtocol(self, addr: Any) -> _WorkerEnd:
        return self._channel


class _Lines:
    """Standard error, line by line into the event log; at most `LINES_PER_S`, so that a mad worker cannot fill the disk."""

    def __init__(self, source: str, seconds: Callable[[], float]) -> None:
        self._source = source
        self._seconds = seconds
        self._rest = b""
        self._budget = float(LINES_BURST)
        self._refilled = seconds()
        self._dropped = 0

    def received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._rest = rest
        for line in lines:
            self._publish(line)

    def finish(self) -> None:
        if self._rest:
            self._publish(self._rest)
            self._rest = b""
        self._tell_dropped()

    def _publish(self, line: bytes) -> None:
        now = self._seconds()
        self._budget = min(LINES_BURST, self._budget + (now - self._refilled) * LINES_PER_S)
        self._refilled = now
        if self._budget < 1:
            self._dropped += 1
            return
        self._budget -= 1
        self._tell_dropped()
        publish_line(line[:LINE_BYTES], self._source)

    def _tell_dropped(self) -> None:
        if self._dropped:
            publish_line(f"{self._dropped} lines were dropped: more than {LINES_PER_S} a second".encode(), self._source)
            self._dropped = 0


def environment() -> dict[str, str]:
    """Ours, and the way to this very package: a worker must run the same code, and nothing from the current directory."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(twistedproxy.__file__)))
    if home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))}


def null_device() -> int:
    """What workers get as standard input."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
