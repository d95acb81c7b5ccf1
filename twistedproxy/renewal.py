"""Commands of `revproxy` that renew the proxy's processes: upgrade, restart-workers. Both show how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from twistedproxy.daemon import Failed, Options, ask, count, show_json

Decorator = Callable[[Any], Any]
LOOK_EVERY_S = 0.25
GONE_S = 20.0
"""How long nobody may answer while one daemon follows another."""


def add_commands(cli: click.Group, with_options: Decorator, options: Callable[[Mapping[str, Any]], Options]) -> None:
    """Give `cli` these commands."""

    @cli.command()
    @click.option("--no-wait", is_flag=True, help="Start it and return; 'revproxy status' tells how it went.")
    @with_options
    def upgrade(no_wait: bool, **given: Any) -> None:
        """Replace the daemon by the version that is installed now, without losing a connection.

        Returns when the new version serves; what is open in the old one finishes by itself.
        """
        chosen = options(given)
        answer = ask(chosen, "POST", "/api/v1/upgrade", {})
        if no_wait:
            show_json(answer) if chosen.is_json else click.echo("upgrade: starting")
            return
        _follow(chosen, "/api/v1/upgrade", answer, upgrade_line, ends=("draining", "done"))

    @cli.command("restart-workers")
    @with_options
    def restart_workers(**given: Any) -> None:
        """Replace all workers one by one, without losing a connection; new code needs 'upgrade' instead."""
        chosen = options(given)
        _follow(chosen, "/api/v1/workers/restart", ask(chosen, "POST", "/api/v1/workers/restart", {}), _rotation_line, ("draining", "done"))


def _follow(
    options: Options, path: str, answer: Mapping[str, Any], line: Callable[[Mapping[str, Any]], str], ends: tuple[str, ...]
) -> None:
    """Print each step until one of `ends`; exit 1 when it failed."""
    shown = ""
    heard = time.monotonic()
    while True:
        if not options.is_json and line(answer) != shown:
            shown = line(answer)
            click.echo(shown)
        if answer["state"] in ends or answer["state"] == "failed":
            break
        time.sleep(LOOK_EVERY_S)
        try:
            answer = ask(options, "GET", path)
            heard = time.monotonic()
        except Failed:
            # One daemon closes its connections while the other takes over.
            if time.monotonic() - heard > GONE_S:
                raise
    if options.is_json:
        show_json(answer)
    if answer["state"] == "failed":
        sys.exit(1)


def upgrade_line(answer: Mapping[str, Any]) -> str:
    """How an upgrade is, in words."""
    state = answer["state"]
    if state == "failed":
        return f"upgrade failed, nothing was changed: {answer['reason']}"
    if state == "draining":
        left = count(answer["connections"], "connection")
        return f"upgrade: version {answer['to']} (pid {answer['pid']}) serves; the old one finishes {left}"
    words = {
        "starting": "a new version starts", "ready": "it is ready", "handed over": "handed over",
        "done": f"done, version {answer.get('to')} (pid {answer.get('pid')}) serves and the old one has left",
    }  # fmt: skip
    return f"upgrade: {words.get(state, state)}"


def _rotation_line(answer: Mapping[str, Any]) -> str:
    state, far = answer["state"], f"{answer['replaced']} of {answer['total']} workers replaced"
    if state == "failed":
        return f"{far}, then it ended: {answer['reason']}"
    if state == "draining" and answer["connections"]:
        return f"{far}; the old ones finish {count(answer['connections'], 'connection')}"
    return far
