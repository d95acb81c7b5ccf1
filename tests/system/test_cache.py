"""The shared cache, end to end: two workers, a scripted server behind."""

from __future__ import annotations

import http.client
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import bed
import pytest

CONFIG = """
[pools.web]
servers = ["{address}"]
[sites."*"]
"/" = {{ pool = "web", cache = {{ stale_if_error = "1h" }} }}
"""
CLIENTS = 16
"""So many connections that each worker has some (a chance of 1 to 32,768 that not: then they are made anew)."""


class Origin:
    """Answers with the path and the present edition, tagged with the path's first segment."""

    def __init__(self) -> None:
        self.edition = 1
        self.is_failing = False
        self.asked: Counter[str] = Counter()
        origin = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                origin.asked[self.path] += 1
                body = f"{self.path} edition {origin.edition}".encode()
                self.send_response(500 if origin.is_failing else 200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "max-age=600")
                self.send_header("Surrogate-Key", f"all-pages {self.path.split('/')[1]}")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A proxy that closes its kept connections is no news."""

        self._server = Server((bed.HOST, 0), Answer)
        self.address = f"{bed.HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Clients:
    """Kept connections, some to each worker."""

    def __init__(self, proxy: bed.Proxy) -> None:
        self.proxy = proxy
        self._open = ExitStack()
        self.connections: list[http.client.HTTPConnection] = []
        while not self._reach_all():
            self.close()

    def _reach_all(self) -> bool:
        for _ in range(CLIENTS):
            connection = self._open.enter_context(closing(http.client.HTTPConnection(bed.HOST, self.proxy.http_port, timeout=10)))
            connection.connect()
            self.connections.append(connection)

        def held() -> list[int]:
            workers = [w["connections"] for w in self.proxy.get("/api/v1/status")["workers"]]
            return workers if sum(workers) >= CLIENTS else []

        return all(self.proxy.wait_for(held, "the connections to be counted"))

    def close(self) -> None:
        self._open.close()
        self.connections.clear()

    def editions(self, path: str) -> set[int]:
        """What the clients get, one after the other."""
        found = set()
        for connection in self.connections:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, (response.status, text)
            found.add(int(text.removeprefix(f"{path} edition ")))
        return found


@pytest.fixture
def origin() -> Iterator[Origin]:
    made = Origin()
    yield made
    made.close()


def purge(proxy: bed.Proxy, **what: object) -> None:
    """In force in both workers by the time of the answer."""
    status, answer = proxy.ask("POST", "/api/v1/cache/purge", what)
    assert status == 200, answer
    assert answer["workers"] == {"total": 2, "acked": 2, "lagging": []}


def total(proxy: bed.Proxy, metric: str) -> float:
    status, text = proxy.ask("GET", "/metrics")
    assert status == 200
    return sum(float(n) for n in re.findall(rf"^{re.escape(metric)} (\S+)$", text.decode(), re.MULTILINE))


def test_what_is_purged_is_given_by_no_worker_any_more_not_even_after_a_restart(proxy, origin) -> None:
    """By URL, prefix and tag, soft and hard: right after the answer each worker asks anew, and everything else stays kept."""
    front = proxy(CONFIG.format(address=origin.address), workers=2)
    site = f"http://{bed.HOST}:{front.http_port}"
    clients = Clients(front)
    paths = ["/a/1", "/a/2?x=1", "/b/1", "/c/1"]
    for path in paths:
        assert clients.editions(path) == {1}
    assert origin.asked == dict.fromkeys(paths, 1), "one request to the server for each, whoever asks"

    expected = dict.fromkeys(paths, 1)
    for what, covered in (
        ({"url": f"{site.upper()}/%61/./1"}, ["/a/1"]),
        ({"prefix": f"{site}/a"}, ["/a/1", "/a/2?x=1"]),
        ({"tag": "b", "reason": "new prices"}, ["/b/1"]),
    ):
        origin.edition += 1
        purge(front, **what)
        expected |= dict.fromkeys(covered, origin.edition)
        for path in covered + [path for path in paths if path not in covered]:
            assert clients.editions(path) == {expected[path]}, (what, path)
    assert sum(origin.asked.values()) == len(paths) + 4

    # Soft: the server is asked, and while it fails what is kept helps out.
    origin.edition += 1
    origin.is_failing = True
    purge(front, tag="all-pages", soft=True)
    assert clients.editions("/c/1") == {1}
    origin.is_failing = False
    assert clients.editions("/c/1") == {origin.edition}

    assert total(front, 'revproxy_cache_purges_total{by="tag"}') == 2
    assert total(front, 'revproxy_cache_requests_total{site="*",result="hit"}') > 100
    front.wait_for(lambda: front.get("/api/v1/status")["cache"]["memory"]["objects"] >= len(paths), "the cache to be counted")
    shown = front.get("/api/v1/cache")
    assert [each["by"] for each in shown["purges"]["latest"]] == ["tag", "tag", "prefix", "url"]
    assert 0.8 < shown["totals"]["hit_ratio"] < 1

    # A restart: what was purged before it stays away, what was not is still there.
    origin.edition += 1
    done = bed.run([*bed.REVPROXY, "purge", f"{site}/a/1", "--state", str(front.state)], env=bed.proxy_env())
    assert (done.returncode, done.stdout) == (0, f"purged: url {site}/a/1; in force in 2 of 2 workers\n"), done.stderr
    clients.close()
    front.stop()
    asked = origin.asked["/c/1"]
    front.start()
    clients = Clients(front)
    assert clients.editions("/a/1") == {origin.edition}
    assert clients.editions("/c/1") == {origin.edition - 1}
    assert origin.asked["/c/1"] == asked
    clients.close()

    status, answer = front.ask("POST", "/api/v1/cache/purge", {"url": "/a/1"})
    assert status == 400
    assert "whole URL" in answer["detail"]
