"""Declarations that several tables of the file share: what a reload does, time-outs, retries."""

from __future__ import annotations

from typing import Annotated, Any

from twistedproxy.config import kinds, values
from twistedproxy.config.kinds import Section, key

LIVE = "live"
"""In force for the next request, connection or check; nothing is closed."""
NEW = "new connections"
"""In force for connections made after the reload; open ones keep the old value."""
RESTART = "restart"
"""Read at start only; a reload that changes it says so."""
ROUTES = "/*"
"""Where a site keeps its routes; no key of the file can have this name, since it would be a route itself."""

Networks = tuple[kinds.Network, ...]


def text_value(value: Any, allowed: str) -> Any:
    """`value`, placeholders and all, when it is text."""
    values.parse_text(value, f"{allowed}, or a table")
    return value


_Seconds = Annotated[float, kinds.duration()]
_Drain = Annotated[float, kinds.duration("0s", "1d")]


class Timeouts(Section):
    """How long to wait for what. Sites, routes and TCP listeners inherit from here and may set their own.

    What counts before a request has a site, or for a whole connection or the whole proxy, comes from here alone: `request_head`,
    `keepalive`, `preread`, `drain_http`, `drain_tcp`, and `write_stall` towards HTTP clients.
    `check`, start and reload warn of a key that has no effect where it stands.
    """

    connect: _Seconds = key("3s", "A connection to a server is made.", reload=NEW)
    tls_handshake: _Seconds = key("10s", "A TLS handshake is complete.", reload=NEW)
    request_head: _Seconds = key("10s", "A request head is complete, from its first byte; then 408.", reload=NEW)
    body_idle: _Seconds = key("30s", "Silence within a request body; then 408.", reload=NEW)
    request: _Seconds = key("90s", "From a complete request head to the response head, queue and retries included; then 504.", reload=NEW)
    response_head: _Seconds = key("60s", "From a sent request to the response head; then 504.", reload=NEW)
    response_idle: _Seconds = key("60s", "Silence within a response body; then the connection is cut.", reload=NEW)
    write_stall: _Seconds = key("30s", "The peer takes no byte; then the connection is cut.", reload=NEW)
    keepalive: _Seconds = key("60s", "An idle client connection between two requests.", reload=NEW)
    tcp_idle: _Seconds = key("1h", "A TCP session without a byte in either direction.", reload=NEW)
    websocket_idle: _Seconds = key("10m", "A WebSocket or other tunnel without a byte in either direction.", reload=NEW)
    half_closed: _Seconds = key("60s", "A TCP session of which one direction is closed, without a byte in the other.", reload=NEW)
    preread: _Seconds = key("3s", "A PROXY header, a ClientHello, or what a PostgreSQL client begins with is complete.", reload=NEW)
    drain_http: _Drain = key("30s", "Requests in flight may finish when the proxy stops or their server is removed.", reload=LIVE)
    drain_tcp: _Drain = key("300s", "The same for TCP sessions and tunnels.", reload=LIVE)


class Retry(Section):
    """Further attempts on other servers, made only where repeating does no harm."""

    tries: Annotated[int, kinds.integer(0, 10)] = key(2, "Extra attempts for one request; 0: none.", reload=LIVE)
    on: tuple[Annotated[str, kinds.choice("connect", "reused", "closed", "429", "502", "503", "504", "timeout")], ...] = key(
        ["connect", "reused"],
        "What is tried again. `connect`: nothing was sent; `reused`: an idle connection had been closed, once; `closed`: a fresh one was"
        " closed without an answer. All but `connect` only for idempotent requests. A `Retry-After` of up to 5 s is waited for; a longer"
        " one, and a request that carries `X-Retry-Attempt`, is not tried again for the rest.",
        reload=LIVE,
        max_length=16,
    )
    budget: kinds.Percent = key(
        "20%",
        "Share of the pool's active requests that may be retries, never less than 3; `connect` and `reused`, which no server worked for,"
        " are not counted.",
        reload=LIVE,
    )
