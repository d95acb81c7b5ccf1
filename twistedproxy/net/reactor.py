"""The event loop of a worker: Twisted's epoll reactor with the cost per event cut down.

How it works
    `doPoll` calls `doRead` or `doWrite` straight away for the two common events; Twisted's own wraps each in a logging context,
    which costs more than a small read. It polls again and again until a timed call is due or somebody asked for a turn of the
    reactor (`callLater`, `callFromThread`, `stop`), since a whole turn costs as much as two events. What only has to wait until
    the present events are through (`soon`) needs no turn either.

    A connection that is paused in both directions stays in epoll with an empty mask (Twisted takes it out): the kernel then
    still tells when the peer resets it. Selectables ask for this by `stays_watched = True` and a method `hung_up(event)`.

    An exception from a selectable is logged (at most one report a second, the rest counted) and costs that connection only.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import epollreactor
from twisted.internet.main import installReactor
from twisted.logger import Logger
from twisted.python import log

from twistedproxy.net.sparse import SparseLog

IN = select.EPOLLIN
OUT = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
MAX_EVENTS = 256
"""Taken from the kernel at once."""
LONGEST_POLL_S = 60.0


class ProxyReactor(epollreactor.EPollReactor):
    """EPollReactor with a lean `doPoll`, on the monotonic clock, which keeps an eye on paused connections."""

    seconds: Callable[[], float] = staticmethod(time.monotonic)  # Twisted's default is the wall clock

    def __init__(self) -> None:
        self._parked: set[int] = set()
        """Descriptors in epoll with neither IN nor OUT asked for."""
        self._soon: list[tuple[Callable[[Any], None], Any]] = []
        self._heir: Any = None
        """It was given a descriptor that epoll is still watching for input, and has not yet said what it wants."""
        self._fresh: set[int] = set()
        """Descriptors put into epoll since the last poll: an event in hand for one of these was meant for its former owner."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._crash_log = SparseLog(Logger(namespace="twistedproxy.net.reactor"), self.seconds, every_s=1.0)

    def doPoll(self, timeout: float | None) -> None:
        selectables = self._selectables
        poll = self._poller.poll
        timed_calls = self._pendingTimedCalls
        seconds = self.seconds
        soon = self._soon
        fresh = self._fresh
        wait = -1.0 if timeout is None else timeout
        while True:
            events = poll(0 if soon else wait, MAX_EVENTS)
            if fresh:
                fresh.clear()
            for fd, event in events:
                if fresh and fd in fresh:
                    continue
                selectable = selectables.get(fd)
                if selectable is None:
                    continue
                try:
                    if event == IN:
                        why = selectable.doRead()
                    elif event == OUT:
                        why = selectable.doWrite()
                    else:
                        self._do_rare(selectable, fd, event)
                        continue
                except BaseException as e:
                    self._crash_log.failure("{what} failed and was disconnected", what=selectable)
                    why = e
                if why:
                    self._disconnect(selectable, why, event == IN)
            if soon:
                self._do_soon()
            if self._newTimedCalls or self.threadCallQueue or self._justStopped or not self._started:
                return
            # `_pendingTimedCalls` is replaced now and then, but only in a turn of the reactor, that is after we returned
            if timed_calls:
                wait = timed_calls[0].time - seconds()
                if wait <= 0:
                    return
                if wait > LONGEST_POLL_S:  # noqa: PLR1730  (min() costs a call)
                    wait = LONGEST_POLL_S
            else:
                wait = LONGEST_POLL_S

    doIteration = doPoll

    def _do_rare(self, selectable: Any, fd: int, event: int) -> None:
        """Both directions at once, or a hang-up or error."""
        why = None
        is_read = False
        try:
            if not event & HANGUP:
                why = selectable.doRead()
                is_read = True
                if not why and fd in self._writes and selectable.fileno() == fd:
                    why = selectable.doWrite()
                    is_read = False
            elif getattr(selectable, "stays_watched", False):
                # The socket calls tell the truth about a hang-up: what is left to read, then EOF or the error.
                if fd in self._reads:
                    why = selectable.doRead()
                    is_read = True
                elif fd in self._writes:
                    why = selectable.doWrite()
                else:
                    selectable.hung_up(event)
            else:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, fd, event)
        except BaseException as e:
            self._crash_log.failure("{what} failed and was disconnected", what=selectable)
            why = e
        if why:
            self._disconnect(selectable, why, is_read)

    def _disconnect(self, selectable: Any, why: BaseException | int, is_read: bool) -> None:
        try:
            self._disconnectSelectable(selectable, why, is_read)  # type: ignore[no-untyped-call]
        except BaseException:
            self._crash_log.failure("{what} failed while it was disconnected", what=selectable)
        if isinstance(why, (KeyboardInterrupt, SystemExit)):
            raise why.with_traceback(sys.exc_info()[2])

    def soon(self, call: Callable[[Any], None], argument: Any) -> None:
        """Like ``callLater(0, call, argument)`` at a tenth of the price; cannot be cancelled. Runs after the events in hand."""
        self._soon.append((call, argument))

    def _do_soon(self) -> None:
        calls = self._soon[:]
        self._soon.clear()
        for call, argument in calls:
            try:
                call(argument)
            except Exception:
                self._crash_log.failure("{what} failed", what=call)

    # Paused connections

    def watch(self, selectable: Any, mask: int) -> None:
        """Watch a selectable that neither reads nor writes for `mask` (``EPOLLRDHUP`` or 0) besides resets, which are always told."""
        fd = selectable.fileno()
        if fd in self._parked:
            self._heir = None
            self._poller.modify(fd, mask)
        elif fd not in self._selectables:
            self._poller.register(fd, mask)
            self._fresh.add(fd)
            self._parked.add(fd)
            self._selectables[fd] = selectable

    def hand_over(self, old: Any, new: Any) -> None:
        """`new` takes the place of `old` on the same descriptor; after `settle` it is watched for what it asked for meanwhile."""
        fd = old.fileno()
        self._heir = new if fd in self._reads and fd not in self._writes else None
        self._selectables[fd] = new
        self._reads.discard(fd)
        self._writes.discard(fd)
        self._parked.add(fd)

    def settle(self, fd: int) -> None:
        """The end of a `hand_over`: if the new owner asked for nothing, neither shall epoll."""
        self._heir = None
        if fd in self._parked:
            self._poller.modify(fd, 0)

    def forget(self, selectable: Any, is_closing: bool = False) -> None:
        """Take it out of epoll altogether, whatever it was waiting for; when it closes its descriptor now, the kernel does that."""
        fd = selectable.fileno()
        if self._selectables.get(fd) is selectable:
            del self._selectables[fd]
            self._reads.discard(fd)
            self._writes.discard(fd)
            self._parked.discard(fd)
            if not is_closing:
                self._poller.unregister(fd)

    def _add(self, xer: Any, primary: set[int], other: set[int], selectables: dict[int, Any], event: int, antievent: int) -> None:
        fd = xer.fileno()
        if fd in self._parked:
            if xer is not self._heir or event != IN:
                self._poller.modify(fd, event)
            self._heir = None
            self._parked.remove(fd)
            primary.add(fd)
        elif fd not in primary:
            if fd in other:
                self._poller.modify(fd, event | antievent)
            else:
                self._poller.register(fd, event)
                self._fresh.add(fd)
                selectables[fd] = xer
            primary.add(fd)

    def _remove(self, xer: Any, primary: set[int], other: set[int], selectables: dict[int, Any], event: int, antievent: int) -> None:
        fd = xer.fileno()
        if fd in primary and fd not in other and getattr(xer, "stays_watched", False):
            self._poller.modify(fd, 0)
            primary.remove(fd)
            self._parked.add(fd)
        else:
            super()._remove(xer, primary, other, selectables, event, antievent)  # type: ignore[no-untyped-call]

    def compact(self) -> None:
        """After a peak of connections: tables never grow smaller by themselves. Call it from a timed call, not from an event."""
        tables: tuple[Any, ...] = (self._selectables, self._reads, self._writes, self._parked)
        for table in tables:
            kept = table.copy()
            table.clear()
            table.update(kept)

    def removeAll(self) -> list[Any]:
        parked = [self._selectables[fd] for fd in self._parked]
        removed: list[Any] = super().removeAll()  # type: ignore[no-untyped-call]
        for selectable in {*parked, *(self._selectables[fd] for fd in self._parked)}:
            self.forget(selectable)
        return [*removed, *parked]


def install() -> ProxyReactor:
    """Make a `ProxyReactor` the global reactor; before anything imports `twisted.internet.reactor`."""
    reactor = ProxyReactor()
    installReactor(reactor)
    return reactor
