"""Reloads, worker counts and restarts under load: nobody is refused, nothing fails, and what the operator set holds (LC-01, P14, P16)."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from contextlib import closing

import bed

SITE = '[sites."*"]\n"/" = "web"\n'


def web(*servers: str, more: str = "") -> str:
    return f"[pools.web]\nservers = {json.dumps(list(servers))}\n{more}{SITE}"


def reload(made: bed.Proxy) -> dict:
    status, body = made.ask("POST", "/api/v1/config/reload", {})
    assert status == 200, body
    assert body["workers"]["acked"] == body["workers"]["total"], body
    return body


def cli(made: bed.Proxy, *words: str) -> bed.subprocess.CompletedProcess[str]:
    return bed.run([*bed.REVPROXY, "--state", str(made.state), *words], env=bed.proxy_env(), within=30)


def test_lc_01_reloads_under_load_lose_nothing(proxy, nginx_a, nginx_b) -> None:
    """P14: reloads with other weights, listeners, pools and worker counts under load on kept and on fresh connections.

    No request fails, no connection is refused, the L4 session and the keep-alive that were open before still work after, and no worker
    that was meant to stay was replaced. FULL: 20 reloads in 60 s.
    """
    echo = bed.Echo()
    tcp, extra = bed.free_port(), bed.free_port()
    rest = f'[pools.echo]\nservers = ["{echo.address}"]\n[tcp."{bed.HOST}:{tcp}"]\npool = "echo"\nmax_connections = 1000\n'
    more = f'[pools.more]\nservers = ["{nginx_b.address}"]\n[tcp."{bed.HOST}:{extra}"]\npool = "more"\nmax_connections = 1000\n'
    variants = [
        web(f"{nginx_a.address} weight=3", nginx_b.address) + rest + more,
        web(nginx_a.address, more='balance = "least_conn"\n') + rest,
        web(nginx_a.address, nginx_b.address, more="keepalive = { size = 8 }\n") + rest + more,
    ]
    made = proxy(web(nginx_a.address) + rest, workers=2)
    made.wait_for(lambda: len(made.workers()) == 2, "both workers")
    before = made.workers()
    count, pause = (20, 3.0) if bed.FULL else (9, 0.4)
    failed: list[str] = []
    asked = [0]
    ends = threading.Event()

    def knock() -> None:
        while not ends.is_set():
            try:
                assert made.fetch("/")[0] == 200
                asked[0] += 1
            except Exception as e:
                failed.append(repr(e))

    knocking = threading.Thread(target=knock, daemon=True)
    with (
        closing(socket.create_connection((bed.HOST, tcp), timeout=10)) as session,
        closing(bed.http.client.HTTPConnection(bed.HOST, made.http_port, timeout=10)) as kept,
    ):
        kept.request("GET", "/")
        assert kept.getresponse().read()
        source = kept.sock.getsockname()
        session.sendall(b"before")
        assert session.recv(100) == b"before"
        load = bed.start_wrk(made.url + "/", round(count * (pause + 0.25)))
        knocking.start()
        try:
            for number in range(count):
                made.head = made.head.replace("count = 2", "count = 3") if number == 3 else made.head.replace("count = 3", "count = 2")
                made.write(variants[number % 3])
                reload(made)
                assert bed.accepts(extra) == (number % 3 != 1)
                kept.request("GET", "/")  # in the long form it would be idle for over 60 s
                assert kept.getresponse().read()
                assert kept.sock.getsockname() == source, f"reload {number} closed the keep-alive connection"
                time.sleep(pause)
        finally:
            ends.set()
            knocking.join()
            result = bed.end_wrk(load)
        assert result.errors == 0, result
        assert failed == []
        assert asked[0] > 20
        session.sendall(b"after")
        assert session.recv(100) == b"after"
        kept.request("GET", "/")
        assert kept.getresponse().read()
        assert kept.sock.getsockname() == source, "the keep-alive connection was closed"
    made.wait_for(lambda: made.workers() == before, "the third worker to leave and the others to be as before")
    assert f'revproxy_config_reloads_total{{result="success"}} {count}' in made.get("/metrics").decode()


def test_p16_a_broken_file_changes_nothing(proxy, nginx_a) -> None:
    """Every problem is told with its line, by API, CLI and in the log after SIGHUP; the old configuration serves on."""
    made = proxy(web(nginx_a.address))
    made.write('[pools.web]\nservers = ["127.0.0.1:99999"]\nbalanse = "random"\n' + SITE)
    status, body = made.ask("POST", "/api/v1/config/reload", {})
    assert (status, {p["path"] for p in body["problems"]}) == (400, {"pools.web.balanse", "pools.web.servers[0].address"}), body
    done = cli(made, "reload")
    assert done.returncode == 1
    assert done.stderr.count("revproxy.toml:") == 2, done.stderr
    os.kill(made.pid, signal.SIGHUP)
    made.wait_for(lambda: made.log.count("reload refused") == 6, "both problems of three attempts in the log")
    taken = socket.create_server((bed.HOST, 0))
    made.write(f'[tcp."{bed.HOST}:{taken.getsockname()[1]}"]\npool = "web"\nmax_connections = 9\n' + web(nginx_a.address))
    status, body = made.ask("POST", "/api/v1/config/reload", {})
    assert status == 400, body
    assert "taken" in body["problems"][0]["message"], body
    taken.close()
    assert made.fetch("/")[0] == 200
    assert made.get("/api/v1/changes")["changes"] == []
    assert 'revproxy_config_reloads_total{result="refused"} 4' in made.get("/metrics").decode()


def test_live_values_and_the_file(proxy, nginx_a, nginx_b) -> None:
    """A live weight survives a reload unless the file changed that very value; undo, past revisions, diff and adopt agree with it."""
    made = proxy(web(nginx_a.address, nginx_b.address))
    made.change("web", nginx_a.address, weight=7)
    made.change("web", nginx_b.address, weight=9)
    # comments and layout are the operator's
    text = f'# ours\n[pools.web]\nservers = [\n  "{nginx_a.address}",  # the old one\n  "{nginx_b.address} weight=2",\n]\n{SITE}'
    made.write(text)
    answer = reload(made)
    assert len(answer["superseded"]) == 1
    assert nginx_b.address in answer["superseded"][0]
    assert [s["weight"]["effective"] for s in made.get("/api/v1/pools/web")["servers"]] == [7, 2]
    then = made.get("/api/v1/config?revision=2")["pools"]["web"]["servers"]
    assert [s["weight"] for s in then] == [7, 9]
    status, _ = made.ask("POST", f"/api/v1/changes/{answer['revision']}/undo", {})
    assert status == 200
    assert [s["weight"]["effective"] for s in made.get("/api/v1/pools/web")["servers"]] == [7, 9]
    os.kill(made.pid, signal.SIGHUP)
    made.wait_for(lambda: made.server("web", nginx_b.address)["weight"]["effective"] == 2, "SIGHUP to reload")
    done = cli(made, "diff")
    assert (done.returncode, nginx_a.address in done.stdout, nginx_b.address in done.stdout) == (1, True, False), done.stdout
    done = cli(made, "adopt", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'  "{nginx_a.address} weight=7",  # the old one\n' in made.config_file.read_text()
    assert made.config_file.read_text().startswith(made.head + "# ours\n")
    assert cli(made, "diff").returncode == 0
    view = made.server("web", nginx_a.address)["weight"]
    assert view == {"configured": 7, "set": None, "effective": 7}


def test_what_is_not_confirmed_is_taken_back(proxy, nginx_a, nginx_b) -> None:
    """A change that nobody confirms is undone by itself, also when its time runs out while the proxy is down; a confirmed one stays."""
    made = proxy(web(nginx_a.address, nginx_b.address))
    first = made.change("web", nginx_a.address, weight=7, confirm_within="1s")
    kept = made.change("web", nginx_b.address, weight=5, confirm_within="2s")
    assert cli(made, "confirm", str(kept["revision"])).returncode == 0
    made.wait_for(lambda: made.server("web", nginx_a.address)["weight"]["set"] is None, "the change to be undone")
    entry = next(c for c in made.get("/api/v1/changes")["changes"] if c["revision"] == first["revision"])
    assert entry["undone_by"] is not None
    made.change("web", nginx_a.address, state="maint", confirm_within="1s")
    made.kill_family()
    time.sleep(1.1)
    made.start()
    made.wait_for(lambda: made.server("web", nginx_a.address)["state"] == "ready", "the late change to be undone at start")
    assert made.server("web", nginx_b.address)["weight"]["set"] == 5


def test_a_guarded_change_is_undone_with_figures(proxy, nginx_a) -> None:
    """`abort_if` watches the traffic after a change and takes it back when errors rise; the journal has the figures."""
    nobody = f"{bed.HOST}:{bed.free_port()}"
    made = proxy(web(nginx_a.address, more="retry = { tries = 0 }\neject = false\n"))
    status, body = made.ask("POST", "/api/v1/pools/web/servers", {"address": nobody, "abort_if": "errors > 5%", "weight": 3})
    assert status == 200, body
    load = bed.start_wrk(made.url + "/", 4)
    made.wait_for(lambda: len(made.get("/api/v1/pools/web")["servers"]) == 1, "the bad server to be taken out again")
    bed.end_wrk(load)
    undone = made.get("/api/v1/changes")["changes"][-1]
    assert (undone["by"], "errors > 5%" in undone["reason"]) == ("revproxy", True), undone
