"""TCP listeners with `protocol = "mysql"`: TLS ends here, or begins here, in the middle of the login (see `stream.mysql`).

How it works
    A `MysqlSession` is a session whose CONNECTING takes longer. Its server is connected to in the clear and greets; until then another
    server is as good. The client is then greeted with what this listener offers, and `Login` goes on, a step after the other:

    GREETING     the server's first packet; nothing may come behind it
    CLIENT       the client's TLS (`net.handshake`, with the SSLRequest as its preface), or its first packet in the clear
    SERVER       the server is asked for TLS with the client's own capabilities, and verified, when the pool has `tls`
    NUMBERING    packets get the numbers their receivers expect; skipped when both sides have TLS
    OVER         the two transports are the session's, which relays

    Every step is within `timeouts.tls_handshake`, the numbering within `LOGIN_S`, since people may type a second factor there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, ClassVar

from OpenSSL import SSL
from twisted.python.failure import Failure

from twistedproxy.clock import Timed
from twistedproxy.config.model import TcpListener
from twistedproxy.errors import (
    BadHello,
    Cause,
    ClientGone,
    ConnectFailed,
    Phase,
    ProxyError,
    ServerClosed,
    ServerTlsFailed,
    TlsTimeout,
)
from twistedproxy.net.connector import connect
from twistedproxy.net.handshake import ClientHandshake, ServerHandshake
from twistedproxy.net.sides import PeerSeen, Plain
from twistedproxy.net.tls_connector import Connect
from twistedproxy.net.transport import Transport
from twistedproxy.pool.pool import Pool
from twistedproxy.pool.server import Outcome, Server
from twistedproxy.stream import mysql
from twistedproxy.stream.front import StreamFront
from twistedproxy.stream.session import Session, State
from twistedproxy.stream.tls_front import INTERNAL_ERROR, alert_of
from twistedproxy.tls.client_hello import ClientHello

LOGIN_S = 60.0


class Step(Plain):
    GREETING = "greeting"
    CLIENT = "client"
    SERVER = "server"
    NUMBERING = "numbering"
    OVER = "over"


STEPS: dict[Step, frozenset[Step]] = {
    Step.GREETING: frozenset((Step.CLIENT, Step.OVER)),
    Step.CLIENT: frozenset((Step.SERVER, Step.NUMBERING, Step.OVER)),
    Step.SERVER: frozenset((Step.NUMBERING, Step.OVER)),
    Step.NUMBERING: frozenset((Step.OVER,)),
    Step.OVER: frozenset(),
}


class MysqlFront(StreamFront):
    """One such listener in one worker. `context` gives the certificate of the moment; None: clients come in the clear."""

    def __init__(self, listener: TcpListener, pool: Pool, *, context: Callable[[], SSL.Context | None] | None, **common: Any) -> None:
        super().__init__(listener, pool, **common)
        self.context = context

    def choose(self, hello: ClientHello) -> SSL.Context:
        context = self.context() if self.context is not None else None
        if context is None:
            raise BadHello("the certificate of this listener cannot be used", b"\x16", alert=INTERNAL_ERROR)
        return context


class MysqlSession(Session):
    """A MySQL client's connection, its login included."""

    __slots__ = ()

    _front: MysqlFront

    def _with_tls(self, server: Server) -> Connect:
        return connect  # in the clear at first

    def _connected(self, upstream: Transport) -> None:
        header = self._proxy_header()
        if header:
            upstream.write(header)
        assert self._lease is not None
        login = Login(self, self._front, self._client, upstream, self._lease.server.address)
        self._attempt = login
        login.begin()

    def login_refused(self, error: ConnectFailed) -> None:
        """The client has heard nothing yet."""
        self._connect_failed(error)

    def login_goes_on(self, client: Any) -> None:
        """From the greeting on this is the client: only to be closed."""
        self._client = client

    def logged_in(self, client: Transport, upstream: Transport, from_client: bytes, from_server: bytes) -> None:
        self._client = client
        self._leftover = from_client
        self._relay_with(upstream, from_server)

    def login_failed(self, error: ProxyError) -> None:
        if error.cause is Cause.SERVER:
            self._finish(error, Outcome.FAILED if getattr(error, "blames_server", True) else Outcome.NEUTRAL)
        else:
            if error.cause is Cause.CLIENT:  # the others are counted at the end of every session
                self._front.metrics.rejected[error.reason] += 1
            self._finish(error, Outcome.NEUTRAL)

    def _finish(self, error: ProxyError | None, outcome: Outcome, server: str = "") -> None:
        if self.state is State.WAITING and error is not None and error.cause is not Cause.CLIENT:
            self._client.write(mysql.error_packet(0, 1105, "the proxy has no server for this connection"))
        super()._finish(error, outcome, server)


