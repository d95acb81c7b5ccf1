"""What takes a change back, and whether something later stands in the way; pure, over the vocabulary of `changes`.

Each kind of change says in `_INVERSE` what restores the model it was made for, and in `touched` which values it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twistedproxy.config import changes
from twistedproxy.config.changes import (
    AddServer,
    Batch,
    Change,
    RemoveServer,
    ReplaceConfig,
    SetMaxConnections,
    SetState,
    SetWeight,
    find_pool,
    find_server,
)
from twistedproxy.config.model import Model
from twistedproxy.config.site_changes import SetMaintenance, SetSplit, inverse_of

Value = tuple[str, ...]
"""One value that changes are about: ``("pools", "web", "127.0.0.1:80", "weight")``; a shorter one is all that begins like it."""

CONFIG: Value = ("config",)


def _no_weight(model: Model, change: SetWeight) -> Change:
    server = find_server(find_pool(model, change.pool), change.server)
    return SetWeight(change.pool, change.server, server.weight_set)


def _no_state(model: Model, change: SetState) -> Change:
    server = find_server(find_pool(model, change.pool), change.server)
    return SetState(change.pool, change.server, server.state_set)


def _no_limit(model: Model, change: SetMaxConnections) -> Change:
    server = find_server(find_pool(model, change.pool), change.server)
    return SetMaxConnections(change.pool, change.server, server.max_connections_set)


def _no_addition(model: Model, change: AddServer) -> Change:
    return RemoveServer(change.pool, change.server.address)


def _no_removal(model: Model, change: RemoveServer) -> Change:
    return AddServer(change.pool, find_server(find_pool(model, change.pool), change.server))


_INVERSE: dict[type[Any], Callable[[Model, Any], Change]] = {
    SetWeight: _no_weight,
    SetState: _no_state,
    SetMaxConnections: _no_limit,
    AddServer: _no_addition,
    RemoveServer: _no_removal,
    SetMaintenance: inverse_of,
    SetSplit: inverse_of,
}


def inverse(model: Model, change: Change) -> Change | None:
    """What takes `change`, which is about to be applied to `model`, back; None for a configuration (the text before it does)."""
    if isinstance(change, ReplaceConfig):
        return None
    if isinstance(change, Batch):
        backwards: list[Any] = []
        for part in change.changes:
            backwards.insert(0, inverse(model, part))
            model = changes.apply(model, part)
        return Batch(tuple(backwards))
    return _INVERSE[type(change)](model, change)


_FIELDS = {"set_weight": "weight", "set_state": "state", "set_max_connections": "max_connections"}


def touched(plain: Mapping[str, Any]) -> frozenset[Value]:
    """The values that a change, in its JSON form, is about."""
    kind = plain["kind"]
    if kind == "batch":
        return frozenset(value for part in plain["changes"] for value in touched(part))
    if kind == "replace_config":
        return frozenset({CONFIG})
    if kind == "add_server":
        return frozenset({("pools", plain["pool"], plain["server"]["address"])})
    if kind == "remove_server":
        return frozenset({("pools", plain["pool"], plain["server"])})
    if kind in _FIELDS:
        return frozenset({("pools", plain["pool"], plain["server"], _FIELDS[kind])})
    return frozenset({("sites", str(plain["site"]), str(kind), str(plain.get("path", "")))})


def meet(one: frozenset[Value], other: frozenset[Value]) -> bool:
    """Is there a value in both, or one that holds one of the other's?"""
    return any(a[: len(b)] == b[: len(a)] for a in one for b in other)
