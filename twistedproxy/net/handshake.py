"""The beginning of TLS on a fresh socket, from either side, within one absolute time limit.

How it works
    As a server, look at the ClientHello first without taking it (`MSG_PEEK`): then the context with the right certificate, client CA
    and least version is there before OpenSSL sees a byte, plain HTTP is known for what it is, and a PROXY header or PostgreSQL's
    SSLRequest in front of it can be taken off the socket to the byte. While more is needed, `SO_RCVLOWAT` keeps epoll silent
    until it is there. Then OpenSSL does its part.

    Exactly one of `on_done(transport)` and `on_failed(error, socket)` is called, never from inside `begin` or `cancel`. The socket of a
    failed handshake is its receiver's to close.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from OpenSSL import SSL
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.clock import NEVER, Timed, Wheel
from twistedproxy.errors import ProxyError, ServerTlsFailed, TlsFailed, TlsTimeout
from twistedproxy.net.tls_transport import TlsTransport, reason_of, shake, wants_read
from twistedproxy.net.transport import Transport
from twistedproxy.tls.accepting import accept
from twistedproxy.tls.client_hello import MAX_BYTES, ClientHello, Incomplete, read
from twistedproxy.tls.servers import ServerTlsUse

POLL_S = 0.02
"""How often a unix socket, which knows no `SO_RCVLOWAT`, is looked at while half a ClientHello is there."""

_ESTABLISHED = 1
"""TCP_INFO's state of a connection that neither side has ended."""

Preface = Callable[[bytes, socket.socket], tuple[int, bool] | None]
"""What may stand before TLS. Gets what has come, returns how much of that is its and whether it is complete; None: more is needed."""

_SILENCE = ClientHello("", ())

E = TypeVar("E", bound=ProxyError)


