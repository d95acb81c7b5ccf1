"""The event stream: what happens in the proxy, as server-sent events, to readers who may be slow.

Each second's statistics are completed with the figures an operator looks at (`live`); the last five minutes of them come first,
so that whoever begins to look sees what just happened.
A reader that keeps up gets everything. For one that does not, statistics are left out (the next second brings new ones) and
at most `MAX_WAITING` other events are kept; then its connection is closed, and it sees what it missed by asking again.
"""

# mypy: disable-error-code="no-untyped-call"
# (most of twisted.web has no annotations)

from __future__ import annotations

import json
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from zope.interface import implementer

from twistedproxy.admin import live
from twistedproxy.admin.problems import Refuse
from twistedproxy.admin.site import AdminRequest
from twistedproxy.config.control import Control, Event

HEARTBEAT_S = 15.0
MAX_WAITING = 256
MAX_STREAMS = 32
RECENT_ROWS = 300
"""How many seconds back a new reader is told."""


def frame(event: Event) -> bytes:
    """One event on the wire; a change carries its revision as id."""
    lines = [f"event: {event.kind}"]
    if event.kind == "change" and "revision" in event.data:
        lines.append(f"id: {event.data['revision']}")
    lines.append("data: " + json.dumps(event.data, separators=(",", ":")))
    return "\n".join(lines).encode() + b"\n\n"


@implementer(IPushProducer)
class EventStream:
    """One reader."""

    def __init__(self, reactor: Any, request: AdminRequest, recent: Event) -> None:
        self._reactor = reactor
        self._request = request
        self._is_paused = False
        self._waiting: deque[bytes] = deque()
        request.registerProducer(self, True)
        request.write(b"retry: 2000\n\n" + frame(recent))
        self._heartbeat: IDelayedCall = reactor.callLater(HEARTBEAT_S, self._beat)

    def happened(self, event: Event, framed: bytes) -> None:
        if not self._is_paused:
            self._request.write(framed)
        elif event.kind == "stats":
            pass  # stale by the time it could be read
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(framed)
        else:
            self._request.channel.abort()

    def _beat(self) -> None:
        self._heartbeat = self._reactor.callLater(HEARTBEAT_S, self._beat)
        if not self._is_paused:
            self._request.write(b": still here\n\n")

    def stop(self) -> None:
        """No more events; the request is the caller's to finish."""
        self._heartbeat.cancel()
        self._waiting.clear()

    # Called by the transport

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        while self._waiting and not self._is_paused:
            self._request.write(self._waiting.popleft())

    def stopProducing(self) -> None:
        self._is_paused = True


class EventStreams:
    """All readers of one service, and what the next one is told of the minutes before."""

    def __init__(self, reactor: Any, control: Control) -> None:
        self._reactor = reactor
        self._control = control
        self._open: dict[EventStream, Deferred[None]] = {}
        self._recent: deque[list[Any]] = deque(maxlen=RECENT_ROWS)
        self._unsubscribe = control.subscribe(self._happened)

    def _happened(self, event: Event) -> None:
        if event.kind == "stats":
            event = Event("stats", {**event.data, **live.figures(self._control.snapshot(), self._control.statistics())})
            self._recent.append(live.row(event.data))
        if self._open:
            framed = frame(event)
            for stream in tuple(self._open):
                stream.happened(event, framed)

    def open(self, request: AdminRequest) -> Deferred[None]:
        """Stream until the reader leaves or `close_all`; the Deferred fires at the end."""
        if len(self._open) >= MAX_STREAMS:
            raise Refuse(503, f"There are {MAX_STREAMS} event streams open already; close one.", headers={"Retry-After": "5"})
        recent = Event("recent", {"bounds": live.BOUNDS_S, "columns": live.COLUMNS, "rows": [*self._recent]})
        stream = EventStream(self._reactor, request, recent)
        ended: Deferred[None] = Deferred(lambda _: self._forget(stream))
        self._open[stream] = ended
        return ended

    def _forget(self, stream: EventStream) -> None:
        if self._open.pop(stream, None) is not None:
            stream.stop()

    def close_all(self) -> None:
        self._unsubscribe()
        for stream, ended in list(self._open.items()):
            self._forget(stream)
            stream._request.unregisterProducer()
            ended.callback(None)
