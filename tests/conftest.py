"""An authority that makes certificates of every sort, good and bad, for all tests."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass
class Made:
    """A certificate with its key: as objects, as PEM and in files."""

    certificate: x509.Certificate
    private_key: Any
    cert: Path
    key: Path

    @property
    def chain_pem(self) -> bytes:
        return self.cert.read_bytes()

    @property
    def key_pem(self) -> bytes:
        return self.key.read_bytes()


class Authority:
    """`make` puts NAME.pem and NAME.key into `directory`; `root` is who signs, `ca` its file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = self.make("root", (), issuer=None, is_ca=True)
        self.ca = self.root.cert

    def make(
        self,
        file: str,
        names: tuple[str, ...],
        *,
        issuer: Made | str | None = "root",
        is_ca: bool = False,
        begins: float = -1,
        ends: float = 60,
        kind: str = "ecdsa",
        password: bytes = b"",
    ) -> Made:
        """`begins` and `ends` in days from now; the issuer's chain is put behind when the issuer is not the root."""
        key: Any = ec.generate_private_key(ec.SECP256R1()) if kind == "ecdsa" else rsa.generate_private_key(65537, 2048)
        by = self.root if issuer == "root" else issuer
        assert not isinstance(by, str)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else file)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(by.certificate.subject if by else subject)
            .public_key(key.public_key()).serial_number(x509.random_serial_number()).not_valid_before(now + begins * DAY)
            .not_valid_after(now + ends * DAY).add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )  # fmt: skip
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_general, names))), critical=False)
        certificate = builder.sign(by.private_key if by else key, SHA256())
        cert, secret = self.directory / f"{file}.pem", self.directory / f"{file}.key"
        chain = certificate.public_bytes(Encoding.PEM)
        if by is not None and by is not getattr(self, "root", None):
            chain += by.chain_pem
        encryption = BestAvailableEncryption(password) if password else NoEncryption()
        cert.write_bytes(chain)
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        secret.chmod(0o600)
        return Made(certificate, key, cert, secret)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)