@implementer(IReadWriteDescriptor)
class _Handshake(Timed, Generic[E]):
    """What both sides have in common: OpenSSL does it, the socket's readiness drives it."""

    __slots__ = ("reactor", "wheel", "sock", "peer", "peer_port", "tls", "_fd", "_write_stall_s", "_on_done", "_on_failed", "_is_writing")

    stays_watched = True

    def __init__(
        self,
        reactor: Any,
        wheel: Wheel,
        sock: socket.socket,
        peer: str,
        peer_port: int,
        write_stall_s: float,
        on_done: Callable[[Any], None],
        on_failed: Callable[[E, socket.socket], None],
    ) -> None:
        self.deadline = self.look_at = NEVER  # as Timed.__init__ does, without the call
        self.reactor = reactor
        self.wheel = wheel
        self.sock = sock
        self.peer = peer
        self.peer_port = peer_port
        self.tls: SSL.Connection | None = None
        self._fd = sock.fileno()
        self._write_stall_s = write_stall_s
        self._on_done: Callable[[Any], None] | None = on_done
        self._on_failed: Callable[[E, socket.socket], None] | None = on_failed
        self._is_writing = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self.peer} {'over' if self._on_failed is None else 'on'}>"

    @property
    def is_over(self) -> bool:
        return self._on_failed is None

    def cancel(self) -> None:
        """Forget it and close the socket; nobody is told."""
        if self._on_failed is not None:
            self._end()
            self.sock.close()

    def _end(self) -> None:
        self._on_done = self._on_failed = None
        self.wheel.disarm(self)
        forget = getattr(self.reactor, "forget", None)
        if forget is not None:
            forget(self)
        else:
            self.reactor.removeReader(self)
            self.reactor.removeWriter(self)
        self._fd = -1
        self.tls = None

    def fail(self, error: E) -> None:
        told = self._on_failed
        if told is not None:
            self._end()
            told(error, self.sock)

    def doRead(self) -> None:
        self._shake()

    def doWrite(self) -> None:
        self._shake()

    def _shake(self) -> None:
        tls = self.tls
        assert tls is not None
        try:
            if shake is None:
                tls.do_handshake()
            elif (result := shake(tls._ssl)) != 1 and wants_read(tls, result):
                if self._is_writing:
                    self._want(writing=False)
                return
        except SSL.WantReadError:
            self._want(writing=False)
        except SSL.WantWriteError:
            self._want(writing=True)
        except SSL.Error as e:
            self.fail(self._explain(e))
        else:
            self._shaken(tls)

    def _want(self, writing: bool) -> None:
        if writing is self._is_writing:
            return
        self._is_writing = writing
        if writing:
            self.reactor.removeReader(self)
            self.reactor.addWriter(self)
        else:
            self.reactor.removeWriter(self)
            self.reactor.addReader(self)

    def _shaken(self, tls: SSL.Connection) -> None:
        transport = TlsTransport(self.reactor, self.wheel, self.sock, tls, self.peer, self.peer_port, self._write_stall_s)
        self._prepare(transport)
        self._give(transport)

    def _give(self, transport: Any) -> None:
        """The descriptor is the transport's from here on."""
        reactor, told, fd = self.reactor, self._on_done, self._fd
        assert told is not None
        hand_over = getattr(reactor, "hand_over", None)
        if hand_over is not None:
            hand_over(self, transport)
            self._on_done = self._on_failed = None
            self.wheel.disarm(self)
            self._fd = -1
            self.tls = None
        else:
            self._end()
        told(transport)
        if hand_over is not None and transport.fileno() == fd:
            reactor.settle(fd)

    def _prepare(self, transport: TlsTransport) -> None:
        """The last touch before the transport is handed over."""

    def _explain(self, error: SSL.Error) -> E:
        raise NotImplementedError

    def deadline_passed(self, now: float) -> None:
        raise NotImplementedError

    def hung_up(self, event: int) -> None:
        self._shake()

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "handshake"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up, because of an exception on the way; it has logged which."""
        self.fail(self._broken())

    def _broken(self) -> E:
        raise NotImplementedError


class ServerHandshake(_Handshake[ProxyError]):
    """With a client. `choose` picks the context for its ClientHello, or raises `BadHello`."""

    __slots__ = ("hello", "_choose", "_prefaces", "_timeout_s", "_low_water")

    def __init__(
        self,
        reactor: Any,
        wheel: Wheel,
        sock: socket.socket,
        peer: str,
        peer_port: int,
        write_stall_s: float,
        on_done: Callable[[Any], None],
        on_failed: Callable[[ProxyError, socket.socket], None],
        *,
        choose: Callable[[ClientHello], Any],
        prefaces: Sequence[Preface] = (),
        timeout_s: float,
    ) -> None:
        super().__init__(reactor, wheel, sock, peer, peer_port, write_stall_s, on_done, on_failed)
        self.hello = _SILENCE
        self._choose = choose
        self._prefaces = list(prefaces)
        self._timeout_s = timeout_s
        self._low_water = 1

    def begin(self) -> None:
        self.wheel.arm(self, self.wheel.seconds() + self._timeout_s)
        self.reactor.addReader(self)

    def doRead(self) -> None:
        if self.tls is not None:
            self._shake()
        elif self._on_failed is not None:
            try:
                self._look()
            except ProxyError as e:
                self.fail(e)
            except BlockingIOError:
                return
            except OSError as e:
                self.fail(TlsFailed(f"the connection broke before the handshake: {e.strerror}"))

    def _look(self) -> None:
        data = self.sock.recv(MAX_BYTES, socket.MSG_PEEK)
        if not data:
            raise TlsFailed("the client closed before it had begun TLS")
        if len(data) < self._low_water:  # woken although there is not more: the client is gone, or the kernel is short of memory
            if self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
                raise TlsFailed("the client closed in the middle of its first TLS message")
            self._look_later()
            return
        while self._prefaces:
            found = self._prefaces[0](data, self.sock)
            if found is None:
                self._wait(len(data) + 1, len(data))
                return
            used, is_complete = found
            if used:
                self.sock.recv(used)
                data = data[used:]
            if is_complete:
                del self._prefaces[0]
            if not data:
                self._wait(1, 0)
                return
        hello = read(data)
        if isinstance(hello, Incomplete):
            self._wait(hello.needed, len(data))
            return
        if self._low_water != 1:
            self._wait(1, 0)
        self.hello = hello
        self._heard(hello)

    def _heard(self, hello: ClientHello) -> None:
        choose = self._choose
        del self._choose  # it is bound to our owner, who holds us
        self.tls = accept(choose(hello), self.sock)
        self._shake()

    def _wait(self, needed: int, have: int) -> None:
        """Sleep until `needed` bytes are there; `have` of them are."""
        if self.sock.family == socket.AF_UNIX:
            if have:
                self._look_later()
        elif needed != self._low_water:
            self._low_water = needed
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)

    def _look_later(self) -> None:
        self.reactor.removeReader(self)
        self.reactor.callLater(POLL_S, self._look_again)

    def _look_again(self) -> None:
        if not self.is_over:
            self.reactor.addReader(self)

    def _broken(self) -> ProxyError:
        return TlsFailed("the handshake failed inside the proxy; the log says why")

    def _explain(self, error: SSL.Error) -> ProxyError:
        return TlsFailed(f"TLS handshake: {reason_of(error)}")

    def deadline_passed(self, now: float) -> None:
        self.fail(TlsTimeout(f"no complete TLS handshake within {self._timeout_s:g} s"))

    def hung_up(self, event: int) -> None:
        self.doRead()


class HelloReader(ServerHandshake):
    """Only reads what the client's TLS says first; `choose` may refuse it. The transport is a plain one; no byte of TLS was taken."""

    __slots__ = ()

    def _heard(self, hello: ClientHello) -> None:
        self._choose(hello)
        self._give(Transport(self.reactor, self.wheel, self.sock, self.peer, self.peer_port, self._write_stall_s))

    def deadline_passed(self, now: float) -> None:
        self.fail(TlsTimeout(f"no complete ClientHello within {self._timeout_s:g} s"))


