"""What can change while traffic flows: the vocabulary shared by API, journal, supervisor and workers.

A *change* is somebody's will: validated against the current model, given a revision, journaled, applied everywhere, undoable.
An *observation* is a fact of the moment (health, ejection, resolved address): broadcast the same way, never journaled, no revision.
Both are frozen values; `to_plain` and `from_plain` give the JSON form that AMP carries and the journal keeps.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from twistedproxy.config import plain
from twistedproxy.config.model import Address, AdminState, Health, Model, Pool, Server, Source, endpoint
from twistedproxy.config.site_changes import SetMaintenance, SetSplit, describe_site, set_maintenance, set_split
from twistedproxy.errors import ChangeRefused

MAX_WEIGHT = 1000
MAX_CONNECTIONS = 1_000_000


@dataclass(frozen=True, slots=True)
class SetWeight:
    """None returns to the file's value."""

    pool: str
    server: Address
    weight: int | None


@dataclass(frozen=True, slots=True)
class SetState:
    pool: str
    server: Address
    state: AdminState | None


@dataclass(frozen=True, slots=True)
class SetMaxConnections:
    pool: str
    server: Address
    max_connections: int | None


@dataclass(frozen=True, slots=True)
class AddServer:
    pool: str
    server: Server


@dataclass(frozen=True, slots=True)
class RemoveServer:
    """Nothing new goes to the server; what is open finishes, or is cut at once with `now`."""

    pool: str
    server: Address
    now: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Several changes that share one revision: all or none."""

    changes: tuple[SetWeight | SetState | SetMaxConnections | AddServer | RemoveServer | SetMaintenance | SetSplit, ...]


@dataclass(frozen=True, slots=True)
class ReplaceConfig:
    """The configuration file says something else from now on; live values stay in force over it."""

    text: str
    """As written: placeholders are resolved by the supervisor, never here."""


Change = SetWeight | SetState | SetMaxConnections | AddServer | RemoveServer | SetMaintenance | SetSplit | Batch | ReplaceConfig


@dataclass(frozen=True, slots=True)
class HealthSeen:
    pool: str
    server: Address
    health: Health
    reason: str
    """For the operator: ``200 in 1.2 ms``, ``connection refused``."""
    since: float
    """Wall clock, seconds since the epoch, of the last change of verdict."""


@dataclass(frozen=True, slots=True)
class Ejected:
    """Passive ejection until `until` (CLOCK_MONOTONIC, the same in all processes of the machine); 0 takes it back."""

    pool: str
    server: Address
    until: float


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the server's host name means now; the last known good answer stays when the resolver fails."""

    pool: str
    server: Address
    addresses: tuple[str, ...]
    """IP addresses."""


@dataclass(frozen=True, slots=True)
class RowAssigned:
    """The server's row in the scoreboard's table of leases, or -1 when it gave the row back."""

    pool: str
    server: Address
    row: int


@dataclass(frozen=True, slots=True)
class CertificateRead:
    """What is in the files of a certificate and its key, as PEM; of authorities: `key` and `key_pem` are empty. Never shown."""

    cert: str
    key: str
    chain_pem: str = field(repr=False)
    key_pem: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChallengeSet:
    """What an authority wants to read at ``/.well-known/acme-challenge/TOKEN`` (RFC 8555 8.3); "" when it has read it."""

    token: str
    answer: str


@dataclass(frozen=True, slots=True)
class HandshakeChallengeSet:
    """What an authority wants to see in a handshake of ``acme-tls/1`` for `host` (RFC 8737), as PEM; "" when it has seen it."""

    host: str
    chain_pem: str = field(repr=False)
    key_pem: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CachePurged:
    """Kept answers that were asked for before `at` and that this covers are not to be given any more."""

    by: str
    """``url``, ``prefix``, ``tag`` or ``all``."""
    what: str
    at: float
    """Wall-clock seconds."""
    is_soft: bool = False
    """They are stale, not gone."""


