"""The admin API's HTTP server: Twisted's, made safe to stand in the open.

How it works
    Twisted reads a request's body before any of our code runs, without a cap, and its time-out starts anew with every byte.
    So `AdminChannel` asks the gate as soon as a head is complete. A refused request is answered there and then; what its client
    still sends is read and thrown away for a moment (closing at once would reset the connection under the answer), then
    the connection is closed. Bodies live in memory and end at `MAX_BODY`; nothing becomes a temporary file, no form is parsed.

    Each state of a connection has one absolute deadline (`DEADLINES_S`); bytes do not move it. A client that does not take its
    answer is dropped after `STALL_S` without progress. At `MAX_CONNECTIONS` accepting pauses, so that more clients wait in the
    kernel's queue, and every `MAKE_ROOM_S` those who only wait or dawdle over a head make room.
"""

# mypy: disable-error-code="no-untyped-call"
# (most of twisted.web has no annotations)

from __future__ import annotations

import enum
import os
from io import BytesIO
from typing import Any, Protocol

from twisted.internet import protocol, tcp, unix
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.logger import Logger
from twisted.protocols import basic
from twisted.python.failure import Failure
from twisted.web import http, server

from twistedproxy.admin.auth import Identity
from twistedproxy.admin.operations import Operation
from twistedproxy.admin.problems import CONTENT_TYPE, Refuse

MAX_BODY = 1024 * 1024
MAX_CONNECTIONS = 64
STALL_S = 30.0
MAKE_ROOM_S = 1.0
PATIENCE_WHEN_FULL_S = 2.0
"""How long a connection without a complete head may stay when others wait for its place."""
DISCARD_BYTES = 4 * 1024 * 1024
"""Read and thrown away after a refusal; more is left to the kernel until the deadline."""

