"""AD-04 and AD-05: whoever floods the admin side troubles neither the traffic nor the machine, and operators get in again at once."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import bed
import psutil

KNOCKERS = 4
BODIES = 40
MEASURED_S = 2.0
NOTICED_S = 0.1
"""A 99th percentile above this, and above three times the one in peace, is noticed."""


def p99(proxy: bed.Proxy) -> float:
    """Seconds that 99 of 100 proxied requests stay below, one after the other on a kept connection."""
    connection = http.client.HTTPConnection(bed.HOST, proxy.http_port, timeout=10)
    taken: list[float] = []
    ends = time.monotonic() + MEASURED_S
    while time.monotonic() < ends:
        began = time.perf_counter()
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.read() == b"a\n"
        assert answer.status == 200
        taken.append(time.perf_counter() - began)
    connection.close()
    return sorted(taken)[int(len(taken) * 0.99)]


@contextmanager
def flood(port: int) -> Iterator[list[int]]:
    """Connections without end, some silent, some dawdling over a head, some sending large bodies; yields [connections, answers]."""
    stop, seen = threading.Event(), [0, 0]

    def knock() -> None:
        kept: list[socket.socket] = []
        while not stop.is_set():
            try:
                s = socket.create_connection((bed.HOST, port), timeout=1)
                s.settimeout(0.2)
                s.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: " if len(kept) % 2 else b"")
                kept.append(s)
                seen[0] += 1
            except OSError:
                pass  # the kernel's queue is full: what a flood makes of it
            if len(kept) > 300:
                kept.pop(0).close()
            time.sleep(0.002)
        for s in kept:
            s.close()

    def pour(head: bytes, piece: bytes) -> None:
        while not stop.is_set():
            try:
                with socket.create_connection((bed.HOST, port), timeout=2) as s:
                    s.sendall(head)
                    for _ in range(64):
                        s.sendall(piece)
                        if stop.wait(0.02):
                            return
            except OSError:
                seen[1] += 1  # refused early and closed: as it should be
                time.sleep(0.05)

    start = b"POST /api/v1/pools/web/servers HTTP/1.1\r\nHost: localhost\r\n"
    huge = start + b"Content-Type: application/json\r\nContent-Length: 5368709120\r\n\r\n"
    form = start + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 5368709120\r\n\r\n"
    parts = start + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 5368709120\r\n\r\n--x\r\n"
    chunked = start + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [(huge, bytes(65536)), (form, b"a=" + b"b" * 65534), (parts, b"x" * 65536), (chunked, b"10000\r\n" + bytes(65536) + b"\r\n")]
    threads = [threading.Thread(target=knock, daemon=True) for _ in range(KNOCKERS)]
    threads += [threading.Thread(target=pour, args=pieces[n % 4], daemon=True) for n in range(BODIES)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def test_ad_05_traffic_does_not_notice_a_flood_of_the_admin_side(proxy, nginx_a) -> None:
    """Connections without end, slow heads and 5 GB bodies at the admin port: traffic flows, memory stays, no file is written."""
    made = proxy(f'[pools.web]\nservers = ["{nginx_a.address}"]\n[sites."*"]\n"/" = "web"\n')
    supervisor = psutil.Process(made.pid)
    p99(made)
    peace = p99(made)
    before_mb, before_files = supervisor.memory_info().rss >> 20, open_files(made.pid)
    with ExitStack() as stack:
        seen = stack.enter_context(flood(made.admin_port))
        bed.wait_until(lambda: seen[0] > 300 and seen[1] > 50, "the flood to rise")
        war = p99(made)
        during_mb, during_files = supervisor.memory_info().rss >> 20, open_files(made.pid)
        code, body = local_status(made)
        assert code == 200 and body, "the unix socket has connections of its own"
    assert war < max(NOTICED_S, 3 * peace), f"p99 {peace * 1000:.1f} ms in peace, {war * 1000:.1f} ms under the flood"
    assert during_mb - before_mb < 40, f"{before_mb} MB before, {during_mb} MB under the flood"
    assert during_files - before_files <= 64 + 8, f"{before_files} files open before, {during_files} under the flood"
    began = time.monotonic()
    made.wait_for(lambda: answers(made), "the admin port to answer again", 5)
    assert time.monotonic() - began < 5
    assert not list(Path("/tmp").glob("TwistedWeb*")) and not [f for f in supervisor.open_files() if f.path.startswith("/tmp/tmp")]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def answers(proxy: bed.Proxy) -> bool:
    try:
        return proxy.ask("GET", "/api/v1/status")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def local_status(proxy: bed.Proxy) -> tuple[int, bytes]:
    """The status over the unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    connection.sock.connect(str(proxy.state / "admin.sock"))
    connection.request("GET", "/api/v1/status")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body