Observation = HealthSeen | Ejected | Resolved | RowAssigned | CertificateRead | ChallengeSet | HandshakeChallengeSet | CachePurged

_KINDS: dict[str, type[Any]] = {
    "set_weight": SetWeight,
    "set_state": SetState,
    "set_max_connections": SetMaxConnections,
    "add_server": AddServer,
    "remove_server": RemoveServer,
    "set_maintenance": SetMaintenance,
    "set_split": SetSplit,
    "batch": Batch,
    "replace_config": ReplaceConfig,
    "health_seen": HealthSeen,
    "ejected": Ejected,
    "resolved": Resolved,
    "row_assigned": RowAssigned,
    "certificate_read": CertificateRead,
    "challenge_set": ChallengeSet,
    "handshake_challenge_set": HandshakeChallengeSet,
    "cache_purged": CachePurged,
}
_NAMES = {cls: kind for kind, cls in _KINDS.items()}


def kind_of(value: Change | Observation) -> str:
    """The word that names this sort of change in JSON."""
    return _NAMES[type(value)]


def to_plain(value: Change | Observation) -> dict[str, Any]:
    if isinstance(value, Batch):
        return {"kind": "batch", "changes": [to_plain(c) for c in value.changes]}
    fields: dict[str, Any] = plain.encode(value)
    return {"kind": kind_of(value)} | fields


def from_plain(data: Mapping[str, Any]) -> Any:
    """The change or observation `to_plain` wrote; `ValueError` for anything else."""
    if not isinstance(data, Mapping):
        raise ValueError(f"expected a table, got {data!r}")
    fields = dict(data)
    kind = fields.pop("kind", "")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"unknown kind of change {kind!r}; known: {', '.join(_KINDS)}")
    if cls is Batch:
        parts = fields.pop("changes", None)
        if fields or not isinstance(parts, list):
            raise ValueError("a batch has a list of changes and nothing else")
        changes = tuple(from_plain(part) for part in parts if _is_single(part))
        return Batch(changes)
    return plain.decode(cls, fields)


def _is_single(part: Any) -> bool:
    """Batches hold neither batches nor observations: checked before anything is read, so that depth is bounded."""
    kind = part.get("kind") if isinstance(part, Mapping) else None
    if kind in ("batch", "replace_config", "health_seen", "ejected", "resolved", "row_assigned", "certificate_read", "challenge_set"):
        raise ValueError(f"a batch cannot hold {kind!r}")
    return True


# Applying


def find_pool(model: Model, name: str) -> Pool:
    pool = model.pools.get(name)
    if pool is None:
        raise ChangeRefused(404, f"no pool {name!r}; there are: {', '.join(sorted(model.pools)) or 'none'}", "pool")
    return pool


def find_server(pool: Pool, address: str) -> Server:
    server = pool.server(address)
    if server is None:
        known = ", ".join(s.address for s in pool.servers) or "none"
        raise ChangeRefused(404, f"no server {address!r} in pool {pool.name!r}; there are: {known}", "server")
    return server


def apply(model: Model, change: Change) -> Model:
    """The model after `change`; `ChangeRefused` when it makes no sense for this model."""
    return _APPLY[type(change)](model, change)


def _with_pool(model: Model, pool: Pool) -> Model:
    return replace(model, pools={**model.pools, pool.name: pool})


def _with_server(model: Model, pool: Pool, server: Server) -> Model:
    servers = tuple(server if s.address == server.address else s for s in pool.servers)
    return _with_pool(model, replace(pool, servers=servers))


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ChangeRefused(400, f"{name} is {value}; allowed are {low} to {high}, or null for the file's value", name)


def _set_weight(model: Model, change: SetWeight) -> Model:
    _check_range("weight", change.weight, 0, MAX_WEIGHT)
    pool = find_pool(model, change.pool)
    return _with_server(model, pool, replace(find_server(pool, change.server), weight_set=change.weight))


def _set_state(model: Model, change: SetState) -> Model:
    pool = find_pool(model, change.pool)
    return _with_server(model, pool, replace(find_server(pool, change.server), state_set=change.state))


