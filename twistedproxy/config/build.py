"""From the checked document to the frozen model: inheritance, canonical names, defaults that depend on the machine."""

from __future__ import annotations

from twistedproxy.config import schema, values
from twistedproxy.config.checks import DEFAULT_HTTP
from twistedproxy.config.cpus import usable_cpus
from twistedproxy.config.kinds import Origin
from twistedproxy.config.model import (
    AccessLog,
    Address,
    Admin,
    Eject,
    EventLog,
    HealthCheck,
    HttpListener,
    Keepalive,
    Logs,
    Model,
    Pool,
    Queue,
    Retry,
    Route,
    Server,
    Site,
    TcpListener,
    Timeouts,
    Token,
)


def build(document: schema.File, origin: Origin, config_file: str, state_dir: str) -> Model:
    """`document` has passed all checks; `state_dir` is the one to use when the file names none."""
    state_dir = document.state_dir or state_dir
    timeouts = _timeouts(Timeouts(), document.timeouts)
    http = document.listen.http
    if http is None and document.sites:
        address = values.parse_listen(DEFAULT_HTTP, origin.base_dir, origin.has_ipv6)
        http = (schema.HttpListener.model_validate({"address": address}, context=origin),)
    return Model(
        state_dir=state_dir,
        config_file=config_file,
        workers=document.workers.count or usable_cpus(),
        admin=_admin(document.admin, state_dir),
        timeouts=timeouts,
        http=tuple(map(_http_listener, http or ())),
        tcp=tuple(_tcp_listener(address, listener, timeouts, origin) for address, listener in document.tcp.items()),
        pools={name: _pool(name, pool) for name, pool in document.pools.items()},
        sites={name: _site(name, site, timeouts) for name, site in document.sites.items()},
        logs=_logs(document.logs),
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
        pool=declared.pool,
        mode=declared.mode,
        allow=declared.allow,
        deny=declared.deny,
        accept_proxy=declared.accept_proxy,
        max_connections=declared.max_connections,
        timeouts=_timeouts(timeouts, declared.timeouts),
    )


def _pool(name: str, declared: schema.Pool) -> Pool:
    eject, retry = declared.eject, declared.retry
    return Pool(
        name=name,
        servers=tuple(map(server, declared.servers)),
        balance=declared.balance,
        health=_health(declared.health) if declared.health else None,
        eject=Eject(eject.errors, eject.ratio, eject.within, eject.for_, eject.max_percent) if eject else None,
        slow_start_s=declared.slow_start,
        retry=Retry(retry.tries, tuple(dict.fromkeys(retry.on)), retry.budget),
        queue=Queue(declared.queue.size, declared.queue.timeout),
        keepalive=Keepalive(declared.keepalive.idle, declared.keepalive.size),
        send_proxy=int(declared.send_proxy[1:]) if declared.send_proxy else 0,
        max_connections=declared.max_connections,
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


def _site(name: str, declared: schema.Site, timeouts: Timeouts) -> Site:
    timeouts = _timeouts(timeouts, declared.timeouts)
    routes = tuple(
        Route(
            path=values.parse_route_path(path),
            pool=route.pool,
            strip=route.strip,
            max_body=route.max_body or declared.max_body,
            timeouts=_timeouts(timeouts, route.timeouts),
        )
        for path, route in declared.routes.items()
    )
    return Site(name=name, hosts=(values.parse_host(name), *declared.names), routes=routes, via=declared.via)


def _logs(declared: schema.Logs) -> Logs:
    access = declared.access
    return Logs(
        access=AccessLog(access.file, access.format) if access else None, events=EventLog(declared.events.file, declared.events.format)
    )
