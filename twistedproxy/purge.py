"""`revproxy purge`: takes back what the cache keeps; and the cache in one line, for `status`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from twistedproxy.daemon import Options, ask, count, show_json, show_table

Decorator = Callable[[Any], Any]
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def add_commands(cli: click.Group, with_options: Decorator, options: Callable[[Mapping[str, Any]], Options]) -> None:
    """Give `cli` this command."""

    @cli.command()
    @click.argument("url", required=False)
    @click.option("--prefix", metavar="URL", help="All URLs that begin so, such as https://www.example.com/images/.")
    @click.option("--tag", help="All answers with this tag in Surrogate-Key or Cache-Tag.")
    @click.option("--all", "is_all", is_flag=True, help="Everything.")
    @click.option("--list", "is_list", is_flag=True, help="Purge nothing: show the latest purges, who asked for them and why.")
    @click.option("--soft", "is_soft", is_flag=True, help="Stale instead of gone: given while the server is asked, or when it fails.")
    @with_options
    def purge(url: str | None, prefix: str | None, tag: str | None, is_all: bool, is_list: bool, is_soft: bool, **given: Any) -> None:
        """Take back kept answers: of URL, or what one of --prefix, --tag, --all says. Returns when every worker knows."""
        chosen = options(given)
        named = {"url": url, "prefix": prefix, "tag": tag, "all": is_all or None}
        body: dict[str, Any] = {kind: what for kind, what in named.items() if what is not None}
        if len(body) + is_list != 1:
            raise click.UsageError("name exactly one of URL, --prefix, --tag, --all (or --list to see the latest)")
        if is_list:
            _show_latest(chosen)
            return
        if is_soft:
            body["soft"] = True
        answer = ask(chosen, "POST", "/api/v1/cache/purge", body)
        if chosen.is_json:
            show_json(answer)
            return
        ((kind, what),) = answer["purged"].items()
        workers = answer["workers"]
        click.echo(
            f"purged{' (soft)' if answer['soft'] else ''}: {_named(kind, what)}; "
            f"in force in {workers['acked']} of {count(workers['total'], 'worker')}"
        )
        for words in answer.get("notes", ()):
            click.echo(f"note: {words}")


def _show_latest(chosen: Options) -> None:
    purges = ask(chosen, "GET", "/api/v1/cache")["purges"]
    if chosen.is_json:
        show_json(purges)
        return
    rows = [(p["at"], p["who"], _named(p["by"], p["what"]) + (" (soft)" if p["soft"] else ""), p["reason"]) for p in purges["latest"]]
    show_table(("AT", "BY", "PURGED", "REASON"), rows)


def _named(kind: str, what: object) -> str:
    return "everything" if kind == "all" else f"{kind} {what}"


def cache_line(totals: Mapping[str, Any]) -> str:
    """The cache in words."""
    ratio, requests = totals["hit_ratio"], count(totals["requests"], "request")
    answered = "no requests yet" if ratio is None else f"{ratio:.1%} of {requests} answered"
    tiers = [
        f"{tier} {_size(has['bytes'])} of {_size(has['limit'])} in {count(has['objects'], 'object')}"
        for tier, has in (("memory", totals["memory"]), ("disk", totals["disk"]))
        if has["limit"]
    ]
    evicted = totals["memory"]["evicted"] + totals["disk"]["evicted"]
    errors = f", {count(totals['errors'], 'error')}" if totals["errors"] else ""
    return f"cache: {answered}; {', '.join(tiers)}; {evicted} evicted{errors}"


def _size(n: float) -> str:
    unit = 0
    while n >= 1024 and unit < len(_UNITS) - 1:
        n, unit = n / 1024, unit + 1
    return f"{n:.0f} {_UNITS[unit]}" if n >= 10 or not unit else f"{n:.1f} {_UNITS[unit]}"
