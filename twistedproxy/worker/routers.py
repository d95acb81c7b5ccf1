"""The routers of one worker: one for listeners with TLS, one for those without, where some sites do nothing but redirect."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from twistedproxy.config.model import HttpListener, Model, endpoint
from twistedproxy.http.destination import Destination
from twistedproxy.http.plain_sites import plain_sites
from twistedproxy.http.routes import Router
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool


class Routers:
    """`pools` is the worker's own table; `no_pool` is where routes lead that answer by themselves."""

    def __init__(self, pools: Mapping[str, Pool], no_pool: Pool, metrics: Metrics) -> None:
        self._pools = pools
        self._no_pool = no_pool
        self._metrics = metrics
        self._with_tls: Router[Destination] = Router((), self._destination)
        self._plain = self._with_tls
        self._made_of: object = None

    def configure(self, model: Model, challenges: Mapping[Any, Any]) -> bool:
        """Be routers of `model`, with ACME's challenges answered on plain listeners; False when nothing they are made of has changed."""
        # A destination copies values of its pool (retries, keep-alive, balance), so these count here as well as the sites.
        pools = {name: (pool.balance, pool.retry, pool.keepalive, pool.send_proxy, pool.sticky) for name, pool in model.pools.items()}
        https = [endpoint(listener.address) for listener in model.http if listener.is_tls]
        https_port = next((place.port for place in https if place.family != socket.AF_UNIX), 0)
        made_of = (model.sites, model.timeouts, pools, https_port, dict(challenges))
        if made_of == self._made_of:
            return False
        self._made_of = made_of
        sites, sticky = model.sites.values(), model.sticky_pools
        self._with_tls = self._plain = Router(sites, self._destination, sticky)
        if any(site.tls for site in sites):
            self._plain = Router(plain_sites(sites, https_port, made_of[-1]), self._destination, sticky)
        return True

    def of(self, listener: HttpListener) -> Router[Destination]:
        return self._with_tls if listener.is_tls else self._plain

    def _destination(self, site: Any, route: Any) -> Destination:
        return Destination(site, route, self._pools[route.pool] if route.pool else self._no_pool, self._metrics)
