"""HTTP through the whole proxy, with curl, nginx and WebSockets as users have them."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import closing

import bed
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

SITE = '[sites."*"]\n"/" = "web"\n'


def pool(*servers: str, more: str = "") -> str:
    return f"[pools.web]\nservers = {json.dumps(list(servers))}\n{more}\n"


@pytest.fixture
def inspected(proxy, inspector):
    """A proxy in front of an origin that tells what it was sent."""
    return proxy(pool(inspector.address) + SITE)


def curl(*words: str) -> bed.subprocess.CompletedProcess[str]:
    return bed.run([bed.program("curl"), "-sS", "--max-time", "30", *words])


def test_curl_keeps_its_connection(inspected) -> None:
    """Two URLs on one command line go over one connection."""
    done = curl("-v", inspected.url + "/1", inspected.url + "/2")
    assert done.stderr.count("Connected to") == 1, done.stderr
    assert "Re-using existing connection" in done.stderr
    assert '"path": "/1"' in done.stdout
    assert '"path": "/2"' in done.stdout


def test_head_has_a_length_and_no_body(inspected) -> None:
    """HEAD answers with the headers of GET, and the connection goes on."""
    done = curl("-v", "-I", inspected.url + "/1", "--next", "-sS", inspected.url + "/2")
    assert done.returncode == 0, done.stderr
    assert "content-length" in done.stdout.lower()
    assert '"path": "/2"' in done.stdout


def test_chunked_bodies_both_ways(inspected, inspector) -> None:
    """A chunked upload arrives whole; a chunked answer comes back whole."""
    body = "x" * 100_000
    assert curl("-H", "Transfer-Encoding: chunked", "-d", body, inspected.url + "/up").returncode == 0
    assert inspector.seen[-1]["body"] == body
    assert curl(inspected.url + "/chunked").stdout == "onetwothree"


def test_expect_100_continue(inspected, inspector) -> None:
    """curl waits for 100 before it sends a large body, and gets it well before its own patience (1 s) ends."""
    done = curl(
        "-v", "-H", "Expect: 100-continue", "-d", "y" * 100_000, "--expect100-timeout", "20", "--max-time", "10", inspected.url + "/e"
    )
    assert done.returncode == 0, done.stderr
    assert "100 Continue" in done.stderr
    assert inspector.seen[-1]["body"] == "y" * 100_000


def test_http_1_0(inspected) -> None:
    """An HTTP/1.0 client gets an answer it understands: never chunked, closed at the end."""
    assert curl("-0", inspected.url + "/chunked").stdout == "onetwothree"
    done = curl("-0", "-i", inspected.url + "/chunked")
    assert "transfer-encoding" not in done.stdout.lower()


def test_what_the_server_is_told(inspected, inspector) -> None:
    """The server learns who asked, under which host and scheme; what the client says of itself in X-Forwarded-For is not believed."""
    curl(
        "-H",
        "Host: www.example.com",
        "-H",
        "X-Forwarded-For: 6.6.6.6",
        "-H",
        "Connection: X-Secret",
        "-H",
        "X-Secret: 1",
        inspected.url + "/a?b=c",
    )
    seen = inspector.seen[-1]
    headers = seen["headers"]
    assert seen["path"] == "/a?b=c"
    assert headers["host"] == "www.example.com"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == "www.example.com"
    assert headers["x-forwarded-port"] == str(inspected.http_port)
    assert headers["x-request-id"]
    assert "x-secret" not in headers


def test_no_route_no_server_and_no_connection_have_their_own_answers(proxy, inspector) -> None:
    """404 where nothing is configured, 503 with Retry-After without a server, 502 when nobody listens; each with its id."""
    nobody = f"{bed.HOST}:{bed.free_port()}"
    config = (
        pool(inspector.address)
        + f'[pools.none]\nservers = ["{inspector.address} weight=0"]\n[pools.dead]\nservers = ["{nobody}"]\n'
        + '[sites."a.example"]\n"/web" = "web"\n"/none" = "none"\n"/dead" = "dead"\n'
    )
    made = proxy(config)
    for host, path, status in (
        ("b.example", "/web", 404),
        ("a.example", "/other", 404),
        ("a.example", "/none", 503),
        ("a.example", "/dead", 502),
    ):
        with closing(http.client.HTTPConnection(bed.HOST, made.http_port, timeout=20)) as connection:
            connection.request("GET", path, headers={"Host": host})
            response = connection.getresponse()
            body = json.loads(response.read())
        assert response.status == status, (path, body)
        assert body["status"] == status
        assert response.getheader("Content-Type") == "application/problem+json"
        assert response.getheader("X-Request-Id")
        assert bool(response.getheader("Retry-After")) == (status == 503)


@pytest.mark.parametrize("workers", [1, 2])
def test_large_download_is_byte_exact(proxy, nginx_a, workers: int) -> None:
    """A large file arrives as it is on the server's disk (FULL: 1 GB), and memory does not grow with it."""
    size = (1 << 30) + 17 if bed.FULL else (64 << 20) + 17
    digest = bed.make_file(nginx_a.files / "large", size)
    made = proxy(pool(nginx_a.address) + SITE, workers=workers)
    with closing(http.client.HTTPConnection(bed.HOST, made.http_port, timeout=60)) as connection:
        connection.request("GET", "/files/large")
        response = connection.getresponse()
        assert response.getheader("Content-Length") == str(size)
        assert bed.sha256_of(iter(lambda: response.read(1 << 20), b"")) == digest
    (nginx_a.files / "large").unlink()


