"""Joins two transports: what one sends, the other gets, in order, with its FIN after it; a reset stays a reset.

How it works
    Each direction is a `_Direction`: the protocol of the transport it reads from and the producer of the one it writes to. Small
    reads are `recv` and an immediate `send`. Once a read returns 32 KiB while the sink has nothing waiting, the direction
    goes through a pipe in the kernel (`splice.py`) until reads are small again. When the sink is full, the source is not read.

    A direction is OPEN, then EOF_READ (its source has sent FIN and everything before it was read), FLUSHING (the sink still holds some
    of that), then FIN_SENT. Both at FIN_SENT: done. The first reset, error or write stall of either leg aborts the other leg. Nothing
    buffered is ever followed by a FIN that the source has not sent.

    Idleness is noticed by looking at the byte counts 20 times per limit, so it costs nothing per read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from twisted.python.failure import Failure

from twistedproxy.clock import Timed, Wheel
from twistedproxy.errors import ClientGone, IdleTimeout, Phase, ProxyError, ServerClosed, ServerStall, WriteStall
from twistedproxy.net.sides import Plain
from twistedproxy.net.splice import PIPES, Splice
from twistedproxy.net.transport import Transport

SPLICE_FROM = 32 * 1024
"""A read of so many bytes means a bulk transfer."""
LOOKS_PER_LIMIT = 20
LONGEST_LOOK_S = 2.5


class DirectionState(Plain):
    OPEN = "open"
    EOF_READ = "eof read"
    FLUSHING = "flushing"
    FIN_SENT = "fin sent"


TRANSITIONS: dict[DirectionState, frozenset[DirectionState]] = {
    DirectionState.OPEN: frozenset((DirectionState.EOF_READ,)),
    DirectionState.EOF_READ: frozenset((DirectionState.FLUSHING, DirectionState.FIN_SENT)),
    DirectionState.FLUSHING: frozenset((DirectionState.FIN_SENT,)),
    DirectionState.FIN_SENT: frozenset(),
}


class _Direction:
    """From one transport to the other; Twisted's names are called by the source, `pauseProducing` and its opposite by the sink."""

    __slots__ = ("source", "sink", "relay", "state", "count", "write")

    resets_at_once: ClassVar[bool] = True

    def __init__(self, source: Transport, sink: Transport, relay: Relay) -> None:
        self.source = source
        self.sink = sink
        self.relay: Relay | None = relay
        """None once the relay is done, so that nothing is left for the garbage collector."""
        self.state = DirectionState.OPEN
        self.count = 0
        """Bytes read from the source that went to the sink or its buffer."""
        self.write: Callable[[bytes], None] = sink.write

    def dataReceived(self, data: bytes) -> None:
        count = len(data)
        self.count += count
        self.write(data)
        if count >= SPLICE_FROM:
            self._take_pipe()

    def _take_pipe(self) -> None:
        source, sink = self.source, self.sink
        if source.is_plain and sink.is_plain and not sink.buffered and not source.is_closed and not sink.is_closed:
            pipe = PIPES.take()
            if pipe is not None:
                Splice(source, sink, pipe, None, self._spliced, None)

    def _spliced(self, count: int) -> None:
        self.count += count

    def readConnectionLost(self) -> None:
        self._move(DirectionState.EOF_READ)
        if self.relay is not None:
            self.relay.half_closed()
        self.sink.loseWriteConnection(self._fin_sent)
        if self.state is DirectionState.EOF_READ:
            self._move(DirectionState.FLUSHING)

    def _fin_sent(self) -> None:
        self._move(DirectionState.FIN_SENT)

    def connectionLost(self, reason: Failure) -> None:
        if self.relay is not None:
            self.relay.leg_lost(self, reason)

    def pauseProducing(self) -> None:
        self.source.pauseProducing()

    def resumeProducing(self) -> None:
        self.source.resumeProducing()

    def _move(self, to: DirectionState) -> None:
        assert to in TRANSITIONS[self.state], f"{self.state} to {to}"
        self.state = to


