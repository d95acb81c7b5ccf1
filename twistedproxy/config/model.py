"""The configuration as running code knows it: frozen values, canonical addresses, every default filled in.

A `Model` is what file and live changes together mean right now. Names of fields follow the keys of the file; units are in the names.
Values are read in constructors (of pools, listeners, routes) and die there: nothing on the hot path looks into a model.
It has over 500 lines: every value a configuration can have is here, each with hardly any behaviour, so that one file answers what there is.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NewType

Address = NewType("Address", str)
"""Canonical text of an address: ``10.0.0.1:80``, ``[::1]:80``, ``name.example:80`` (lower case), ``unix:/absolute/path``."""


class AdminState(enum.Enum):
    """What the operator wants of a server; never mixed with its health."""

    READY = "ready"
    DRAIN = "drain"
    """Nothing new but what is sticky; open sessions go on."""
    MAINT = "maint"
    """Nothing new; sessions are cut at ``drain_tcp``."""


class Health(enum.Enum):
    """The verdict of the probes; unknown counts as up."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class Source(enum.Enum):
    """Who put a server into its pool."""

    FILE = "file"
    ADMIN = "admin"
    DISCOVERY = "discovery"


@dataclass(frozen=True, slots=True)
class Server:
    """One address in a pool, with what the file says and what an operator set over it."""

    address: Address
    weight: int = 1
    max_connections: int | None = None
    """None: the pool's default."""
    backup: bool = False
    source: Source = Source.FILE
    weight_set: int | None = None
    state_set: AdminState | None = None
    max_connections_set: int | None = None

    @property
    def weight_now(self) -> int:
        return self.weight if self.weight_set is None else self.weight_set

    @property
    def state(self) -> AdminState:
        return self.state_set or AdminState.READY


@dataclass(frozen=True, slots=True)
class HealthCheck:
    kind: str
    """``tcp``, ``tls``, ``http``, ``postgres``, ``mysql`` or ``redis``."""
    path: str = "/"
    host: str | None = None
    """Host field of an HTTP check; None: the server's address."""
    port: int | None = None
    """Port to ask instead of the server's own."""
    status: tuple[tuple[int, int], ...] = ((200, 399),)
    """Inclusive ranges of good HTTP statuses."""
    body: str | None = None
    """Text that the first 64 KiB of an HTTP body must contain."""
    every_s: float = 2.0
    timeout_s: float = 1.0
    fall: int = 3
    rise: int = 2


@dataclass(frozen=True, slots=True)
class Eject:
    """Passive ejection: `errors` failures within `within_s` that are also `ratio` of the server's requests then."""

    errors: int = 5
    ratio: float = 0.5
    within_s: float = 10.0
    for_s: float = 30.0
    max_percent: int = 50


@dataclass(frozen=True, slots=True)
class Retry:
    tries: int = 2
    on: tuple[str, ...] = ("connect", "reused")
    budget: float = 0.2
    """Share of the pool's active requests that may be retries of what servers worked for (never less than 3)."""


@dataclass(frozen=True, slots=True)
class Queue:
    size: int = 128
    timeout_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Idle connections to one server, per worker."""

    idle_s: float = 4.0
    size: int = 64


@dataclass(frozen=True, slots=True)
class Sticky:
    """How a client is known again: by a cookie, or by a hash of something it always sends (splits only)."""

    cookie: str | None = None
    path: str = "/"
    secure: bool | None = None
    """None: when the request came by TLS."""
    same_site: str = "lax"
    ttl_s: float = 0.0
    """0: until the browser closes."""
    key: str = ""
    """``source_ip``, ``hash:header.NAME``, ``hash:cookie.NAME``, ``hash:query.NAME``; without a cookie only."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate (its chain behind it) and its private key, by their files. What is in the files is never part of a model."""

    cert: str
    key: str

    @property
    def key_names(self) -> tuple[str, str]:
        return self.cert, self.key


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS with the servers of a pool."""

    verify: bool = True
    ca: str = ""
    """File of the authorities that are trusted; "": the system's."""
    name: str = ""
    """Asked for in SNI and looked for in the certificate; "": the server's own host or IP address."""
    pair: KeyPair | None = None
    """Our certificate, for servers that ask for one."""
    starttls: str = ""
    """``postgres`` or ``mysql``: asked for in that protocol's own way; "": TLS from the first byte."""


