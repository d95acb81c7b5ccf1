"""Real servers and a whole proxy on free loopback ports, each in a directory of its own, each ended by its pid.

It has over 500 lines: one short class for each real program.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
FULL = bool(os.environ.get("FULL"))
"""Long forms: 1 GB bodies, a million requests."""
HOST = "127.0.0.1"
PACKAGES = {
    "nginx": "nginx-light", "haproxy": "haproxy", "postgres": "postgresql", "initdb": "postgresql", "pgbench": "postgresql",
    "psql": "postgresql-client", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server", "mariadb": "mariadb-client",
    "redis-server": "redis-server", "redis-cli": "redis-tools", "curl": "curl",
    "chromium": "chromium", "wrk": "wrk", "h2load": "nghttp2-client",
}  # fmt: skip
T = TypeVar("T")


def program(name: str) -> str:
    """The path of a real program, or a loud skip."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {PACKAGES[name]}")
    return found


def wait_until(condition: Callable[[], T], what: str, within: float = 15.0) -> T:
    """The first true value of `condition`; fails naming `what` was waited for."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within:g} s for {what}")
        time.sleep(0.02)


def accepts(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def run(command: Sequence[str], within: float = 120, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end with no stdin; output is text in `stdout` and `stderr`."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within, check=False, **kwargs)


class Part:
    """One program with a directory; subclasses write its configuration and `launch` it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="revproxy-test-"))
        self.directory.chmod(0o755)
        self.log_file = self.directory / "output.log"
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, command: Sequence[str], user: str | None = None, env: Mapping[str, str] | None = None) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, env=env, **as_user(user)
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], T], what: str, within: float = 20.0) -> T:
        """`wait_until`, but with the program's last words; one that ended meanwhile fails at once."""

        def still() -> T:
            value = condition()
            if not value and self.process and self.process.poll() is not None:
                pytest.fail(f"{type(self).__name__} ended with {self.process.returncode} before {what}:\n{self.log[-3000:]}")
            return value

        try:
            return wait_until(still, what, within)
        except TimeoutError as e:
            pytest.fail(f"{e}:\n{self.log[-3000:]}")

    def stop(self, within: float = 15.0) -> int | None:
        """Ask the program to end, make it end after `within` seconds; its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(within)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments for `Popen` that leave root for servers that refuse it."""
    if user is None or os.getuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def own(path: Path, user: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if os.getuid() == 0:
        shutil.chown(path, user)
    return path


def give(made: Any, to: Path, user: str) -> None:
    """Copy a certificate and its key to ``TO.crt`` and ``TO.key``, owned by `user`."""
    for source, suffix in ((made.cert, ".crt"), (made.key, ".key")):
        file = to.with_suffix(suffix)
        file.write_bytes(source.read_bytes())
        file.chmod(0o600)
        if os.getuid() == 0:
            shutil.chown(file, user, user)


# Real servers


class Nginx(Part):
    """An origin: ``/`` answers its name, ``/files/`` is a directory that also takes PUT, ``/health`` is fine."""

    def __init__(self, name: str) -> None:
        super().__init__()
        binary = program("nginx")
        self.name = name
        self.port = free_port()
        self.files = self.directory / "files"
        self.files.mkdir()
        (self.directory / "tmp").mkdir()
        user = "user root;" if os.getuid() == 0 else ""
        config = self.directory / "nginx.conf"
        config.write_text(f"""
            daemon off; master_process on; worker_processes 1; {user}
            pid {self.directory}/nginx.pid; error_log {self.log_file} warn;
            events {{ worker_connections 2048; }}
            http {{
              access_log {self.directory}/access.log; sendfile on; keepalive_requests 1000000; keepalive_timeout 60s;
              client_body_temp_path {self.directory}/tmp; proxy_temp_path {self.directory}/tmp;
              fastcgi_temp_path {self.directory}/tmp; uwsgi_temp_path {self.directory}/tmp; scgi_temp_path {self.directory}/tmp;
              client_max_body_size 0; default_type application/octet-stream;
              server {{
                listen {HOST}:{self.port} backlog=4096;
                location / {{ return 200 "{name}\\n"; }}
                location /health {{ access_log off; return 200 "ok\\n"; }}
                location /files/ {{ alias {self.files}/; dav_methods PUT; }}
              }}
            }}""")
        self.launch([binary, "-c", str(config), "-p", str(self.directory)])
        self.wait_for(lambda: accepts(self.port), "nginx to listen")

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def requests(self) -> int:
        """Requests that arrived, health checks not counted."""
        return (self.directory / "access.log").read_bytes().count(b"\n")


class Postgres(Part):
    """An independent primary with pgbench's tables; everybody on loopback is trusted."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        data = own(self.directory / "data", "postgres")
        initdb = [program("initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        made = run(initdb, cwd=self.directory, **as_user("postgres"))
        assert made.returncode == 0, made.stderr
        settings = ["fsync=off", "max_connections=300", "listen_addresses=127.0.0.1", f"unix_socket_directories={data}"]
        options = [word for setting in settings for word in ("-c", setting)]
        self.launch([program("postgres"), "-D", str(data), "-p", str(self.port), *options], user="postgres")
        self.wait_for(lambda: self.sql(self.port, "select 1").stdout == "1\n", "PostgreSQL to answer")
        filled = run([program("pgbench"), "-i", "-q", "-h", HOST, "-p", str(self.port), "-U", "postgres", "postgres"])
        assert filled.returncode == 0, filled.stderr

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @staticmethod
    def sql(port: int, statement: str) -> subprocess.CompletedProcess[str]:
        """psql over TCP to any port, the proxy's included."""
        return run([program("psql"), "-XAtq", "-h", HOST, "-p", str(port), "-U", "postgres", "-c", statement, "postgres"])

    def show(self, made: Any) -> None:
        """Offer TLS with this certificate from now on, to those who ask for it; None: no longer."""
        if made is not None:
            give(made, self.directory / "data" / "server", "postgres")
        for statement in (f"alter system set ssl = {'off' if made is None else 'on'}", "select pg_reload_conf()"):
            done = self.sql(self.port, statement)
            assert done.returncode == 0, done.stderr
        wait_until(lambda: self.sql(self.port, "show ssl").stdout == ("off\n" if made is None else "on\n"), "PostgreSQL to reload")


class MariaDb(Part):
    """A server whose root comes in from loopback without a password; offers TLS, with a certificate worth nothing until `show`."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        data = own(self.directory / "data", "mysql")
        install = [program("mariadb-install-db"), "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"]
        made = run([*install, "--skip-test-db"], cwd=self.directory, **as_user("mysql"))
        assert made.returncode == 0, made.stdout + made.stderr
        options = [f"--datadir={data}", f"--socket={data}/s", f"--port={self.port}", f"--pid-file={data}/pid", "--bind-address=127.0.0.1"]
        tuning = ["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"]
        own_made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=mariadb"]
        made = run([*own_made, "-keyout", f"{data}/server.key", "-out", f"{data}/server.crt"], cwd=self.directory, **as_user("mysql"))
        assert made.returncode == 0, made.stderr
        tuning += [f"--ssl-cert={data}/server.crt", f"--ssl-key={data}/server.key"]
        self.launch([program("mariadbd"), "--no-defaults", *options, *tuning], user="mysql")
        self.wait_for(lambda: self.sql(self.port, "select 1").returncode == 0, "MariaDB to answer", 40)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @staticmethod
    def sql(port: int, statement: str) -> subprocess.CompletedProcess[str]:
        client = [program("mariadb"), "--no-defaults", "--protocol=tcp", "--skip-ssl", "-h", HOST, "-P", str(port), "-u", "root"]
        return run([*client, "-N", "-B", "-e", statement])

    def show(self, made: Any) -> None:
        """Offer TLS with this certificate from now on."""
        give(made, self.directory / "data" / "server", "mysql")
        done = self.sql(self.port, "flush ssl")
        assert done.returncode == 0, done.stderr


class Redis(Part):
    """In the clear, or with a certificate within TLS only."""

    def __init__(self, made: Any = None) -> None:
        super().__init__()
        self.port = free_port()
        ports = ["--port", str(self.port)]
        if made is not None:
            ports = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            ports += ["--tls-cert-file", str(made.cert), "--tls-key-file", str(made.key)]
        options = [*ports, "--bind", HOST, "--save", "", "--appendonly", "no", "--dir", str(self.directory)]
        self.launch([program("redis-server"), *options])
        self.wait_for(lambda: accepts(self.port), "Redis to listen")

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"


class Haproxy(Part):
    """HAProxy with a configuration of the test's own; ``PORT`` in it is where it listens."""

    def __init__(self, config: str) -> None:
        super().__init__()
        self.port = free_port()
        file = self.directory / "haproxy.cfg"
        defaults = "defaults\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
        file.write_text(defaults + config.replace("PORT", str(self.port)))
        self.launch([program("haproxy"), "-db", "-f", str(file)])
        self.wait_for(lambda: accepts(self.port), "HAProxy to listen")


class Inspector:
    """An origin in this process: answers with JSON of what arrived (``/chunked``: three chunks); ``seen`` keeps all of it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        inspector = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                facts = {
                    "method": self.command, "path": self.path, "version": self.request_version,
                    "headers": {k.lower(): v for k, v in self.headers.items()}, "body": self.read_body().decode("latin-1"),
                }  # fmt: skip
                if self.path != "/health":
                    inspector.seen.append(facts)
                if self.path == "/chunked":
                    self.send_response(200)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n")
                    return
                text = json.dumps(facts).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

            def read_body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline() not in (b"\r\n", b""):
                    pass
                return body

            def log_message(self, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

            def handle_error(self, request: object, client_address: object) -> None:
                """A proxy that closes its kept connections is no news."""

        self._server = Server((HOST, 0), Answer)
        self.address = f"{HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


# The proxy


TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
REVPROXY = [sys.executable, "-c", "from twistedproxy.cli import main; main()"]


def proxy_env() -> dict[str, str]:
    """The environment of a proxy that runs this checkout."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


class Proxy(Part):
    """A whole proxy family; `config` follows what is written here about state, workers, admin and (unless given) ``[listen]``."""

    def __init__(self, config: str, workers: int = 1, listen: str | None = None, start: bool = True) -> None:
        super().__init__()
        self.http_port = free_port()
        self.admin_port = free_port()
        self.state = self.directory / "state"
        self.config_file = self.directory / "revproxy.toml"
        self.head = f"""\
state_dir = "{self.state}"
[workers]
count = {workers}
[admin]
listen = "{HOST}:{self.admin_port}"
[listen]
http = [{(listen or '{ address = "HTTP", max_connections = 4000 }').replace("HTTP", f"{HOST}:{self.http_port}")}]
"""
        self.write(config)
        if start:
            self.start()

    def write(self, config: str) -> None:
        self.config_file.write_text(self.head + config)

    def start(self, ready_within: float = 20.0) -> None:
        self.launch([*TWISTD, "-n", "--pidfile=", "revproxy", "--config", str(self.config_file)], env=proxy_env())
        self.wait_ready(ready_within)

    def wait_ready(self, within: float = 20.0) -> None:
        self.wait_for(self.is_ready, "/health/ready", within)

    def is_ready(self) -> bool:
        try:
            return self.ask("GET", "/health/ready", token=None)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    # admin

    @property
    def token(self) -> str:
        return (self.state / "admin.token").read_text().strip()

    def ask(
        self, method: str, path: str, body: object = None, token: str | None = "", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and decoded body of one admin request; `token` None sends none."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.token}"
        if body is not None:
            sent["Content-Type"] = "application/json"
        with closing(http.client.HTTPConnection(HOST, self.admin_port, timeout=10)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if "json" in (response.getheader("Content-Type") or "") else text

    def get(self, path: str) -> Any:
        status, body = self.ask("GET", path)
        assert status == 200, f"GET {path}: {status} {body}"
        return body

    def change(self, pool: str, server: str, **fields: object) -> Any:
        """PATCH one server and see that every worker took it."""
        status, body = self.ask("PATCH", f"/api/v1/pools/{pool}/servers/{server}", fields)
        assert status == 200, f"{fields}: {status} {body}"
        assert body["workers"]["acked"] == body["workers"]["total"], body
        return body

    def server(self, pool: str, address: str) -> dict[str, Any]:
        """The API's view of one server."""
        found: list[dict[str, Any]] = [s for s in self.get(f"/api/v1/pools/{pool}")["servers"] if s["address"] == address]
        assert found, f"{address} is not in pool {pool}"
        return found[0]

    def wait_healthy(self, pool: str) -> None:
        """Until every server of the pool was found up."""
        self.wait_for(
            lambda: all(s["health"]["status"] == "up" for s in self.get(f"/api/v1/pools/{pool}")["servers"]), f"pool {pool} to be up"
        )

    def workers(self) -> dict[int, int]:
        """Pids of serving workers by slot."""
        return {w["slot"]: w["pid"] for w in self.get("/api/v1/status")["workers"] if w["state"] == "serving"}

    # processes

    def follow(self, pid: int) -> None:
        """After an upgrade: the supervisor is process `pid` from now on, and no child of ours."""
        self.process = Stranger(pid)  # type: ignore[assignment]

    def family_pids(self) -> list[int]:
        """The supervisor and everything below it."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text()
                except OSError:
                    continue
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
        family = [self.pid]
        for pid in family:
            family += children.get(pid, [])
        return family

    def kill_family(self) -> None:
        """kill -9 of all at once, as a power cut would."""
        for pid in self.family_pids():
            os.kill(pid, signal.SIGKILL)
        assert self.process
        self.process.wait()

    def close(self) -> None:
        family = self.family_pids() if self.process and self.process.poll() is None else []
        self.stop()
        left = [pid for pid in family if pid != self.pid and is_alive(pid)]
        try:
            if left:
                wait_until(lambda: not any(map(is_alive, left)), f"workers {left} to end with their supervisor", 6)
        finally:
            for pid in filter(is_alive, left):
                os.kill(pid, signal.SIGKILL)
            super().close()

    # traffic

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.http_port}"

    def fetch(
        self, path: str = "/", method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection(HOST, self.http_port, timeout=30)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()


class Stranger:
    """What a `Popen` tells, of a process that somebody else started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and not is_alive(self.pid):
            self.returncode = 0  # nobody tells us
        return self.returncode

    def wait(self, timeout: float = 15.0) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return 0

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Echo:
    """A TCP server on a thread that returns what it gets, for sessions that must outlive everything."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.address = f"{HOST}:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # cut
            self.greet(connection)
            while data := connection.recv(65536):
                connection.sendall(data)

    def greet(self, connection: socket.socket) -> None:
        """What comes before it returns anything."""


# Clients


@dataclass(frozen=True)
class Load:
    """What wrk said."""

    requests: int
    connect_errors: int
    read_errors: int
    write_errors: int
    timeouts: int
    bad_statuses: int

    @property
    def errors(self) -> int:
        return self.connect_errors + self.read_errors + self.write_errors + self.timeouts + self.bad_statuses


def start_wrk(url: str, seconds: float, connections: int = 32) -> subprocess.Popen[str]:
    command = [program("wrk"), "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", url]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end_wrk(process: subprocess.Popen[str]) -> Load:
    output, _ = process.communicate(timeout=600)
    done = re.search(r"(\d+) requests in", output)
    assert done, output
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    counts = map(int, errors.groups()) if errors else (0, 0, 0, 0)
    return Load(int(done[1]), *counts, bad_statuses=int(bad[1]) if bad else 0)


def send_requests(url: str, count: int, connections: int = 20) -> None:
    """Exactly `count` requests over kept connections; all must succeed."""
    done = run([program("h2load"), "--h1", "-n", str(count), "-c", str(connections), "-t", "1", url], within=1200)
    assert f"{count} succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout, done.stdout + done.stderr


def sha256_of(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(iter(lambda: file.read(1 << 20), b""))


def make_file(path: Path, size: int) -> str:
    """A file that repeats nowhere, and its digest."""
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(0, size, 1 << 20):
            chunk = (number.to_bytes(8, "big") + block[8:])[: size - number]
            file.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()
