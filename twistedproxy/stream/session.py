"""One TCP connection of a client, from its acceptance to its end; read it from top to bottom.

    WAITING     ask the pool for a server; perhaps wait in its queue
    CONNECTING  open a connection to it; nothing was sent, so another server is as good when that fails
    RELAYING    both sides joined by `net.relay`
    OVER        the lease is given back, the session logged and counted, whatever happened

Not a byte of the client is read before RELAYING, so that a server that speaks first is heard first and nothing piles up here. The client
is watched meanwhile: a reset ends the session at once. A FIN alone is no reason to give up, since many clients send their request
and their FIN together; but one that ends without having sent a byte is given `EMPTY_FIN_GRACE_S` for a server to be found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from twisted.python.failure import Failure

from twistedproxy.clock import Timed
from twistedproxy.errors import Cause, ClientGone, ConnectFailed, Phase, ProxyError, Refusal
from twistedproxy.net.connector import connect
from twistedproxy.net.proxy_protocol import encode
from twistedproxy.net.relay import Relay
from twistedproxy.net.sides import PeerSeen, Plain
from twistedproxy.net.transport import Transport
from twistedproxy.pool.balancers import stable_hash
from twistedproxy.pool.pool import Lease
from twistedproxy.pool.queue import Queued
from twistedproxy.pool.server import Outcome, Server
from twistedproxy.stream.postgres import SslRequest

if TYPE_CHECKING:
    from twistedproxy.net.tls_connector import Asking, Connect
    from twistedproxy.stream.front import StreamFront
    from twistedproxy.stream.tls_front import Hello

EMPTY_FIN_GRACE_S = 0.25
NOBODY: frozenset[Server] = frozenset()


class State(Plain):
    WAITING = "waiting"
    CONNECTING = "connecting"
    RELAYING = "relaying"
    OVER = "over"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset((State.CONNECTING, State.OVER)),
    State.CONNECTING: frozenset((State.WAITING, State.RELAYING, State.OVER)),
    State.RELAYING: frozenset((State.OVER,)),
    State.OVER: frozenset(),
}


class Session(Timed):
    """A client's connection and what it is joined to. `ip` and `port` are the client's own, also behind another proxy."""

    __slots__ = ("state", "ip", "port", "pool", "_hello", "_front", "_client", "_destination", "_leftover", "_began",
                 "_connect_began", "_latency_s", "_tried", "_tries_left", "_queued", "_lease", "_attempt", "_relay",
                 "_error", "__weakref__")  # fmt: skip

    resets_at_once: ClassVar[bool] = True
    """Nobody works for a client that is gone, whatever it sent before."""

    def __init__(
        self,
        front: StreamFront,
        client: Transport,
        ip: str,
        port: int,
        destination: tuple[str, int] | None = None,
        leftover: bytes = b"",
        hello: Hello | None = None,
    ) -> None:
        super().__init__()
        self.pool = front.pool if hello is None else hello.pool
        self._hello = hello
        """What the client's TLS said first, when that chose the pool."""
        self.state = State.WAITING
        self.ip = ip
        self.port = port
        self._front = front
        self._client = client
        self._destination = destination
        """Where the client wanted to go, as a PROXY header said it."""
        self._leftover = leftover
        """What came behind the PROXY header."""
        self._began = front.seconds()
        self._connect_began = 0.0
        self._latency_s = -1.0
        self._tried = NOBODY
        self._tries_left = -1
        self._queued: Queued | None = None
        self._lease: Lease | None = None
        self._attempt: Asking | None = None
        self._relay: Relay | None = None
        self._error: ProxyError | None = None
        """Why the last server could not be reached."""

    def __repr__(self) -> str:
        server = self._lease.server.address if self._lease is not None else "no server"
        return f"<Session of {self.ip}:{self.port} {self.state.value}, {server}>"

    def begin(self) -> None:
        client = self._client
        client.pauseProducing()
        client.start(self, reading=False)
        client.watch_hangup(self._client_ended)
        self._ask_pool()

    # WAITING

    def _ask_pool(self) -> None:
        pool = self.pool
        answer = pool.acquire(stable_hash(self.ip.encode()), self._tried, self._pool_answers)
        if isinstance(answer, Queued):
            self._queued = answer
        else:
            self._pool_answers(answer)

    def _pool_answers(self, answer: Lease | Refusal) -> None:
        self._queued = None
        if isinstance(answer, Refusal):
            self._finish(self._error or answer, Outcome.NEUTRAL)
            return
        self._lease = answer
        answer.on_cut(self.cut)
        self._move(State.CONNECTING)
        self._connect(answer.server)

    # CONNECTING

    def _connect(self, server: Server) -> None:
        front = self._front
        endpoints = server.endpoints
        if not endpoints:
            self._connect_failed(ConnectFailed(f"the host name of {server.address} has not been resolved yet"))
            return
        self._connect_began = front.seconds()
        timeouts = front.timeouts
        begin = connect if self.pool.tls is None else self._with_tls(server)
        self._attempt = begin(
            front.reactor,
            front.wheel,
            endpoints[server.leases % len(endpoints)],
            timeouts.connect_s,
            self._connected,
            self._connect_failed,
            timeouts.write_stall_s,
        )

    def _with_tls(self, server: Server) -> Connect:
        """How servers with TLS are connected to."""
        begin: Connect = self.pool.tls.to(server.address, self._proxy_header(), self._front.timeouts.tls_handshake_s)
        return begin

    def _connect_failed(self, error: ConnectFailed) -> None:
        """Nothing was sent: another server is as good, as far as the pool's `retry` allows."""
        self._attempt = None
        self._error = error
        lease, self._lease = self._lease, None
        assert lease is not None
        outcome = Outcome.FAILED if error.blames_server else Outcome.NEUTRAL
        self._move(State.WAITING)
        self._tried |= {lease.server}
        lease.release(outcome)
        if self._may_retry():
            self._ask_pool()
        else:
            self._finish(error, outcome, lease.server.address)

    def _may_retry(self) -> bool:
        retry = self.pool.spec.retry
        if self._tries_left < 0:
            self._tries_left = retry.tries if "connect" in retry.on else 0
        if not self._tries_left:
            return False
        self._tries_left -= 1
        self._front.metrics.retries[self.pool.name, "connect"] += 1
        return True

    def _connected(self, upstream: Transport) -> None:
        self._attempt = None
        if upstream.is_plain:  # with TLS it went before the handshake
            header = self._proxy_header()
            if header:
                upstream.write(header)
        if self._hello is not None and self._hello.is_postgres:
            self._attempt = SslRequest(upstream, self._front.wheel, self._front.timeouts.preread_s, self._relay_with, self._connect_failed)
        else:
            self._relay_with(upstream)

    def _proxy_header(self) -> bytes:
        version = self.pool.spec.send_proxy
        if not version:
            return b""
        tlvs = self._hello.tlvs if self._hello is not None else ()
        return encode(version, (self.ip, self.port), self._destination or self._client.local, tlvs)

    def _relay_with(self, upstream: Transport, from_server: bytes = b"") -> None:
        self._attempt = None
        front, client, lease = self._front, self._client, self._lease
        assert lease is not None
        self._latency_s = front.seconds() - self._connect_began
        self._move(State.RELAYING)
        front.wheel.disarm(self)
        front.metrics.tcp_sessions[front.address, self.pool.name, lease.server.address] += 1
        timeouts = front.timeouts
        self._relay = relay = Relay(
            client,
            upstream,
            front.wheel,
            idle_s=timeouts.tcp_idle_s,
            half_closed_s=timeouts.half_closed_s,
            on_done=self._relayed,
            on_bytes=front.count_bytes,
        )
        relay.start(from_a=self._leftover, from_b=from_server)

    # RELAYING

    def _relayed(self, error: ProxyError | None) -> None:
        if error is None or error.cause is Cause.TIMEOUT:
            self._finish(error, Outcome.OK)
        else:
            self._finish(error, Outcome.FAILED if error.cause is Cause.SERVER else Outcome.NEUTRAL)

    # OVER

    def cut(self, error: ProxyError) -> None:
        """End it now, whatever it is doing: its server was removed, or the proxy stops."""
        if self._relay is not None:
            self._relay.cut(error)
        else:
            self._finish(error, Outcome.NEUTRAL)

    def _finish(self, error: ProxyError | None, outcome: Outcome, server: str = "") -> None:
        """The one end of every session."""
        if self.state is State.OVER:
            return
        was_relaying = self.state is State.RELAYING
        self._move(State.OVER)
        front = self._front
        front.wheel.disarm(self)
        if self._queued is not None:
            self._queued.cancel()
            self._queued = None
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        self._client.loseConnection()
        lease, self._lease = self._lease, None
        if lease is not None:
            server = lease.server.address
            lease.release(outcome, self._latency_s)
        relay, self._relay = self._relay, None
        bytes_in, bytes_out = (relay.bytes_a_to_b, relay.bytes_b_to_a) if relay is not None else (0, 0)
        if not was_relaying and error is not None and error.cause is not Cause.CLIENT:
            front.metrics.rejected[error.reason] += 1
        front.log(self.ip, server, bytes_in, bytes_out, front.seconds() - self._began, error, self.pool.name)
        front.finished(self)

    def _move(self, to: State) -> None:
        assert to in TRANSITIONS[self.state], f"{self.state} to {to}"
        self.state = to

    # The client, while it is not read from

    def _client_ended(self) -> None:
        """Its FIN has come before there was a server."""
        if not self._leftover and self._client.peer_seen() in (PeerSeen.ENDED, PeerSeen.RESET):
            self._front.wheel.arm(self, self._front.seconds() + EMPTY_FIN_GRACE_S)

    def deadline_passed(self, now: float) -> None:
        self._client_gone("the client closed without having sent a byte")

    def _client_gone(self, detail: str) -> None:
        if self.state in (State.WAITING, State.CONNECTING):
            error = ClientGone(f"{detail}, while {self.state.value}")
            error.phase = Phase.QUEUE if self.state is State.WAITING else Phase.CONNECT
            self._finish(error, Outcome.NEUTRAL)

    def connectionLost(self, reason: Failure) -> None:
        """The client reset the connection."""
        self._client_gone("the client reset the connection")

    def dataReceived(self, data: bytes) -> None:
        """Paused: this is what had been read already."""
        self._leftover += data

    def readConnectionLost(self) -> None:
        """EOF was read already; the relay passes it on when it starts."""
