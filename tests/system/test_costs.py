"""What one request costs, counted and not timed: instructions of the codec, Python calls, system calls. The budgets are in budgets.py."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import bed
import budgets
import pytest

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, HttpListener, Pool, Route, Server, Site, Timeouts
from twistedproxy.http.connection import FrontConnection
from twistedproxy.http.destination import Destination
from twistedproxy.http.front import HttpFront
from twistedproxy.http.head import CODEC
from twistedproxy.http.routes import Router
from twistedproxy.http.upstream import UpstreamConnection
from twistedproxy.observability.access_log import AccessLog
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool as RunningPool

REQUEST = (
    b"GET /small HTTP/1.1\r\nHost: 127.0.0.1:19010\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: http://www.example.com/products/index.html\r\n"
    b"Cookie: session=8f3a1c9d2b7e4f60a5d8c1b2e3f40516; theme=dark; consent=yes\r\nUpgrade-Insecure-Requests: 1\r\n"
    b"Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 20:22:24 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 100\r\nConnection: keep-alive\r\n\r\n"
)

needs_native = pytest.mark.skipif(CODEC != "native", reason="the native codec is not built: python setup.py build_ext --inplace")


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed, so nobody guards this budget: apt-get install {name}")
    return found


# Instructions

CODEC_DRIVER = f"""
from twistedproxy.http import _head
from twistedproxy.http.messages import Kind
request, response = {REQUEST!r}, {RESPONSE!r}
drop = Kind.TRANSFER_ENCODING | Kind.CONNECTION | Kind.HOP_BY_HOP | Kind.NOMINATED | Kind.INTERNAL | Kind.FORWARDED | Kind.REQUEST_ID
limits = _head.Limits()
tail = b"X-Forwarded-For: 127.0.0.1\\r\\nX-Forwarded-Proto: http\\r\\nX-Request-Id: 0123456789abcdef\\r\\n\\r\\n"
for _ in range(1000):
    head = _head.parse_request(request, limits)
    head.write_h1(None, drop, (), tail)
    head.log_pieces()
    head = _head.parse_response(response)
    head.write_h1(None, drop, (), b"\\r\\n")
