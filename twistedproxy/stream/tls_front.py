"""TCP listeners that know TLS: it ends here (`tls`), or only the name in its first message is read (`sni`) and it passes through.

Both look at the beginning of a connection without taking it (`net.handshake`), so a passed-through connection goes on byte for byte, in
the kernel where that pays. PostgreSQL's request for TLS is answered in both cases.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL

from twistedproxy.config.model import TcpListener
from twistedproxy.errors import BadHello, Denied, NoRoute, Phase, ProxyError
from twistedproxy.net.handshake import HelloReader, Preface, ServerHandshake
from twistedproxy.net.proxy_protocol import parse
from twistedproxy.net.transport import Transport
from twistedproxy.pool.pool import Pool
from twistedproxy.stream import postgres
from twistedproxy.stream.front import StreamFront
from twistedproxy.stream.session import Session
from twistedproxy.tls.client_hello import ClientHello

TLV_ALPN = 0x01
TLV_AUTHORITY = 0x02
INTERNAL_ERROR = 80
UNRECOGNIZED_NAME = 112


def alert_of(error: ProxyError) -> bytes:
    """The TLS alert for a client that has begun TLS; b"" for others."""
    alert = error.alert if isinstance(error, BadHello) and error.seen[:1] == b"\x16" else 0
    if isinstance(error, NoRoute):
        alert = UNRECOGNIZED_NAME
    return b"\x15\x03\x03\x00\x02\x02" + bytes((alert,)) if alert else b""


@dataclass(frozen=True, slots=True)
class Hello:
    """What the beginning of a connection decided."""

    pool: Pool
    is_postgres: bool = False
    """The server must be asked for TLS, as the client asked us."""
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """What a PROXY v2 header tells of it."""


class SniPools:
    """Which pool a name leads to: exact, then ``*.suffix``, then ``*``, as hosts of sites do."""

    def __init__(self, sni: tuple[tuple[str, str], ...], pools: Mapping[str, Pool]) -> None:
        self._pools = {host: pools[pool] for host, pool in sni}

    def find(self, name: str) -> Pool | None:
        pool = self._pools.get(name)
        rest = name
        while pool is None:
            rest = rest.partition(".")[2]
            if not rest:
                return self._pools.get("*")
            pool = self._pools.get(f"*.{rest}")
        return pool


class TlsStreamFront(StreamFront):
    """One TCP listener with `tls` or `sni` in one worker. `context` gives the certificate of the moment."""

    def __init__(
        self, listener: TcpListener, pools: Mapping[str, Pool], *, context: Callable[[], SSL.Context | None] | None, **common: Any
    ) -> None:
        super().__init__(listener, pools[listener.pools[0]], **common)
        self.context = context
        self.sni = SniPools(listener.sni, pools)
        self._arrivals: set[_Arrival] = set()

    @property
    def open(self) -> int:
        return super().open + len(self._arrivals)

    def accept(self, sock: socket.socket, ip: str, port: int) -> None:
        self.counts.open += 1
        self.counts.total += 1
        is_proxied = bool(self._accept_proxy) and self._accept_proxy.contains(ip)
        if not is_proxied and self._refuses(ip):
            sock.close()
            self._denied(ip)
            return
        arrival = _Arrival(self, sock, ip, port, is_proxied)
        self._arrivals.add(arrival)
        arrival.begin()

    def refuses(self, ip: str) -> bool:
        return self._refuses(ip)

    def arrived(self, arrival: _Arrival, transport: Transport, hello: Hello) -> None:
        self._arrivals.discard(arrival)
        session = Session(self, transport, arrival.ip, arrival.port, arrival.destination, hello=hello)
        self._sessions.add(session)
        session.begin()

    def not_arrived(self, arrival: _Arrival, error: ProxyError) -> None:
        self._arrivals.discard(arrival)
        self._rejected(arrival.ip, error)

    def cut(self) -> None:
        for arrival in tuple(self._arrivals):
            arrival.cut()
        super().cut()


class _Arrival:
    """A client between accept and its session. `ip` and `port` are the client's own, also behind another proxy."""

    __slots__ = ("ip", "port", "destination", "_front", "_postgres", "_pool", "_reading")

    def __init__(self, front: TlsStreamFront, sock: socket.socket, ip: str, port: int, is_proxied: bool) -> None:
        self.ip = ip
        self.port = port
        self.destination: tuple[str, int] | None = None
        self._front = front
        self._postgres = postgres.Preface()
        self._pool = front.pool
        prefaces: list[Preface] = [self._read_proxy_header, self._postgres] if is_proxied else [self._postgres]
        timeouts = front.timeouts
        common: tuple[Any, ...] = (front.reactor, front.wheel, sock, ip, port, timeouts.write_stall_s, self._done, self._failed)
        self._reading: ServerHandshake
        if front.context is not None:
            self._reading = ServerHandshake(*common, choose=self._context, prefaces=prefaces, timeout_s=timeouts.tls_handshake_s)
        else:
            self._reading = HelloReader(*common, choose=self._choose_pool, prefaces=prefaces, timeout_s=timeouts.preread_s)

    def begin(self) -> None:
        self._reading.begin()

    def _read_proxy_header(self, data: bytes, sock: socket.socket) -> tuple[int, bool] | None:
        parsed = parse(data)
        if parsed is None:
            return None
        if parsed.source is not None:
            self.ip, self.port = parsed.source
            self.destination = parsed.destination
        if self._front.refuses(self.ip):
            raise Denied("deny or a missing allow keeps this client out")
        return parsed.size, True

    def _context(self, hello: ClientHello) -> SSL.Context:
        assert self._front.context is not None
        context = self._front.context()
        if context is None:
            raise BadHello("the certificate of this listener cannot be used", b"\x16", alert=INTERNAL_ERROR)
        return context

    def _choose_pool(self, hello: ClientHello) -> None:
        pool = self._front.sni.find(hello.name)
        if pool is None:
            error = NoRoute(f"no pool for the name {hello.name!r}" if hello.name else "the client named no host (SNI), and there is no '*'")
            error.phase = Phase.TLS
            raise error
        self._pool = pool

    def _done(self, transport: Transport) -> None:
        hello = self._reading.hello
        said = ((TLV_ALPN, hello.protocols[0] if hello.protocols else b""), (TLV_AUTHORITY, hello.name.encode()))
        tlvs = tuple((kind, value) for kind, value in said if value)
        passes_through = self._front.context is None
        self._front.arrived(self, transport, Hello(self._pool, passes_through and self._postgres.was_postgres, tlvs))

    def _failed(self, error: ProxyError, sock: socket.socket) -> None:
        alert = alert_of(error)
        if alert:
            try:
                sock.send(alert)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is gone already
        sock.close()
        self._front.not_arrived(self, error)

    def cut(self) -> None:
        if not self._reading.is_over:
            self._reading.cancel()
            self._front.not_arrived(self, Denied("the listener closed"))
