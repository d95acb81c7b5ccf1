"""What the tests of the admin side share: a supervisor that really applies changes, and a client without sockets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from http.client import HTTPResponse
from io import BytesIO
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from twistedproxy.admin.api import Api, make_app
from twistedproxy.admin.auth import GuessBrake, Tokens
from twistedproxy.admin.events import EventStreams
from twistedproxy.admin.gate import Router, TcpGate
from twistedproxy.admin.site import AdminSite
from twistedproxy.config import changes
from twistedproxy.config.changes import Change, Ejected, HealthSeen
from twistedproxy.config.control import Applied, Entry, Event, Snapshot, Terms, WorkerView
from twistedproxy.config.model import (
    Address,
    Admin,
    Health,
    HealthCheck,
    HttpListener,
    Model,
    Pool,
    Server,
    TcpListener,
    Token,
)
from twistedproxy.errors import ChangeRefused, ConfigurationError, Problem
from twistedproxy.observability.metrics import Metrics

TOKENS = {"view": "token-of-the-viewer", "operate": "token-of-the-operator", "admin": "token-of-the-file"}
SOCKET_SERVER = "unix:/run/app.sock"

__all__ = ["Ejected", "FakeControl", "InMemory", "TOKENS", "sample_model", "sample_statistics"]


def sample_model(state_dir: str = "/nowhere") -> Model:
    web = Pool(
        "web",
        (
            Server(Address("127.0.0.1:9001"), weight=3),
            Server(Address("127.0.0.1:9002")),
            Server(Address("127.0.0.1:9009"), backup=True),
        ),
        health=HealthCheck("http"),
    )
    odd = Pool("odd", (Server(Address(SOCKET_SERVER)), Server(Address("[::1]:80"))))
    tokens = tuple(Token(f"the-{role}", role, hashlib.sha256(TOKENS[role].encode()).hexdigest()) for role in ("view", "operate"))
    return Model(
        state_dir=state_dir,
        config_file="revproxy.toml",
        admin=Admin(names=("proxy-admin.internal",), tokens=tokens),
        http=(HttpListener(Address("127.0.0.1:0")),),
        tcp=(TcpListener(Address("127.0.0.1:6432"), "odd"),),
        pools={"web": web, "odd": odd},
    )


def sample_statistics() -> dict[str, Any]:
    metrics = Metrics()
    metrics.http("www", "web").record("127.0.0.1:9001", 200, 0.002)
    metrics.http("www", "web").record("127.0.0.1:9001", 200, 0.2)
    listener = metrics.listener("127.0.0.1:0")
    listener.open, listener.total, listener.bytes_in, listener.bytes_out = 17, 40, 1000, 2000
    metrics.tcp_sessions["127.0.0.1:6432", "odd", "[::1]:80"] = 4
    metrics.retries["web", "connect"] = 2
    metrics.rejected["no_server"] = 1
    return metrics.to_plain([("web", "127.0.0.1:9001", 2, 1042, 3)], {"web": 5})


class FakeControl:
    """A supervisor of two workers that acknowledge at once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.revision = 1
        self.entries: list[Entry] = []
        self.observers: list[Callable[[Event], None]] = []
        self.health: dict[tuple[str, str], HealthSeen] = {}
        self.ejected: frozenset[tuple[str, str]] = frozenset()
        self.unresolved: frozenset[tuple[str, str]] = frozenset()
        self.is_ready = True
        self.raises: Exception | None = None
        self.lagging: tuple[int, ...] = ()
        self.terms: Terms | None = None
        self.effective: dict[str, Any] = {
            "admin": {"tokens": {"grafana": {"role": "view", "sha256": "a" * 64}}},
            "pools": {"web": {"servers": ["127.0.0.1:9001 weight=3"], "health": "GET ${env:SECRET_PATH}"}},
        }

    async def apply(
        self,
        change: Change,
        *,
        by: str,
        reason: str = "",
        expected_revision: int | None = None,
        confirm_within_s: float | None = None,
        abort_if: str | None = None,
        preview: bool = False,
    ) -> Applied:
        self.terms = Terms(by, reason, expected_revision, confirm_within_s, abort_if, preview)
        if self.raises:
            raise self.raises
        if expected_revision not in (None, self.revision):
            raise ChangeRefused(412, f"the revision is {self.revision}, not {expected_revision}; read again and decide anew")
        after = changes.apply(self.model, change)
        described = changes.describe(self.model, change)
        self.model = after
        self.revision += 1
        self.entries.append(Entry(self.revision, "2026-11-21T18:00:00Z", by, reason, described))
        self.tell("change", {"revision": self.revision, "change": described})
        return Applied(self.revision, 2, 2 - len(self.lagging), self.lagging)

    async def reload(self, terms: Terms) -> Applied:
        self.terms = terms
        if self.raises:
            raise self.raises
        return Applied(self.revision, 2, 2, superseded=("weight of a server",), notes=("state_dir is read at start only",))

    def check(self, text: str) -> None:
        if text != "good":
            raise ConfigurationError([Problem("pools", "must be a table", 3, "x.toml"), Problem("", "is not TOML", 4, "x.toml")])

    async def undo(self, revision: int, terms: Terms) -> Applied:
        self.terms = terms
        if all(entry.revision != revision for entry in self.entries):
            raise ChangeRefused(404, f"revision {revision} is not in the journal")
        self.revision += 1
        return Applied(self.revision, 2, 2)

    async def confirm(self, revision: int, by: str) -> None:
        raise ChangeRefused(409, f"revision {revision} does not wait for confirmation")

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> Any:
        self.asked = (what, dict(arguments))
        return {"asked": what}

    async def configuration_at(self, revision: int) -> Mapping[str, Any]:
        return {"version": revision}

    async def difference(self) -> Sequence[Mapping[str, Any]]:
        return [{"path": "pools.web.127.0.0.1:9001.weight", "file": 3, "running": 5}]

    async def adopt(self, terms: Terms) -> tuple[str, Applied | None]:
        return "-3\n+5\n", None if terms.is_preview else Applied(self.revision, 2, 2)

    def tell(self, kind: str, data: Mapping[str, Any]) -> None:
        for observer in list(self.observers):
            observer(Event(kind, data))

    def see(self, pool: str, server: str, health: Health, reason: str, since: float = 1795284000.0) -> None:
        self.health[pool, server] = HealthSeen(pool, Address(server), health, reason, since)

    def snapshot(self) -> Snapshot:
        workers = (WorkerView(0, 4711, "serving", self.revision, 17, 1042, 0.0004), WorkerView(1, 4712, "starting", 0))
        addresses = {"127.0.0.1:0": "127.0.0.1:8080"}
        return Snapshot(
            self.model, self.revision, 12.5, "native", workers, self.health, self.ejected, addresses,
            self.effective, is_ready=self.is_ready, unresolved=self.unresolved,
        )  # fmt: skip

    def statistics(self) -> Mapping[str, Any]:
        return sample_statistics()

    async def fresh_statistics(self) -> Mapping[str, Any]:
        return sample_statistics()

    def history(self, after: int = 0) -> Sequence[Entry]:
        return [entry for entry in self.entries if entry.revision > after]

    def subscribe(self, observer: Callable[[Event], None]) -> Callable[[], None]:
        self.observers.append(observer)
        return lambda: self.observers.remove(observer)


