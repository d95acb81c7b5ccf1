"""Any check, held over TLS as the pool's own connections are: with the same authorities, the same name, the same refusals."""

from __future__ import annotations

import os
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.config import pem
from twistedproxy.config.model import ServerTls
from twistedproxy.probes.dialogue import Dialogue, Finding
from twistedproxy.probes.tls import Nothing
from twistedproxy.stream import mysql, postgres
from twistedproxy.tls.contexts import Pair
from twistedproxy.tls.servers import ServerTlsUse


class PoolTls:
    """The TLS of one pool's checks; reads its files anew when they change. `use` raises `BadPem` or `OSError` when it cannot be had."""

    def __init__(self, spec: ServerTls) -> None:
        self._spec = spec
        self._stamps: tuple[float, ...] | None = None
        self._use: ServerTlsUse | None = None

    def use(self) -> ServerTlsUse:
        spec = self._spec
        pair = spec.pair.key_names if spec.pair is not None else ()
        stamps = tuple(os.stat(file).st_mtime for file in (spec.ca, *pair) if file)
        if self._use is None or stamps != self._stamps:
            vault = {(spec.ca, ""): Pair(pem.read(spec.ca), b"")} if spec.ca else {}
            if spec.pair is not None:
                vault[spec.pair.key_names] = Pair(pem.read(spec.pair.cert), pem.read(spec.pair.key))
            self._use = ServerTlsUse(spec, vault)
            self._stamps = stamps
        return self._use


class Unwilling(Exception):
    """The server will not begin TLS."""


class AskPostgres:
    """PostgreSQL's request for TLS."""

    first = postgres.SSL_REQUEST
    kept = b""

    def heard(self, data: bytes) -> bytes | None:
        """What to say to all that has come, TLS being next; None while more must come."""
        if data == postgres.WILLING:
            return b""
        raise Unwilling("speaks no TLS (it answered N; ssl = on)" if data == postgres.UNWILLING else "answered the request for TLS oddly")


class AskMysql:
    """MySQL's: the server greets, we answer with the beginning of an answer."""

    first = b""

    def __init__(self) -> None:
        self.kept = b""
        """The greeting, as if it came inside TLS and were counted so that its answer gets the number that is due then."""

    def heard(self, data: bytes) -> bytes | None:
        said = bytearray(data)
        try:
            found = mysql.take_packet(said)
            if found is None:
                return None
            greeting = mysql.read_greeting(found[1])
        except mysql.BadPacket as e:
            raise Unwilling(str(e)) from None
        if said or not greeting.offers_tls:
            raise Unwilling("spoke on before TLS had begun" if said else "speaks no TLS (its greeting does not offer it)")
        self.kept = mysql.packet(1, found[1])
        return mysql.packet(1, mysql.request_of(mysql.NOBODY))


ASK: dict[str, type[AskPostgres | AskMysql]] = {"postgres": AskPostgres, "mysql": AskMysql}


class _Asking(Protocol):
    """Asks for TLS in the clear, then carries `tls`."""

    transport: Any

    def __init__(self, ask: AskPostgres | AskMysql, outer: OverTls, tls: TLSMemoryBIOProtocol, line: IProtocol) -> None:
        self._ask = ask
        self._outer = outer
        self._tls = tls
        self._line = line
        self._heard = b""
        self._is_shaking = False

    def connectionMade(self) -> None:
        self._line.makeConnection(self.transport)
        if self._ask.first:
            self.transport.write(self._ask.first)

    def dataReceived(self, data: bytes) -> None:
        if self._is_shaking:
            self._tls.dataReceived(data)
            return
        self._heard += data
        try:
            answer = self._ask.heard(self._heard)
        except Unwilling as e:
            self._outer.unwilling = str(e)
            self.transport.abortConnection()
            return
        if answer is not None:
            self.transport.write(answer)
            self._is_shaking = True
            self._tls.makeConnection(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        (self._tls if self._is_shaking else self._line).connectionLost(reason)


@implementer(IOpenSSLClientConnectionCreator)
class OverTls(Dialogue):
    """`within`, begun once the handshake is done and the certificate is the right one."""

    begins_after_handshake = True

    def __init__(self, within: Dialogue, use: ServerTlsUse, address: str) -> None:
        super().__init__()
        self.max_bytes = within.max_bytes
        self.received, self.outgoing = within.received, within.outgoing
        self._within = within
        self._use = use
        self._address = address
        self._tls: SSL.Connection | None = None
        self._ask = ASK[use.spec.starttls]() if use.spec.starttls else None
        self.unwilling = ""
        """Why TLS did not even begin."""

    def carrier(self, reactor: Any, line: IProtocol, host: str) -> IProtocol:
        tls = TLSMemoryBIOProtocol(TLSMemoryBIOFactory(self, True, Nothing(), reactor), line)  # type: ignore[arg-type]
        return tls if self._ask is None else _Asking(self._ask, self, tls, line)

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        self._tls = self._use.connection(None, self._address)
        return self._tls

    def begin(self) -> Finding | None:
        assert self._tls is not None
        wrong = self._use.mismatch(self._tls, self._address)
        if wrong:
            return Finding(False, wrong)
        finding = self._within.begin()
        if self._ask is not None and self._ask.kept:
            self.received += self._ask.kept
            return self.read()
        return finding

    def read(self) -> Finding | None:
        return self._within.read()

    def ended(self) -> Finding:
        return Finding(False, self.unwilling) if self.unwilling else self._within.ended()

    def broken(self, failure: BaseException) -> Finding:
        why = self.unwilling or (self._use.why(self._tls) if self._tls is not None else "")
        return Finding(False, why) if why else self._within.broken(failure)
