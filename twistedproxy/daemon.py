"""How the commands of `revproxy` reach the running daemon, and how they print what it answers.

The daemon is found by its unix socket (``--state DIR``, ``$REVPROXY_STATE``, or the ``state_dir`` of the default files), or
named by ``--admin URL --token-file F``. Heavy imports wait until they are needed, so that ``--help`` is quick.
"""
# ruff: noqa: PLC0415 (see above)

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

import click

from twistedproxy.config.words import change_in_words
from twistedproxy.errors import one_line

DEFAULT_FILES = ("revproxy.toml", "/etc/revproxy/revproxy.toml")
SYSTEM_STATE_DIR = "/var/lib/revproxy"
"""Where systemd's ``StateDirectory=revproxy`` puts the state of the daemon that reads the second default file."""
TIMEOUT_S = 10.0


class Failed(click.ClickException):
    """One sentence that says what to do, on standard error; exit 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"revproxy: {self.message}", err=True)


@dataclass(slots=True)
class Options:
    """What may stand before or after the subcommand."""

    state: str | None = None
    admin: str | None = None
    token_file: str | None = None
    reason: str = ""
    is_json: bool = False
    is_preview: bool = False
    confirm_within: str = ""
    abort_if: str = ""

    def take(self, given: Mapping[str, Any]) -> None:
        for name in ("state", "admin", "token_file", "reason", "is_json", "is_preview", "confirm_within", "abort_if"):
            if given.get(name):
                setattr(self, name, given[name])


# How to reach the daemon


class _UnixConnection(HTTPConnection):
    """HTTP over the admin socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        # A socket's path has at most 107 bytes; the way there from here may be shorter.
        self.sock.connect(min(self._path, os.path.relpath(self._path), key=len))


