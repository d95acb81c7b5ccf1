"""What the cache scenarios need besides load: URLs nobody asked for before, and proof of who was asked how often."""

from __future__ import annotations

import http.client
import re
import resource
import selectors
import socket
import time
from pathlib import Path

from benchmarks.load import fetch
from benchmarks.peers import Peer

CACHES = ("twistedproxy", "nginx", "varnish", "haproxy")
UNCACHED = "twistedproxy, uncached"
"""Our own proxy under another name: it is sent to a route without a cache that answers alike."""
HERD = 1000

UNIQUE = """
local n = 0
local run = os.time()
function request()
  n = n + 1
  return wrk.format("GET", wrk.path .. run .. "-" .. n)
end
"""
"""For wrk: numbers behind the path that no run had before; two, because Lua writes large ones rounded."""


def asked(origin: Peer) -> int:
    """Requests the origin has had so far, this one included."""
    text = fetch(origin.http_port, "/status").decode()
    return int(re.search(r"\n\s*\d+ \d+ (\d+)", text)[1])  # type: ignore[index]


def check(peer: Peer, origin: Peer) -> dict[str, object]:
    """Requests at the origin for things that are kept, once kept, for different ones, and for one thing that many want at once."""
    found: dict[str, object] = {}
    number = time.time_ns()
    for name, paths in {
        "hits": ["/kept/1k"] * 20,
        "vary": ["/kept/vary/x"] * 20,
        "large": ["/kept/1m"] * 20,
        "unique": [f"/kept/unique/{number + n}" for n in range(20)],
        "unique_again": [f"/kept/unique/{number + n}" for n in range(20)],
    }.items():
        if name in ("hits", "vary", "large"):
            fetch(peer.http_port, paths[0])
        before = asked(origin)
        for path in paths:
            fetch(peer.http_port, path)
        found[name] = asked(origin) - before - 1
    connection = http.client.HTTPConnection("127.0.0.1", peer.http_port, timeout=10)
    connection.request("GET", "/kept/1k")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    found["says"] = "; ".join(f"{name}: {value}" for name in ("Cache-Status", "Age") if (value := answer.getheader(name)))
    before = asked(origin)
    found["herd_whole"] = _herd(peer.http_port, f"/kept/slow/{number}", len(fetch(origin.http_port, "/10k")))
    found["herd"] = asked(origin) - before - 2  # the look at its size, and the counting
    return found


def _herd(port: int, path: str, size: int) -> int:
    """Ask for it over `HERD` connections at once; how many get all of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 20_000)), hard))
    request = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode()
    selector = selectors.DefaultSelector()
    received: dict[socket.socket, bytearray] = {}
    connections = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(HERD)]
    for connection in connections:
        connection.sendall(request)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
        received[connection] = bytearray()
    deadline = time.monotonic() + 30
    while selector.get_map() and time.monotonic() < deadline:
        for key, _ in selector.select(1):
            connection = key.fileobj  # type: ignore[assignment]
            try:
                data = connection.recv(1 << 16)
            except ConnectionError:
                data = b""
            if data:
                received[connection] += data
            else:
                selector.unregister(connection)
    for connection in connections:
        connection.close()
    selector.close()
    whole = 0
    for data in received.values():
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        whole += head.startswith(b"HTTP/1.1 200") and len(body) >= size  # chunks have some bytes around them
    return whole


def unique_script(directory: Path) -> Path:
    script = directory / "unique.lua"
    script.write_text(UNIQUE)
    return script
