"""The front end of one TCP listener: who may come in, and one `Session` for each who does."""

from __future__ import annotations

import itertools
import secrets
import socket
from collections.abc import Callable
from typing import Any, ClassVar

from twistedproxy.clock import Wheel
from twistedproxy.config.model import TcpListener
from twistedproxy.errors import BadProxyHeader, Cause, Denied, Drained, Phase, ProxyError
from twistedproxy.net.networks import Networks
from twistedproxy.net.proxy_protocol import Parsed, ProxyHeaderReader
from twistedproxy.net.transport import Transport
from twistedproxy.observability.access_log import AccessLog
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool
from twistedproxy.stream.postgres import Declining
from twistedproxy.stream.session import Session


class StreamFront:
    """One TCP listener in one worker; `on_closed` is called once for each connection it was given."""

    session_class: ClassVar[type[Session]] = Session

    def __init__(
        self,
        listener: TcpListener,
        pool: Pool,
        *,
        reactor: Any,
        wheel: Wheel,
        metrics: Metrics,
        access_log: AccessLog | None = None,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.reactor = reactor
        self.wheel = wheel
        self.seconds = wheel.seconds
        self.pool = pool
        self.metrics = metrics
        self.counts = metrics.listener(listener.address)
        self.access_log = access_log
        self.address = listener.address
        self.timeouts = listener.timeouts
        self._allow = Networks(listener.allow)
        self._deny = Networks(listener.deny)
        self._accept_proxy = Networks(listener.accept_proxy)
        self._on_closed = on_closed
        self._sessions: set[Session] = set()
        self._readers: set[ProxyHeaderReader | Declining] = set()
        self._id_prefix = secrets.token_hex(6).encode()
        self._serial = itertools.count()

    @property
    def open(self) -> int:
        """Connections that are not finished."""
        return len(self._sessions) + len(self._readers)

    def accept(self, sock: socket.socket, ip: str, port: int) -> None:
        """Take over a fresh connection."""
        self.counts.open += 1
        self.counts.total += 1
        if self._accept_proxy and self._accept_proxy.contains(ip):
            self._read_proxy_header(Transport(self.reactor, self.wheel, sock, ip, port, self.timeouts.write_stall_s))
        elif self._refuses(ip):
            sock.close()
            self._denied(ip)
        else:
            self._admit(Transport(self.reactor, self.wheel, sock, ip, port, self.timeouts.write_stall_s), ip, port)

    def _admit(self, transport: Transport, ip: str, port: int, destination: tuple[str, int] | None = None, leftover: bytes = b"") -> None:
        tls = self.pool.spec.tls
        if tls is not None and tls.starttls == "postgres":
            self._decline_tls(transport, ip, port, destination, leftover)
            return
        session = self.session_class(self, transport, ip, port, destination, leftover)
        self._sessions.add(session)
        session.begin()

    def _decline_tls(self, transport: Transport, ip: str, port: int, destination: tuple[str, int] | None, seen: bytes) -> None:
        def on_clear(leftover: bytes) -> None:
            self._readers.discard(reader)
            session = self.session_class(self, transport, ip, port, destination, leftover)
            self._sessions.add(session)
            session.begin()

        def on_error(error: ProxyError) -> None:
            self._readers.discard(reader)
            self._rejected(ip, error)

        reader = Declining(transport, self.wheel, self.timeouts.preread_s, on_clear, on_error)
        self._readers.add(reader)
        reader.begin(seen)

    def _read_proxy_header(self, transport: Transport) -> None:
        def on_header(parsed: Parsed, leftover: bytes) -> None:
            self._readers.discard(reader)
            # LOCAL and UNKNOWN: the proxy speaks for itself, its own address counts.
            ip, port = parsed.source or (transport.peer, transport.peer_port)
            if self._refuses(ip):
                transport.abortConnection()
                self._denied(ip)
                return
            self._admit(transport, ip, port, parsed.destination, leftover)

        def on_error(error: BadProxyHeader) -> None:
            self._readers.discard(reader)
            self._rejected(transport.peer, error)

        reader = ProxyHeaderReader(transport, self.wheel, self.timeouts.preread_s, on_header, on_error)
        self._readers.add(reader)

    def _refuses(self, ip: str) -> bool:
        if self._deny and self._deny.contains(ip):
            return True
        return bool(self._allow) and not self._allow.contains(ip)

    def _denied(self, ip: str) -> None:
        self._rejected(ip, Denied("deny or a missing allow keeps this client out"))

    def _rejected(self, ip: str, error: ProxyError) -> None:
        """It never became a session."""
        self.metrics.rejected[error.reason] += 1
        self.log(ip, "", 0, 0, 0.0, error)
        self._closed()

    def finished(self, session: Session) -> None:
        self._sessions.discard(session)
        self._closed()

    def _closed(self) -> None:
        self.counts.open -= 1
        self._on_closed()

    def count_bytes(self, from_client: int, from_server: int) -> None:
        self.counts.bytes_in += from_client
        self.counts.bytes_out += from_server

    def log(
        self, ip: str, server: str, bytes_in: int, bytes_out: int, duration: float, error: ProxyError | None, pool: str | None = None
    ) -> None:
        log = self.access_log
        if log is not None:
            cause = Cause.OK if error is None else error.cause
            phase: Phase | None = None if error is None else error.phase
            session_id = b"%b%08x" % (self._id_prefix, next(self._serial))
            log.log_tcp(
                ip, self.address, self.pool.name if pool is None else pool, server, bytes_in, bytes_out, duration, cause, phase, session_id
            )

    def drain(self) -> None:
        """Nothing new will come. What has come is left alone: a database session has no good moment to be closed at, and one that is about
        to begin will have done so by its deadline."""

    def cut(self) -> None:
        """Time is up: end everything that is still open."""
        for reader in tuple(self._readers):
            reader.abort()
        for session in tuple(self._sessions):
            session.cut(Drained("the proxy stops"))
