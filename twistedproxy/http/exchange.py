"""One request and its response, from the first routed byte to the log line. Read it top to bottom.

It has over 500 lines on purpose: a request's life is in one piece. What can be judged without it is outside: routing, retries,
forwarding, framing, uploads, what a failure looks like and how it is recorded.

    ROUTE ▶ ACQUIRE ▶ (CONNECT) ▶ SEND ▶ RECEIVE ▶ RESPOND ▶ FINISH
              ▲                              │
              └──── nothing reached the client, and trying again is safe (``retries``)

How it works
    The front (whatever HTTP version) makes an exchange per request and feeds it: `start`, `request_data`, `request_complete`,
    `client_gone`. The pool answers with a lease, the upstream connection with `interim`, `switched`, `respond`, `response_data`
    or `upstream_failed`. Whatever happens, `_finish` runs exactly once: it lets go of connection and lease, counts, logs, and
    tells the front's connection whether it may carry another request.

Class attributes are the defaults of per-request state: a request pays only for the attributes it changes.
"""

from __future__ import annotations

import enum
from random import random
from time import time
from typing import TYPE_CHECKING

from twistedproxy.clock import NEVER
from twistedproxy.errors import (
    BadHead,
    BadResponse,
    BodyTooLarge,
    ConnectFailed,
    Drained,
    NoServer,
    ProxyError,
    Refusal,
    ResponseTimeout,
    ServerClosed,
    ServerError,
)
from twistedproxy.http import forwarding
from twistedproxy.http.destination import Destination
from twistedproxy.http.failures import failure_response
from twistedproxy.http.h1 import chunk, last_chunk, response_head
from twistedproxy.http.local import SPECIAL, date, forwards_field
from twistedproxy.http.messages import CHUNKED, Kind, LocalResponse, RequestHead, ResponseHead
from twistedproxy.http.record import outcome_of, record
from twistedproxy.http.retries import CLOSED, LONGEST_WAIT_S, NOTHING_SENT, REUSED, Pause, Retries, wait_asked_for
from twistedproxy.http.routes import Decision
from twistedproxy.http.tunnel import has_agreed, tunnel
from twistedproxy.http.upload import SPLICE_FROM
from twistedproxy.http.upstream import UpstreamConnection
from twistedproxy.net.connector import Attempt, connect
from twistedproxy.net.proxy_protocol import encode as encode_proxy_header
from twistedproxy.net.relay import Relay, relay_exactly
from twistedproxy.net.splice import Splice
from twistedproxy.net.transport import HIGH_WATER, Transport
from twistedproxy.pool.pool import Lease
from twistedproxy.pool.queue import Queued
from twistedproxy.pool.server import Outcome, Server

if TYPE_CHECKING:
    from twistedproxy.http.connection import FrontConnection

_OK = Outcome.OK
NONE_TRIED: frozenset[Server] = frozenset()
_SELDOM_WITH_BODY = frozenset({b"GET", b"HEAD"})
"""A server that does not expect a body here would take it for the next request on the connection: there is none."""
_UNUSUAL = Kind.HOP_BY_HOP | Kind.INTERNAL
"""Fields among which are Upgrade and X-Revproxy-Explain."""


class State(enum.Enum):
    NEW = "new"
    QUEUED = "queued"
    CONNECTING = "connecting"
    SENT = "sent"
    RESPONDING = "responding"
    TUNNEL = "tunnel"
    DONE = "done"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.QUEUED, State.CONNECTING, State.SENT, State.RESPONDING, State.DONE}),
    State.QUEUED: frozenset({State.CONNECTING, State.SENT, State.RESPONDING, State.DONE}),
    State.CONNECTING: frozenset({State.CONNECTING, State.QUEUED, State.SENT, State.RESPONDING, State.DONE}),
    State.SENT: frozenset({State.RESPONDING, State.TUNNEL, State.QUEUED, State.CONNECTING, State.SENT, State.DONE}),
    State.RESPONDING: frozenset({State.DONE}),
    State.TUNNEL: frozenset({State.DONE}),
    State.DONE: frozenset(),
}
"""SENT goes back to CONNECTING, QUEUED or SENT when a request is tried again; RESPONDING from anywhere before is an answer made here."""


# Globals are found faster than an enum's members.
_SENT, _RESPONDING, _DONE = State.SENT, State.RESPONDING, State.DONE


