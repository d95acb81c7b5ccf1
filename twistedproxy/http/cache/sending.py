"""An exchange whose answer's body is read from somewhere, as fast as the client takes it: a fill that grows, or a kept file.

How it works
    The source is read a piece at a time while the client's transport takes them. A long rest of a kept file that nobody needs to look
    at goes from the file to the socket inside the kernel. Of an answer with parts (206), each part has a few bytes before it. A file that
    lies ready (`ready`) is given by `give_file`: only what the socket does not take at once needs a `SendingExchange`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from twistedproxy.errors import BrokenCopy
from twistedproxy.http.acting import ActingExchange
from twistedproxy.http.cache import ranges
from twistedproxy.http.cache.fills import PIECE
from twistedproxy.http.cache.kept import Kept
from twistedproxy.http.exchange import Exchange, State
from twistedproxy.http.messages import ResponseHead
from twistedproxy.net.sendfile import FileSend, send_at_once

if TYPE_CHECKING:
    from twistedproxy.http.cache.disk import Reader

PIECES_PER_TURN = 4
"""So many are given to one client before others have their turn: sockets may take megabytes at once."""
SEND_FROM = 32 * 1024
"""Bytes of a file from which sending them inside the kernel pays."""


_RESPONDING = State.RESPONDING


class SendingExchange(ActingExchange):
    """An exchange with a source."""

    position = 0
    """How much of the body went to the client; of parts: where in the whole the next byte is."""
    _source: Any = None
    """Where the rest of the body is read: a fill or a file."""
    _end: int | None = None
    """Where in it this answer ends; None: where it does."""
    _parts: deque[ranges.Part] | None = None
    """Those that are still to come, of an answer with parts."""
    _after = b""
    _is_paused = False
    _goes_on = False
    """It has a turn of its own in a moment."""
    _sending: FileSend | None = None

    def _give(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        """An answer from the cache, or from a fill: on its way like any server's."""
        ActingExchange.respond(self, head, length, body, is_done)

    def _next_part(self) -> bytes:
        assert self._parts is not None
        part = self._parts.popleft()
        self.position = part.first
        self._end = part.first + part.length
        return part.before

    def _pump(self) -> None:
        source = self._source
        if self._is_sent_by_kernel(source):
            return
        for _ in range(PIECES_PER_TURN):
            if self.state is not State.RESPONDING or source is None or self._is_paused:
                return
            data, is_done = self._next_piece(source)
            if not data and not is_done:
                return
            super().response_data(data, is_done)
            source.progressed()
        if self.state is State.RESPONDING and not self._is_paused and not self._goes_on:
            self._goes_on = True
            self.connection.transport.reactor.soon(self._go_on_pumping, None)

    def _go_on_pumping(self, _: object) -> None:
        """Others had their turn."""
        self._goes_on = False
        if self.state is State.RESPONDING:
            self._pump()

    def _is_sent_by_kernel(self, source: Any) -> bool:
        """A long rest of a file that nobody needs to look at goes from the file to the socket; True while it does."""
        if self._sending is not None:
            return True
        end, transport = self._end, self.connection.transport
        if not isinstance(source, Kept) or end is None or self._parts or self._after or end - self.position < SEND_FROM:
            return False
        if self.state is not State.RESPONDING or not transport.is_plain or self._response_length < 0 or self.transform is not None:
            return False
        self._sending = source.send(transport, self.position, end - self.position, self._kernel_sent, self._kernel_done)
        self._sending.begin()
        return True

    def _kernel_sent(self, count: int) -> None:
        self.position += count
        self.bytes_sent += count
        self.front.counts.bytes_out += count

    def _kernel_done(self, is_whole: bool) -> None:
        self._sending = None
        if is_whole:
            self._finish()
        else:
            self.fail(BrokenCopy("what is kept of the answer is damaged"))

    def send_on(self, file: Kept, first: int, length: int) -> None:
        """The rest of an answer whose beginning was sent, when its client takes it."""
        self.position = self.bytes_sent = first
        self._sending = file.send(self.connection.transport, first, length - first, self._kernel_sent, self._kernel_done)
        self.connection.stop_waiting()
        self._sending.begin()

    def _next_piece(self, source: Any) -> tuple[bytes, bool]:
        end = self._end
        most = PIECE if end is None else min(PIECE, end - self.position)
        data: bytes | None = source.read(self.position, most) if most else b""
        if data is None:
            self.fail(BrokenCopy("what is kept of the answer is damaged"))
            return b"", False
        self.position += len(data)
        if end is None:
            return data, source.is_complete and self.position == source.size
        if self.position < end:
            return data, False
        if self._parts:
            return data + self._next_part(), False
        return data + self._after, True

    def pause_response(self) -> None:
        self._is_paused = True
        super().pause_response()

    def resume_response(self) -> None:
        self._is_paused = False
        super().resume_response()
        self._pump()

    def _finish(self, now: float = 0.0) -> None:
        if self.state is State.DONE:
            return
        super()._finish(now)
        self._source = None
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.cancel()


def give_file(exchange: Exchange, head: bytes, status: int, reader: Reader) -> None:
    """Send a whole answer as it is, from a file whose first block was verified. Nearly always a socket takes all of it at once."""
    connection = exchange.connection
    length = reader.length
    assert length is not None
    exchange.state = _RESPONDING
    exchange.status = status
    sent = send_at_once(connection.transport, head, reader.fd, reader.body_offset, min(length, reader.head.block))
    connection.front.counts.bytes_out += len(head) + sent
    if sent == length:
        exchange.bytes_sent = sent
        exchange._finish()
        return
    exchange.__class__ = SendingExchange
    assert isinstance(exchange, SendingExchange)
    exchange.send_on(Kept(reader), sent, length)
