"""Compressed answers, end to end: real clients in front, the real nginx behind, events one by one, a reload in between."""

from __future__ import annotations

import gzip
import http.client
import re
import socket
import zlib
from contextlib import closing

import bed
import brotli
import zstandard

PAGE = b"".join(b"<p>paragraph %d of a page that is worth it</p>\n" % n for n in range(1500))
BROWSER = "gzip, deflate, br, zstd"
CONFIG = """
[pools.web]
servers = ["{nginx}"]
[pools.events]
servers = ["{events}"]
[sites."*"]
use = ["compress.all"]
"/" = "web"
"/events" = {{ pool = "events", use = ["compress"] }}
[compress.all]
types = ["*/*"]
decompress = true
"""
UNDO = {
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    None: bytes,
}


def curl(proxy: bed.Proxy, path: str, *options: str) -> tuple[str, bytes]:
    """(head, body as curl wrote it)."""
    file = proxy.directory / "body"
    done = bed.run([bed.program("curl"), "-sS", "-D", "-", "-o", str(file), *options, proxy.url + path])
    assert done.returncode == 0, done.stderr
    return done.stdout, file.read_bytes()


def ask(proxy: bed.Proxy, method: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection(bed.HOST, proxy.http_port, timeout=10)) as connection:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response, response.read()


def test_compression_end_to_end(proxy, part) -> None:
    """Every coding is read by somebody else's decoder; what was cached is revalidated, parts stay parts, a reload turns it off."""
    origin = part(bed.Nginx, "one")
    (origin.files / "page.html").write_bytes(PAGE)
    listening = socket.create_server((bed.HOST, 0))
    events = f"{bed.HOST}:{listening.getsockname()[1]}"
    ours = proxy(CONFIG.format(nginx=origin.address, events=events), workers=1)

    head, body = curl(ours, "/files/page.html", "--compressed")  # whatever this curl was built with
    assert body == PAGE
    assert re.search(r"(?i)content-encoding: (gzip|br|zstd)\n", head), head
    for accept, coding in ((BROWSER, "zstd"), ("gzip, deflate, br", "br"), ("gzip;q=0.8, br;q=0.1", "gzip"), ("", None)):
        response, body = ask(ours, "GET", "/files/page.html", **({"Accept-Encoding": accept} if accept else {}))
        assert (response.getheader("Content-Encoding"), response.getheader("Vary")) == (coding, "Accept-Encoding")
        assert UNDO[coding](body) == PAGE
        assert (len(body) < len(PAGE) / 4) == bool(coding)

    # What was compressed is known by its weak ETag from then on, and nginx knows it again.
    response, _ = ask(ours, "GET", "/files/page.html", Accept_Encoding=BROWSER)
    tag = response.getheader("ETag")
    assert tag.startswith('W/"')
    assert response.getheader("Accept-Ranges") is None
    response, body = ask(ours, "GET", "/files/page.html", Accept_Encoding=BROWSER, If_None_Match=tag)
    assert (response.status, response.getheader("ETag"), body) == (304, tag, b"")
    response, body = ask(ours, "GET", "/files/page.html", Accept_Encoding=BROWSER, Range="bytes=10-19")
    assert (response.status, body, response.getheader("Content-Encoding")) == (206, PAGE[10:20], None)
    response, body = ask(ours, "HEAD", "/files/page.html", Accept_Encoding=BROWSER)
    assert (response.getheader("ETag"), response.getheader("Content-Encoding"), body) == (tag, "zstd", b"")

    # One event at a time: each is read before its server sends the next.
    with closing(listening), closing(socket.create_connection((bed.HOST, ours.http_port), 10)) as client:
        client.sendall(b"GET /events HTTP/1.0\r\nAccept-Encoding: gzip\r\nHost: h\r\n\r\n")
        server, _ = listening.accept()
        with closing(server):
            server.recv(65536)
            server.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            reader, received = zlib.decompressobj(31), b""
            while b"\r\n\r\n" not in received:
                received += client.recv(65536)
            head_bytes, _, rest = received.partition(b"\r\n\r\n")
            assert b"Content-Encoding: gzip" in head_bytes
            read = reader.decompress(rest)
            for n in range(3):
                server.sendall(b"data: %d\n\n" % n)
                while not read.endswith(b"data: %d\n\n" % n):
                    more = client.recv(65536)
                    assert more
                    read += reader.decompress(more)

    def counted() -> dict[str, float]:
        lines = ours.get("/metrics").decode().splitlines()
        return {
            name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name.startswith("revproxy_compression")
        }

    name = 'revproxy_compression_bytes_total{coding="%s",direction="in"}'
    bed.wait_until(lambda: counted().get(name % "gzip", 0) > len(PAGE), "the metrics")
    assert counted()[name % "br"] == len(PAGE)

    ours.write(CONFIG.format(nginx=origin.address, events=events).replace('use = ["compress.all"]', ""))
    status, _ = ours.ask("POST", "/api/v1/config/reload", {})
    assert status == 200
    response, body = ask(ours, "GET", "/files/page.html", Accept_Encoding=BROWSER)
    assert (body, response.getheader("Vary"), response.getheader("ETag")) == (PAGE, None, tag[2:])