MysqlFront.session_class = MysqlSession


class _LoginEnded(ServerClosed):
    """The server has closed, or says what is not due, in the middle of a login. A client that waits for long or sends rubbish brings that
    about, so it must not get the server ejected: nobody has logged in yet."""

    blames_server = False


class Login(Timed):
    """One login, from the connection to the server on. `session` hears of exactly one end of it, unless it is cancelled."""

    __slots__ = ("step", "_session", "_front", "_client", "_server", "_address", "_use", "_greeting", "_preface", "_shaking", "_said",
                 "_request", "_numbering")  # fmt: skip

    def __init__(self, session: MysqlSession, front: MysqlFront, client: Transport, server: Transport, address: str) -> None:
        super().__init__()
        self.step = Step.GREETING
        self._session: MysqlSession | None = session
        self._front = front
        self._client: Transport | None = client
        self._server: Transport | None = server
        self._address = address
        tls = session.pool.tls
        self._use = tls.use if tls is not None else None
        self._greeting: mysql.Greeting | None = None
        self._preface = mysql.Preface()
        self._shaking: ServerHandshake | ClientHandshake | None = None
        """Has the socket of the side whose transport is None meanwhile."""
        self._said = bytearray()
        """What the side that is to speak has said; of the client in the end, when it is in the clear."""
        self._request = b""
        self._numbering: mysql.Renumbering | None = None

    def __repr__(self) -> str:
        return f"<Login to {self._address}, {self.step.value}>"

    @property
    def is_over(self) -> bool:
        return self.step is Step.OVER

    def begin(self) -> None:
        server, session = self._server, self._session
        assert server is not None and session is not None
        self._limit(self._front.timeouts.tls_handshake_s)
        server.start(_Leg(self, is_client=False), reading=True)

    def _limit(self, seconds: float) -> None:
        self._front.wheel.arm(self, self._front.seconds() + seconds)

    def _move(self, to: Step) -> None:
        assert to in STEPS[self.step], f"{self.step} to {to}"
        self.step = to

    # GREETING

    def _greeted(self, data: bytes) -> None:
        session, server, client = self._session, self._server, self._client
        assert session is not None and server is not None and client is not None
        self._said += data
        found = mysql.take_packet(self._said)
        if found is None:
            return
        greeting = self._greeting = mysql.read_greeting(found[1])
        if found[0] or self._said:
            raise mysql.BadPacket("says more than its greeting before the client has answered")
        wants_tls = session.pool.tls is not None
        if wants_tls and self._use is None:
            self._fail(ServerTlsFailed(f"{self._address}: the files of the pool's tls cannot be used", blames_server=False))
            return
        if wants_tls and not greeting.offers_tls:
            raise mysql.BadPacket("speaks no TLS (its greeting does not offer it; see ssl_cert in its configuration)")
        server.pauseProducing()
        self._move(Step.CLIENT)
        offers = self._front.context is not None
        client.write(mysql.packet(0, greeting.offering(offers)))
        if client.buffered or client.is_closed:
            self._fail(ClientGone("the client takes no greeting"))
        elif offers:
            self._shake_client(client)
        else:
            client.start(_Leg(self, is_client=True), reading=True)

    # CLIENT

    def _shake_client(self, client: Transport) -> None:
        client.reactor.forget(client)
        timeouts = self._front.timeouts
        self._front.wheel.disarm(self)
        self._client = None
        shaking = self._shaking = ServerHandshake(
            client.reactor, client.wheel, client.sock, client.peer, client.peer_port, client.write_stall_s, self._client_shaken,
            self._client_failed, choose=self._front.choose, prefaces=[self._preface], timeout_s=timeouts.tls_handshake_s,
        )  # fmt: skip
        assert self._session is not None
        self._session.login_goes_on(_Shaking(shaking))
        shaking.begin()

    def _client_shaken(self, transport: Transport) -> None:
        assert self._session is not None
        self._shaking = None
        self._client = transport
        transport.start(_Leg(self, is_client=True), reading=False)
        self._session.login_goes_on(transport)
        self._request = mysql.with_tls_flag(self._preface.request, True)
        self._go_on()

    def _client_failed(self, error: ProxyError, sock: socket.socket) -> None:
        self._shaking = None
        alert = alert_of(error)
        if alert:
            try:
                sock.send(alert)
            except OSError:
                pass  # it is gone already
        sock.close()
        self._fail(error)

    def _answered(self, data: bytes) -> None:
        """A client in the clear: its answer must be whole before the server is asked for TLS."""
        self._said += data
        copy = bytearray(self._said)
        found = mysql.take_packet(copy)
        if found is not None:
            self._request = mysql.request_of(found[1])
            assert self._client is not None
            self._client.pauseProducing()
            self._go_on()

    def _go_on(self) -> None:
        if self._use is not None:
            self._shake_server(self._use)
        else:
            self._number()

    # SERVER

    def _shake_server(self, use: Any) -> None:
        server = self._server
        assert server is not None
        self._move(Step.SERVER)
        self._front.wheel.disarm(self)
        if server.peer_seen() is not PeerSeen.SILENT:
            self._fail(self._blame(False, "closed the connection or went on talking before the client had answered its greeting"))
            return
        server.write(mysql.packet(1, self._request))
        if server.buffered or server.is_closed:
            self._fail(ServerTlsFailed(f"{self._address}: it took no request for TLS"))
            return
        server.reactor.forget(server)
        self._server = None
        shaking = self._shaking = ClientHandshake(
            server.reactor, server.wheel, server.sock, server.peer, server.peer_port, server.write_stall_s,
            self._server_shaken, self._server_failed, use=use, address=self._address,
        )  # fmt: skip
        shaking.begin(self._front.timeouts.tls_handshake_s)

    def _server_shaken(self, transport: Transport) -> None:
        self._shaking = None
        self._server = transport
        transport.start(_Leg(self, is_client=False), reading=False)
        self._number()

    def _server_failed(self, error: ServerTlsFailed, sock: socket.socket) -> None:
        self._shaking = None
        sock.close()
        assert self._session is not None and self._session.pool.tls is not None
        self._session.pool.tls.refused(error)
        self._fail(error)

    # NUMBERING

    def _number(self) -> None:
        client, server = self._client, self._server
        assert client is not None and server is not None and self._greeting is not None
        self._move(Step.NUMBERING)
        if client.is_plain is server.is_plain:
            self._done(bytes(self._said), b"")
            return
        self._limit(LOGIN_S)
        self._numbering = mysql.Renumbering(self._greeting, client_is_secure=not client.is_plain)
        if self._said:
            self._numbering.from_client(bytes(self._said))
        client.resumeProducing()
        server.resumeProducing()
        self._pass_on()

    def _pass_on(self) -> None:
        numbering, client, server = self._numbering, self._client, self._server
        assert numbering is not None and client is not None and server is not None
        for said, listener in ((numbering.to_client, client), (numbering.to_server, server)):
            if said:
                listener.write(bytes(said))
                said.clear()
        if numbering.is_over:
            self._done(bytes(numbering.rest_of_client), bytes(numbering.rest_of_server))

    # OVER

    def _done(self, from_client: bytes, from_server: bytes) -> None:
        session, client, server = self._session, self._client, self._server
        assert session is not None and client is not None and server is not None
        self._end()
        client.pauseProducing()
        server.pauseProducing()
        session.logged_in(client, server, from_client, from_server)

    def _end(self) -> None:
        self._move(Step.OVER)
        self._front.wheel.disarm(self)
        self._session = None
        self._client = self._server = None

    def _fail(self, error: ProxyError) -> None:
        session, step = self._session, self.step
        if session is None:
            return
        client = self._client
        self._close()
        if step is Step.GREETING:
            assert isinstance(error, ConnectFailed)
            session.login_refused(error)
            return
        if client is not None and error.cause is not Cause.CLIENT:
            text = "the proxy could not reach the server"
            client.write(mysql.error_packet(2 if client.is_plain else 3, 1105, text))
        session.login_failed(error)

    def _close(self) -> None:
        """End it and let the server go, politely where it waits for an answer; the client is the session's to close."""
        step = self.step
        server, shaking = self._server, self._shaking
        self._shaking = None
        self._end()
        if shaking is not None:
            shaking.cancel()
        if server is not None and step is Step.CLIENT:
            server.write(mysql.packet(1, mysql.NOBODY))
            server.loseConnection()
        elif server is not None:
            server.abortConnection()

    def cancel(self) -> None:
        """Forget it; nobody is told."""
        if self.step is not Step.OVER:
            self._close()

    # What the legs and the wheel tell

    def heard(self, data: bytes, is_client: bool) -> None:
        if self.step is Step.OVER:
            return
        try:
            if self._numbering is not None:
                if is_client:
                    self._numbering.from_client(data)
                else:
                    self._numbering.from_server(data)
                self._pass_on()
            elif is_client:
                self._answered(data)
            else:
                self._greeted(data)
        except mysql.BadPacket as e:
            self._fail(self._blame(is_client, str(e)))

    def ended(self, is_client: bool, how: str) -> None:
        if self.step is not Step.OVER:
            self._fail(self._blame(is_client, how))

    def _blame(self, is_client: bool, what: str) -> ProxyError:
        if self.step is Step.GREETING and not is_client:
            return ConnectFailed(f"{self._address}: the MySQL server {what}")
        error: ProxyError = ClientGone(f"the client {what}") if is_client else _LoginEnded(f"{self._address}: the MySQL server {what}")
        error.phase = Phase.CONNECT
        return error

    def deadline_passed(self, now: float) -> None:
        if self.step is Step.GREETING:
            self._fail(self._blame(False, f"did not greet within {self._front.timeouts.tls_handshake_s:g} s"))
        else:
            self._fail(TlsTimeout("no complete MySQL login in time"))


class _Leg:
    """One side of a login, as the receiver of its transport."""

    __slots__ = ("_login", "_is_client")

    resets_at_once: ClassVar[bool] = True

    def __init__(self, login: Login, is_client: bool) -> None:
        self._login = login
        self._is_client = is_client

    def dataReceived(self, data: bytes) -> None:
        self._login.heard(data, self._is_client)

    def readConnectionLost(self) -> None:
        self._login.ended(self._is_client, "closed the connection before the login was over")

    def connectionLost(self, reason: Failure) -> None:
        self._login.ended(self._is_client, f"broke the connection before the login was over: {reason.value}")


class _Shaking:
    """Stands for the client's transport while its socket belongs to a handshake."""

    __slots__ = ("_handshake",)

    def __init__(self, handshake: ServerHandshake) -> None:
        self._handshake = handshake

    def loseConnection(self) -> None:
        self._handshake.cancel()
