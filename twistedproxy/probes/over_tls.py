"""Any check, held over TLS as the pool's own connections are: with the same authorities, the same name, the same refusals."""

from __future__ import annotations

import os
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocol
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from twistedproxy.config import pem
from twistedproxy.config.model import ServerTls
from twistedproxy.probes.dialogue import Dialogue, Finding
from twistedproxy.probes.tls import Nothing
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

    def carrier(self, reactor: Any, line: IProtocol, host: str) -> IProtocol:
        return TLSMemoryBIOProtocol(TLSMemoryBIOFactory(self, True, Nothing(), reactor), line)  # type: ignore[arg-type]

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        self._tls = self._use.connection(None, self._address)
        return self._tls

    def begin(self) -> Finding | None:
        assert self._tls is not None
        wrong = self._use.mismatch(self._tls, self._address)
        return Finding(False, wrong) if wrong else self._within.begin()

    def read(self) -> Finding | None:
        return self._within.read()

    def ended(self) -> Finding:
        return self._within.ended()

    def broken(self, failure: BaseException) -> Finding:
        why = self._use.why(self._tls) if self._tls is not None else ""
        return Finding(False, why) if why else self._within.broken(failure)
