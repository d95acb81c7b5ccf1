"""What a change would do, without doing it: whose share of the traffic changes, and which open sessions would be closed.

How it works
    The shares of most pools follow from weights, states and health: their balancers give every server its weight's worth in the long
    run. Where the balancer goes by keys, those that the workers recorded lately are replayed on copies of it, before and after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from twistedproxy.config.changes import Batch, Change, RemoveServer
from twistedproxy.config.control import Preview, Replay, ShareChange, SplitChange
from twistedproxy.config.model import AdminState, Model, Pool, Route
from twistedproxy.config.shares import shares
from twistedproxy.pool import twin
from twistedproxy.pool.recent import goes_by_keys

Observed = tuple[Mapping[tuple[str, str], Any], frozenset[tuple[str, str]]]
"""Health verdicts, and servers that are ejected or unresolved."""
Keys = Mapping[str, Mapping[int, int]]
"""By pool: recorded keys and how often each came."""

MOST_WORK = 60_000
"""Keys times servers that are replayed: a tenth of a second at most, in which the supervisor does nothing else."""
FEWEST = 20
"""With fewer recorded requests their shares are chance, and those by weight say more."""


def keyed_pools(before: Model, after: Model) -> list[str]:
    """The pools whose recorded keys tell what a change does: changed ones that go by the same keys before and after."""
    both = ((before.pools[name], after.pools[name]) for name in sorted(before.pools.keys() & after.pools.keys()))
    return [old.name for old, new in both if old is not new and old != new and old.balance == new.balance and goes_by_keys(old.balance)]


def together(answers: Sequence[Mapping[str, Sequence[Sequence[int]]]]) -> Keys:
    """The recorded keys of all workers."""
    keys: dict[str, Counter[int]] = {}
    for answer in answers:
        for pool, counts in answer.items():
            known = keys.setdefault(pool, Counter())
            for key, times in counts:
                known[key] += times
    return keys


def previewed(
    before: Model,
    after: Model,
    described: tuple[Mapping[str, Any], ...],
    change: Change | None,
    observed: Observed,
    statistics: Mapping[str, Any],
    keys: Keys | None = None,
) -> Preview:
    """`change` None: a reload, where removed listeners let their connections finish and nothing else is closed."""
    moved = []
    replays = []
    for name in sorted({*before.pools, *after.pools}):
        old: Mapping[str, float] = shares(before.pools[name], *observed) if name in before.pools else {}
        new: Mapping[str, float] = shares(after.pools[name], *observed) if name in after.pools else {}
        if keys is not None and name in keys:
            replayed = _replay(before.pools[name], after.pools[name], observed, keys[name])
            replays.append(Replay(name, replayed.requests, round(replayed.moved / (replayed.requests or 1), 6)))
            if replayed.requests >= FEWEST:
                old, new = replayed.before, replayed.after
        for server in dict.fromkeys((*old, *new)):
            one, other = round(old.get(server, 0.0), 6), round(new.get(server, 0.0), 6)
            if one != other:
                moved.append(ShareChange(name, server, one, other))
    open_now = {(pool, server): n for pool, server, n in statistics["gauges"]["servers"]}
    closing = sum(open_now.get(key, 0) for key in _cut(before, after, change))
    if change is None:
        gone = {listener.address for listener in _listeners(before)} - {listener.address for listener in _listeners(after)}
        closing += sum(n for address, n in statistics["gauges"]["connections"] if address in gone)
    return Preview(described, tuple(moved), _splits(before, after), tuple(replays), closing)


def _replay(before: Pool, after: Pool, observed: Observed, keys: Mapping[int, int]) -> twin.Replayed:
    most = MOST_WORK // max(len(before.servers) + len(after.servers), 1)
    return twin.replay(_known(before, observed), _known(after, observed), sorted(keys.items(), key=lambda item: -item[1])[:most])


def _known(pool: Pool, observed: Observed) -> twin.Known:
    health, away = observed
    verdicts = {address: seen.health for (name, address), seen in health.items() if name == pool.name}
    # Ejected and unresolved alike get nothing.
    return twin.Known(pool, verdicts, frozenset(address for name, address in away if name == pool.name))


def _splits(before: Model, after: Model) -> tuple[SplitChange, ...]:
    moved = []
    for name in after.sites:
        if name not in before.sites or before.sites[name] is after.sites[name]:
            continue
        known = {route.path: _sides(route) for route in before.sites[name].all_routes}
        for route in after.sites[name].all_routes:
            old, new = known.get(route.path, {}), _sides(route)
            sides = dict.fromkeys((*old, *new))
            moved += [
                SplitChange(name, route.path, side, old.get(side, 0.0), new.get(side, 0.0))
                for side in sides
                if old.get(side, 0.0) != new.get(side, 0.0)
            ]
    return tuple(moved)


def _sides(route: Route) -> dict[str, float]:
    total = sum(side.weight_now for side in route.split) or 1
    return {side.pool: round(side.weight_now / total, 6) for side in route.split}


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
