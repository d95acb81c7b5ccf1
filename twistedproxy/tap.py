"""``twistd revproxy``: options, and the service tree of the supervisor with its admin side.

Everything that can be refused is refused in `makeService`, before twistd forks: afterwards only a hundred bytes of an error would
reach the caller. So configuration, state directory, limits, journal and ports are dealt with here; the reactor first
turns in `startService`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import FileLogObserver, Logger, globalLogPublisher
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.logfile import BaseLogFile
from twisted.python.threadpool import ThreadPool

from twistedproxy import __version__
from twistedproxy.config.control import Applied, Event, Terms
from twistedproxy.config.loader import DEFAULT_FILES, find_file
from twistedproxy.config.model import EventLog, Model
from twistedproxy.demo import DemoBackends, demo_config, demo_text
from twistedproxy.errors import ChangeRefused, ConfigurationError, Problem
from twistedproxy.ipc.scoreboard import RowAllocator, Scoreboard, ScoreboardMismatch
from twistedproxy.net.transport import tune
from twistedproxy.observability.events import EventLines, json_line, text_line
from twistedproxy.probes.checker import Checker
from twistedproxy.probes.discovery import Resolver
from twistedproxy.succession import Origin, Succession
from twistedproxy.supervisor.configuration import Configuration, ConfigurationFile
from twistedproxy.supervisor.estate import Estate, inherited, passed_socket, tell_failure
from twistedproxy.supervisor.exposition import render
from twistedproxy.supervisor.facts import Rows
from twistedproxy.supervisor.journal import Journal
from twistedproxy.supervisor.limits import raise_descriptor_limit
from twistedproxy.supervisor.nursery import Nursery
from twistedproxy.supervisor.processes import environment
from twistedproxy.supervisor.service import Supervisor
from twistedproxy.supervisor.sockets import Sockets, bind_plain, wanted_listeners
from twistedproxy.supervisor.state_dir import StateDir, inherit_state_dir, open_state_dir
from twistedproxy.supervisor.systemd import Notifier, listening_sockets

PATIENCE_S = 1.8
"""After an unclean end the old workers may hold the ports for a moment."""

log = Logger(namespace="revproxy")


class Options(usage.Options):
    synopsis = "[--config FILE | --demo]"
    longdesc = "A reverse proxy for TCP and HTTP whose weights, states and servers change live."
    optParameters = [["config", "c", None, f"configuration file [default: {' or '.join(DEFAULT_FILES)}]"]]
    optFlags = [["demo", None, "run with two little web servers and an echo inside; needs no file"]]

    def postOptions(self) -> None:
        if self["demo"] and self["config"]:
            raise usage.UsageError("--demo brings its own configuration: leave out --config")

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print(f"revproxy {__version__}")
        raise SystemExit(0)


def makeService(options: Options) -> MultiService:
    """The whole supervisor; on any obstacle every problem is printed and the process ends with exit code 1."""
    from twisted.internet import reactor as global_reactor  # noqa: PLC0415 - twistd has chosen it by now

    reactor: Any = global_reactor
    # Twisted's timers run on the wall clock, where a step of the clock would fire or freeze all of them (faults: F1).
    reactor.seconds = time.monotonic
    demo = None
    wire, passed = inherited(os.environ) or (None, None)
    try:
        if options["demo"]:
            demo = _Demo(reactor)
            file = demo.file
        else:
            file = os.path.abspath(options["config"]) if options["config"] else find_file()
        root = compose(reactor, prepare(file, passed), demo, wire)
        root.twistd = options.parent
        return root
    except ConfigurationError as e:
        if demo is not None:
            demo.remove()
        for problem in e.problems:
            print(problem, file=sys.stderr)
        if wire is not None:
            tell_failure(wire, "; ".join(map(str, e.problems)))
        raise SystemExit(1) from None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What start needs and what can fail: all there, nothing running."""

    file: ConfigurationFile
    configuration: Configuration
    state: StateDir
    sockets: Sockets
    admin: socket.socket | None
    passed: Estate | None = None
    """What the supervisor that we shall replace leaves to us."""

    @property
    def model(self) -> Model:
        """As the file says it."""
        return self.configuration.model

    def abandon(self) -> None:
        self.close()
        self.state.release()

    def close(self) -> None:
        self.sockets.close()
        if self.admin is not None:
            self.admin.close()


