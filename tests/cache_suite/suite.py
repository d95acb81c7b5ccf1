"""The public cache tests (github.com/http-tests/cache-tests) against this checkout and against nginx, side by side, on this machine.

    make cache-tests CACHE_TESTS=/path/of/a/checkout      (which needs ``npm install`` done in it, and node)

How it works
    The suite's own server and its command-line client run as they are; between them a proxy with one route and ``cache = {}``, then
    nginx with ``proxy_cache``. The suite's own code judges the results. Printed is how many tests of each kind pass, and each test that
    our side does not pass with what nginx does with it. Exit code 1 when nginx passes as many of the required ones or more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

import bed

KINDS = ("required", "optimal", "check")
PASSED = frozenset({"pass", "yes"})
JUDGE = """
import fs from 'fs'
const [dir, file] = process.argv.slice(-2)
const suites = (await import(dir + '/tests/index.mjs')).default
const { determineTestResult, resultTypes } = await import(dir + '/test-engine/lib/results.mjs')
const names = new Map(Object.entries(resultTypes).map(([name, type]) => [type[2], name]))
const results = JSON.parse(fs.readFileSync(file))
const found = []
for (const suite of suites) for (const test of suite.tests) {
  if (test.browser_only) continue
  const type = determineTestResult(suites, test.id, results, false)
  found.push([test.id, test.kind || 'required', names.get(type[2]) || type[2], test.name])
}
console.log(JSON.stringify(found))
"""
Judged = dict[str, tuple[str, str, str]]
"""Test: (kind, result, name)."""


class SuiteServer(bed.Part):
    """The scripted server of the suite."""

    def __init__(self, suite: Path) -> None:
        super().__init__()
        self.port = bed.free_port()
        env = os.environ | {
            "npm_config_protocol": "http", "npm_config_port": str(self.port), "npm_config_pidfile": str(self.directory / "pid"),
        }  # fmt: skip
        self.launch([bed.program("node"), str(suite / "test-engine/server/server.mjs")], env=env)
        self.wait_for(lambda: bed.accepts(self.port), "the suite's server to listen")


class CachingNginx(bed.Part):
    """nginx as the suite itself runs it."""

    def __init__(self, server: int) -> None:
        super().__init__()
        self.port = bed.free_port()
        (self.directory / "tmp").mkdir()
        config = self.directory / "nginx.conf"
        user = "user root;" if os.getuid() == 0 else ""
        temporary = " ".join(f"{name}_temp_path {self.directory}/tmp;" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config.write_text(f"""
            daemon off; worker_processes 1; {user} pid {self.directory}/nginx.pid; error_log {self.log_file} error;
            events {{ worker_connections 1024; }}
            http {{
              access_log off; {temporary}
              proxy_cache_path {self.directory}/cache levels=1:2 keys_zone=it:8m max_size=1000m inactive=600m;
              server {{
                listen {bed.HOST}:{self.port};
                location / {{
                  proxy_pass http://{bed.HOST}:{server}; proxy_cache it; proxy_cache_revalidate on; proxy_http_version 1.1;
                }}
              }}
            }}""")
        self.launch([bed.program("nginx"), "-c", str(config), "-p", str(self.directory)])
        self.wait_for(lambda: bed.accepts(self.port), "nginx to listen")


def judged(suite: Path, port: int, directory: Path) -> Judged:
    """What the suite says of the cache on `port`."""
    node = bed.program("node")
    env = os.environ | {"npm_config_base": f"http://{bed.HOST}:{port}", "npm_config_id": "", "npm_package_config_id": ""}
    client = [node, "--no-warnings", str(suite / "test-engine/cli.mjs")]
    made = subprocess.run(client, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False, cwd=suite)
    if made.returncode:
        raise SystemExit(f"the suite's client failed:\n{made.stderr[-2000:]}\nHas `npm install` been done in {suite}?")
    results = directory / "results.json"
    results.write_text(made.stdout)
    judge = [node, "--no-warnings", "--input-type=module", "-e", JUDGE, str(suite), str(results)]
    said = subprocess.run(judge, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    return {test: (kind, result, name) for test, kind, result, name in json.loads(said.stdout)}


def table(ours: Judged, nginx: Judged) -> str:
    """Markdown: how many pass, and what ours does not pass."""
    lines = ["| kind | tests | revproxy passes | nginx passes |", "|---|---:|---:|---:|"]
    for wanted in KINDS:
        passes = [Counter(result in PASSED for kind, result, _ in side.values() if kind == wanted) for side in (ours, nginx)]
        lines.append(f"| {wanted} | {passes[0].total()} | {passes[0][True]} | {passes[1][True]} |")
    lines += ["", "| not passed | kind | revproxy | nginx | what |", "|---|---|---|---|---|"]
    for wanted in KINDS[:2]:
        for test, (kind, result, name) in ours.items():
            if kind == wanted and result not in PASSED:
                lines.append(f"| {test} | {kind} | {result} | {nginx[test][1]} | {name} |")
    return "\n".join(lines)


def main() -> int:
    place = (sys.argv[1:] or [os.environ.get("CACHE_TESTS", "")])[0]
    suite = Path(place).resolve()
    if not place or not (suite / "test-engine/cli.mjs").is_file():
        print("Say where a checkout of https://github.com/http-tests/cache-tests is: CACHE_TESTS=/path make cache-tests", file=sys.stderr)
        return 2
    server = SuiteServer(suite)
    parts: list[bed.Part] = [server]
    try:
        site = f'[pools.o]\nservers = ["{bed.HOST}:{server.port}"]\n[sites."*"]\n"/" = {{ pool = "o", cache = {{}} }}\n'
        proxy = bed.Proxy(site, workers=2)
        parts.append(proxy)
        ours = judged(suite, proxy.http_port, proxy.directory)
        nginx = CachingNginx(server.port)
        parts.append(nginx)
        theirs = judged(suite, nginx.port, nginx.directory)
    finally:
        for part in reversed(parts):
            part.close()
    print(table(ours, theirs))
    required = [sum(kind == "required" and result in PASSED for kind, result, _ in side.values()) for side in (ours, theirs)]
    return 0 if required[0] > required[1] else 1


if __name__ == "__main__":
    raise SystemExit(main())
