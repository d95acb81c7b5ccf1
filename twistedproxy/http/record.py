"""What is kept of an exchange that is over: its counters, its log line, and what it says about its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twistedproxy.errors import Cause, ClientGone, ConnectFailed, NoRoute, Overloaded, Phase, ProxyError, ResponseTimeout
from twistedproxy.http.stories import SLOW_S
from twistedproxy.pool.server import Outcome

if TYPE_CHECKING:
    from twistedproxy.http.exchange import Exchange


def outcome_of(error: ProxyError | None, status: int) -> Outcome:
    """What an exchange says about its server's health (passive ejection)."""
    if error is None:
        return Outcome.FAILED if status >= 500 else Outcome.OK
    if isinstance(error, ConnectFailed):
        return Outcome.FAILED if error.blames_server else Outcome.NEUTRAL
    return Outcome.FAILED if error.cause is Cause.SERVER or isinstance(error, ResponseTimeout) else Outcome.NEUTRAL


def phase_of(error: ProxyError, exchange: Exchange) -> Phase:
    """How far the exchange had come: errors know their phase, but a client may leave at any."""
    if not isinstance(error, ClientGone):
        return error.phase
    if exchange.head_at >= 0:
        return Phase.TUNNEL if exchange.status == 101 else Phase.RESPONSE
    return Phase.REQUEST if exchange.attempts else Phase.QUEUE


def record(exchange: Exchange, server: str, duration_s: float) -> None:
    """Count and log; `server` is "" when none was reached."""
    front, error, decision = exchange.front, exchange.error, exchange.decision
    site = pool = ""
    if decision is not None:
        destination = decision.destination
        site, pool = destination.site, destination.pool.name
        destination.counts.record(server, exchange.status, duration_s)
    elif isinstance(error, NoRoute | Overloaded):
        site = front.router.site_name(exchange.head.host)
    if error is not None:
        front.metrics.rejected[error.reason] += 1
    if (error is not None or duration_s >= SLOW_S) and front.stories is not None:
        front.stories.keep(exchange, server, duration_s)
    if front.access_log is not None:
        cause, phase = (Cause.OK, None) if error is None else (error.cause, phase_of(error, exchange))
        front.access_log.log_http(
            exchange.client_ip, exchange.head, exchange.status, exchange.bytes_sent, exchange.bytes_received, site, pool, server,
            duration_s, exchange.attempts, cause, phase, exchange.request_id, front.address,
        )  # fmt: skip
