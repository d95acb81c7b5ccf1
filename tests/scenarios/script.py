"""Reads the case files and plays them; `README.md` beside this file says what may stand in one.

A file holds either `[[probe]]` tables (bytes in, verdict out: played whole, cut at every byte and byte by byte, always with a pooled
connection to the server) or a `script` (who does what, line by line).

It has over 500 lines: the whole language in one file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import OK, Broken, Origin, Peer, without_ours
from stage import DEFAULT_PROXY, Inside, Outside, Stage

CASES = Path(__file__).with_name("cases")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[nrt0\\e]|\n|\Z)|\n")
_SIMPLE = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\", "e": b"\x1b"}
_REPEAT = re.compile(rb"\{([^{}]{1,60})\*(\d+)\}")


def text(written: str) -> bytes:
    r"""Bytes of a text in a case: line ends are CR LF, ``\n \r \t \0 \xNN \\`` single bytes, ``\`` at a line's end joins, {a*3} is aaa."""

    def byte(match: re.Match[str]) -> str:
        what = match[1]
        if what is None:
            return "\r\n"
        if what in ("\n", ""):
            return ""
        return chr(int(what[1:], 16)) if what[0] == "x" else _SIMPLE[what].decode()

    raw = _ESCAPE.sub(byte, written).encode("latin-1")
    return _REPEAT.sub(lambda m: m[1] * int(m[2]), raw)


@dataclass(frozen=True)
class Probe:
    """Bytes in, verdict out."""

    name: str
    send: bytes
    statuses: tuple[int, ...]
    """Of the answers the client gets, in order."""
    server: tuple[bytes, ...] | None
    """The requests the server sees, less our own five fields; None: any."""
    closes: bool
    counter: str
    answer: bytes | None
    """What the server says; None: 200."""
    gets: bytes | None
    """What the client gets, exactly; None: any answers of these statuses."""
    pooled: bool
    """The server's connection is still in use afterwards."""
    splits: bool
    breaks: bool
    """The client's answer is broken off visibly."""
    server_closes: bool
    """The server ends its connection after the answer."""
    partial: bool
    """The fault is in the body: the server may have got the beginning of a request, on a connection that is then reset."""


@dataclass(frozen=True)
class Case:
    id: str
    says: str
    file: Path
    proxy: str
    listener: str
    tcp: str
    servers: tuple[str, ...]
    small: tuple[str, ...]
    """Servers with tiny receive buffers."""
    probes: tuple[Probe, ...] = ()
    script: str = ""
    only_inside: bool = True


_KEYS = {"says", "like", "proxy", "listener", "tcp", "servers", "small_buffers", "probe", "script", "server", "closes", "status", "counter"}
_PROBE_KEYS = {"name", "send", "fields", "body", "with", "status", "server", "closes", "counter", "answer", "gets", "pooled", "splits",
               "breaks", "server_closes", "target", "host", "partial"}  # fmt: skip


def load(file: Path) -> Case:
    data = tomllib.loads(file.read_text())
    if unknown := data.keys() - _KEYS:
        raise ValueError(f"{file.name}: unknown keys {sorted(unknown)}; known: {sorted(_KEYS)}")
    prefix, number = file.stem.split("_")[:2]
    shared = {key: data[key] for key in ("status", "counter", "closes") if key in data}
    probes = tuple(p for table in data.get("probe", ()) for p in _probes(file, shared | table))
    proxy, listener, tcp = data.get("proxy", DEFAULT_PROXY), data.get("listener", ""), data.get("tcp", "")
    return Case(
        f"{prefix.upper()}-{number}", data["says"], file, proxy, listener, tcp,
        tuple(data.get("servers", ("server",))), tuple(data.get("small_buffers", ())),
        probes, data.get("script", ""), only_inside=bool(listener or tcp or proxy != DEFAULT_PROXY),
    )  # fmt: skip


