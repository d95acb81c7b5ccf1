"""What no single key can know: pools that are named must exist, nothing may be there twice, something must listen.

The document may lack what was refused already; `tree` is everything as the file has it, so that one mistake is reported once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twistedproxy.config import compressing, schema, tls_checks, values
from twistedproxy.config.kinds import Origin
from twistedproxy.config.locate import Path, dotted
from twistedproxy.config.routing import ANSWERS, USES, USES_LATER, faults, uses_of

Finding = tuple[Path, str]
Quote = Callable[[Path, str], str]
"""A value as messages may show it: with its placeholders as written."""

MOST_OF_A_SORT = 300
DEFAULT_HTTP = ":80"
DEFAULT_HTTPS = ":443"


def check(document: schema.File, tree: Mapping[str, Any], origin: Origin, quote: Quote) -> list[Finding]:
    """All findings, in no particular order; of each sort no more than anybody will read."""
    sorts = (
        _pools(document, tree),
        _references(document, tree, quote),
        _hosts(document, quote),
        _routes(document),
        _uses(document),
        _caches(document),
        _together(document, tree),
        _listeners(document, tree, origin, quote),
        tls_checks.check(document, tree, origin, quote),
        _logs(document, origin, quote),
        _cache(document, origin, quote),
    )
    return [finding for sort in sorts for finding in itertools.islice(sort, MOST_OF_A_SORT)]


_HTTP = "is for HTTP; remove it"
_EARLY = "counts before the request has a site; set it in [timeouts]"
_WHOLE = "counts for the whole proxy; set it in [timeouts]"
_IDLE_ON_SITES = {
    "request_head": _EARLY,
    "keepalive": "counts between two requests, before the next has a site; set it in [timeouts]",
    "preread": _EARLY,
    "drain_http": _WHOLE,
    "drain_tcp": _WHOLE,
    "tcp_idle": "is for TCP listeners; remove it, or set websocket_idle for WebSockets and other tunnels",
}
_IDLE_ON_TCP = dict.fromkeys(
    ("request_head", "body_idle", "request", "response_head", "response_idle", "keepalive", "websocket_idle", "drain_http"), _HTTP
) | {"drain_tcp": _WHOLE}
"""Time-outs that may be written there and do nothing, with why and what to do."""


def warnings(document: schema.File) -> list[Finding]:
    """What is allowed and has no effect."""
    tables: list[tuple[Path, schema.Timeouts | None, Mapping[str, str]]] = []
    tables += [(("sites", name, "timeouts"), site.timeouts, _IDLE_ON_SITES) for name, site in document.sites.items()]
    tables += [((*path, "timeouts"), route.timeouts, _IDLE_ON_SITES) for path, route in _all_routes(document)]
    tables += [(("tcp", address, "timeouts"), listener.timeouts, _IDLE_ON_TCP) for address, listener in document.tcp.items()]
    found = (
        ((*path, key), f"has no effect here: {key} {idle[key]}")
        for path, timeouts, idle in tables
        if timeouts is not None
        for key in idle
        if key in timeouts.model_fields_set
    )
    return list(itertools.islice(found, MOST_OF_A_SORT))


def _cache(document: schema.File, origin: Origin, quote: Quote) -> Iterator[Finding]:
    cache = document.cache
    if cache.path is not None and origin.reads_files:
        path: Path = ("cache", "path")
        there = cache.path
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there):
            what = "is not a directory" if there == cache.path else f"cannot be made: {there} is not a directory"
            yield path, f"{quote(path, cache.path)} {what}; name a directory of the cache's own"
        elif not os.access(there, os.W_OK | os.X_OK) and not os.statvfs(there).f_flag & os.ST_RDONLY:  # which may pass: it stops nobody
            what = "may not be written by this user" if there == cache.path else f"cannot be made: this user may not write to {there}"
            yield path, f"{quote(path, cache.path)} {what}; change its owner or its mode"
    if "max_object" in cache.model_fields_set and 0 < cache.disk < cache.max_object:
        yield ("cache", "max_object"), f"is larger than disk ({cache.disk} bytes), into which it would have to fit"


def _table(value: Any, *keys: str) -> Mapping[str, Any]:
    """The table at `keys`, or an empty one."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _pools(document: schema.File, tree: Mapping[str, Any]) -> Iterator[Finding]:
    for name, pool in document.pools.items():
        if not _table(tree, "pools", name).get("servers"):
            yield ("pools", name), 'has no servers; add servers = ["HOST:PORT"]'
        seen: dict[str, int] = {}
        for index, server in enumerate(pool.servers):
            first = seen.setdefault(server.address, index)
            if first != index:
                yield (
                    ("pools", name, "servers", index),
                    f"is the same server as servers[{first}]; each address can be in a pool once (use weight=N for a larger share)",
                )


