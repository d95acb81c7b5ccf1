"""One certificate from an ACME authority, from the account to the chain: blocking, for a thread of its own (RFC 8555; ARI: RFC 9773).

By the `acme` library; only here is it imported. The authority asks over plain HTTP for a token (http-01), which our own listeners answer:
`publish` tells them. Ordering at an authority means agreeing to its terms of service.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from twistedproxy.config.model import Acme

LONGEST_ORDER_S = 180.0
PUBLISHED_S = 0.5
"""Until every worker knows an answer."""
TIMEOUT_S = 30


class NotIssued(Exception):
    """Why there is no certificate, for the operator."""


@dataclass(frozen=True, slots=True)
class Issued:
    chain: bytes
    key: bytes
    renew_at: float | None
    """When the authority suggests to renew it (ARI); None: it suggests nothing."""


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


def order(settings: Acme, account_file: str, hosts: Sequence[str], publish: Callable[[str, str], None]) -> Issued:
    """Have a certificate made for `hosts`; `NotIssued` says why there is none. `publish(token, answer)`: "" takes it back."""
    from acme import challenges, client, crypto_util, errors, messages  # noqa: PLC0415 - extra `acme`
    from josepy.jwa import ES256  # noqa: PLC0415
    from josepy.jwk import JWKEC  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    published = []
    try:
        account_key = JWKEC(key=load_pem_private_key(_account_key(account_file), None))
        net = client.ClientNetwork(account_key, alg=ES256, user_agent="twistedproxy", timeout=TIMEOUT_S)
        if settings.ca:
            net.verify_ssl = settings.ca  # type: ignore[assignment]  # requests takes a file as well
        acme = client.ClientV2(client.ClientV2.get_directory(settings.directory, net), net)
        _enter(acme, settings.email)
        key = new_key()
        ordered = acme.new_order(crypto_util.make_csr(key, list(hosts)))
        for authorization in ordered.authorizations:
            if authorization.body.status == messages.STATUS_VALID:
                continue
            found = [item for item in authorization.body.challenges if isinstance(item.chall, challenges.HTTP01)]
            if not found:
                raise NotIssued(f"{authorization.body.identifier.value}: the authority offers no http-01 challenge")
            response, answer = found[0].response_and_validation(account_key)
            token = found[0].chall.encode("token")
            publish(token, answer)
            published.append(token)
            time.sleep(PUBLISHED_S)
            acme.answer_challenge(found[0], response)
        finished = acme.poll_and_finalize(ordered, datetime.now() + timedelta(seconds=LONGEST_ORDER_S))
        chain = finished.fullchain_pem.encode()
        return Issued(chain, key, _suggested(acme, chain))
    except errors.ValidationError as e:
        raise NotIssued("; ".join(_refusals(e)) or "the authority could not check the names") from None
    except messages.Error as e:
        raise NotIssued(f"the authority refused: {e.detail or e.typ}") from None
    except (errors.Error, RequestException, ValueError, OSError) as e:
        raise NotIssued(f"{settings.directory}: {type(e).__name__}: {str(e)[:300]}") from None
    finally:
        for token in published:
            publish(token, "")


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


def _suggested(acme: object, chain: bytes) -> float | None:
    from acme import client, errors  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    assert isinstance(acme, client.ClientV2)
    try:
        at, _ = acme.renewal_time(chain)
    except (errors.Error, RequestException, ValueError):
        return None
    return at.timestamp() if at is not None else None


def _refusals(error: object) -> list[str]:
    found = []
    for authorization in getattr(error, "failed_authzrs", ()):
        for item in authorization.body.challenges:
            if item.error is not None:
                found.append(f"{authorization.body.identifier.value}: {item.error.detail or item.error.typ}")
    return found
