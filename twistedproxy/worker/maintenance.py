"""Sessions on servers that are taken away: cut at once where one is removed so, after `drain_tcp` where it is in maintenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twistedproxy.config import changes
from twistedproxy.config.model import AdminState, Model
from twistedproxy.errors import Drained
from twistedproxy.pool.pool import Pool
from twistedproxy.pool.server import Server

Found = tuple[Pool, Server] | None
"""A server with its pool, to be remembered beyond its removal."""


def find(pools: Mapping[str, Pool], pool_name: str, address: str) -> Found:
    pool = pools.get(pool_name)
    server = pool.server(address) if pool is not None else None
    return None if pool is None or server is None else (pool, server)


def cut_sessions(found: Found, why: str) -> None:
    if found is not None:
        pool, server = found
        server.cut(Drained(f"server {server.address} of pool {pool.name!r} {why}"))


class Cuts:
    """One timer for each server in maintenance, removed or not, until it leaves maintenance."""

    def __init__(self, reactor: Any, pools: Mapping[str, Pool]) -> None:
        self._reactor = reactor
        self._pools = pools
        self._timers: dict[tuple[str, str], Any] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def at_once(self, change: changes.Change) -> list[Found]:
        """The servers that `change` removes at once, as long as they are still there."""
        parts = change.changes if isinstance(change, changes.Batch) else (change,)
        return [find(self._pools, part.pool, part.server) for part in parts if isinstance(part, changes.RemoveServer) and part.now]

    def follow(self, model: Model) -> None:
        servers = [((pool.name, server.address), server.state) for pool in model.pools.values() for server in pool.servers]
        wanted = {key for key, state in servers if state is AdminState.MAINT}
        back = {key for key, _ in servers} - wanted
        for key in [key for key, timer in self._timers.items() if key in back or (key not in wanted and not timer.active())]:
            timer = self._timers.pop(key)
            if timer.active():
                timer.cancel()
        for key in wanted - self._timers.keys():
            delay = model.timeouts.drain_tcp_s
            self._timers[key] = self._reactor.callLater(delay, cut_sessions, find(self._pools, *key), "is in maintenance")

    def stop(self) -> None:
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