class ClientHandshake(_Handshake[ServerTlsFailed]):
    """With a server at `address` (as configured: its identity). Ends well only with the right certificate."""

    __slots__ = ("_use", "_address")

    def __init__(
        self,
        reactor: Any,
        wheel: Wheel,
        sock: socket.socket,
        peer: str,
        peer_port: int,
        write_stall_s: float,
        on_done: Callable[[TlsTransport], None],
        on_failed: Callable[[ServerTlsFailed, socket.socket], None],
        *,
        use: ServerTlsUse,
        address: str,
    ) -> None:
        super().__init__(reactor, wheel, sock, peer, peer_port, write_stall_s, on_done, on_failed)
        self._use = use
        self._address = address

    def begin(self, timeout_s: float) -> None:
        self.wheel.arm(self, self.wheel.seconds() + timeout_s)
        self.tls = self._use.connection(self.sock, self._address)
        self._is_writing = True
        self.reactor.addWriter(self)  # the socket is writable: OpenSSL begins with the next event

    def _shaken(self, tls: SSL.Connection) -> None:
        wrong = self._use.mismatch(tls, self._address)
        if wrong:
            self.fail(ServerTlsFailed(f"{self._address}: {wrong}"))
        else:
            super()._shaken(tls)

    def _prepare(self, transport: TlsTransport) -> None:
        address = self._address
        use = self._use
        transport.on_closing = lambda tls: use.remember(address, tls)

    def _broken(self) -> ServerTlsFailed:
        return ServerTlsFailed(f"{self._address}: the handshake failed inside the proxy; the log says why", blames_server=False)

    def _explain(self, error: SSL.Error) -> ServerTlsFailed:
        assert self.tls is not None
        return ServerTlsFailed(f"{self._address}: {self._use.why(self.tls) or 'TLS handshake: ' + reason_of(error)}")

    def deadline_passed(self, now: float) -> None:
        self.fail(ServerTlsFailed(f"{self._address}: no complete TLS handshake in time"))
