"""What of TLS no single key can know: every file that is named is read and judged, names are covered, parts fit together.

Files are looked at only for a configuration that comes from a file: whoever may ask the API to check a text learns nothing of the disk.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from twistedproxy.config import schema, values
from twistedproxy.config.kinds import Origin
from twistedproxy.config.locate import Path
from twistedproxy.config.tls import Acme, ListenerTls, ServerTls, SiteTls

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

Finding = tuple[Path, str]
Quote = Callable[[Path, str], str]
STARTTLS = ("postgres", "mysql")
ACME_HINT = "pip install 'twistedproxy[acme]'"


def check(document: schema.File, tree: Mapping[str, Any], origin: Origin, quote: Quote) -> Iterator[Finding]:
    files = _Files(origin.reads_files)
    yield from _sites(document, tree, files)
    yield from _tcp(document, tree, files, quote)
    for name, pool in document.pools.items():
        if pool.tls is not None:
            yield from _pool(("pools", name, "tls"), pool, pool.tls, files)
    yield from _directory(("certificates", "acme"), document.certificates.acme, files, quote)
    for name, acme in document.certificates.directories.items():
        yield from _directory(("certificates", "directories", name), acme, files, quote)


def _directory(path: Path, acme: Acme, files: _Files, quote: Quote) -> Iterator[Finding]:
    if acme.ca is not None:
        yield from files.authorities((*path, "ca"), acme.ca)
    if not acme.directory.startswith("https://"):
        yield (*path, "directory"), f"{quote((*path, 'directory'), acme.directory)} is not an https:// URL"


class _Files:
    """Reads each file once and says what is wrong with it where it is named."""

    def __init__(self, may_read: bool) -> None:
        self._may_read = may_read
        self._now = time.time()

    def pair(self, path: Path, cert: str, key: str) -> Iterator[Finding]:
        """A certificate and its key; `path` is the table that has the keys `cert` and `key`."""
        chain = yield from self._chain((*path, "cert"), cert)
        if not self._may_read:
            return
        from twistedproxy.config import pem  # noqa: PLC0415 - cryptography takes time, and most files name no certificate

        try:
            content = pem.read(key)
            pem.private_key(content)
            if chain:
                pem.judge_pair(chain, content)
        except pem.BadPem as e:
            yield (*path, "key"), f"{_shown(key)} {e}"

    def _chain(self, path: Path, cert: str) -> Generator[Finding, None, list[Certificate]]:
        if not self._may_read:
            return []
        from twistedproxy.config import pem  # noqa: PLC0415

        chain: list[Certificate] = []
        try:
            chain = pem.certificates(pem.read(cert))
            pem.judge_chain(chain, self._now)
        except pem.BadPem as e:
            yield path, f"{_shown(cert)} {e}"
        return chain

    def authorities(self, path: Path, file: str) -> Iterator[Finding]:
        if not self._may_read:
            return
        from twistedproxy.config import pem  # noqa: PLC0415

        try:
            pem.certificates(pem.read(file))
        except pem.BadPem as e:
            yield path, f"{_shown(file)} {e}"

    def names(self, cert: str) -> tuple[str, ...] | None:
        """The names in a certificate; None when it cannot be read (which is said elsewhere)."""
        if not self._may_read:
            return None
        from twistedproxy.config import pem  # noqa: PLC0415

        try:
            return pem.names_of(pem.certificates(pem.read(cert))[0])
        except pem.BadPem:
            return None


def _shown(file: str) -> str:
    return values.shown(os.path.relpath(file) if not os.path.relpath(file).startswith("..") else file)


def _sites(document: schema.File, tree: Mapping[str, Any], files: _Files) -> Iterator[Finding]:
    for index, pair in enumerate(document.certificates.files):
        yield from files.pair(("certificates", "files", index), pair.cert, pair.key)
    known = [files.names(pair.cert) for pair in document.certificates.files]
    for name, site in document.sites.items():
        path: Path = ("sites", name, "tls")
        tls = site.tls
        for index, rule in enumerate(site.rules):
            if rule.when.client_cert is not None and (tls is None or tls.client_ca is None):
                where: Path = ("sites", name, "rules", index, "when", "client_cert")
                yield where, "can never match: this site asks for no certificate; give its tls a client_ca"
        yield from _clear(document, name, site)
        if tls is None:
            if site.redirect_http:
                yield ("sites", name, "redirect_http"), "is true, but the site has no tls to send clients to; add tls or remove it"
            continue
        if tls.cert and tls.key:
            yield from files.pair(path, tls.cert, tls.key)
        if tls.client_ca is not None:
            yield from files.authorities((*path, "client_ca"), tls.client_ca)
        hosts = _hosts(name, site.names)
        if tls.from_ == "files":
            yield from _covered(path, hosts, known)
        elif tls.from_ == "auto" or tls.auto is not None:
            yield from _automatic(path, tls, hosts, document, tree)
    listen = tree.get("listen")
    if isinstance(listen, dict) and listen.get("https") and not any(site.tls for site in document.sites.values()):
        in_tree = tree.get("sites")
        if not any(isinstance(site, dict) and "tls" in site for site in (in_tree.values() if isinstance(in_tree, dict) else ())):
            yield ("listen", "https"), "has no certificate to show: no site has tls; add it to a site, or remove https"


def _automatic(path: Path, tls: SiteTls, hosts: list[str], document: schema.File, tree: Mapping[str, Any]) -> Iterator[Finding]:
    if importlib.util.find_spec("acme") is None or importlib.util.find_spec("josepy") is None:
        yield path, f'"auto" needs packages that are not installed: {ACME_HINT}'
    for host in hosts:
        if "*" in host:
            yield (
                path,
                f'"auto" cannot make a certificate for {values.shown(host)}: authorities check single hosts; '
                "name each host (`names`), or get a wildcard certificate elsewhere and give its files",
            )
    certificates = tree.get("certificates")
    named = certificates.get("directories") if isinstance(certificates, dict) else None
    named = named if isinstance(named, dict) else {}
    if tls.auto is not None and tls.auto not in named:
        hint = values.did_you_mean(tls.auto, named) or ' Add it, or write tls = "auto" for the one of certificates.acme'
        yield (*path, "auto"), f"there is no certificates.directories.{tls.auto}.{hint}"
        return
    authority = document.certificates.directories.get(tls.auto) if tls.auto is not None else document.certificates.acme
    listen = tree.get("listen")
    if authority is not None and authority.challenge == "http-01" and isinstance(listen, dict) and listen.get("http") == []:
        yield path, 'is checked over plain HTTP (http-01), but listen.http is empty; add one, or challenge = "tls-alpn-01" to its directory'


def _clear(document: schema.File, name: str, site: schema.Site) -> Iterator[Finding]:
    """Pools that begin in the clear speak a protocol that no site speaks."""
    routes = [*((("rules", i), rule) for i, rule in enumerate(site.rules)), *(((path,), route) for path, route in site.routes.items())]
    for where, route in routes:
        for pool in (route.pool, *route.split):
            for kind in STARTTLS:
                if _asks_for(document, pool, kind):
                    yield ("sites", name, *where), f"leads to {values.shown(pool)}, whose servers speak {kind} (tls.starttls), not HTTP"


def _hosts(name: str, more: tuple[str, ...]) -> list[str]:
    try:
        return [values.parse_host(name), *more]
    except ValueError:
        return [*more]


def _covered(path: Path, hosts: list[str], known: list[tuple[str, ...] | None]) -> Iterator[Finding]:
    if not known:
        yield path, '"files" needs certificates.files = [{ cert = "…", key = "…" }]'
        return
    if None in known:
        return
    from twistedproxy.config import pem  # noqa: PLC0415

    for host in hosts:
        if not any(pem.covers(names or (), host) for names in known):
            held = sorted({name for names in known for name in names or ()})
            yield path, f"none of certificates.files has the name {values.shown(host)}; they have {', '.join(held[:20]) or 'no names'}"


def _tcp(document: schema.File, tree: Mapping[str, Any], files: _Files, quote: Quote) -> Iterator[Finding]:
    pools = tree.get("pools")
    known = pools if isinstance(pools, dict) else {}
    for address, listener in document.tcp.items():
        path: Path = ("tcp", address)
        if listener.tls is not None:
            yield from _listener(path, listener.tls, files)
        if listener.sni and listener.tls is not None:
            yield (*path, "sni"), "passes TLS through untouched, tls ends it here; keep one of the two"
        if listener.sni and listener.protocol is not None:
            yield (*path, "sni"), "cannot pick a server for MySQL: the server speaks before the client names anybody; use pool"
        asks_mysql = _asks_for(document, listener.pool, "mysql")
        if asks_mysql and listener.protocol is None:
            yield (*path, "pool"), 'has servers that are asked for TLS in the way of MySQL (starttls); add protocol = "mysql" here'
        elif listener.protocol is not None and listener.tls is None and not asks_mysql and listener.pool in document.pools:
            yield (*path, "protocol"), "is of use only with TLS: add tls here, or starttls to the pool's tls, or remove protocol"
        elif listener.protocol is not None and _has_tls(document, listener.pool) and not asks_mysql:
            yield (*path, "pool"), 'has tls without starttls = "mysql": MySQL servers do not begin with TLS; add it to the pool\'s tls'
        asked = tree.get("tcp", {}).get(address, {}).get("sni", {})
        if len(asked) != len(listener.sni):
            yield (*path, "sni"), "names a host twice; case and a trailing dot make no difference"
        for host, pool in listener.sni.items():
            if pool not in known:
                yield (*path, "sni", host), f"there is no pool {quote((*path, 'sni', host), pool)}.{values.did_you_mean(pool, known)}"
            elif pool in document.pools and document.pools[pool].balance.startswith("hash:"):
                yield (*path, "sni", host), "balances by a part of HTTP, which TLS hides; give the pool another balance"
            elif pool in document.pools and document.pools[pool].tls is not None:
                yield (*path, "sni", host), "has tls, but what comes here is TLS already; name a pool without tls"


def _has_tls(document: schema.File, name: str | None) -> bool:
    pool = document.pools.get(name or "")
    return pool is not None and pool.tls is not None


def _asks_for(document: schema.File, name: str | None, protocol: str) -> bool:
    """Has the pool servers that are asked for TLS in the way of `protocol`?"""
    pool = document.pools.get(name or "")
    return pool is not None and pool.tls is not None and pool.tls.starttls == protocol


def _listener(path: Path, tls: ListenerTls, files: _Files) -> Iterator[Finding]:
    yield from files.pair((*path, "tls"), tls.cert, tls.key)
    if tls.client_ca is not None:
        yield from files.authorities((*path, "tls", "client_ca"), tls.client_ca)


def _pool(path: Path, pool: schema.Pool, tls: ServerTls, files: _Files) -> Iterator[Finding]:
    if tls.ca is not None:
        yield from files.authorities((*path, "ca"), tls.ca)
    if tls.cert and tls.key:
        yield from files.pair(path, tls.cert, tls.key)
    if tls.verify and tls.name is None and any(server.address.startswith("unix:") for server in pool.servers):
        yield path, 'a server on a unix socket has no host name to look for in its certificate; add name = "…"'
    spoken = next((kind for kind in ("http", *values.PROBES) if pool.health is not None and getattr(pool.health, kind)), "tcp")
    if tls.starttls is None and spoken in STARTTLS:
        yield path, f'{spoken} servers are asked for TLS before it begins; add starttls = "{spoken}"'
    elif tls.starttls is not None and spoken not in (tls.starttls, "tcp"):
        yield (*path, "starttls"), f'is {tls.starttls}, but the health check speaks {spoken}; its kind may be "{tls.starttls}" or "tcp"'
