"""Each server's part of its pool's traffic, as weights, states and health have it: for views and previews."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from twistedproxy.config.changes import HealthSeen
from twistedproxy.config.model import AdminState, Health, Pool, Server


def shares(pool: Pool, health: Mapping[tuple[str, str], HealthSeen], ejected: Collection[tuple[str, str]]) -> dict[str, float]:
    """Part of the effective weight among the servers available; backups count only when no primary is available.

    `ejected`: all that get nothing for reasons of the moment other than health.
    """

    def is_available(server: Server) -> bool:
        key = (pool.name, server.address)
        seen = health.get(key)
        is_down = seen is not None and seen.health is Health.DOWN
        return server.state is AdminState.READY and server.weight_now > 0 and not is_down and key not in ejected

    available = [server for server in pool.servers if is_available(server)]
    serving = [server for server in available if not server.backup] or available
    total = sum(server.weight_now for server in serving)
    return {server.address: round(server.weight_now / total, 6) for server in serving}
