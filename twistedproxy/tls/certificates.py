"""Which certificate answers to which name: the sites of the configuration, as a TLS handshake sees them.

How it works
    The name in the ClientHello picks a site by the same rules as the Host field does: exact, then ``*.suffix``, then ``*``. No
    name, an IP address, the name of no site or of one without TLS: the certificate of ``*``, else of the first site with TLS.
    A handshake is never refused for its name (contract, ``sites.*.tls``).

    A site's context is made when it is first asked for and kept while its certificate and its demands stay as they are, also
    over a reload, so that clients go on resuming their sessions. ``vault`` holds what was read from the files, by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID
from OpenSSL import SSL

from twistedproxy.config.model import Certificates, Site
from twistedproxy.tls.client_hello import ClientHello
from twistedproxy.tls.contexts import Pair, server_context

PROTOCOLS = (b"http/1.1",)
ACME_TLS = b"acme-tls/1"
"""Spoken by authorities alone, to see a certificate with their token in it (RFC 8737)."""
Key = tuple[str, str]
"""The files of a certificate and of its key, as configured; ("ca file", "") for certificates alone, ("auto", site) for ACME."""
Vault = Mapping[Key, Pair]
Demands = tuple[str, str]
"""(client CA file, least version): what a site asks of a handshake."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a handshake will be made with."""

    context: SSL.Context
    demands: Demands
    asks_for_certificate: bool
    told: dict[tuple[int, str], Any] = field(default_factory=dict, compare=False, repr=False)
    """By version and name: the `ClientTls` of clients without a certificate of their own, which are all alike."""


@dataclass(slots=True)
class _TlsSite:
    name: str
    demands: Demands
    keys: tuple[Key, ...]
    """More than one only with ``files``: whichever covers the name, else the first."""
    chosen: dict[str, Choice] = field(default_factory=dict)


_MOST_REMEMBERED = 1000


def names_in(chain: bytes) -> list[str]:
    """The DNS names of the first certificate in `chain`, lower case; its common name when it has no others."""
    certificate = x509.load_pem_x509_certificates(chain)[0]
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
        names = extension.get_values_for_type(x509.DNSName)  # type: ignore[attr-defined]
    except x509.ExtensionNotFound:
        names = [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return [name.lower().rstrip(".") for name in names]


def covers(names: Iterable[str], host: str) -> bool:
    """Is a certificate with `names` good for `host`? A wildcard stands for one label (RFC 9525 6.3)."""
    parent = host.partition(".")[2]
    return any(name == host or (name.startswith("*.") and name[2:] == parent and host != "*") for name in names)


class SiteCertificates:
    """All sites with TLS, in one worker. `vault` may still lack what is on its way: a site without its certificate is passed over."""

    def __init__(
        self,
        sites: Iterable[Site],
        certificates: Certificates,
        vault: Vault,
        before: SiteCertificates | None = None,
        challenges: Mapping[str, SSL.Context] | None = None,
    ) -> None:
        self._vault = vault
        self._challenges = challenges or {}
        self._names = {key: names_in(vault[key].chain) for key in (pair.key_names for pair in certificates.files) if key in vault}
        self._sites: dict[str, _TlsSite] = {}
        self._default: _TlsSite | None = None
        self._contexts: dict[tuple[Pair, str, bytes], SSL.Context] = {}
        self._contexts_before = before._contexts if before is not None else {}
        for site in sites:
            if site.tls is None:
                continue
            keys = tuple(self._names) if site.tls.source == "files" else (site.tls.key_names(site.name),)
            keys = tuple(key for key in keys if key in vault)
            if not keys or (site.tls.client_ca and (site.tls.client_ca, "") not in vault):
                continue
            entry = _TlsSite(site.name, site.tls.demands, keys)
            for host in site.hosts:
                self._sites[host] = entry
            if self._default is None or "*" in site.hosts:
                self._default = entry
        self.is_uniform = len({site.demands for site in self._sites.values()}) <= 1
        """All sites ask the same of a handshake."""

    def __bool__(self) -> bool:
        return self._default is not None

    def demands_of(self, host: str) -> Demands | None:
        """What the site of this host asks of a handshake; None for a host of no site with TLS."""
        site = self._find(host)
        return site.demands if site is not None else None

    def choose(self, hello: ClientHello) -> Choice | None:
        """None while there is no certificate at all."""
        name = hello.name
        site = self._find(name) if name else None
        if site is None:
            site = self._default
            if site is None:
                return None
        choice = site.chosen.get(name)
        if choice is None:
            if len(site.chosen) >= _MOST_REMEMBERED:  # names that a wildcard covers are as many as clients like
                site.chosen.clear()
            choice = site.chosen[name] = Choice(self._context(site, name), site.demands, bool(site.demands[0]))
        return choice

    def challenge(self, hello: ClientHello) -> SSL.Context | None:
        """For an authority that looks whether this name leads here, while we are waiting for it; nobody else gets this."""
        return self._challenges.get(hello.name) if hello.protocols == (ACME_TLS,) else None

    def _find(self, host: str) -> _TlsSite | None:
        site = self._sites.get(host)
        rest = host
        while site is None:
            rest = rest.partition(".")[2]
            if not rest:
                return self._sites.get("*")
            site = self._sites.get(f"*.{rest}")
        return site

    def _context(self, site: _TlsSite, name: str) -> SSL.Context:
        key = site.keys[0]
        if len(site.keys) > 1:
            key = next((key for key in site.keys if covers(self._names[key], name)), key)
        client_ca, min_version = site.demands
        authorities = self._vault[client_ca, ""].chain if client_ca else b""
        made_of = (self._vault[key], min_version, authorities)
        context = self._contexts.get(made_of) or self._contexts_before.get(made_of)
        if context is None:
            context = server_context(made_of[0], PROTOCOLS, client_ca=authorities, min_version=min_version)
        self._contexts[made_of] = context
        return context