def _set_max_connections(model: Model, change: SetMaxConnections) -> Model:
    _check_range("max_connections", change.max_connections, 1, MAX_CONNECTIONS)
    pool = find_pool(model, change.pool)
    server = replace(find_server(pool, change.server), max_connections_set=change.max_connections)
    return _with_server(model, pool, server)


def _add_server(model: Model, change: AddServer) -> Model:
    pool = find_pool(model, change.pool)
    server = change.server
    try:
        place = endpoint(server.address)
        canonical = str(place)
    except ValueError as e:
        raise ChangeRefused(400, str(e), "address") from None
    if canonical != server.address:
        raise ChangeRefused(400, f"address {server.address!r} must be written {canonical!r}", "address")
    if place.family == socket.AF_UNIX and not place.host.startswith("/"):
        raise ChangeRefused(400, f"address {server.address!r}: the path of a unix socket must be absolute", "address")
    if place.family != socket.AF_UNIX and not place.port:
        raise ChangeRefused(400, f"address {server.address!r}: a server's port is 1 to 65535", "address")
    _check_range("weight", server.weight, 0, MAX_WEIGHT)
    _check_range("max_connections", server.max_connections, 1, MAX_CONNECTIONS)
    if pool.server(server.address):
        raise ChangeRefused(409, f"pool {pool.name!r} has the server {server.address!r} already", "address")
    return _with_pool(model, replace(pool, servers=(*pool.servers, replace(server, source=Source.ADMIN))))


def _remove_server(model: Model, change: RemoveServer) -> Model:
    pool = find_pool(model, change.pool)
    server = find_server(pool, change.server)
    return _with_pool(model, replace(pool, servers=tuple(s for s in pool.servers if s is not server)))


def _replace_config(model: Model, change: ReplaceConfig) -> Model:
    raise ChangeRefused(409, "a configuration is read by the supervisor and reaches others as a whole model")


def _batch(model: Model, change: Batch) -> Model:
    for part in change.changes:
        model = apply(model, part)
    return model


C = TypeVar("C")
_APPLY: dict[type[Any], Callable[[Model, Any], Model]] = {
    SetWeight: _set_weight,
    SetState: _set_state,
    SetMaxConnections: _set_max_connections,
    AddServer: _add_server,
    RemoveServer: _remove_server,
    SetMaintenance: set_maintenance,
    SetSplit: set_split,
    Batch: _batch,
    ReplaceConfig: _replace_config,
}


def describe(model: Model, change: Change) -> dict[str, Any]:
    """`change` for the journal and the operator, with what it replaces in `model`: ``{"kind", "pool", "server", "before", "after"}``."""
    if isinstance(change, Batch):
        described = []
        for part in change.changes:
            described.append(describe(model, part))
            model = apply(model, part)
        return {"kind": "batch", "changes": described}
    if isinstance(change, ReplaceConfig):
        return {"kind": "replace_config"}
    if isinstance(change, SetMaintenance | SetSplit):
        return describe_site(model, change)
    facts: dict[str, Any] = {"kind": kind_of(change), "pool": change.pool}
    if isinstance(change, AddServer):
        return facts | {"server": change.server.address, "before": None, "after": plain.encode(replace(change.server, source=Source.ADMIN))}
    server = find_server(find_pool(model, change.pool), change.server)
    facts["server"] = change.server
    if isinstance(change, SetWeight):
        return facts | {"before": server.weight_now, "after": server.weight if change.weight is None else change.weight}
    if isinstance(change, SetState):
        return facts | {"before": server.state.value, "after": (change.state or AdminState.READY).value}
    if isinstance(change, SetMaxConnections):
        pool = find_pool(model, change.pool)
        after = pool.limit_of(replace(server, max_connections_set=change.max_connections))
        return facts | {"before": pool.limit_of(server), "after": after}
    return facts | {"before": plain.encode(server), "after": None}
