"""A request body on its way from the client: its framing, its pace, and the short cut through the kernel.

Made for requests that have a body, so that connections without one carry nothing of it. The pace is held against the client only
while the client is the slow one: a pause of ours, a wait for 100 Continue or a slow server starts the measure anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twistedproxy.errors import BodyTimeout, ProxyError
from twistedproxy.http.bodies import LengthReader
from twistedproxy.http.h1 import ChunkedReader
from twistedproxy.http.messages import CHUNKED
from twistedproxy.net.relay import relay_exactly
from twistedproxy.net.splice import Splice
from twistedproxy.net.transport import Transport

if TYPE_CHECKING:
    from twistedproxy.http.connection import FrontConnection
    from twistedproxy.http.exchange import Exchange

MIN_RATE_AFTER_S = 10.0
"""The minimum body rate is held against a client from this age of the body on."""
SPLICE_FROM = 128 * 1024
"""Bytes still to come from which moving them inside the kernel pays for the pipe."""


class Upload:
    """The body of the request that `connection` reads and `exchange` carries; `length` is its bytes, or CHUNKED."""

    __slots__ = ("body", "idle_s", "_connection", "_exchange", "_rate_since", "_rate_bytes", "_splice")

    def __init__(self, connection: FrontConnection, exchange: Exchange, length: int) -> None:
        self.body: LengthReader | ChunkedReader = ChunkedReader() if length == CHUNKED else LengthReader(length)
        self._connection = connection
        self._exchange = exchange
        self._rate_since = connection.front.seconds()
        self._rate_bytes = 0
        self._splice: Splice | None = None
        self.idle_s = connection.front.timeouts.body_idle_s
        """How long the client may be silent."""

    def receive(self, data: bytes) -> None:
        """More bytes of the client's."""
        exchange, body, connection = self._exchange, self.body, self._connection
        try:
            payload = body.feed(data)
            self._check_rate(len(data))
        except ProxyError as error:
            exchange.bad_body(error)
            return
        if payload:
            exchange.request_data(payload)
        if body.is_done and connection.exchange is exchange:
            connection.body_ended(body.leftover)
            exchange.request_complete(body.trailers)

    def _check_rate(self, count: int) -> None:
        """Set the next deadline; `BodyTimeout` when the body has come slower than the listener's minimum for long."""
        front = self._connection.front
        now = front.seconds()
        if not self._rate_bytes:  # the wait before it says nothing about the rate
            self._rate_since = now
        self._rate_bytes += count
        elapsed = now - self._rate_since
        if elapsed > MIN_RATE_AFTER_S and self._rate_bytes < front.min_body_rate * elapsed:
            raise BodyTimeout(f"the body comes slower than {front.min_body_rate:g} bytes per second")
        front.wheel.arm(self._connection, now + self.idle_s)

    def await_more(self) -> None:
        """The client may send (again): from now on its silence counts."""
        front = self._connection.front
        self._rate_bytes = 0
        front.wheel.arm(self._connection, front.seconds() + self.idle_s)

    def deadline_passed(self) -> None:
        if self._splice is not None and self._splice.is_blocked:  # the server is silent, and its transport watches that
            self.await_more()
        else:
            self._exchange.bad_body(BodyTimeout("the body stopped coming"))

    # Through the kernel

    def splice_to(self, sink: Transport) -> None:
        """What is left of a long body of known length goes from socket to socket."""
        body, source = self.body, self._connection.transport
        if isinstance(body, LengthReader) and body.left >= SPLICE_FROM and source.is_plain and sink.is_plain:
            self._splice = relay_exactly(source, sink, body.left, self._spliced, self._splice_done)

    def _spliced(self, count: int) -> None:
        body = self.body
        assert isinstance(body, LengthReader)
        body.left -= count
        self._connection.front.counts.bytes_in += count
        self._exchange.request_spliced(count)
        if self._splice is not None and self._splice.is_blocked:
            self._rate_bytes = 0  # the server was the slow one
        try:
            self._check_rate(count)
        except BodyTimeout as error:
            self._exchange.bad_body(error)

    def _splice_done(self) -> None:
        self._splice = None
        self._connection.body_ended(b"")
        self._exchange.request_complete(())

    def cancel(self) -> None:
        """The exchange is over before its body."""
        if self._splice is not None:
            self._splice.cancel()
            self._splice = None
