"""Does the server complete a TLS handshake? Certificates are not verified: this asks whether it lives, not who it is."""

from __future__ import annotations

import ipaddress
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocol
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from twistedproxy.probes.dialogue import Dialogue, Finding


class TlsCheck(Dialogue):
    """Up when the handshake is done."""

    begins_after_handshake = True

    def carrier(self, reactor: Any, line: IProtocol, host: str) -> IProtocol:
        factory = TLSMemoryBIOFactory(_Unverified(host), True, Nothing(), reactor)  # type: ignore[arg-type]
        return TLSMemoryBIOProtocol(factory, line)

    def begin(self) -> Finding:
        return Finding(True, "TLS handshake")


@implementer(IOpenSSLClientConnectionCreator)
class _Unverified:
    """Makes the OpenSSL side of one connection; `host` goes into SNI unless it is an IP address."""

    def __init__(self, host: str) -> None:
        self._host = host

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(CertificateOptions(verify=False).getContext(), None)
        connection.set_app_data(protocol)
        if self._host and not _is_ip(self._host):
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection


class Nothing:
    """The wrapped factory `TLSMemoryBIOFactory` wants; it builds nothing."""

    noisy = False

    def doStart(self) -> None: ...
    def doStop(self) -> None: ...


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.startswith("/")
    return True
