"""One address of a pool as one worker sees it: counters, verdicts, weight.

A `Server` object lives as long as its address is in the pool, across all changes of weight, state or neighbours, and beyond that
until its last lease ends. It is hashed by identity: sets and tables of servers stay valid whatever changes inside.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable
from math import exp
from typing import Any

from twisted.logger import Logger

from twistedproxy.config.model import AdminState, Endpoint, Health, endpoint
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.errors import ProxyError

LATENCY_DECAY_S = 10.0
"""Time constant of the latency average: after it, an old peak counts for a third."""
FAILURE_LATENCY_S = 1.0
"""A failure counts as at least this slow, so that a server that refuses quickly does not look like the fastest."""
NEVER = float("-inf")

_log = Logger()


class Outcome(enum.Enum):
    """How a lease ended, as far as the server is to blame."""

    OK = "ok"
    FAILED = "failed"
    """Connect, TLS, protocol, reset, time-out, 5xx: counts toward ejection."""
    NEUTRAL = "neutral"
    """The client's doing, or something ran out on this machine: says nothing about the server."""


class Server:
    """The runtime side of one configured server in this worker."""

    __slots__ = (
        "__weakref__",
        "active",
        "address",
        "ejected_until",
        "elsewhere",
        "endpoints",
        "failures",
        "health",
        "idle",
        "is_backup",
        "latency",
        "leases",
        "limit",
        "neutral",
        "ramp_from",
        "reported_failures",
        "reported_requests",
        "row",
        "sessions",
        "slow_start_s",
        "state",
        "weight",
        "_latency_at",
    )

    def __init__(self, spec: ServerSpec, limit: int, slow_start_s: float = 0.0) -> None:
        self.address: str = spec.address
        where = endpoint(spec.address)
        self.endpoints: tuple[Endpoint, ...] = () if where.family == socket.AF_UNSPEC else (where,)
        """Where to connect; empty while a host name is not resolved."""
        self.health = Health.UNKNOWN
        self.ejected_until = 0.0
        self.ramp_from = NEVER
        """When slow start began."""
        self.row = -1
        """Row in the scoreboard's table of leases; -1: counted in this worker only."""
        self.active = 0
        """Leases in flight in this worker."""
        self.elsewhere = 0
        """Leases in flight in the other workers, as last read."""
        self.leases = 0
        """Leases granted ever."""
        self.failures = 0
        self.neutral = 0
        self.reported_requests = 0
        self.reported_failures = 0
        self.latency = 0.0
        """Peak EWMA, seconds; 0: never measured."""
        self._latency_at = 0.0
        self.idle: list[Any] = []
        """Idle keep-alive connections, last used last; owned by `http.upstream`."""
        self.sessions: dict[object, Callable[[ProxyError], None]] = {}
        """What to call, by lease, when this server's sessions must be cut."""
        self.configure(spec, limit, slow_start_s)

    def configure(self, spec: ServerSpec, limit: int, slow_start_s: float) -> None:
        """Take over what file and operator say; counters and verdicts stay."""
        self.weight = spec.weight_now
        self.state = spec.state
        self.is_backup = spec.backup
        self.limit = limit
        """Leases in flight on the whole machine."""
        self.slow_start_s = slow_start_s

    @property
    def requests(self) -> int:
        """Leases that ended and say something about the server."""
        return self.leases - self.active - self.neutral

    def take_report(self, with_requests: bool) -> tuple[int, int]:
        """(failures, requests) since the last report; requests alone are kept for a later one unless asked for."""
        failures = self.failures - self.reported_failures
        if not failures and not with_requests:
            return 0, 0
        requests = self.requests - self.reported_requests
        self.reported_failures += failures
        self.reported_requests += requests
        return failures, requests

    def is_available(self, now: float) -> bool:
        """Whether new work may come here; whether it is *full* is asked separately."""
        return self.state is AdminState.READY and self._can_serve(now)

    def is_available_sticky(self, now: float) -> bool:
        """The same for a client that was here before: a draining server still takes it."""
        return self.state is not AdminState.MAINT and self._can_serve(now)

    def _can_serve(self, now: float) -> bool:
        return self.health is not Health.DOWN and self.ejected_until <= now and self.weight > 0 and bool(self.endpoints)

    def why_not(self, now: float) -> str:
        """One word why this server gets nothing new, for refusals and explanations; empty when it does."""
        if self.state is not AdminState.READY:
            return "draining" if self.state is AdminState.DRAIN else "in maintenance"
        if self.health is Health.DOWN:
            return "down"
        if self.ejected_until > now:
            return "ejected"
        if not self.weight:
            return "of weight 0"
        return "" if self.endpoints else "unresolved"

    def is_ramping(self, now: float) -> bool:
        return now < self.ramp_from + self.slow_start_s

    def effective_weight(self, now: float) -> float:
        """The weight balancing uses at `now`: grows from a twentieth to the whole over `slow_start_s` after (re)appearing."""
        age = now - self.ramp_from
        if age >= self.slow_start_s:
            return self.weight
        return self.weight * max(age / self.slow_start_s, 0.05)

    def see_latency(self, latency_s: float, outcome: Outcome, now: float) -> None:
        """Peak EWMA: a rise counts at once, a fall is believed slowly (after Finagle's ``PeakEwma``)."""
        if outcome is Outcome.NEUTRAL:
            return
        if outcome is Outcome.FAILED:
            latency_s = max(latency_s, FAILURE_LATENCY_S, self.latency)
        if latency_s >= self.latency:
            self.latency = latency_s
        else:
            keep = exp((self._latency_at - now) / LATENCY_DECAY_S)
            self.latency = self.latency * keep + latency_s * (1.0 - keep)
        self._latency_at = now

    def expected_latency(self, now: float) -> float:
        """The latency to reckon with at `now`; a server not asked for long is slowly forgiven."""
        return self.latency * exp((self._latency_at - now) / LATENCY_DECAY_S)

    def cut(self, error: ProxyError) -> None:
        """Tell every registered session to end now, because of `error`."""
        callbacks = list(self.sessions.values())
        self.sessions.clear()
        for callback in callbacks:
            try:
                callback(error)
            except Exception:
                _log.failure("cutting a session of {server} failed", server=self.address)

    def __repr__(self) -> str:
        return f"<Server {self.address} weight={self.weight} {self.state.value} {self.health.value} active={self.active}>"
