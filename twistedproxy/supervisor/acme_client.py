"""One certificate from an ACME authority, from the account to the chain: blocking, for a thread of its own (RFC 8555; ARI: RFC 9773).

By the `acme` library; only here is it imported. The authority asks for a token over plain HTTP (http-01, RFC 8555 8.3), or makes a TLS
handshake in which it wants to see a certificate with the token's digest (tls-alpn-01, RFC 8737); our own listeners answer either: `publish`
tells them. Ordering at an authority means agreeing to its terms of service.
"""

from __future__ import annotations

import base64
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from twistedproxy.config.changes import ChallengeSet, HandshakeChallengeSet
from twistedproxy.config.model import Acme

LONGEST_ORDER_S = 180.0
PUBLISHED_S = 0.5
"""Until every worker knows an answer."""
TIMEOUT_S = 30
MOST_NONCES = 10
"""Tried for one request at most."""
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_UNKNOWN_S = 6 * 3600.0
"""So long an authority that could not be asked is left alone."""
Publish = Callable[[ChallengeSet | HandshakeChallengeSet], None]


class NotIssued(Exception):
    """Why there is no certificate, for the operator."""


@dataclass(frozen=True, slots=True)
class Issued:
    chain: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the authority says of a certificate's renewal (ARI); wall clock."""

    renew_at: float | None
    """None: it suggests nothing."""
    ask_at: float
    """When to ask again."""


def new_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_secret(path: str, content: bytes) -> None:
    """Replace a file at once or not at all; mode 0600 from its first byte on."""
    directory = os.path.dirname(os.path.abspath(path))
    os.makedirs(directory, mode=0o700, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=directory)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def order(settings: Acme, account_file: str, hosts: Sequence[str], publish: Publish) -> Issued:
    """Have a certificate made for `hosts`; `NotIssued` says why there is none. What is published is taken back in the end."""
    from acme import crypto_util, errors, messages  # noqa: PLC0415 - extra `acme`
    from acme.challenges import HTTP01Response  # noqa: PLC0415
    from josepy.jwk import JWKEC  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    published: list[ChallengeSet | HandshakeChallengeSet] = []
    try:
        account_key = JWKEC(key=load_pem_private_key(_account_key(account_file), None))
        acme = _connected(settings, account_key)
        _enter(acme, settings.email)
        key = new_key()
        ordered = acme.new_order(crypto_util.make_csr(key, list(hosts)))
        waiting = [item.body for item in ordered.authorizations if item.body.status != messages.STATUS_VALID]
        asked = [(body.identifier.value, _offered(body, settings.challenge)) for body in waiting]
        for host, item in asked:
            token = item.chall.to_partial_json()["token"]
            proof = f"{token}.{_thumbprint(account_key)}"
            is_http = settings.challenge == "http-01"
            published.append(ChallengeSet(token, proof) if is_http else handshake_challenge(host, proof))
            publish(published[-1])
        if asked:
            time.sleep(PUBLISHED_S)
        for _, item in asked:
            # Whatever the challenge, the answer is an empty object (RFC 8555 7.5.1), as this class writes it.
            acme.answer_challenge(item, HTTP01Response(key_authorization=""))
        finished = acme.poll_and_finalize(ordered, datetime.now() + timedelta(seconds=LONGEST_ORDER_S))
        return Issued(finished.fullchain_pem.encode(), key)
    except errors.ValidationError as e:
        raise NotIssued("; ".join(_refusals(e)) or "the authority could not check the names") from None
    except messages.Error as e:
        raise NotIssued(f"the authority refused: {e.detail or e.typ}") from None
    except (errors.Error, RequestException, ValueError, OSError) as e:
        raise NotIssued(f"{settings.directory}: {type(e).__name__}: {str(e)[:300]}") from None
    finally:
        for seen in published:
            publish(ChallengeSet(seen.token, "") if isinstance(seen, ChallengeSet) else HandshakeChallengeSet(seen.host, "", ""))


