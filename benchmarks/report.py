"""From rounds to a table people can read, a JSON file programs can read, and a plot."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.__main__ import Result, Round

US = "twistedproxy"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- last table -->", "<!-- end of last table -->"


def _spread(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f}–{median(values):.{digits}f}–{max(values):.{digits}f}"


def ratio(result: Result, peer: str) -> tuple[float, float, float, float]:
    """Ours over `peer`'s CPU: of the minima, then min, median and max over interleaved rounds."""
    ours, theirs = [r.cpu_us for r in result.of(US)], [r.cpu_us for r in result.of(peer)]
    pairs = [a / b for a, b in zip(ours, theirs, strict=True) if b] or [0.0]
    return min(ours) / max(min(theirs), 1e-9), min(pairs), median(pairs), max(pairs)


def _peers(result: Result) -> list[str]:
    return list(dict.fromkeys(r.peer for r in result.rounds))


def line(result: Result) -> str:
    """One scenario, for the terminal."""
    parts = []
    for peer in _peers(result):
        rounds = result.of(peer)
        asked = f", {max(r.asked_each for r in rounds):.2g} asked of the origin" if result.scenario.startswith("cache-") else ""
        size = f" for {min(r.bytes_each for r in rounds):,.0f} bytes" if result.scenario == "gzip" else ""
        parts.append(f"{peer} {min(r.cpu_us for r in rounds):.1f} µs{size}{asked}")
    parts += [f"{peer} failed: {why}" for peer, why in result.failures.items()]
    return f"{result.title}: " + " · ".join(parts)


