"""What all checks share: one short talk with a server over one connection, and what was found out.

How it works
    A `Dialogue` is pure: `begin` may say something, `read` looks at everything received so far, both put bytes to send into
    `outgoing` and return a `Finding` once they know. `_Line` is the thin protocol that carries a dialogue over a socket;
    `ask` connects, talks and always ends with a `Finding`, never with an exception. Time limits are the caller's: cancelling
    the Deferred around `ask` closes the connection.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IHandshakeListener, IProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.config.model import Endpoint

CLOSE_S = 1.0
"""How long a connection may take to close after the answer is known."""
CONNECT_S = 3600.0
"""Never reached: the caller's time limit is shorter."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    ok: bool
    reason: str
    """For the operator, without the time it took: ``200``, ``connection refused``."""
    answered: bool = True
    """The server said something, so the time it took is worth telling."""


class Dialogue:
    """One check without a socket; subclasses know a protocol."""

    max_bytes = 64 * 1024
    """More than this from the server without a finding is a failure."""
    begins_after_handshake = False
    """True for what talks over TLS."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.outgoing = bytearray()

    def carrier(self, reactor: Any, line: IProtocol, host: str) -> IProtocol:
        """The protocol to connect: `line`, or something with `line` on top."""
        return line

    def begin(self) -> Finding | None:
        """The connection is there (over TLS: the handshake is done)."""
        return None

    def read(self) -> Finding | None:
        """`received` has grown."""
        return None

    def ended(self) -> Finding:
        """The server closed before there was a finding."""
        if self.received:
            return Finding(False, "closed the connection in the middle of its answer")
        return Finding(False, "closed the connection without an answer")

    def broken(self, failure: BaseException) -> Finding:
        """The connection broke, or TLS did, before there was a finding."""
        return Finding(False, reason_of(failure))


@implementer(IHandshakeListener)
class _Line(Protocol):
    """Carries one dialogue over one connection."""

    transport: Any

    def __init__(self, reactor: Any, dialogue: Dialogue) -> None:
        self._reactor = reactor
        self._dialogue = dialogue
        self._abort: Any = None
        self.found: Deferred[Finding] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        if not self._dialogue.begins_after_handshake:
            self._proceed(self._dialogue.begin())

    def handshakeCompleted(self) -> None:
        if self._dialogue.begins_after_handshake:
            self._proceed(self._dialogue.begin())

    def dataReceived(self, data: bytes) -> None:
        if self.found.called:
            return
        dialogue = self._dialogue
        dialogue.received += data
        finding = dialogue.read()
        if finding is None and len(dialogue.received) > dialogue.max_bytes:
            finding = Finding(False, f"answer longer than {dialogue.max_bytes // 1024} KiB")
        self._proceed(finding)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        if self.found.called:
            return
        if reason.check(error.ConnectionDone):
            self.found.callback(self._dialogue.ended())
        else:
            self.found.callback(self._dialogue.broken(reason.value or error.ConnectionLost()))

    def _proceed(self, finding: Finding | None) -> None:
        if self._dialogue.outgoing:
            self.transport.write(bytes(self._dialogue.outgoing))
            self._dialogue.outgoing.clear()
        if finding is not None and not self.found.called:
            self.found.callback(finding)
            self._abort = self._reactor.callLater(CLOSE_S, self.transport.abortConnection)
            self.transport.loseConnection()


class _Lines(Factory):
    noisy = False

    def __init__(self, line: Any) -> None:
        self._line = line

    def buildProtocol(self, addr: object) -> Any:
        return self._line


async def ask(reactor: Any, where: Endpoint, dialogue: Dialogue) -> Finding:
    """Connect to `where`, hold the dialogue, tell what was found; cancelling closes the connection."""
    line = _Line(reactor, dialogue)
    protocol = dialogue.carrier(reactor, line, where.host)
    endpoint: Any
    if where.family == socket.AF_UNIX:
        endpoint = UNIXClientEndpoint(reactor, where.host, timeout=CONNECT_S)
    elif where.family == socket.AF_INET6:
        endpoint = TCP6ClientEndpoint(reactor, where.host, where.port, timeout=CONNECT_S)
    else:
        endpoint = TCP4ClientEndpoint(reactor, where.host, where.port, timeout=CONNECT_S)
    try:
        await endpoint.connect(_Lines(protocol))
        return await line.found
    except (error.ConnectError, OSError) as e:
        return Finding(False, reason_of(e), answered=False)


def reason_of(failure: BaseException) -> str:
    """A failed connection in words for the operator."""
    if isinstance(failure, SSL.Error):
        details = [part[-1] for part in failure.args[0]] if failure.args and isinstance(failure.args[0], list) else []
        return f"TLS: {details[-1] if details else 'handshake failed'}"
    number = getattr(failure, "osError", None)
    if isinstance(number, OSError):
        number = number.errno
    if not isinstance(number, int):
        number = getattr(failure, "errno", None)
    if isinstance(failure, error.ConnectionRefusedError):
        number = errno.ECONNREFUSED
    if isinstance(number, int):
        return os.strerror(number).lower()
    if isinstance(failure, error.ConnectionLost):
        return "connection lost"
    return str(failure) or type(failure).__name__
