"""One client's HTTP/1 connection: bytes become exchanges, one after the other.

It reads heads and bodies, keeps at most one exchange going, holds pipelined bytes back until it is their turn, and owns the
client-side deadlines: idle, head, body, and the wait for a response. The class is over 300 lines, since all of it acts on one
buffer and one state.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar

from twisted.python.failure import Failure

from twistedproxy.clock import NEVER, Timed
from twistedproxy.errors import BadBody, BadHead, BadProxyHeader, ClientGone, HeadTimeout, ProxyError, WriteStall
from twistedproxy.http.exchange import Exchange, State
from twistedproxy.http.failures import failure_response
from twistedproxy.http.forwarding import Client
from twistedproxy.http.h1 import response_head
from twistedproxy.http.head import PartialRequest, parse_request
from twistedproxy.http.local import SPECIAL, date, local_answer
from twistedproxy.http.messages import NO_BODY, LocalResponse, RequestHead
from twistedproxy.http.upload import Upload
from twistedproxy.net.proxy_protocol import Parsed
from twistedproxy.net.transport import HIGH_WATER, Transport
from twistedproxy.tls.clients import ClientTls

if TYPE_CHECKING:
    from twistedproxy.http.front import HttpFront
    from twistedproxy.tls.clients import ClientTls

REQUESTS_PER_TURN = 64
"""So many pipelined requests that are answered at once are taken from one client before others have their turn."""
IDLE_LINGER_S = 5.0
"""How long an idle connection may still send one last request when the worker drains."""


class Reading(enum.Enum):
    """What the next bytes of a connection are."""

    HEAD = "head"
    BODY = "body"
    HELD_BACK = "held back"
    """Pipelined requests, while an exchange is on."""
    NOTHING = "nothing"
    """The connection is closing, or belongs to a tunnel."""


_HEAD, _BODY, _HELD_BACK, _NOTHING = Reading  # a global is found faster than an enum's member


class FrontConnection(Timed):
    """One client's HTTP/1 connection."""

    __slots__ = ("front", "transport", "client", "client_port", "exchange", "reading", "is_gone", "response_deadline",
                 "_local", "_buffer", "_partial", "_upload", "_requests", "_born", "_is_paused", "_is_looping")  # fmt: skip

    resets_at_once: ClassVar[bool] = True
    """Nobody works for a client that is gone, whatever it sent before."""

    def __init__(self, front: HttpFront, transport: Transport) -> None:
        super().__init__()
        self.front = front
        self.transport = transport
        self.client = _NOBODY
        self.client_port = 0
        self._local: tuple[str, int] | None = None
        """What a PROXY header said, or the socket."""
        self.exchange: Exchange | None = None
        self.reading = _HEAD
        self.is_gone = False
        self.response_deadline = 0.0
        self._buffer = b""
        """What came behind the request in hand: pipelined requests."""
        self._partial: PartialRequest | None = None
        """A head that has begun to come."""
        self._upload: Upload | None = None
        self._requests = 0
        self._born = front.seconds()
        self._is_paused = False
        self._is_looping = False

    # The beginning of a connection

    def announced(self, parsed: Parsed, leftover: bytes) -> None:
        """The PROXY header has come; LOCAL means the sender's own connection."""
        if parsed.source is None or parsed.is_local:
            self.begin(self.transport.peer, self.transport.peer_port, None, leftover)
        else:
            ip, port = parsed.source
            self.begin(ip, port, parsed.destination, leftover)

    def not_announced(self, error: BadProxyHeader) -> None:
        self.front.metrics.rejected[error.reason] += 1
        self.is_gone = True
        self.front.closed(self)

    def begin(self, ip: str, port: int, local: tuple[str, int] | None, data: bytes, tls: ClientTls | None = None) -> None:
        """Read requests from a client at `ip`; `data` came behind the PROXY header."""
        front, transport = self.front, self.transport
        self._local = local
        port_here = local[1] if local is not None else front.port or front.find_port(transport)
        self.client = Client(ip, port_here, bool(front.trusted) and front.trusted.contains(ip), tls)
        self.client_port = port
        transport.registerProducer(self)
        front.wheel.arm(self, self._born + front.timeouts.request_head_s)
        transport.start(self)
        if data:
            self.dataReceived(data)

    @property
    def local(self) -> tuple[str, int]:
        """(IP, port) the client connected to; asked of the kernel once."""
        local = self._local
        if local is None:
            local = self._local = self.transport.local
        return local

    # Bytes from the client

    def dataReceived(self, data: bytes) -> None:
        front = self.front
        front.counts.bytes_in += len(data)
        reading = self.reading
        if reading is _HEAD:
            self._read_requests(data)
        elif reading is _BODY:
            assert self._upload is not None
            self._upload.receive(data)
        elif reading is _HELD_BACK:
            self._buffer += data
            if len(self._buffer) > HIGH_WATER:
                self.pause_reading()

    def _read_requests(self, data: bytes) -> None:
        """Start the requests in `data` one after the other, for as long as each is done before the next."""
        self._is_looping = True
        rounds = 0
        while data and self.reading is _HEAD:
            try:
                partial = self._partial
                if partial is None:
                    head = parse_request(data, self.front.limits)
                else:
                    was_blank = partial.is_blank
                    head = partial.feed(data)
                    data = partial.data
                    if was_blank and head is None and not partial.is_blank:
                        self._head_began()
                if head is None:
                    if partial is None:
                        partial = self._partial = PartialRequest(self.front.limits, data)
                        if not partial.is_blank:
                            self._head_began()
                    break
            except BadHead as error:
                self._refuse(error)
                break
            self._partial = None
            self._buffer = data[head.size :] if len(data) > head.size else b""
            self._begin_exchange(head, head.body_length)
            data = self._buffer
            if data:
                rounds += 1
                if rounds == REQUESTS_PER_TURN and self.reading is _HEAD:
                    self.reading = _HELD_BACK
                    self.pause_reading()
                    self.transport.reactor.soon(self._read_on, None)
        self._is_looping = False

    def _read_on(self, _: object) -> None:
        """The requests that were held back have their turn, if the client takes the answers."""
        if self.reading is not _HELD_BACK or self.exchange is not None or self.transport.is_full:
            return
        front = self.front
        self.reading = _HEAD
        front.wheel.arm(self, front.seconds() + front.timeouts.keepalive_s)
        data, self._buffer = self._buffer, b""
        self.resume_reading()
        self._read_requests(data)

    def _head_began(self) -> None:
        """A head's own deadline runs from its first byte; the first head's from the connection's birth."""
        front = self.front
        if self._requests:
            front.wheel.arm(self, front.seconds() + front.timeouts.request_head_s)

    def _begin_exchange(self, head: RequestHead, length: int) -> None:
        front = self.front
        now = front.seconds()
        self._requests += 1
        request_id = b"%b%08x" % (front.id_prefix, front.next_serial())
        if self.client.is_trusted:
            request_id = self.client.request_id(head, request_id)
        exchange = self.exchange = Exchange(self, head, request_id, now)
        if self._requests >= front.requests_per_connection or now - self._born > front.connection_age_s:
            exchange.keep_alive = False
        first = b""
        is_complete = True
        if length == NO_BODY:
            self.reading = _HELD_BACK
        else:
            self.reading = _BODY
            upload = self._upload = Upload(self, exchange, length)
            body = upload.body
            try:
                first = body.feed(self._buffer)
            except BadBody as error:
                exchange.bad_body(error)
                return
            self._buffer = b""
            is_complete = body.is_done
            if is_complete:
                exchange.trailers = body.trailers
                self.body_ended(body.leftover)
            else:
                upload.await_more()
        if exchange.method in SPECIAL:
            local = local_answer(exchange.method, head)
            if local is not None:
                exchange.is_request_complete = is_complete
                if isinstance(local, BadHead):
                    exchange.fail(local)
                else:
                    exchange.answer(local)
                return
        exchange.start(length, first, is_complete)

    def body_ended(self, leftover: bytes) -> None:
        """The request is complete; what follows it waits for its turn."""
        self.reading = _HELD_BACK
        self._upload = None
        self._buffer = leftover
        self.resume_reading()

    # What an exchange asks for

    def write(self, data: bytes) -> None:
        self.front.counts.bytes_out += len(data)
        self.transport.write(data)

    def await_response(self, deadline: float) -> None:
        """The request is complete; without a response head by `deadline` the exchange is told."""
        self.response_deadline = deadline
        self.front.wheel.arm(self, deadline)

    def stop_waiting(self) -> None:
        """The response has begun: from here on the transport watches for a client that takes nothing."""
        self.response_deadline = NEVER
        if self.reading is not _BODY:
            self.deadline = NEVER

    def pause_reading(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pauseProducing()
            self.transport.watch_hangup(self.peer_left)
            if self.reading is _BODY:
                self.front.wheel.disarm(self)

    def peer_left(self) -> None:
        """FIN came while nothing is read (faults F5): what a client that leaves has sent before its answer began is for nobody."""
        exchange = self.exchange
        if exchange is not None and exchange.state not in (State.RESPONDING, State.TUNNEL):
            exchange.client_gone(ClientGone("the client closed the connection"))

    def resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.transport.resumeProducing()
            if self._upload is not None:
                self._upload.await_more()

    def await_body(self, idle_s: float) -> None:
        """The route has its own word on how long the client may be silent within its body."""
        if self._upload is not None:
            self._upload.idle_s = idle_s
            self._upload.await_more()

    def splice_body(self, sink: Transport) -> None:
        """The server is connected: the rest of a long body may go there inside the kernel."""
        if self._upload is not None:
            self._upload.splice_to(sink)

    def detach(self) -> Transport:
        """Hand the transport over to a tunnel."""
        self.reading = _NOTHING
        self.front.wheel.disarm(self)
        self.transport.unregisterProducer()
        return self.transport

    def take_early(self) -> bytes:
        """What the client sent ahead, for the tunnel."""
        early, self._buffer = self._buffer, b""
        return early

    def exchange_done(self, exchange: Exchange, now: float) -> None:
        """The exchange is over: the next request, or the end of the connection."""
        self.exchange = None
        if self._upload is not None:
            self._upload.cancel()
        if self.is_gone:
            return
        if self.reading is _NOTHING:  # a tunnel: the relay has closed both transports
            self.is_gone = True
            self.front.closed(self)
        elif exchange.keep_alive:
            transport = self.transport
            if transport.buffered and transport.is_full:
                self.reading = _HELD_BACK  # the next request waits until the client takes these answers (faults P4)
                self.deadline = NEVER
                return
            self.reading = _HEAD
            front = self.front
            self.deadline = deadline = now + front.timeouts.keepalive_s
            if deadline < self.look_at:
                front.wheel.look_sooner(self)
            if self._is_paused:
                self.resume_reading()
            if self._buffer and not self._is_looping:
                data, self._buffer = self._buffer, b""
                self._read_requests(data)
        else:
            self._close(may_have_input=self._upload is not None or bool(self._buffer))

    # Ends

    def _close(self, may_have_input: bool) -> None:
        """Close after what was written. Bytes still on their way would turn that into a reset: they are read and dropped."""
        self.reading = _NOTHING
        self._buffer = b""
        self._partial = self._upload = None
        self.front.wheel.disarm(self)
        if may_have_input:
            self.transport.linger()
        else:
            self.transport.loseConnection()

    def _refuse(self, error: ProxyError) -> None:
        """Answer something that never became a request, and close: where the next request would begin is unknown."""
        front = self.front
        self._requests += 1
        request_id = front.fresh_id()
        self._answer(failure_response(error, None, request_id))
        front.metrics.rejected[error.reason] += 1
        if front.stories is not None:
            front.stories.refused(request_id, error, self.client.ip)
        if front.access_log is not None:
            ip = self.client.ip
            front.access_log.log_http(
                ip, None, error.status, 0, 0, "", "", "", 0.0, 0, error.cause, error.phase, request_id, front.address
            )  # fmt: skip
        self._close(may_have_input=True)

    def _answer(self, local: LocalResponse) -> None:
        self.write(response_head(local, 1, False, date()) + local.body)

    def readConnectionLost(self) -> None:
        """The client sent FIN. It may still want what has begun to come; nobody works for one that left before."""
        exchange = self.exchange
        if exchange is None:
            self._close(may_have_input=False)
        elif exchange.state is State.RESPONDING and self.reading is _HELD_BACK:
            exchange.keep_alive = False
        else:
            exchange.client_gone(ClientGone("the client closed the connection"))

    def connectionLost(self, reason: Failure) -> None:
        self.is_gone = True
        self.reading = _NOTHING
        self.front.wheel.disarm(self)
        exchange = self.exchange
        if exchange is not None:
            error = reason.value
            exchange.client_gone(error if isinstance(error, WriteStall) else ClientGone("the connection to the client was lost"))
        self.front.closed(self)

    def deadline_passed(self, now: float) -> None:
        exchange = self.exchange
        if exchange is not None:
            if self._upload is not None:
                self._upload.deadline_passed()
            elif now < self.response_deadline:  # it was the deadline of the idle connection, left standing
                self.front.wheel.arm(self, self.response_deadline)
            else:
                exchange.deadline_passed()
        elif self._partial is not None and not self._partial.is_blank:
            self._refuse(HeadTimeout("the request head did not come in time"))
        else:
            self._close(may_have_input=False)

    @property
    def is_tunnel(self) -> bool:
        return self.exchange is not None and self.exchange.state is State.TUNNEL

    def drain(self) -> None:
        """Let go as soon as the client has its answer; an idle connection may send one last request for a moment."""
        if self.exchange is None and self.reading is _HEAD:
            self.front.wheel.arm(self, min(self.front.seconds() + IDLE_LINGER_S, self.deadline))

    def keep_no_longer(self, seconds: float) -> None:
        """An idle connection's time is shortened to `seconds` from now: others need its place."""
        if self.exchange is None and self.reading is _HEAD and self._requests and (self._partial is None or self._partial.is_blank):
            self.front.wheel.arm(self, min(self.front.seconds() + seconds, self.deadline))

    def cut(self) -> None:
        """Time is up."""
        if self.exchange is not None:
            self.exchange.cut()
        if not self.is_gone:
            self.transport.abortConnection()

    # The response's backpressure: the client's transport is full or has room again

    def pauseProducing(self) -> None:
        if self.exchange is not None:
            self.exchange.pause_response()

    def resumeProducing(self) -> None:
        if self.exchange is not None:
            self.exchange.resume_response()
        else:
            self._read_on(None)

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` says so too."""


_NOBODY = Client("", 0, False)