def _probes(file: Path, table: dict[str, Any]) -> Iterator[Probe]:
    if unknown := table.keys() - _PROBE_KEYS:
        raise ValueError(f"{file.name}: unknown keys {sorted(unknown)}; known: {sorted(_PROBE_KEYS)}")
    variants = table.get("with", {"": ""})
    if isinstance(variants, list):
        variants = {value: value for value in variants}
    statuses = table.get("status", 200)
    statuses = tuple(statuses) if isinstance(statuses, list) else (statuses,)
    refused = bool(statuses) and statuses[-1] >= 400 and "answer" not in table
    for label, value in variants.items():
        if "send" in table:
            written = table["send"]
        else:
            method = "POST" if "body" in table else "GET"
            host = f"Host: {table.get('host', 'example.com')}\n"
            written = f"{method} {table.get('target', '/')} HTTP/1.1\n{host}{table.get('fields', '')}\n{table.get('body', '')}"
        server = table.get("server")
        if server is None and refused:
            server = ["{any}"] * (len(statuses) - 1)
        yield Probe(
            f"{table.get('name', '')}{': ' if label and 'name' in table else ''}{label}"[:160],
            text(written.replace("{}", value)),
            statuses,
            None if server is None else tuple(text(part.replace("{}", value)) for part in server),
            table.get("closes", refused),
            table.get("counter", ""),
            text(table["answer"].replace("{}", value)) if "answer" in table else None,
            text(table["gets"].replace("{}", value)) if "gets" in table else None,
            table.get("pooled", True),
            table.get("splits", True),
            table.get("breaks", False),
            table.get("server_closes", False),
            table.get("partial", False),
        )


def all_cases() -> list[Case]:
    return [load(file) for file in sorted(CASES.glob("*.toml"))]


# Probes


@dataclass
class Verdicts:
    """How many times probes were played."""

    probes: int = 0
    runs: int = 0
    names: set[str] = field(default_factory=set)


def play_probe(stage: Stage, probe: Probe, cuts: str, verdicts: Verdicts) -> None:
    """Play one probe whole and, with `cuts`, cut in two at ``every`` byte or at ``some``, and byte by byte."""
    (origin,) = stage.origins.values()
    verdicts.probes += 1
    reasons = probe.counter.split("|") if probe.counter else []
    before = sum(map(stage.counter, reasons))
    runs = 0
    for pieces, answer in _cuttings(probe, cuts):
        _play_once(stage, origin, probe, pieces, answer)
        runs += 1
    verdicts.runs += runs
    if reasons:
        moved = sum(map(stage.counter, reasons)) - before
        if moved != runs:
            raise Broken(f"O7: counter {probe.counter!r} moved by {moved} in {runs} runs")


def _cuttings(probe: Probe, cuts: str) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """(pieces of the request, pieces of the answer)."""
    answer = OK if probe.answer is None else probe.answer
    yield [probe.send], [answer]
    if not probe.splits or cuts == "none":
        return
    whole = probe.send if probe.answer is None else answer
    step = 1 if cuts == "every" else 37
    for at in range(1, len(whole), step):
        halves = [whole[:at], whole[at:]]
        yield (halves, [answer]) if probe.answer is None else ([probe.send], halves)
    single = [whole[i : i + 1] for i in range(len(whole))]
    yield (single, [answer]) if probe.answer is None else ([probe.send], single)


def _play_once(stage: Stage, origin: Origin, probe: Probe, pieces: list[bytes], answer: list[bytes]) -> None:
    origin.answer = OK
    origin.answer_pieces = None
    stage.canary()
    open_before = sum(not c.is_over for c in origin.connections)
    if open_before < 1:
        raise Broken("there is no pooled connection to the server")
    origin.seen.clear()
    origin.answer_pieces = answer
    client = stage.client()
    used = len(origin.connections)
    try:
        for piece in pieces:
            client.send(piece)
            if len(pieces) > 1:
                stage.turn()
                client.pump()
        where = f"{probe.name!r} in {len(pieces)} pieces ({pieces[0][-20:]!r} | …)"
        _judge_client(stage, client, probe, where)
        if probe.server_closes:
            stage.until(lambda: all(c.is_over or c.pump() or c.is_over for c in origin.connections), "the server's connection to end")
    finally:
        client.close()
        stage.clients.remove(client)
    origin.answer_pieces = None
    if probe.partial:
        stage.until(
            lambda: all(c.pump() or c.is_over for c in origin.connections if c.rest), f"{where}: the unfinished request to be broken off"
        )
        origin.forget_ended()
    elif not probe.pooled and not probe.server_closes:
        stage.until(
            lambda: any(c.pump() or c.is_over for c in origin.connections), f"{where}: the server's connection to be closed, not pooled"
        )
    stage.canary()
    if probe.pooled and not probe.partial and len(origin.connections) != used:
        raise Broken(f"{where}: the pooled connection was not used again")
    origin.forget_ended()
    _judge_server(stage, origin, probe, where)


