"""One talk with a server over a real socket: what is found when it answers, refuses, hangs, or floods."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Timeout
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy.config.model import endpoint
from twistedproxy.probes.dialogue import Dialogue, Finding, ask, reason_of
from twistedproxy.probes.redis import RedisCheck
from twistedproxy.probes.tcp import TcpCheck


class Says(Protocol):
    """A server that says `text` at once and may then close."""

    def __init__(self, text: bytes, closes: bool) -> None:
        self.text, self.closes = text, closes
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport
        self.transport.write(self.text)
        if self.closes:
            self.transport.loseConnection()

    def connectionLost(self, reason: object = None) -> None:
        self.gone.callback(None)


class OverSockets(TestCase):
    def listen(self, build: Callable[[], Protocol]) -> str:
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda addr: build()  # type: ignore[method-assign,assignment]
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return f"127.0.0.1:{port.getHost().port}"

    async def ask(self, address: str, dialogue: Dialogue, within: float = 10) -> Finding:
        return await Deferred.fromCoroutine(ask(reactor, endpoint(address), dialogue)).addTimeout(within, reactor)  # type: ignore[arg-type]

    async def test_an_answer_is_a_finding_and_the_connection_is_closed(self) -> None:
        """A check leaves no connection behind."""
        server = Says(b"+PONG\r\n", closes=False)
        finding = await self.ask(self.listen(lambda: server), RedisCheck())
        self.assertEqual(finding, Finding(True, "PONG"))
        await server.gone

    async def test_a_server_that_closes_without_a_word_is_told_as_such(self) -> None:
        """The operator reads why a server is down: it hung up."""
        finding = await self.ask(self.listen(lambda: Says(b"", closes=True)), RedisCheck())
        self.assertEqual(finding, Finding(False, "closed the connection without an answer"))

    async def test_a_refused_connection_says_so(self) -> None:
        """The operator reads "connection refused", not a stack trace."""
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")  # type: ignore[attr-defined]
        address = f"127.0.0.1:{port.getHost().port}"
        await port.stopListening()
        finding = await self.ask(address, TcpCheck())
        self.assertEqual(finding, Finding(False, "connection refused", answered=False))

    async def test_bf08_a_server_that_floods_is_cut_off(self) -> None:
        """BF-08: a check that answers with a gigabyte costs at most its cap."""
        server = Says(b"+" + b"x" * 3_000_000, closes=False)
        finding = await self.ask(self.listen(lambda: server), RedisCheck())
        self.assertEqual(finding, Finding(False, "answer longer than 1 KiB"))
        await server.gone

    async def test_bf08_a_check_that_never_returns_can_be_cancelled(self) -> None:
        """BF-08: a silent server costs one time-out and no connection."""
        server = Says(b"", closes=False)
        with self.assertRaises(Timeout):
            await self.ask(self.listen(lambda: server), RedisCheck(), within=0.1)
        await server.gone

    async def test_unix_sockets_can_be_asked(self) -> None:
        """A server behind a unix socket is checked like any other; a missing one says what is missing."""
        path = os.path.join(tempfile.mkdtemp(), "s")
        factory = Factory()
        factory.buildProtocol = lambda addr: Says(b"+PONG\r\n", closes=False)  # type: ignore[method-assign,assignment]
        port = reactor.listenUNIX(path, factory)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.assertEqual(await self.ask(f"unix:{path}", RedisCheck()), Finding(True, "PONG"))
        self.assertEqual(await self.ask(f"unix:{path}x", TcpCheck()), Finding(False, "no such file or directory", answered=False))


class Reasons(SynchronousTestCase):
    def test_failures_are_told_in_words(self) -> None:
        """Reasons in the status page are short English."""
        for failure, text in (
            (ConnectionRefusedError(), "connection refused"),
            (OSError(113, "x"), "no route to host"),
            (ConnectionLost(), "connection lost"),
            (SSL.Error([("SSL routines", "", "wrong version number")]), "TLS: wrong version number"),
        ):
            self.assertEqual(reason_of(failure), text)
