"""Processes come and go under load: workers replaced, their number changed, a new version in place of the old; nobody notices."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import bed

from twistedproxy.tap import PATIENCE_S

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = base64.b64encode(hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()

SWITCH = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"


class WebSocketEcho(bed.Echo):
    """To an HTTP head it first answers 101."""

    def greet(self, connection: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(65536)
        connection.sendall(SWITCH.encode())


class Load:
    """What must not fail, again and again on threads until `end`; `failed` says what did."""

    def __init__(self, *what: Callable[[], Any]) -> None:
        self.failed: list[str] = []
        self.done = [0] * len(what)
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n, each), daemon=True) for n, each in enumerate(what)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, each: Callable[[], Any]) -> None:
        while not self._ends.is_set():
            try:
                each()
                self.done[number] += 1
            except Exception as e:
                self.failed.append(f"{time.strftime('%X')} {e!r}")

    def end(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(30)


def echoes(connection: socket.socket, word: bytes) -> None:
    connection.sendall(word)
    got = b""
    while len(got) < len(word):
        data = connection.recv(100)
        assert data, f"closed before {word!r} came back"
        got += data
    assert got == word


def open_websocket(port: int) -> socket.socket:
    connection = socket.create_connection((bed.HOST, port), timeout=10)
    connection.sendall(
        f"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(4096)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return connection


def upgraded(made: bed.Proxy, was: int) -> dict[str, Any]:
    """Wait until another process than `was` serves, and go on with that one."""

    def look() -> Any:
        try:
            status, body = made.ask("GET", "/api/v1/upgrade")
        except (OSError, bed.http.client.HTTPException):
            return None
        assert status == 200, body
        assert body["state"] != "failed", f"{body}\n{made.log[-3000:]}"
        return body if body["state"] in ("draining", "done") and body["pid"] != was else None

    answer: dict[str, Any] = bed.wait_until(look, "the new version to serve", 40)
    made.follow(answer["pid"])
    return answer


def test_processes_change_under_load_and_nobody_notices(proxy, nginx_a) -> None:
    """Reloads, restart-workers, 2→3→1→2 workers and SIGUSR2 under load on new and on kept connections: no request fails, none is refused.

    A WebSocket and a TCP session that were open before all of it still echo after, in workers that are long replaced. Changes made
    meanwhile are all in the journal or were refused with 503 and a Retry-After.
    """
    echo, websocket_echo = bed.Echo(), WebSocketEcho()
    tcp = bed.free_port()
    config = (
        f'[pools.web]\nservers = ["{nginx_a.address}"]\n[pools.ws]\nservers = ["{websocket_echo.address}"]\n'
        f'[pools.echo]\nservers = ["{echo.address}"]\n[tcp."{bed.HOST}:{tcp}"]\npool = "echo"\nmax_connections = 1000\n'
        '[sites."*"]\n"/" = "web"\n"/ws" = "ws"\n'
    )
    made = proxy(config, workers=2)
    made.wait_for(lambda: len(made.workers()) == 2, "both workers")
    old = made.process
    acknowledged: list[int] = []
    refused: list[str] = []

    def request() -> None:
        status, _ = made.fetch("/")
        assert status == 200, status

    def change() -> None:
        with closing(bed.http.client.HTTPConnection(bed.HOST, made.admin_port, timeout=20)) as connection:
            body = json.dumps({"weight": 1 + len(acknowledged) % 9})
            path = f"/api/v1/pools/web/servers/{nginx_a.address}"
            connection.request("PATCH", path, body, {"Authorization": f"Bearer {made.token}", "Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status == 200:
                acknowledged.append(answer["revision"])
            else:
                assert (response.status, response.getheader("Retry-After")) == (503, "1"), answer
                refused.append(answer["detail"])
        time.sleep(0.02)

    def begin(path: str) -> None:
        status, body = made.ask("POST", path, {})
        assert status == 200, body

    with (
        closing(socket.create_connection((bed.HOST, tcp), timeout=10)) as session,
        closing(open_websocket(made.http_port)) as websocket,
    ):
        echoes(session, b"before")
        echoes(websocket, b"before")
        wrk = bed.start_wrk(made.url + "/", 600, connections=16)
        load = Load(request)
        try:
            made.wait_for(lambda: load.done[0] > 20, "load")
            for _ in range(3):
                begin("/api/v1/config/reload")
            before = made.workers()
            begin("/api/v1/workers/restart")
            made.wait_for(lambda: made.get("/api/v1/workers/restart")["state"] in ("draining", "done"), "all workers to be replaced")
            assert not set(made.workers().values()) & set(before.values())
            for count in (3, 1, 2):
                made.head = made.head.replace(f"count = {len(made.workers())}", f"count = {count}")
                made.write(config)
                begin("/api/v1/config/reload")
                made.wait_for(lambda count=count: len(made.workers()) == count, f"{count} workers")
            writing = Load(change)
            os.kill(made.pid, signal.SIGUSR2)
            answer = upgraded(made, 0)
            after = load.done[0]
            made.wait_for(lambda: load.done[0] > after + 50, "load on the new version")
            writing.end()
        finally:
            load.end()
            wrk.send_signal(signal.SIGINT)
            result = bed.end_wrk(wrk)
        assert load.failed == []
        assert writing.failed == []
        assert result.errors == 0, result
        assert result.requests > 1000
        echoes(session, b"after")
        echoes(websocket, b"after")
        assert answer["old_pid"] == old.pid != made.pid
        made.wait_for(lambda: made.get("/api/v1/upgrade")["connections"] == 2, "the old version to have two connections")
        assert old.poll() is None
    assert old.wait(10) == 0
    made.wait_for(lambda: made.get("/api/v1/upgrade")["state"] == "done", "the old version to have left")
    journal = {c["revision"] for c in made.get("/api/v1/changes")["changes"]}
    assert acknowledged and set(acknowledged) <= journal, set(acknowledged) - journal
    assert len(made.get("/api/v1/changes")["changes"]) == made.get("/api/v1/status")["revision"]
    # Whatever the old workers counted is still counted; the new ones tell theirs once a second.
    made.wait_for(
        lambda: (
            sum(row["requests"] for pool in made.get("/api/v1/pools")["pools"] for row in pool["servers"])
            >= result.requests + sum(load.done)
        ),
        "every request to be counted",
    )


def test_a_daemon_is_upgraded_or_stays_as_it_is(proxy, nginx_a) -> None:
    """A successor that cannot start changes nothing and says why; a good one has pid file, lock and live values."""
    config = f'[pools.web]\nservers = ["{nginx_a.address}", "{bed.HOST}:9 backup"]\n[sites."*"]\n"/" = "web"\n'
    made = proxy(config, start=False)
    pid_file, log = made.directory / "pid", made.directory / "log"
    command = [*bed.TWISTD, "--pidfile", str(pid_file), "--logfile", "log", "revproxy", "--config", "revproxy.toml"]
    done = bed.run(command, cwd=made.directory, env=bed.proxy_env(), within=30)
    assert done.returncode == 0, done
    bed.wait_until(made.is_ready, "the daemon")
    first = int(pid_file.read_text())
    made.follow(first)
    made.log_file.touch()
    made.change("web", nginx_a.address, weight=7)
    made.change("web", f"{bed.HOST}:9", state="drain", confirm_within="4s")
    waits = time.monotonic() + 4
    workers = made.workers()

    made.write("nonsense = 1\n" + config)
    os.kill(first, signal.SIGUSR2)
    bed.wait_until(lambda: made.get("/api/v1/upgrade")["state"] == "failed", "the bad successor to fail", 30)
    status = made.get("/api/v1/status")
    assert "nonsense" in status["upgrade"]["reason"], status
    said = bed.run([*bed.REVPROXY, "--state", str(made.state), "status"], env=bed.proxy_env()).stdout
    assert "upgrade failed, nothing was changed" in said
    assert (made.workers(), made.fetch("/")[0], pid_file.read_text()) == (workers, 200, str(first))
    assert (made.state / "lock").read_text() == f"{first}\n"

    made.write(config)
    os.kill(first, signal.SIGUSR2)
    bed.wait_until(lambda: made.get("/api/v1/upgrade")["state"] == "starting", "the upgrade to begin", 10)
    os.kill(first, signal.SIGUSR2)
    bed.wait_until(lambda: "SIGUSR2: no upgrade now: an upgrade is under way" in log.read_text(), "the second one to be refused")
    answer = upgraded(made, first)
    second = int(bed.wait_until(lambda: (text := pid_file.read_text()) != str(first) and text, "the new pid"))
    assert (answer["pid"], (made.state / "lock").read_text()) == (second, f"{second}\n")
    bed.wait_until(lambda: not bed.is_alive(first), "the old one to leave")
    assert (made.state / "admin.sock").exists()
    assert pid_file.read_text() == str(second)
    view = made.server("web", nginx_a.address)["weight"]
    assert view == {"configured": 1, "set": 7, "effective": 7}
    bed.wait_until(lambda: made.server("web", f"{bed.HOST}:9")["state"] == "ready", "the change that nobody confirmed to be undone")
    assert time.monotonic() > waits - 0.5
    assert made.change("web", nginx_a.address, weight=None)["workers"]["acked"] == 1

    # From here a second upgrade, by the command this time, and the ordinary end.
    done = bed.run([*bed.REVPROXY, "--state", str(made.state), "upgrade"], env=bed.proxy_env(), within=60)
    assert (done.returncode, "serves; the old one finishes" in done.stdout or "has left" in done.stdout) == (0, True), done
    upgraded(made, second)
    third = int(pid_file.read_text())
    bed.wait_until(lambda: not bed.is_alive(second), "the second one to leave")
    os.kill(third, signal.SIGTERM)
    bed.wait_until(lambda: not bed.is_alive(third), "the daemon to end", 40)
    assert not pid_file.exists()
    assert not (made.state / "admin.sock").exists()
    assert (made.state / "lock").read_text() == ""
    assert "Traceback" not in log.read_text()


def test_the_supervisor_is_killed(proxy, nginx_a) -> None:
    """kill -9 of the supervisor: its workers accept nobody, are gone within 5 s, and a new supervisor binds within 2 s meanwhile."""
    echo, tcp = bed.Echo(), bed.free_port()
    config = (
        f'[pools.web]\nservers = ["{nginx_a.address}"]\n[sites."*"]\n"/" = "web"\n'
        f'[pools.echo]\nservers = ["{echo.address}"]\n[tcp."{bed.HOST}:{tcp}"]\npool = "echo"\nmax_connections = 1000\n'
    )
    made = proxy(config, workers=2)
    made.wait_for(lambda: len(made.workers()) == 2, "both workers")
    workers = list(made.workers().values())
    with closing(socket.create_connection((bed.HOST, tcp), timeout=10)) as session:
        echoes(session, b"before")
        os.kill(made.pid, signal.SIGKILL)
        killed = time.monotonic()
        made.process.wait()
        bed.wait_until(lambda: not bed.accepts(made.http_port), "the workers to stop accepting", 2)
        echoes(session, b"may finish")
        # A start that could not bind within this time says so and ends.
        assert PATIENCE_S < 2
        made.start(40)
        assert made.fetch("/")[0] == 200
        bed.wait_until(lambda: not any(map(bed.is_alive, workers)), "the orphans to end", 5.5 - (time.monotonic() - killed))


def test_systemd_follows_an_upgrade(proxy) -> None:
    """Type=notify with a socket from systemd: the old process names the new one, which keeps that socket and then speaks for itself."""
    made = proxy('[pools.web]\nservers = ["127.0.0.1:9"]\n[sites."*"]\n"/" = "web"\n', start=False)
    words = made.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.create_server((bed.HOST, made.http_port)) as listener:
        manager.bind(str(words))
        manager.settimeout(30)
        start = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])"
        )
        command = [bed.sys.executable, "-c", start, str(listener.fileno()), *bed.TWISTD, "-n", "--pidfile=", "revproxy", "--config"]
        env = bed.proxy_env() | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", "NOTIFY_SOCKET": str(words), "WATCHDOG_USEC": "2000000"}
        with made.log_file.open("ab") as log:
            made.process = subprocess.Popen(
                [*command, str(made.config_file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=made.directory, env=env,
                pass_fds=[listener.fileno()],
            )  # fmt: skip

        def next_word() -> bytes:
            while (word := manager.recv(300)) == b"WATCHDOG=1":
                pass
            return word

        old = made.process
        assert next_word().startswith(b"READY=1\nMAINPID=%d\n" % old.pid)
        listener.close()
        os.kill(old.pid, signal.SIGUSR2)
        named = next_word()
        assert named.startswith(b"MAINPID=") and named != b"MAINPID=%d" % old.pid
        new = int(named.removeprefix(b"MAINPID="))
        assert next_word().startswith(b"READY=1\nMAINPID=%d\n" % new)
        made.follow(new)
        assert old.wait(20) == 0
        assert manager.recv(300) == b"WATCHDOG=1"  # and no word of the old one's end
        assert made.fetch("/")[0] in (502, 503)
        made.process.terminate()
        assert next_word().startswith(b"STOPPING=1")
        made.process.wait()
