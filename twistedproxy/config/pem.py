"""Certificates and keys in files, read and judged: everything that would fail a handshake later is said now, with what to do.

Pure but for `read`. The findings are sentences without the file's name, since whoever reports them says where it is configured.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtensionOID, NameOID

MOST_BYTES = 1024 * 1024
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
LEAST_RSA_BITS = 2048


class BadPem(Exception):
    """What is wrong with a file, as a sentence that begins with a verb: ``holds no certificate``."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the operator wants to know of a certificate."""

    names: tuple[str, ...]
    """DNS names and IP addresses; the common name when there are none."""
    not_before: float
    not_after: float
    """Seconds since the epoch."""
    issuer: str


def read(path: str) -> bytes:
    """The content of a file; `BadPem` when there is none."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        reason = os.strerror(e.errno).lower() if isinstance(e, OSError) and e.errno else str(e)
        raise BadPem(f"cannot be read: {reason}") from None
    if len(content) > MOST_BYTES:
        raise BadPem(f"is larger than {MOST_BYTES // 1024} KiB, so it is no certificate or key")
    return content


def certificates(content: bytes) -> list[x509.Certificate]:
    """All certificates in a file."""
    _refuse_cut_off(content)
    if b"-----BEGIN CERTIFICATE-----" not in content:
        kinds = ", ".join(sorted({kind.decode() for kind in _BLOCK.findall(content)}))
        held = f"it has {kinds}" if kinds else ("it is empty" if not content.strip() else "it is not PEM text")
        raise BadPem(f"holds no certificate ({held}); needed are blocks that begin with -----BEGIN CERTIFICATE-----")
    try:
        return x509.load_pem_x509_certificates(content)
    except (ValueError, UnsupportedAlgorithm):
        raise BadPem("has a certificate that is damaged; copy the file again from where it was issued") from None


def _refuse_cut_off(content: bytes) -> None:
    for kind in _BLOCK.findall(content):
        begins = content.count(b"-----BEGIN " + kind + b"-----")
        if content.count(b"-----END " + kind + b"-----") < begins:
            raise BadPem(f"is cut off: a block -----BEGIN {kind.decode()}----- has no end; was it read while it was being written?")


def private_key(content: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey:
    """The key in a file; nothing of it is in any message."""
    _refuse_cut_off(content)
    if not any(kind.endswith(b"PRIVATE KEY") for kind in _BLOCK.findall(content)):
        raise BadPem("holds no private key; needed is a block that begins with -----BEGIN PRIVATE KEY-----")
    if b"ENCRYPTED" in content:
        raise BadPem("is protected by a password, which nobody can type in here; store it without: openssl pkey -in OLD -out NEW")
    try:
        found = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadPem("has a private key that is damaged or of a sort that is not known") from None
    if not isinstance(found, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        raise BadPem("has a key of a sort that TLS does not use; use RSA, ECDSA or Ed25519")
    return found


def judge_chain(chain: list[x509.Certificate], now: float) -> None:
    """`BadPem` when the first is no server's certificate in its time, or the next ones are not its issuers in order."""
    leaf = chain[0]
    at = datetime.fromtimestamp(now, UTC)
    if leaf.not_valid_after_utc < at:
        raise BadPem(f"has expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC ({_who(leaf)}); renew it")
    if leaf.not_valid_before_utc > at:
        raise BadPem(f"is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC ({_who(leaf)}); is the clock right?")
    key = leaf.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < LEAST_RSA_BITS:
        raise BadPem(f"has an RSA key of {key.key_size} bits; clients want at least {LEAST_RSA_BITS}")
    for index, (certificate, issuer) in enumerate(itertools.pairwise(chain)):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise BadPem(
                f"has its chain in the wrong order: certificate {index + 2} ({_who(issuer)}) did not issue certificate {index + 1} "
                f"({_who(certificate)}); the site's own comes first, then the one that issued it, and so on"
            ) from None


def judge_pair(chain: list[x509.Certificate], key: bytes) -> None:
    """`BadPem` (about the key) when it is not the key of the first certificate."""
    ours = private_key(key).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    theirs = chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if ours != theirs:
        of = next((c for c in chain[1:] if c.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == ours), None)
        hint = f"; it is that of {_who(of)}, which must come first" if of is not None else ""
        raise BadPem(f"is not the key of the certificate ({_who(chain[0])}){hint}")


def facts(certificate: x509.Certificate) -> Facts:
    return Facts(
        names_of(certificate),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        certificate.issuer.rfc4514_string(),
    )


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        san = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
        assert isinstance(san, x509.SubjectAlternativeName)
        return (
            *(name.lower().rstrip(".") for name in san.get_values_for_type(x509.DNSName)),
            *map(str, san.get_values_for_type(x509.IPAddress)),
        )
    except (x509.ExtensionNotFound, ValueError):
        return tuple(str(attribute.value).lower() for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))


def covers(names: tuple[str, ...], host: str) -> bool:
    """Is a certificate with `names` good for `host`, which may itself be ``*.suffix``? A wildcard stands for one label (RFC 9525 6.3)."""
    parent = host.partition(".")[2]
    return host == "*" or any(name == host or (name.startswith("*.") and name[2:] == parent) for name in names)


def _who(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "no subject"