def _references(document: schema.File, tree: Mapping[str, Any], quote: Quote) -> Iterator[Finding]:
    known = _table(tree, "pools")

    def unknown(path: Path, pool: str) -> Iterator[Finding]:
        if pool not in known:
            defined = ", ".join(sorted(known)[:20]) or "none"
            yield path, f"there is no pool {quote(path, pool)}.{values.did_you_mean(pool, known)} Pools are: {defined}"

    for path, route in _all_routes(document):
        written = _table(tree, "sites", str(path[1])).get(str(path[2]))
        if route.pool:
            yield from unknown((*path, "pool") if isinstance(written, (dict, list)) else path, route.pool)
        for side in route.split:
            yield from unknown((*path, "split", side), side)
        if route.mirror is not None:
            yield from unknown((*path, "mirror", "pool"), route.mirror.pool)
    for address, listener in document.tcp.items():
        path = ("tcp", address, "pool")
        if listener.pool is None:
            if not _table(tree, "tcp", address).get("sni"):
                yield ("tcp", address), 'needs the key \'pool\', or sni = { "HOST" = "POOL" } in its place'
            continue
        if listener.sni:
            yield ("tcp", address, "sni"), "stands in place of pool; keep one of the two"
        yield from unknown(path, listener.pool)
        pool = document.pools.get(listener.pool)
        if pool and pool.sticky is not None:
            yield path, f"the pool {quote(path, listener.pool)} has sticky, which needs HTTP; for TCP balance by source_ip"
        if pool and pool.balance.startswith("hash:"):
            balance = quote(("pools", listener.pool, "balance"), pool.balance)
            yield (
                path,
                f"the pool {quote(path, listener.pool)} balances by {balance}, which needs HTTP; for TCP give it one of "
                f"{', '.join(values.BALANCE)}, or name another pool",
            )


def _all_routes(document: schema.File) -> Iterator[tuple[Path, schema.Route]]:
    """Rules and routes of all sites, with where they stand."""
    for site_name, site in document.sites.items():
        yield from ((("sites", site_name, "rules", i), rule) for i, rule in enumerate(site.rules))
        yield from ((("sites", site_name, route_path), route) for route_path, route in site.routes.items())


def _together(document: schema.File, tree: Mapping[str, Any]) -> Iterator[Finding]:
    """What the keys of a route cannot say together; silent where a key is misspelt or broken, which is reported already."""
    for path, route in _all_routes(document):
        written = _table(tree, "sites", str(path[1])).get(str(path[2]))
        if isinstance(written, list):
            written = written[int(path[3])]
        names = {field.alias or name for name, field in type(route).model_fields.items()}
        is_whole = not isinstance(written, dict) or (
            written.keys() <= names and all(bool(getattr(route, name)) == bool(written.get(name)) for name in ANSWERS)
        )
        for key, message in faults(route):
            if key or is_whole:
                yield ((*path, key) if key else path), message


def _uses(document: schema.File) -> Iterator[Finding]:
    """Names in `use` must exist."""
    named: list[tuple[Path, tuple[str, ...]]] = [(("sites", name, "use"), site.use) for name, site in document.sites.items()]
    named += [((*path, "use"), route.use or ()) for path, route in _all_routes(document)]
    known = (*USES, *(f"headers.{name}" for name in document.headers), *(f"compress.{name}" for name in document.compress))
    for path, uses in named:
        for index, name in enumerate(uses):
            if name.partition(".")[0] in USES_LATER:
                yield (*path, index), f"{name} is not supported yet"
            elif name not in known:
                hint = values.did_you_mean(name, known)
                yield (*path, index), f"there is no {values.shown(name)} to use.{hint} There are {', '.join(known[:20])}"
    for name, table in document.compress.items():
        yield from ((("compress", name, key), message) for key, message in compressing.faults(table))
    for name, pool in document.pools.items():
        if pool.sticky is not None and pool.sticky.cookie is None:
            yield ("pools", name, "sticky"), "needs a cookie here; for a stable hash use balance = " + '"source_ip" or "hash:…"'


def _caches(document: schema.File) -> Iterator[Finding]:
    """What a server is told of the holder of a client certificate is for that client alone; a kept answer goes to all."""
    for path, route in _all_routes(document):
        site = document.sites[str(path[1])]
        is_own = "cache" in route.model_fields_set
        if (route.cache if is_own else site.cache) is None:
            continue
        presets = [document.headers[name[8:]] for name in uses_of(site, route) if name[:8] == "headers." and name[8:] in document.headers]
        edits = [headers.request for headers in (*presets, route.headers)]
        if any("${client_cert_" in value for edit in edits for _, value in (*edit.set, *edit.add)):
            yield (
                (*(path if is_own else path[:2]), "cache"),
                (
                    "the request's headers tell the server who holds the client certificate, and one client's answer would be given to"
                    " others; take this route out with cache = false, or do not send that header here"
                ),
            )


