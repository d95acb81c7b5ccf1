"""`pgbench -S` through the L4 listeners, against a PostgreSQL of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks import load, machine
from benchmarks.peers import PEERS, Origin, free_port

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def _as_postgres(command: list[str]) -> None:
    """PostgreSQL refuses to run as root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")


def measure(directory: Path, peers: Iterable[str], rounds: int) -> dict[str, dict[str, float]]:
    """Median CPU microseconds per transaction of each peer, and transactions per second."""
    if not _BINARIES or not shutil.which("pgbench"):
        return {}
    binaries, data, port = _BINARIES[-1], directory / "pg", free_port()
    directory.chmod(0o755)
    data.mkdir()
    if os.geteuid() == 0:
        shutil.chown(data, "postgres")
    _as_postgres([str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync"])
    options = f"-p {port} -h 127.0.0.1 -k {data} -c fsync=off"
    _as_postgres([str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start"])
    found: dict[str, dict[str, float]] = {}
    origin = Origin(directory / "pg-origin", 0, 0)
    origin.start()
    running = []
    try:
        subprocess.run(
            ["pgbench", "-i", "-q", "-s1", "-h127.0.0.1", f"-p{port}", "-Upostgres", "postgres"], check=True, capture_output=True
        )
        for name in peers:
            if PEERS[name].version() is not None:
                peer = PEERS[name](directory / "pg-peers", origin.http_port, port)
                running.append(peer)
                peer.start()
        for _ in range(rounds):
            for peer in running:
                pids = peer.pids()
                before = sum(machine.cpu_s(pids))
                done = load.pgbench(peer.tcp_port, 3)
                cpu_us = (sum(machine.cpu_s(pids)) - before) * 1e6 / max(done.count, 1)
                best = found.setdefault(peer.name, {"cpu_us": cpu_us, "per_second": done.per_second, "errors": 0})
                best["cpu_us"] = min(best["cpu_us"], cpu_us)
                best["per_second"] = max(best["per_second"], done.per_second)
                best["errors"] += done.errors
    finally:
        for peer in running:
            peer.stop()
        origin.stop()
        _as_postgres([str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"])
    return found
