"""The `revproxy` command: checks a configuration file, and sees and changes the running proxy.

What talks to the daemon is in `daemon`. Heavy imports wait until a subcommand needs them, so that ``--help`` is quick.
"""
# ruff: noqa: PLC0415 (see above)

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import click

from twistedproxy import __version__
from twistedproxy.config.words import change_in_words
from twistedproxy.daemon import Failed, Options, ask, count, place, show_applied, show_json, show_table, stream, wait_until_idle
from twistedproxy.purge import add_commands as add_purge
from twistedproxy.purge import cache_line
from twistedproxy.renewal import add_commands as add_renewal
from twistedproxy.renewal import upgrade_line
from twistedproxy.traffic import add_commands, failing_tests

Command = TypeVar("Command", bound=Callable[..., Any])


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


def with_conditions(command: Command) -> Command:
    """The options of a command that changes something."""
    for option in (
        click.option("--abort-if", metavar="CONDITION", help='Undo by itself when it comes true: "errors > 1% or p95 > +20%".'),
        click.option("--confirm-within", metavar="D", help="Undo by itself unless confirmed in this time, such as 10m."),
        click.option("--preview", "is_preview", is_flag=True, help="Change nothing, only say what would happen."),
    ):
        command = option(command)
    return with_options(command)


_CONDITIONS = {"is_preview": "--preview", "confirm_within": "--confirm-within", "abort_if": "--abort-if"}


def _options(given: Mapping[str, Any]) -> Options:
    context = click.get_current_context()
    options: Options = context.find_object(Options) or Options()
    takes = {parameter.name for parameter in context.command.params}
    for name, option in _CONDITIONS.items():
        if getattr(options, name) and name not in takes:
            # Never do for real what was to be a preview only.
            raise click.UsageError(f"'{context.info_name}' has no {option}", context)
    options.take(given)
    return options


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="revproxy")
@with_conditions
def cli(**given: Any) -> None:
    """Check a configuration file, or see and change the running proxy."""
    options = click.get_current_context().obj = Options()
    options.take(given)


@cli.command()
@click.argument("file", metavar="FILE")
@with_options
def check(file: str, **given: Any) -> None:
    """Validate FILE and run its tests; prints every problem as FILE:LINE: path: message."""
    from twistedproxy.config import loader
    from twistedproxy.errors import ConfigurationError

    options = _options(given)
    try:
        loaded = loader.read_file(file)
        model = loaded.model
        if failing := failing_tests(file, model):
            raise ConfigurationError(failing)
    except ConfigurationError as e:
        if options.is_json:
            show_json({"problems": [{"file": p.file or file, "line": p.line, "path": p.path, "message": p.message} for p in e.problems]})
        else:
            for problem in e.problems:
                path = f"{problem.path}: " if problem.path else ""
                click.echo(f"{place(problem.file or file, problem.line)}: {path}{problem.message}")
        sys.exit(1)
    if options.is_json:
        warned = [{"file": w.file or file, "line": w.line, "path": w.path, "message": w.message} for w in loaded.warnings]
        show_json({"problems": [], "warnings": warned})
        return
    for warning in loaded.warnings:
        click.echo(f"{place(warning.file or file, warning.line)}: warning: {warning.path}: {warning.message}")
    servers = sum(len(pool.servers) for pool in model.pools.values())
    listeners = len(model.http) + len(model.tcp)
    parts = (
        count(listeners, "listener"), count(len(model.sites), "site"), count(len(model.pools), "pool"), count(servers, "server")
    )  # fmt: skip
    click.echo(f"{file}: ok ({', '.join(parts)})")


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
    codec = answer["head_codec"]
    click.echo(
        f"revproxy {answer['version']}, revision {answer['revision']}, up {_duration(answer['uptime_seconds'])}, "
        f"{answer['config_file'] or 'no file'}, {codec if codec == 'starting' else f'{codec} head codec'}"
    )
    show_table(
        ("WORKER", "PID", "STATE", "REVISION", "CONNECTIONS", "REQUESTS", "LAG"),
        [
            (w["slot"], w["pid"], w["state"], w["revision"], w["connections"], w["requests"], f"{w['lag_seconds'] * 1000:.1f} ms")
            for w in answer["workers"]
        ],
    )
    latest = answer.get("upgrade")
    if latest is not None:
        click.echo(upgrade_line(latest))
    if answer.get("cache") is not None:
        click.echo(cache_line(answer["cache"]))
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


@cli.command(context_settings={"ignore_unknown_options": True})  # so that -3 is a weight, and a wrong one
@click.argument("pool")
@click.argument("server")
@click.argument("weight", metavar="N|null")
@with_conditions
def weight(pool: str, server: str, weight: str, **given: Any) -> None:
    """Set the weight of SERVER in POOL; null returns to the file's value."""
    options = _options(given)
    if weight != "null" and not (weight.isascii() and weight.isdigit()):
        raise Failed(f"the weight {weight!r} is not a whole number from 0 to 1000, nor null.")
    value = None if weight == "null" else int(weight)
    answer = ask(options, "PATCH", _server_path(pool, server), {"weight": value})
    show_applied(options, answer, f"{server} in {pool}: weight {'as in the file' if value is None else value}")


