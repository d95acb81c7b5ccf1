"""`revproxy top`: what the proxy does now, in a terminal or as JSON lines, from its event stream.

How it works
    A thread reads the stream and puts events into a queue, so that the terminal answers keys while nothing happens. `Meter` turns the
    growing counts of the ``stats`` events into rates; what is no count (states, health, weights) is asked for again when an event
    says that it changed, and every few seconds.
"""

from __future__ import annotations

import json
import os
import queue
import select
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

Event = tuple[str, Any]
"""Kind and data; ``gone`` with a sentence when the stream ended."""
WINDOW_S = 5.0
LOOK_AGAIN_S = 5.0
RETRY_S = 1.0
SPARKS = " ▁▂▃▄▅▆▇█"
SPARK_COLUMNS = 60
NARROW_COLUMNS = 110
"""Below this, words are shorter and reasons stand under the table."""
MOST_TROUBLES = 6


def events(lines: Iterable[bytes]) -> Iterator[Event]:
    """The events of a stream of server-sent events, line by line."""
    kind, data = "", ""
    for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if not line:
            if kind and data:
                yield kind, json.loads(data)
            kind, data = "", ""
        elif line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            data += line[6:]


def percentile(bounds: Sequence[float], counts: Sequence[int], fraction: float) -> float | None:
    """The time in seconds below which this fraction of the durations lies, by the buckets they were counted in."""
    rank = fraction * sum(counts)
    if not rank:
        return None
    for number, count in enumerate(counts):
        if count and rank <= count:
            low = bounds[number - 1] if number else 0.0
            high = bounds[min(number, len(bounds) - 1)]
            return low + (high - low) * rank / count
        rank -= count
    return bounds[-1]


class Meter:
    """Rates of the last seconds, from counts that only grow."""

    def __init__(self) -> None:
        self._bounds: list[float] = []
        self._samples: deque[Mapping[str, Any]] = deque()
        self.history: deque[float] = deque(maxlen=SPARK_COLUMNS)
        """Requests per second, one a second."""

    def recent(self, data: Mapping[str, Any]) -> None:
        """The minutes before we came."""
        self._bounds = data["bounds"]
        rows = [dict(zip(data["columns"], row, strict=True)) for row in data["rows"][-SPARK_COLUMNS - 1 :]]
        for before, row in pairwise(rows):
            seconds = row["uptime_seconds"] - before["uptime_seconds"]
            self.history.append(max(0.0, (row["requests"] - before["requests"]) / seconds) if seconds > 0 else 0.0)

    def add(self, stats: Mapping[str, Any]) -> None:
        samples = self._samples
        if samples and stats["uptime_seconds"] <= samples[-1]["uptime_seconds"]:
            samples.clear()  # another process: its counts began anew
        samples.append(stats)
        while len(samples) > 2 and stats["uptime_seconds"] - samples[0]["uptime_seconds"] > WINDOW_S + 0.5:
            samples.popleft()
        if len(samples) > 1:
            self.history.append(self._per_second(samples[-1]["requests"] - samples[-2]["requests"], samples[-2]))

    def _per_second(self, grown: int, since: Mapping[str, Any]) -> float:
        seconds = self._samples[-1]["uptime_seconds"] - since["uptime_seconds"]
        return float(max(0.0, grown / seconds)) if seconds > 0 else 0.0

    @property
    def has_rates(self) -> bool:
        return len(self._samples) > 1

    def figures(self) -> dict[str, Any]:
        """All of now, as `--json` prints it; there must have been a sample."""
        first, now = self._samples[0], self._samples[-1]
        requests, errors = now["requests"] - first["requests"], now["errors"] - first["errors"]
        durations = [b - a for a, b in zip(first["durations"], now["durations"], strict=True)]
        quantiles = {f"p{q}_ms": _ms(percentile(self._bounds, durations, q / 100)) if self._bounds else None for q in (50, 95)}
        served = {(s["pool"], s["server"]): s["requests"] for s in first["servers"]}
        worked = {w["pid"]: w["requests"] for w in first["workers"]}
        return {
            "revision": now["revision"],
            "uptime_seconds": now["uptime_seconds"],
            "requests_per_second": round(self._per_second(requests, first), 1),
            "error_percent": round(100 * errors / requests, 2) if requests else 0.0,
            **quantiles,
            "connections": now["connections"],
            "servers": [
                {
                    "pool": s["pool"], "server": s["server"], "connections": s["connections"], "failures": s["failures"],
                    "per_second": round(self._per_second(s["requests"] - served.get((s["pool"], s["server"]), s["requests"]), first), 1),
                }
                for s in now["servers"]
            ],
            "workers": [
                {
                    "slot": w["slot"], "pid": w["pid"], "state": w["state"], "connections": w["connections"],
                    "lag_ms": _ms(w["lag_seconds"]),
                    "per_second": round(self._per_second(w["requests"] - worked.get(w["pid"], w["requests"]), first), 1),
                }
                for w in now["workers"]
            ],
        }  # fmt: skip


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


