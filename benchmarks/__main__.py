"""Measure: `python -m benchmarks [--quick] [--only NAME …]`. Writes results/TIME.{json,md,svg} and prints the table."""

from __future__ import annotations

import argparse
import copy
import gzip
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import caches, database, handshakes, load, machine, report
from benchmarks.caches import CACHES, UNCACHED
from benchmarks.handshakes import NAMES
from benchmarks.load import BROWSER_FIELDS, Answered
from benchmarks.peers import PEERS, Origin, Peer

TOO_NOISY = 0.05
"""A round in which more than this share of the CPU was stolen is repeated, at most twice."""
MOST_REPEATED_S = 240.0
"""All repetitions of a run take no longer than that together: then noisy rounds stay as they are, and the table says so."""
FAILURES = (OSError, RuntimeError, ValueError, TypeError, LookupError, subprocess.SubprocessError)
"""What a peer, a load generator or what it prints may do: said in the table, and the run goes on."""
Load = Callable[[Peer, float], Answered]


@dataclass(frozen=True)
class Scenario:
    """One sort of traffic, sent to every peer that can take it."""

    name: str
    title: str
    load: Load
    peers: tuple[str, ...]
    seconds: float = 3.0


@dataclass
class Round:
    peer: str
    cpu_us: float
    """CPU microseconds of the whole family per answer."""
    user_us: float
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    steal: float
    bytes_each: float = 0.0
    """Of an answer, head included; 0: not known."""
    asked_each: float = 0.0
    """Requests at the origin per answer: nearly none for what a cache gives."""


@dataclass
class Result:
    scenario: str
    title: str
    rounds: list[Round] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Peers that could not be measured to the end, with why."""

    def of(self, peer: str) -> list[Round]:
        return [r for r in self.rounds if r.peer == peer]


HTTP = ("twistedproxy", "nginx", "haproxy", "envoy", "caddy")
TCP = ("twistedproxy", "nginx", "haproxy", "envoy")
TLS = ("twistedproxy", "nginx", "haproxy", "caddy")
HOST = {"Host": NAMES[0]}


def _get(path: str, connections: int = 64, fields: dict[str, str] | None = None, is_tcp: bool = False) -> Load:
    def run(peer: Peer, seconds: float) -> Answered:
        port = peer.tcp_port if is_tcp else peer.http_port
        return load.wrk(f"http://127.0.0.1:{port}{path}", seconds, connections, fields or {})

    return run


def _get_unique(script: Path) -> Load:
    def run(peer: Peer, seconds: float) -> Answered:
        path = "/unique/" if peer.name == UNCACHED else "/kept/unique/"
        return load.wrk(f"http://127.0.0.1:{peer.http_port}{path}", seconds, 64, BROWSER_FIELDS, script)

    return run


def _get_tls(path: str, connections: int = 64, fields: dict[str, str] | None = None) -> Load:
    return lambda peer, seconds: load.wrk(f"https://127.0.0.1:{peer.tls_port}{path}", seconds, connections, fields or {})


def _handshakes(name: str, is_resumed: bool = False) -> Load:
    return lambda peer, seconds: handshakes.load(peer.tls_port, name, seconds, is_resumed)


def _post(script: Path) -> Load:
    return lambda peer, seconds: load.wrk(f"http://127.0.0.1:{peer.http_port}/small", seconds, 64, BROWSER_FIELDS, script)


def _fixed_rate(log: Path) -> Load:
    return lambda peer, seconds: load.fixed_rate(f"http://127.0.0.1:{peer.http_port}/small", int(seconds), 2000, log)


def scenarios(directory: Path) -> list[Scenario]:
    script = directory / "post.lua"
    script.write_text('wrk.method = "POST"\nwrk.body = string.rep("x", 10000)\n')
    return [
        Scenario("bare", "small GET, bare", _get("/small"), (*HTTP, "twisted.web.proxy")),
        Scenario(
            "browser", "small GET, 11 fields", _get("/small", fields=BROWSER_FIELDS), (*HTTP, "twistedproxy-pure", "twisted.web.proxy")
        ),
        Scenario("post", "POST 10 kB", _post(script), HTTP),
        Scenario("10k", "10 kB answers", _get("/10k"), HTTP),
        Scenario("1m", "1 MB answers", _get("/1m", 8), HTTP),
        Scenario("gzip", "100 kB of HTML, gzip", _get("/text/100k.html", 16, {"Accept-Encoding": "gzip"}), ("twistedproxy", "nginx")),
        Scenario("cache-hit", "cache hit, 1 kB, 11 fields", _get("/kept/1k", fields=BROWSER_FIELDS), CACHES),
        Scenario(
            "cache-vary", "cache hit, 1 kB, Vary: Accept-Encoding", _get("/kept/vary/x", fields=BROWSER_FIELDS), ("twistedproxy", "nginx")
        ),
        Scenario("cache-1m", "cache hit, 1 MB", _get("/kept/1m", 8, BROWSER_FIELDS), CACHES),
        Scenario(
            "cache-miss",
            "cache miss, 1 kB, to be kept",
            _get_unique(caches.unique_script(directory)),
            ("twistedproxy", UNCACHED, "nginx", "varnish"),
        ),
        Scenario("connect", "new connection per request", _get("/small", fields={"Connection": "close"}), HTTP),
        Scenario("l4", "L4, small exchanges", _get("/small", is_tcp=True), TCP),
        Scenario("l4-1m", "L4, 1 MB", _get("/1m", 8, is_tcp=True), TCP),
        Scenario("tls", "TLS, small GET, 11 fields", _get_tls("/small", fields=BROWSER_FIELDS | HOST), TLS),
        Scenario("tls-1m", "TLS, 1 MB answers", _get_tls("/1m", 8, fields=HOST), TLS),
        Scenario("tls-ecdsa", "TLS, full handshakes, ECDSA P-256", _handshakes(NAMES[0]), TLS),
        Scenario("tls-rsa", "TLS, full handshakes, RSA-2048", _handshakes(NAMES[1]), TLS),
        Scenario("tls-resumed", "TLS, resumed handshakes", _handshakes(NAMES[0], is_resumed=True), TLS),
        Scenario("latency", "2,000 requests/s", _fixed_rate(directory / "h2load.log"), (*HTTP, "origin"), 4.0),
    ]


_repeated_s: list[float] = []


def measure(scenario: Scenario, peer: Peer, seconds: float, origin: Peer) -> Round:
    for attempt in range(3):
        began = time.monotonic()
        steal = machine.Steal()
        pids = peer.pids()
        asked = caches.asked(origin)
        before = machine.cpu_s(pids)
        answered = scenario.load(peer, seconds)
        after = machine.cpu_s(pids)
        asked = caches.asked(origin) - asked - 1
        share = steal.share()
        if share <= TOO_NOISY or attempt == 2 or sum(_repeated_s) >= MOST_REPEATED_S:
            break
        _repeated_s.append(time.monotonic() - began)
    count = max(answered.count, 1)
    user, system = ((b - a) * 1e6 / count for a, b in zip(before, after, strict=True))
    return Round(
        peer.name, user + system, user, answered.per_second, answered.p50_ms, answered.p99_ms, answered.errors, share,
        answered.bytes_each, asked / count,
    )  # fmt: skip


def run(wanted: Iterable[Scenario], peers: dict[str, Peer], rounds: int, scale: float) -> Iterator[Result]:
    """Yields each scenario's result as soon as it is there: what comes later may be interrupted."""
    for scenario in wanted:
        result = Result(scenario.name, scenario.title)
        names = [name for name in scenario.peers if name in peers]
        for number in range(-1, rounds):
            for name in [name for name in names if name not in result.failures]:
                try:
                    if number < 0:
                        scenario.load(peers[name], 1)  # connections to servers, caches, branch predictors
                    else:
                        result.rounds.append(measure(scenario, peers[name], scenario.seconds * scale, peers["origin"]))
                except FAILURES as error:
                    result.failures[name] = said(error)
                    result.rounds = [r for r in result.rounds if r.peer != name]
        print(report.line(result), flush=True)
        yield result