"""
C_NAMES = {
    "parse_request": r"_head_\d+parse_request",
    "write_h1 of a request": r"RequestHead_\d+write_h1",
    "log_pieces": r"RequestHead_\d+log_pieces",
    "parse_response": r"_head_\d+parse_response",
    "write_h1 of a response": r"ResponseHead_\d+write_h1",
}


@needs_native
def test_instructions_of_the_codec(tmp_path: Path) -> None:
    """Reading and writing a head costs no more instructions than it did."""
    valgrind, annotate = tool("valgrind"), tool("callgrind_annotate")
    out = tmp_path / "callgrind.out"
    env = {**os.environ, "PYTHONPATH": str(bed.ROOT), "PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1"}
    run = bed.run([valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, "-c", CODEC_DRIVER], within=180, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    table = bed.run([annotate, "--inclusive=yes", "--threshold=100", str(out)]).stdout
    costs = {}
    for what, pattern in C_NAMES.items():
        found = [
            int(line.group(1).replace(",", ""))
            for line in re.finditer(r"^\s*([\d,]+) \([^\n]*?:__pyx_pw_[^\n ]*" + pattern + r"\b", table, re.M)
        ]
        assert found, f"{what} is not in what callgrind saw:\n{table[:3000]}"
        costs[what] = max(found) / 1000
    grown = [
        f"{what} takes {cost:.0f} instructions, {budgets.INSTRUCTIONS[what]} are allowed"
        for what, cost in costs.items()
        if cost > budgets.INSTRUCTIONS[what]
    ]
    assert not grown, "; ".join(grown) + f"; all: {costs}"


# Python calls


class MemoryTransport:
    """A transport that takes everything."""

    peer, peer_port, local, is_plain, buffered, error = "127.0.0.1", 1, ("127.0.0.1", 80), True, 0, None

    def __init__(self) -> None:
        self.written = b""

    def start(self, protocol: object, reading: bool = True) -> None: ...

    def write(self, data: bytes) -> None:
        self.written = data

    def registerProducer(self, producer: object, streaming: bool = True) -> None: ...

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def loseConnection(self) -> None:
        raise AssertionError("the connection was given up")

    abortConnection = linger = loseConnection


class MemoryProxy:
    """A front with one client and two servers, all connections open and nothing behind them."""

    def __init__(self, log: str) -> None:
        wheel = Wheel(time.monotonic)
        servers = (Server(Address("127.0.0.1:1")), Server(Address("127.0.0.1:2"), weight=3))
        spec = Pool("web", servers, max_connections=10000)
        pool = RunningPool(spec, seconds=time.monotonic, wheel=wheel, random=random.Random(1))
        metrics = Metrics()
        router = Router([Site("*", ("*",), (Route("/", "web"),))], lambda site, route: Destination(site, route, pool, metrics))
        listener = HttpListener(Address("127.0.0.1:80"), requests_per_connection=10**9)
        self.log = AccessLog(log)
        none: Any = None
        front = HttpFront(listener, router, reactor=none, wheel=wheel, timeouts=Timeouts(), metrics=metrics, access_log=self.log)
        self.transport: Any = MemoryTransport()
        self.client = FrontConnection(front, self.transport)
        self.client.begin("127.0.0.1", 1, None, b"")
        for server in pool.servers:
            transport: Any = MemoryTransport()
            server.idle.append(UpstreamConnection(transport, server, wheel, spec.keepalive, True))

    def exchange(self) -> None:
        self.client.dataReceived(REQUEST)
        exchange: Any = self.client.exchange
        exchange._upstream.dataReceived(RESPONSE + b"x" * 100)


def called(action: Callable[[], object]) -> Counter[str]:
    """The Python functions that `action` enters, and how often."""
    seen: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen[f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}"] += 1

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    del seen[f"{Path(__file__).stem}.{action.__qualname__}"]
    return seen


def listing(seen: Counter[str]) -> str:
    return "\n".join(f"{count:4} {name}" for name, count in seen.most_common())


@needs_native
def test_python_calls_of_a_request(tmp_path: Path) -> None:
    """A keep-alive request passes through no more functions than it did."""
    proxy = MemoryProxy(str(tmp_path / "access.log"))
    for _ in range(20):
        proxy.exchange()
    assert proxy.transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
    seen = called(proxy.exchange)
    ours = Counter({name: count for name, count in seen.items() if "MemoryTransport" not in name})
    assert 0 < ours.total() <= budgets.PYTHON_CALLS, (
        f"a request enters {ours.total()} Python functions, {budgets.PYTHON_CALLS} are allowed (budgets.py):\n{listing(ours)}"
    )


@needs_native
def test_python_calls_of_a_log_line(tmp_path: Path) -> None:
    """A line of the access log passes through no more functions than it did."""
    proxy = MemoryProxy(str(tmp_path / "access.log"))
    for _ in range(20):
        proxy.exchange()
    proxy.log.flush()
    for _ in range(500):
        proxy.exchange()
    seen = called(proxy.log.flush)
    most = budgets.PYTHON_CALLS_PER_LOG_LINE
    assert seen.total() <= most * 500 + 20, (
        f"a log line enters {seen.total() / 500:.1f} Python functions, {most} are allowed:\n{listing(seen)}"
    )
    assert (tmp_path / "access.log").read_bytes().count(b"\n") == 520


# System calls

GROUPS = {"recvfrom": "recv", "recvmsg": "recv", "read": "recv", "sendto": "send", "sendmsg": "send", "write": "send"}


@pytest.fixture
def traced(proxy: Callable[..., bed.Proxy], nginx_a: bed.Nginx, tmp_path: Path) -> Iterator[Callable[[int], list[str]]]:
    """Sends keep-alive requests through a whole proxy and gives the system calls its worker made meanwhile."""
    strace = tool("strace")
    log = tmp_path / "access.log"
    running = proxy(f'[pools.web]\nservers = ["{nginx_a.address}"]\n[sites."*"]\n"/" = "web"\n[logs]\naccess = {{ file = "{log}" }}\n')
    (pid,) = running.workers().values()
    with socket.create_connection((bed.HOST, running.http_port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def one() -> None:
            client.sendall(REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")

        def trace(count: int) -> list[str]:
            for _ in range(50):
                one()
            out = tmp_path / "strace.out"
            process = subprocess.Popen(
                [strace, "-f", "-yy", "-s", "0", "-o", str(out), "-p", str(pid)],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert process.stderr is not None
                said = process.stderr.readline()
                if "attached" not in said:
                    pytest.skip(f"strace may not look at our own process here, so nobody guards this budget: {said.strip()}")
                for _ in range(count):
                    one()
            finally:
                process.terminate()
                process.communicate(timeout=10)
            return out.read_text(errors="replace").splitlines()

        yield trace


def test_system_calls_of_a_request(traced: Callable[[int], list[str]]) -> None:
    """In the steady state a keep-alive request is two reads, two writes, and no change of what epoll watches."""
    count = 400
    groups: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for line in traced(count):
        match = re.match(r"\d+ +(\w+)\(([^,)]*(?:, EPOLL_CTL_\w+, [^,)]*)?)", line)
        if match is None:
            continue  # the rest of an interrupted call, or an exit
        name, first = match.groups()
        group = GROUPS.get(name, name)
        if group in budgets.SYSTEM_CALLS and "<TCP" in first:
            groups[group] += 1
        else:
            others[name] += 1
    for group, most in budgets.SYSTEM_CALLS.items():
        assert groups[group] == most * count, (
            f"{groups[group] / count:g} {group} calls per request on the sockets of clients and servers, exactly {most} are right"
        )
    total = others.total() / count
    assert total <= budgets.OTHER_SYSTEM_CALLS, (
        f"{total:.2f} other system calls per request, {budgets.OTHER_SYSTEM_CALLS} are allowed (budgets.py): {others.most_common()}"
    )
