"""From the checked document to the frozen model: inheritance, canonical names, defaults that depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from twistedproxy.config import schema, tls_values, values
from twistedproxy.config.caching import Cache as CacheDeclared
from twistedproxy.config.checks import DEFAULT_HTTP, DEFAULT_HTTPS
from twistedproxy.config.compressing import Compress, compression
from twistedproxy.config.cpus import usable_cpus
from twistedproxy.config.kinds import Origin
from twistedproxy.config.model import (
    AccessLog,
    Address,
    Admin,
    Cache,
    Eject,
    EventLog,
    HeaderEdits,
    HealthCheck,
    HttpListener,
    Keepalive,
    Logs,
    Mirror,
    Model,
    Pool,
    Queue,
    Respond,
    Retry,
    Rewrite,
    Route,
    RouteCache,
    Server,
    Shedding,
    Side,
    Site,
    Sticky,
    TcpListener,
    Test,
    Timeouts,
    Token,
    Use,
    When,
)
from twistedproxy.config.routing import Edits, uses_of
from twistedproxy.config.routing import Mirror as MirrorDeclared
from twistedproxy.config.routing import When as WhenDeclared


def build(document: schema.File, origin: Origin, config_file: str, state_dir: str) -> Model:
    """`document` has passed all checks; `state_dir` is the one to use when the file names none."""
    state_dir = document.state_dir or state_dir
    timeouts = _timeouts(Timeouts(), document.timeouts)
    http = document.listen.http
    if http is None and document.sites:
        address = values.parse_listen(DEFAULT_HTTP, origin.base_dir, origin.has_ipv6)
        http = (schema.HttpListener.model_validate({"address": address}, context=origin),)
    https = document.listen.https
    if https is None and any(site.tls for site in document.sites.values()):
        address = values.parse_listen(DEFAULT_HTTPS, origin.base_dir, origin.has_ipv6)
        https = (schema.HttpListener.model_validate({"address": address}, context=origin),)
    presets = _presets(document)
    return Model(
        state_dir=state_dir,
        config_file=config_file,
        workers=document.workers.count or usable_cpus(),
        shedding=Shedding(document.workers.shed_lag, document.workers.shed_memory, document.workers.memory),
        admin=_admin(document.admin, state_dir),
        timeouts=timeouts,
        http=(*map(_http_listener, http or ()), *(replace(_http_listener(item), is_tls=True) for item in https or ())),
        tcp=tuple(_tcp_listener(address, listener, timeouts, origin) for address, listener in document.tcp.items()),
        pools={name: _pool(name, pool) for name, pool in document.pools.items()},
        sites={name: _site(name, site, timeouts, presets) for name, site in document.sites.items()},
        logs=_logs(document.logs),
        certificates=tls_values.certificates(document.certificates),
        tests=tuple(map(_test, document.tests)),
        cache=_cache(document.cache, state_dir),
    )


def server(declared: schema.Server) -> Server:
    return Server(Address(declared.address), declared.weight, declared.max_connections, declared.backup)


def _timeouts(base: Timeouts, declared: schema.Timeouts | None) -> Timeouts:
    """`base`, but for what is said here."""
    own = declared.model_fields_set if declared else ()
    return Timeouts(**{f: getattr(declared if f[:-2] in own else base, f[:-2] if f[:-2] in own else f) for f in Timeouts.__slots__})


def _admin(declared: schema.Admin, state_dir: str) -> Admin:
    return Admin(
        listen=Address(declared.listen) if declared.listen else None,
        names=declared.names,
        token_file=declared.token_file or f"{state_dir}/admin.token",
        tokens=tuple(Token(name, token.role, token.sha256) for name, token in declared.tokens.items()),
    )


def _http_listener(declared: schema.HttpListener) -> HttpListener:
    return HttpListener(
        address=Address(declared.address),
        mode=declared.mode,
        accept_proxy=declared.accept_proxy,
        trusted_proxies=declared.trusted_proxies,
        max_connections=declared.max_connections,
        max_head=declared.max_head,
        max_request_line=min(declared.max_request_line, declared.max_head),
        max_field=min(declared.max_field, declared.max_head),
        max_fields=declared.max_fields,
        requests_per_connection=declared.requests_per_connection,
        connection_age_s=declared.connection_age,
        min_body_rate=declared.min_body_rate,
    )


def _tcp_listener(address: str, declared: schema.TcpListener, timeouts: Timeouts, origin: Origin) -> TcpListener:
    return TcpListener(
        address=values.parse_listen(address, origin.base_dir, origin.has_ipv6),
        pool=declared.pool or "",
        mode=declared.mode,
        allow=declared.allow,
        deny=declared.deny,
        accept_proxy=declared.accept_proxy,
        max_connections=declared.max_connections,
        timeouts=_timeouts(timeouts, declared.timeouts),
        tls=tls_values.listener_tls(declared.tls),
        sni=tuple(declared.sni.items()),
        protocol=declared.protocol or "",
    )


def _pool(name: str, declared: schema.Pool) -> Pool:
    eject = declared.eject
    return Pool(
        name=name,
        servers=tuple(map(server, declared.servers)),
        balance=declared.balance,
        health=_health(declared.health) if declared.health else None,
        eject=Eject(eject.errors, eject.ratio, eject.within, eject.for_, eject.max_percent) if eject else None,
        slow_start_s=declared.slow_start,
        retry=_retry(declared.retry),
        queue=Queue(declared.queue.size, declared.queue.timeout),
        keepalive=Keepalive(declared.keepalive.idle, declared.keepalive.size),
        send_proxy=int(declared.send_proxy[1:]) if declared.send_proxy else 0,
        tls=tls_values.server_tls(declared.tls),
        max_connections=declared.max_connections,
        sticky=_sticky(declared.sticky),
    )


def _health(declared: schema.Health) -> HealthCheck:
    return HealthCheck(
        kind=next(kind for kind in ("http", *values.PROBES) if getattr(declared, kind)),
        path=declared.http or "/",
        host=declared.host,
        port=declared.port,
        status=declared.status or HealthCheck("http").status,
        body=declared.body,
        every_s=declared.every,
        timeout_s=declared.timeout,
        fall=declared.fall,
        rise=declared.rise,
    )


def _site(name: str, declared: schema.Site, timeouts: Timeouts, presets: Mapping[str, Use]) -> Site:
    timeouts = _timeouts(timeouts, declared.timeouts)

    def route(path: str, said: schema.Route) -> Route:
        return _route(path, said, declared, timeouts, presets)

    return Site(
        name=name,
        hosts=(values.parse_host(name), *declared.names),
        routes=tuple(route(values.parse_route_path(path), said) for path, said in declared.routes.items()),
        via=declared.via,
        rules=tuple(replace(route(f"rules[{i}]", rule), when=_when(rule.when)) for i, rule in enumerate(declared.rules)),
        tls=tls_values.site_tls(declared.tls),
        redirect_http=bool(declared.tls) if declared.redirect_http is None else declared.redirect_http,
        maintenance=declared.maintenance,
        maintenance_allow=declared.maintenance_allow,
    )


def _route(path: str, declared: schema.Route, site: schema.Site, timeouts: Timeouts, presets: Mapping[str, Use]) -> Route:
    mirror, answer, rewrite = declared.mirror, declared.respond, declared.rewrite
    return Route(
        path=path,
        pool=declared.pool or "",
        strip=declared.strip,
        max_body=declared.max_body or site.max_body,
        timeouts=_timeouts(timeouts, declared.timeouts),
        split=tuple(Side(pool, weight) for pool, weight in declared.split.items()),
        sticky=_sticky(declared.sticky),
        redirect=declared.redirect,
        status=declared.status or 308,
        respond=Respond(answer.status, answer.body, answer.content_type) if answer else None,
        rewrite=Rewrite(rewrite.match, rewrite.to) if rewrite else None,
        host=declared.host,
        request=_edits(declared.headers.request),
        response=_edits(declared.headers.response),
        use=tuple(presets.get(name) or Use(name) for name in uses_of(site, declared)),
        retry=_retry(declared.retry) if declared.retry else None,
        mirror=_mirror(mirror) if mirror else None,
        cache=_route_cache(declared, site),
    )


def _route_cache(declared: schema.Route, site: schema.Site) -> RouteCache | None:
    said = declared.cache if "cache" in declared.model_fields_set else site.cache
    if said is None or not (declared.pool or declared.split):
        return None
    return RouteCache(said.ttl, said.stale_while_revalidate, said.stale_if_error, said.negative, said.heuristics)


def _mirror(declared: MirrorDeclared) -> Mirror:
    headers = tuple(name.lower() for name in declared.headers)
    return Mirror(declared.pool, declared.percent, declared.compare, declared.methods, headers)


def _presets(document: schema.File) -> dict[str, Use]:
    """What `use` names, but for built-ins without keys."""
    found = {
        f"headers.{name}": Use(f"headers.{name}", _edits(said.request), _edits(said.response)) for name, said in document.headers.items()
    }
    uses = {use for site in document.sites.values() for use in (*site.use, *(u for r in _routes(site) for u in r.use or ()))}
    tables = {f"compress.{name}": said for name, said in document.compress.items()} | {"compress": Compress()}
    return found | {name: Use(name, compression=compression(said)) for name, said in tables.items() if name in uses}


def _routes(site: schema.Site) -> Iterator[schema.Route]:
    yield from site.routes.values()
    yield from site.rules


def _edits(declared: Edits) -> HeaderEdits:
    return HeaderEdits(declared.set, declared.add, declared.remove)


def _sticky(declared: schema.Sticky | None) -> Sticky | None:
    if declared is None:
        return None
    return Sticky(declared.cookie, declared.path, declared.secure, declared.same_site, declared.ttl, declared.by or "")


def _retry(declared: schema.Retry) -> Retry:
    return Retry(declared.tries, tuple(dict.fromkeys(declared.on)), declared.budget)


def _when(declared: WhenDeclared) -> When:
    shown = declared.client_cert.parts if declared.client_cert else ()
    return When(declared.path, declared.method, declared.header, declared.cookie, declared.query, declared.client, shown)


def _test(declared: schema.Test) -> Test:
    expect = declared.expect
    shown = declared.client_cert.parts if declared.client_cert else ()
    return Test(
        declared.request, declared.headers, declared.client, shown, expect.pool, expect.split, expect.path, expect.host, expect.redirect,
        expect.status, expect.rule, expect.headers,
    )  # fmt: skip


def _cache(declared: CacheDeclared, state_dir: str) -> Cache:
    return Cache(declared.path or f"{state_dir}/cache", declared.memory, declared.disk, declared.files, declared.max_object)


def _logs(declared: schema.Logs) -> Logs:
    access = declared.access
    return Logs(
        access=AccessLog(access.file, access.format) if access else None, events=EventLog(declared.events.file, declared.events.format)
    )
