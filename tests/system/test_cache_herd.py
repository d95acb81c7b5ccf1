"""The cache under a crowd and through every kind of death, with two workers and a server that answers when it is told to."""

from __future__ import annotations

import http.client
import os
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import bed
import pytest

CONFIG = """
[pools.web]
servers = ["{address}"]
[sites."*"]
"/" = {{ pool = "web", cache = {{ stale_if_error = "1h" }} }}
"""
LARGE = os.urandom(5_000_000)


class Origin:
    """Answers ``/small…``, ``/large…`` and ``/trickle…`` once `gate` is open; of a trickle the last byte only once `last` is."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.ports: list[int] = []
        """Where requests came from."""
        self.gate, self.last = threading.Event(), threading.Event()
        self.port = bed.free_port()
        self.start()

    def start(self) -> None:
        origin = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                origin.asked[self.path] += 1
                origin.ports.append(self.client_address[1])
                origin.gate.wait(30)
                self.send_response(200)
                self.send_header("Cache-Control", "max-age=1" if "brief" in self.path else "max-age=600")
                if "trickle" in self.path:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"5\r\nfirst\r\n")
                    origin.last.wait(30)
                    self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")
                    return
                body = LARGE if "large" in self.path else f"{self.path} {origin.asked[self.path]}".encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            request_queue_size = 100
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None: ...

        self._server = Server((bed.HOST, self.port), Answer)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{bed.HOST}:{self.port}"

    def stop(self) -> None:
        self.gate.set()
        self.last.set()
        self._server.shutdown()
        self._server.server_close()


class Crowd:
    """Many clients that ask for one path at the same time; `slow` of them read little at a time."""

    def __init__(self, port: int, path: str, count: int, slow: int = 0) -> None:
        self.selector = selectors.DefaultSelector()
        self.received: dict[socket.socket, bytearray] = {}
        self.slow: set[socket.socket] = set()
        self.ended: set[socket.socket] = set()
        for n in range(count):
            client = socket.socket()
            if n < slow:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                self.slow.add(client)
            client.connect((bed.HOST, port))
            client.sendall(b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % path.encode())
            client.setblocking(False)
            self.received[client] = bytearray()
            self.selector.register(client, selectors.EVENT_READ)

    def read(self) -> None:
        for key, _ in self.selector.select(0.05):
            client = key.fileobj
            assert isinstance(client, socket.socket)
            try:
                data = client.recv(32768 if client in self.slow else 1 << 20)
            except ConnectionResetError:
                data = b""
            self.received[client] += data
            if not data:
                self.selector.unregister(client)
                client.close()
                self.ended.add(client)

    def until_all(self, text: bytes) -> None:
        """Everybody has received this."""
        bed.wait_until(lambda: self.read() or all(text in data for data in self.received.values()), f"{text!r} for all", 30)

    def until_end(self) -> list[bytes]:
        """The bodies, once all connections are closed."""
        bed.wait_until(lambda: self.read() or len(self.ended) == len(self.received), "all answers", 60)
        self.selector.close()
        return [bytes(data.partition(b"\r\n\r\n")[2]) if data.startswith(b"HTTP/1.1 200") else b"" for data in self.received.values()]


@pytest.fixture
def origin() -> Iterator[Origin]:
    made = Origin()
    yield made
    made.stop()


def ask(port: int, path: str, method: str = "GET") -> tuple[int, bytes, str]:
    """(status, body, Cache-Status) over a connection of its own."""
    with closing(http.client.HTTPConnection(bed.HOST, port, timeout=30)) as connection:
        connection.request(method, path, body=b"x" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Cache-Status", "")


def serving(proxy: Callable[..., bed.Proxy], origin: Origin) -> bed.Proxy:
    """A proxy both of whose workers take connections."""
    made = proxy(CONFIG.format(address=origin.address), workers=2)
    made.wait_for(lambda: made.log.count("serves revision") == 2, "both workers")
    time.sleep(0.5)  # sockets that were lent go back to their worker
    return made


def asked_by(port: int, pids: dict[int, int]) -> int:
    """The worker that has the connection from `port`."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if int(row[1].rpartition(":")[2], 16) == port}
    for pid in pids.values():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(fd) in inodes:
                    return pid
            except FileNotFoundError:
                continue
    raise AssertionError(f"nobody has the connection from port {port}")