def prepare(file: str, passed: Estate | None = None) -> Prepared:
    """Load, lock and bind, or take lock and sockets from `passed`; `ConfigurationError` with every problem, nothing is kept open then."""
    written = ConfigurationFile(file, raise_descriptor_limit)
    configuration = written.read()
    model = configuration.model
    if passed is None:
        state = open_state_dir(model.state_dir)
    elif passed.state_dir == model.state_dir:
        state = inherit_state_dir(model.state_dir, passed.lock)
    else:
        state = Problem("state_dir", f"it was {passed.state_dir} until now, an upgrade cannot change it: restart the proxy")
    if isinstance(state, Problem):
        raise ConfigurationError([_located(state, file)])
    handed = listening_sockets(os.environ)
    inherited_sockets = {}
    if passed is not None:
        handed = {address: passed_socket(fd) for address, fd in passed.handed.items()}
        for each in passed.listeners:
            inherited_sockets[each.configured] = (each.address, tuple(map(passed_socket, each.descriptors)))
    sockets = Sockets(max(model.workers, 1), tune, lambda text: log.warn("{text}", text=text), handed, inherited_sockets)
    deadline = time.monotonic() + (PATIENCE_S if state.was_unclean else 0)
    while True:
        taken = sockets.bind(wanted_listeners(model))
        admin, refused = None, None
        if passed is not None and passed.admin >= 0 and passed.admin_address == model.admin.listen:
            admin = passed_socket(passed.admin)
        elif model.admin.listen:
            admin, refused = bind_plain(model.admin.listen, "admin.listen")
        if refused is not None:
            taken.append(refused)
        prepared = Prepared(written, configuration, state, sockets, admin, passed)
        if not taken:
            return prepared
        if time.monotonic() > deadline:
            prepared.abandon()
            raise ConfigurationError([_located(p, file) for p in taken])
        sockets.close()
        if admin is not None:
            admin.close()
        time.sleep(0.05)


def _located(problem: Problem, file: str) -> Problem:
    return Problem(problem.path, problem.message, problem.line, problem.file or file)


def compose(reactor: Any, prepared: Prepared, demo: _Demo | None = None, wire: socket.socket | None = None) -> Root:
    """The service tree over what is prepared; `wire` leads to the supervisor that we shall replace."""
    # Klein imports the global reactor, so not before it is chosen; workers never come here.
    from twistedproxy.admin.api import AdminService  # noqa: PLC0415

    model, state = prepared.model, prepared.state
    passed = prepared.passed
    root = Root(reactor, prepared, demo, wire)
    try:
        try:
            root.journal = Journal(state.file("journal.jsonl"), root.in_journal_thread, time.time, is_ours=passed is None)
        except OSError as e:
            raise ConfigurationError([Problem("state_dir", f"the journal {e.filename} cannot be opened: {e.strerror}")]) from None
        board, allocator = root.board, root.allocator = _scoreboard(model, passed)
        root.supervisor = Supervisor(
            reactor,
            root.journal.replay(model, prepared.configuration.text),
            root.journal,
            prepared.sockets,
            board,
            Rows(allocator.allocate, allocator.free),
            command=worker_command,
            checks=Checker,
            names=Resolver,
            nursery=Nursery(reactor, NURSERY_COMMAND, board.fd, environment),
            file=prepared.file,
            current=prepared.configuration,
            in_thread=root.in_journal_thread,
        )
        local = passed_socket(passed.local) if passed is not None else None
        root.admin = AdminService(root.supervisor, model, reactor, render, prepared.admin, state.file("admin.sock"), local)
        root.supervisor.explainers = root.admin.operators
        root.events = EventFile.open(model.logs.events)
    except ConfigurationError:
        prepared.abandon()
        raise
    root.succession.attach()
    root.succession.wait()
    root.supervisor.setServiceParent(root)  # type: ignore[no-untyped-call]
    root.admin.setServiceParent(root)
    return root


def _scoreboard(model: Model, passed: Estate | None) -> tuple[Scoreboard, RowAllocator]:
    """The old supervisor's, so that limits hold over both generations of workers; a new one where that does not fit."""
    if passed is not None:
        try:
            board = Scoreboard.attach(passed.board)
        except (ScoreboardMismatch, ValueError) as e:
            log.warn("upgrade: limits are counted apart until the old version has left: {why}", why=str(e))
        else:
            if board.slots - len(board.taken_slots) >= 2 * model.workers:
                return board, RowAllocator(board, passed.rows)
    board = Scoreboard.create(workers=max(64, 4 * model.workers))
    return board, RowAllocator(board)


NURSERY_COMMAND = [sys.executable, "-P", "-m", "twistedproxy.worker.main", "--nursery"]


def worker_command(slot: int) -> list[str]:
    return [sys.executable, "-P", "-m", "twistedproxy.worker.main", "--slot", str(slot)]


