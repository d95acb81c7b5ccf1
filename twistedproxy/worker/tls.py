"""The TLS side of a worker: what the supervisor read from the files, and what is made of it for listeners, sites and pools.

The worker itself opens none of these files; it may run as somebody who cannot. PEM texts come as observations (`CertificateRead`), also
when a file changes while traffic flows: from then on new handshakes use them, and no open connection notices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from OpenSSL import SSL

from twistedproxy.config.changes import CertificateRead, ChallengeSet, HandshakeChallengeSet, Observation
from twistedproxy.config.model import Model, SiteTls
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.net.tls_connector import Ask, TlsConnector
from twistedproxy.pool.pool import Pool, forget_connections
from twistedproxy.stream.postgres import SslRequest
from twistedproxy.tls.certificates import ACME_TLS, Key, SiteCertificates
from twistedproxy.tls.contexts import Pair, server_context
from twistedproxy.tls.servers import MissingMaterial, ServerTlsUse

TCP_PROTOCOLS = (b"postgresql",)
"""What TCP listeners answer to by ALPN: PostgreSQL's clients insist on theirs (``sslnegotiation=direct``)."""

ASK: dict[str, Ask] = {"postgres": SslRequest}
"""How servers are asked for TLS that do not begin with it. MySQL's are asked in the middle of a session (`stream.mysql_session`)."""


class TlsParts:
    """All that a worker needs for TLS."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._vault: dict[Key, Pair] = {}
        self._uses: dict[str, tuple[object, ServerTlsUse | None]] = {}
        self._listeners: dict[object, SSL.Context] = {}
        self.sites = SiteCertificates((), Model().certificates, {})
        self.challenges: dict[str, str] = {}
        """By token: what authorities want to read from us."""
        self._handshakes: dict[str, SSL.Context] = {}

    def take(self, observations: Iterable[Observation]) -> bool:
        """Keep what concerns TLS; was there any?"""
        found = False
        for seen in observations:
            if isinstance(seen, CertificateRead):
                self._vault[seen.cert, seen.key] = Pair(seen.chain_pem.encode(), seen.key_pem.encode())
                found = True
            elif isinstance(seen, ChallengeSet):
                self.challenges.pop(seen.token, None)
                if seen.answer:
                    self.challenges[seen.token] = seen.answer
                found = True
            elif isinstance(seen, HandshakeChallengeSet):
                self._handshakes.pop(seen.host, None)
                if seen.chain_pem:
                    pair = Pair(seen.chain_pem.encode(), seen.key_pem.encode())
                    self._handshakes[seen.host] = server_context(pair, (ACME_TLS,))
                found = True
        return found

    def configure(self, model: Model, pools: Mapping[str, Pool], fronts: Iterable[Any]) -> None:
        """Make sites, pools and listeners use the certificates that are there now; what is open goes on with what it has."""
        self.sites = SiteCertificates(model.sites.values(), model.certificates, self._vault, self.sites, self._handshakes)
        for spec in model.pools.values():
            self.fit(pools[spec.name], spec)
        for front in fronts:
            if hasattr(front, "certificates"):
                front.certificates = self.sites

    def context_of(self, tls: SiteTls) -> Callable[[], SSL.Context | None]:
        """How a TCP listener that ends TLS gets its certificate of the moment."""
        return lambda: self.listener(tls)

    def fit(self, pool: Pool, spec: PoolSpec) -> None:
        """Give `pool` the TLS it is configured with. Connections made on other terms are never used again (faults: TL-03)."""
        before = pool.tls
        if spec.tls is None:
            pool.tls = None
            self._uses.pop(spec.name, None)
        else:
            tls = spec.tls
            names = [(tls.ca, "")] if tls.ca else []
            names += [tls.pair.key_names] if tls.pair is not None else []
            terms = (tls, tuple(self._vault.get(name) for name in names))
            known = self._uses.get(spec.name)
            if known is not None and known[0] == terms and before is not None:
                return
            use = None
            if known is not None and known[0] == terms:
                use = known[1]
            else:
                try:
                    use = ServerTlsUse(tls, self._vault)
                except MissingMaterial:
                    pass  # it comes with an observation, or the supervisor has said why not
                self._uses[spec.name] = (terms, use)
            pool.tls = TlsConnector(spec.name, use, self._seconds, ASK.get(tls.starttls))
        if before is not None or pool.tls is not None:
            forget_connections(pool)

    def listener(self, tls: SiteTls) -> SSL.Context | None:
        """For a TCP listener that ends TLS; None while its certificate is not there."""
        assert tls.pair is not None
        pair = self._vault.get(tls.pair.key_names)
        ca = self._vault.get((tls.client_ca, "")) if tls.client_ca else None
        if pair is None or (tls.client_ca and ca is None):
            return None
        made_of = (pair, ca, tls.min_version)
        context = self._listeners.get(made_of)
        if context is None:
            context = server_context(pair, TCP_PROTOCOLS, client_ca=ca.chain if ca else b"", min_version=tls.min_version)
            self._listeners[made_of] = context
        return context
