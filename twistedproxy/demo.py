"""What ``--demo`` brings along: two small web servers, a TCP echo, the configuration for them, and what to try.

Plain protocols on purpose: readable in a minute, and no second HTTP stack in the process. Not for anything but trying things out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

WEB_PORTS = (9001, 9002)
ECHO_PORT = 9003
HTTP_PORT = 8080
TCP_PORT = 8432
ADMIN_PORT = 9901
MAX_HEAD = 64 * 1024
MAX_CONNECTIONS = 400
"""Few enough for a shell with the usual 1024 open files."""


def demo_config(
    state_dir: str,
    *,
    http_port: int = HTTP_PORT,
    tcp_port: int = TCP_PORT,
    admin_port: int = ADMIN_PORT,
    web_ports: Sequence[int] = WEB_PORTS,
    echo_port: int = ECHO_PORT,
) -> str:
    """The configuration of the demo as TOML; state and token live in `state_dir`."""
    first, second = web_ports
    return f"""\
state_dir = {json.dumps(state_dir, ensure_ascii=False)}

[listen]
http = [{{ address = "127.0.0.1:{http_port}", max_connections = {MAX_CONNECTIONS} }}]

[admin]
listen = "127.0.0.1:{admin_port}"

[pools.web]
servers = ["127.0.0.1:{first} weight=3", "127.0.0.1:{second}"]
health  = "GET /health"

[pools.echo]
servers = ["127.0.0.1:{echo_port}"]
health  = "tcp"

[sites."*"]
"/" = "web"

[tcp."127.0.0.1:{tcp_port}"]
pool = "echo"
max_connections = {MAX_CONNECTIONS}
"""


def demo_text(token: str, state_dir: str, *, http_port: int = HTTP_PORT, tcp_port: int = TCP_PORT, admin_port: int = ADMIN_PORT) -> str:
    """What the operator reads once the demo is up."""
    return f"""
  The demo is running; Ctrl-C ends it and removes its state.

    HTTP    http://127.0.0.1:{http_port}/     two web servers, weights 3 and 1
    TCP     127.0.0.1:{tcp_port}              an echo
    Admin   http://127.0.0.1:{admin_port}/    asks for the token: {token}

  Try, in another terminal:

    export REVPROXY_STATE={_shell_word(state_dir)}
    curl http://127.0.0.1:{http_port}/hello
    for i in 1 2 3 4 5 6 7 8; do curl -s http://127.0.0.1:{http_port}/ | head -1; done
    revproxy status
    revproxy weight web 127.0.0.1:{WEB_PORTS[1]} 9 --reason "more for the second"
    revproxy drain web 127.0.0.1:{WEB_PORTS[0]}
    revproxy ready web 127.0.0.1:{WEB_PORTS[0]}
    revproxy changes
    curl -H "Authorization: Bearer {token}" http://127.0.0.1:{admin_port}/api/v1/pools
"""


def _shell_word(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


class DemoBackends:
    """The servers behind the demo; `start` listens, `stop` closes everything. A port that is taken is an error of `start`."""

    def __init__(self, reactor: Any, web_ports: Sequence[int] = WEB_PORTS, echo_port: int = ECHO_PORT) -> None:
        self._reactor = reactor
        self._wanted = (web_ports, echo_port)
        self._ports: list[Any] = []
        self._open: set[Protocol] = set()

    def start(self) -> None:
        """Listen on loopback; raises `twisted.internet.error.CannotListenError` with nothing left open."""
        web_ports, echo_port = self._wanted
        try:
            for number, port in enumerate(web_ports, 1):
                self._listen(port, lambda name=f"web-{number}": Hello(self._open, name))
            self._listen(echo_port, lambda: Echo(self._open))
        except Exception:
            self.stop()
            raise

    @property
    def ports(self) -> tuple[int, ...]:
        """Where they listen: the web servers, then the echo."""
        return tuple(port.getHost().port for port in self._ports)

    def stop(self) -> Any:
        """Close listeners and connections; the Deferred fires when the listeners are gone."""
        for protocol in list(self._open):
            protocol.transport.abortConnection()  # type: ignore[union-attr]
        ports, self._ports = self._ports, []
        return gatherResults([port.stopListening() for port in ports])

    def _listen(self, port: int, build: Any) -> None:
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        factory.buildProtocol = lambda addr: build()  # type: ignore[method-assign]
        self._ports.append(self._reactor.listenTCP(port, factory, backlog=1024, interface="127.0.0.1"))


@implementer(IHalfCloseableProtocol)
class _Tracked(Protocol):
    """A protocol that its `DemoBackends` can find and close; it stops reading while its client does not."""

    transport: Any

    def __init__(self, connections: set[Protocol]) -> None:
        self._connections = connections

    def connectionMade(self) -> None:
        self._connections.add(self)
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self.transport, True)

    def readConnectionLost(self) -> None:
        """The client has said everything; what it is owed is still sent."""
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None: ...

    def connectionLost(self, reason: object = None) -> None:
        self._connections.discard(self)


class Echo(_Tracked):
    """Sends back what it gets."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Hello(_Tracked):
    """A tiny HTTP/1.1 server: answers every request with its own name and what it was asked."""

    def __init__(self, connections: set[Protocol], name: str) -> None:
        super().__init__(connections)
        self._name = name
        self._buffer = b""
        self._body_left = 0
        self._in_chunks = False

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while self._skip_body():
            head, ended, rest = self._buffer.partition(b"\r\n\r\n")
            if not ended:
                if len(head) > MAX_HEAD:
                    self.transport.abortConnection()
                return
            self._buffer = rest
            if not self._answer(head):
                return

    def _skip_body(self) -> bool:
        """Drop what is here of a request body; True when the next request may begin."""
        if self._in_chunks:
            body, ended, rest = (b"\r\n" + self._buffer).partition(b"\r\n0\r\n\r\n")
            self._buffer = rest if ended else body[-6:]
            self._in_chunks = not ended
        elif self._body_left:
            dropped = min(self._body_left, len(self._buffer))
            self._buffer = self._buffer[dropped:]
            self._body_left -= dropped
        return not self._in_chunks and not self._body_left and bool(self._buffer)

    def _answer(self, head: bytes) -> bool:
        """Write the response; False when the connection ends with it."""
        request_line, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request_line.partition(" ")
        target, _, version = rest.rpartition(" ")
        fields = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        known = {name.lower(): value for name, value in fields}
        if not target or not version.startswith("HTTP/1."):
            self.transport.loseConnection()
            return False
        self._in_chunks = "chunked" in known.get("transfer-encoding", "").lower()
        length = known.get("content-length", "0")
        self._body_left = int(length) if length.isdigit() and not self._in_chunks else 0
        text = "ok\n"
        if target != "/health":
            text = f"Hello from {self._name}\n\n{method} {target}\nrequest id: {known.get('x-request-id', '-')}\n\n"
            text += "".join(f"{name}: {value}\n" for name, value in fields)
        body = text.encode("latin-1")
        stays = version == "HTTP/1.1" and known.get("connection", "").lower() != "close"
        response = (
            f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Length: {len(body)}\r\n"
            f"Server: {self._name}\r\n{'' if stays else 'Connection: close' + chr(13) + chr(10)}\r\n"
        ).encode("latin-1")
        if known.get("expect", "").lower() == "100-continue":
            response = b"HTTP/1.1 100 Continue\r\n\r\n" + response
        self.transport.write(response if method == "HEAD" else response + body)
        if not stays:
            self.transport.loseConnection()
        return stays