class EventFile:
    """The event log where the configuration names one of its own; it is opened anew at SIGUSR1."""

    def __init__(self, path: str, format: str) -> None:
        self._path = path
        self._stream = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - for life
        self.observer = EventLines(self._write, format)

    @classmethod
    def open(cls, events: EventLog) -> EventFile | None:
        """None for twistd's own log; `ConfigurationError` when the file cannot be written."""
        if events.file == "-":
            return None
        try:
            return cls(events.file, events.format)
        except OSError as e:
            raise ConfigurationError([Problem("logs.events.file", f"{events.file} cannot be written: {e.strerror}")]) from None

    def _write(self, text: str) -> None:
        self._stream.write(text)

    def reopen(self) -> None:
        try:
            fresh = open(self._path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - for life
        except OSError as e:
            log.error("the event log {path} cannot be opened again, the old file is written on: {why}", path=self._path, why=e.strerror)
            return
        self._stream.close()
        self._stream = fresh


def reopen_twistds_log(file: BaseLogFile) -> None:
    """Write on where the name leads now. twistd's own answer to SIGUSR1 does nothing once logrotate has moved the file away."""
    try:
        os.close(os.open(file.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640))
    except OSError as e:
        log.error("the log {path} cannot be opened again, the old file is written on: {why}", path=file.path, why=e.strerror)
        return
    file.reopen()


class Root(MultiService):
    """What twistd starts and stops: supervisor and admin, the journal's thread, signals, and the order in which all ends."""

    supervisor: Supervisor
    journal: Journal
    admin: Any
    board: Scoreboard
    allocator: RowAllocator
    events: EventFile | None = None
    twistd: Any = None
    """Its options."""

    def __init__(self, reactor: Any, prepared: Prepared, demo: _Demo | None, wire: socket.socket | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        self.prepared = prepared
        self._wire = wire
        self.succession = Succession(reactor, self, Origin(), prepared.passed)
        self.is_demo = demo is not None
        self._demo = demo
        self._thread = ThreadPool(0, 1, "journal")
        self._is_stopping = False
        self._was_told = False
        """Somebody asked us to stop."""
        self.notifier = Notifier(os.environ)
        self._watchdog = LoopingCall(self.notifier.alive)
        self._watchdog.clock = reactor

    def in_journal_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        """A thread of its own: the reactor's pool may be full of waiting look-ups."""
        return deferToThreadPool(self._reactor, self._thread, work)

    def startService(self) -> None:
        heir = self.succession.heir
        if heir is None:
            self.prepared.state.claim()
        self._thread.start()
        self._choose_log()
        super().startService()  # type: ignore[no-untyped-call]
        model = self.prepared.model
        if self.prepared.admin is not None:
            where = str(model.admin.listen)
            if not where.startswith("unix:"):
                where = f"http://{where.rpartition(':')[0]}:{self.prepared.admin.getsockname()[1]}/"
            log.info("admin: {where}, token in {file}", where=where, file=self.admin.token_file)
        log.info("admin: {socket} for this user", socket=self.prepared.state.file("admin.sock"))
        self._reactor.callWhenRunning(self._install_signals)
        if heir is not None and self._wire is not None:
            heir.wire.attach(self._reactor, self._wire)
            self._when_ready(heir.ready)
        else:
            self._when_ready(self.tell_service_manager)
        if self._demo is not None:
            demo = self._demo
            self._when_ready(lambda: demo.tell(self.admin.token_file))

    def _when_ready(self, then: Callable[[], None]) -> None:
        def look(_: Event) -> None:
            if self.supervisor.hand_over.is_ready if self.succession.is_waiting else self.supervisor.is_ready:
                leave()
                then()

        leave = self.supervisor.subscribe(look)

    def tell_service_manager(self) -> None:
        self.notifier.ready("serving")
        if self.notifier.watchdog_s is not None:
            self._watchdog.start(self.notifier.watchdog_s)

    def stopService(self) -> Deferred[None]:
        self._is_stopping = True
        if not self.succession.is_waiting:
            self.notifier.stopping()
        stopped: Deferred[Any] = super().stopService()  # type: ignore[no-untyped-call]
        handed = Deferred.fromCoroutine(self._hand_over())
        handed.addErrback(lambda failure: log.failure("a new instance can start only when this one has ended", failure))
        return gatherResults([stopped, handed, self.succession.elder_left]).addBoth(self._ended)

    async def _hand_over(self) -> None:
        """While our workers finish what is open, a new instance may have all else: ports, state directory and pid file."""
        await self.admin.closed
        if not self.succession.is_over:  # else the last one is through, and no other begins
            await self.supervisor.operations.quiet()
        self.journal.close()
        self.prepared.close()
        self._give_up_pid_file()
        self.prepared.state.hand_over()
        if not self.succession.is_over and not self.succession.is_waiting:
            log.info("a new instance can be started now, this one only finishes what is open")

    def _give_up_pid_file(self) -> None:
        """twistd refuses to start over the file of a living process, and would remove our successor's when we end."""
        path = self.twistd["pidfile"] if self.twistd is not None else None
        if not path:
            return
        self.twistd["pidfile"] = ""
        try:
            with open(path, encoding="ascii") as file:
                is_ours = file.read().strip() == str(os.getpid())
            if is_ours:
                os.unlink(path)
        except (OSError, ValueError) as e:
            log.warn("the pid file {path} stays: {why}", path=path, why=str(e))

    def _ended(self, result: Any) -> Any:
        if self._watchdog.running:
            self._watchdog.stop()
        self._thread.stop()
        self.journal.close()
        if self.events is not None:
            globalLogPublisher.removeObserver(self.events.observer)
        self.prepared.abandon()
        if self._demo is not None:
            self._demo.remove()
        return result

    def _choose_log(self) -> None:
        events = self.prepared.model.logs.events
        if self.events is not None:
            globalLogPublisher.addObserver(self.events.observer)
        else:
            # twistd made its observer from its own options; only how it writes an event is ours to choose.
            for observer in globalLogPublisher._observers:
                if isinstance(observer, FileLogObserver):
                    observer.formatEvent = json_line if events.format == "json" else text_line

    def _install_signals(self) -> None:
        """Only now: `reactor.run` has put its own handlers in place by the time it is running."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._reactor.callFromThread(self.stop))
        signal.signal(signal.SIGUSR2, lambda *_: self._reactor.callFromThread(self.upgrade))
        signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(self.reopen_logs))
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))

    def stop(self) -> None:
        """Asked to stop: gracefully the first time, at once the second."""
        if self._was_told:
            self.succession.cut()
            return
        self._was_told = True
        if self._is_stopping:
            log.info("this process finishes what is open already; asked once more it ends at once")
        self._end()

    def leave(self) -> None:
        """A successor serves: finish what is open and end. Who asks us to stop then asks for the first time."""
        if self._watchdog.running:
            self._watchdog.stop()
        self._reactor.callLater(0, self._end)

    def _end(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._reactor.stop()

    def upgrade(self) -> None:
        """SIGUSR2; who sends it reads the answer in the log and in the status."""
        try:
            self.supervisor.upgrade.start("SIGUSR2")
        except ChangeRefused as e:
            log.warn("SIGUSR2: no upgrade now: {why}", why=e.message)

    def reopen_logs(self) -> None:
        for observer in globalLogPublisher._observers:
            file = getattr(observer, "_outFile", None)
            if isinstance(file, BaseLogFile):
                reopen_twistds_log(file)
        if self.events is not None:
            self.events.reopen()
        self.supervisor.reopen_logs()
        log.info("logs are open anew")

    def reload(self) -> None:
        """SIGHUP; who sends it reads the answer in the log."""

        def tell(applied: Applied) -> None:
            log.info(
                "reload: revision {revision} is in force in {acked} of {total} workers; {notes}",
                revision=applied.revision, acked=applied.acked, total=applied.total, notes="; ".join(applied.notes) or "nothing to note",
            )  # fmt: skip

        def told(failure: Failure) -> None:
            if failure.check(ConfigurationError):
                return  # each problem is in the log already
            log.error("reload refused, nothing was changed: {why}", why=failure.getErrorMessage())

        self.notifier.reloading()
        reloaded = Deferred.fromCoroutine(self.supervisor.reload(Terms("SIGHUP"))).addCallbacks(tell, told)
        reloaded.addCallback(lambda _: self.notifier.ready("serving"))


class _Demo:
    """``--demo``: a state directory that goes away again, a configuration in it, and servers to pass requests to."""

    def __init__(self, reactor: Any) -> None:
        self._directory = tempfile.mkdtemp(prefix="revproxy-demo-")
        self._state = os.path.join(self._directory, "state")
        self.file = os.path.join(self._directory, "revproxy.toml")
        with open(self.file, "w", encoding="utf-8") as f:
            f.write(demo_config(self._state))
        self._backends = DemoBackends(reactor)
        try:
            self._backends.start()
        except CannotListenError as e:
            self.remove()
            raise ConfigurationError([Problem("", f"the demo's servers cannot listen: {e}")]) from None

    def tell(self, token_file: str) -> None:
        with open(token_file, encoding="utf-8") as f:
            # twistd turns what is printed into log lines; this is for eyes and for copying.
            print(demo_text(f.read().strip(), self._state), file=sys.__stdout__, flush=True)

    def remove(self) -> None:
        self._backends.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
