"""The TLS check against real handshakes."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, KeyPair, PrivateCertificate
from twisted.internet.task import deferLater
from twisted.internet.tcp import Client
from twisted.trial.unittest import TestCase

from twistedproxy.config.model import endpoint
from twistedproxy.probes.dialogue import Finding, ask
from twistedproxy.probes.tls import TlsCheck


def self_signed() -> CertificateOptions:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody.else")])
    long_ago = datetime.datetime(2020, 1, 1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(long_ago).not_valid_after(long_ago + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair = KeyPair.load(pem, 1)
    own = PrivateCertificate.load(certificate.public_bytes(serialization.Encoding.PEM), pair, 1)
    return own.options()  # type: ignore[no-any-return]


class TlsCheckTest(TestCase):
    def setUp(self) -> None:
        self.factory = Factory.forProtocol(Protocol)
        self.factory.noisy = False

    async def ask(self, port: int) -> Finding:
        found = Deferred.fromCoroutine(ask(reactor, endpoint(f"127.0.0.1:{port}"), TlsCheck()))
        finding = await found.addTimeout(10, reactor)  # type: ignore[arg-type]
        deadline = reactor.seconds() + 5  # type: ignore[attr-defined]
        while any(isinstance(r, Client) for r in reactor.getReaders()) and reactor.seconds() < deadline:  # type: ignore[attr-defined]
            await deferLater(reactor, 0)  # type: ignore[arg-type]
        return finding

    async def test_a_handshake_is_enough_whatever_the_certificate(self) -> None:
        """An expired, self-signed certificate of another name does not take a living server out: checks are not verification."""
        port = reactor.listenSSL(0, self.factory, self_signed(), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.assertEqual(await self.ask(port.getHost().port), Finding(True, "TLS handshake"))

    async def test_a_server_that_speaks_no_tls_is_down(self) -> None:
        """A plain server behind a TLS check is told from a good one."""

        class Plain(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        port = reactor.listenTCP(0, Factory.forProtocol(Plain), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        finding = await self.ask(port.getHost().port)
        self.assertFalse(finding.ok)
        self.assertIn("TLS: ", finding.reason)
