"""An authority that makes certificates of every sort, good and bad, for all tests."""

from __future__ import annotations

import datetime
import ipaddress
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from twistedproxy.http.exchange import TRANSITIONS, Exchange, State

sys.path.insert(0, str(Path(__file__).parent / "system"))  # for `ports` and `bed`

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
        names_issuer: bool = False,
    ) -> Made:
        """`begins` and `ends` in days from now; the issuer's chain is put behind when the issuer is not the root.

        `names_issuer`: by its key's identifier, too.
        """
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
        if names_issuer and by is not None:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.certificate.public_key())
            builder = builder.add_extension(identifier, critical=False)
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

    def bad_pairs(self) -> Iterator[tuple[str, Path, Path, str, str]]:
        """Each way in which a pair for a.example can be wrong: (what, certificate file, key file, key that is to blame, words)."""
        good, other = self.make("good", ("a.example",)), self.make("other", ("a.example",))
        old, early = self.make("old", ("a.example",), begins=-9, ends=-1), self.make("early", ("a.example",), begins=5, ends=9)
        locked = self.make("locked", ("a.example",), password=b"x")
        middle = self.make("middle", (), is_ca=True)
        chained = self.make("chained", ("a.example",), issuer=middle)
        half, half_key, upside_down, empty = (self.directory / name for name in ("half.pem", "half.key", "upside.pem", "empty.pem"))
        half.write_bytes(good.chain_pem[: len(good.chain_pem) // 2])
        half_key.write_bytes(good.key_pem[: len(good.key_pem) // 2])
        leaf, issuer = (certificate.public_bytes(Encoding.PEM) for certificate in (chained.certificate, middle.certificate))
        assert chained.chain_pem == leaf + issuer
        upside_down.write_bytes(issuer + leaf)
        empty.write_bytes(b"")
        nowhere = self.directory / "nowhere"
        yield "half-written certificate", half, good.key, "cert", "is cut off"
        yield "half-written key", good.cert, half_key, "key", "is cut off"
        yield "key of another", good.cert, other.key, "key", "is not the key of the certificate (CN=a.example)"
        yield "expired", old.cert, old.key, "cert", "has expired on "
        yield "not valid yet", early.cert, early.key, "cert", "is not valid before "
        yield "chain upside down", upside_down, chained.key, "cert", "has its chain in the wrong order: certificate 2 (CN=a.example)"
        yield "key with a password", locked.cert, locked.key, "key", "is protected by a password"
        yield "no certificate file", nowhere, good.key, "cert", "cannot be read: no such file or directory"
        yield "no key file", good.cert, nowhere, "key", "cannot be read: no such file or directory"
        yield "empty certificate", empty, good.key, "cert", "holds no certificate (it is empty)"
        yield "files swapped", good.key, good.cert, "cert", "holds no certificate (it has PRIVATE KEY)"


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.fixture
def authority() -> Iterator[Authority]:
    with tempfile.TemporaryDirectory() as directory:  # with a short name, so that messages show it in full
        yield Authority(Path(directory))


class _CheckedState:
    """Stands for `Exchange.state`: every move is held against the table of allowed ones; the code itself pays nothing for that."""

    def __init__(self, wrong: list[str]) -> None:
        self._wrong = wrong

    def __get__(self, exchange: Any, owner: type) -> State:
        return State.NEW if exchange is None else exchange.__dict__.get("checked state", State.NEW)

    def __set__(self, exchange: Any, to: State) -> None:
        before = self.__get__(exchange, type(exchange))
        if to not in TRANSITIONS[before]:
            self._wrong.append(f"{type(exchange).__name__}: {before.value} to {to.value}")
        exchange.__dict__["checked state"] = to


@pytest.fixture(autouse=True)
def every_move_of_an_exchange_is_in_its_table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In all tests that play exchanges in this process."""
    wrong: list[str] = []
    if request.path.parent.name in ("http", "scenarios", "cache"):
        monkeypatch.setattr(Exchange, "state", _CheckedState(wrong))
    yield
    assert not wrong, wrong
