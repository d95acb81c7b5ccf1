"""What operators rely on when they change things: a preview that comes true, refusals that change nothing, a journal that survives."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import threading
import time
from random import Random
from typing import Any

import bed

from twistedproxy.admin.operations import OPERATIONS

GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "change_server": ("/api/v1/pools/web/servers/A", {"weight": 7}),
    "add_server": ("/api/v1/pools/web/servers", {"address": "127.0.0.1:1"}),
    "remove_server": ("/api/v1/pools/web/servers/A", {}),
    "undo": ("/api/v1/changes/1/undo", {}),
    "confirm": ("/api/v1/changes/1/confirm", {}),
    "reload": ("/api/v1/config/reload", {}),
    "change_site": ("/api/v1/sites/shop.example", {"maintenance": True}),
    "start_shift": ("/api/v1/shifts", {"from": "web", "to": "canary", "steps": [5, 50], "every": "1m"}),
    "stop_shift": ("/api/v1/shifts/1", {}),
    "adopt": ("/api/v1/config/adopt", {}),
    "restart_workers": ("/api/v1/workers/restart", {}),
    "start_upgrade": ("/api/v1/upgrade", {}),
    "purge": ("/api/v1/cache/purge", {"url": "http://shop.example/x"}),
}
"""A path and body for each operation that changes something, as it would be accepted; A: a server."""


def config(a: bed.Nginx, b: bed.Nginx) -> str:
    return (
        f"[pools.web]\nservers = {json.dumps([a.address, b.address])}\n"
        f'[pools.users]\nservers = {json.dumps([a.address, b.address + " weight=3"])}\nbalance = "hash:header.X-User"\n'
        f"[pools.canary]\nservers = {json.dumps([b.address])}\n"
        '[sites."shop.example"]\n"/" = { split = { web = 9, canary = 1 } }\n'
        '[sites."users.example"]\n"/" = "users"\n[sites."*"]\n"/" = "web"\n'
    )


def revproxy(made: bed.Proxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twistedproxy.cli", "--state", str(made.state), *arguments]
    return bed.run(command, within=30, env=bed.proxy_env())


def test_a_preview_by_keys_comes_true(proxy, nginx_a, nginx_b) -> None:
    """The part of the recorded requests that "would move" when a server is drained is the part that then does move; no other does."""
    made = proxy(config(nginx_a, nginx_b), workers=2)
    seen = dict[str, str]()

    def where(user: str) -> str:
        # The servers answer with their own name.
        return made.fetch("/name", headers={"Host": "users.example", "X-User": user})[1].decode()

    users = [f"user-{n}" for n in range(60)]
    for user in users:
        seen[user] = where(user)
    by_server = {name: sum(1 for user in users if seen[user] == name) for name in set(seen.values())}
    assert len(by_server) == 2, by_server
    path = f"/api/v1/pools/users/servers/{nginx_a.address}"
    status, answer = made.ask("PATCH", f"{path}?preview=1", {"state": "drain"})
    assert status == 200, answer
    (replay,) = answer["preview"]["replays"]
    assert (replay["pool"], answer["preview"]["closing"]) == ("users", 0)
    assert 20 <= replay["requests"] <= 60, replay
    told = revproxy(made, "drain", "users", nginx_a.address, "--preview").stdout
    assert re.search(r"users: \d+\.\d% of the \d+ requests recorded lately would go to another server", told), told
    assert made.get("/api/v1/changes")["changes"] == []
    made.change("users", nginx_a.address, state="drain")
    moved = [user for user in users if where(user) != seen[user]]
    assert {seen[user] for user in moved} == {min(by_server, key=lambda name: by_server[name])}
    # The sample holds the first requests of each second; all 60 came within a few.
    assert abs(replay["moved"] - len(moved) / len(users)) < 0.12, (replay, len(moved))


def test_every_refused_change_says_why_and_changes_nothing(proxy, nginx_a, nginx_b) -> None:
    """Of every operation there is: a stale If-Match is 412, and each wrong key or value is named with what is allowed."""
    made = proxy(config(nginx_a, nginx_b))
    made.change("web", nginx_a.address, weight=5)
    status, shift = made.ask("POST", "/api/v1/shifts", GOOD["start_shift"][1])
    assert (status, shift["id"]) == (200, "1"), shift
    operations = {operation.name: operation for operation in OPERATIONS if operation.is_mutation and operation.name != "check"}
    assert operations.keys() == GOOD.keys(), "an operation without an example here"

    def facts() -> Any:
        pools = [[(s["address"], s["weight"], s["state"]) for s in p["servers"]] for p in made.get("/api/v1/pools")["pools"]]
        sites = [(s["name"], s["maintenance"], [r.get("split") for r in s["routes"]]) for s in made.get("/api/v1/sites")["sites"]]
        return made.get("/api/v1/status")["revision"], pools, sites, len(made.get("/api/v1/shifts")["shifts"]), made.config_file.read_text()

    before = facts()
    for name, (template, body) in GOOD.items():
        operation, path = operations[name], template.replace("/A", f"/{nginx_a.address}")
        status, told = made.ask(operation.method, path, body, headers={"If-Match": '"1"'})
        assert (status, "look again" in told["detail"]) == (412, True), (name, told)
        wrong: list[tuple[Any, str, str]] = [(body | {"colour": 1}, "colour", "unknown key")]
        for field in operation.body or ():
            nonsense = {int: "x", str: 7, bool: "x", float: "x", dict: 7}[field.kind]
            wrong.append((body | {field.name: nonsense}, field.name, "allowed"))
            if field.required:
                wrong.append(({key: value for key, value in body.items() if key != field.name}, field.name, "missing"))
            if field.high is not None and not field.is_list:
                over = field.high + 1 if field.kind is int else "x" * (field.high + 1)
                wrong.append((body | {field.name: over}, field.name, "allowed"))
            if field.name in ("confirm_within", "every"):
                wrong.append((body | {field.name: "soon"}, field.name, "10m" if field.name == "every" else "soon"))
            if field.name == "abort_if" and name not in ("undo", "adopt", "reload"):
                wrong.append((body | {field.name: "luck > 1%"}, field.name, "allowed"))
        for sent, named, word in wrong:
            status, told = made.ask(operation.method, path, sent)
            assert (status, told.get("field")) == (400, named), (name, sent, status, told)
            assert named in told["detail"] or "allowed" in told["detail"], told
            assert word in ("10m", "soon") or word in told["detail"], (name, sent, told)
    assert facts() == before
    log = made.log
    assert "Traceback" not in log, log[-3000:]


def test_p17_kill_and_a_full_disk_lose_no_acknowledged_change(proxy, nginx_a, nginx_b) -> None:
    """P17: kill -9 in the middle of admin writes; then a disk that takes no more: traffic is served, changes are refused."""
    made = proxy(config(nginx_a, nginx_b))
    seeded, acknowledged = Random(17), dict[int, int]()
    for _ in range(2):
        ends = time.monotonic() + seeded.uniform(0.15, 0.4)

        def write() -> None:
            for weight in range(1, 1000):
                try:
                    status, answer = made.ask("PATCH", f"/api/v1/pools/web/servers/{nginx_a.address}", {"weight": weight})
                except (OSError, bed.http.client.HTTPException, ValueError):
                    return
                if status == 200 and answer["workers"]["total"]:
                    acknowledged[answer["revision"]] = weight

        writer = threading.Thread(target=write)
        writer.start()
        while time.monotonic() < ends:
            time.sleep(0.01)
        made.kill_family()
        writer.join()
        made.start()
        kept = {c["revision"]: c["change"]["after"] for c in made.get("/api/v1/changes")["changes"]}
        assert acknowledged.items() <= kept.items()
        assert made.server("web", nginx_a.address)["weight"]["set"] == kept[max(kept)]
    assert len(acknowledged) > 10, "too few writes to mean anything"

    journal = made.state / "journal.jsonl"
    length = journal.stat().st_size
    no_limit = resource.prlimit(made.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(made.pid, resource.RLIMIT_FSIZE, (length, no_limit[1]))  # no file grows beyond it, as on a full disk
    revision = made.get("/api/v1/status")["revision"]
    status, told = made.ask("PATCH", f"/api/v1/pools/web/servers/{nginx_a.address}", {"weight": 999, "reason": "x" * 200})
    assert (status, "nothing was changed" in told["detail"]) == (503, True), told
    assert made.fetch("/")[0] == 200
    assert (made.get("/api/v1/status")["revision"], journal.stat().st_size) == (revision, length)
    resource.prlimit(made.pid, resource.RLIMIT_FSIZE, no_limit)
    assert made.change("web", nginx_a.address, weight=999)["revision"] == revision + 1


def test_draining_is_watched_until_nothing_is_open(proxy, nginx_a) -> None:
    """`drain --wait` says how many connections are left and ends when there are none."""
    with bed.closing(bed.socket.create_server((bed.HOST, 0))) as listener:
        address = f"{bed.HOST}:{listener.getsockname()[1]}"
        port = bed.free_port()
        servers = json.dumps([address, f"{nginx_a.address} backup"])
        made = proxy(f'[pools.db]\nservers = {servers}\n[tcp."{bed.HOST}:{port}"]\npool = "db"\n')
        with bed.socket.create_connection((bed.HOST, port), timeout=10) as client:
            listener.settimeout(10)
            server, _ = listener.accept()
            command = [sys.executable, "-m", "twistedproxy.cli", "--state", str(made.state), "drain", "db", address, "--wait"]
            waiting = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=bed.proxy_env())
            assert waiting.stderr is not None
            try:
                assert waiting.stderr.readline() == "1 connection left\n"
                client.close()
                server.close()
                out, told = waiting.communicate(timeout=20)
            finally:
                if waiting.poll() is None:
                    waiting.kill()
        assert (waiting.returncode, told) == (0, f"{address} is idle: nothing is open any more\n"), (out, told)
        assert "drain: revision" in out
