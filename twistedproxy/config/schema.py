"""The file, key by key: one declaration gives default, unit, help and what a reload does.

From these come validation, ``revproxy schema`` and ``docs/configuration.md``. Defaults are written as in the file and read like it.
A key's ``reload`` is one of `LIVE`, `NEW` and `RESTART`. `Section.later` are promised keys: refused as "not supported yet".
Sites and routes are declared in ``routing``, what several tables share in ``basics``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, model_validator

from twistedproxy.config import kinds, values
from twistedproxy.config.basics import LIVE, NEW, RESTART, ROUTES, Networks, Retry, Timeouts, text_value
from twistedproxy.config.caching import Cache
from twistedproxy.config.compressing import Compress
from twistedproxy.config.kinds import Json, Section, ShortForm, key
from twistedproxy.config.routing import (
    Headers,
    Respond,
    Route,
    RouteOrPool,
    Rule,
    Site,
    Sticky,
    Test,
    gather_routes,
    sticky_table,
)
from twistedproxy.config.tls import Certificates, ListenerTls, ServerTlsOrFlag

__all__ = [
    "LIVE", "NEW", "RESTART", "ROUTES", "Networks", "Retry", "Timeouts", "text_value",
    "Headers", "Respond", "Route", "RouteOrPool", "Rule", "Site", "Sticky", "Test",
]  # fmt: skip

Connections = Annotated[int, kinds.integer(1, 1_000_000)]


# Listeners


class HttpListener(Section):
    """An address for HTTP. A text stands for a table with this `address`."""

    later: ClassVar[tuple[str, ...]] = ("tls", "http2", "http3")

    address: kinds.Listen = key(..., "Where to listen; port 0 picks a free one.", reload=LIVE)
    mode: kinds.Mode | None = key(None, "File mode of a unix socket.", reload=LIVE)
    accept_proxy: Networks = key(
        (), "Networks that must send a PROXY v1 or v2 header first; it is never read from others.", reload=NEW, max_length=1000
    )
    trusted_proxies: Networks = key(
        (),
        "Networks whose `X-Forwarded-*` and `X-Request-Id` are believed. Nobody by default, loopback included.",
        reload=NEW,
        max_length=1000,
    )
    max_connections: Connections = key(10_000, "Open client connections on the whole machine, divided over the workers.", reload=LIVE)
    max_head: Annotated[int, kinds.size("1KiB", "1MiB")] = key("32KiB", "A whole request head; more is answered 431.", reload=NEW)
    max_request_line: Annotated[int, kinds.size("64B", "1MiB")] = key("8KiB", "The request line; more is answered 414.", reload=NEW)
    max_field: Annotated[int, kinds.size("64B", "1MiB")] = key("16KiB", "One header field; more is answered 431.", reload=NEW)
    max_fields: Annotated[int, kinds.integer(1, 1000)] = key(100, "Header fields of a request; more are answered 431.", reload=NEW)
    requests_per_connection: Annotated[int, kinds.integer(1, 1_000_000)] = key(
        1000, "Requests after which a client connection is closed.", reload=NEW
    )
    connection_age: Annotated[float, kinds.duration("1s")] = key(
        "1h", "Age after which a client connection is closed, between two requests.", reload=NEW
    )
    min_body_rate: Annotated[float, kinds.byte_rate("1B/s", "1GB/s")] = key(
        "500B/s", "Slower request bodies are refused after 10 s.", reload=NEW
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> HttpListener:
        for name in ("max_request_line", "max_field"):
            if name in self.model_fields_set and getattr(self, name) > self.max_head:
                raise ValueError(f"{name} is larger than max_head, of which it is a part; raise max_head or lower {name}")
        if self.mode is not None and not self.address.startswith("unix:"):
            raise ValueError("mode is for unix sockets only; remove it or listen on unix:PATH")
        return self


def _listener_table(value: Any) -> Any:
    return {"address": text_value(value, values.LISTEN_ALLOWED)}


HttpListenerOrText = Annotated[
    HttpListener,
    ShortForm("listen address or table", values.LISTEN_ALLOWED, _listener_table, {"type": "string"}),
]


class Listen(Section):
    """Where HTTP is accepted. TCP listeners have tables of their own, `[tcp."ADDRESS"]`."""

    later: ClassVar[tuple[str, ...]] = ("quic", "http2")

    http: tuple[HttpListenerOrText, ...] | None = key(
        None, 'Addresses for plain HTTP, as texts or tables. Default: `[":80"]` when there are sites.', reload=LIVE, max_length=256
    )
    https: tuple[HttpListenerOrText, ...] | None = key(
        None, 'Addresses for HTTPS, as texts or tables. Default: `[":443"]` when a site has `tls`.', reload=LIVE, max_length=256
    )


# Process


def _is_some_memory(share: float) -> float:
    if share < 0.1:
        raise ValueError(f"is {share:.0%}: a worker needs more than that at rest; say 10% or more")
    return share


class Workers(Section):
    """Processes that carry the traffic."""

    count: Annotated[int, kinds.integer(1, 256)] | None = key(
        None, "How many. Default: the CPUs this process may use (affinity and cgroup quota).", reload=LIVE
    )
    shed_lag: Annotated[float, kinds.duration("10ms", "1m")] = key(
        "500ms", "When requests wait so long before anybody looks at them, a part of them is answered 503 at once.", reload=LIVE
    )
    shed_memory: Annotated[kinds.Percent, AfterValidator(_is_some_memory)] = key(
        "95%",
        "When so much of the memory limit is in use, requests are answered 503 and TCP listeners accept nobody; from 3 % less on,"
        " client connections are not kept.",
        reload=LIVE,
    )
    memory: Annotated[int, kinds.size("32MiB", "100000GiB")] | None = key(
        None, "Memory limit of all workers together. Those of the cgroup hold as well, and alone when this is absent.", reload=LIVE
    )


class Token(Section):
    """One more token for the admin API; the table's name is what the journal says."""

    role: Annotated[str, kinds.choice("view", "operate", "admin")] = key(
        ..., "What its bearer may do; each role includes those before it.", reload=LIVE
    )
    sha256: kinds.Sha256 = key(..., "SHA-256 of the token, in hexadecimal.", reload=LIVE)