def suggestion(settings: Acme, chain: bytes) -> Suggestion:
    """When the authority would like to have a certificate renewed: at some moment of the window that it names (RFC 9773 4.2).

    No answer is no suggestion: renewal at two thirds of the life does not depend on it.
    """
    from acme import errors  # noqa: PLC0415 - extra `acme`
    from josepy.jwk import JWKEC  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    now = time.time()
    try:
        acme = _connected(settings, JWKEC(key=load_pem_private_key(new_key(), None)))  # nothing is signed here
        at, again = acme.renewal_time(chain)
        return Suggestion(at.timestamp() if at is not None else None, again.timestamp())
    except errors.ARIError as e:
        return Suggestion(None, e.retry_after.timestamp())
    except (errors.Error, RequestException, ValueError, OSError, x509.ExtensionNotFound):
        return Suggestion(None, now + _UNKNOWN_S)


def handshake_challenge(host: str, proof: str) -> HandshakeChallengeSet:
    """What proves to an authority that we hold `host`: a self-signed certificate with the digest of `proof` in it (RFC 8737 3)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acme-tls/1")])
    digest = b"\x04\x20" + sha256(proof.encode()).digest()  # a DER octet string
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, digest), critical=True).sign(key, SHA256())
    )  # fmt: skip
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return HandshakeChallengeSet(host, certificate.public_bytes(Encoding.PEM).decode(), key_pem.decode())


def network(account_key: Any) -> Any:
    """The library's, which asks once more when a nonce is refused. An authority of several machines may refuse some in a row, and that is
    no reason to give an order up (RFC 8555 6.5)."""
    from acme import client, messages  # noqa: PLC0415 - extra `acme`
    from josepy.jwa import ES256  # noqa: PLC0415

    class Network(client.ClientNetwork):
        def post(self, *args: Any, **kwargs: Any) -> Any:
            tried = 0
            while True:
                try:
                    return super().post(*args, **kwargs)
                except messages.Error as error:
                    tried += 2
                    if error.code != "badNonce" or tried >= MOST_NONCES:
                        raise

    return Network(account_key, alg=ES256, user_agent="twistedproxy", timeout=TIMEOUT_S)


def _connected(settings: Acme, account_key: Any) -> Any:
    from acme import client  # noqa: PLC0415 - extra `acme`

    net = network(account_key)
    if settings.ca:
        net.verify_ssl = settings.ca  # requests takes a file as well
    return client.ClientV2(client.ClientV2.get_directory(settings.directory, net), net)


def _offered(authorization: Any, wanted: str) -> Any:
    """The challenge of this type, also one that the library has no class for."""
    offers = {item.chall.to_partial_json().get("type"): item for item in authorization.challenges}
    if wanted not in offers:
        held = ", ".join(sorted(map(str, offers)))
        raise NotIssued(f"{authorization.identifier.value}: the authority offers no {wanted} challenge, only {held or 'none'}")
    return offers[wanted]


def _thumbprint(account_key: Any) -> str:
    return base64.urlsafe_b64encode(account_key.thumbprint(hash_function=SHA256)).rstrip(b"=").decode()


def _account_key(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        key = new_key()
        write_secret(path, key)
        return key


def _enter(acme: object, email: str) -> None:
    """Make the account, or find the one that the key has already."""
    from acme import client, errors, messages  # noqa: PLC0415

    assert isinstance(acme, client.ClientV2)
    wanted = messages.NewRegistration.from_data(email=email or None, terms_of_service_agreed=True)
    try:
        acme.new_account(wanted)
    except errors.ConflictError as e:
        known = messages.RegistrationResource(uri=e.location, body=messages.Registration())
        acme.net.account = known
        acme.net.account = acme.query_registration(known)


def _refusals(error: object) -> list[str]:
    found = []
    for authorization in getattr(error, "failed_authzrs", ()):
        for item in authorization.body.challenges:
            if item.error is not None:
                found.append(f"{authorization.body.identifier.value}: {item.error.detail or item.error.typ}")
    return found