# On the screen

_TONES = {"up": "green", "down": "bold red", "ejected": "bold red", "unknown": "dim", "drain": "yellow", "maint": "yellow"}


def screen(
    figures: Mapping[str, Any], pools: Sequence[Mapping[str, Any]], history: Sequence[float], note: str = "", width: int = 120
) -> RenderableType:
    """Everything at a glance, in `width` columns; `pools` as ``GET /api/v1/pools`` gives them."""
    is_narrow = width < NARROW_COLUMNS
    gap = "  " if is_narrow else "   "
    head = Text.assemble(
        ("revproxy", "bold"), f"{gap}{'rev.' if is_narrow else 'revision'} {figures['revision']}{gap}",
        (f"{figures['requests_per_second']:,.0f}", "bold cyan"), f"{'/s' if is_narrow else ' requests/s'}{gap}",
        (f"{figures['error_percent']:g} %", "bold red" if figures["error_percent"] else "bold"), f" errors{gap}p50 ",
        (_shown_ms(figures["p50_ms"]), "bold"), f"{gap}p95 ", (_shown_ms(figures["p95_ms"]), "bold"), gap,
        (f"{figures['connections']:,}", "bold"), " open" if is_narrow else " connections", no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
    top = max(history, default=0.0)
    sparks = "".join(SPARKS[min(8, round(8 * value / top))] if top else SPARKS[0] for value in history)
    parts: list[RenderableType] = [head, Text.assemble((sparks.rjust(SPARK_COLUMNS), "cyan"), (f"  most {top:,.0f}/s", "dim"))]
    rates = {(s["pool"], s["server"]): s for s in figures["servers"]}
    pool_tables = _narrow_pool_table(pools, rates) if is_narrow else [_pool_table(pools, rates)]
    parts += ["", *pool_tables, "", _worker_table(figures["workers"]), ""]
    parts.append(Text(note, "bold yellow") if note else Text("q quits", "dim"))
    return Group(*parts)


def _shown_ms(value: float | None) -> str:
    return "–" if value is None else f"{value:g} ms"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in columns:
        is_number = name[0] == ">"
        table.add_column(name.lstrip(">"), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return table


def _pool_table(pools: Sequence[Mapping[str, Any]], rates: Mapping[tuple[str, str], Mapping[str, Any]]) -> Table:
    table = _table("POOL", "STATE", "HEALTH", ">WEIGHT", ">SHARE", ">NOW", ">/S", ">OPEN", ">FAILURES")
    for pool in pools:
        of_pool = {s["address"]: rates.get((pool["name"], s["address"]), {}) for s in pool["servers"]}
        together = sum(rate.get("per_second", 0.0) for rate in of_pool.values())
        waiting = f", {pool['queue']['waiting']} waiting" if pool["queue"]["waiting"] else ""
        table.add_row(Text.assemble((pool["name"], "bold"), (f" {pool['balance']}{waiting}", "dim")))
        for server in pool["servers"]:
            rate = of_pool[server["address"]]
            health = "ejected" if server["ejected"] else server["health"]["status"]
            left = rate.get("connections", server["connections"])
            state = server["state"] if server["state"] == "ready" else f"{server['state']}, {f'{left} to finish' if left else 'idle'}"
            table.add_row(
                Text(f"  {server['address']}{' backup' if server['backup'] else ''}"),
                Text(state, _TONES.get(server["state"], "")),
                Text.assemble((health, _TONES.get(health, "")), (f" {server['health']['reason']}", "dim")),
                str(server["weight"]["effective"]),
                f"{server['share']:.0%}",
                f"{rate.get('per_second', 0.0) / together:.0%}" if together else "–",
                f"{rate.get('per_second', 0.0):,.1f}",
                f"{left}/{server['max_connections']}",
                str(rate.get("failures", server["failures"])),
            )
    return table


def _narrow_pool_table(pools: Sequence[Mapping[str, Any]], rates: Mapping[tuple[str, str], Mapping[str, Any]]) -> Sequence[RenderableType]:
    """One line for each server in 80 columns; why servers are down comes after the table."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0), expand=True)
    table.add_column("SERVER", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("STATE", no_wrap=True)
    for name in ("WEIGHT", "NOW/SHARE", "/S", "OPEN", "FAILED"):
        table.add_column(name, justify="right", no_wrap=True)
    troubles: list[RenderableType] = []
    for pool in pools:
        of_pool = {s["address"]: rates.get((pool["name"], s["address"]), {}) for s in pool["servers"]}
        together = sum(rate.get("per_second", 0.0) for rate in of_pool.values())
        waiting = f", {pool['queue']['waiting']} waiting" if pool["queue"]["waiting"] else ""
        table.add_row(Text.assemble((pool["name"], "bold"), (f" {pool['balance']}{waiting}", "dim")))
        for server in pool["servers"]:
            rate = of_pool[server["address"]]
            left = rate.get("connections", server["connections"])
            health = "ejected" if server["ejected"] else server["health"]["status"]
            word = f"{server['state']} {left or 'idle'}" if server["state"] != "ready" else health
            now = f"{rate.get('per_second', 0.0) / together:.0%}" if together else "–"
            table.add_row(
                Text(f"  {server['address']}{' backup' if server['backup'] else ''}"),
                Text(word, _TONES.get(word.split()[0], "")),
                str(server["weight"]["effective"]),
                f"{now}/{server['share']:.0%}",
                f"{rate.get('per_second', 0.0):,.1f}",
                str(left),
                str(rate.get("failures", server["failures"])),
            )
            if health in ("down", "ejected"):
                why = f"{server['address']} {health}: {server['health']['reason']}"
                troubles.append(Text(why, "red", no_wrap=True, overflow="ellipsis"))
    more = [Text(f"and {len(troubles) - MOST_TROUBLES} more", "red")] if len(troubles) > MOST_TROUBLES else []
    return [table, *troubles[:MOST_TROUBLES], *more]


def _worker_table(workers: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("WORKER", "STATE", ">/S", ">OPEN", ">LAG")
    for worker in workers:
        tone = "green" if worker["state"] == "serving" else "bold red"
        row = (f"{worker['per_second']:,.1f}", str(worker["connections"]), _shown_ms(worker["lag_ms"]))
        table.add_row(f"{worker['slot']} ({worker['pid']})", Text(worker["state"], tone), *row)
    return table


# Running


class Feed:
    """Events of a stream that is opened again whenever it ends, read by a thread of its own."""

    def __init__(self, connect: Callable[[], Iterable[bytes]]) -> None:
        self._connect = connect
        self.events: queue.Queue[Event] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            why = "the daemon closed the stream"
            try:
                for event in events(self._connect()):
                    self.events.put(event)
            except Exception as e:  # told to the one who watches; there is nobody else to raise it to
                why = _why(e)
            self.events.put(("gone", why))
            time.sleep(RETRY_S)


def _why(error: Exception) -> str:
    return str(getattr(error, "message", "")) or f"the stream broke: {error}"


def print_lines(feed: Feed, updates: int | None) -> str:
    """One line of JSON for each second; returns why it ended before `updates` were printed, or ""."""
    meter = Meter()
    while updates is None or updates > 0:
        kind, data = feed.events.get()
        if kind == "gone":
            return str(data)
        if kind == "recent":
            meter.recent(data)
        elif kind == "stats":
            meter.add(data)
            if not meter.has_rates:
                continue
            print(json.dumps(meter.figures()), flush=True)
            updates = None if updates is None else updates - 1
    return ""


def watch(feed: Feed, pools: Callable[[], Sequence[Mapping[str, Any]]], updates: int | None, console: Console | None = None) -> None:
    """Fill the terminal until q, Ctrl-C or so many `updates`; `pools` asks the daemon."""
    meter, note, known, asked = Meter(), "", pools(), time.monotonic()
    console = console or Console()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while updates is None or updates > 0:
            key = pressed(0.1)
            if key in ("q", "Q", "\x03", "\x04"):
                return
            is_stale = time.monotonic() - asked > LOOK_AGAIN_S
            is_new = False
            while not feed.events.empty():
                kind, data = feed.events.get()
                if kind == "gone":
                    note, is_new = f"{str(data).rstrip('.')}; trying again", bool(meter.history)
                elif kind == "recent":
                    meter.recent(data)
                elif kind == "stats":
                    meter.add(data)
                    note, is_new = "", True
                    updates = None if updates is None else updates - 1
                else:
                    is_stale = True
            if is_stale and not note:
                asked = time.monotonic()
                try:
                    known = pools()
                except Exception as e:  # shown instead; the stream says soon enough what is wrong
                    note, is_new = _why(e), True
            if is_new and meter.history:
                live.update(screen(meter.figures(), known, meter.history, note, console.width), refresh=True)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Reads single keys, within so many seconds; "" when none was pressed. The terminal is put back at the end."""
    if not sys.stdin.isatty():
        yield lambda wait: time.sleep(wait) or ""  # type: ignore[func-returns-value]
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(wait: float) -> str:
        ready, _, _ = select.select([terminal], [], [], wait)
        return os.read(terminal, 1).decode("latin-1") if ready else ""

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