def test_large_upload_is_byte_exact(proxy, nginx_a) -> None:
    """A large upload lands on the server as it left (FULL: 200 MB)."""
    size = (200 << 20) if bed.FULL else (20 << 20)
    made = proxy(pool(nginx_a.address) + SITE.replace("\n", '\nmax_body = "300MiB"\n', 1))
    source = made.directory / "upload"
    digest = bed.make_file(source, size)
    done = curl("-T", str(source), "--max-time", "120", "-w", "%{http_code}", made.url + "/files/uploaded")
    assert done.stdout.endswith("201"), done.stdout + done.stderr
    assert bed.file_sha256(nginx_a.files / "uploaded") == digest
    (nginx_a.files / "uploaded").unlink()


def test_a_body_over_the_limit_is_refused(proxy, inspector) -> None:
    """`max_body` answers 413 before the body is read, and the server never hears of it."""
    made = proxy(pool(inspector.address) + SITE.replace("\n", '\nmax_body = "1KiB"\n', 1))
    assert made.fetch("/", "POST", b"x" * 1024)[0] == 200
    assert made.fetch("/", "POST", b"x" * 1025)[0] == 413
    assert len(inspector.seen) == 1


def test_websocket_echo(proxy) -> None:
    """Text, large binary messages and the closing code pass both ways over an upgraded connection."""

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            if message == "leave":
                connection.close(4001, "as asked")
            else:
                connection.send(message)

    with serve(echo, bed.HOST, 0, max_size=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        made = proxy(pool(f"{bed.HOST}:{port}") + SITE)
        with connect(f"ws://{bed.HOST}:{made.http_port}/chat", max_size=None) as client:
            for message in ("hello", "ü" * 70_000, bytes(range(256)) * 8192):
                client.send(message)
                assert client.recv(timeout=20) == message
            client.ping().wait(10)
            client.send("leave")
            with pytest.raises(ConnectionClosedError) as closed:
                client.recv(timeout=20)
            assert closed.value.rcvd
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as asked")
        server.shutdown()


def test_pipelined_requests_are_answered_in_order(proxy, nginx_a, nginx_b) -> None:
    """A client that does not wait gets its answers in the order it asked, whichever server is faster."""
    made = proxy(pool(nginx_a.address, nginx_b.address) + SITE)
    names = [f"{number:03}" for number in range(100)]
    for name in names:
        for origin in (nginx_a, nginx_b):
            (origin.files / name).write_text(name)
    with bed.socket.create_connection((bed.HOST, made.http_port), timeout=20) as s:
        s.sendall(b"".join(b"GET /files/%s HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode() for name in names))
        file = s.makefile("rb")
        got = []
        for _ in names:
            length = 0
            while (line := file.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            got.append(file.read(length).decode())
    assert got == names


def test_wrk_load_without_an_error(proxy, nginx_a, nginx_b) -> None:
    """Seconds of full load (FULL: a million requests) without one failed request."""
    made = proxy(pool(nginx_a.address, nginx_b.address, more='health = "GET /health"') + SITE, workers=2)
    if bed.FULL:
        bed.send_requests(made.url + "/", 1_000_000, 64)
    load = bed.end_wrk(bed.start_wrk(made.url + "/", 4, 64))
    assert load.errors == 0, load
    assert load.requests > 1000


def test_the_access_log_tells_every_request_once(proxy, inspector) -> None:
    """Each request is one line with who answered it and its id."""
    made = proxy(pool(inspector.address) + SITE + '[logs]\naccess = { file = "access.log" }\n')
    for number in range(5):
        made.fetch(f"/log/{number}")
    log = made.directory / "access.log"
    bed.wait_until(lambda: log.exists() and log.read_text().count("/log/") == 5, "five lines in the access log")
    line = next(one for one in log.read_text().splitlines() if "/log/3" in one)
    assert '"GET /log/3 HTTP/1.1" 200' in line
    assert inspector.address in line
    assert inspector.seen[3]["headers"]["x-request-id"] in line
