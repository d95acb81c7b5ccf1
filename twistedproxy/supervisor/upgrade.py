"""Upgrade in place, seen from the old supervisor: start the successor, hand over to it, or go on as if nothing had been.

How it works
    STARTING       the successor is spawned with copies of our sockets (`estate`), loads the new code and the configuration file, and
                   starts its workers, which accept nothing yet
    READY          its workers are there: our changes stop (503), our journal is closed, it reads the journal to its end
    HANDED_OVER    it writes the pid file, its workers and its admin side accept; ours still do, on the same sockets
    DRAINING       the service manager knows it; our workers finish what they have, and then we leave
    FAILED         it said no, crashed or was too slow before it served: it is killed, and we go on with everything

    Until the successor says that it serves nothing here has ended, so that each failure before it costs nobody a connection. From then
    on it is the successor's `heir.Heir` that tells how many connections we still have; after DRAINING comes DONE there.
"""

from __future__ import annotations

import enum
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy import __version__
from twistedproxy.errors import ChangeRefused, one_line
from twistedproxy.observability.events import publish_line
from twistedproxy.supervisor.estate import VARIABLE, Estate, Wire
from twistedproxy.supervisor.journal import rfc3339
from twistedproxy.supervisor.processes import null_device

READY_S = 60.0
"""From spawn to READY: new code is read from disk, workers start."""
HAND_OVER_S = 15.0
"""From READY to DRAINING."""
FIRST_FD = 4
"""In the successor: 0 to 2 as usual, 3 the wire."""


class State(enum.Enum):
    NONE = "none"
    STARTING = "starting"
    READY = "ready"
    HANDED_OVER = "handed over"
    DRAINING = "draining"
    DONE = "done"
    FAILED = "failed"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.NONE: frozenset({State.STARTING, State.DRAINING}),
    State.STARTING: frozenset({State.READY, State.FAILED}),
    State.READY: frozenset({State.HANDED_OVER, State.FAILED}),
    State.HANDED_OVER: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.STARTING, State.DONE}),
    State.DONE: frozenset({State.STARTING}),
    State.FAILED: frozenset({State.STARTING}),
}
UNDER_WAY = frozenset({State.STARTING, State.READY, State.HANDED_OVER})


@dataclass(frozen=True, slots=True)
class Launch:
    """How the successor is started, and with what."""

    command: list[str]
    environment: Mapping[str, str]
    directory: str | None
    estate: Estate


class Plane(Protocol):
    """What is handed over: the supervisor."""

    @property
    def is_stopping(self) -> bool: ...

    def foresee(self, is_expected: bool) -> None:
        """A successor is starting: the file is not read again until it serves or has failed."""
        ...

    async def freeze(self) -> None:
        """Take no more changes, wait for the one in work, close the journal."""
        ...

    def thaw(self) -> None:
        """Go on as before `freeze`."""
        ...

    def legacy(self) -> dict[str, Any]:
        """What is known of the moment, for who takes over."""
        ...

    def publish(self, kind: str, data: Mapping[str, Any]) -> None: ...


