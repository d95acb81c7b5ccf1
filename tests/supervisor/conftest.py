"""Stub workers on real sockets, for the tests of fleet, processes and supervisor."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from twistedproxy.config.model import Address
from twistedproxy.supervisor.sockets import Sockets, Wanted

STUB = Path(__file__).with_name("stub_worker.py")
LISTENER = Address("127.0.0.1:0")


class Bench:
    """What the tests of this folder share; reached as `self.bench`."""

    LISTENER = LISTENER

    @staticmethod
    def command(slot: int) -> list[str]:
        return [sys.executable, str(STUB), "--slot", str(slot)]

    @staticmethod
    def sockets(slots: int, warn: Callable[[str], None] = print) -> Sockets:
        sockets = Sockets(slots, lambda sock: None, warn)
        problems = sockets.bind([Wanted(LISTENER, "tcp", "tcp")])
        assert not problems, problems
        return sockets

    @staticmethod
    async def until(condition: Callable[[], Any], within_s: float = 15.0, what: str = "") -> Any:
        """The first true value of `condition`; an assertion when it does not come in time."""
        deadline = time.monotonic() + within_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {within_s} s: {what or condition}"
            await deferLater(reactor, 0.01)  # type: ignore[arg-type]
        return value

    @staticmethod
    async def talk(sockets: Sockets, say: bytes = b"") -> tuple[int, int]:
        """(slot, pid) of the worker that accepts a new connection."""
        host, _, port = sockets.addresses[LISTENER].rpartition(":")
        with socket.create_connection((host, int(port)), 5) as client:
            client.setblocking(False)
            deadline = time.monotonic() + 10
            while True:
                try:
                    slot, pid = client.recv(100).split()
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline, "nobody accepted"
                    await deferLater(reactor, 0.005)  # type: ignore[arg-type]
            if say:
                client.sendall(say)
                await deferLater(reactor, 0.05)  # type: ignore[arg-type]
        return int(slot), int(pid)

    @staticmethod
    def is_alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    @staticmethod
    def run(coroutine: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> None:
    request.cls.bench = Bench
