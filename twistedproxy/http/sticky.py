"""What a cookie calls a server, so that a client comes back to it."""

from __future__ import annotations

import functools
from base64 import b32encode
from hashlib import blake2b

from twistedproxy.pool.pool import Pool
from twistedproxy.pool.server import Server


@functools.lru_cache(maxsize=4096)
def server_token(pool: str, address: str) -> str:
    """The same in all workers and after restarts, and not the address."""
    return b32encode(blake2b(f"{pool} {address}".encode(), digest_size=10, person=b"revproxy sticky").digest()).decode().lower()


def server_behind(pool: Pool, token: bytes | None) -> Server | None:
    """The server a cookie names; None when there is no such server any more."""
    if not token:
        return None
    wanted = token.decode("latin-1")
    return next((server for server in pool.servers if server_token(pool.name, server.address) == wanted), None)
