"""A reactor of our own class, turned by hand, with real sockets on loopback and a clock that can be moved forward.

Loaded by path from the `conftest.py` of `tests/net` and `tests/stream`, which give every test case a `Loop` as ``self.loop``.
"""

import socket
import struct
import time

from twistedproxy.clock import Wheel
from twistedproxy.net.reactor import ProxyReactor
from twistedproxy.net.transport import Transport

LIMIT_S = 20.0
"""Only who fails waits so long; less is not enough for threads on a machine with much else to do."""


class Recorder:
    """A protocol and producer that writes down what it is told."""

    def __init__(self):
        self.received = bytearray()
        self.events = []
        self.reason = None

    def dataReceived(self, data):
        self.received += data

    def readConnectionLost(self):
        self.events.append("eof")

    def connectionLost(self, reason):
        self.events.append("lost")
        self.reason = reason

    def pauseProducing(self):
        self.events.append("pause")

    def resumeProducing(self):
        self.events.append("resume")


class Sink:
    """A socket as those see it who take a preface off it: whatever is read is there, and `sent` is what it got."""

    def __init__(self):
        self.sent = b""

    def recv(self, count):
        return bytes(count)

    def send(self, data):
        self.sent += data


class Loop:
    """Turns a `ProxyReactor` (or the class given) until something is so."""

    def __init__(self, reactor_class=ProxyReactor):
        self.reactor = reactor_class()
        self.skipped = 0.0
        self.wheel = Wheel(self.seconds)
        self._sockets = []

    def seconds(self):
        return time.monotonic() + self.skipped

    def turn(self, wait=0.0):
        """One turn of the reactor; waits at most `wait` for an event."""
        self.reactor.runUntilCurrent()
        due = self.reactor.timeout()
        self.reactor.doPoll(wait if due is None else min(due, wait))
        self.reactor.runUntilCurrent()
        self.wheel.advance(self.seconds())

    def turns(self, count=10):
        """Enough turns for everything that is on its way over loopback."""
        for _ in range(count):
            self.turn(0.001)

    def until(self, condition, what="the condition", limit=LIMIT_S):
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not within {limit} s: {what}")
            self.turn(0.005)

    def travel(self, seconds, step=0.05):
        """Let the wheel's clock run ahead, in steps small enough for every deadline to be looked at in order."""
        end = self.skipped + seconds
        while self.skipped < end:
            self.skipped = min(self.skipped + step, end)
            self.turn()
        self.turns(3)

    # Sockets

    def keep(self, sock):
        """Close it when the test is over."""
        self._sockets.append(sock)
        return sock

    def listen(self, family=socket.AF_INET, backlog=100, receive_buffer=0):
        sock = self.keep(socket.socket(family))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        sock.listen(backlog)
        return sock

    def socket_pair(self, small=False):
        """Two connected TCP sockets; `small`: next to nothing fits into the kernel's buffers between them."""
        listening = self.listen(receive_buffer=4096 if small else 0)
        ours = socket.socket()
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.connect(listening.getsockname())
        peer, _ = listening.accept()
        ours.setblocking(False)
        peer.settimeout(LIMIT_S)
        listening.close()
        return ours, self.keep(peer)

    def transport(self, small=False, write_stall_s=30.0, family=None):
        """A transport that is not started, and its peer's socket."""
        if family == socket.AF_UNIX:
            ours, peer = socket.socketpair()
            ours.setblocking(False)
            peer.settimeout(LIMIT_S)
            self.keep(peer)
        else:
            ours, peer = self.socket_pair(small)
        return Transport(self.reactor, self.wheel, ours, "127.0.0.1", 1, write_stall_s), peer

    def started(self, **how):
        transport, peer = self.transport(**how)
        recorder = Recorder()
        transport.start(recorder)
        return transport, peer, recorder

    def read_all(self, peer, count=None):
        """What `peer` gets, turning the reactor meanwhile, until EOF or `count` bytes; a reset raises."""
        peer.setblocking(False)
        data = bytearray()
        end = time.monotonic() + LIMIT_S
        while count is None or len(data) < count:
            try:
                piece = peer.recv(1 << 20)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise AssertionError(f"only {len(data)} bytes within {LIMIT_S} s") from None
                self.turn(0.002)
                continue
            if not piece:
                break
            data += piece
            self.turn()
        return bytes(data)

    def send_all(self, peer, data):
        """`peer` sends, turning the reactor whenever nothing more fits."""
        peer.setblocking(False)
        view = memoryview(data)
        end = time.monotonic() + LIMIT_S
        while view:
            try:
                view = view[peer.send(view) :]
            except BlockingIOError:
                if time.monotonic() > end:
                    raise AssertionError(f"{len(view)} bytes left to send after {LIMIT_S} s") from None
                self.turn(0.002)

    def fill(self, transport, waiting=50_000):
        """Write until the kernel takes no more and `waiting` bytes wait in the transport; returns how many were written."""
        written = 0
        while transport.buffered < waiting:
            transport.write(b"x" * 50_000)
            written += 50_000
            if transport.buffered < waiting:
                self.turns(3)
        return written

    @staticmethod
    def reset(peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    def is_reset(self, peer):
        """Does `peer`, after what it can still read, see a reset and not EOF?"""
        try:
            self.read_all(peer)
        except ConnectionResetError:
            return True
        return False

    def close(self):
        for selectable in self.reactor.removeAll():
            sock = getattr(selectable, "sock", None)
            if sock is not None:
                sock.close()
        for sock in self._sockets:
            sock.close()
        for call in self.reactor.getDelayedCalls():
            call.cancel()
        waker = self.reactor.waker
        if waker is not None:
            waker.connectionLost(None)
        self.reactor._poller.close()
