"""What TLS tells about a client: for the server behind us, for rules, and for the decision whether a site may be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from OpenSSL import SSL

from twistedproxy.tls.certificates import Choice, Demands


@dataclass(frozen=True, slots=True)
class ClientTls:
    """One client connection's TLS."""

    version: str
    """``TLSv1.3``."""
    name: str
    """What the client asked for (SNI); "" for nothing."""
    demands: Demands
    """What the handshake was held to."""
    subject: str = ""
    """Of the client's certificate, RFC 4514; "" without one. It was verified: a wrong one ends the handshake."""
    names: tuple[str, ...] = ()
    """The subjectAltName of the client's certificate: ``DNS:a.example``, ``email:x@a.example``, ``URI:spiffe://a/b``, ``IP:10.0.0.1``."""
    sha256: str = ""
    """Fingerprint of the client's certificate, lower-case hexadecimal."""


MOST_TOLD = 256
"""Of one certificate's clients without one of their own: so many different facts are shared at most."""
_KINDS: dict[type, str] = {x509.DNSName: "DNS", x509.RFC822Name: "email", x509.UniformResourceIdentifier: "URI", x509.IPAddress: "IP"}


def client_tls(tls: SSL.Connection, name: str, choice: Choice) -> ClientTls:
    """After the handshake."""
    if not choice.asks_for_certificate:
        version = tls.get_protocol_version()
        known: ClientTls | None = choice.told.get((version, name))
        if known is None:
            if len(choice.told) >= MOST_TOLD:  # names are the clients' to choose
                choice.told.clear()
            known = choice.told[version, name] = ClientTls(tls.get_protocol_version_name(), name, choice.demands)
        return known
    certificate = tls.get_peer_certificate(as_cryptography=True)
    facts = facts_of(certificate) if certificate is not None else ()
    return ClientTls(tls.get_protocol_version_name(), name, choice.demands, *facts)


def facts_of(certificate: x509.Certificate) -> tuple[str, tuple[str, ...], str]:
    """(subject, names, sha256) of a client's certificate."""
    return _plain(certificate.subject.rfc4514_string()), _names(certificate), certificate.fingerprint(SHA256()).hex()


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(_plain(f"{_KINDS[type(name)]}:{name.value}") for name in names if type(name) in _KINDS)


def _plain(text: str) -> str:
    """Fit for a header field: whoever had the certificate made chose these characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:1024]