HEADERS = (
    (b"Cache-Control", b"no-store"),
    (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
)
"""On every answer, unless the operation set its own."""

_log = Logger()
_LOST = Failure(ConnectionDone())


class State(enum.Enum):
    """Where a connection stands."""

    NEW = "new"
    IDLE = "idle"
    """Between two requests."""
    HEAD = "head"
    BODY = "body"
    ANSWERING = "answering"
    REFUSED = "refused"
    """The last answer is written; what comes in is thrown away."""
    CLOSING = "closing"
    GONE = "gone"


DEADLINES_S = {State.NEW: 10.0, State.IDLE: 60.0, State.HEAD: 10.0, State.BODY: 20.0, State.REFUSED: 2.0, State.CLOSING: 5.0}

TRANSITIONS = {
    State.NEW: {State.HEAD, State.CLOSING, State.GONE},
    State.IDLE: {State.HEAD, State.CLOSING, State.GONE},
    State.HEAD: {State.BODY, State.ANSWERING, State.REFUSED, State.CLOSING, State.GONE},
    State.BODY: {State.ANSWERING, State.REFUSED, State.CLOSING, State.GONE},
    State.ANSWERING: {State.IDLE, State.REFUSED, State.CLOSING, State.GONE},
    State.REFUSED: {State.GONE},
    State.CLOSING: {State.GONE},
    State.GONE: set(),
}


class Gate(Protocol):
    """Decides on a request when its head is complete."""

    def admit(self, request: AdminRequest, method: bytes, target: bytes, length: int | None) -> None:
        """Set `request.identity` and `request.operation`, or raise `Refuse`; `length` of the body, None: chunked."""
        ...


class AdminRequest(server.Request):
    """One request: who asks (`identity`), what for (`operation`), or why not (`refusal`)."""

    defaultContentType = None
    channel: Any  # an AdminChannel, gone when the answer is complete
    content: Any
    identity: Identity | None = None
    operation: Operation | None = None
    arguments: dict[str, Any]
    refusal: Refuse | None = None

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        if self.finished:
            return  # refused: more chunks came in the same piece, and there is no channel any more
        channel = self.channel
        if channel.state is not State.BODY:
            return
        if self.content.tell() + len(data) > MAX_BODY:
            channel.refuse_early(self, too_large())
        else:
            self.content.write(data)

    def getRequestHostname(self) -> bytes:
        """Klein asks; no route depends on it, and over the unix socket there may be none."""
        return b"admin"

    def process(self) -> None:
        if self.refusal is not None:
            self.answer_problem(self.refusal)
        else:
            super().process()

    def answer_problem(self, refusal: Refuse) -> None:
        """Write the whole answer."""
        body = refusal.body
        self.set_problem(refusal)
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def set_problem(self, refusal: Refuse) -> bytes:
        """Prepare status and headers; returns the body."""
        self.setResponseCode(refusal.status, refusal.phrase)
        self.setHeader(b"Content-Type", CONTENT_TYPE)
        for name, value in refusal.headers.items():
            self.setHeader(name, value)
        return refusal.body

    def processingFailed(self, reason: Failure) -> Failure:
        """Last resort, when even the error handler failed: the log gets the traceback, the client one sentence."""
        _log.failure("admin request failed", failure=reason)
        if not self.startedWriting:
            self.answer_problem(internal_error())
        elif not self.finished:
            self.channel.abort()
        return reason

    @property
    def unix_socket_peer(self) -> Any:
        """The socket itself, to ask the kernel who is at the other end."""
        return self.channel.transport.socket


class AdminChannel(http.HTTPChannel):
    """One connection."""

    site: AdminSite
    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self.state = State.NEW
        self.since = 0.0
        """When the state was entered, by the reactor's clock."""
        self._deadline: IDelayedCall | None = None
        self._stall: IDelayedCall | None = None
        self._discarded = 0

    def __repr__(self) -> str:
        return f"<AdminChannel {self.state.value}>"

    def _move(self, to: State) -> None:
        if to not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self!r} cannot become {to.value}")
        self.state = to
        self._arm()

    def _arm(self) -> None:
        self.since = self.site.reactor.seconds()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.state in DEADLINES_S:
            self._deadline = self.site.reactor.callLater(DEADLINES_S[self.state], self._deadline_passed)

    def _deadline_passed(self) -> None:
        self._deadline = None
        if self.state in (State.HEAD, State.BODY):
            self._refuse_raw(Refuse(408, "The request did not arrive in time."))
        else:
            self.abort()

    def abort(self) -> None:
        """Close now, whatever is unsent."""
        self.transport.abortConnection()

    # The life of a connection, as Twisted calls it

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.channels.add(self)
        self._arm()

    def connectionLost(self, reason: Failure = _LOST) -> None:
        self._move(State.GONE)
        self._end_stall()
        super().connectionLost(reason)
        self.site.channel_gone(self)

    def dataReceived(self, data: bytes) -> None:
        if self.state in (State.NEW, State.IDLE):
            self._move(State.HEAD)
        if self.state in (State.REFUSED, State.CLOSING):
            self._discard(data)
        else:
            # Not HTTPChannel's: that one grants more time with every byte.
            basic.LineReceiver.dataReceived(self, data)

    def lineReceived(self, line: bytes) -> None:
        if self.state is State.IDLE:
            self._move(State.HEAD)  # it came in one piece with the request before
        if self.state is State.HEAD:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        if self.state in (State.REFUSED, State.CLOSING):
            self._discard(data)
        else:
            super().rawDataReceived(data)

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > DISCARD_BYTES:
            self.transport.pauseProducing()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def allHeadersReceived(self) -> None:
        """The head is complete: decide before a byte of the body is read."""
        if self.state is not State.HEAD:
            return
        request: AdminRequest = self.requests[-1]
        self.persistent = self.checkPersistence(request, self._version) and not self.site.is_closing
        request.gotLength(self.length)
        request.clientproto = self._version
        request.method, request.uri = self._command, self._path
        expects_body = self.length != 0
        if expects_body:
            self._move(State.BODY)
        try:
            self.site.gate.admit(request, self._command, self._path, self.length)
            if self.length is not None and self.length > MAX_BODY:
                raise too_large()
        except Refuse as refusal:
            if expects_body:
                self.refuse_early(request, refusal)
            else:
                request.refusal = refusal
            return
        expect = request.requestHeaders.getRawHeaders(b"Expect", [b""])[0]
        if expects_body and expect.lower() == b"100-continue" and self._version == b"HTTP/1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def allContentReceived(self) -> None:
        if self.state in (State.HEAD, State.BODY):
            self._move(State.ANSWERING)
            super().allContentReceived()

    def refuse_early(self, request: AdminRequest, refusal: Refuse) -> None:
        """Answer a request whose body is not read, or not read to its end."""
        self.persistent = False
        self._move(State.REFUSED)
        request.setHeader(b"Connection", b"close")
        request.answer_problem(refusal)

    def requestDone(self, request: AdminRequest) -> None:
        self._end_stall()
        if self.persistent and self.state is State.ANSWERING:
            self._move(State.IDLE)
        super().requestDone(request)

    def loseConnection(self) -> None:
        producer: Any = self._networkProducer
        producer.unregisterProducer()
        if self.state is State.REFUSED:
            self.transport.loseWriteConnection()
        else:
            if self.state not in (State.CLOSING, State.GONE):
                self._move(State.CLOSING)
            self.transport.loseConnection()

    # A client that does not take its answer

    def pauseProducing(self) -> None:
        if self._stall is None:
            self._stall = self.site.reactor.callLater(STALL_S, self._stalled)
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self._end_stall()
        super().resumeProducing()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        self._stall = None
        self.abort()

    # What every answer carries

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        headers.removeHeader(b"Server")
        for name, value in HEADERS:
            if not headers.hasHeader(name):
                headers.setRawHeaders(name, [value])
        super().writeHeaders(version, code, reason, headers)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._refuse_raw(Refuse(400, "The request is not valid HTTP/1.1, or its head is over 16 KiB."))

    def _refuse_raw(self, refusal: Refuse) -> None:
        """Answer what never became a request."""
        if self.state not in (State.HEAD, State.BODY):
            return
        self.persistent = False
        self._move(State.REFUSED)
        self.transport.write(raw_answer(refusal))
        self.loseConnection()