def _judge_client(stage: Stage, client: Peer, probe: Probe, where: str) -> None:
    if probe.gets is not None:
        client.gets(probe.gets)
    else:
        for status in probe.statuses:
            head, _ = client.message(has_body=not probe.send.startswith(b"HEAD "))
            while head[9:10] == b"1" and status >= 200:
                head, _ = client.message()
            if int(head[9:12]) != status:
                raise Broken(f"{where}: expected {status}, the client got {head!r}")
    if probe.breaks:
        # A fault that came together with the head is answered; one that came later can only be shown by breaking off.
        client.until(lambda: client.is_over or client.rest.startswith(b"HTTP/1.1 502 "), f"{where}: the answer to be broken off")
    elif probe.closes:
        client.until(lambda: client.is_over, f"{where}: the connection to be closed")
        if client.rest:
            raise Broken(f"{where}: behind the answer the client got {client.rest[:300]!r}")
    else:
        stage.turn()
        client.pump()
        if client.rest or client.is_over:
            raise Broken(f"{where}: the connection should stay open and quiet; got {client.rest[:300]!r}, over: {client.is_over}")


def _judge_server(stage: Stage, origin: Origin, probe: Probe, where: str) -> None:
    """Oracle O1: the server saw the expected requests, in order, and nothing else."""
    extra = origin.leftovers()
    if extra:
        raise Broken(f"O1: {where}: the server saw {extra[:400]!r}, which is no complete request")
    seen = stage.take_seen(origin)
    if probe.server is None:
        return
    if len(seen) != len(probe.server):
        raise Broken(f"O1: {where}: the server saw {len(seen)} requests, expected {len(probe.server)}: {seen!r}")
    for got, wanted in zip(seen, probe.server, strict=True):
        if wanted != b"{any}" and without_ours(got) != wanted:
            raise Broken(f"O1: {where}: the server saw {without_ours(got)!r}, expected {wanted!r}")


# Scripts


def play_script(stage: Inside, case: Case) -> None:
    """Play a script line by line; a failure names the line."""
    player = Player(stage)
    for number, line in _lines(case.script):
        try:
            player.play(line)
        except Broken as e:
            raise Broken(f"{case.file.name}, line {number} of the script, `{line}`: {e}") from None
    for name, origin in stage.origins.items():
        extra = origin.leftovers()
        if extra:
            raise Broken(f"O1: server {name} saw what the script does not expect: {extra[:400]!r}")


def _lines(script: str) -> Iterator[tuple[int, str]]:
    """(number, line), continuation lines (they begin with ``|``) joined by CR LF; comments begin with #."""
    pending: tuple[int, str] | None = None
    for number, raw in enumerate(script.splitlines(), 1):
        line = raw.strip()
        if line.startswith("|") and pending is not None:
            pending = pending[0], pending[1] + "\n" + line[1:].removeprefix(" ")
            continue
        if pending is not None:
            yield pending
        pending = (number, line) if line and not line.startswith("#") else None
    if pending is not None:
        yield pending


