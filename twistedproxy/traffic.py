"""Commands of `revproxy` about where requests go: explain, why, sites, split, maintenance, shift, shifts, mirrors."""
# ruff: noqa: PLC0415 (heavy imports wait until a command needs them)

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from random import random
from typing import Any
from urllib.parse import quote, urlencode

import click

from twistedproxy.config.words import change_in_words
from twistedproxy.daemon import Failed, Options, ask, show_applied, show_json, show_table

Decorator = Callable[[Any], Any]
LOOK_EVERY_S = 0.5
GONE_S = 20.0
"""How long nobody may answer while one daemon follows another."""


def add_commands(
    cli: click.Group, with_options: Decorator, with_conditions: Decorator, options: Callable[[Mapping[str, Any]], Options]
) -> None:
    """Give `cli` these commands."""

    @cli.command()
    @click.argument("words", metavar="[FILE] METHOD URL", nargs=-1, required=True)
    @click.option("-H", "--header", "headers", multiple=True, metavar="'Name: value'", help="A header field; may be given several times.")
    @click.option("--client", metavar="IP", default="127.0.0.1", show_default=True, help="The client's address.")
    @click.option("--client-cert", metavar="FILE", help="The certificate that the client shows (PEM).")
    @with_options
    def explain(words: tuple[str, ...], headers: tuple[str, ...], client: str, client_cert: str | None, **given: Any) -> None:
        """Say what would become of a request, step by step: by FILE, or without it by the running proxy."""
        if not 2 <= len(words) <= 3:
            raise Failed("explain needs METHOD and URL, such as: revproxy explain GET https://www.example.com/api/x")
        method, url = words[-2:]
        subject, names, sha256 = _certificate(client_cert) if client_cert else ("", (), "")
        if len(words) == 3:
            answer = _explain_file(words[0], method, url, headers, client, subject, names, sha256)
        else:
            asked = [("method", method), ("url", url), ("client", client), *(("header", line) for line in headers)]
            if client_cert:
                asked += [("client_cert_subject", subject), ("client_cert_sha256", sha256), *(("client_cert_san", name) for name in names)]
            query = urlencode(asked)
            answer = ask(options(given), "GET", f"/api/v1/explain?{query}")
        if options(given).is_json:
            show_json(answer)
            return
        for step in answer["steps"]:
            click.echo(f"- {step}")
        if answer["request"] is not None:
            for name, value in answer["request"]["headers"]:
                click.echo(f"    {name}: {value}")

    @cli.command()
    @click.argument("request_id", metavar="[ID]", required=False)
    @with_options
    def why(request_id: str | None, **given: Any) -> None:
        """Tell the story of a failed or slow request by the id in its answer (X-Request-Id); without ID, list the newest."""
        answer = ask(options(given), "GET", f"/api/v1/why/{quote(request_id, '')}" if request_id else "/api/v1/why")
        if options(given).is_json:
            show_json(answer)
        elif request_id:
            for story in answer["stories"]:
                _show_story(story)
        else:
            rows = [(s["id"], s["status"], s.get("reason") or "slow", s.get("site") or "-", s.get("path") or "-") for s in answer["latest"]]
            show_table(("ID", "STATUS", "REASON", "SITE", "PATH"), rows)

    @cli.command()
    @with_options
    def sites(**given: Any) -> None:
        """Show all sites with their routes and splits."""
        answer = ask(options(given), "GET", "/api/v1/sites")
        if options(given).is_json:
            show_json(answer)
            return
        for site in answer["sites"]:
            title = f"{site['name']}{' (maintenance)' if site['maintenance'] else ''}"
            rows = [(route["path"], route["does"], _target(route)) for route in site["routes"]]
            show_table(("PATH", "DOES", "WHERE"), rows, title)

    @cli.command()
    @click.argument("site")
    @click.argument("path")
    @click.argument("weights", metavar="POOL=N...", nargs=-1, required=True)
    @with_conditions
    def split(site: str, path: str, weights: tuple[str, ...], **given: Any) -> None:
        """Set the weights of the split at PATH of SITE; 'null' returns to the file's."""
        wanted = None if weights == ("null",) else dict(map(_weight, weights))
        answer = ask(options(given), "PATCH", f"/api/v1/sites/{quote(site, '')}", {"split": {"path": path, "weights": wanted}})
        show_applied(options(given), answer, f"{site} {path}: {' '.join(weights)}")

    @cli.command()
    @click.argument("site")
    @click.argument("turn", metavar="on|off|null", type=click.Choice(["on", "off", "null"]))
    @with_conditions
    def maintenance(site: str, turn: str, **given: Any) -> None:
        """Answer everybody on SITE with 503, or serve them again; 'null' returns to the file's value."""
        value = {"on": True, "off": False, "null": None}[turn]
        answer = ask(options(given), "PATCH", f"/api/v1/sites/{quote(site, '')}", {"maintenance": value})
        show_applied(options(given), answer, f"{site}: maintenance {turn}")

    @cli.command()
    @click.argument("source", metavar="FROM")
    @click.argument("target", metavar="TO")
    @click.argument("steps", metavar="STEPS")
    @click.option("--every", required=True, metavar="D", help="Time between two steps, such as 5m.")
    @click.option("--abort-if", metavar="CONDITION", help='Back to where it began when it comes true: "errors > 1% or p95 > +20%".')
    @click.option("--site", help="Where several splits have these sides.")
    @click.option("--path", help="The same.")
    @click.option("--watch", is_flag=True, help="Show each step until the last; exit 1 when it goes back or is stopped.")
    @click.option("--preview", "is_preview", is_flag=True, help="Change nothing, only say what the first step would do.")
    @with_options
    def shift(
        source: str,
        target: str,
        steps: str,
        every: str,
        abort_if: str | None,
        site: str | None,
        path: str | None,
        watch: bool,
        **given: Any,
    ) -> None:
        """Move the traffic of a split FROM one side TO the other: STEPS are per cent, such as 5,25,50,100."""
        try:
            shares = [float(step) for step in steps.split(",")]
        except ValueError:
            raise Failed(f"the steps {steps!r} are not numbers with commas between them, such as 5,25,50,100.") from None
        more = {name: value for name, value in (("abort_if", abort_if), ("site", site), ("path", path)) if value is not None}
        answer = ask(options(given), "POST", "/api/v1/shifts", {"from": source, "to": target, "steps": shares, "every": every} | more)
        if options(given).is_preview:
            show_applied(options(given), answer, "")
        elif watch:
            _watch_shift(options(given), answer)
        else:
            _show_shift(options(given), answer)

    @cli.command()
    @click.option("--stop", metavar="ID", help="Stop this one and go back to where it began.")
    @click.option("--stay", is_flag=True, help="With --stop: stay where it is.")
    @with_options
    def shifts(stop: str | None, stay: bool, **given: Any) -> None:
        """Show guarded shifts, or stop one."""
        if stop is not None:
            answer = ask(options(given), "DELETE", f"/api/v1/shifts/{quote(stop, '')}?back={0 if stay else 1}", {})
            _show_shift(options(given), answer)
            return
        answer = ask(options(given), "GET", "/api/v1/shifts")
        if options(given).is_json:
            show_json(answer)
            return
        rows = [
            (s["id"], f"{s['from']} → {s['to']}", f"{s['site']} {s['path']}", s["state"], _share(s), s["note"]) for s in answer["shifts"]
        ]
        show_table(("ID", "SHIFT", "SPLIT", "STATE", "SHARE", "NOTE"), rows)

    @cli.command()
    @with_options
    def mirrors(**given: Any) -> None:
        """Show what became of mirrored requests, and the differences that were seen."""
        answer = ask(options(given), "GET", "/api/v1/mirrors")
        if options(given).is_json:
            show_json(answer)
            return
        rows = [(f"{m['site']} {m['path']}", m["pool"], _counts(m["results"]), _counts(m["differences"]) or "-") for m in answer["mirrors"]]
        show_table(("ROUTE", "POOL", "RESULTS", "DIFFERENCES"), rows)


