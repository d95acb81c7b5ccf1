"""Ports for servers that the tests start, each given once."""

from __future__ import annotations

import os
import random
import socket

FIRST, LAST = 10_000, 32_000
"""Below those that the kernel gives to outgoing connections (``ip_local_port_range``): one of these could be taken before its server
listens on it."""
_given: set[int] = set()
_random = random.SystemRandom()


def free_port() -> int:
    """A loopback port that nobody listens on, never the same one twice, and never one that the other test processes are given."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = _random.randrange(FIRST // count, LAST // count) * count + number
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
