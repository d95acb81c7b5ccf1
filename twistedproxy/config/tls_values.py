"""The declared TLS keys as the model has them."""

from __future__ import annotations

from twistedproxy.config import tls
from twistedproxy.config.model import Acme, Certificates, KeyPair, ServerTls, SiteTls


def _pair(cert: str | None, key: str | None) -> KeyPair | None:
    return KeyPair(cert, key) if cert and key else None


def site_tls(declared: tls.SiteTls | None) -> SiteTls | None:
    if declared is None:
        return None
    source = declared.from_ or ("auto" if declared.auto else "pair")
    pair = _pair(declared.cert, declared.key)
    return SiteTls(source, pair, declared.client_ca or "", declared.min_version, declared.auto or "")


def listener_tls(declared: tls.ListenerTls | None) -> SiteTls | None:
    if declared is None:
        return None
    return SiteTls("pair", KeyPair(declared.cert, declared.key), declared.client_ca or "", declared.min_version)


def server_tls(declared: tls.ServerTls | None) -> ServerTls | None:
    if declared is None:
        return None
    return ServerTls(declared.verify, declared.ca or "", declared.name or "", _pair(declared.cert, declared.key), declared.starttls or "")


def certificates(declared: tls.Certificates) -> Certificates:
    files = tuple(KeyPair(pair.cert, pair.key) for pair in declared.files)
    return Certificates(files, _acme(declared.acme), {name: _acme(acme) for name, acme in declared.directories.items()})


def _acme(declared: tls.Acme) -> Acme:
    return Acme(declared.directory, declared.email or "", declared.ca or "", declared.challenge)
