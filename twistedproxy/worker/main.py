"""Where a worker process begins, started by the supervisor and by nobody else.

``python -m twistedproxy.worker.main --nursery`` is the process that workers are forked off (`nursery.py`); with ``--slot N`` it is
one worker by itself, which is how they start while there is no nursery.

A worker has the control channel as descriptor 3 and the scoreboard as 4; events go to standard error as JSON lines. Signals
that people send to whole process groups are ignored: the supervisor decides what they mean.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import os
import socket
import stat
import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger, LogLevel, globalLogBeginner

from twistedproxy.ipc.scoreboard import Scoreboard, ScoreboardMismatch
from twistedproxy.net.reactor import install
from twistedproxy.observability.events import EventLines
from twistedproxy.worker import nursery

CHANNEL_FD = 3
SCOREBOARD_FD = 4
GENERATION_0 = 50_000
"""Allocations between collections: requests leave no cycles behind, so the collector has little to find (design.md 7.7)."""
EXIT_GRACE_S = 0.2
"""For the last words to reach the supervisor."""

_log = Logger(namespace="worker")


class Stderr:
    """Standard error that never makes the data plane wait: what the pipe does not take is dropped and counted."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._dropped = 0
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.set_blocking(fd, False)

    def write(self, line: str) -> None:
        try:
            if self._dropped:
                os.write(self._fd, b"%d events were dropped: the supervisor does not read\n" % self._dropped)
                self._dropped = 0
            os.write(self._fd, line.encode("utf-8", "backslashreplace"))
        except BlockingIOError:
            self._dropped += 1


class _One(ServerFactory):
    noisy = False

    def __init__(self, link: Any) -> None:
        self._link = link

    def buildProtocol(self, addr: Any) -> Any:
        return self._link


def settle() -> None:
    """Everything that lives for ever is there: keep the collector from looking at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GENERATION_0, 50, 100)


def _open_board(slot: int) -> Any:
    try:
        os.fstat(SCOREBOARD_FD)
    except OSError:
        return None  # started without one: this worker counts for itself
    try:
        return Scoreboard.attach(SCOREBOARD_FD).board(slot)
    except (ScoreboardMismatch, ValueError) as e:
        raise SystemExit(f"twistedproxy worker {slot}: {e}; start supervisor and workers from the same installation") from None


def main(arguments: Sequence[str] | None = None) -> None:
    nursery.ignore_signals()
    parser = argparse.ArgumentParser(prog="twistedproxy.worker.main", description="A worker; only `twistd revproxy` starts it.")
    parser.add_argument("--slot", type=int)
    parser.add_argument("--nursery", action="store_true")
    given = parser.parse_args(arguments)
    if given.slot is None and not given.nursery:
        parser.error("one of --slot and --nursery is needed")
    try:
        is_socket = stat.S_ISSOCK(os.fstat(CHANNEL_FD).st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        parser.error(f"descriptor {CHANNEL_FD} is not a control channel: workers are started by `twistd revproxy`")
    if given.nursery:
        import_all()
        # Moved away, so that each child finds its own channel at the usual place.
        control = socket.socket(fileno=fcntl.fcntl(CHANNEL_FD, fcntl.F_DUPFD_CLOEXEC, SCOREBOARD_FD + 1))
        nursery.serve(control, run, CHANNEL_FD)
    else:
        run(given.slot)


def import_all() -> None:
    """What a worker needs, before there is a reactor: none of these modules may import the global one."""
    import twistedproxy.worker.link  # noqa: F401, PLC0415

    if "twisted.internet.reactor" in sys.modules:
        raise SystemExit("a module of the data path imports twisted.internet.reactor")


def run(slot: int) -> None:
    """The life of the worker of `slot`."""
    board = _open_board(slot)
    globalLogBeginner.beginLoggingTo([EventLines(Stderr().write, "json", LogLevel.info)], redirectStandardIO=False)
    reactor: Any = install()
    # Only now, since a module that imports the global reactor would install Twisted's own.
    from twistedproxy.http.head import CODEC  # noqa: PLC0415
    from twistedproxy.worker.link import SupervisorLink  # noqa: PLC0415
    from twistedproxy.worker.service import Worker  # noqa: PLC0415

    def finished() -> None:
        reactor.callLater(EXIT_GRACE_S, reactor.stop)

    link = SupervisorLink(lambda reports: Worker(reactor, reports, board=board, finished=finished), CODEC, settle)

    def begin() -> None:
        reactor.adoptStreamConnection(CHANNEL_FD, socket.AF_UNIX, _One(link))
        os.close(CHANNEL_FD)

    reactor.callWhenRunning(begin)
    reactor.run(installSignalHandlers=False)
    sys.stderr.flush()


if __name__ == "__main__":
    main()
