"""What becomes of an exchange when both sides agree to switch protocols (WebSocket): two transports, joined."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1
from typing import TYPE_CHECKING

from twistedproxy.config.model import Timeouts
from twistedproxy.errors import ProxyError
from twistedproxy.http.messages import RequestHead, ResponseHead
from twistedproxy.net.relay import Relay

if TYPE_CHECKING:
    from twistedproxy.http.connection import FrontConnection
    from twistedproxy.http.upstream import UpstreamConnection


_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def has_agreed(asked: RequestHead, answer: ResponseHead, upgrade: bytes | None) -> bool:
    """Whether a 101 is the answer to what was asked; for a WebSocket it must also prove it by its key (RFC 6455 4.2.2)."""
    if upgrade is None or answer.upgrade != upgrade:
        return False
    if upgrade != b"websocket":
        return True
    key = asked.get(b"sec-websocket-key") or b""
    proof = b64encode(sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())
    return not key or answer.get(b"sec-websocket-accept") == proof


def tunnel(
    client: FrontConnection, server: UpstreamConnection, early: int, timeouts: Timeouts, on_done: Callable[[ProxyError | None], None]
) -> Relay:
    """Take both connections out of HTTP; the relay returned is not started yet. Bytes are counted by the listener as they pass.

    It will begin with the `early` bytes that the client sent ahead, which the listener has counted as they came.
    """
    counts = client.front.counts
    uncounted = -early

    def count(from_client: int, from_server: int) -> None:
        nonlocal uncounted
        counts.bytes_in += from_client + uncounted
        uncounted = 0
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