def failing_tests(file: str, model: Any) -> list[Any]:
    """A `Problem` for each of the file's own tests that fails."""
    from twistedproxy.config.locate import Lines
    from twistedproxy.errors import Problem
    from twistedproxy.http.trials import broken

    found = broken(model)
    if not found:
        return []
    with open(file, encoding="utf-8-sig") as text:
        lines = Lines(text.read())
    return [Problem(f"tests[{each.index}]", str(each), lines.of(("tests", each.index)), file) for each in found]


def _certificate(file: str) -> tuple[str, tuple[str, ...], str]:
    """What the proxy would see of the first certificate in `file`."""
    from twistedproxy.config import pem
    from twistedproxy.tls.clients import facts_of

    try:
        return facts_of(pem.certificates(pem.read(file))[0])
    except pem.BadPem as e:
        raise Failed(f"{file} {e}.") from None


def _explain_file(
    file: str, method: str, url: str, headers: tuple[str, ...], client: str, subject: str, names: tuple[str, ...], sha256: str
) -> Any:
    from twistedproxy.config import loader
    from twistedproxy.errors import BadHead, ConfigurationError
    from twistedproxy.http.explain import explain, question
    from twistedproxy.http.matching import Imagined
    from twistedproxy.http.trials import offline_router
    from twistedproxy.pool.twin import Known

    try:
        model = loader.load(file)
    except ConfigurationError as e:
        for problem in e.problems:
            click.echo(str(problem), err=True)
        sys.exit(1)
    pairs = []
    for line in headers:
        name, colon, value = line.partition(":")
        if not colon:
            raise Failed(f"the header {line!r} is not 'Name: value'.")
        pairs.append((name.strip(), value.strip()))
    try:
        asked = question(method, url, pairs, client, Imagined(subject, names, sha256) if sha256 else None)
    except BadHead as e:
        raise Failed(f"a client would be told {e.status}: {e.detail}.") from None
    except ValueError as e:
        raise Failed(f"{e}.") from None
    return explain(offline_router(model), asked, lambda pool: Known(model.pools[pool]), model.via_of, random())


