"""TLS with the servers of one pool: whom we trust, which name we look for, and what exactly was wrong when we did not find it.

Verification is on unless switched off: the chain by OpenSSL, the name by service_identity (RFC 9525: DNS names and IP addresses of the
subjectAltName, never the common name). Sessions are remembered per server and forgotten with this object, so a change of the pool's
`tls` never resumes under the old terms.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import Any
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address

from twistedproxy.config.model import ServerTls, endpoint
from twistedproxy.tls.certificates import Vault
from twistedproxy.tls.contexts import client_context

_MOST_NAMES = 5
_WHY = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed, and no authority we trust",
    19: "comes from an authority that we do not trust (the last of its chain is self-signed)",
    20: "comes from an authority that we do not trust, or a certificate of the chain is not sent",
    21: "comes without its chain, from an authority that we do not know",
    7: "has a wrong signature",
    23: "is revoked",
    24: "is issued by a certificate that is no authority's",
    26: "is not made for TLS servers",
    66: "has too short a key",
    68: "is signed with too weak a digest",
}
"""OpenSSL's X509_V_ERR numbers (x509_vfy.h) in words."""


class MissingMaterial(Exception):
    """A file that the pool's `tls` names has not been read, or not yet."""


class ServerTlsUse:
    """How this worker talks TLS with the servers of one pool. `protocols`: offered by ALPN, none for raw TCP."""

    __slots__ = ("spec", "_context", "_problems", "_sessions")

    def __init__(self, spec: ServerTls, vault: Vault, protocols: tuple[bytes, ...] = ()) -> None:
        self.spec = spec
        try:
            ca = vault[spec.ca, ""].chain if spec.ca else None
            pair = vault[spec.pair.key_names] if spec.pair is not None else None
        except KeyError as e:
            raise MissingMaterial(str(e)) from None
        self._context = client_context(ca, pair, protocols)
        self._problems: WeakKeyDictionary[SSL.Connection, str] = WeakKeyDictionary()
        """Not the connections' app data: Twisted, over which the health checks go, keeps its own there."""
        if spec.verify:
            self._context.set_verify(SSL.VERIFY_PEER, functools.partial(_note_problem, self._problems))
        self._sessions: dict[str, Any] = {}

    def connection(self, sock: socket.socket | None, address: str) -> SSL.Connection:
        """The beginning of a handshake with the server at `address`, on a connected socket (None: in memory)."""
        tls = SSL.Connection(self._context, sock)
        name = self._name(address)
        if name and not _is_ip(name):
            tls.set_tlsext_host_name(name.encode("ascii"))
        session = self._sessions.get(address)
        if session is not None:
            tls.set_session(session)
        tls.set_connect_state()
        return tls

    def _name(self, address: str) -> str:
        where = endpoint(address)
        return self.spec.name or ("" if where.family == socket.AF_UNIX else where.host)

    def mismatch(self, tls: SSL.Connection, address: str) -> str:
        """What is wrong with the name in the server's certificate; "" when it is the right one."""
        if not self.spec.verify:
            return ""
        name = self._name(address)
        try:
            if _is_ip(name):
                verify_ip_address(tls, name)
            else:
                verify_hostname(tls, name)
        except VerificationError:
            return f"its certificate is for {_names(tls)}, not for {name} (tls.name says which name to look for)"
        except CertificateError:
            return f"its certificate is for {_names(tls)}, not for {name}"
        return ""

    def why(self, tls: SSL.Connection) -> str:
        """Why its certificate was refused; "" when that was not what went wrong."""
        return self._problems.get(tls, "")

    def remember(self, address: str, tls: SSL.Connection) -> None:
        session = tls.get_session()
        if session is not None:
            self._sessions[address] = session


def _note_problem(
    problems: WeakKeyDictionary[SSL.Connection, str], tls: SSL.Connection, certificate: Any, number: int, depth: int, is_fine: int
) -> bool:
    if not is_fine:
        subject = certificate.to_cryptography().subject.rfc4514_string() or "no subject"
        whose = "its certificate" if depth == 0 else "a certificate of its chain"
        until = ""
        if number == 10:
            until = f" on {certificate.to_cryptography().not_valid_after_utc:%Y-%m-%d}"
        problems.setdefault(tls, f"{whose} ({subject}) {_WHY.get(number, f'was refused (X509 error {number})')}{until}")
    return bool(is_fine)


def _names(tls: SSL.Connection) -> str:
    certificate = tls.get_peer_certificate(as_cryptography=True)
    if certificate is None:
        return "nobody"
    try:
        extension: Any = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return "no name at all (it has no subjectAltName)"
    names = [*map(str, extension.get_values_for_type(x509.DNSName)), *map(str, extension.get_values_for_type(x509.IPAddress))]
    return ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "") or "no host"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
