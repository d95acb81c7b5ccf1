"""The `revproxy` command: checks a configuration file, and talks to the running daemon.

The daemon is found by its unix socket (``--state DIR``, ``$REVPROXY_STATE``, or the ``state_dir`` of the default files), or
named by ``--admin URL --token-file F``. Heavy imports wait until a subcommand needs them, so that ``--help`` is quick.
"""
# ruff: noqa: PLC0415 (see above)

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, urlsplit

import click

from twistedproxy import __version__

DEFAULT_FILES = ("revproxy.toml", "/etc/revproxy/revproxy.toml")
SYSTEM_STATE_DIR = "/var/lib/revproxy"
"""Where systemd's ``StateDirectory=revproxy`` puts the state of the daemon that reads the second default file."""
TIMEOUT_S = 30.0

Command = TypeVar("Command", bound=Callable[..., Any])


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

    def take(self, given: Mapping[str, Any]) -> None:
        for name in ("state", "admin", "token_file", "reason", "is_json"):
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
        data = json.dumps({**body, **({"reason": options.reason} if options.reason else {})})
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
    return f"{where} does not answer: {error or type(error).__name__}; see the daemon's log."


def _refused(where: str, status: int, answer: Any) -> str:
    if status == 401:
        return f"{where} does not know this token; use the token file that belongs to it."
    if status == 403:
        return f"{where} forbids this: the token's role is too small, or the host name is not among admin.names."
    detail = answer.get("detail") or answer.get("title") if isinstance(answer, dict) else None
    return f"{detail or f'the daemon answered {status}; see its log'}"


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
    lines = [[str(cell) for cell in row] for row in rows]
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
    workers = answer["workers"]
    text = f"{what}: revision {answer['revision']}, in force in {workers['acked']} of {workers['total']} workers"
    if workers["lagging"]:
        text += f" (slots {', '.join(map(str, workers['lagging']))} lag; they are sent it again or replaced)"
    click.echo(text)


# The commands


def with_options(command: Command) -> Command:
    """Give a command the options that may also stand before it."""
    for option in (
        click.option("--json", "is_json", is_flag=True, help="Answer as JSON."),
        click.option("--reason", metavar="TEXT", help="Why, for the journal."),
        click.option("--token-file", metavar="FILE", help="File that holds the token for --admin."),
        click.option("--admin", metavar="URL", help="Talk to this address instead of the unix socket."),
        click.option("--state", metavar="DIR", help="State directory of the daemon."),
    ):
        command = option(command)
    return command


def _options(given: Mapping[str, Any]) -> Options:
    options: Options = click.get_current_context().find_object(Options) or Options()
    options.take(given)
    return options


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="revproxy")
@with_options
def cli(**given: Any) -> None:
    """Check a configuration file, or see and change the running proxy."""
    options = click.get_current_context().obj = Options()
    options.take(given)


@cli.command()
@click.argument("file", metavar="FILE")
@with_options
def check(file: str, **given: Any) -> None:
    """Validate FILE; prints every problem as FILE:LINE: path: message."""
    from twistedproxy.config import loader
    from twistedproxy.errors import ConfigurationError

    options = _options(given)
    try:
        model = loader.load(file)
    except ConfigurationError as e:
        if options.is_json:
            show_json({"problems": [{"file": p.file or file, "line": p.line, "path": p.path, "message": p.message} for p in e.problems]})
        else:
            for problem in e.problems:
                path = f"{problem.path}: " if problem.path else ""
                click.echo(f"{problem.file or file}:{problem.line}: {path}{problem.message}")
        sys.exit(1)
    if options.is_json:
        show_json({"problems": []})
        return
    servers = sum(len(pool.servers) for pool in model.pools.values())
    listeners = len(model.http) + len(model.tcp)
    parts = (
        _count(listeners, "listener"), _count(len(model.sites), "site"), _count(len(model.pools), "pool"), _count(servers, "server")
    )  # fmt: skip
    click.echo(f"{file}: ok ({', '.join(parts)})")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


@cli.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    from twistedproxy.config import schema as declarations

    show_json(declarations.schema_json())