def _weight(word: str) -> tuple[str, int]:
    pool, equals, number = word.partition("=")
    if not equals or not (number.isascii() and number.isdigit()):
        raise Failed(f"{word!r} is not POOL=N, such as web=80.")
    return pool, int(number)


def _target(route: Mapping[str, Any]) -> str:
    if route.get("split"):
        return ", ".join(f"{s['pool']} {s['share']:.1%} (taken {s['exposure']:.1%} of {s['requests']})" for s in route["split"])
    return route["pool"] or route["redirect"] or "-"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _share(shift: Mapping[str, Any]) -> str:
    return "-" if shift["share"] is None else f"{shift['share']:g}%"


def _show_shift(options: Options, shift: Mapping[str, Any]) -> None:
    if options.is_json:
        show_json(shift)
        return
    then = f", next step at {shift['next_at']}" if shift["next_at"] else ""
    note = f" ({shift['note']})" if shift["note"] else ""
    click.echo(f"shift {shift['id']} of {shift['site']} {shift['path']}: {shift['state']}{note}, {shift['to']} at {_share(shift)}{then}")


def _watch_shift(options: Options, shift: Mapping[str, Any]) -> None:
    """Say each step until the shift is over; Ctrl-C ends the watching alone."""
    quiet = Options(options.state, options.admin, options.token_file)
    told: Any = None
    heard = time.monotonic()
    try:
        while True:
            now = (shift["state"], shift["share"], shift["note"])
            if now != told:
                told = now
                _show_shift(options, shift)
            if shift["state"] != "running":
                break
            time.sleep(LOOK_EVERY_S)
            try:
                known = ask(quiet, "GET", "/api/v1/shifts")["shifts"]
                heard = time.monotonic()
            except Failed:
                # A version may be taking over from another, and goes on with the shift.
                if time.monotonic() - heard > GONE_S:
                    raise
                continue
            gone = {**shift, "state": "gone", "note": "it is not listed any more"}
            shift = next((each for each in known if each["id"] == shift["id"]), gone)
    except KeyboardInterrupt:
        click.echo(f"shift {shift['id']} goes on; 'revproxy shifts --stop {shift['id']}' takes it back", err=True)
        return
    if shift["state"] != "done":
        sys.exit(1)


def _show_story(story: Mapping[str, Any]) -> None:
    what = f"{story.get('method', '')} {story.get('host', '')}{story.get('path', '')}".strip() or "no request"
    click.echo(f"{story['at']}  {what}: {story['status']} after {story['duration_seconds']:.3f} s, {story['detail'] or 'slow'}")
    if story.get("site"):
        click.echo(f"  site {story['site']}, route {story['route']}, pool {story['pool'] or '-'}, client {story['client']}")
    for attempt in story["attempts"]:
        when = f" after {attempt['failed_after_seconds']:.3f} s" if "failed_after_seconds" in attempt else ""
        click.echo(f"  tried {attempt['server']}: {attempt['reason']}{when} {attempt['detail']}".rstrip())
    for server in story["skipped"]:
        click.echo(f"  not tried: {server['server']} is {server['why']}")
    for seen in story["health"]:
        verdict = seen.get("health") or ("ejected" if seen.get("ejected") else "")
        click.echo(f"  {seen['seconds']:+.1f} s: {seen['pool']} {seen['server']} {verdict} {seen.get('reason', '')}".rstrip())
    for change in story["changes"]:
        click.echo(f"  {change['seconds']:+.1f} s: revision {change['revision']} by {change['by']}: {change_in_words(change['change'])}")
