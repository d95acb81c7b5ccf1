"""What a change would do, without doing it: whose share of the traffic changes, and which open sessions would be closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twistedproxy.config.changes import Batch, Change, RemoveServer
from twistedproxy.config.control import Preview, ShareChange
from twistedproxy.config.model import AdminState, Model
from twistedproxy.config.shares import shares

Known = tuple[Mapping[tuple[str, str], Any], frozenset[tuple[str, str]]]
"""Health verdicts, and servers that are ejected or unresolved."""


def previewed(
    before: Model,
    after: Model,
    described: tuple[Mapping[str, Any], ...],
    change: Change | None,
    known: Known,
    statistics: Mapping[str, Any],
) -> Preview:
    """`change` None: a reload, where removed listeners let their connections finish and nothing else is closed."""
    moved = []
    for name in sorted({*before.pools, *after.pools}):
        old = shares(before.pools[name], *known) if name in before.pools else {}
        new = shares(after.pools[name], *known) if name in after.pools else {}
        for server in dict.fromkeys((*old, *new)):
            one, other = old.get(server, 0.0), new.get(server, 0.0)
            if one != other:
                moved.append(ShareChange(name, server, one, other))
    open_now = {(pool, server): n for pool, server, n in statistics["gauges"]["servers"]}
    closing = sum(open_now.get(key, 0) for key in _cut(before, after, change))
    if change is None:
        gone = {listener.address for listener in _listeners(before)} - {listener.address for listener in _listeners(after)}
        closing += sum(n for address, n in statistics["gauges"]["connections"] if address in gone)
    return Preview(described, tuple(moved), closing)


def _listeners(model: Model) -> tuple[Any, ...]:
    return (*model.http, *model.tcp)


def _cut(before: Model, after: Model, change: Change | None) -> set[tuple[str, str]]:
    """Servers whose sessions end: removed at once, or newly in maintenance."""
    parts = change.changes if isinstance(change, Batch) else (change,)
    cut = {(part.pool, str(part.server)) for part in parts if isinstance(part, RemoveServer) and part.now}
    for name, pool in after.pools.items():
        for server in pool.servers:
            old = before.pools[name].server(server.address) if name in before.pools else None
            if server.state is AdminState.MAINT and old is not None and old.state is not AdminState.MAINT:
                cut.add((name, server.address))
    return cut
