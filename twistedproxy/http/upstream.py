"""Connections to servers that speak HTTP/1: one exchange at a time, kept alive between exchanges, never reused while anything is owed.

How it works
    Idle connections wait on a stack per server and worker (most recently used first) and keep reading, so that a close or an
    unexpected byte removes them at once; the idle limit is shorter than what servers commonly use (limits 3.3). `keepalive.size` of
    them are kept for `keepalive.idle`; what the load of the moment needs beyond that is kept for `BRIEF_S`, or every request above
    `size` at a time would cost a connection. While an
    exchange is on, `dataReceived` parses and frames, and tells the exchange in its own words: `interim`, `switched`,
    `respond`, `response_data`, `upstream_failed`. A connection goes back to the stack only when the exchange asks for it
    *and* nothing is left over: no surplus byte, no close announced, no PROXY header sent on it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from twisted.python.failure import Failure

from twistedproxy.clock import NEVER, Timed, Wheel
from twistedproxy.config.model import Keepalive
from twistedproxy.errors import BadResponse, ProxyError, ResponseTimeout, ServerClosed, ServerStall, WriteStall
from twistedproxy.http.h1 import ChunkedReader
from twistedproxy.http.head import RESPONSE_LIMITS, PartialResponse, parse_response
from twistedproxy.http.messages import CHUNKED, UNTIL_CLOSE, ResponseHead
from twistedproxy.net.transport import Transport
from twistedproxy.pool.server import Server

if TYPE_CHECKING:
    from twistedproxy.http.exchange import Exchange

BRIEF_S = 1.0
"""How long an idle connection is kept beyond `keepalive.size`; there are never more of them than there just were requests."""
MAX_INTERIM = 16
"""1xx answers before the real one (SM-18)."""


class UpstreamState(enum.Enum):
    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    TUNNEL = "tunnel"
    CLOSED = "closed"


_IDLE, _HEAD, _BODY, _TUNNEL, _CLOSED = UpstreamState  # a global is found faster than an enum's member


class UpstreamConnection(Timed):
    """One connection to one server."""

    __slots__ = ("transport", "server", "exchange", "state", "served", "_wheel", "_keepalive", "_idle", "_idle_s", "_may_reuse",
                 "_partial", "_left", "_chunks", "_interim", "_is_paused")  # fmt: skip

    def __init__(self, transport: Transport, server: Server, wheel: Wheel, keepalive: Keepalive, may_reuse: bool) -> None:
        super().__init__()
        self.transport = transport
        self.server = server
        self.exchange: Exchange | None = None
        self.state = _IDLE
        self.served = 0
        """Exchanges completed; 0 means the connection is fresh."""
        self._wheel = wheel
        self._keepalive = keepalive
        self._idle: list[UpstreamConnection] = server.idle
        """Where it goes when it is idle: never to the list of a later time, when servers are talked to on other terms (TLS)."""
        self._idle_s = keepalive.idle_s
        self._may_reuse = may_reuse and keepalive.size > 0
        self._partial: PartialResponse | None = None
        """A head that has begun to come."""
        self._left = 0
        self._chunks: ChunkedReader | None = None
        self._interim = 0
        self._is_paused = False
        transport.registerProducer(self)
        transport.start(self)

    # What the exchange asks for

    def send(self, exchange: Exchange, data: bytes, deadline: float) -> None:
        """Begin an exchange: `data` is the request head and what there is of the body, `deadline` the latest for the answer's head.

        The deadline is NEVER while the request is incomplete; `await_head` sets it then.
        """
        self.exchange = exchange
        self.state = _HEAD
        self._interim = 0
        self._chunks = None
        self._partial = None
        self.deadline = deadline
        if deadline < self.look_at:
            self._wheel.look_sooner(self)
        self.transport.write(data)

    def use_once(self) -> None:
        """After this exchange the connection is closed, whatever the server says."""
        self._may_reuse = False

    def await_head(self, deadline: float) -> None:
        """The request is complete: its answer must begin before `deadline`."""
        if self.state is _HEAD:
            self._wheel.arm(self, deadline)

    def release(self, keep: bool, now: float) -> None:
        """The exchange is over. With `keep`, the connection waits for the next one if it is clean."""
        self.exchange = None
        idle = self._idle
        if keep and self._may_reuse and self.state is _IDLE and self.transport.error is None:
            self.served += 1
            if self._is_paused:
                self.resume_reading()
            self.deadline = deadline = now + (self._idle_s if len(idle) < self._keepalive.size else min(self._idle_s, BRIEF_S))
            idle.append(self)
            if deadline < self.look_at:
                self._wheel.look_sooner(self)
        else:
            self.close()

    def close(self) -> None:
        """An idle connection is closed in order; one that owes us something is reset, so that the server stops working for nobody."""
        was_idle = self.state is _IDLE
        self.exchange = None
        self._end()
        if was_idle:
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def pause_reading(self) -> None:
        """The client is behind: leave the answer in the kernel. The silence is ours, so no deadline runs."""
        if not self._is_paused:
            self._is_paused = True
            self.transport.pauseProducing()
            self._wheel.disarm(self)

    def resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.transport.resumeProducing()
            if self.exchange is not None:
                self._wheel.arm(self, self._wheel.seconds() + self.exchange.response_idle_s)

    def detach(self) -> Transport:
        """Hand the transport over to a tunnel."""
        self.exchange = None
        self.state = _TUNNEL
        self._wheel.disarm(self)
        self.transport.unregisterProducer()
        return self.transport

    def _end(self) -> None:
        if self.state is _IDLE and self in self._idle:
            self._idle.remove(self)
        self.state = _CLOSED
        self._wheel.disarm(self)

    # What the transport tells

    def dataReceived(self, data: bytes) -> None:
        state = self.state
        if state is _HEAD:
            self._receive_head(data)
        elif state is _BODY:
            self._receive_body(data)
        else:  # a byte nobody asked for would be taken for the next answer
            self.close()

    def _receive_head(self, data: bytes) -> None:
        exchange = self.exchange
        assert exchange is not None
        try:
            while self.exchange is exchange and data:
                partial = self._partial
                if partial is None:
                    head = parse_response(data, RESPONSE_LIMITS)
                else:
                    head = partial.feed(data)
                    data = partial.data
                if head is None:
                    if partial is None:
                        self._partial = PartialResponse(data)
                    return
                self._partial = None
                data = data[head.size :] if len(data) > head.size else b""
                if head.status >= 200:
                    self._begin_body(exchange, head, data)
                    return
                if head.status == 101:
                    exchange.switched(head, data)
                    return
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    raise BadResponse(f"more than {MAX_INTERIM} interim responses")
                exchange.interim(head)
        except BadResponse as error:
            self._fail(error)

    def _begin_body(self, exchange: Exchange, head: ResponseHead, body: bytes) -> None:
        length = head.body_length_for(exchange.method)
        if head.wants_close:
            self._may_reuse = False
        elif self.served == 0:
            self._heed_keep_alive(head)
        if length >= 0:
            left = length - len(body)
            if left < 0:
                body = body[:length]
                left = 0
                self._may_reuse = False
            self._left = left
            is_done = left == 0
        elif length == CHUNKED:
            chunks = self._chunks = ChunkedReader(BadResponse)
            body = chunks.feed(body)
            is_done = self._is_last_chunk(chunks)
        else:
            self._left = UNTIL_CLOSE
            self._may_reuse = False
            is_done = False
        if is_done:
            self.state = _IDLE
            self.deadline = NEVER
        else:
            self.state = _BODY
            self._wheel.arm(self, self._wheel.seconds() + exchange.response_idle_s)
        exchange.respond(head, length, body, is_done)

    def _is_last_chunk(self, chunks: ChunkedReader) -> bool:
        if chunks.is_done and chunks.leftover:
            self._may_reuse = False
        return chunks.is_done

    def _heed_keep_alive(self, head: ResponseHead) -> None:
        """``Keep-Alive: timeout=N`` of the server shortens our idle limit to N - 1 seconds."""
        hint = head.get(b"keep-alive")
        if hint is None:
            return
        for part in hint.split(b","):
            name, _, value = part.strip().partition(b"=")
            if name.lower() == b"timeout" and value.isdigit():
                seconds = min(int(value[:6]) - 1, self._keepalive.idle_s)
                self._idle_s = seconds
                if seconds <= 0:
                    self._may_reuse = False

    def _receive_body(self, data: bytes) -> None:
        exchange = self.exchange
        assert exchange is not None
        is_done = False
        if self._chunks is not None:
            try:
                data = self._chunks.feed(data)
            except BadResponse as error:
                self._fail(error)
                return
            is_done = self._is_last_chunk(self._chunks)
        elif self._left >= 0:
            left = self._left - len(data)
            if left < 0:
                data = data[:left]
                left = 0
                self._may_reuse = False
            self._left = left
            is_done = left == 0
        self._progress(exchange, is_done)
        exchange.response_data(data, is_done)

    def _progress(self, exchange: Exchange, is_done: bool) -> None:
        if is_done:
            self.state = _IDLE
            self._wheel.disarm(self)
        else:
            self._wheel.arm(self, self._wheel.seconds() + exchange.response_idle_s)

    @property
    def body_left(self) -> int:
        """Bytes of a Content-Length body still to come; 0 when the length is not known."""
        return self._left if self.state is _BODY and self._chunks is None and self._left > 0 else 0

    def spliced(self, count: int) -> None:
        """`count` body bytes went past us, from socket to socket."""
        exchange = self.exchange
        if exchange is not None:
            self._left -= count
            self._progress(exchange, self._left == 0)

    @property
    def trailers(self) -> tuple[tuple[bytes, bytes], ...]:
        return self._chunks.trailers if self._chunks is not None else ()

    def readConnectionLost(self) -> None:
        if self.state is _BODY and self._left == UNTIL_CLOSE and self._chunks is None and self.exchange is not None:
            exchange = self.exchange
            self._end()
            self.transport.loseConnection()  # in order, before the exchange lets go of what it takes for unfinished
            exchange.response_data(b"", True)
        elif self.exchange is not None and self.state in (_HEAD, _BODY):
            self._fail(ServerClosed("the server closed the connection before its answer was complete"))
        else:
            self.close()

    def connectionLost(self, reason: Failure) -> None:
        exchange = self.exchange
        was_open = self.state is not _CLOSED
        self._end()
        if exchange is not None and was_open:
            self.exchange = None
            if isinstance(reason.value, WriteStall):
                exchange.upstream_failed(ServerStall("the server took no byte of the request in time"), False)
            else:
                error = ServerClosed(f"the connection to the server was lost: {reason.getErrorMessage()}")
                exchange.upstream_failed(error, self._partial is not None or self._interim > 0)

    def deadline_passed(self, now: float) -> None:
        splice = self.transport.splice_in
        if self.state is _IDLE:
            self.close()
        elif splice is not None and splice.is_blocked and self.exchange is not None:  # the client is the slow one
            self._wheel.arm(self, now + self.exchange.response_idle_s)
        else:
            self._fail(ResponseTimeout("the server did not answer in time"))

    def _fail(self, error: ProxyError) -> None:
        """The answer cannot be completed: close at once, then let the exchange decide."""
        exchange, self.exchange = self.exchange, None
        has_begun = self._partial is not None or self._interim > 0
        self.close()
        if exchange is not None:
            exchange.upstream_failed(error, has_begun)

    # The request body's backpressure: the transport is full or has room again

    def pauseProducing(self) -> None:
        if self.exchange is not None:
            self.exchange.pause_request()

    def resumeProducing(self) -> None:
        if self.exchange is not None:
            self.exchange.resume_request()

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` says so too."""