class Relay(Timed):
    """A session or tunnel between `a` (the client's side) and `b` (the server's).

    `on_done(error)` is called exactly once, when both transports are closed: None after FIN both ways, else the reason.
    `on_bytes(a_to_b, b_to_a)` gets what was added since its last call, now and then and at the end.
    """

    __slots__ = ("a", "b", "_a_to_b", "_b_to_a", "_wheel", "_idle_s", "_half_closed_s", "_limit_s", "_on_done", "_on_bytes",
                 "_told_a_to_b", "_told_b_to_a", "_active_at", "_is_half_closed", "_error")  # fmt: skip

    def __init__(
        self,
        a: Transport,
        b: Transport,
        wheel: Wheel,
        *,
        idle_s: float,
        half_closed_s: float,
        on_done: Callable[[ProxyError | None], None],
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.a = a
        self.b = b
        self._a_to_b = _Direction(a, b, self)
        self._b_to_a = _Direction(b, a, self)
        self._wheel = wheel
        self._idle_s = idle_s
        self._half_closed_s = half_closed_s
        self._limit_s = idle_s
        self._on_done: Callable[[ProxyError | None], None] | None = on_done
        self._on_bytes = on_bytes
        self._told_a_to_b = 0
        self._told_b_to_a = 0
        self._active_at = 0.0
        self._is_half_closed = False
        self._error: ProxyError | None = None

    def __repr__(self) -> str:
        return f"<Relay a>b {self._a_to_b.state.value} {self.bytes_a_to_b}, b>a {self._b_to_a.state.value} {self.bytes_b_to_a}>"

    @property
    def bytes_a_to_b(self) -> int:
        return self._a_to_b.count

    @property
    def bytes_b_to_a(self) -> int:
        return self._b_to_a.count

    @property
    def is_done(self) -> bool:
        return self._on_done is None

    def start(self, from_a: bytes = b"", from_b: bytes = b"") -> None:
        """Become the protocol of both, started already or not. `from_a`, `from_b`: bytes that were read before."""
        self._active_at = self._wheel.seconds()
        self._look_again(self._active_at)
        for transport, reads, writes in ((self.a, self._a_to_b, self._b_to_a), (self.b, self._b_to_a, self._a_to_b)):
            transport.protocol = reads
            transport.registerProducer(writes)
        for direction, data in ((self._a_to_b, from_a), (self._b_to_a, from_b)):
            if data:
                direction.dataReceived(data)
        for transport, direction in ((self.a, self._a_to_b), (self.b, self._b_to_a)):
            if transport.is_closed:
                # It was lost before we were its protocol, so nobody will tell us.
                self.leg_lost(direction, None)
                return
        for direction in (self._a_to_b, self._b_to_a):
            if direction.source.has_ended:
                direction.readConnectionLost()
            elif not direction.sink.is_full:
                direction.source.resumeProducing()

    def cut(self, error: ProxyError) -> None:
        """End it now with a reset on both sides; `on_done(error)` is called before this returns."""
        self._end(error)

    def half_closed(self) -> None:
        """FIN was read on one side: from now on the shorter limit counts."""
        if not self._is_half_closed:
            self._is_half_closed = True
            self._limit_s = min(self._idle_s, self._half_closed_s)
            now = self._wheel.seconds()
            self._active_at = now
            self._look_again(now)

    def leg_lost(self, direction: _Direction, reason: Failure | None) -> None:
        """The source of `direction` is closed: both its ways are done, or it broke."""
        other = self._b_to_a if direction is self._a_to_b else self._a_to_b
        if direction.state is not DirectionState.OPEN and other.state is DirectionState.FIN_SENT:
            if other.source.is_closed:
                self._end(None)
            return
        self._end(self._blame(direction, reason))

    def _blame(self, direction: _Direction, reason: Failure | None) -> ProxyError:
        is_client = direction is self._a_to_b
        value = reason.value if reason is not None else None
        what = str(value) if value is not None else "it was closed"
        error: ProxyError
        if isinstance(value, WriteStall):
            error = value if is_client else ServerStall(value.detail)
        elif is_client:
            error = ClientGone(f"the client's connection broke: {what}")
        else:
            error = ServerClosed(f"the server's connection broke: {what}")
        error.phase = Phase.TUNNEL
        return error

    def _end(self, error: ProxyError | None) -> None:
        told, self._on_done = self._on_done, None
        if told is None:
            return
        self._wheel.disarm(self)
        self._tell_bytes()
        self._a_to_b.relay = self._b_to_a.relay = None
        self.a.abortConnection()
        self.b.abortConnection()
        told(error)

    # Looking for idleness

    def _look_again(self, now: float) -> None:
        self._wheel.arm(self, now + min(self._limit_s / LOOKS_PER_LIMIT, LONGEST_LOOK_S))

    def deadline_passed(self, now: float) -> None:
        if self._on_done is None:
            return
        if self._tell_bytes():
            self._active_at = now
        elif now >= self._active_at + self._limit_s:
            half = " after one side had ended" if self._is_half_closed else ""
            self._end(IdleTimeout(f"no byte went either way for {self._limit_s:g} s{half}"))
            return
        self._look_again(now)

    def _tell_bytes(self) -> bool:
        """Report what was added; was there anything?"""
        a_to_b = self._a_to_b.count - self._told_a_to_b
        b_to_a = self._b_to_a.count - self._told_b_to_a
        if not a_to_b and not b_to_a:
            return False
        self._told_a_to_b += a_to_b
        self._told_b_to_a += b_to_a
        if self._on_bytes is not None:
            self._on_bytes(a_to_b, b_to_a)
        return True


def relay_exactly(
    source: Transport, sink: Transport, count: int, on_progress: Callable[[int], None], on_done: Callable[[], None]
) -> Splice:
    """Move the next `count` bytes from socket to socket, after what the sink has waiting.

    `on_progress(n)` for bytes that the sink took, `on_done()` after the last one, when the source is its protocol's again; neither
    is called before this returns. Meanwhile nobody may write to the sink; the splice waits for room in it by itself. EOF or an
    error before `count` end it and go to the protocols as usual, after what had come was moved. Only between two plain transports.
    """
    if count <= 0 or not (source.is_plain and sink.is_plain):
        raise ValueError("relay_exactly moves at least one byte between two plain transports")
    splice = Splice(source, sink, PIPES.take(), count, on_progress, on_done)
    source.resumeProducing()
    return splice