def said(error: BaseException) -> str:
    """One line for the table."""
    detail = getattr(error, "stderr", None) or str(error) or type(error).__name__
    text = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
    return " ".join(text.split())[:200].replace("|", "/")


def start(kind: type[Peer], directory: Path, origin: Peer) -> Peer:
    """A running peer. Its ports were free a moment ago only: another attempt with others before it counts as broken."""
    for attempt in range(2):
        peer = kind(directory / f"attempt-{attempt}", origin.http_port, origin.http_port)
        try:
            peer.start()
            return peer
        except FAILURES:
            peer.stop()
            if attempt:
                raise
    raise AssertionError("not reached")


def check_equal(peer: Peer, origin: Peer) -> None:
    """All peers must pass on the same bytes, or the figures mean nothing. Raises RuntimeError."""
    for path in ("/small", "/10k", "/1m", *(("/kept/1k", "/kept/1m", "/kept/1k", "/kept/1m") if peer.name in CACHES else ())):
        if load.fetch(peer.http_port, path) != load.fetch(origin.http_port, path):
            raise RuntimeError(f"{path}: answered something else than the origin")
    if peer.name in ("twistedproxy", "nginx"):
        packed = load.fetch_packed(peer.http_port, "/text/100k.html")
        if not packed or gzip.decompress(packed) != load.fetch(origin.http_port, "/text/100k.html"):
            raise RuntimeError("gzip: answered something else than the origin")


