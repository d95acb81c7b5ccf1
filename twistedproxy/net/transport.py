"""One connected stream socket, made so that an exchange costs one `recv` and one `send` and nothing else.

It has over 500 lines and its class over 300 lines because all of it acts on one buffer and one descriptor: a second object for each
connection would cost memory and a call on every read and write.

How it works
    `write` sends at once; what the kernel refuses is kept in one bytearray and sent when epoll says so. Reading goes on without
    any epoll call between exchanges. It implements Twisted's reader/writer interface on its own: no base class, slots only.

    Three small states instead of flags: `State` is the connection's life, `ReadSide` and `WriteSide` its two halves.

    *Who is told what.* The protocol gets `dataReceived(bytes)`, `readConnectionLost()` once at EOF, and `connectionLost(Failure)`
    exactly once. Nothing is ever delivered from inside a call of the protocol into the transport: `abortConnection`, `loseConnection` with
    nothing left to send, and a failing `write` close the socket at once or stop sending, and tell from the reactor's next turn.
    When EOF was read and FIN was sent, in whichever order, the connection is over: it closes itself with `ConnectionDone`.

    *A reset stays a reset.* After a send has failed, what the peer had sent before is still delivered, but its end is
    `connectionLost(error)` and never EOF.

    *Deadlines.* The transport is itself `Timed`. While output waits, the peer must take a byte every `write_stall_s`; every 5 s once
    `loseConnection` or `linger` was called. Taken means acknowledged, as the kernel's send queue shows it: epoll wakes us only when a
    third of that queue is free, which a slow but living reader may need minutes for. The queue is looked at 20 times per limit.

    *Producers.* One push producer per connection, paused above `HIGH_WATER`, resumed at `LOW_WATER`. Losing the
    connection never calls `stopProducing`: the owner hears `connectionLost` and decides.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.clock import NEVER, Timed, Wheel
from twistedproxy.errors import WriteStall
from twistedproxy.net.sides import TRANSITIONS, PeerSeen, Producer, ReadSide, Receiver, State, WriteSide

if TYPE_CHECKING:
    from twistedproxy.net.sendfile import FileSend
    from twistedproxy.net.splice import Splice

READ_BYTES = 65536
HIGH_WATER = 65536
LOW_WATER = 16384
HARD_CAP = 1024 * 1024
CLOSE_STALL_S = 5.0
"""Without progress for so long while closing: aborted."""
LINGER_BYTES = 64 * 1024
LINGER_S = 5.0
LOOKS_PER_STALL = 20

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_DONE = Failure(ConnectionDone())


_OPEN = State.OPEN
_CLOSING = State.CLOSING
_LINGERING = State.LINGERING
_CLOSED = State.CLOSED
_FLOWING = ReadSide.FLOWING
_PAUSED = ReadSide.PAUSED
_ENDED = ReadSide.ENDED
_MAY_SEND = WriteSide.OPEN
_FINISHING = WriteSide.FINISHING


def tune(sock: socket.socket) -> None:
    """No delay, keepalive after 60 s (every 10 s, 3 times), 90 s without an acknowledgement is the end; TCP only.

    Linux hands these on from a listening socket to every connection it accepts, so accepted sockets need no call at all.
    """
    if sock.family != socket.AF_UNIX:
        tune_tcp(sock)


def tune_tcp(sock: socket.socket) -> None:
    setsockopt = sock.setsockopt
    setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000)


@implementer(IReadWriteDescriptor, IHalfCloseableDescriptor)
class Transport(Timed):
    """One connected, non-blocking stream socket, TCP or unix, with its output buffer.

    A flavour that encrypts passes its own `_recv` and `_send` (same contract as the socket's: `BlockingIOError` when nothing can be done).
    """

    __slots__ = ("reactor", "wheel", "sock", "protocol", "peer", "peer_port", "buffered", "state", "error", "write_stall_s",
                 "splice_in", "splice_out", "_recv", "_send", "_fd", "_out", "_read", "_write", "_producer", "_producer_waits",
                 "_on_fin", "_on_hangup", "_unsent", "_progress_at")  # fmt: skip

    stays_watched: ClassVar[bool] = True
    is_plain: ClassVar[bool] = True
    """The bytes of the socket are the bytes of the protocol: may be spliced."""

    def __init__(self, reactor: Any, wheel: Wheel, sock: socket.socket, peer: str, peer_port: int = 0, write_stall_s: float = 30.0) -> None:
        self.deadline = self.look_at = NEVER  # as Timed.__init__ does, without the call
        self.reactor = reactor
        self.wheel = wheel
        self.sock = sock
        self._fd = sock.fileno()
        self._recv = sock.recv
        self._send = sock.send
        self.protocol: Receiver | None = None
        self.peer = peer
        """IP of the other side; "" for a unix socket."""
        self.peer_port = peer_port
        self.write_stall_s = write_stall_s
        self.buffered = 0
        """Bytes taken by `write` that the kernel has not taken yet."""
        self.state = _OPEN
        self.error: Exception | None = None
        """Why nothing can be sent any more, although the owner was not told yet."""
        self.splice_in: Splice | None = None
        """Takes over reading while it is set."""
        self.splice_out: Splice | FileSend | None = None
        """Writes here, once the buffer is empty, while it is set."""
        self._out: bytearray | None = None
        self._read = _PAUSED
        self._write = _MAY_SEND
        self._producer: Producer | None = None
        self._producer_waits = False
        self._on_fin: Callable[[], None] | None = None
        self._on_hangup: Callable[[], None] | None = None
        self._unsent = 0
        """What waited at the last look for progress (-1: progress was made since); while lingering, the bytes discarded."""
        self._progress_at = 0.0

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} fd={self._fd} peer={self.peer} {self.state.value} read={self._read.value} write={self._write.value}>"
        )

    def start(self, protocol: Receiver, reading: bool = True) -> None:
        """Begin: `protocol` hears from here on. Without `reading` not a byte is read before `resumeProducing`."""
        self.protocol = protocol
        if reading:
            self.resumeProducing()

    @property
    def local(self) -> tuple[str, int]:
        """(IP, port) of our side; ("", 0) for a unix socket or once closed."""
        try:
            name = self.sock.getsockname()
        except OSError:
            return ("", 0)
        return (name[0], name[1]) if isinstance(name, tuple) else ("", 0)

    @property
    def is_closed(self) -> bool:
        return self.state is _CLOSED

    @property
    def has_ended(self) -> bool:
        """Nothing more will be read."""
        return self._read is _ENDED

    @property
    def is_full(self) -> bool:
        """Its producer was asked to wait."""
        return self._producer_waits

    # Reading

    def doRead(self) -> None:
        if self.splice_in is not None:
            self.splice_in.source_readable()
            return
        try:
            data = self._recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as e:
            self.lose(e)
            return
        if data:
            if self.state is _LINGERING:
                self._discard(len(data))
            else:
                self.protocol.dataReceived(data)  # type: ignore[union-attr]
        else:
            self.end_of_input()

    def end_of_input(self) -> None:
        """EOF: told as such, unless the connection had failed already or is over with it."""
        if self.error is not None:
            self.lose(self.error)
            return
        is_over = self._write is WriteSide.FINISHED
        if is_over:
            self._read = _ENDED
        else:
            self._stop_reading(_ENDED)
        if self.state is _OPEN:
            self.protocol.readConnectionLost()  # type: ignore[union-attr]
        if is_over:
            self.lose(None)

    def pauseProducing(self) -> None:
        """Stop reading. With nothing to write either, only a reset is noticed; deadlines are the owner's."""
        if self._read is _FLOWING:
            self._stop_reading(_PAUSED)

    def resumeProducing(self) -> None:
        """Read again; does nothing after EOF or close."""
        if self._read is _PAUSED and self.state is _OPEN:
            self._on_hangup = None
            self._read = _FLOWING
            if self.splice_in is None or not self.splice_in.is_blocked:
                self.reactor.addReader(self)

    def _stop_reading(self, side: ReadSide) -> None:
        self._read = side
        if self.state is not _CLOSED:
            self.reactor.removeReader(self)

    def receive(self, limit: int) -> bytes:
        """For a splice without a pipe: what there is, up to READ_BYTES; raises as `socket.recv` does."""
        return self._recv(min(limit, READ_BYTES))

    def hold_reading(self) -> None:
        """A splice waits for its sink: no reading, whatever the owner says. One that asks for it by `peer_left` hears of FIN meanwhile."""
        if self.state is not _CLOSED:
            self.reactor.removeReader(self)
            told = getattr(self.protocol, "peer_left", None)
            if told is not None:
                self._watch_for_fin(told)

    def release_reading(self) -> None:
        """The splice's sink has room again."""
        if self._read is _FLOWING:
            self._on_hangup = None
            self.reactor.addReader(self)

    def await_writable(self) -> None:
        """A splice has bytes for us that the kernel refused."""
        self.reactor.addWriter(self)
        self.watch_for_stall()

    # Writing

    def write(self, data: bytes) -> None:
        """Send now what the kernel takes, the rest later. Never raises; nothing happens after close."""
        if self.buffered or self._write is not _MAY_SEND:
            if self._write is _MAY_SEND and data:
                self._buffer(data)
            return
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as e:
            self.fail_write(e)
            return
        if sent != len(data):
            self._buffer(memoryview(data)[sent:] if sent else data)

    def writeSequence(self, iterable: Iterable[bytes]) -> None:
        self.write(b"".join(iterable))

    def _buffer(self, data: bytes | memoryview) -> None:
        if self._out is None:
            self._out = bytearray(data)
            self.reactor.addWriter(self)
            self.watch_for_stall()
        else:
            self._out += data
        self.buffered = waiting = len(self._out)
        if waiting > HIGH_WATER:
            if waiting > HARD_CAP:
                self.fail_write(WriteStall(f"more than {HARD_CAP} bytes were waiting to be sent"), is_fatal=True)
            elif self._producer is not None and not self._producer_waits:
                self._producer_waits = True
                self._producer.pauseProducing()

    def doWrite(self) -> None:
        out = self._out
        if out is not None:
            try:
                sent = self._send(out)
            except BlockingIOError:
                return
            except OSError as e:
                self.fail_write(e)
                return
            self._unsent = -1
            if sent == len(out):
                self._out = None
                self.buffered = 0
            else:
                del out[:sent]
                self.buffered = len(out)
            if self._producer_waits and self.buffered <= LOW_WATER:
                self._producer_waits = False
                self._producer.resumeProducing()  # type: ignore[union-attr]
            if self.buffered or self._write is WriteSide.FAILED or self.state is _CLOSED:
                return
        if self.splice_out is not None:
            self.splice_out.sink_writable()  # its end may write here, or end us
            if self.buffered or (self.splice_out is not None and self.splice_out.held):
                return
        self._flushed()

    def _flushed(self) -> None:
        """Nothing waits any more: stop watching, then do what was put off until now."""
        if self.state is _CLOSED or self._write is WriteSide.FAILED:
            return
        self.reactor.removeWriter(self)
        if self.state is _LINGERING and self._write is WriteSide.FINISHED:
            return  # the deadline is that of discarding by now
        self.wheel.disarm(self)
        if self.state is _CLOSING:
            self.lose(None)
        elif self._write is _FINISHING:
            is_over, error = self._send_fin()
            if is_over:
                self.lose(error)

    def _send_fin(self) -> tuple[bool, Exception | None]:
        """Send FIN; says whether the connection is over with it, and with which error."""
        self._write = WriteSide.FINISHED
        if self._read is not _ENDED:  # else closing sends FIN
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as e:  # the peer has reset the connection
                return True, e
        if self._on_fin is not None:
            told, self._on_fin = self._on_fin, None
            told()
        if self.state is _LINGERING:
            self._begin_discarding()
        return self._read is _ENDED, None

    def fail_write(self, error: Exception, is_fatal: bool = False) -> None:
        """Drop the output. While we read, the reader finds out after what the peer sent before; else it is told next turn."""
        self._write = WriteSide.FAILED
        self.error = error
        self._out = None
        self.buffered = 0
        if self.state is not _CLOSED:
            self.reactor.removeWriter(self)
        self.wheel.disarm(self)
        self._soon(self._lose_after_failure, is_fatal)

    def _lose_after_failure(self, is_fatal: bool) -> None:
        error = self.error
        if self.state is _CLOSED or error is None:
            return
        is_reset = isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ECONNRESET)
        if is_fatal or not is_reset or self._read is not _FLOWING:
            self.lose(error)

    # Ending

    def loseConnection(self) -> None:
        """Send what is left, then close; nothing is read any more."""
        if self.state is not _OPEN:
            return
        self._move(_CLOSING)
        if self._has_output():
            self._stop_reading(_ENDED)
            self.watch_for_stall()
        else:
            self._lose_soon(self.error)

    def loseWriteConnection(self, on_sent: Callable[[], None] | None = None) -> None:
        """Send what is left, then FIN; `on_sent` is called at once if FIN could be sent at once. Reading goes on."""
        if self.state is not _OPEN or self._write is not _MAY_SEND:
            return
        self._write = _FINISHING
        self._on_fin = on_sent
        if not self._has_output():
            self._finish()

    def linger(self) -> None:
        """Send what is left and FIN, then read and discard for at most 5 s or 64 KiB, then close.

        For the last answer while the client still sends: closing with unread input would make the kernel reset the
        connection, and the client might never see the answer.
        """
        if self.state is not _OPEN:
            return
        if self._read is _ENDED or self._write is WriteSide.FAILED:
            self.loseConnection()
            return
        self._move(_LINGERING)
        self._stop_reading(_PAUSED)
        if self._write is WriteSide.FINISHED:
            self._begin_discarding()
            return
        self._write = _FINISHING
        if self._has_output():
            self.watch_for_stall()
        else:
            self._finish()

    def _begin_discarding(self) -> None:
        self._unsent = 0
        self._read = _FLOWING
        self.reactor.addReader(self)
        self.wheel.arm(self, self.wheel.seconds() + LINGER_S)

    def _discard(self, count: int) -> None:
        self._unsent += count
        if self._unsent > LINGER_BYTES:
            self.lose(None)

    def abortConnection(self) -> None:
        """Reset the connection: the socket is closed at once, `connectionLost` comes from the reactor's next turn."""
        if self.state is not _CLOSED:
            self._lose_soon(self.error or ConnectionAborted())

    def _finish(self) -> None:
        """Send FIN from inside a call of the owner: if the connection is over with it, that is told next turn."""
        is_over, error = self._send_fin()
        if is_over and self.state is not _CLOSED:
            self._lose_soon(error)

    def _lose_soon(self, error: Exception | None) -> None:
        protocol = self._close(reset=error is not None)
        if protocol is not None:
            self._soon(protocol.connectionLost, _DONE if error is None else Failure(error))

    def _soon(self, call: Callable[[Any], None], argument: Any) -> None:
        soon = getattr(self.reactor, "soon", None)
        if soon is not None:
            soon(call, argument)
        else:
            self.reactor.callLater(0, call, argument)

    def lose(self, error: Exception | None) -> None:
        """The end, told at once, so only for calls that come from the reactor or the wheel. None: both sides are done."""
        protocol = self._close(reset=error is not None)
        if protocol is not None:
            protocol.connectionLost(_DONE if error is None else Failure(self.error or error))

    def _close(self, reset: bool) -> Receiver | None:
        """Close the socket; returns the protocol that has to be told, once."""
        if self.state is _CLOSED:
            return None
        reactor = self.reactor
        forget = getattr(reactor, "forget", None)
        if forget is not None:
            forget(self, True)
        else:
            reactor.removeReader(self)
            reactor.removeWriter(self)
        self._move(_CLOSED)
        self.wheel.disarm(self)
        if reset:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            except OSError:
                pass  # the peer was faster
        self.sock.close()
        self._fd = -1
        self._out = None
        self.buffered = 0
        self._read = _ENDED
        self._write = WriteSide.FINISHED
        self._producer = None
        self._producer_waits = False
        self._on_fin = None
        self._on_hangup = None
        for splice in (self.splice_in, self.splice_out):
            if splice is not None:
                splice.detach()
        protocol, self.protocol = self.protocol, None
        return protocol

    def _move(self, to: State) -> None:
        assert to in TRANSITIONS[self.state], f"{self.state} to {to}"
        self.state = to

    def _has_output(self) -> bool:
        return bool(self.buffered) or (self.splice_out is not None and self.splice_out.held > 0)

    # Deadlines

    def watch_for_stall(self) -> None:
        """Output begins to wait: from here on the peer must take some of it now and then."""
        self._unsent = -1
        now = self._progress_at = self.wheel.seconds()
        self.wheel.arm(self, now + self._stall_s() / LOOKS_PER_STALL)

    def made_progress(self) -> None:
        """A splice has written here."""
        self._unsent = -1

    def _stall_s(self) -> float:
        return self.write_stall_s if self.state is _OPEN else min(CLOSE_STALL_S, self.write_stall_s)

    def _count_unsent(self) -> int:
        """Bytes that the peer has not acknowledged: in the kernel, in a pipe, and here."""
        queued: int
        (queued,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCOUTQ, b"\0\0\0\0"))
        return queued + self.buffered + (self.splice_out.held if self.splice_out is not None else 0)

    def deadline_passed(self, now: float) -> None:
        if self.state is _CLOSED:
            return
        if self.state is _LINGERING and self._write is WriteSide.FINISHED:
            self.lose(None)
            return
        if not self._has_output():
            return
        unsent = self._count_unsent()
        if self._unsent < 0 or unsent < self._unsent:
            self._progress_at = now
        self._unsent = unsent
        limit = self._stall_s()
        give_up = self._progress_at + limit
        if give_up <= now:
            self.lose(WriteStall(f"{self.peer or 'the peer'} took no byte for {limit:g} s"))
        else:
            self.wheel.arm(self, min(now + limit / LOOKS_PER_STALL, give_up))

    # A look at a peer that is not read from

    def watch_hangup(self, callback: Callable[[], None]) -> None:
        """Call `callback()` once when the peer sends FIN although we are not reading; a reset is `connectionLost` anyway.

        Needs `ProxyReactor`; under another reactor nothing is noticed before reading starts.
        """
        if self._read is _PAUSED and self.state is _OPEN:
            self._watch_for_fin(callback)

    def _watch_for_fin(self, callback: Callable[[], None]) -> None:
        watch = getattr(self.reactor, "watch", None)
        if watch is not None:
            self._on_hangup = callback
            watch(self, select.EPOLLRDHUP)

    def hung_up(self, event: int) -> None:
        """The reactor's word on a paused connection: FIN (if watched), both sides ended, or an error."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code and self.error is None:
            self.error = OSError(code, errno.errorcode.get(code, "?"))
        if self.error is not None:
            # What had come before the reset may still be read, unless the owner has no use for it, as a relay, which passes resets on.
            if not getattr(self.protocol, "resets_at_once", False) and self._has_unread():
                self.reactor.forget(self)
            else:
                self.lose(self.error)
                return
        elif event & select.EPOLLHUP:
            self.reactor.forget(self)  # FIN both ways with input left to read; epoll would say so for ever
        else:
            self.reactor.watch(self, 0)
        if self._on_hangup is not None:
            told, self._on_hangup = self._on_hangup, None
            told()

    def _has_unread(self) -> bool:
        """We are not reading, and something has come that shall be read later."""
        splice = self.splice_in
        if splice is not None and splice.is_blocked:
            return splice.held > 0 or self.peer_seen() is PeerSeen.HAS_SENT
        return self._read is _PAUSED and self.peer_seen() is PeerSeen.HAS_SENT

    def peer_seen(self) -> PeerSeen:
        """Look at what has come without taking it."""
        try:
            return PeerSeen.HAS_SENT if self.sock.recv(1, socket.MSG_PEEK) else PeerSeen.ENDED
        except BlockingIOError:
            return PeerSeen.SILENT
        except OSError:
            return PeerSeen.RESET

    # Producer, and what the reactor calls

    def registerProducer(self, producer: Producer, streaming: bool = True) -> None:
        """One push producer per connection; a second one replaces the first (a tunnel takes over from an exchange)."""
        if not streaming:
            raise ValueError("only push producers (streaming=True) are supported")
        self._producer = producer
        self._producer_waits = False
        if self.buffered > HIGH_WATER:
            self._producer_waits = True
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None
        self._producer_waits = False

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "transport"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives the connection up: a read or write failed or an exception came out of the protocol."""
        protocol = self._close(reset=not reason.check(ConnectionDone))
        if protocol is not None:
            protocol.connectionLost(reason)

    def readConnectionLost(self, reason: Failure) -> None:
        """Twisted calls this for `ConnectionDone` out of `doRead`, which here means that both directions are done."""
        self.connectionLost(reason)

    def writeConnectionLost(self, reason: Failure) -> None:
        self.connectionLost(reason)