def test_ca_08_a_thousand_misses_are_one_request(proxy, origin) -> None:
    """CA-08: over both workers the server is asked once, for a small answer, for five megabytes and slow readers, and for a trickle, whose
    first byte everybody has before the server has sent the last. Afterwards a POST makes the copy untrue in both workers."""
    made = serving(proxy, origin)
    crowd = Crowd(made.http_port, "/small", 1000)
    bed.wait_until(lambda: origin.asked["/small"], "the request")
    time.sleep(0.5)  # so that those who would ask as well have done so
    origin.gate.set()
    assert set(crowd.until_end()) == {b"/small 1"}
    assert origin.asked["/small"] == 1

    bodies = Crowd(made.http_port, "/large", 40, slow=20).until_end()
    assert [body == LARGE for body in bodies] == [True] * 40
    assert origin.asked["/large"] == 1

    crowd = Crowd(made.http_port, "/trickle", 200)
    crowd.until_all(b"first")
    origin.last.set()
    assert set(crowd.until_end()) == {b"5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n"}
    assert origin.asked["/trickle"] == 1

    assert ask(made.http_port, "/small", "POST")[0] == 204
    assert {ask(made.http_port, "/small")[1] for _ in range(20)} == {b"/small 2"}


def test_the_worker_that_asks_is_killed(proxy, origin) -> None:
    """Clients of the other worker, who wait for what the dead one asked for, have their answer at once by another request."""
    made = serving(proxy, origin)
    crowd = Crowd(made.http_port, "/small", 60)
    bed.wait_until(lambda: origin.asked["/small"], "the request")
    time.sleep(0.3)
    os.kill(asked_by(origin.ports[0], made.workers()), signal.SIGKILL)
    bed.wait_until(lambda: origin.asked["/small"] == 2, "another request", 4)
    origin.gate.set()
    bodies = Counter(crowd.until_end())
    assert set(bodies) <= {b"", b"/small 2"}
    assert bodies[b"/small 2"] >= 5
    assert origin.asked["/small"] == 2
    bed.wait_until(lambda: len(made.workers()) == 2, "a new worker")


def test_what_is_kept_outlives_proxy_and_server(proxy, origin) -> None:
    """After kill -9 of the whole family memory and disk still have it, with the server down, fresh or stale; a spoilt file is a miss."""
    origin.gate.set()
    made = proxy(CONFIG.format(address=origin.address), workers=2)
    for path in ("/small", "/large", "/brief"):
        assert ask(made.http_port, path)[0] == 200
    made.kill_family()
    origin.stop()
    made.start()
    time.sleep(1.0)
    for path, body in (("/small", b"/small 1"), ("/large", LARGE), ("/brief", b"/brief 1")):
        for _ in range(4):
            status, found, how = ask(made.http_port, path)
            assert (status, found == body) == (200, True), (path, status, found[:100], how)
            assert "hit" in how
    assert ask(made.http_port, "/missing")[0] == 502
    (large,) = (path for path in (made.state / "cache" / "objects").rglob("*") if path.is_file() and path.stat().st_size > 1_000_000)
    made.kill_family()
    with large.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"spoilt")
    made.start()
    assert ask(made.http_port, "/large")[0] == 502
    origin.start()
    assert ask(made.http_port, "/large")[1] == LARGE
    metrics = str(made.ask("GET", "/metrics")[1])
    assert "corrupt" in metrics or "damaged" in metrics, metrics
