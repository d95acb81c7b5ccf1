"""The request of a fill: an exchange without a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twistedproxy.clock import Timed
from twistedproxy.errors import ProxyError, ResponseTimeout
from twistedproxy.http.acting import ActingExchange
from twistedproxy.http.cache import freshen
from twistedproxy.http.exchange import Exchange, State
from twistedproxy.http.messages import ResponseHead
from twistedproxy.http.middleware.chain import EditedHead, Edits

if TYPE_CHECKING:
    from twistedproxy.http.cache.fills import Fill


class NoClient(Timed):
    """Where an exchange without a client finds what it asks a client's connection for."""

    __slots__ = ("client", "client_port", "exchange", "front", "is_gone", "local", "response_deadline", "transport")

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self.front = connection.front
        self.client = connection.client
        self.client_port = connection.client_port
        self.local = connection.local
        self.transport = self
        self.is_gone = False
        self.response_deadline = 0.0
        self.exchange: Any = None

    is_plain = False

    def await_response(self, deadline: float) -> None:
        self.response_deadline = deadline
        self.front.wheel.arm(self, deadline)

    def stop_waiting(self) -> None:
        self.front.wheel.disarm(self)

    def deadline_passed(self, now: float) -> None:
        self.exchange.fail(ResponseTimeout("no response within the request time-out"))

    def exchange_done(self, exchange: Any, now: float) -> None:
        self.front.wheel.disarm(self)
        self.exchange = None

    def resume_reading(self) -> None:
        """There is no request body."""

    def pause_reading(self) -> None:
        """As above."""

    def splice_body(self, sink: Any) -> None:
        """As above."""

    def write(self, data: bytes) -> None:
        """A 1xx, which is for a client."""


class Fetch(ActingExchange):
    """The request of a fill: an exchange whose answer goes to the fill. It is neither counted nor logged; its followers are."""

    is_recorded = False

    def __init__(self, fill: Fill, leader: Any) -> None:
        connection: Any = NoClient(leader.connection)
        Exchange.__init__(self, connection, leader.head, leader.request_id, connection.front.seconds())
        connection.exchange = self
        self.fill = fill
        self.leader = leader
        self.client_ip = leader.client_ip
        self.decision = leader.decision
        self.actions = leader.actions
        self.is_request_complete = True
        self._prefer = leader._prefer
        self.destination: Any = None
        self._is_moved = leader._is_moved

    def begin_fetch(self, destination: Any, conditions: tuple[tuple[bytes, bytes], ...]) -> None:
        """Ask for the whole thing, whatever part of it the first client wants; with `conditions`, only if it has changed."""
        self.destination = destination
        outgoing: Any = self.leader.outgoing
        remove = [name for name in freshen.FILL_REMOVES if outgoing.get(name) is not None]
        if conditions or remove:
            put = [(name, _constant(value)) for name, value in conditions]
            outgoing = EditedHead(outgoing, Edits(put=put, remove=remove), self.leader)
        self.outgoing = outgoing
        timeouts = destination.timeouts
        self.response_idle_s = timeouts.response_idle_s
        self.connection.await_response(self.started + timeouts.request_s)
        self._acquire(destination)

    def take_over(self, leader: Any) -> None:
        """Go on where `leader` is, which has asked by itself until now."""
        self.state = State.SENT
        self.started = leader.started
        self.destination = leader.decision.destination
        self.outgoing = leader.outgoing
        self.response_idle_s = leader.response_idle_s
        self.attempts = leader.attempts
        self._lease, leader._lease = leader._lease, None
        self._retries, leader._retries = leader._retries, None
        upstream, leader._upstream = leader._upstream, None
        self._upstream = upstream
        upstream.exchange = self
        self.connection.await_response(leader.connection.response_deadline)

    def abandon(self) -> None:
        """Nobody wants the answer any more."""
        self._finish()

    # What upstream and pool tell

    def interim(self, head: ResponseHead) -> None:
        self.leader.hear_interim(head)

    def respond(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        if (head.status >= 502 or head.status == 429) and self._is_not_wanted(head):
            return
        self.state = State.RESPONDING
        self.status = head.status
        self.error = None
        self.head_at = self.front.seconds()
        self.connection.stop_waiting()
        fill = self.fill
        if is_done:
            self._finish()
        fill.answered(head, length, body, is_done)
        if not is_done and not fill.is_open:
            self._finish()

    def response_data(self, data: bytes, is_done: bool) -> None:
        fill = self.fill
        if is_done:
            self._finish()
        fill.data(data)
        if is_done:
            fill.ended()

    def fail(self, error: ProxyError) -> None:
        if self.state is State.DONE:
            return
        fill = self.fill
        self.error = error
        self._finish()
        if fill.fetch is self and fill.is_open:
            fill.failed(error)

    @property
    def server_address(self) -> str:
        """Who was asked."""
        return self._lease.server.address if self._lease is not None else self._asked

    _asked = ""

    def _finish(self, now: float = 0.0) -> None:
        if self._lease is not None:
            self._asked = self._lease.server.address
        if self.state is State.DONE:
            return
        super()._finish(now)
        # The fill leads here too, and has a file open, which is to be closed with the last who reads it, not by the collector.
        del self.fill


def _constant(value: bytes) -> Any:
    return lambda exchange: value