def ask(options: Options, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """One request to the daemon; its JSON answer. Raises `Failed` with the daemon's own words when it refuses."""
    where, connection, headers = _reach(options)
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        terms = {"reason": options.reason, "confirm_within": options.confirm_within, "abort_if": options.abort_if}
        data = json.dumps({**body, **{key: value for key, value in terms.items() if value}})
        if options.is_preview:
            path += ("&" if "?" in path else "?") + "preview=1"
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        raw = response.read()
    except (OSError, HTTPException) as e:
        raise Failed(_unreachable(where, e)) from None
    finally:
        connection.close()
    try:
        answer = json.loads(raw)
    except ValueError:
        raise Failed(f"{where} answered {response.status} and no JSON; is that the admin address of revproxy?") from None
    if response.status != 200:
        raise Failed(_refused(where, response.status, answer))
    return answer


def stream(options: Options, path: str) -> Iterator[bytes]:
    """The lines of an answer that does not end by itself. Raises `Failed` as `ask` does."""
    where, connection, headers = _reach(options)
    try:
        connection.request("GET", path, None, headers)
        response = connection.getresponse()
        if response.status != 200:
            raise Failed(_refused(where, response.status, json.loads(response.read() or b"null")))
        yield from response
    except (OSError, HTTPException, ValueError) as e:
        raise Failed(_unreachable(where, e)) from None
    finally:
        connection.close()


def _reach(options: Options) -> tuple[str, HTTPConnection, dict[str, str]]:
    if options.admin is None:
        path = find_socket(options)
        return path, _UnixConnection(path), {}
    url = urlsplit(options.admin if "//" in options.admin else f"//{options.admin}", "http")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise Failed(f"--admin {options.admin} is not a URL such as http://127.0.0.1:9901.")
    if not options.token_file:
        raise Failed("--admin needs --token-file FILE, the file that holds the token (admin.token in the daemon's state directory).")
    try:
        with open(options.token_file, encoding="ascii") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise Failed(f"the token file {options.token_file} cannot be read: {getattr(e, 'strerror', e)}; name another one.") from None
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    try:
        port = url.port
    except ValueError:
        raise Failed(f"--admin {options.admin} has no valid port; write it like http://127.0.0.1:9901.") from None
    return options.admin, kind(url.hostname, port, timeout=TIMEOUT_S), {"Authorization": f"Bearer {token}"}


def _unreachable(where: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{where} may not be opened by this user; run as the user of the daemon, or use --admin URL --token-file FILE."
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"no daemon answers at {where}; start it with 'twistd revproxy', or point --state or --admin at the one that runs."
    if isinstance(error, TimeoutError):
        return f"{where} did not answer within {TIMEOUT_S:g} s; whether the change was made is not known: see the daemon's log."
    return f"{where} does not answer: {error or type(error).__name__}; see the daemon's log."


def _refused(where: str, status: int, answer: Any) -> str:
    if status == 401:
        return f"{where} does not know this token; use the token file that belongs to it."
    if status == 403:
        return f"{where} forbids this: the token's role is too small, or the host name is not among admin.names."
    if isinstance(answer, dict) and answer.get("problems"):
        return "nothing was changed:\n" + "\n".join(map(_problem_line, answer["problems"]))
    detail = answer.get("detail") or answer.get("title") if isinstance(answer, dict) else None
    return f"{detail or f'the daemon answered {status}; see its log'}"


def _problem_line(problem: Mapping[str, Any]) -> str:
    path = f"{problem['path']}: " if problem["path"] else ""
    return f"{place(problem['file'], problem['line'])}: {path}{problem['message']}"


def place(file: str, line: int | None) -> str:
    """``FILE:LINE``; of what is nowhere in particular the file alone."""
    return f"{file}:{line}" if line else file


def find_socket(options: Options) -> str:
    """Path of the daemon's admin socket."""
    state = options.state or os.environ.get("REVPROXY_STATE")
    if state:
        return os.path.join(state, "admin.sock")
    tried = []
    for file in DEFAULT_FILES:
        for directory in _state_dirs(file):
            path = os.path.join(directory, "admin.sock")
            if os.path.exists(path):
                return path
            tried.append(path)
    looked = f"no admin socket at {' or '.join(tried)}" if tried else f"there is no {' and no '.join(DEFAULT_FILES)} to find the daemon by"
    raise Failed(f"{looked}; start the daemon, or say where it is with --state DIR, $REVPROXY_STATE or --admin URL --token-file FILE.")


def _state_dirs(file: str) -> list[str]:
    """Where the daemon that reads `file` may keep its state."""
    from twistedproxy.config import loader
    from twistedproxy.errors import ConfigurationError

    if not os.path.exists(file):
        return []
    try:
        given = loader.state_dir_of(file)
    except ConfigurationError as e:
        raise Failed(f"{e.problems[0]}; mend it, or say with --state DIR where the daemon keeps its state.") from None
    return [given, SYSTEM_STATE_DIR] if file == DEFAULT_FILES[1] else [given]


# How to answer


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table: rich's on a terminal, aligned text elsewhere."""
    lines = [[one_line(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, title=Text(title) if title else None, title_justify="left")
        for line in lines:
            table.add_row(*map(Text, line))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    if title:
        click.echo(title)
    for line in (list(columns), *lines):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_applied(options: Options, answer: Mapping[str, Any], what: str) -> None:
    if options.is_json:
        show_json(answer)
        return
    if "preview" in answer:
        _show_preview(answer)
        return
    workers = answer["workers"]
    if not workers["total"] and answer.get("notes"):
        click.echo(f"{what}: nothing to change, revision {answer['revision']} stays")
        _show_notes(answer)
        return
    text = f"{what}: revision {answer['revision']}, in force in {workers['acked']} of {workers['total']} workers"
    if workers["lagging"]:
        text += f" (slots {', '.join(map(str, workers['lagging']))} lag; they are sent it again or replaced)"
    click.echo(text)
    _show_notes(answer)
    if "confirm_by" in answer:
        click.echo(f"undone at {answer['confirm_by']} unless you run: revproxy confirm {answer['revision']}")
    if "guard" in answer:
        _show_guard(answer["guard"], answer["revision"])


def _show_guard(guard: Mapping[str, Any], revision: int) -> None:
    least, before = guard["min_requests"], guard["baseline_requests"]
    left = max(0, round(datetime.fromisoformat(guard["until"]).timestamp() - time.time()))
    click.echo(f"watched for {left} s (until {guard['until']}), and undone if {guard['abort_if']}; judged once {least} requests have come")
    if "+" in guard["abort_if"] and before < least:
        had = f"{before} of the {least} requests it needs"
        click.echo(f"note: what has a + compares with the minute before, and that had {had}: it cannot come true")
    click.echo(f"see how it goes: revproxy changes; keep it and stop watching: revproxy confirm {revision}")


def _show_notes(answer: Mapping[str, Any]) -> None:
    for words in answer.get("superseded", ()):
        click.echo(f"overtaken by the file: {words}")
    for words in answer.get("notes", ()):
        click.echo(f"note: {words}")


def _show_preview(answer: Mapping[str, Any]) -> None:
    preview = answer["preview"]
    click.echo("nothing was changed; this would be:")
    for change in preview["changes"]:
        click.echo(f"  {change_in_words(change)}")
    for share in preview["shares"]:
        click.echo(f"  {share['server']} in {share['pool']}: {share['before']:.1%} → {share['after']:.1%} of the traffic")
    for side in preview.get("splits", ()):
        click.echo(f"  {side['pool']} in the split of {side['site']} {side['path']}: {side['before']:.1%} → {side['after']:.1%}")
    for replay in preview.get("replays", ()):
        of = f"the {count(replay['requests'], 'request')} recorded lately"
        told = f"{replay['moved']:.1%} of {of} would go to another server" if replay["requests"] else "no requests were recorded lately"
        click.echo(f"  {replay['pool']}: {told}")
    click.echo(f"  {count(preview['closing'], 'open session')} would be closed")
    _show_notes(answer)


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


LOOK_EVERY_S = 0.5
STALE_S = 1.5
"""What the daemon says is up to a second old: only after this is "nothing open" true of now."""


def wait_until_idle(options: Options, pool: str, server: str) -> None:
    """Say on standard error what is open at `server` whenever that changes, until nothing is; Ctrl-C ends the waiting alone."""
    from twistedproxy.config.model import endpoint

    with contextlib.suppress(ValueError):
        server = str(endpoint(server))
    began, told = time.monotonic(), -1
    quiet = Options(options.state, options.admin, options.token_file)
    try:
        while True:
            servers = ask(quiet, "GET", f"/api/v1/pools/{quote(pool, '')}")["servers"]
            left = next((s["connections"] for s in servers if s["address"] == server), 0)
            is_sure = time.monotonic() - began > STALE_S
            if left != told and (left or is_sure):
                click.echo(f"{count(left, 'connection')} left" if left else f"{server} is idle: nothing is open any more", err=True)
                told = left
            if not left and is_sure:
                return
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        click.echo(f"{server} stays as it is; what is open goes on finishing", err=True)
