"""The configuration as it may be shown: in the form of the file, live values included, placeholders as written.

`loader` gives the file's side of it (`Loaded.effective`); here the running model is laid over it, server by server, and two such
trees are compared for the journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from twistedproxy.config.model import Model, Pool, Route, Server
from twistedproxy.config.values import parse_route_path

MOST_LINES = 50
LONGEST = 80
SECRET_KEYS = ("sha256",)


def running(effective: Mapping[str, Any], configured: Model, model: Model) -> dict[str, Any]:
    """`effective`, which belongs to `configured`, with what was set live in `model`."""
    shown = dict(effective)
    pools = dict(effective.get("pools", {}))
    for name, pool in model.pools.items():
        before = configured.pools.get(name)
        if before is not None and pool != before and name in pools:
            pools[name] = {**pools[name], "servers": _servers(pools[name].get("servers", []), before, pool)}
    if pools:
        shown["pools"] = pools
    sites = dict(effective.get("sites", {}))
    for name, site in model.sites.items():
        if site.maintenance_set is not None and name in sites:
            sites[name] = {**sites[name], "maintenance": site.is_in_maintenance}
        for index, route in enumerate(site.all_routes):
            if name in sites and any(side.weight_set is not None for side in route.split):
                sites[name] = _with_split(sites[name], route, index)
    if sites:
        shown["sites"] = sites
    return shown


def _with_split(written: Mapping[str, Any], route: Route, index: int) -> dict[str, Any]:
    """A site as shown, with the live weights of one split; rules come first among all routes."""
    split = {side.pool: side.weight_now for side in route.split}
    if route.when is not None:
        rules = list(written["rules"])
        rules[index] = {**rules[index], "split": split}
        return {**written, "rules": rules}
    found = next((key for key in written if key.startswith(("/", "=")) and parse_route_path(key) == route.path), route.path)
    return {**written, found: {**written[found], "split": split}}


def _servers(written: list[Any], before: Pool, now: Pool) -> list[Any]:
    as_written = dict(zip((server.address for server in before.servers), written, strict=False))
    return [
        as_written[server.address] if server == before.server(server.address) and server.address in as_written else table(server)
        for server in now.servers
    ]


def table(server: Server) -> dict[str, Any]:
    """A server as the file would write it, with the state that only exists live."""
    limit = server.max_connections if server.max_connections_set is None else server.max_connections_set
    shown: dict[str, Any] = {"address": server.address, "weight": server.weight_now}
    if limit is not None:
        shown["max_connections"] = limit
    if server.backup:
        shown["backup"] = True
    if server.state_set is not None:
        shown["state"] = server.state.value
    return shown


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs, one line each, for people; the order is the file's."""
    lines = list(_differences(before, after, ""))
    return lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more"]


def _differences(before: Any, after: Any, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys((*before, *after)):
            below = f"{path}.{key}" if path else str(key)
            if key not in after:
                yield f"{below}: removed"
            elif key not in before:
                yield f"{below}: added"
            elif before[key] != after[key]:
                yield from _differences(before[key], after[key], below)
    elif isinstance(before, list) and isinstance(after, list) and (gone := _without(before, after)) + (new := _without(after, before)):
        yield from (f"{path}: removed {_short(item)}" for item in gone)
        yield from (f"{path}: added {_short(item)}" for item in new)
    elif path.rpartition(".")[2] in SECRET_KEYS:
        yield f"{path}: changed"
    else:
        yield f"{path}: {_short(before)} → {_short(after)}"


def _without(some: list[Any], others: list[Any]) -> list[Any]:
    return [item for item in some if item not in others]


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "address" in value:
        value = value["address"]
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