@dataclass(frozen=True, slots=True)
class Pool:
    name: str
    servers: tuple[Server, ...] = ()
    balance: str = "round_robin"
    """``round_robin``, ``least_conn``, ``p2c``, ``random``, ``least_time``, ``source_ip``, ``hash:path``, ``hash:header.NAME`` …"""
    health: HealthCheck | None = None
    eject: Eject | None = field(default_factory=Eject)
    slow_start_s: float = 0.0
    retry: Retry = field(default_factory=Retry)
    queue: Queue = field(default_factory=Queue)
    keepalive: Keepalive = field(default_factory=Keepalive)
    send_proxy: int = 0
    """PROXY protocol version sent to servers; 0: none."""
    max_connections: int = 256
    """Default per server and machine, leases in flight."""
    tls: ServerTls | None = None
    sticky: Sticky | None = None
    """Brings a client back to the server it was on before."""

    def server(self, address: str) -> Server | None:
        for server in self.servers:
            if server.address == address:
                return server
        return None

    def limit_of(self, server: Server) -> int:
        """Leases this server may have in flight, on the whole machine."""
        for limit in (server.max_connections_set, server.max_connections):
            if limit is not None:
                return limit
        return self.max_connections


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; what each one covers is said in the schema."""

    connect_s: float = 3.0
    tls_handshake_s: float = 10.0
    request_head_s: float = 10.0
    body_idle_s: float = 30.0
    request_s: float = 90.0
    response_head_s: float = 60.0
    response_idle_s: float = 60.0
    write_stall_s: float = 30.0
    keepalive_s: float = 60.0
    tcp_idle_s: float = 3600.0
    websocket_idle_s: float = 600.0
    half_closed_s: float = 60.0
    preread_s: float = 3.0
    drain_http_s: float = 30.0
    drain_tcp_s: float = 300.0


@dataclass(frozen=True, slots=True)
class HttpListener:
    address: Address
    mode: int | None = None
    """File mode of a unix socket."""
    accept_proxy: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    max_connections: int = 10_000
    """Per machine; divided over the workers."""
    max_head: int = 32 * 1024
    max_request_line: int = 8 * 1024
    max_field: int = 16 * 1024
    max_fields: int = 100
    requests_per_connection: int = 1000
    connection_age_s: float = 3600.0
    min_body_rate: float = 500.0
    """Bytes per second after 10 s; 0 is refused by the schema."""
    is_tls: bool = False
    """HTTPS: the certificates are those of the sites."""


@dataclass(frozen=True, slots=True)
class SiteTls:
    """Where a certificate comes from, and what its handshakes ask for."""

    source: str
    """``pair``, ``files`` or ``auto``."""
    pair: KeyPair | None = None
    client_ca: str = ""
    """File of the authorities whose certificates clients must show; "": none is asked for."""
    min_version: str = "1.2"
    directory: str = ""
    """With ``auto``: which of the directories makes it; "": that of `certificates.acme`."""

    def key_names(self, site: str) -> tuple[str, str]:
        """Under which names the workers keep its certificate; meaningless for ``files``."""
        return self.pair.key_names if self.pair is not None else (self.source, site)

    @property
    def demands(self) -> tuple[str, str]:
        return self.client_ca, self.min_version


@dataclass(frozen=True, slots=True)
class TcpListener:
    address: Address
    pool: str
    mode: int | None = None
    allow: tuple[str, ...] = ()
    """Networks; empty: everybody. `deny` wins."""
    deny: tuple[str, ...] = ()
    accept_proxy: tuple[str, ...] = ()
    max_connections: int = 10_000
    timeouts: Timeouts = field(default_factory=Timeouts)
    tls: SiteTls | None = None
    """TLS ends here, plain TCP goes on."""
    sni: tuple[tuple[str, str], ...] = ()
    """(host, pool): TLS is passed through, and the name in the ClientHello picks the pool; `pool` is "" then."""
    protocol: str = ""
    """``mysql``: TLS begins in the middle of a protocol in which the server speaks first."""

    @property
    def pools(self) -> tuple[str, ...]:
        """Where its connections may go."""
        return tuple(dict.fromkeys(pool for _, pool in self.sni)) if self.sni else (self.pool,)


@dataclass(frozen=True, slots=True)
class When:
    """What a rule asks of a request: all of it must hold. Values may have ``*`` in them, which stands for anything, ``/`` included."""

    path: str | None = None
    method: tuple[str, ...] = ()
    header: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(name, values of which any may match); the same for cookies and query parameters."""
    cookie: tuple[tuple[str, tuple[str, ...]], ...] = ()
    query: tuple[tuple[str, tuple[str, ...]], ...] = ()
    client: tuple[str, ...] = ()
    """Networks."""
    client_cert: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(``subject``, ``san`` or ``sha256``, values of which any may match)."""


@dataclass(frozen=True, slots=True)
class Side:
    """One pool of a split, with its part relative to the others."""

    pool: str
    weight: int
    weight_set: int | None = None

    @property
    def weight_now(self) -> int:
        return self.weight if self.weight_set is None else self.weight_set


@dataclass(frozen=True, slots=True)
class Mirror:
    pool: str
    percent: float = 100.0
    compare: bool = False
    methods: tuple[str, ...] = ()
    """Empty: all."""
    headers: tuple[str, ...] = ("content-type",)
    """Response fields that are compared, lower case."""


@dataclass(frozen=True, slots=True)
class Respond:
    """An answer made by the proxy itself."""

    status: int = 200
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Rewrite:
    match: str
    to: str


@dataclass(frozen=True, slots=True)
class HeaderEdits:
    """Changes to the fields of one message; values may have ``${variables}``."""

    set: tuple[tuple[str, str], ...] = ()
    """In place of whatever is there."""
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    default: tuple[tuple[str, str], ...] = ()
    """Only where the server says nothing."""


@dataclass(frozen=True, slots=True)
class Compression:
    codings: tuple[str, ...]
    """In order of preference."""
    types: tuple[str, ...]
    """Media types, lower case: ``text/html``, ``text/*``, or an end such as ``+json``."""
    min_size: int
    levels: tuple[tuple[str, int], ...]
    """By coding."""
    decompress: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """One entry of `use`: a built-in by its bare name, or a table of the file by ``kind.name``, with what that table says."""

    name: str
    request: HeaderEdits = HeaderEdits()
    response: HeaderEdits = HeaderEdits()
    compression: Compression | None = None


@dataclass(frozen=True, slots=True)
class RouteCache:
    """Answers of a route are kept and given again. None: as the server says."""

    ttl_s: float | None = None
    stale_while_revalidate_s: float | None = None
    stale_if_error_s: float | None = None
    negative: tuple[tuple[int, float], ...] = ()
    """(status, seconds) of errors that are kept."""
    heuristics: bool = False
    """Freshness is guessed from Last-Modified where nobody says it."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Where answers are kept; sizes in bytes, per machine."""

    directory: str = ""
    memory: int = 64 * 1024 * 1024
    disk: int = 1024 * 1024 * 1024
    """0: nothing but the memory."""
    files: int = 100_000
    max_object: int = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    path: str
    """``/x/`` below, ``/x`` itself and below, ``=/x`` exactly; of a rule its name, ``rules[0]``."""
    pool: str = ""
    """Empty: the route splits, redirects or answers itself."""
    strip: bool = False
    max_body: int = 100 * 1024 * 1024
    timeouts: Timeouts = field(default_factory=Timeouts)
    when: When | None = None
    """Of a rule: it is asked before all paths."""
    split: tuple[Side, ...] = ()
    sticky: Sticky | None = None
    """Keeps a client on its side of the split."""
    redirect: str | None = None
    status: int = 308
    """Of the redirect."""
    respond: Respond | None = None
    rewrite: Rewrite | None = None
    host: str | None = None
    """Sent to the server as Host in place of the client's."""
    request: HeaderEdits = HeaderEdits()
    response: HeaderEdits = HeaderEdits()
    use: tuple[Use, ...] = ()
    """Outermost first."""
    retry: Retry | None = None
    """None: the pool's."""
    mirror: Mirror | None = None
    cache: RouteCache | None = None

    @property
    def pools(self) -> tuple[str, ...]:
        """Where its requests may go."""
        return (self.pool,) if self.pool else tuple(side.pool for side in self.split)


@dataclass(frozen=True, slots=True)
class Site:
    name: str
    """The key of the table; also its first host."""
    hosts: tuple[str, ...] = ()
    """Lower case: exact names, ``*.suffix``, ``*``."""
    routes: tuple[Route, ...] = ()
    via: str | None = None
    tls: SiteTls | None = None
    redirect_http: bool = False
    """Plain HTTP is sent on to HTTPS."""
    rules: tuple[Route, ...] = ()
    """Asked in this order, before the routes."""
    maintenance: bool = False
    maintenance_set: bool | None = None
    maintenance_allow: tuple[str, ...] = ()
    """Networks that are served all the same."""

    @property
    def is_in_maintenance(self) -> bool:
        return self.maintenance if self.maintenance_set is None else self.maintenance_set

    @property
    def all_routes(self) -> tuple[Route, ...]:
        return (*self.rules, *self.routes)


@dataclass(frozen=True, slots=True)
class Test:
    """One of the file's own tests: this request must be decided like that. None: not asked."""

    __test__: ClassVar[bool] = False
    request: str
    """``METHOD URL``."""
    headers: tuple[tuple[str, str], ...] = ()
    client: str = "127.0.0.1"
    client_cert: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(``subject``, ``san`` or ``sha256``, what the client shows there)."""
    pool: str | None = None
    split: tuple[tuple[str, int | None], ...] | None = None
    """Sides, with their weights where the test names them."""
    path: str | None = None
    host: str | None = None
    redirect: str | None = None
    status: int | None = None
    rule: str | None = None
    """``rules[0]``; "" for none."""
    expect_headers: tuple[tuple[str, str], ...] | None = None
    """Fields of the request as the server gets it."""


@dataclass(frozen=True, slots=True)
class AccessLog:
    file: str
    """Absolute path, or ``-``."""
    format: str = "combined"


@dataclass(frozen=True, slots=True)
class EventLog:
    file: str = "-"
    format: str = "text"


@dataclass(frozen=True, slots=True)
class Logs:
    access: AccessLog | None = None
    events: EventLog = field(default_factory=EventLog)


@dataclass(frozen=True, slots=True)
class Token:
    name: str
    role: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Admin:
    listen: Address | None = Address("127.0.0.1:9901")
    """None: only the socket in the state directory."""
    names: tuple[str, ...] = ()
    token_file: str = ""
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Acme:
    """Certificates made by an authority on demand (RFC 8555)."""

    directory: str = "https://acme-v02.api.letsencrypt.org/directory"
    email: str = ""
    ca: str = ""
    """File of the authorities that vouch for the directory itself; "": the system's."""
    challenge: str = "http-01"
    """``http-01`` or ``tls-alpn-01``: how it checks that a host leads here."""


@dataclass(frozen=True, slots=True)
class Certificates:
    files: tuple[KeyPair, ...] = ()
    acme: Acme = field(default_factory=Acme)
    directories: Mapping[str, Acme] = field(default_factory=dict)
    """More of them, by name."""

    def authority(self, name: str) -> Acme:
        """The one with this name; "": the default."""
        return self.directories[name] if name else self.acme


@dataclass(frozen=True, slots=True)
class Shedding:
    """From when on a worker refuses requests to stay alive."""

    lag_s: float = 0.5
    """Requests wait so long before anybody looks at them."""
    memory: float = 0.95
    """This share of the memory limit is in use."""
    memory_bytes: int | None = None
    """The limit, for all workers together, besides those of the cgroup."""


@dataclass(frozen=True, slots=True)
class Model:
    """The whole configuration, live changes included."""

    state_dir: str = ""
    config_file: str = ""
    workers: int = 1
    shedding: Shedding = field(default_factory=Shedding)
    admin: Admin = field(default_factory=Admin)
    timeouts: Timeouts = field(default_factory=Timeouts)
    http: tuple[HttpListener, ...] = ()
    tcp: tuple[TcpListener, ...] = ()
    pools: Mapping[str, Pool] = field(default_factory=dict)
    sites: Mapping[str, Site] = field(default_factory=dict)
    logs: Logs = field(default_factory=Logs)
    tests: tuple[Test, ...] = ()
    cache: Cache = field(default_factory=Cache)

    @property
    def has_cache(self) -> bool:
        """Is any route's answer kept? Without, no store is made."""
        return any(route.cache for site in self.sites.values() for route in site.all_routes)

    @property
    def sticky_pools(self) -> frozenset[str]:
        """Those that bring clients back to their server."""
        return frozenset(name for name, pool in self.pools.items() if pool.sticky is not None)

    def via_of(self, site: str) -> str | None:
        """What a site sends in Via."""
        return self.sites[site].via if site in self.sites else None

    certificates: Certificates = field(default_factory=Certificates)

    @property
    def has_tls(self) -> bool:
        """Is TLS spoken anywhere, with clients or servers? Without, a worker does not load OpenSSL."""
        listeners = any(listener.is_tls for listener in self.http) or any(listener.tls for listener in self.tcp)
        return listeners or any(pool.tls for pool in self.pools.values())


# Addresses


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address taken apart for the socket calls."""

    family: socket.AddressFamily
    """AF_INET, AF_INET6 or AF_UNIX; AF_UNSPEC for a host name that must be resolved first."""
    host: str
    """IP, host name, or the path of a unix socket."""
    port: int = 0

    @property
    def sockaddr(self) -> tuple[str, int] | str:
        return self.host if self.family == socket.AF_UNIX else (self.host, self.port)

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if self.family == socket.AF_INET6 else f"{self.host}:{self.port}"


def endpoint(address: str) -> Endpoint:
    """Take a canonical address apart; `ValueError` says what is wrong with one that is not."""
    if address.startswith("unix:"):
        path = address[5:]
        if not path or "\0" in path:
            raise ValueError(f"{address!r} has no path after 'unix:'")
        if len(path.encode()) > 107:
            raise ValueError(f"{address!r}: the path of a unix socket has at most 107 bytes")
        return Endpoint(socket.AF_UNIX, path)
    host, colon, digits = address.rpartition(":")
    if not colon or not (digits.isascii() and digits.isdigit()) or int(digits) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, [IPv6]:PORT or unix:PATH with a port up to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            return Endpoint(socket.AF_INET6, str(ipaddress.IPv6Address(host[1:-1])), int(digits))
        except ValueError:
            raise ValueError(f"{address!r}: {host} is not an IPv6 address in brackets") from None
    try:
        return Endpoint(socket.AF_INET, str(ipaddress.IPv4Address(host)), int(digits))
    except ValueError:
        pass
    if not is_host_name(host):
        raise ValueError(f"{address!r}: {host!r} is not an IP address or a host name (an IPv6 address needs brackets)")
    return Endpoint(socket.AF_UNSPEC, host.lower().rstrip("."), int(digits))


def is_host_name(host: str) -> bool:
    """Letters, digits, hyphens and underscores in labels of at most 63; not all digits and dots (that is a broken IPv4)."""
    name = host[:-1] if host.endswith(".") else host
    if not name or len(name) > 253 or name.replace(".", "").isdigit():
        return False
    return all(
        0 < len(label) < 64 and label.isascii() and label.replace("-", "").replace("_", "").isalnum() and label[0] != "-" != label[-1]
        for label in name.split(".")
    )