def _hosts(document: schema.File, quote: Quote) -> Iterator[Finding]:
    seen: dict[str, Path] = {}
    for site_name, site in document.sites.items():
        try:
            hosts: list[tuple[Path, str]] = [(("sites", site_name), values.parse_host(site_name))]
        except ValueError as e:
            yield ("sites", site_name), f"the table's name is the site's host: {e}"
            hosts = []
        hosts += [(("sites", site_name, "names", i), host) for i, host in enumerate(site.names)]
        for path, host in hosts:
            first = seen.setdefault(host, path)
            if first != path:
                yield path, f"the host {quote(path, host)} is taken by {dotted(first)}; each host belongs to one site"


def _routes(document: schema.File) -> Iterator[Finding]:
    for site_name, site in document.sites.items():
        seen: dict[str, str] = {}
        for written in site.routes:
            path = ("sites", site_name, written)
            try:
                canonical = values.parse_route_path(written)
            except ValueError as e:
                yield path, str(e)
                continue
            first = seen.setdefault(canonical, written)
            if first != written:
                yield path, f"is the same route as {values.shown(first)}; remove one of them"


def _listeners(document: schema.File, tree: Mapping[str, Any], origin: Origin, quote: Quote) -> Iterator[Finding]:
    found: list[tuple[Path, str]] = []
    if document.listen.http is None and document.sites:
        found.append((("listen", "http"), values.parse_listen(DEFAULT_HTTP, origin.base_dir, origin.has_ipv6)))
    found += [(("listen", "http", i), listener.address) for i, listener in enumerate(document.listen.http or ())]
    if document.listen.https is None and any(site.tls for site in document.sites.values()):
        found.append((("listen", "https"), values.parse_listen(DEFAULT_HTTPS, origin.base_dir, origin.has_ipv6)))
    found += [(("listen", "https", i), listener.address) for i, listener in enumerate(document.listen.https or ())]
    for written, tcp in document.tcp.items():
        try:
            address = values.parse_listen(written, origin.base_dir, origin.has_ipv6)
        except ValueError as e:
            yield ("tcp", written), f"the table's name is the address: {e}"
            continue
        found.append((("tcp", written), address))
        if tcp.mode is not None and not address.startswith("unix:"):
            yield ("tcp", written, "mode"), "is for unix sockets only; remove it or listen on unix:PATH"
    if document.admin.listen:
        found.append((("admin", "listen"), document.admin.listen))
    yield from _taken(found, quote)
    has_http = bool(_table(tree, "listen").get("http") or _table(tree, "listen").get("https"))
    if document.sites and "http" in _table(tree, "listen") and not has_http:
        yield ("listen", "http"), 'is empty, so that no site can be reached; add an address such as ":80"'
    elif not (has_http or tree.get("tcp") or tree.get("sites")):
        yield (), 'nothing listens: add a site with a route, or a [tcp."ADDRESS"] with a pool'


def _taken(found: list[tuple[Path, str]], quote: Quote) -> Iterator[Finding]:
    seen: dict[str, Path] = {}
    for path, address in found:
        if address.endswith(":0") and not address.startswith("unix:"):
            continue
        everywhere = address.replace("0.0.0.0:", "[::]:") if address.startswith("0.0.0.0:") else address
        first = seen.setdefault(everywhere, path)
        if first != path:
            yield path, f"{quote(path, address)} is taken by {dotted(first)} already; each listener needs its own address"


def _logs(document: schema.File, origin: Origin, quote: Quote) -> Iterator[Finding]:
    """A log that cannot be written is found out before there is traffic; nothing is made or opened for it."""
    access = document.logs.access
    if access is None or access.file == "-" or not origin.reads_files:
        return
    path: Path = ("logs", "access", "file")
    file, folder = access.file, os.path.dirname(access.file)
    if os.path.isdir(file):
        yield path, f"{quote(path, file)} is a directory; name a file in it"
    elif os.path.exists(file):
        if not os.access(file, os.W_OK):
            yield path, f"{quote(path, file)} may not be written by this user; change its owner or its mode"
    elif not os.path.isdir(folder):
        yield path, f"{quote(path, file)} cannot be made: its directory does not exist; make it first"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield path, f"{quote(path, file)} cannot be made: this user may not write to its directory; change its owner or its mode"