def idle_memory(directory: Path, peers: dict[str, Peer], count: int) -> dict[str, dict[str, float]]:
    """Bytes of PSS per idle connection, each kind on a fresh start: HTTP keep-alive, L4 sessions, HTTP keep-alive over TLS."""
    table: dict[str, dict[str, float]] = {}
    for name, measured in peers.items():
        if name in ("origin", "twisted.web.proxy", "varnish", UNCACHED):
            continue
        row = table[name] = {}
        for kind in ["http"] + ["tcp"] * measured.speaks_tcp + ["tls"] * (name in TLS):
            peer = type(measured)(directory / f"idle-{kind}", measured.origin, measured.tcp_origin)
            try:
                peer.start()
                _close(_open_idle(peer, kind, 100))  # every code path once, so that only connections are counted
                time.sleep(1.5)
                before = machine.pss_bytes(peer.pids())
                row.setdefault("family", before)
                connections = _open_idle(peer, kind, count)
                time.sleep(0.5)
                row[kind] = (machine.pss_bytes(peer.pids()) - before) / count
                _close(connections)
            except FAILURES as error:
                print(f"idle memory, {name}, {kind}: {said(error)}", file=sys.stderr)
            finally:
                peer.stop()
    return table


def _open_idle(peer: Peer, kind: str, count: int) -> list[Any]:
    if kind == "tls":
        return handshakes.open_idle(peer.tls_port, count)
    return load.open_idle(peer.http_port if kind == "http" else peer.tcp_port, count)


def _close(connections: list[Any]) -> None:
    for connection in connections:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three short rounds of the main scenarios, under 3 minutes")
    parser.add_argument("--only", nargs="*", default=[], help="scenarios by name")
    parser.add_argument("--peers", nargs="*", default=[], help="peers by name")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--scale", type=float, default=0.0, help="length of a round, 1 being 3 s")
    parser.add_argument("--keep", action="store_true", help="also write the table into README.md")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    wanted = [s for s in scenarios(directory) if not options.only or s.name in options.only]
    if options.quick and not options.only:
        wanted = [s for s in wanted if s.name in ("browser", "1m", "connect", "l4", "l4-1m")]
    origin = Origin(directory, 0, 0)
    running: dict[str, Peer] = {}
    started: list[Peer] = []
    versions = {name: kind.version() for name, kind in PEERS.items()}
    missing = [program for program in ("nginx", "wrk", "h2load") if not shutil.which(program)]
    if missing:
        raise SystemExit(f"The origin and the load generators are missing: apt-get install nginx-light wrk nghttp2-client ({missing})")
    left_out: dict[str, str] = {}
    results: list[Result] = []
    extra: dict[str, object] = {"left_out": left_out}
    is_whole = False
    try:
        origin.start()
        started.append(origin)
        for name, kind in PEERS.items():
            if (options.peers and name not in options.peers) or not any(name in s.peers for s in wanted):
                continue
            try:
                if versions[name] is None:
                    raise RuntimeError("not installed")
                peer = start(kind, directory, origin)
                started.append(peer)
                check_equal(peer, origin)
                running[name] = peer
            except FAILURES as error:
                left_out[name] = said(error)
                print(f"{name}: left out: {left_out[name]}", file=sys.stderr)
        if "twistedproxy" in running:
            running[UNCACHED] = copy.copy(running["twistedproxy"])
            running[UNCACHED].name = UNCACHED
        rounds = options.rounds or (3 if options.quick else 4)
        for result in run(wanted, running | {"origin": origin}, rounds, options.scale or (0.4 if options.quick else 1.0)):
            results.append(result)
        if any(s.name.startswith("cache-") for s in wanted):
            extra["caches"] = {name: _tried(caches.check, running[name], origin) for name in CACHES if name in running}
        if not options.only:
            extra["idle"] = idle_memory(directory, running, 1000 if options.quick else 3000)
        if not options.quick and not options.only:
            extra["workers"] = _tried(scaling, directory, origin)
            extra["pgbench"] = _tried(database.measure, directory, ("twistedproxy", "nginx", "haproxy"), rounds)
        is_whole = True
    finally:
        for peer in reversed(started):
            peer.stop()
        shutil.rmtree(directory, ignore_errors=True)
        if results:
            facts = {"machine": machine.describe(), "versions": versions, "results": [asdict(r) for r in results], **extra}
            report.write(facts, results, keep=options.keep and is_whole)


def _tried(measured: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    """What is measured beside the scenarios; a failure is part of the report, not the end of it."""
    try:
        found: dict[str, Any] = measured(*arguments)
    except FAILURES as error:
        found = {"failed": said(error)}
        print(f"{measured.__name__}: {found['failed']}", file=sys.stderr)
    return found


def scaling(directory: Path, origin: Peer) -> dict[str, float]:
    """Requests per second of two workers over one; the load generator and the origin share the same CPUs, so read it as a floor."""
    found: dict[str, float] = {}
    for workers in (1, 2):
        peer = PEERS["twistedproxy"](directory / "scaling", origin.http_port, origin.http_port, workers)
        peer.start()
        try:
            found[str(workers)] = median(
                load.wrk(f"http://127.0.0.1:{peer.http_port}/small", 2, 64, BROWSER_FIELDS).per_second for _ in range(3)
            )
        finally:
            peer.stop()
    return found


if __name__ == "__main__":
    main()
