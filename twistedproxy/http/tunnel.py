"""What becomes of an exchange when both sides agree to switch protocols (WebSocket): two transports, joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twistedproxy.config.model import Timeouts
from twistedproxy.errors import ProxyError
from twistedproxy.net.relay import Relay

if TYPE_CHECKING:
    from twistedproxy.http.connection import FrontConnection
    from twistedproxy.http.upstream import UpstreamConnection


def tunnel(
    client: FrontConnection, server: UpstreamConnection, timeouts: Timeouts, on_done: Callable[[ProxyError | None], None]
) -> Relay:
    """Take both connections out of HTTP; the relay returned is not started yet. Bytes are counted by the listener as they pass."""
    counts = client.front.counts

    def count(from_client: int, from_server: int) -> None:
        counts.bytes_in += from_client
        counts.bytes_out += from_server

    return Relay(
        client.detach(),
        server.detach(),
        client.front.wheel,
        idle_s=timeouts.websocket_idle_s,
        half_closed_s=timeouts.half_closed_s,
        on_done=on_done,
        on_bytes=count,
    )