class Exchange:
    """One request and its response."""

    state = State.NEW
    is_request_complete = False
    trailers: tuple[tuple[bytes, bytes], ...] = ()
    """Of a chunked request body, once it is complete."""
    status = 0
    bytes_sent = 0
    """Body bytes to the client."""
    bytes_received = 0
    """Body bytes from the client."""
    attempts = 0
    error: ProxyError | None = None
    """Why there was no answer from a server, or why it broke off."""
    decision: Decision[Destination] | None = None
    head_at = -1.0
    """When the response head came; negative before."""
    response_idle_s = 60.0
    is_recorded = True
    """It is a client's: counted and logged."""
    served_from = ""
    """The server whose answer this is, when another exchange got it."""
    _lease: Lease | None = None
    _queued: Queued | Pause | None = None
    _retry_after_s = 0.0
    """What the server that refused asked for."""
    _attempt: Attempt | None = None
    _upstream: UpstreamConnection | None = None
    _splice: Splice | None = None
    _relay: Relay | None = None
    _retries: Retries | None = None
    _upgrade: bytes | None = None
    _body_length = 0
    _held: bytes | None = b""
    """The request body, while all that came of it is at hand; None from when some of it was passed on unheld."""
    _response_length = 0
    _blames_server = True
    """False when a server closed an idle connection in the moment it was used, which is its good right."""

    def __init__(self, connection: FrontConnection, head: RequestHead, request_id: bytes, now: float) -> None:
        self.connection = connection
        self.front = connection.front
        self.head = head
        self.method = head.method
        self.request_id = request_id
        self.started = now
        self.keep_alive = not head.wants_close
        client = connection.client
        self.client_ip = client.ip if not client.is_trusted else forwarding.client_address(client.ip, head, self.front.trusted)

    def __repr__(self) -> str:
        return f"<Exchange {self.request_id.decode('latin-1')} {self.state.value}>"

    # ROUTE

    def start(self, body_length: int, body: bytes, is_complete: bool) -> None:
        """Decide where the request goes and set out; `body` is what came with the head."""
        self._body_length = body_length
        self.is_request_complete = is_complete
        head = self.head
        if head.kinds & _UNUSUAL and self._is_answered(head, body_length):
            return
        decision = self.decision = self.front.route(head, self.client_ip, None, None, self.connection.client.tls)
        if decision is None:
            error = self.front.no_decision(head)
            if isinstance(error, Refusal):
                self._refuse(error)
            else:
                self.fail(error)
            return
        if decision.actions is not None:
            decision = self.front.act(self, decision)
            if decision is None:
                return
        destination = decision.destination
        timeouts = destination.timeouts
        if body_length:
            if body_length > destination.max_body:
                self.fail(BodyTooLarge(f"the body has {body_length} bytes, {destination.max_body} are allowed"))
                return
            if body and not self._take_in(body, destination):
                return
            if timeouts.body_idle_s != self.front.timeouts.body_idle_s:
                self.connection.await_body(timeouts.body_idle_s)
        self.response_idle_s = timeouts.response_idle_s
        if is_complete:
            connection = self.connection
            connection.response_deadline = deadline = self.started + timeouts.request_s
            if deadline < connection.deadline:
                connection.await_response(deadline)
        self._acquire(destination)

    def _is_answered(self, head: RequestHead, body_length: int) -> bool:
        """Look at a head with unusual fields: protocols it may switch to are noted; one that asks for its own trace gets that."""
        if head.upgrade in forwarding.UPGRADES:
            if body_length:
                self.fail(BadHead("a request that switches protocols has no body"))
                return True
            self._upgrade = head.upgrade
        explainer = self.front.explainer
        local = explainer(self) if explainer is not None and head.kinds & Kind.INTERNAL else None
        if local is not None:
            self.answer(local)
        return local is not None

    # REQUEST: the body, as it comes

    def request_data(self, data: bytes) -> None:
        """More of the body, decoded."""
        if self.decision is None or not self._take_in(data, self.decision.destination):
            return
        upstream = self._upstream
        if upstream is not None:
            upstream.transport.write(chunk(data) if self._body_length == CHUNKED else data)
        elif self._held is not None and len(self._held) >= HIGH_WATER:
            self.connection.pause_reading()

    def _take_in(self, data: bytes, destination: Destination) -> bool:
        """Count `data` and hold it until it is sent; False when the body became too large and the exchange has failed."""
        self.bytes_received += len(data)
        if self._body_length == CHUNKED and self.bytes_received > destination.max_body:
            self.fail(BodyTooLarge(f"the body has more than the {destination.max_body} bytes that are allowed"))
            return False
        self._held = self._held + data if self._upstream is None and self._held is not None else None
        return True

    def request_spliced(self, count: int) -> None:
        """`count` body bytes went from the client's socket to the server's inside the kernel."""
        self.bytes_received += count
        self._held = None

    def request_complete(self, trailers: tuple[tuple[bytes, bytes], ...]) -> None:
        """The body has ended."""
        self.is_request_complete = True
        self.trailers = trailers
        if self.decision is None:
            return
        timeouts = self.decision.destination.timeouts
        now = self.front.seconds()
        if self.state is State.RESPONDING:  # an early answer: nothing is waited for any more
            self.connection.stop_waiting()
        else:
            self.connection.await_response(now + timeouts.request_s)
        upstream = self._upstream
        if upstream is not None:
            if self._body_length == CHUNKED:
                upstream.transport.write(last_chunk(trailers))
            upstream.await_head(min(self.connection.response_deadline, now + timeouts.response_head_s))

    def pause_request(self) -> None:
        """The server does not take the body as fast as it comes."""
        if not self.is_request_complete:
            self.connection.pause_reading()

    def resume_request(self) -> None:
        if not self.is_request_complete:
            self.connection.resume_reading()

    # ACQUIRE

    def _acquire(self, destination: Destination) -> None:
        key_of = destination.key_of
        key = 0 if key_of is None else key_of(self.head, self.client_ip)
        tried = NONE_TRIED if self._retries is None else self._retries.tried
        answer = destination.pool.acquire(key, tried, self._leased)
        if type(answer) is Lease:
            self._go(answer)
        elif isinstance(answer, Queued):
            self.state = State.QUEUED
            self._queued = answer
        else:
            self._leased(answer)

    def _leased(self, answer: Lease | Refusal) -> None:
        """The pool's word, at once or after a wait in its queue."""
        self._queued = None
        if isinstance(answer, Refusal):
            if self._retries is not None and isinstance(answer, NoServer) and self._goes_back(self._retries):
                return
            # After a failed attempt, that failure says more than "no server is left".
            self._refuse(self.error if self.error is not None and isinstance(answer, NoServer) else answer)
        else:
            self._go(answer)

    def _goes_back(self, retries: Retries) -> bool:
        """No server is left that was not tried: perhaps one of those, in a moment."""
        seconds = retries.go_back(random())
        if seconds >= 0:
            self._pause(seconds)
        return seconds >= 0

    def _pause(self, seconds: float) -> None:
        self.state = State.QUEUED
        self._queued = Pause(self.front.wheel, seconds, self._resume)

    def _resume(self) -> None:
        self._queued = None
        assert self.decision is not None
        self._acquire(self.decision.destination)

    def _refuse(self, error: ProxyError) -> None:
        """Answer with `error`; in a flood of refusals only after a moment."""
        if self.front.pacing.holds(self._held_refusal, error):
            self.state = State.QUEUED
        else:
            self.fail(error)

    def _held_refusal(self, error: ProxyError) -> None:
        if self.state is State.QUEUED:
            self.fail(error)

    def _go(self, lease: Lease) -> None:
        self._lease = lease
        self.attempts += 1
        server = lease.server
        # The idle connection used last is the least likely to be closed by the server just now.
        if server.idle and (self._retries is None or not self._retries.has_stale_connection):
            self._send(server.idle.pop())
        else:
            self._connect(server)

    # CONNECT

    def _connect(self, server: Server) -> None:
        self.state = State.CONNECTING
        endpoints = server.endpoints
        if not endpoints:
            self._attempt_failed(NOTHING_SENT, ConnectFailed("the server's host name has not been resolved yet"))
            return
        assert self.decision is not None
        timeouts = self.decision.destination.timeouts
        front = self.front
        pool = self.decision.destination.pool
        begin = connect if pool.tls is None else pool.tls.to(server.address, self._proxy_header(), timeouts.tls_handshake_s)
        self._attempt = begin(
            front.reactor,
            front.wheel,
            endpoints[server.leases % len(endpoints)],
            timeouts.connect_s,
            self._connected,
            self._connect_failed,
            timeouts.write_stall_s,
        )

    def _connected(self, transport: Transport) -> None:
        self._attempt = None
        assert self.decision is not None and self._lease is not None
        destination = self.decision.destination
        upstream = UpstreamConnection(
            transport, self._lease.server, self.front.wheel, destination.keepalive, may_reuse=not destination.send_proxy
        )
        if destination.send_proxy and transport.is_plain:  # with TLS it went before the handshake
            transport.write(self._proxy_header())
        self._send(upstream)

    def _proxy_header(self) -> bytes:
        assert self.decision is not None
        version, connection = self.decision.destination.send_proxy, self.connection
        return encode_proxy_header(version, (self.client_ip, connection.client_port), connection.local) if version else b""

    def _connect_failed(self, error: ConnectFailed) -> None:
        self._attempt = None
        self._attempt_failed(NOTHING_SENT, error)

    # SEND

    def outgoing_head(self, server: Server) -> tuple[RequestHead, bytes | None, bytes | None]:
        """(head, path, host) for the server, of a request whose route has actions: `acting.ActingExchange` knows."""
        raise AssertionError("this exchange has no actions")

    def _send(self, upstream: UpstreamConnection) -> None:
        self.state = _SENT
        self._upstream = upstream
        head, decision, connection = self.head, self.decision, self.connection
        assert decision is not None
        destination = decision.destination
        length = self._body_length
        if decision.actions is None:
            path = None if head.is_canonical else head.path
            host = None if head.authority else host_of(upstream.server)
        else:
            head, path, host = self.outgoing_head(upstream.server)
        more = destination.via if self.method not in SPECIAL else destination.via + forwards_field(head)
        if self._retries is not None:
            more += self._retries.field
        data = connection.client.request(head, path, host, more, self.request_id, length, self._upgrade)
        if length:
            if self.method in _SELDOM_WITH_BODY:
                upstream.use_once()
            held = self._held
            if held:
                data += chunk(held) if length == CHUNKED else held
            if not self.is_request_complete:
                self._held = None
            elif length == CHUNKED:
                data += last_chunk(self.trailers)
        if self.is_request_complete:
            deadline = self.front.seconds() + destination.timeouts.response_head_s
            upstream.send(self, data, deadline if deadline < connection.response_deadline else connection.response_deadline)
        else:
            upstream.send(self, data, NEVER)
            if not upstream.transport.is_full:
                connection.resume_reading()
            connection.splice_body(upstream.transport)

    # What may go wrong before there is an answer

    def upstream_failed(self, error: ProxyError, has_begun: bool) -> None:
        """The connection to the server is gone before its answer was complete; `has_begun`: some of an answer was there."""
        self._stop_splice()
        upstream = self._upstream
        if self.state is not State.SENT or has_begun or upstream is None:
            self.fail(error)
        elif isinstance(error, ServerClosed):
            self._attempt_failed(REUSED if upstream.served else CLOSED, error)
        elif isinstance(error, ResponseTimeout):
            self._attempt_failed("timeout", error)
        else:
            self.fail(error)

    def _attempt_failed(self, reason: str, error: ProxyError) -> None:
        """One server did not work out, and the client saw nothing of it: another try, or the error."""
        self.error = error
        if not self._try_again(reason, outcome_of(error, 0) if reason != REUSED else Outcome.NEUTRAL):
            self._blames_server = reason != REUSED
            self.fail(error)

    def _try_again(self, reason: str, outcome: Outcome) -> bool:
        """Let go of this attempt and start another where that is allowed; False when it is not, and nothing has changed."""
        lease, decision, upstream = self._lease, self.decision, self._upstream
        assert lease is not None and decision is not None
        destination = decision.destination
        retries = self._retries = self._retries or Retries(destination, self.head.get(b"x-retry-attempt") not in (None, b"0"))
        wait, self._retry_after_s = self._retry_after_s, 0.0
        if wait > LONGEST_WAIT_S or self.connection.is_gone:
            return False
        if self.is_request_complete and self.front.seconds() + wait >= self.connection.response_deadline:
            return False
        if not retries.allow(reason, lease.server, self.method, self.is_request_complete and self._held is not None):
            return False
        detail = self.error.detail if self.error is not None else reason
        retries.log.append((lease.server.address, self.front.seconds() - self.started, reason, detail))
        self._lease = self._upstream = None
        if upstream is not None:
            upstream.close()
        lease.release(outcome)
        self.front.metrics.retries[(destination.pool.name, reason)] += 1
        if wait:
            self._pause(wait)
        else:
            self._acquire(destination)
        return True

    def _is_not_wanted(self, head: ResponseHead) -> bool:
        """Whether this answer of a server, a 429 or one from 502 on, is dropped for another attempt."""
        if self.decision is None or str(head.status) not in self.decision.destination.retry_on:
            return False
        self._retry_after_s = wait_asked_for(head.get(b"retry-after"), time())
        return self._try_for_better(head.status)

    def _try_for_better(self, status: int) -> bool:
        """A server answered such a status: ask another where that is wanted; if there is none, the client gets this status."""
        error = self.error = ServerError(f"the server answered {status}")
        error.status = status
        return self._try_again(str(status), Outcome.FAILED if status >= 500 else Outcome.NEUTRAL)

    def attempt_log(self, server: str) -> list[dict[str, object]]:
        """What was tried, for `why`; `server` is where it ended, "" when no server was left."""
        log = [] if self._retries is None else self._retries.log
        found: list[dict[str, object]] = [
            {"server": address, "failed_after_seconds": round(after, 6), "reason": reason, "detail": detail}
            for address, after, reason, detail in log
        ]
        if server:
            error = self.error
            found.append({"server": server, "reason": error.reason if error else "ok", "detail": error.detail if error else ""})
        return found

    def deadline_passed(self) -> None:
        """`request` has passed without a response head."""
        self.fail(ResponseTimeout("no response within the request time-out"))

    # RECEIVE and RESPOND

    def interim(self, head: ResponseHead) -> None:
        """A 1xx: passed on to whoever may understand it (RFC 9110 15.2)."""
        if self.head.minor == 1:
            self.connection.write(forwarding.interim(head))

    def respond(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        """The head of the answer, what came of its body, and whether that was all."""
        status = head.status
        if (status >= 502 or status == 429) and self._is_not_wanted(head):
            return
        self.state = _RESPONDING
        self.status = status
        self.error = None
        self.head_at = now = self.front.seconds()
        self._response_length = length
        connection = self.connection
        is_http10 = self.head.minor == 0
        if not self.is_request_complete or self.front.is_closing or (is_http10 and length < 0):
            self.keep_alive = False  # the last: only the close can end a body without a length for a client that knows no chunks
        out = forwarding.response(head, length, is_http10, self.keep_alive)
        if body or (is_done and length < 0):
            self.bytes_sent = len(body)
            out += self._framed(body, is_done)
        connection.write(out)
        if is_done:
            self._finish(now)
            return
        connection.stop_waiting()
        upstream = self._upstream
        # The length is unknown, whatever the server's, where a transform sees the body (`transformed`).
        if upstream is None or length < SPLICE_FROM or upstream.body_left < SPLICE_FROM:
            return
        if upstream.transport.is_plain and connection.transport.is_plain:
            self._splice = relay_exactly(upstream.transport, connection.transport, upstream.body_left, self._spliced, self._splice_done)

    def response_data(self, data: bytes, is_done: bool) -> None:
        """More of the answer's body, decoded; `is_done` with its last byte."""
        self.bytes_sent += len(data)
        out = self._framed(data, is_done)
        if out:
            self.connection.write(out)
        if is_done:
            self._finish()

    def _framed(self, data: bytes, is_done: bool) -> bytes:
        """Body bytes as this client is sent them: in chunks when no length is known and the client knows chunks."""
        if self._response_length >= 0 or self.head.minor == 0:
            return data
        out = chunk(data) if data else b""
        return out + last_chunk(self._upstream.trailers if self._upstream is not None else ()) if is_done else out

    def _spliced(self, count: int) -> None:
        self.bytes_sent += count
        self.front.counts.bytes_out += count
        if self._upstream is not None:
            self._upstream.spliced(count)

    def _splice_done(self) -> None:
        self._splice = None
        self._finish()

    def _stop_splice(self) -> None:
        if self._splice is not None:
            self._splice.cancel()
            self._splice = None

    def pause_response(self) -> None:
        """The client does not take the answer as fast as it comes."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_response(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    # TUNNEL

    def switched(self, head: ResponseHead, data: bytes) -> None:
        """101: from now on the two sides talk directly; `data` is what the server said already."""
        upstream, lease, connection = self._upstream, self._lease, self.connection
        assert upstream is not None and lease is not None and self.decision is not None
        if self._upgrade is None or not has_agreed(self.head, head, self._upgrade):
            self.fail(BadResponse("the server switched protocols without being asked to, or without proving that it knows the new one"))
            return
        self.state = State.TUNNEL
        self.status = 101
        self.head_at = self.front.seconds()
        connection.write(forwarding.switching(head, self._upgrade))
        self._upstream = None
        early = connection.take_early()
        self._relay = tunnel(connection, upstream, len(early), self.decision.destination.timeouts, self._tunnel_done)
        lease.on_cut(self._relay.cut)
        self._relay.start(from_a=early, from_b=data)

    def _tunnel_done(self, error: ProxyError | None) -> None:
        assert self._relay is not None
        self.bytes_received = self._relay.bytes_a_to_b
        self.bytes_sent = self._relay.bytes_b_to_a
        self.error = error
        self._finish()

    # Ends that are no answer of a server

    def client_gone(self, error: ProxyError) -> None:
        """The client closed or reset its connection, or takes no byte: whoever works for it may stop."""
        self.keep_alive = False
        self.error = error
        if self.state is not State.RESPONDING:
            self.status = error.status
        self._finish()

    def bad_body(self, error: ProxyError) -> None:
        """The request body cannot be read on: framing is lost, so is the connection."""
        self.keep_alive = False
        self.fail(error)

    def cut(self) -> None:
        """The proxy stops and can wait no longer."""
        if self._relay is not None:
            self._relay.cut(Drained("the proxy is stopping"))
        else:
            self.keep_alive = False
            self.fail(Drained("the proxy is stopping"))

    def fail(self, error: ProxyError) -> None:
        """Answer with `error` if nothing of an answer was sent; else break the connection visibly (faults P7)."""
        self.error = error
        if self.state is State.DONE:
            return
        if self.state is State.RESPONDING:
            self.keep_alive = False
            if self._response_length < 0 and self.head.minor == 0:
                self.connection.transport.abortConnection()
            self._finish()
            return
        self.answer(failure_response(error, self.head, self.request_id))

    def answer(self, local: LocalResponse) -> None:
        """Send a response made here and finish."""
        if not self.is_request_complete or self.front.is_closing:
            self.keep_alive = False
        self.state = _RESPONDING
        self.status = local.status
        body = b"" if self.method == b"HEAD" else local.body
        self.bytes_sent = len(body)
        self.connection.write(response_head(local, self.head.minor, self.keep_alive, date()) + body)
        self._finish()

    def give(self, data: bytes, status: int, body_length: int) -> None:
        """Send a whole answer as it is, head and body, and finish."""
        self.state = _RESPONDING
        self.status = status
        self.bytes_sent = body_length
        self.connection.write(data)
        self._finish()

    # FINISH

    def _finish(self, now: float = 0.0) -> None:
        """Once, whatever happened: give back what was taken, count, log, and let the connection go on."""
        if self.state is _DONE:
            return
        self.state = _DONE
        now = now or self.front.seconds()
        lease, upstream = self._lease, self._upstream
        if self._queued is not None:
            self._queued.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
        if self._splice is not None:
            self._stop_splice()
        if upstream is not None:
            self._upstream = None
            upstream.release(self.error is None and self.is_request_complete, now)
        server = self.served_from
        if lease is not None:
            self._lease = None
            server = lease.server.address
            outcome = _OK if self.error is None and self.status < 500 else self._outcome()
            lease.release(outcome, self.head_at - self.started if self.head_at >= 0 else -1.0)
        if self._retries is not None:
            self._retries.done()
        if self.is_recorded:
            record(self, server, now - self.started)
        self.connection.exchange_done(self, now)

    def _outcome(self) -> Outcome:
        return outcome_of(self.error, self.status) if self._blames_server else Outcome.NEUTRAL


def host_of(server: Server) -> bytes:
    """Host for a request that came without one: the server's own address, ``localhost`` for a unix socket."""
    return b"localhost" if server.address.startswith("unix:") else server.address.encode()
