"""OpenSSL contexts made from PEM text: for TLS with clients, and for TLS with servers.

Everything that holds for every handshake is said here: TLS 1.2 and 1.3, forward secrecy and authenticated encryption only, no
compression, no renegotiation (faults: TL-01), buffers given back while a connection is idle.

Sessions are resumed by tickets. Each context makes its own ticket keys, so a session of one site is never resumed on another
(RT-06), nor in another worker: pyOpenSSL has no way to set the keys, and the client then makes a full handshake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from twistedproxy.tls.accepting import ServerContext

CIPHERS_1_2 = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    b"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_OPTIONS = SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION
_NO_AUTO_CHAIN = 8
"""SSL_MODE_NO_AUTO_CHAIN, which pyOpenSSL has no name for: the chain is what the file holds; it is not looked for in each handshake."""
_C = TypeVar("_C", bound=SSL.Context)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its chain, and its private key, as PEM."""

    chain: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"<Pair of {len(self.chain)} bytes of certificates and a key>"


def _prepare(context: _C, min_version: str) -> _C:
    context.set_options(_OPTIONS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_min_proto_version(VERSIONS[min_version])
    context.set_cipher_list(CIPHERS_1_2)
    return context


def _use(context: SSL.Context, pair: Pair) -> None:
    leaf, *others = x509.load_pem_x509_certificates(pair.chain)
    context.use_certificate(leaf)
    for certificate in others:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(load_pem_private_key(pair.key, None))  # type: ignore[arg-type]
    context.check_privatekey()


def _trust(context: SSL.Context, bundle: bytes) -> list[x509.Certificate]:
    store = context.get_cert_store()
    assert store is not None
    authorities = x509.load_pem_x509_certificates(bundle)
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    return authorities


def server_context(pair: Pair, protocols: Sequence[bytes], *, client_ca: bytes = b"", min_version: str = "1.2") -> ServerContext:
    """For connections that clients make. `protocols`: what we speak, the best first. With `client_ca` they must show a certificate."""
    context = _prepare(ServerContext(SSL.TLS_METHOD), min_version)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(_NO_AUTO_CHAIN)
    context.set_session_id(hashlib.sha256(pair.chain + client_ca).digest())
    _use(context, pair)
    context.speak(protocols)
    if client_ca:
        authorities = _trust(context, client_ca)
        for authority in authorities:
            context.add_client_ca(authority)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context


def client_context(ca: bytes | None, pair: Pair | None, protocols: Sequence[bytes]) -> SSL.Context:
    """For connections that we make. `ca`: who is trusted (None: the system's authorities); `pair`: what we show when asked.

    Verification is switched on by who uses it, with a callback of its own (`peers.ServerTls`).
    """
    context = _prepare(SSL.Context(SSL.TLS_METHOD), "1.2")
    if ca is None:
        context.set_default_verify_paths()
    else:
        _trust(context, ca)
    if pair is not None:
        _use(context, pair)
    if protocols:
        context.set_alpn_protos(list(protocols))
    return context
