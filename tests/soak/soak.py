"""Mixed traffic against a whole proxy while servers are killed, hung and replaced, clients vanish and admin changes things at random.

``python tests/soak/soak.py --seconds 600 [--seed N]`` prints its seed, then what happened. Afterwards nothing may be left: descriptors,
leases, connections and memory are back at the baseline, no traceback in the log, the same workers, and every answer that came was the
answer of its request. The seed gives the same choices again; how they interleave is the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
for _folder in (HERE.parent / "system", HERE.parent / "scenarios"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

import bed  # noqa: E402 - from tests/system

CLIENTS = 24
WORKERS = 2
CONFIG = """
[timeouts]
connect = "1s"
response_head = "2s"
response_idle = "2s"
write_stall = "2s"
body_idle = "2s"
request_head = "2s"
keepalive = "2s"
tcp_idle = "5s"
half_closed = "1s"
[pools.web]
servers = SERVERS
max_connections = 20
queue = { size = 64, timeout = "1s" }
eject = { errors = 5, within = "5s", for = "1s" }
keepalive = { idle = "2s" }
health = { http = "GET /health", every = "300ms", timeout = "200ms", fall = 2, rise = 1 }
[pools.tcp]
servers = SERVERS
balance = "least_conn"
[sites."*"]
"/" = "web"
[tcp."127.0.0.1:TCPPORT"]
pool = "tcp"
"""
FAULTS = ("reset", "half", "hang", "garbage", "close")


@dataclass
class Report:
    """What happened, and what is wrong."""

    seed: int
    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"soak of {self.seconds:g} s, seed {self.seed}"]
        lines += [f"  traffic: {', '.join(f'{n} {what}' for what, n in self.outcomes.most_common())}"]
        lines += [f"  faults:  {', '.join(f'{n} {what}' for what, n in self.events.most_common())}"]
        lines += [f"  {name}: {value}" for name, value in self.figures.items()]
        lines += [f"  WRONG: {what}" for what in self.wrong[:20]] or ["  nothing is wrong"]
        return "\n".join(lines)


class Origin(bed.Part):
    """`origin.py` in a process of its own, which can be killed, stopped and begun again."""

    def __init__(self) -> None:
        super().__init__()
        self.port = bed.free_port()
        self.address = f"{bed.HOST}:{self.port}"
        self.begin()
        self.wait_for(lambda: bed.accepts(self.port), "an origin to listen")

    def begin(self) -> None:
        self.launch([sys.executable, str(HERE.parent / "scenarios" / "origin.py"), str(self.port)])

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()


class Soak:
    """One run."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds = seconds
        self.random = random.Random(seed)
        self.report = Report(seed, seconds)
        self.origins = [Origin() for _ in range(3)]
        self.spare = Origin()
        self.tcp_port = bed.free_port()
        servers = json.dumps([origin.address for origin in self.origins])
        config = CONFIG.replace("SERVERS", servers).replace("TCPPORT", str(self.tcp_port))
        self.proxy = bed.Proxy(config, workers=WORKERS)
        self.serial = 0
        self.until = 0.0

    def close(self) -> None:
        for part in (self.proxy, *self.origins, self.spare):
            part.close()

    async def run(self) -> Report:
        proxy = self.proxy
        await asyncio.to_thread(proxy.wait_healthy, "web")
        await asyncio.to_thread(bed.wait_until, lambda: len(proxy.workers()) == WORKERS, "all workers to serve")
        workers = proxy.workers()
        await self._traffic(min(3.0, self.seconds / 4), with_chaos=False)  # what an allocator and caches keep belongs to the baseline
        await asyncio.to_thread(self._settle)
        fds, rss = self._weigh(workers)
        await self._traffic(self.seconds, with_chaos=True)
        await asyncio.to_thread(self._settle)
        await asyncio.to_thread(self._judge, workers, fds, rss)
        return self.report

    # Traffic

    async def _traffic(self, seconds: float, with_chaos: bool) -> None:
        self.until = time.monotonic() + seconds
        seeds = [self.random.random() for _ in range(CLIENTS)]
        tasks = [asyncio.create_task(self._client(random.Random(seed), with_chaos)) for seed in seeds]
        if with_chaos:
            tasks.append(asyncio.create_task(self._chaos(random.Random(self.random.random()))))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                self.report.wrong.append(f"a client of the test itself failed: {result!r}")

    async def _client(self, rng: random.Random, with_faults: bool) -> None:
        good: list[Callable[[random.Random], Awaitable[None]]] = [self._requests] * 8 + [self._big, self._tcp, self._tcp]
        bad = [self._server_fault, self._vanish, self._malformed, self._half_head]
        while time.monotonic() < self.until:
            what = rng.choice(good + bad if with_faults else good)
            try:
                await asyncio.wait_for(what(rng), 20)
            except TimeoutError:
                self.report.wrong.append(f"{what.__name__} heard nothing for 20 s")
            except (OSError, asyncio.IncompleteReadError):
                self.report.outcomes["broken connections"] += 1
            await asyncio.sleep(rng.random() * 0.02)

    def _name(self) -> str:
        self.serial += 1
        return f"id-{self.serial}"

    async def _open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(bed.HOST, port)

    async def _requests(self, rng: random.Random) -> None:
        """Several requests on one connection, some of them pipelined."""
        reader, writer = await self._open(self.proxy.http_port)
        try:
            for _ in range(rng.randint(1, 8)):
                batch = []
                for _ in range(rng.choice((1, 1, 1, 3))):
                    name = self._name()
                    body = rng.randbytes(rng.choice((10, 3000, 200_000))) if rng.random() < 0.3 else b""
                    path = rng.choice(("/echo", "/chunked", f"/slow/{rng.randint(1, 50)}"))
                    text = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: a\r\nX-Id: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
                    writer.write(text.encode() + body)
                    batch.append((name, b"" if path.startswith("/slow") else body))
                await writer.drain()
                for name, body in batch:
                    if not await self._answer(reader, name, body or name.encode()):
                        return
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, name: str, expected: bytes | None) -> bool:
        """Read one answer and hold it against its request; whether the connection may be used again."""
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        if fields.get(b"transfer-encoding") == b"chunked":
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
        else:
            body = await reader.readexactly(int(fields.get(b"content-length", 0)))
        status = int(head[9:12])
        self.report.outcomes[str(status)] += 1
        if status == 200:
            if fields.get(b"x-id") != name.encode() or (expected is not None and body != expected):
                self.report.wrong.append(f"{name} got the answer {head!r} {body[:60]!r}")
        elif status not in (502, 503, 504):
            self.report.wrong.append(f"{name} got {head!r}")
        elif status == 503 and b"retry-after" not in fields:
            self.report.wrong.append(f"{name} got a 503 without Retry-After: {head!r}")
        return fields.get(b"connection") != b"close"

    async def _big(self, rng: random.Random) -> None:
        reader, writer = await self._open(self.proxy.http_port)
        try:
            name, size = self._name(), rng.randint(100_000, 3_000_000)
            writer.write(f"GET /big/{size} HTTP/1.1\r\nHost: a\r\nX-Id: {name}\r\n\r\n".encode())
            await self._answer(reader, name, None)
        finally:
            writer.close()

    async def _tcp(self, rng: random.Random) -> None:
        reader, writer = await self._open(self.tcp_port)
        try:
            for _ in range(rng.randint(1, 4)):
                name = self._name()
                writer.write(f"GET /echo HTTP/1.1\r\nX-Id: {name}\r\n\r\n".encode())
                if not await self._answer(reader, name, name.encode()):
                    break
            if rng.random() < 0.5:
                writer.write_eof()
                await reader.read()
            self.report.outcomes["TCP sessions"] += 1
        finally:
            writer.close()

    # Faults

    async def _server_fault(self, rng: random.Random) -> None:
        what = rng.choice(FAULTS)
        self.report.events[f"server: {what}"] += 1
        reader, writer = await self._open(self.proxy.http_port)
        try:
            name = self._name()
            writer.write(f"{rng.choice(('GET', 'POST'))} /{what} HTTP/1.1\r\nHost: a\r\nX-Id: {name}\r\nContent-Length: 0\r\n\r\n".encode())
            # A 200 to any other than these two would be half an answer passed off as a whole one.
            await self._answer(reader, name, name.encode() if what == "close" else b"never")
        finally:
            writer.close()

    async def _vanish(self, rng: random.Random) -> None:
        """Leave at any moment: in the head, in the body, waiting, in the middle of the answer; with FIN or RST."""
        self.report.events["client vanishes"] += 1
        sock = socket.create_connection((bed.HOST, rng.choice((self.proxy.http_port, self.tcp_port))), timeout=5)
        try:
            text = rng.choice((b"GET /big/5000000 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /slow/300 HTTP/1.1\r\nHost: a\r\n\r\n",
                               b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 5000))  # fmt: skip
            sock.sendall(text[: rng.randint(1, len(text))] if rng.random() < 0.5 else text)
            await asyncio.sleep(rng.random() * 0.1)
            if rng.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            sock.close()

    async def _malformed(self, rng: random.Random) -> None:
        self.report.events["malformed request"] += 1
        reader, writer = await self._open(self.proxy.http_port)
        try:
            writer.write(
                rng.choice((
                    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                    b"GET /a HTTP/1.1\nHost: a\r\n\r\n",
                    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"\0" * 100,
                ))
            )  # fmt: skip
            head = await reader.readuntil(b"\r\n\r\n")
            self.report.outcomes[head[9:12].decode()] += 1
            if not head.startswith(b"HTTP/1.1 400 "):
                self.report.wrong.append(f"a malformed request got {head!r}")
        finally:
            writer.close()

    async def _half_head(self, rng: random.Random) -> None:
        self.report.events["head never finished"] += 1
        reader, writer = await self._open(self.proxy.http_port)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: ")
            await reader.read()
        finally:
            writer.close()

    async def _chaos(self, rng: random.Random) -> None:
        """Servers and configuration."""
        while time.monotonic() < self.until - 1:
            what = rng.choice((self._kill, self._hang, self._weight, self._state, self._replace, self._reload))
            self.report.events[what.__name__.strip("_")] += 1
            await what(rng)
            await asyncio.sleep(0.1 + rng.random() * 0.6)

    async def _kill(self, rng: random.Random) -> None:
        origin = rng.choice(self.origins)
        origin.kill()
        await asyncio.sleep(rng.random())
        origin.begin()

    async def _hang(self, rng: random.Random) -> None:
        origin = rng.choice(self.origins)
        os.kill(origin.pid, signal.SIGSTOP)
        await asyncio.sleep(0.2 + rng.random() * 1.5)
        os.kill(origin.pid, signal.SIGCONT)

    async def _weight(self, rng: random.Random) -> None:
        await self._admin("PATCH", f"/api/v1/pools/web/servers/{rng.choice(self.origins).address}", {"weight": rng.randint(0, 5)})

    async def _state(self, rng: random.Random) -> None:
        address = rng.choice(self.origins).address
        await self._admin("PATCH", f"/api/v1/pools/web/servers/{address}", {"state": rng.choice(("drain", "maint"))})
        await asyncio.sleep(rng.random() * 0.5)
        await self._admin("PATCH", f"/api/v1/pools/web/servers/{address}", {"state": "ready"})

    async def _replace(self, rng: random.Random) -> None:
        await self._admin("POST", "/api/v1/pools/web/servers", {"address": self.spare.address})
        await asyncio.sleep(rng.random())
        await self._admin("DELETE", f"/api/v1/pools/web/servers/{self.spare.address}{rng.choice(('', '?now=1'))}")

    async def _reload(self, rng: random.Random) -> None:
        await self._admin("POST", "/api/v1/config/reload", {})

    async def _admin(self, method: str, path: str, body: object = None) -> None:
        status, answer = await asyncio.to_thread(self.proxy.ask, method, path, body)
        if status not in (200, 404, 409):
            self.report.wrong.append(f"{method} {path}: {status} {answer}")

    # Afterwards

    def _settle(self) -> None:
        """Everybody is back and ready, nobody does anything: wait until the proxy is at rest."""
        for origin in self.origins:
            self.proxy.ask("PATCH", f"/api/v1/pools/web/servers/{origin.address}", {"state": "ready", "weight": None})
        try:
            bed.wait_until(lambda: sum(self._connections().values()) == 0, "all client connections and leases to be gone", 15)
        except BaseException:
            self.report.wrong.append(f"still open 15 s after the last client left: {self._connections()}")

    def _connections(self) -> dict[str, int]:
        text = self.proxy.ask("GET", "/metrics")[1].decode()
        wanted = ("revproxy_connections{", "revproxy_server_connections{")
        rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith(wanted))
        return {name: int(float(value)) for name, _, value in rows if float(value)}

    def _weigh(self, workers: dict[int, int]) -> tuple[dict[int, int], dict[int, int]]:
        """Descriptors (at rest: idle connections to servers have ended) and resident KiB of each worker."""
        bed.wait_until(lambda: self._is_steady(workers), "the descriptors of the workers to be steady", 10)
        rss = {}
        for pid in workers.values():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            rss[pid] = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:"))
        return self._descriptors(workers), rss

    def _descriptors(self, workers: dict[int, int]) -> dict[int, int]:
        """Pipes are kept for reuse, at most sixteen; they do not count."""
        found = {}
        for pid in workers.values():
            links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
            found[pid] = sum(not link.startswith("pipe:") for link in links)
        return found

    def _is_steady(self, workers: dict[int, int]) -> bool:
        before = self._descriptors(workers)
        time.sleep(2.2)
        return before == self._descriptors(workers)

    def _judge(self, workers: dict[int, int], fds: dict[int, int], rss: dict[int, int]) -> None:
        report, now = self.report, self.proxy.workers()
        if now != workers:
            report.wrong.append(f"workers were replaced: {workers} became {now}; {self.proxy.log[-3000:]}")
            return
        fds_now, rss_now = self._weigh(workers)
        report.figures["descriptors"] = f"{sorted(fds.values())} before, {sorted(fds_now.values())} after"
        report.figures["resident KiB"] = f"{sorted(rss.values())} before, {sorted(rss_now.values())} after"
        for pid in workers.values():
            if fds_now[pid] > fds[pid]:
                report.wrong.append(f"worker {pid} holds {fds_now[pid] - fds[pid]} descriptors more than before")
            if rss_now[pid] > rss[pid] * 1.15 + 6144:
                report.wrong.append(f"worker {pid} grew from {rss[pid]} to {rss_now[pid]} KiB")
        for mark in ("Traceback", "Unhandled"):
            if mark in self.proxy.log:
                at = self.proxy.log.index(mark)
                report.wrong.append(f"the log holds a {mark}: {self.proxy.log[at - 300 : at + 2500]}")
        if not report.outcomes["200"]:
            report.wrong.append("not one request was answered")


def run(seconds: float, seed: int) -> Report:
    soak = Soak(seconds, seed)
    try:
        return asyncio.run(soak.run())
    finally:
        soak.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}: replay with --seed {seed}", flush=True)
    report = run(arguments.seconds, seed)
    print(report)
    raise SystemExit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