class Admin(Section):
    """The admin API and page."""

    listen: kinds.ListenOrOff = key(
        "127.0.0.1:9901", "Where to listen. `false`: only the socket `admin.sock` in the state directory, mode 0600.", reload=RESTART
    )
    names: tuple[kinds.Host, ...] = key(
        (), "Host names accepted besides loopback names and the address itself.", reload=LIVE, max_length=256
    )
    token_file: kinds.FileName | None = key(
        None,
        "Holds the first token, role admin; made with mode 0600 if absent. Default: `admin.token` in the state directory.",
        reload=RESTART,
    )
    tokens: dict[kinds.Name, Token] = key({}, "More tokens, by name.", reload=LIVE, max_length=1000)


# Pools


class Server(Section):
    """One address of a pool. A text `"ADDRESS [weight=N] [max_connections=N] [backup]"` stands for a table."""

    address: kinds.ServerAddress = key(
        ...,
        "`HOST:PORT`, `[IPv6]:PORT` or `unix:PATH`; the server's identity everywhere."
        " A host name is resolved again and again and stays one server.",
        reload=LIVE,
    )
    weight: Annotated[int, kinds.integer(0, 1000)] = key(1, "Share of new work, relative to the others; 0: nothing new.", reload=LIVE)
    max_connections: Connections | None = key(
        None, "Requests and sessions in flight, on the whole machine. Default: the pool's.", reload=LIVE
    )
    backup: kinds.Flag = key(False, "Serves only when no other server can.", reload=LIVE)


ServerOrText = Annotated[Server, ShortForm("server or table", values.SERVER_ALLOWED, values.server_table, {"type": "string"})]

_HTTP_ONLY = ("host", "status", "body")