class Wire(StringTransport):
    """A connection in memory that knows half-close."""

    def __init__(self) -> None:
        super().__init__(IPv4Address("TCP", "127.0.0.1", 9901), IPv4Address("TCP", "192.0.2.7", 50000))
        self.is_half_closed = False

    def loseWriteConnection(self) -> None:
        self.is_half_closed = True


class Answer:
    """A response taken apart by the standard library."""

    def __init__(self, data: bytes, method: str) -> None:
        response = HTTPResponse(_Bytes(data), method=method)
        response.begin()
        self.status, self.reason = response.status, response.reason
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)

    def makefile(self, mode: str) -> BytesIO:
        return self._file


class InMemory:
    """The admin API over TCP, without TCP; time stands still until `clock` is advanced."""

    def __init__(self, exposition: Callable[..., bytes] = lambda snapshot, statistics: b"metrics\n") -> None:
        self.clock = Clock()
        self.control = FakeControl(sample_model())
        self.streams = EventStreams(self.clock, self.control)
        app = make_app(Api(self.control, exposition, self.streams))
        self.tokens = Tokens(TOKENS["admin"], lambda: self.control.model.admin)
        gate = TcpGate(Router(app.url_map), self.tokens, GuessBrake(self.clock.seconds), lambda: self.control.model.admin)
        self.site = AdminSite(self.clock, app.resource(), gate)

    def connect(self) -> tuple[Any, Wire]:
        channel, wire = self.site.buildProtocol(None), Wire()
        channel.makeConnection(wire)
        return channel, wire

    def send(self, data: bytes) -> Wire:
        channel, wire = self.connect()
        channel.dataReceived(data)
        return wire

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        role: str | None = "admin",
        headers: Mapping[str, str] | None = None,
        host: str | None = "127.0.0.1:9901",
    ) -> Answer:
        fields: dict[str, str] = {}
        if host is not None:
            fields["Host"] = host
        if role is not None:
            fields["Authorization"] = f"Bearer {TOKENS[role]}"
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        fields |= headers or {}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        channel, wire = self.connect()
        channel.dataReceived(head.encode() + data)
        answer = Answer(wire.value(), method)
        channel.connectionLost()
        return answer

    def set_health(self, server: str, health: Health, reason: str) -> None:
        self.control.see("web", server, health, reason)

    def replace_admin(self, **values: Any) -> None:
        self.control.model = replace(self.control.model, admin=replace(self.control.model.admin, **values))