def _state_command(state: str, text: str) -> None:
    waits = click.option("--wait", is_flag=True, help="Show what is still open until it is 0; Ctrl-C leaves the server as it is then.")

    @cli.command(state, help=text)
    @click.argument("pool")
    @click.argument("server")
    @(waits if state != "ready" else lambda command: command)
    @with_conditions
    def set_state(pool: str, server: str, wait: bool = False, **given: Any) -> None:
        options = _options(given)
        answer = ask(options, "PATCH", _server_path(pool, server), {"state": state})
        show_applied(options, answer, f"{server} in {pool}: {state}")
        if wait and not options.is_preview:
            wait_until_idle(options, pool, server)


_state_command("ready", "Let SERVER in POOL take new connections again.")
_state_command("drain", "Send nothing new to SERVER in POOL; what is open finishes.")
_state_command("maint", "Send nothing new to SERVER in POOL; what is open is cut at drain_tcp.")


@cli.command()
@click.argument("pool")
@click.argument("server")
@click.option("--weight", type=click.IntRange(0, 1000), help="Default 1.")
@click.option("--max-connections", type=click.IntRange(1), help="Default: the pool's.")
@click.option("--backup", is_flag=True, help="Serve only when no primary is available.")
@with_conditions
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
@with_conditions
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
    known = {c["revision"]: c for c in answer["changes"]}
    rows = [(c["revision"], c["at"], c["by"], change_in_words(c["change"]) + _fate(c, known), c["reason"]) for c in known.values()]
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


def _fate(entry: Mapping[str, Any], known: Mapping[int, Mapping[str, Any]]) -> str:
    guard = entry.get("guard")
    if entry["undone_by"] is not None:
        undoing = known.get(entry["undone_by"], {})
        why = f": {undoing['reason']}" if undoing.get("by") == "revproxy" else ""
        return f" ({'guarded, ' if guard else ''}undone by {entry['undone_by']}{why})"
    fate = f" (undone at {entry['confirm_by']} unless confirmed)" if entry["confirm_by"] else ""
    if guard and datetime.fromisoformat(guard["until"]) > datetime.now(UTC):
        fate += f" (guarded until {guard['until']}: undone if {guard['abort_if']})"
    elif guard:
        fate += f" (was guarded, and nothing tripped: {guard['abort_if']})"
    return fate


@cli.command()
@with_conditions
def reload(**given: Any) -> None:
    """Read the configuration file again; a broken one is refused and the old one stays in force."""
    options = _options(given)
    show_applied(options, ask(options, "POST", "/api/v1/config/reload", {}), "reloaded")


@cli.command()
@click.argument("revision", type=click.IntRange(1))
@with_conditions
def undo(revision: int, **given: Any) -> None:
    """Take the change REVISION back."""
    options = _options(given)
    show_applied(options, ask(options, "POST", f"/api/v1/changes/{revision}/undo", {}), f"revision {revision} undone")


@cli.command()
@click.argument("revision", type=click.IntRange(1))
@with_options
def confirm(revision: int, **given: Any) -> None:
    """Keep the change REVISION, which would be undone by itself."""
    options = _options(given)
    answer = ask(options, "POST", f"/api/v1/changes/{revision}/confirm", {})
    if options.is_json:
        show_json(answer)
    else:
        click.echo(f"revision {revision} stays")


@cli.command()
@with_options
def diff(**given: Any) -> None:
    """Show the live values that the configuration file does not have; exit 1 when there are some."""
    options = _options(given)
    found = ask(options, "GET", "/api/v1/config/diff")["differences"]
    if options.is_json:
        show_json({"differences": found})
    elif found:
        show_table(("VALUE", "FILE", "RUNNING"), [(d["path"], _value(d["file"]), _value(d["running"])) for d in found])
    else:
        click.echo("the file says what is running")
    sys.exit(1 if found else 0)


def _value(value: object) -> str:
    return "-" if value is None else str(value)


@cli.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_options
def adopt(yes: bool, **given: Any) -> None:
    """Write the live values into the configuration file; shows the edit first."""
    options = _options(given)
    edit = ask(options, "POST", "/api/v1/config/adopt?preview=1", {})["edit"]
    if not options.is_json:
        click.echo(edit or "the file says what is running")
    if not edit:
        return
    if not yes:
        click.confirm("Write this into the file?", abort=True, err=True)
    answer = ask(options, "POST", "/api/v1/config/adopt", {})
    if options.is_json:
        show_json(answer)
    else:
        show_applied(options, answer["applied"], "written and reloaded")


add_commands(cli, with_options, with_conditions, _options)
add_renewal(cli, with_options, _options)
add_purge(cli, with_options, _options)


def main() -> NoReturn:
    """Entry point of the `revproxy` command."""
    cli(prog_name="revproxy")
    sys.exit(0)


if __name__ == "__main__":
    main()
