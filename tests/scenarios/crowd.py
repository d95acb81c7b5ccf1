"""Many clients at once, in this process: requests at a steady rate, whatever becomes of them, each answer checked against its request."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass
class Outcome:
    """What became of the requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: dict[int, list[float]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """Connections that failed while an answer was owed."""
    wrong: list[str] = field(default_factory=list)
    """Answers that are not those of their requests, and 503 without Retry-After."""
    by_second: Counter[int] = field(default_factory=Counter)
    """200s, by the second they came in."""

    def p(self, status: int, share: float) -> float:
        values = sorted(self.latencies.get(status, [0.0]))
        return values[min(int(len(values) * share), len(values) - 1)]


class Crowd:
    """Requests at `rate` a second over kept connections; a new one is opened whenever none is idle."""

    def __init__(self, port: int, path: str, rate: float, seconds: float) -> None:
        self.port = port
        self.path = path
        self.rate = rate
        self.seconds = seconds
        self.outcome = Outcome()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._serial = 0

    async def run(self) -> Outcome:
        began = time.monotonic()
        tasks = set()
        sent = 0
        while (elapsed := time.monotonic() - began) < self.seconds:
            while sent < elapsed * self.rate:
                sent += 1
                task = asyncio.create_task(self._one(int(elapsed)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()
        return self.outcome

    async def _one(self, second: int) -> None:
        self._serial += 1
        name = f"r{self._serial}"
        began = time.monotonic()
        try:
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(f"GET {self.path} HTTP/1.1\r\nHost: example.com\r\nX-Id: {name}\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            length = _LENGTH.search(head)
            body = await reader.readexactly(int(length[1]) if length else 0)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as e:
            self.outcome.broken.append(f"{name}: {type(e).__name__} {e}")
            return
        status = int(head[9:12])
        self.outcome.statuses[status] += 1
        self.outcome.latencies.setdefault(status, []).append(time.monotonic() - began)
        if status == 200:
            self.outcome.by_second[second] += 1
            if body != name.encode() or f"X-Id: {name}\r\n".encode() not in head:
                self.outcome.wrong.append(f"{name}: {head!r} {body[:100]!r}")
        elif status == 503 and b"\r\nRetry-After: " not in head:
            self.outcome.wrong.append(f"{name}: no Retry-After: {head!r}")
        if b"\r\nConnection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
