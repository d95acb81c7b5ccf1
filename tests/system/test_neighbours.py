"""HAProxy in front and behind: the PROXY protocol as others speak it."""

from __future__ import annotations

import http.client
import json
from contextlib import closing

import bed
import pytest


def get_from(source: str, port: int) -> bytes:
    """The body of ``GET /`` asked from another loopback address."""
    with closing(http.client.HTTPConnection(bed.HOST, port, timeout=20, source_address=(source, 0))) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 200
        return response.read()


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_haproxy_in_front_tells_who_the_client_is(proxy, part, inspector, option: str) -> None:
    """Behind HAProxy the server still learns the client's own address, and nobody else may come in without the header."""
    made = proxy(
        f'[pools.web]\nservers = ["{inspector.address}"]\n[sites."*"]\n"/" = "web"\n',
        listen='{ address = "HTTP", accept_proxy = ["127.0.0.0/8"], max_connections = 4000 }',
    )
    front = part(bed.Haproxy, f"listen in\n mode tcp\n bind {bed.HOST}:PORT\n server proxy {bed.HOST}:{made.http_port} {option}\n")
    facts = json.loads(get_from("127.0.0.5", front.port))
    assert facts["headers"]["x-forwarded-for"] == "127.0.0.5"
    with pytest.raises((http.client.HTTPException, OSError)):
        get_from(bed.HOST, made.http_port)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_behind_learns_who_the_client_is(proxy, part, version: str) -> None:
    """A server that wants PROXY headers gets them, on TCP and on HTTP connections."""
    answer = 'http-request return status 200 content-type text/plain lf-string "%[src]"'
    behind = part(bed.Haproxy, f"listen in\n mode http\n bind {bed.HOST}:PORT accept-proxy\n {answer}\n")
    port = bed.free_port()
    made = proxy(
        f'[pools.ha]\nservers = ["{bed.HOST}:{behind.port}"]\nsend_proxy = "{version}"\n'
        f'[sites."*"]\n"/" = "ha"\n[tcp."{bed.HOST}:{port}"]\npool = "ha"\nmax_connections = 4000\n'
    )
    assert get_from("127.0.0.6", port) == b"127.0.0.6"
    assert get_from("127.0.0.7", made.http_port) == b"127.0.0.7"
    assert get_from("127.0.0.8", made.http_port) == b"127.0.0.8"
