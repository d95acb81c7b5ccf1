"""The proxies under test: one worker or thread each, the same features on (access log, forwarding headers, kept-alive servers)."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import twisted
import twistedproxy
from benchmarks.handshakes import NAMES, make_certificates
from benchmarks.machine import family

MANY = 1_000_000
"""Requests per connection everywhere, so that nobody pays for reconnecting."""


def page(size: int) -> bytes:
    """HTML as it is written by programs: few words often, many seldom, ids and numbers; always the same."""
    draw = random.Random(1)
    words = ["".join(draw.choices("etaoinshrdlucmfwypvbgk", k=draw.randint(2, 9))) for _ in range(3000)]
    weights = [1 / (n + 1) for n in range(len(words))]
    rows = []
    while sum(map(len, rows)) < size:
        text = " ".join(draw.choices(words, weights, k=draw.randint(5, 25)))
        price = f"{draw.random() * 1000:.2f}"
        rows.append(
            f'<li class="item" id="i{draw.getrandbits(32):08x}"><a href="/items/{draw.getrandbits(20)}">{text}</a> <b>{price}</b></li>\n'
        )
    return "".join(rows).encode()[:size]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{name} does not listen on {port}:\n{log.read_text()[-2000:]}")


class Peer:
    """A proxy in a directory of its own, between `http_port` or `tcp_port` and the origin."""

    name = ""
    speaks_tcp = True
    process: subprocess.Popen[bytes] | None = None

    def __init__(self, directory: Path, origin: int, tcp_origin: int, workers: int = 1) -> None:
        self.directory = directory / f"{self.name}-{workers}"
        self.directory.mkdir(parents=True)
        self.origin = origin
        self.tcp_origin = tcp_origin
        self.workers = workers
        self.http_port = free_port()
        self.tcp_port = free_port()
        self.tls_port = free_port()
        self.log = self.directory / "output.log"

    def write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def command(self) -> list[str]:
        """Write the configuration; what to run. Certificates lie beside it (`handshakes.make_certificates`)."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    @classmethod
    def version(cls) -> str | None:
        """Version text, or None when the program is not installed."""
        raise NotImplementedError

    def start(self) -> None:
        make_certificates(self.directory)
        command = self.command()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.directory, env={**os.environ, **self.environment()}
            )
        wait_for(self.http_port, self.process, self.name, self.log)
        if self.speaks_tcp:
            wait_for(self.tcp_port, self.process, self.name, self.log)
        # An open port may belong to a parent whose workers are still on their way: an answer says that they serve.
        with socket.create_connection(("127.0.0.1", self.http_port), 10) as connection:
            connection.sendall(b"GET /small HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if not connection.recv(1):
                raise RuntimeError(f"{self.name} closes connections without an answer:\n{self.log.read_text(errors='replace')[-2000:]}")

    def pids(self) -> list[int]:
        return family(self.process.pid) if self.process is not None else []

    def stop(self) -> None:
        if self.process is None:
            return
        pids = self.pids()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for pid in pids:
            if pid != self.process.pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.process.wait()


def _version(command: list[str]) -> str | None:
    """The version number that a program says, without its path and build; None when it is not installed."""
    if not shutil.which(command[0]) and not Path(command[0]).exists():
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = re.search(r"\d+(?:\.\d+)+", (done.stdout + done.stderr).replace(command[0], ""))
    return number[0] if number is not None else None


class Ours(Peer):
    name = "twistedproxy"

    @classmethod
    def version(cls) -> str | None:
        return twistedproxy.__version__

    def command(self) -> list[str]:
        config = f"""
[workers]
count = {self.workers}
[listen]
http = [{{ address = "127.0.0.1:{self.http_port}", requests_per_connection = {MANY} }}]
https = [{{ address = "127.0.0.1:{self.tls_port}", requests_per_connection = {MANY} }}]
[admin]
listen = false
[pools.web]
servers = ["127.0.0.1:{self.origin}"]
max_connections = 10000
[pools.tcp]
servers = ["127.0.0.1:{self.tcp_origin}"]
max_connections = 10000
[sites."*"]
"/" = "web"
"/text/" = {{ pool = "web", use = ["compress"] }}
"/kept/" = {{ pool = "web", cache = {{}} }}
[sites."ecdsa.example"]
tls = {{ cert = "ecdsa.example.pem", key = "ecdsa.example.key" }}
redirect_http = false
"/" = "web"
[sites."rsa.example"]
tls = {{ cert = "rsa.example.pem", key = "rsa.example.key" }}
redirect_http = false
"/" = "web"
[tcp."127.0.0.1:{self.tcp_port}"]
pool = "tcp"
[logs]
access = {{ file = "access.log" }}
"""
        path = self.write("revproxy.toml", config)
        return [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "revproxy", "--config", path]


class OursPure(Ours):
    """Without the native codec."""

    name = "twistedproxy-pure"

    def environment(self) -> dict[str, str]:
        return {"TWISTEDPROXY_PURE": "1"}


class Nginx(Peer):
    name = "nginx"

    @classmethod
    def version(cls) -> str | None:
        return _version(["nginx", "-v"])

    def command(self) -> list[str]:
        modules = "/usr/lib/nginx/modules/ngx_stream_module.so"
        location = """
    location / {
      proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Request-Id $request_id;
    }"""
        secure = "".join(
            f"server {{ listen 127.0.0.1:{self.tls_port} ssl{options}; server_name {name};"
            f" ssl_certificate {self.directory}/{name}.pem; ssl_certificate_key {self.directory}/{name}.key; {location} }}\n"
            for name, options in zip(NAMES, (" backlog=4096 reuseport", ""), strict=True)
        )
        config = f"""
{f"load_module {modules};" if os.path.exists(modules) else ""}
worker_processes {self.workers}; daemon off; pid {self.directory}/pid; error_log {self.directory}/error.log; worker_rlimit_nofile 20000;
user root;
events {{ worker_connections 10000; }}
http {{
  access_log {self.directory}/access.log combined; client_body_temp_path {self.directory}/body; proxy_temp_path {self.directory}/proxy;
  fastcgi_temp_path {self.directory}/f; uwsgi_temp_path {self.directory}/u; scgi_temp_path {self.directory}/s;
  keepalive_requests {MANY};
  upstream web {{ server 127.0.0.1:{self.origin}; keepalive 64; keepalive_requests {MANY}; }}
  proxy_cache_path {self.directory}/cache keys_zone=kept:64m max_size=1g levels=1:2 use_temp_path=off;
  server {{
    listen 127.0.0.1:{self.http_port} backlog=4096 reuseport; {location}
    {location.replace("location / {", "location /text/ { gzip on; gzip_comp_level 1; gzip_proxied any; gzip_min_length 1000;")}
    {location.replace("location / {", "location /kept/ { proxy_cache kept; proxy_cache_lock on; sendfile on; tcp_nopush on;")}
  }}
  ssl_protocols TLSv1.2 TLSv1.3;
  {secure}
}}
stream {{ server {{ listen 127.0.0.1:{self.tcp_port}; proxy_pass 127.0.0.1:{self.tcp_origin}; }} }}
"""
        return ["nginx", "-p", str(self.directory), "-c", self.write("nginx.conf", config)]


class Haproxy(Peer):
    name = "haproxy"

    @classmethod
    def version(cls) -> str | None:
        return _version(["haproxy", "-v"])

    def command(self) -> list[str]:
        config = f"""
global
    nbthread {self.workers}
    maxconn 4000
    log stdout format raw local0
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    log global
frontend http
    mode http
    bind 127.0.0.1:{self.http_port}
    bind 127.0.0.1:{self.tls_port} ssl crt {self.directory}/ecdsa.example.both crt {self.directory}/rsa.example.both alpn http/1.1
    option httplog
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Port {self.http_port}
    unique-id-format %{{+X}}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid
    unique-id-header X-Request-Id
    use_backend kept if {{ path_beg /kept/ }}
    default_backend web
cache kept
    total-max-size 512
    max-object-size 2000000
    max-age 3600
backend web
    mode http
    http-reuse always
    server s 127.0.0.1:{self.origin} pool-max-conn 64
backend kept
    mode http
    http-reuse always
    http-request cache-use kept
    http-response cache-store kept
    server s 127.0.0.1:{self.origin} pool-max-conn 64
listen tcp
    mode tcp
    bind 127.0.0.1:{self.tcp_port}
    option splice-response
    option splice-request
    server s 127.0.0.1:{self.tcp_origin}
"""
        return ["haproxy", "-db", "-f", self.write("haproxy.cfg", config)]


class Envoy(Peer):
    name = "envoy"
    _path = shutil.which("envoy") or str(Path(sys.executable).parent / "envoy")

    @classmethod
    def version(cls) -> str | None:
        return _version([cls._path, "--version"])

    def command(self) -> list[str]:
        config = f"""
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {self.http_port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          use_remote_address: true
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {self.directory}/access.log
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: web}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {self.tcp_port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: tcp
  clusters:
  - name: web
    circuit_breakers: {{thresholds: [{{max_connections: 10000, max_pending_requests: 10000, max_requests: 10000}}]}}
    load_assignment: {{cluster_name: web, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1,
      port_value: {self.origin}}}}}}}}}]}}]}}
  - name: tcp
    circuit_breakers: {{thresholds: [{{max_connections: 10000}}]}}
    load_assignment: {{cluster_name: tcp, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1,
      port_value: {self.tcp_origin}}}}}}}}}]}}]}}
"""
        path = self.write("envoy.yaml", config)
        return [self._path, "-c", path, "--concurrency", str(self.workers), "--disable-hot-restart", "-l", "error"]


class Caddy(Peer):
    name = "caddy"
    speaks_tcp = False

    @classmethod
    def version(cls) -> str | None:
        return _version(["caddy", "version"])

    def environment(self) -> dict[str, str]:
        return {"GOMAXPROCS": str(self.workers), "HOME": str(self.directory), "XDG_DATA_HOME": str(self.directory)}

    def command(self) -> list[str]:
        config = f"""
{{
  admin off
  auto_https off
  default_sni ecdsa.example
  servers {{
    protocols h1
  }}
}}
http://127.0.0.1:{self.http_port}, http://localhost:{self.http_port} {{
  bind 127.0.0.1
  log {{
    output file {self.directory}/access.log
  }}
  reverse_proxy 127.0.0.1:{self.origin}
}}
""" + "".join(
            f"""
https://{name}:{self.tls_port} {{
  bind 127.0.0.1
  tls {self.directory}/{name}.pem {self.directory}/{name}.key
  log {{
    output file {self.directory}/access.log
  }}
  reverse_proxy 127.0.0.1:{self.origin}
}}
"""
            for name in NAMES
        )
        return ["caddy", "run", "--adapter", "caddyfile", "--config", self.write("Caddyfile", config)]


class Stock(Peer):
    """`twisted.web.proxy`, as Twisted ships it."""

    name = "twisted.web.proxy"
    speaks_tcp = False

    @classmethod
    def version(cls) -> str | None:
        return "Twisted " + twisted.__version__

    def command(self) -> list[str]:
        script = f"""
from twisted.internet import epollreactor
epollreactor.install()
from twisted.internet import reactor
from twisted.web.proxy import ReverseProxyResource
from twisted.web.server import Site
site = Site(ReverseProxyResource("127.0.0.1", {self.origin}, b""), logPath="access.log")
reactor.listenTCP({self.http_port}, site, interface="127.0.0.1")
reactor.run()
"""
        return [sys.executable, self.write("stock.py", script)]


class Varnish(Peer):
    """A cache only: everything is kept in memory, one pool of threads serves all. Its log is written by varnishncsa, which is counted."""

    name = "varnish"
    speaks_tcp = False
    _path = shutil.which("varnishd") or "/usr/sbin/varnishd"

    @classmethod
    def version(cls) -> str | None:
        return _version([cls._path, "-V"]) if shutil.which("varnishncsa") else None

    def command(self) -> list[str]:
        vcl = f"""
vcl 4.1;
backend web {{ .host = "127.0.0.1"; .port = "{self.origin}"; .max_connections = 10000; }}
sub vcl_recv {{
  set req.http.X-Forwarded-Proto = "http";
  set req.http.X-Forwarded-Host = req.http.Host;
  set req.http.X-Forwarded-Port = "{self.http_port}";
  set req.http.X-Request-Id = req.xid;
  if (req.url ~ "^/kept/") {{ return (hash); }}  # visitors have cookies
  return (pass);
}}
"""
        state = self.directory / "state"
        self.directory.chmod(0o755)
        server = [
            self._path, "-F", "-j", "none", "-n", str(state), "-a", f"127.0.0.1:{self.http_port}", "-T", "none", "-s", "malloc,512m",
            "-f", self.write("kept.vcl", vcl), "-p", "thread_pools=1", "-p", "thread_pool_min=200", "-p", "thread_pool_max=2000",
        ]  # fmt: skip
        log = ["varnishncsa", "-n", str(state), "-t", "20", "-w", str(self.directory / "access.log")]
        return ["sh", "-c", f"{shlex.join(log)} & exec {shlex.join(server)}"]


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Ours, OursPure, Nginx, Haproxy, Envoy, Caddy, Stock, Varnish)}


