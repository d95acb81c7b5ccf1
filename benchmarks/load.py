"""Load generators: wrk for throughput, h2load at a fixed rate for latency, pgbench for a database, plain sockets for idle connections."""

from __future__ import annotations

import http.client
import re
import resource
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

BROWSER_FIELDS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "http://www.example.com/products/index.html",
    "Cookie": "session=8f3a1c9d2b7e4f60a5d8c1b2e3f40516; theme=dark; consent=yes",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
}
"""Ten fields; with Host, eleven."""


@dataclass(frozen=True)
class Answered:
    """What a run of load achieved."""

    count: int
    errors: int
    per_second: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    bytes_each: float = 0.0
    """Of an answer, head included, as far as the generator tells."""


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}[unit]


def _bytes(found: re.Match[str] | None) -> float:
    return 0.0 if found is None else float(found[1]) * 1024 ** "BKMGT".index(found[2][0])


def wrk(url: str, seconds: float, connections: int, fields: dict[str, str], script: Path | None = None) -> Answered:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "5s"]
    for name, value in fields.items():
        command += ["-H", f"{name}: {value}"]
    if script:
        command += ["-s", str(script)]
    out = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    errors = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", out)))
    for kinds in re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out):
        errors += sum(map(int, kinds))
    percentiles = dict(re.findall(r"^\s+(50|99)%\s+(\S+)$", out, re.M))
    return Answered(
        int(re.search(r"(\d+) requests in", out)[1]),  # type: ignore[index]
        errors,
        float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]),  # type: ignore[index]
        _ms(percentiles["50"]),
        _ms(percentiles["99"]),
        _bytes(re.search(r"requests in .*?, ([\d.]+)(\w+) read", out)) / max(int(re.search(r"(\d+) requests in", out)[1]), 1),  # type: ignore[index]
    )


def fixed_rate(url: str, seconds: int, per_second: int, log: Path) -> Answered:
    """`per_second` requests over 20 connections, whatever the answers take (no coordinated omission at this rate)."""
    log.unlink(missing_ok=True)
    clients = 20
    command = ["h2load", "--h1", f"-c{clients}", f"--rps={per_second // clients}", f"-D{seconds}", f"--log-file={log}", url]
    subprocess.run(command, capture_output=True, check=True, timeout=seconds + 60)
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    times = sorted(int(row[2]) / 1000 for row in rows if row[1] == "200")
    if not times:
        return Answered(0, len(rows), 0.0)
    return Answered(
        len(times), len(rows) - len(times), len(times) / seconds, times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
    )


def pgbench(port: int, seconds: int) -> Answered:
    command = ["pgbench", "-S", "-n", "-M", "prepared", "-c4", "-j1", f"-T{seconds}", "-h127.0.0.1", f"-p{port}", "-Upostgres", "postgres"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    count = int(re.search(r"number of transactions actually processed: (\d+)", done.stdout)[1])  # type: ignore[index]
    failed = int(re.search(r"number of failed transactions: (\d+)", done.stdout)[1])  # type: ignore[index]
    latency = float(re.search(r"latency average = ([\d.]+) ms", done.stdout)[1])  # type: ignore[index]
    return Answered(count, failed, count / seconds, latency)


def open_idle(port: int, count: int) -> list[socket.socket]:
    """Keep-alive connections that have had one answer each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 20_000)), hard))
    request = b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connections = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), 10)
        connection.sendall(request)
        connection.recv(4096)
        connections.append(connection)
    return connections


def fetch(port: int, path: str) -> bytes:
    """The body of one GET, to see that all peers give equal answers."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
        data = b""
        while piece := connection.recv(1 << 20):
            data += piece
    return data.partition(b"\r\n\r\n")[2]


def fetch_packed(port: int, path: str) -> bytes:
    """The same of an answer that must come compressed by gzip: its body, compressed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        return answer.read() if answer.getheader("Content-Encoding") == "gzip" else b""
    finally:
        connection.close()