class Health(Section):
    """Active checks, made by the supervisor. Exactly one of the first six keys says how; a text stands for it."""

    http: kinds.Get | None = key(None, 'Ask for this path: `"GET /path"`.', reload=LIVE)
    tcp: kinds.Flag | None = key(None, "`true`: a connection is enough.", reload=LIVE)
    tls: kinds.Flag | None = key(None, "`true`: a TLS handshake is enough.", reload=LIVE)
    postgres: kinds.Flag | None = key(None, "`true`: PostgreSQL answers a start-up packet.", reload=LIVE)
    mysql: kinds.Flag | None = key(None, "`true`: MySQL or MariaDB greets.", reload=LIVE)
    redis: kinds.Flag | None = key(None, "`true`: Redis answers PING.", reload=LIVE)
    host: kinds.HealthHost | None = key(None, "Host field of an HTTP check. Default: the server's address.", reload=LIVE)
    port: Annotated[int, kinds.integer(1, 65535)] | None = key(None, "Port to ask instead of the server's own.", reload=LIVE)
    status: kinds.Statuses | None = key(
        None, 'Good statuses of an HTTP check, such as `"200-299"` or `"200,204"`. Default: `"200-399"`.', reload=LIVE
    )
    body: kinds.Text | None = key(None, "Text that the first 64 KiB of the body of an HTTP check must contain.", reload=LIVE)
    every: Annotated[float, kinds.duration("100ms", "1d")] = key("2s", "Time between two checks of a server, ± 20 %.", reload=LIVE)
    timeout: Annotated[float, kinds.duration("10ms", "5m")] = key("1s", "A check that takes longer has failed.", reload=LIVE)
    fall: Annotated[int, kinds.integer(1, 100)] = key(3, "Failures in a row that take a server down.", reload=LIVE)
    rise: Annotated[int, kinds.integer(1, 100)] = key(2, "Successes in a row that bring it back up.", reload=LIVE)

    @model_validator(mode="after")
    def _is_one_check(self) -> Health:
        asked = [name for name in ("http", *values.PROBES) if getattr(self, name)]
        if len(asked) != 1:
            found = f"this says {' and '.join(asked)}" if asked else "this says none of them"
            raise ValueError(f"needs exactly one of http, {', '.join(values.PROBES)}; {found}")
        extra = [name for name in _HTTP_ONLY if name in self.model_fields_set]
        if extra and asked != ["http"]:
            raise ValueError(f"{' and '.join(extra)} can be used with http only, not with {asked[0]}")
        return self


class Eject(Section):
    """Passive checks: a server that fails under real traffic is left out for a while. `false`: off."""

    errors: Annotated[int, kinds.integer(1, 1_000_000)] = key(
        5, "Failures (connect, TLS, protocol, reset, time-out, 5xx) within `within` that eject a server …", reload=LIVE
    )
    ratio: Annotated[float, kinds.fraction(0, 1)] = key(0.5, "… when they are also this share of its requests then.", reload=LIVE)
    within: Annotated[float, kinds.duration("1s", "1h")] = key("10s", "The window that is looked at.", reload=LIVE)
    for_: Annotated[float, kinds.duration("1s", "1d")] = key("30s", "How long the server is left out.", reload=LIVE, alias="for")
    max_percent: Annotated[int, kinds.integer(0, 100)] = key(
        50, "At most this share of the pool is ejected at once, rounded down: an only server stays.", reload=LIVE
    )


class Queue(Section):
    """Requests that wait while all servers are at `max_connections`."""

    size: Annotated[int, kinds.integer(0, 100_000)] = key(
        128, "How many may wait, on the whole machine; 0: none, 503 at once.", reload=LIVE
    )
    timeout: Annotated[float, kinds.duration("1ms", "1h")] = key("2s", "How long one may wait; then 503.", reload=LIVE)


