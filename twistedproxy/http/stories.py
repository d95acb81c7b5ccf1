"""What one worker remembers of requests that failed or took long, for ``revproxy why ID``: a ring, so that memory is bounded.

A request that went well costs nothing here. Secrets stay out: of the target only the path is kept, of the fields none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twistedproxy.errors import ClientGone, ProxyError, Refusal

if TYPE_CHECKING:
    from twistedproxy.http.exchange import Exchange

KEPT = 500
SLOW_S = 5.0
"""A request is slow when its response head took this long, queue and retries included."""
MANY_PER_S = 50
"""Refusals (queue full, no server, overload) and clients gone that are remembered; a flood of them would drive out all else."""
_LONGEST = 300
_MOST_SERVERS = 50


class Stories:
    """The last `KEPT` failed or slow requests."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._second = 0.0
        self._refusals = 0

    def keep(self, exchange: Exchange, server: str, duration_s: float) -> None:
        """Remember `exchange`, which is over; `server` is the last one tried."""
        error, decision = exchange.error, exchange.decision
        head_s = exchange.head_at - exchange.started if exchange.head_at >= 0 else None
        if error is None and (exchange.status == 101 or head_s is None or head_s < SLOW_S):
            return  # a long body or tunnel is not slow
        if isinstance(error, Refusal | ClientGone) and self._is_flood(exchange.front.seconds()):
            return
        pool = decision.destination.pool if decision is not None else None
        story = self._story(exchange.request_id, error, exchange.status, duration_s)
        story |= {
            "client": exchange.client_ip,
            "method": exchange.method.decode("latin-1")[:20],
            "path": exchange.head.path.decode("latin-1")[:_LONGEST],
            "host": exchange.head.authority.decode("latin-1"),  # with its port
            "site": decision.site if decision is not None else None,
            "route": decision.route.path if decision is not None else None,
            "pool": pool.name if pool is not None and pool.name else None,
            "server": server or None,
            "head_seconds": None if head_s is None else round(head_s, 6),
            "attempts": exchange.attempt_log(server),
        }
        if server and error is not None:
            story["attempts"][-1]["failed_after_seconds"] = round(duration_s, 6)
        if pool is not None and error is not None:
            now = exchange.front.seconds()
            why = [(s.address, s.why_not(now)) for s in pool.servers[:_MOST_SERVERS]]
            story["skipped"] = [{"server": address, "why": reason} for address, reason in why if reason]
        self._kept.append(story)

    def _is_flood(self, now: float) -> bool:
        if now - self._second >= 1.0:
            self._second = now
            self._refusals = 0
        self._refusals += 1
        return self._refusals > MANY_PER_S

    def refused(self, request_id: bytes, error: ProxyError, client: str) -> None:
        """Remember something that never became a request."""
        self._kept.append(self._story(request_id, error, error.status, 0.0) | {"client": client, "attempts": [], "skipped": []})

    def _story(self, request_id: bytes, error: ProxyError | None, status: int, duration_s: float) -> dict[str, Any]:
        return {
            "id": request_id.decode("latin-1"),
            "at": self._wall(),
            "status": status,
            "kind": "slow" if error is None else "error",
            "cause": None if error is None else error.cause.value,
            "phase": None if error is None else error.phase.value,
            "reason": None if error is None else error.reason,
            "detail": None if error is None else error.detail[:_LONGEST],
            "duration_seconds": round(duration_s, 6),
            "skipped": [],
        }

    def find(self, request_id: str) -> list[dict[str, Any]]:
        """All that is known by this id; a client may have sent it twice."""
        return [story for story in self._kept if story["id"] == request_id]

    def latest(self) -> list[dict[str, Any]]:
        """The newest few, newest first."""
        return [{key: story.get(key) for key in ("id", "at", "status", "reason", "site", "path")} for story in list(self._kept)[-20:][::-1]]