class Upgrade:
    """The latest upgrade that this supervisor began, or the one that it came from.

    `launch` says how to start a successor (`ChangeRefused`: why there can be none); `leave` is called with the successor's process id
    once it serves; `resume` when it failed after it may have written pid file and lock; `cut` when what we still hold shall end at once.
    """

    log = Logger()
    questions = frozenset({"upgrade", "start_upgrade"})

    def __init__(self, reactor: Any, plane: Plane, wall: Callable[[], float]) -> None:
        self._reactor = reactor
        self._plane = plane
        self._wall = wall
        self.launch: Callable[[], Launch] = _cannot
        self.leave: Callable[[int], None] = lambda pid: None
        self.resume: Callable[[], None] = lambda: None
        self.cut: Callable[[], None] = lambda: None
        self.state = State.NONE
        self._facts: dict[str, Any] = {}
        self._successor: _Successor | None = None
        self._wire: Wire | None = None
        self._limit: Any = None
        self._patience: Any = None
        self._is_freezing = False
        self._is_frozen = False

    # What operators ask

    async def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what == "start_upgrade":
            self.start(str(arguments.get("by", "")), str(arguments.get("reason", "")))
        return self.shown()

    def shown(self) -> dict[str, Any]:
        return {"state": self.state.value, **self._facts}

    @property
    def latest(self) -> dict[str, Any] | None:
        """For the status; None when there was none."""
        return None if self.state is State.NONE else self.shown()

    @property
    def is_under_way(self) -> bool:
        return self.state in UNDER_WAY

    def _move(self, state: State, /, **facts: Any) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"an upgrade that is {self.state.value} cannot become {state.value}")
        self.state = state
        self._facts.update(facts)
        self._plane.publish("upgrade", self.shown())

    def came_from(self, version: str, pid: int, began: Mapping[str, Any]) -> None:
        """We are the new version; `began` says who wanted it and when."""
        self._facts = {
            "started_at": str(began.get("started_at", rfc3339(self._wall()))), "by": str(began.get("by", "")), "from": version,
            "to": __version__, "pid": os.getpid(), "old_pid": pid, "connections": int(began.get("connections", 0)), "reason": "",
        }  # fmt: skip
        self._move(State.DRAINING)

    def elder_has(self, connections: int, is_over: bool) -> None:
        """How the supervisor before this one is; of no interest once the next upgrade has begun."""
        if self.state is State.DRAINING and self._successor is None:
            self._facts["connections"] = connections
            if is_over:
                self._move(State.DONE)

    # Life

    def start(self, by: str, reason: str = "") -> None:
        """`ChangeRefused` when there can be no upgrade now."""
        if self.is_under_way:
            raise ChangeRefused(409, f"an upgrade is under way already ({self.state.value}); wait until it is done or has failed")
        if self.state is State.DRAINING and self._successor is not None:
            raise ChangeRefused(503, "a new version has taken over, ask that one", retry_after_s=1)
        if self._is_freezing:
            raise ChangeRefused(409, "the upgrade before is not cleared away yet; try again in some seconds")
        if self._plane.is_stopping:
            raise ChangeRefused(503, "the proxy is stopping")
        launch = self.launch()
        self._facts = {
            "started_at": rfc3339(self._wall()), "by": by, "from": __version__, "to": "", "pid": 0, "old_pid": os.getpid(),
            "connections": 0, "reason": "",
        }  # fmt: skip
        self._move(State.STARTING)
        self.log.info("a new version is started, by {by} {reason}", by=by, reason=f"({reason})" if reason else "")
        self._plane.foresee(True)
        self._limit = self._reactor.callLater(READY_S, self._fail, f"it was not ready within {READY_S:g} s")
        try:
            self._spawn(launch)
        except OSError as e:
            self._fail(f"it cannot be started: {e.strerror or e}")

    def _spawn(self, launch: Launch) -> None:
        numbers = {fd: number for number, fd in enumerate(dict.fromkeys(launch.estate.descriptors), FIRST_FD)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        null = null_device()
        files: dict[int, Any] = {0: null, 1: 1, 2: "r", 3: theirs.fileno()} | {number: fd for fd, number in numbers.items()}
        self._successor = _Successor(self._ended)
        wire = self._wire = Wire(self._heard, lambda: self._lost(wire))
        wire.attach(self._reactor, ours)
        try:
            process = self._reactor.spawnProcess(
                self._successor, launch.command[0], launch.command, env={**launch.environment, VARIABLE: "3"}, path=launch.directory,
                childFDs=files,
            )  # fmt: skip
        finally:
            theirs.close()
            os.close(null)
        self._facts["pid"] = process.pid
        wire.say(launch.estate.renumbered(numbers).to_plain())

    def _heard(self, word: Mapping[str, Any]) -> None:
        if "failed" in word and self.is_under_way:
            self._fail(one_line(str(word["failed"])))
        elif "ready" in word and self.state is State.STARTING:
            self._move(State.READY, to=str(word["ready"]))
            self.log.info("version {to} (pid {pid}) is ready; changes wait for a moment", **self._facts)
            self._hurry()
            Deferred.fromCoroutine(self._hand_over()).addErrback(self._broke)
        elif "caught_up" in word and self.state is State.READY:
            self._move(State.HANDED_OVER)
            self._say({"yours": True})
        elif "serving" in word and self.state is State.HANDED_OVER:
            self._left()
        elif "cut" in word and self.state is State.DRAINING:
            self.log.warn("the new version was asked to stop at once")
            self.cut()

    def _hurry(self) -> None:
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._limit = self._reactor.callLater(HAND_OVER_S, self._fail, f"it did not take over within {HAND_OVER_S:g} s")

    async def _hand_over(self) -> None:
        self._is_freezing = True
        await self._plane.freeze()
        self._is_freezing, self._is_frozen = False, True
        if self.state is State.READY:
            legacy = self._plane.legacy()
            self._say({"take_over": legacy | {"upgrade": self._facts | {"connections": legacy["connections"]}}})
        else:
            self._thaw()  # it failed while we waited

    def _broke(self, failure: Failure) -> None:
        self.log.failure("the hand-over failed", failure)
        self._fail(failure.getErrorMessage())

    def _left(self) -> None:
        self._stop_limit()
        self._move(State.DRAINING)
        self.log.info("version {to} (pid {pid}) serves; this process finishes what is open and leaves", **self._facts)
        self.leave(self._facts["pid"])
        self._say({"main": True})

    def tell(self, connections: int, statistics: Callable[[], Mapping[str, Any]]) -> None:
        """Each second; while draining the successor is told, to show it. One that hangs is told when it reads again: totals can wait."""
        if self.state is State.DRAINING and self._successor is not None:
            self._facts["connections"] = connections
            if self._wire is not None and not self._wire.is_behind:
                self._say({"draining": connections, "statistics": statistics()})

    def _say(self, word: Mapping[str, Any]) -> None:
        if self._wire is not None:
            self._wire.say(word)

    # When it does not work

    def _lost(self, wire: Wire) -> None:
        if wire is not self._wire:
            return  # that of an upgrade before this one
        self._wire = None
        if self.is_under_way and self._successor is not None:
            # Its last words are on their way; if it only closed the wire, it is no successor any more.
            self._patience = self._reactor.callLater(1.0, self._fail, "it closed the wire")

    def _ended(self, successor: _Successor, how: str) -> None:
        if successor is not self._successor:
            return
        if self.is_under_way:
            self._fail(f"{how}{': ' if successor.last_words else ''}{successor.last_words}")
        elif self.state is State.DRAINING:
            self._successor = None
            self.log.critical(
                "the new version (pid {pid}) ended ({how}) while this one finishes; nobody accepts: start the proxy again",
                pid=self._facts["pid"], how=how,
            )  # fmt: skip

    def stop(self) -> None:
        """We are told to stop while a successor starts: it goes too."""
        if self.is_under_way:
            self._fail("the proxy was told to stop")

    def _fail(self, why: str) -> None:
        self._stop_limit()
        has_taken = self.state is State.HANDED_OVER
        self._move(State.FAILED, reason=why)
        self.log.error("upgrade failed, nothing was changed; the new version (pid {pid}): {reason}", **self._facts)
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.kill()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        if has_taken:
            self.resume()
        self._plane.foresee(False)
        if self._is_frozen:
            self._thaw()

    def _thaw(self) -> None:
        self._is_frozen = False
        self._plane.thaw()

    def _stop_limit(self) -> None:
        for timer in (self._limit, self._patience):
            if timer is not None and timer.active():
                timer.cancel()
        self._limit = self._patience = None


class _Successor(ProcessProtocol):
    """The process, until it serves or is dead."""

    log = Logger()

    def __init__(self, ended: Callable[[_Successor, str], None]) -> None:
        self._ended = ended
        self._rest = b""
        self._last: deque[str] = deque(maxlen=5)

    @property
    def last_words(self) -> str:
        """The last line on its standard error: of a traceback the error."""
        return self._last[-1] if self._last else ""

    def errReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._publish(line)

    def _publish(self, line: bytes) -> None:
        text = one_line(line.decode("utf-8", "backslashreplace")).strip()[:500]
        if text:
            self._last.append(text)
            publish_line(line[:2000], "successor")

    def kill(self) -> None:
        if self.transport is not None:
            try:
                self.transport.signalProcess("KILL")
            except error.ProcessExitedAlready:
                pass  # what was wanted

    def processEnded(self, reason: Failure) -> None:
        if self._rest:
            self._publish(self._rest)
            self._rest = b""
        number, code = getattr(reason.value, "signal", None), getattr(reason.value, "exitCode", None)
        self._ended(self, f"it ended with signal {number}" if number else f"it ended with exit code {code or 0}")


def _cannot() -> Launch:
    raise ChangeRefused(409, "this supervisor cannot be upgraded in place")