class Keepalive(Section):
    """Idle HTTP connections to the servers, kept for the next request."""

    idle: Annotated[float, kinds.duration("1ms", "1h")] = key(
        "4s", "How long one is kept; stay below the server's own time-out.", reload=LIVE
    )
    size: Annotated[int, kinds.integer(0, 10_000)] = key(64, "How many are kept per server and worker; 0: none.", reload=LIVE)


def _eject_table(value: Any) -> Any:
    if kinds.read_flag(value):
        return {}
    return None


_HEALTH_JSON: Json = {"type": "string", "pattern": f"^({'|'.join(values.PROBES)}|GET /.*|.*\\$\\{{.*)$"}


class Pool(Section):
    """A named set of servers, used by HTTP and TCP alike."""

    later: ClassVar[tuple[str, ...]] = ("discover", "http2")

    servers: tuple[ServerOrText, ...] = key((), "The servers, as texts or tables; at least one.", reload=LIVE, max_length=4096)
    balance: kinds.Balance = key(
        "round_robin",
        "Who is next: `round_robin` (smooth, weighted), `least_conn`, `p2c` (the less busy of two at random), `random`, `least_time`"
        " (peak EWMA), `source_ip`, or a consistent hash with bounded load: `hash:path`, `hash:header.NAME`, `hash:cookie.NAME`,"
        " `hash:query.NAME` (these four for HTTP only).",
        reload=LIVE,
    )
    health: Annotated[
        Health | None, ShortForm("health check or table", "a health check such as 'tcp' or 'GET /path'", values.health_table, _HEALTH_JSON)
    ] = key(
        None,
        'Active checks: `"tcp"`, `"tls"`, `"postgres"`, `"mysql"`, `"redis"`, `"GET /path"` or a table.'
        " Absent: none, and servers count as up.",
        reload=LIVE,
    )
    eject: Annotated[Eject | None, ShortForm("table or false", "false or a table", _eject_table, {"type": "boolean"})] = key(
        {}, "Passive checks; `false`: off.", reload=LIVE
    )
    slow_start: Annotated[float, kinds.duration("0s", "1d")] = key(
        "0s", "Time over which a server that came back grows to its full weight.", reload=LIVE
    )
    retry: Retry = key({}, "Further attempts.", reload=LIVE)
    queue: Queue = key({}, "Waiting for a free server.", reload=LIVE)
    keepalive: Keepalive = key({}, "Idle connections to the servers.", reload=LIVE)
    tls: ServerTlsOrFlag = key(None, "TLS to the servers: `true`, or a table. Their certificates are verified.", reload=NEW)
    send_proxy: Annotated[str, kinds.choice("v1", "v2")] | None = key(
        None, "Send a PROXY header of this version before the first byte to each server.", reload=NEW
    )
    sticky: Annotated[Sticky | None, ShortForm("cookie or table", 'a cookie such as "cookie:srv"', sticky_table, {"type": "string"})] = key(
        None, 'Bring a client back to its server: `"cookie:NAME"` or a table. For HTTP only.', reload=LIVE
    )
    max_connections: Connections = key(
        256, "Default per server: requests and sessions in flight on the whole machine; idle connections do not count.", reload=LIVE
    )


class TcpListener(Section):
    """An address for TCP, passed on byte for byte."""

    later: ClassVar[tuple[str, ...]] = ("limits", "sticky")

    pool: kinds.Name | None = key(None, "The pool that serves it.", reload=LIVE)
    tls: ListenerTls | None = key(
        None, "TLS ends here, plain TCP goes on to the pool. Absent: bytes are passed on as they come.", reload=LIVE
    )
    sni: dict[kinds.Host, kinds.Name] = key(
        {},
        "In place of `pool`: the name in the client's TLS greeting picks the pool, TLS itself is passed on untouched. Hosts as those of"
        " sites: exact, `*.suffix`, `*`.",
        reload=LIVE,
        max_length=10_000,
    )
    protocol: Annotated[str, kinds.choice("mysql")] | None = key(
        None,
        "MySQL and MariaDB agree on TLS inside their own protocol, in which the server speaks first: say so when TLS ends or"
        " begins here (`starttls` of the pool). Others need no such key: PostgreSQL's request for TLS is recognised.",
        reload=LIVE,
    )
    mode: kinds.Mode | None = key(None, "File mode of a unix socket.", reload=LIVE)
    allow: Networks = key((), "Networks that may connect; everybody when there are none.", reload=NEW, max_length=10_000)
    deny: Networks = key((), "Networks that may not; wins over `allow`.", reload=NEW, max_length=10_000)
    accept_proxy: Networks = key(
        (), "Networks that must send a PROXY v1 or v2 header first; it is never read from others.", reload=NEW, max_length=1000
    )
    max_connections: Connections = key(10_000, "Open client connections on the whole machine, divided over the workers.", reload=LIVE)
    timeouts: Timeouts | None = key(None, "Differing from `[timeouts]`.", reload=NEW)


