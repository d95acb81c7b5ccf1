"""The same bytes to us, to nginx and to HAProxy: what reached the server behind each, and every difference explained in `differences.toml`.

A difference has a kind: the peer `accepts` what we refuse, `refuses` what we forward, or forwards it `otherwise`. The table must explain
every difference there is and no other; where a peer has another version than the table was made with, rows that no longer apply are fine.
"""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import bed
import pytest
import script
from peers import HOST, OK, Origin, Peer
from stage import DEFAULT_PROXY, Inside, Outside, Stage

TABLE = Path(__file__).with_name("differences.toml")
SILENCE_S = 0.15
"""A client that hears nothing for so long is waiting for the rest of a request."""
HOP_OR_OURS = re.compile(rb"x-forwarded-(for|proto|port|host)|x-request-id|connection|keep-alive|host|content-length|transfer-encoding|via")
NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; {user}
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  upstream up {{ server {origin}; keepalive 4; }}
  server {{ listen {host}:{port}; location / {{
    proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header Connection ""; }} }}
}}
"""
HAPROXY = "frontend f\n mode http\n bind {host}:PORT\n default_backend b\nbackend b\n mode http\n server s {origin}\n"


class Fronted(bed.Part):
    """nginx as a proxy in front of an origin of ours."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.port = bed.free_port()
        (self.directory / "tmp").mkdir()
        config = self.directory / "nginx.conf"
        user = "user root;" if bed.os.getuid() == 0 else ""
        config.write_text(NGINX.format(host=HOST, port=self.port, origin=origin, user=user))
        self.launch([bed.program("nginx"), "-c", str(config), "-p", str(self.directory)])
        self.wait_for(lambda: bed.accepts(self.port), "nginx to listen")


def probes() -> Iterator[tuple[str, script.Probe]]:
    """Requests only: what a server answers is another matter; and only with the plain configuration."""
    for case in script.all_cases():
        if case.proxy == DEFAULT_PROXY and not case.listener:
            yield from ((case.file.stem, probe) for probe in case.probes if probe.answer is None and len(probe.send) < 20_000)


Reached = tuple[tuple[Any, ...], ...]


def reached(stage: Stage, send: bytes) -> Reached:
    """What the server behind a proxy makes of `send`: (method, target, host, body, names of the other fields) for each request."""
    (origin,) = stage.origins.values()
    origin.answer = OK
    origin.seen.clear()
    client = stage.client()
    client.send(send)
    _listen(stage, client)
    client.close()
    stage.clients.remove(client)
    for _ in range(3):
        stage.turn()
        origin.pump()
    seen = tuple(_facts(request) for request in origin.seen)
    _drop_broken(origin)
    return seen


def _listen(stage: Stage, client: Peer) -> None:
    quiet_since, before = time.monotonic(), -1
    while not client.is_over and time.monotonic() - quiet_since < (0.01 if client.taken and isinstance(stage, Inside) else SILENCE_S):
        stage.turn(0.002)
        for origin in stage.origins.values():
            origin.pump()
        client.pump()
        if client.taken != before:
            quiet_since, before = time.monotonic(), client.taken
            if client.taken and not isinstance(stage, Inside):
                quiet_since -= SILENCE_S * 0.7


def _drop_broken(origin: Origin) -> None:
    for peer in origin.connections:
        if peer.rest:
            peer.close()
    origin.forget_ended()


def _facts(request: bytes) -> tuple[Any, ...]:
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    method, _, target = line.partition(b" ")
    target = target.rpartition(b" ")[0]
    names = [field.partition(b":")[0].lower() for field in fields]
    hosts = [field.partition(b":")[2].strip() for field, name in zip(fields, names, strict=True) if name == b"host"]
    if b"transfer-encoding" in names:
        pieces = []
        while body:
            size, _, rest = body.partition(b"\r\n")
            count = int(size, 16)
            pieces.append(rest[:count])
            body = rest[count + 2 :] if count else b""
        body = b"".join(pieces)
    return method, target, tuple(hosts), body, tuple(sorted(n for n in names if not HOP_OR_OURS.fullmatch(n)))


def kind_of(ours: Reached, theirs: Reached) -> str:
    if len(theirs) > len(ours):
        return "accepts"
    return "refuses" if len(theirs) < len(ours) else "otherwise"


def version(program: str) -> str:
    done = bed.run([bed.program(program), "-v"])
    found = re.search(r"\d+\.\d+", done.stdout + done.stderr)
    return found[0] if found else "?"


@pytest.fixture(scope="module")
def ours() -> Iterator[dict[tuple[str, str], Reached]]:
    stage = Inside()
    try:
        yield {(case, probe.name): reached(stage, probe.send) for case, probe in probes()}
    finally:
        stage.close()


@pytest.mark.parametrize("peer", ["nginx", "haproxy"])
def test_every_difference_is_explained(peer: str, ours: dict[tuple[str, str], Reached]) -> None:
    """Where we and a peer make different requests of the same bytes, the table says which is right, and why."""
    stage = Outside(0, "server", lambda: "")
    (origin,) = stage.origins.values()
    part: Any = Fronted(origin.address) if peer == "nginx" else bed.Haproxy(HAPROXY.format(host=HOST, origin=origin.address))
    try:
        stage.port = part.port
        theirs = {(case, probe.name): reached(stage, probe.send) for case, probe in probes()}
    finally:
        part.close()
        origin.close()
    table = tomllib.loads(TABLE.read_text()) if TABLE.exists() else {}
    rows = [row for row in table.get("difference", ()) if row["peer"] == peer]
    used: set[int] = set()
    unexplained = []
    for key, mine in ours.items():
        if theirs[key] == mine:
            continue
        kind = kind_of(mine, theirs[key])
        match = [i for i, row in enumerate(rows) if _matches(row, *key, kind)]
        used.update(match)
        if not match:
            unexplained.append(f"{key[0]} | {key[1]} | {kind} | ours {mine!r} | {peer} {theirs[key]!r}"[:600])
    assert not unexplained, f"{len(unexplained)} differences without an explanation:\n" + "\n".join(unexplained)
    if table["versions"][peer] == version(peer):
        idle = [row for i, row in enumerate(rows) if i not in used]
        assert not idle, f"rows that explain nothing: {idle}"


def _matches(row: dict[str, Any], case: str, probe: str, kind: str) -> bool:
    names = row.get("probes", ["*"])
    return fnmatchcase(case, row["case"]) and row["kind"] == kind and any(probe == name or fnmatchcase(probe, name) for name in names)