@cli.command()
@with_options
def status(**given: Any) -> None:
    """Show version, revision, workers and listeners."""
    options = _options(given)
    answer = ask(options, "GET", "/api/v1/status")
    if options.is_json:
        show_json(answer)
        return
    click.echo(
        f"revproxy {answer['version']}, revision {answer['revision']}, up {_duration(answer['uptime_seconds'])}, "
        f"{answer['config_file'] or 'no file'}, {answer['head_codec']} head codec"
    )
    show_table(
        ("WORKER", "PID", "STATE", "REVISION", "CONNECTIONS", "REQUESTS", "LAG"),
        [
            (w["slot"], w["pid"], w["state"], w["revision"], w["connections"], w["requests"], f"{w['lag_seconds'] * 1000:.1f} ms")
            for w in answer["workers"]
        ],
    )
    show_table(("LISTENER", "KIND", "CONNECTIONS"), [(x["address"], x["kind"], x["connections"]) for x in answer["listeners"]])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{n}{unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")) if n]
    return " ".join(parts[:2]) or "0s"


@cli.command()
@click.argument("names", metavar="[POOL]...", nargs=-1)
@with_options
def pools(names: tuple[str, ...], **given: Any) -> None:
    """Show all pools, or the ones named, with their servers."""
    options = _options(given)
    if names:
        answer = {"pools": [ask(options, "GET", f"/api/v1/pools/{quote(name, '')}") for name in names]}
    else:
        answer = ask(options, "GET", "/api/v1/pools")
    if options.is_json:
        show_json(answer)
        return
    if not answer["pools"]:
        click.echo("the configuration has no pools")
    for pool in answer["pools"]:
        queue = pool["queue"]
        show_table(
            ("SERVER", "STATE", "HEALTH", "WEIGHT", "SHARE", "CONNECTIONS", "REQUESTS", "FAILURES"),
            [_server_row(server) for server in pool["servers"]],
            f"{pool['name']} ({pool['balance']}, {queue['waiting']} of {queue['size']} waiting)",
        )


def _server_row(server: Mapping[str, Any]) -> tuple[object, ...]:
    weight, health = server["weight"], server["health"]
    shown = str(weight["effective"]) if weight["set"] is None else f"{weight['effective']} (file: {weight['configured']})"
    state = server["state"] + (" backup" if server["backup"] else "") + (" ejected" if server["ejected"] else "")
    verdict = f"{health['status']}: {health['reason']}" if health["reason"] else health["status"]
    connections = f"{server['connections']}/{server['max_connections']}"
    return (server["address"], state, verdict, shown, f"{server['share']:.1%}", connections, server["requests"], server["failures"])


def _server_path(pool: str, server: str) -> str:
    return f"/api/v1/pools/{quote(pool, '')}/servers/{quote(server, ':[]')}"


@cli.command()
@click.argument("pool")
@click.argument("server")
@click.argument("weight", metavar="N|null")
@with_options
def weight(pool: str, server: str, weight: str, **given: Any) -> None:
    """Set the weight of SERVER in POOL; null returns to the file's value."""
    options = _options(given)
    if weight != "null" and not (weight.isascii() and weight.isdigit()):
        raise Failed(f"the weight {weight!r} is not a whole number from 0 to 1000, nor null.")
    value = None if weight == "null" else int(weight)
    answer = ask(options, "PATCH", _server_path(pool, server), {"weight": value})
    show_applied(options, answer, f"{server} in {pool}: weight {'as in the file' if value is None else value}")


def _state_command(state: str, text: str) -> None:
    @cli.command(state, help=text)
    @click.argument("pool")
    @click.argument("server")
    @with_options
    def set_state(pool: str, server: str, **given: Any) -> None:
        options = _options(given)
        answer = ask(options, "PATCH", _server_path(pool, server), {"state": state})
        show_applied(options, answer, f"{server} in {pool}: {state}")


_state_command("ready", "Let SERVER in POOL take new connections again.")
_state_command("drain", "Send nothing new to SERVER in POOL; what is open finishes.")
_state_command("maint", "Send nothing new to SERVER in POOL; what is open is cut at drain_tcp.")


@cli.command()
@click.argument("pool")
@click.argument("server")
@click.option("--weight", type=click.IntRange(0, 1000), help="Default 1.")
@click.option("--max-connections", type=click.IntRange(1), help="Default: the pool's.")
@click.option("--backup", is_flag=True, help="Serve only when no primary is available.")
@with_options
def add(pool: str, server: str, weight: int | None, max_connections: int | None, backup: bool, **given: Any) -> None:
    """Add SERVER to POOL; SERVER may be in the file's short form, "ADDRESS weight=3 backup"."""
    options = _options(given)
    body = _server_body(server)
    body |= {k: v for k, v in (("weight", weight), ("max_connections", max_connections), ("backup", backup)) if v not in (None, False)}
    answer = ask(options, "POST", f"/api/v1/pools/{quote(pool, '')}/servers", body)
    show_applied(options, answer, f"{body['address']} added to {pool}")


def _server_body(text: str) -> dict[str, Any]:
    """The file's short form as the API's keys."""
    address, *words = text.split() or [""]
    body: dict[str, Any] = {"address": address}
    for word in words:
        key, equals, value = word.partition("=")
        if word == "backup":
            body["backup"] = True
        elif key in ("weight", "max_connections") and equals and value.isascii() and value.isdigit():
            body[key] = int(value)
        else:
            raise Failed(f"{word!r} after the address is not weight=N, max_connections=N or backup.")
    return body


@cli.command()
@click.argument("pool")
@click.argument("server")
@click.option("--now", is_flag=True, help="Cut what is open at once.")
@with_options
def remove(pool: str, server: str, now: bool, **given: Any) -> None:
    """Drain SERVER, then remove it from POOL."""
    options = _options(given)
    answer = ask(options, "DELETE", _server_path(pool, server) + ("?now=1" if now else ""), {})
    show_applied(options, answer, f"{server} {'removed' if now else 'leaves'} {'from ' if now else ''}{pool}")


@cli.command()
@click.option("--after", type=click.IntRange(0), default=0, metavar="REVISION", help="Only changes after this one.")
@with_options
def changes(after: int, **given: Any) -> None:
    """Show the journal: who changed what, when and why."""
    options = _options(given)
    answer = ask(options, "GET", f"/api/v1/changes?after={after}")
    if options.is_json:
        show_json(answer)
        return
    rows = [(c["revision"], c["at"], c["by"], _change(c["change"]), c["reason"]) for c in answer["changes"]]
    show_table(("REVISION", "AT", "BY", "CHANGE", "REASON"), rows)


@cli.command()
@click.option("-n", "updates", type=click.IntRange(1), metavar="N", help="End after N updates; there is one a second.")
@with_options
def top(updates: int | None, **given: Any) -> None:
    """Watch the traffic live; q quits. With --json, a line a second."""
    from twistedproxy import top as live

    options = _options(given)
    if not options.is_json and not sys.stdout.isatty():
        raise Failed("top draws on a terminal; for lines that another program reads use --json.")
    feed = live.Feed(lambda: stream(options, "/api/v1/events"))
    try:
        if options.is_json:
            why = live.print_lines(feed, updates)
            if why:
                raise Failed(why)
        else:
            live.watch(feed, lambda: list(ask(options, "GET", "/api/v1/pools")["pools"]), updates)
    except KeyboardInterrupt:
        pass  # the other way to quit
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read the lines has gone


def _change(change: Mapping[str, Any]) -> str:
    if change.get("kind") == "batch":
        return "; ".join(_change(part) for part in change["changes"])
    where = " ".join(str(change[key]) for key in ("pool", "server") if change.get(key))
    text = f"{change.get('kind', '?')} {where}".strip()
    before, after = change.get("before"), change.get("after")
    return text if isinstance(before, dict) or isinstance(after, dict) else f"{text}: {before} → {after}"


def main() -> NoReturn:
    """Entry point of the `revproxy` command."""
    cli(prog_name="revproxy")
    sys.exit(0)


if __name__ == "__main__":
    main()