def table(results: list[Result]) -> str:
    """Markdown: every scenario and peer, with our ratio to it."""
    rows = [
        "| scenario | proxy | CPU µs per answer (min–median–max) | of which user | answers/s | p50 / p99 ms "
        "| ours ÷ it: of minima (min–median–max) | errors | stolen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for peer in _peers(result):
            rounds: list[Round] = result.of(peer)
            compared = ""
            if peer not in (US, "origin") and result.of(US):
                of_minima, low, middle, high = ratio(result, peer)
                compared = f"**{of_minima:.2f}** ({low:.2f}–{middle:.2f}–{high:.2f})"
            rows.append(
                f"| {result.title} | {peer} | {_spread([r.cpu_us for r in rounds])} | {median(r.user_us for r in rounds):.1f} | "
                f"{median(r.per_second for r in rounds):,.0f} | {median(r.p50_ms for r in rounds):.2f} / "
                f"{median(r.p99_ms for r in rounds):.2f} | {compared} | {sum(r.errors for r in rounds)} | "
                f"{max(r.steal for r in rounds):.0%} |"
            )
        rows += [f"| {result.title} | {peer} | failed: {why} | | | | | | |" for peer, why in result.failures.items()]
    return "\n".join(rows)


def _cache_checks(caches: dict[str, dict[str, Any]]) -> list[str]:
    """How often the origin was asked: that hits are hits, that misses are kept, and how many of a herd get through."""
    rows = [
        "\n| requests at the origin | for 20 hits of 1 kB | with Vary | of 1 MB | for 20 new URLs | for the same again "
        "| for 1,000 at once for one slow object | of them answered whole | says |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in caches.items():
        if "failed" in row:
            rows.append(f"| {name} | failed: {row['failed']} | | | | | | | |")
        else:
            columns = ("hits", "vary", "large", "unique", "unique_again", "herd", "herd_whole", "says")
            rows.append(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |")
    return rows


def _asked(results: list[dict[str, Any]]) -> str:
    said = []
    for result in results:
        if result["scenario"].startswith("cache-"):
            most: dict[str, float] = {}
            for each in result["rounds"]:
                most[each["peer"]] = max(most.get(each["peer"], 0.0), each["asked_each"])
            said.append(f"{result['title']}: " + ", ".join(f"{peer} {asked:.4f}" for peer, asked in most.items()))
    return "; ".join(said)


def more_tables(facts: dict[str, Any]) -> str:
    parts = []
    if facts.get("left_out"):
        parts.append("\nLeft out: " + "; ".join(f"{name} ({why})" for name, why in facts["left_out"].items()) + ".")
    if facts.get("caches"):
        parts += _cache_checks(facts["caches"])
        parts.append("\nUnder load, requests at the origin per answer (the most of any round): " + _asked(facts["results"]) + ".")
    if facts.get("idle"):
        parts.append("\n| proxy | bytes per idle HTTP connection | per idle L4 session | family at rest, MiB |\n|---|---|---|---|")
        for name, row in facts["idle"].items():
            tcp = f"{row['tcp']:,.0f}" if "tcp" in row else ""
            parts.append(f"| {name} | {row.get('http', 0):,.0f} | {tcp} | {row.get('family', 0) / 2**20:.0f} |")
    parts += [f"\n{what}: failed: {facts[what]['failed']}" for what in ("pgbench", "workers") if "failed" in facts.get(what, ())]
    if facts.get("pgbench") and "failed" not in facts["pgbench"]:
        parts.append("\n| pgbench -S through L4 | CPU µs per transaction | transactions/s | errors |\n|---|---|---|---|")
        for name, row in facts["pgbench"].items():
            parts.append(f"| {name} | {row['cpu_us']:.1f} | {row['per_second']:,.0f} | {row['errors']:.0f} |")
    if facts.get("workers") and "failed" not in facts["workers"]:
        one, two = facts["workers"]["1"], facts["workers"]["2"]
        parts.append(
            f"\nTwo workers against one: {two / one:.2f} × the answers per second (the load generator and the origin share the CPUs)."
        )
    return "\n".join(parts)


def plot(results: list[Result], path: Path) -> None:
    """Bars of CPU per answer, relative to nginx, one group per scenario. Plain SVG: nothing to install, and it can be diffed."""
    colours = {
        US: "#0b6e4f", "twistedproxy-pure": "#7fb69e", "nginx": "#6c757d", "haproxy": "#3d5a80", "envoy": "#b56576", "caddy": "#e09f3e",
        "twisted.web.proxy": "#9d4edd", "varnish": "#5390d9", "twistedproxy, uncached": "#7fb69e",
    }  # fmt: skip
    groups = [r for r in results if r.of("nginx") and r.scenario != "latency"]
    height, y, parts = 0, 30, []
    for result in groups:
        base = min(r.cpu_us for r in result.of("nginx"))
        parts.append(f'<text x="10" y="{y + 4}" font-weight="bold">{result.title}</text>')
        y += 12
        for peer in _peers(result):
            if peer == "origin":
                continue
            value = min(r.cpu_us for r in result.of(peer)) / base
            width = min(value, 8) * 60
            parts.append(f'<rect x="160" y="{y}" width="{width:.0f}" height="12" fill="{colours.get(peer, "#999")}"/>')
            parts.append(f'<text x="150" y="{y + 10}" text-anchor="end">{peer}</text>')
            parts.append(f'<text x="{165 + width:.0f}" y="{y + 10}">{value:.2f}{" (cut)" if value > 8 else ""}</text>')
            y += 16
        y += 18
    height = y
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" font-size="11">'
    title = '<rect width="100%" height="100%" fill="white"/>'
    title += '<text x="10" y="16" font-size="13">CPU per answer, nginx = 1 (shorter is better)</text>'
    rule = f'<line x1="220" y1="24" x2="220" y2="{height - 20}" stroke="#444" stroke-dasharray="3 3"/>'
    path.write_text(head + title + rule + "".join(parts) + "</svg>\n")


def write(facts: dict[str, Any], results: list[Result], keep: bool) -> None:
    """Print the tables, and keep them as files; `keep` puts them into README.md as the last ones."""
    facts["at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = table(results) + "\n" + more_tables(facts)
    noise = max((r.steal for result in results for r in result.rounds), default=0)
    about = facts["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    where = f"{about['cpus']} × {about['cpu']}, Linux {about['kernel']}, Python {about['python']}"
    note = f"\n{facts['at']}, {where}; most CPU stolen in a round: {noise:.0%}.\n{versions}.\n"
    print("\n" + text + "\n" + note)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / facts["at"].replace(":", "")
    stem.with_suffix(".json").write_text(json.dumps(facts, indent=1))
    stem.with_suffix(".md").write_text(text + "\n" + note)
    plot(results, stem.with_suffix(".svg"))
    if keep:
        readme = Path(__file__).parent / "README.md"
        before, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{text}\n{note}{END}{rest.partition(END)[2]}")
        plot(results, Path(__file__).parent / "last.svg")
    print(f"written to {stem}.json, .md, .svg")