class Player:
    """Who is who while a script is played."""

    def __init__(self, stage: Inside) -> None:
        self.stage = stage
        self.peers: dict[str, Peer] = {}

    def play(self, line: str) -> None:
        line = line.replace("{port}", str(self.stage.port))
        who, _, rest = line.partition(" ")
        rest = rest.lstrip(" ")
        if who == "again":
            count, _, steps = rest.partition(" ")
            for _ in range(int(count)):
                for step in steps.split(";"):
                    self.play(step.strip())
        elif who == "proxy":
            self._proxy(rest)
        elif who in self.stage.origins or "/" in who:
            self._server(who, rest)
        else:
            self._client(who, rest)

    # The proxy

    def _proxy(self, rest: str) -> None:
        stage = self.stage
        words = rest.split()
        if words[0] == "waits":
            stage.travel(float(words[1].removesuffix("s")))
            return
        if words[0] == "counts":
            self._is(lambda: stage.counter(words[1]), int(words[2]), f"counter {words[1]}")
        elif words[0] == "retried":
            self._is(lambda: stage.retries(words[1]), int(words[2]), f"retries for {words[1]}")
        elif words[0] == "logs":
            wanted = (int(words[1]), words[2])
            stage.until(lambda: any(entry[:2] == wanted for entry in stage.log.lines), f"a log line {wanted}; there are {stage.log.lines}")
        elif words[0] == "has":
            what = {"leases": lambda: stage.leases, "idle": lambda: stage.idle, "waiting": lambda: sum(p.waiting for p in stage.pools),
                    "clients": lambda: stage.worker.open, "ejected": lambda: len(stage.ejected)}[words[2]]  # fmt: skip
            self._is(what, int(words[1]), words[2])
        else:
            raise ValueError(f"the proxy cannot {rest!r}")

    def _is(self, value: Any, wanted: int, what: str) -> None:
        try:
            self.stage.until(lambda: value() == wanted, what)
        except Broken:
            raise Broken(f"{what}: {value()}, expected {wanted}") from None
        self.stage.until_quiet()
        if value() != wanted:
            raise Broken(f"{what}: it did not stay {wanted} but is {value()}")

    # Servers

    def _server(self, who: str, rest: str) -> None:
        name, _, number = who.partition("/")
        origin = self.stage.origins[name]
        if rest == "refuses":
            origin.refuse()
        elif rest == "listens":
            origin.listen()
        elif rest == "accepts":
            origin.accept()
        elif rest == "answers by itself":
            origin.answer = OK
        elif rest == "forgets":
            origin.seen.clear()
        elif rest.startswith("saw "):
            least, most = map(int, rest.removeprefix("saw ").split(" to "))
            if not least <= len(origin.seen) <= most:
                raise Broken(f"server {name} saw {len(origin.seen)} requests, expected {least} to {most}")
        elif rest == "sees nobody":
            self.stage.until_quiet()
            known = -1 if origin.current is None else origin.connections.index(origin.current)
            if len(origin.connections) > known + 1 or (origin.current is not None and self._pumped(origin.current).rest):
                raise Broken(f"O1: server {name} was asked: {origin.leftovers()!r}")
        elif rest == "skips the rest":
            for peer in origin.connections:
                self._pumped(peer).at = len(peer.received)
        elif rest.startswith("is asked"):
            if number:
                origin.current = origin.connections[int(number) - 1]
            self._is_asked(origin, rest)
        else:
            peer = origin.connections[int(number) - 1] if number else origin.current
            if peer is None:
                peer = origin.accept()
            self._peer(peer, rest)

    def _pumped(self, peer: Peer) -> Peer:
        peer.pump()
        return peer

    def _is_asked(self, origin: Origin, rest: str) -> None:
        match = re.fullmatch(r"is asked (\S+) (\S+?)(?: with (.*?))?(?: (anew|again))?", rest)
        if match is None:
            raise ValueError(f"a server {rest!r}? `is asked METHOD PATH [with BODY] [anew|again]`")
        method, path, body, how = match.groups()
        if how == "again":
            if origin.current is None:
                raise Broken("there is no connection that could be used again")
        elif how == "anew" or origin.current is None or self._pumped(origin.current).is_over:
            origin.accept()
        assert origin.current is not None
        head, got = origin.current.message()
        start = f"{method} {path} HTTP/1.1\r\n".encode()
        if not head.startswith(start):
            raise Broken(f"O1: asked {head!r}, expected {start!r}")
        if body is not None and got != text(body):
            raise Broken(f"O1: the body is {got[:200]!r}, expected {text(body)[:200]!r}")

    # Clients

    def _client(self, who: str, rest: str) -> None:
        peer = self.peers.get(who)
        if rest.startswith("connects"):
            port = self.stage.tcp_port if "tcp" in rest else self.stage.port
            self.peers[who] = self.stage.client(port, receive_buffer=4096 if "small" in rest else 0)
            return
        if peer is None:
            peer = self.peers[who] = self.stage.client()
        self._peer(peer, rest)

    # Both

    def _peer(self, peer: Peer, rest: str) -> None:
        verb, _, argument = rest.partition(" ")
        stage = self.stage
        if verb == "sends":
            peer.send(text(argument))
        elif verb == "asks":
            method, path, *body = argument.split(" ", 2)
            length = f"Content-Length: {len(text(body[0]))}\r\n" if body else ""
            peer.send(f"{method} {path} HTTP/1.1\r\nHost: example.com\r\n{length}\r\n".encode() + (text(body[0]) if body else b""))
        elif verb == "answers":
            status, _, body = argument.partition(" ")
            peer.send(b"HTTP/1.1 %b Whatever\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(text(body)), text(body)))
        elif rest.startswith("is answered"):
            status, _, body = argument.removeprefix("answered ").partition(" ")
            head, got = peer.message()
            while head[9:10] == b"1" and status[0] != "1":
                head, got = peer.message()
            if not head.startswith(b"HTTP/1.1 " + status.encode()) or (body and got != text(body)):
                raise Broken(f"expected {status} {body!r}, got {head!r} {got[:200]!r}")
            if status == "503" and b"\r\nRetry-After: " not in head:
                raise Broken(f"a 503 without Retry-After: {head!r}")
        elif verb == "gets":
            peer.gets(text(argument))
        elif rest == "closes":
            peer.close()
        elif rest == "half-closes":
            peer.fin()
        elif rest == "resets":
            peer.reset()
        elif rest == "stops reading":
            peer.reads = False
        elif rest == "reads on":
            peer.reads = True
        elif rest == "is closed":
            peer.until(lambda: peer.is_over, "the end of the connection")
            if peer.is_reset or peer.rest:
                raise Broken(f"expected a close in order and nothing before it: reset {peer.is_reset}, unread {peer.rest[:300]!r}")
        elif rest == "is reset":
            peer.until(lambda: peer.is_over, "a reset")
            if not peer.is_reset:
                raise Broken("the connection was closed in order, as if all was well")
        elif rest == "hears the end and nothing else":
            peer.until(lambda: peer.is_over, "the end of the connection")
            if peer.rest:
                raise Broken(f"before the end there was {peer.rest[:300]!r}")
        elif rest == "is gone after whatever":
            peer.until(lambda: peer.is_over, "the end of the connection")
            peer.at = len(peer.received)
        elif rest == "is gone":
            peer.until(lambda: peer.is_over, "the end of the connection")
        elif rest == "hears nothing":
            stage.until_quiet()
            self._pumped(peer)
            if peer.rest or peer.is_over:
                raise Broken(f"expected silence; unread {peer.rest[:300]!r}, over: {peer.is_over}")
        elif verb == "pours":
            count, _, most = argument.partition(" and at most ")
            poured = peer.pour(int(count))
            if most and poured > int(most):
                raise Broken(f"{poured} bytes were taken, expected at most {most}")
        elif verb == "takes":
            peer.take(int(argument))
        else:
            raise ValueError(f"nobody can {rest!r}; see README.md")


def play(case: Case, cuts: str, verdicts: Verdicts) -> None:
    """Play a case in this process, every probe on the same stage."""
    stage = Inside(
        case.proxy, case.servers, case.listener, case.tcp, receive_buffers=dict.fromkeys(case.small, 4096)
    )  # fmt: skip
    try:
        for probe in case.probes:
            play_probe(stage, probe, cuts, verdicts)
        if case.script:
            play_script(stage, case)
            verdicts.probes += 1
            verdicts.runs += 1
    except BaseException:
        stage.close()
        raise
    stage.finish()


def play_outside(stage: Outside, case: Case, verdicts: Verdicts) -> None:
    """The probes of a case against a running proxy, whole and cut now and then."""
    for probe in case.probes:
        play_probe(stage, probe, "some" if len(probe.send) < 400 else "none", verdicts)