class Origin(Peer):
    """nginx with short, medium and long answers; not measured."""

    name = "origin"
    speaks_tcp = False

    def command(self) -> list[str]:
        files = self.directory / "files"
        files.mkdir()
        (files / "small").write_bytes(b"x" * 100)
        (files / "10k").write_bytes(os.urandom(10_000))
        (files / "1m").write_bytes(os.urandom(1_000_000))
        (files / "text").mkdir()
        (files / "text" / "100k.html").write_bytes(page(100_000))
        (files / "1k").write_bytes(os.urandom(1024))
        (files / "kept").symlink_to(files)
        os.chmod(files, 0o755)
        config = f"""
worker_processes 1; daemon off; pid {self.directory}/pid; error_log {self.directory}/error.log; worker_rlimit_nofile 20000; user root;
events {{ worker_connections 10000; }}
http {{
  access_log off; client_body_temp_path {self.directory}/body; proxy_temp_path {self.directory}/proxy;
  fastcgi_temp_path {self.directory}/f; uwsgi_temp_path {self.directory}/u; scgi_temp_path {self.directory}/s;
  keepalive_requests 100000000; keepalive_timeout 1h; client_max_body_size 0; sendfile on; tcp_nopush on; open_file_cache max=100;
  server {{
    listen 127.0.0.1:{self.http_port} backlog=4096;
    location = /small {{ default_type text/plain; return 200 "{"x" * 100}"; }}
    location = /status {{ stub_status; }}
    location / {{ root {files}; types {{ text/html html; }} }}
    location /kept/ {{ root {files}; add_header Cache-Control max-age=3600; }}
    location /kept/vary/ {{ root {files}; try_files /1k =404; add_header Cache-Control max-age=3600; add_header Vary Accept-Encoding; }}
    location /kept/slow/ {{ root {files}; try_files /10k =404; limit_rate 4k; add_header Cache-Control max-age=3600; }}
    location ~ /unique/ {{ root {files}; try_files /1k =404; add_header Cache-Control max-age=3600; }}
  }}
}}
"""
        return ["nginx", "-p", str(self.directory), "-c", self.write("nginx.conf", config)]
