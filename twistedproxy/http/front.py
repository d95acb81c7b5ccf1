"""The HTTP listener in one worker: what all of its connections share."""

from __future__ import annotations

import itertools
import secrets
import socket
from collections.abc import Callable
from dataclasses import replace
from random import random
from typing import Any

from twisted.internet.interfaces import IReactorTime

from twistedproxy.clock import Wheel
from twistedproxy.config.model import HttpListener, Timeouts
from twistedproxy.errors import NoRoute, Overloaded, ProxyError
from twistedproxy.http.acting import act
from twistedproxy.http.codings import Effort
from twistedproxy.http.connection import IDLE_LINGER_S, FrontConnection
from twistedproxy.http.destination import Destination
from twistedproxy.http.exchange import Exchange
from twistedproxy.http.head import Limits
from twistedproxy.http.messages import LocalResponse, RequestHead
from twistedproxy.http.mirror import Mirrors
from twistedproxy.http.pacing import Pacing
from twistedproxy.http.routes import Decision, Router, no_route_detail
from twistedproxy.http.stories import Stories
from twistedproxy.net.networks import Networks
from twistedproxy.net.proxy_protocol import ProxyHeaderReader
from twistedproxy.net.transport import Transport
from twistedproxy.observability.access_log import AccessLog
from twistedproxy.observability.metrics import Metrics

CROWDED_KEEPALIVE_S = 5.0
"""How long an idle connection is kept while the listener is close to its maximum."""

SHORT_KEEPALIVE_S = 1.0
"""The same while memory is short."""


class HttpFront:
    """One HTTP listener in one worker."""

    def __init__(
        self,
        listener: HttpListener,
        router: Router[Destination],
        *,
        reactor: IReactorTime,
        wheel: Wheel,
        timeouts: Timeouts,
        metrics: Metrics,
        access_log: AccessLog | None,
        on_closed: Callable[[], None] = lambda: None,
        mirrors: Mirrors | None = None,
        stories: Stories | None = None,
        pacing: Pacing | None = None,
        explainer: Callable[[Exchange], LocalResponse | None] | None = None,
    ) -> None:
        self.reactor = reactor
        self.wheel = wheel
        self.seconds = wheel.seconds
        self._shed_share = 0.0
        self._shed_why = Overloaded("the proxy has too much to do")
        self.router = router
        self.timeouts = timeouts
        self.metrics = metrics
        self.counts = metrics.listener(listener.address)
        self.effort = Effort(metrics.coded, metrics.coding_eased)
        self.access_log = access_log
        self.mirrors = mirrors
        self.stories = stories
        self.pacing = pacing or Pacing(reactor)
        self.explainer = explainer
        """Answers a request that asks for its own trace, if it may."""
        self.act = act
        """What an exchange does whose route has actions."""
        self.address = listener.address
        self.limits = Limits(listener.max_head, listener.max_request_line, listener.max_field, listener.max_fields)
        self.requests_per_connection = listener.requests_per_connection
        self.connection_age_s = listener.connection_age_s
        self.min_body_rate = listener.min_body_rate
        self.trusted = Networks(listener.trusted_proxies)
        self.accept_proxy = Networks(listener.accept_proxy)
        self.port = 0
        """The port clients connect to; 0 until the first has come, and for a unix socket."""
        self.is_draining = False
        self.is_closing = False
        """Every answer is the last of its connection."""
        self._roomy_timeouts: Timeouts | None = None
        """The configured ones, while the listener is crowded."""
        self._on_closed = on_closed
        self._connections: set[FrontConnection] = set()
        self.id_prefix = secrets.token_hex(6).encode()
        """With a serial number behind it: unique over workers and restarts, cheap, and no secret."""
        self.next_serial = itertools.count().__next__

    @property
    def open(self) -> int:
        return len(self._connections)

    @property
    def router(self) -> Router[Destination]:
        """All routes. Requests ask `route`."""
        return self._router

    @router.setter
    def router(self, router: Router[Destination]) -> None:
        self._router = router
        self._choose_route()

    def shed(self, share: float, why: Overloaded) -> None:
        """Refuse this share of the requests from now on: the worker cannot keep up."""
        self._shed_why = why
        if share != self._shed_share:
            self._shed_share = share
            self._choose_route()

    def _choose_route(self) -> None:
        route: Callable[..., Decision[Destination] | None] = self._router.route
        self.route = self._route_some if self._shed_share else route
        """Where a request of this client goes; None: `no_decision` says why."""

    def _route_some(self, head: RequestHead, client: str, *more: Any) -> Decision[Destination] | None:
        return None if random() < self._shed_share else self._router.route(head, client, *more)

    def no_decision(self, head: RequestHead) -> ProxyError:
        """Why `route` gave None."""
        if self._shed_share and self._router.route(head, "") is not None:
            return self._shed_why
        return NoRoute(no_route_detail(self._router, head))

    def accept(self, sock: socket.socket, ip: str, port: int) -> None:
        """Take over a fresh connection."""
        transport = Transport(self.reactor, self.wheel, sock, ip, port, self.timeouts.write_stall_s)
        self.counts.open += 1
        self.counts.total += 1
        connection = FrontConnection(self, transport)
        self._connections.add(connection)
        if self.accept_proxy and self.accept_proxy.contains(ip):
            ProxyHeaderReader(transport, self.wheel, self.timeouts.preread_s, connection.announced, connection.not_announced)
        else:
            connection.begin(ip, port, None, b"")

    def find_port(self, transport: Transport) -> int:
        """Ask the first connection rather than the configuration, which may leave the port to the kernel."""
        self.port = transport.local[1]
        return self.port

    def closed(self, connection: FrontConnection) -> None:
        self._connections.discard(connection)
        self.counts.open -= 1
        self._on_closed()

    def fresh_id(self) -> bytes:
        """The id of something that never became an exchange."""
        return b"%b%08x" % (self.id_prefix, self.next_serial())

    def mind_crowding(self, is_crowded: bool) -> None:
        """Close to its maximum an idle connection is kept for a moment only, those that are idle already included."""
        roomy = self._roomy_timeouts
        if is_crowded and self.timeouts.keepalive_s > CROWDED_KEEPALIVE_S:
            self._roomy_timeouts = self.timeouts
            self.timeouts = replace(self.timeouts, keepalive_s=CROWDED_KEEPALIVE_S)
            for connection in tuple(self._connections):
                connection.keep_no_longer(CROWDED_KEEPALIVE_S)
        elif not is_crowded and roomy is not None:
            self._roomy_timeouts = None
            if not self.is_draining and self.timeouts.keepalive_s == CROWDED_KEEPALIVE_S:
                self.timeouts = roomy

    def mind_memory(self, is_short: bool) -> None:
        """While memory is short no connection is kept beyond its answer."""
        if is_short and not self.is_closing:
            for connection in tuple(self._connections):
                connection.keep_no_longer(SHORT_KEEPALIVE_S)
        self.is_closing = is_short or self.is_draining

    def drain(self) -> None:
        """Answer what is on the way, announce the close, let idle connections go."""
        self.is_draining = self.is_closing = True
        self.timeouts = replace(self.timeouts, keepalive_s=min(self.timeouts.keepalive_s, IDLE_LINGER_S))
        for connection in tuple(self._connections):
            connection.drain()

    def cut_requests(self) -> None:
        """The time for requests is up; tunnels have as long as TCP sessions."""
        for connection in tuple(self._connections):
            if not connection.is_tunnel:
                connection.cut()

    def cut(self) -> None:
        """Time is up: end everything that is still open."""
        for connection in tuple(self._connections):
            connection.cut()