def raw_answer(refusal: Refuse) -> bytes:
    """A whole response that ends its connection, for those who have no request to answer."""
    body = refusal.body
    lines = [b"HTTP/1.1 %d %s" % (refusal.status, refusal.phrase)]
    lines += [b"%s: %s" % pair for pair in HEADERS]
    lines += [b"%s: %s" % (name.encode(), value.encode()) for name, value in refusal.headers.items()]
    lines += [b"Content-Type: " + CONTENT_TYPE, b"Content-Length: %d" % len(body), b"Connection: close", b"", body]
    return b"\r\n".join(lines)


def too_large() -> Refuse:
    return Refuse(413, f"A body may have {MAX_BODY} bytes.")


def internal_error() -> Refuse:
    return Refuse(500, "The request failed inside the proxy; its log says why.")


class _Full(protocol.Protocol):
    """Answers whoever was accepted in the same instant as the last one there was room for."""

    def connectionMade(self) -> None:
        refusal = Refuse(503, f"The admin API has {MAX_CONNECTIONS} connections already; try again.", headers={"Retry-After": "1"})
        self.transport.write(raw_answer(refusal))  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]


class AdminSite(server.Site):
    """The connections of one listening socket."""

    protocol: Any = AdminChannel
    displayTracebacks = False
    noisy = False

    def __init__(self, reactor: Any, resource: Any, gate: Gate) -> None:
        super().__init__(resource, AdminRequest, reactor=reactor, parsePOSTFormSubmission=False)
        self.timeOut = None  # AdminChannel has deadlines of its own
        self.gate = gate
        self.channels: set[AdminChannel] = set()
        self.port: Any = None
        """Where connections come from; set by the owner after listening began."""
        self._making_room: IDelayedCall | None = None
        self.is_patient = False
        """True: at the end, who has just connected is answered too."""
        self.is_closing = False

    def startFactory(self) -> None:
        """Not Site's: no access log, no clock for its lines. What changes anything is in the journal."""

    def stopFactory(self) -> None:
        if self._making_room is not None:
            self._making_room.cancel()
            self._making_room = None

    def log(self, request: http.Request) -> None:
        """See `startFactory`."""

    def buildProtocol(self, addr: IAddress | None) -> Any:
        # Channels enter `channels` when their connection is made, which follows at once.
        if len(self.channels) >= MAX_CONNECTIONS:
            return _Full()
        if len(self.channels) == MAX_CONNECTIONS - 1:
            self._pause()
        return super().buildProtocol(addr)

    def channel_gone(self, channel: AdminChannel) -> None:
        self.channels.discard(channel)
        if self._making_room is not None and len(self.channels) < MAX_CONNECTIONS:
            self._making_room.cancel()
            self._making_room = None
            if self.port is not None and not self.port.disconnecting:
                self.port.startReading()

    def _pause(self) -> None:
        if self.port is not None:
            self.port.stopReading()
        if self._making_room is None:
            self._making_room = self.reactor.callLater(MAKE_ROOM_S, self._make_room)

    def _make_room(self) -> None:
        self._making_room = self.reactor.callLater(MAKE_ROOM_S, self._make_room)
        before = self.reactor.seconds() - PATIENCE_WHEN_FULL_S
        for channel in list(self.channels):
            if channel.state in (State.NEW, State.IDLE, State.HEAD, State.BODY) and channel.since <= before:
                channel.abort()

    def close_all(self) -> None:
        """End every connection: idle ones now, the others when they are answered or aborted by their deadline."""
        self.is_closing = True
        for channel in list(self.channels):
            if channel.state is State.ANSWERING or (self.is_patient and channel.state in (State.NEW, State.HEAD, State.BODY)):
                channel.persistent = False
            else:
                channel.abort()


class LocalPort(unix.Port):
    """A unix socket that is 0600 from its first instant, and that leaves the path alone once somebody else has bound it."""

    def __init__(self, path: str, factory: Any, reactor: Any) -> None:
        super().__init__(path.encode(), factory, mode=0o600, reactor=reactor)
        self._path = path
        self._inode = 0

    @classmethod
    def over(cls, listening: Any, path: str, factory: Any, reactor: Any) -> LocalPort:
        """Accept on a socket made by `bind_local`."""
        port = cls(path, factory, reactor)
        port._preexistingSocket = listening
        port._inode = os.stat(path).st_ino
        port._shouldShutdown = False  # others may hold the same socket
        port.startListening()
        return port

    def let_go(self) -> None:
        """The path is somebody else's now."""
        self._inode = 0

    def connectionLost(self, reason: Failure) -> None:
        try:
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except FileNotFoundError:
            pass  # gone already: nothing to clean
        tcp.Port.connectionLost(self, reason)