# Logs


class AccessLog(Section):
    """One line for each request and TCP session."""

    file: kinds.LogFile = key(..., 'File to append to; `"-"` is standard output.', reload=LIVE)
    format: Annotated[str, kinds.choice("combined", "json")] = key("combined", "Form of the lines.", reload=LIVE)


class EventLog(Section):
    """What happens to the proxy itself."""

    file: kinds.LogFile = key("-", 'File to append to; `"-"` is twistd\'s own log.', reload=RESTART)
    format: Annotated[str, kinds.choice("text", "json")] = key("text", "Form of the lines.", reload=RESTART)


class Logs(Section):
    """Where things are written down."""

    access: AccessLog | None = key(None, "The access log; absent: off.", reload=LIVE)
    events: EventLog = key({}, "The event log.", reload=RESTART)


# The file


def _is_version_1(version: int) -> int:
    if version != 1:
        raise ValueError(f"is {version}; this program knows version 1")
    return version


class File(Section):
    """The whole file."""

    later: ClassVar[tuple[str, ...]] = (
        "udp", "limits", "auth", "security_headers", "middleware", "tls", "geo",
    )  # fmt: skip

    version: Annotated[int, kinds.integer(0, 1_000_000), AfterValidator(_is_version_1)] = key(
        1, "Version of this file's form.", reload=LIVE
    )
    state_dir: kinds.FileName | None = key(
        None, 'Where the journal, tokens and sockets are. Default: `$STATE_DIRECTORY`, else `".revproxy"` beside the file.', reload=RESTART
    )
    listen: Listen = key({}, "HTTP listeners.", reload=LIVE)
    workers: Workers = key({}, "Worker processes.", reload=LIVE)
    admin: Admin = key({}, "Admin API.", reload=LIVE)
    timeouts: Timeouts = key({}, "Time-outs.", reload=NEW)
    pools: dict[kinds.Name, Pool] = key({}, "Pools, by name.", reload=LIVE, max_length=10_000)
    sites: dict[str, Annotated[Site, BeforeValidator(gather_routes)]] = key({}, "Sites, by host.", reload=LIVE, max_length=10_000)
    tcp: dict[str, TcpListener] = key({}, "TCP listeners, by address.", reload=LIVE, max_length=1000)
    logs: Logs = key({}, "Logs.", reload=LIVE)
    certificates: Certificates = key({}, "Where certificates come from.", reload=LIVE)
    cache: Cache = key({}, "Where answers are kept, for routes with `cache`.", reload=LIVE)
    compress: dict[kinds.Name, Compress] = key({}, 'Ways to compress, named in `use` as `"compress.NAME"`.', reload=LIVE, max_length=1000)
    headers: dict[kinds.Name, Headers] = key(
        {}, 'Presets of header edits, named in `use` as `"headers.NAME"`.', reload=LIVE, max_length=1000
    )
    tests: tuple[Test, ...] = key(
        (), "What must be decided how: run by `check`, at start, at a reload and before live changes.", reload=LIVE, max_length=1000
    )


def schema_json() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file."""
    json = File.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **json, "title": "revproxy.toml"}
