"""An exchange whose route does more than pass requests on: maintenance, split, answers made here, edits, sticky clients, mirrors.

How it works
    `Exchange.start` finds actions on its decision and calls `act`, which turns that one exchange into an `ActingExchange`: the same
    object, with the steps below in place of the plain ones. So a request on a plain route never passes a test for any of this.

    ROUTE ▶ maintenance? ▶ which side? ▶ hooks of the chain ▶ answered here? ▶ path and query ▶ ACQUIRE (preferring the server of before)
    SEND: the head wrapped in its edits     RESPOND: paths and cookies put right, the chain's edits, cookies that remember
"""

from __future__ import annotations

from random import random
from typing import TYPE_CHECKING, Any

from twistedproxy.errors import BadHead, NoRoute, NoServer, ProxyError, UnderMaintenance
from twistedproxy.http.adjust import adjusted
from twistedproxy.http.codings import Effort
from twistedproxy.http.destination import Destination, cookie
from twistedproxy.http.exchange import NONE_TRIED, Exchange, State, host_of
from twistedproxy.http.messages import LocalResponse, RequestHead, ResponseHead
from twistedproxy.http.middleware.chain import EditedHead, Edits, Outgoing
from twistedproxy.http.mirror import Comparison, Shadow
from twistedproxy.http.routes import Decision, no_route_detail
from twistedproxy.http.splits import cookie_value
from twistedproxy.http.sticky import server_behind, server_token
from twistedproxy.http.transformed import TransformedExchange
from twistedproxy.http.variables import tls_fact
from twistedproxy.pool.pool import Lease
from twistedproxy.pool.queue import Queued
from twistedproxy.pool.server import Server

if TYPE_CHECKING:
    from twistedproxy.http.actions import Actions


def act(exchange: Exchange, decision: Decision[Destination]) -> Decision[Destination] | None:
    """Walk through the actions of `decision`; the decision to go on with, or None when the request is answered."""
    exchange.__class__ = ActingExchange
    assert isinstance(exchange, ActingExchange)
    return exchange.begin(decision)


class ActingExchange(TransformedExchange):
    """An exchange on a route with actions."""

    actions: Actions
    outgoing: RequestHead
    """The request as the server gets it; hooks wrap it."""
    _is_moved = False
    """The server is asked for another path or query than the client asked for."""
    _is_spliced = False
    """Some of the answer went through the kernel: nobody saw it."""
    _sent_host = b""
    _side_cookie: bytes | None = None
    _prefer: Server | None = None
    _comparison: Comparison | None = None
    _shadow: Shadow | None = None

    # What variables speak of

    @property
    def client_port(self) -> int:
        return self.connection.client_port

    @property
    def scheme(self) -> str:
        scheme: str = self.connection.client.scheme
        return scheme

    @property
    def local_port(self) -> int:
        return self.connection.local[1]

    @property
    def site(self) -> str:
        return self.decision.site if self.decision is not None else ""

    @property
    def pool(self) -> str:
        return self.decision.destination.pool.name if self.decision is not None else ""

    @property
    def server(self) -> str:
        return self._lease.server.address if self._lease is not None else ""

    @property
    def effort(self) -> Effort:
        """What this listener may spend on codings."""
        return self.front.effort

    def tls(self, what: str) -> str:
        return tls_fact(self.connection.client.tls, what)

    # ROUTE

    def begin(self, decision: Decision[Destination]) -> Decision[Destination] | None:
        actions = decision.actions
        assert actions is not None
        self.actions = actions
        head = self.head
        if actions.maintenance is not None and not actions.maintenance.contains(self.client_ip):
            self.fail(UnderMaintenance("this site is under maintenance; please try again later"))
            return None
        if not decision.route.path:
            self.decision = None
            self.fail(NoRoute(no_route_detail(self.front.router, head)))
            return None
        if actions.split is not None:
            if not actions.split.is_open:
                self.fail(NoServer(f"all sides of the split of {decision.route.path!r} have weight 0"))
                return None
            decision = self._take_side(actions, decision)
        try:
            path, query = actions.path(head.path, head.query)
        except BadHead as error:
            self.fail(error)
            return None
        self.outgoing = head
        if (path, query) != (head.path, head.query):
            moved: Any = Outgoing(head, path, query)
            self.outgoing = moved
            self._is_moved = True
        for hook in actions.chain.on_request:
            local = hook(self)
            if local is not None:
                self.answer(local)
                return None
        if actions.answer is not None:
            self.answer(actions.answer(self))
            return None
        sticky = decision.destination.sticky
        if sticky is not None and sticky.cookie is not None:
            self._prefer = server_behind(decision.destination.pool, cookie(head, sticky.cookie.encode()))
        if actions.mirror is not None and self.front.mirrors is not None:
            self._shadow = self.front.mirrors.shadow(self, actions.mirror, random() * 100)
        return decision

    def _take_side(self, actions: Actions, decision: Decision[Destination]) -> Decision[Destination]:
        assert actions.split is not None
        path = decision.route.path
        side: Decision[Destination] = actions.split.choose(self.head, self.client_ip, random())
        self.decision = side
        pool = side.destination.pool.name
        self.front.metrics.splits[(side.site, path, pool)] += 1
        self._side_cookie = actions.split.set_cookie(self.head, pool, self.scheme == "https")
        return side

    # ACQUIRE

    def _acquire(self, destination: Destination) -> None:
        if self._prefer is None:
            super()._acquire(destination)
        else:
            self._acquire_again(destination)
        if self._shadow is not None and self.is_request_complete:
            self._shadow.complete()

    def _acquire_again(self, destination: Destination) -> None:
        """A lease, of the server this client was on before if that is possible."""
        key_of = destination.key_of
        key = 0 if key_of is None else key_of(self.head, self.client_ip)
        tried = NONE_TRIED if self._retries is None else self._retries.tried
        answer = destination.pool.acquire(key, tried, self._leased, self._prefer)
        if isinstance(answer, Lease):
            self._go(answer)
        elif isinstance(answer, Queued):
            self.state = State.QUEUED
            self._queued = answer
        else:
            self._leased(answer)

    # REQUEST and SEND

    def _take_in(self, data: bytes, destination: Destination) -> bool:
        if self._shadow is not None:
            self._shadow.add(data)
        return super()._take_in(data, destination)

    def request_spliced(self, count: int) -> None:
        if self._shadow is not None:
            self._shadow.give_up("large")
        super().request_spliced(count)

    def request_complete(self, trailers: tuple[tuple[bytes, bytes], ...]) -> None:
        super().request_complete(trailers)
        if self._shadow is not None:
            self._shadow.complete()

    def outgoing_head(self, server: Server) -> tuple[RequestHead, bytes | None, bytes | None]:
        """(head, path, host) for the server."""
        head = self.outgoing
        path = head.path if self._is_moved or not head.is_canonical else None
        host = None
        if self.actions.host is not None:
            host = self.actions.host.render(self)
        elif not head.authority:
            host = host_of(server)
        self._sent_host = host or head.authority
        return head, path, host

    # RESPOND

    def respond(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        if self._comparison is not None:
            self._comparison.original(head, body)
        self.forget_transform()  # of an answer that was not good enough
        self.answer_size = len(body) if is_done and self.method != b"HEAD" else head.content_length if length <= 0 else length
        try:
            head = self._incoming(head)
        except ProxyError as error:
            self.fail(error)
            return
        super().respond(head, length, body, is_done)

    def response_data(self, data: bytes, is_done: bool) -> None:
        if self._comparison is not None:
            self._comparison.original_data(data)
        super().response_data(data, is_done)

    def switched(self, head: ResponseHead, data: bytes) -> None:
        super().switched(self._incoming(head), data)

    def _spliced(self, count: int) -> None:
        self._is_spliced = True
        super()._spliced(count)

    def _incoming(self, head: ResponseHead) -> ResponseHead:
        """The server's head as the client gets it."""
        actions = self.actions
        if actions.prefix or actions.host is not None:
            head = adjusted(head, actions.prefix, self._inside(), self.head.authority, self.scheme.encode())
        for hook in actions.chain.on_response:
            head = hook(self, head)
        cookies = self._cookies()
        if cookies:
            edited: Any = EditedHead(head, Edits(add=[(b"Set-Cookie", _constant(value)) for value in cookies]), self)
            head = edited
        return head

    def _inside(self) -> tuple[bytes, ...]:
        """Authorities that the server may call itself by."""
        return self._sent_host.lower(), self.server.lower().encode()

    def _cookies(self) -> list[bytes]:
        """Set-Cookie values that make the client remember its side and its server."""
        values = [self._side_cookie] if self._side_cookie is not None else []
        decision = self.decision
        if decision is not None and decision.destination.sticky is not None and self.server:
            sticky = decision.destination.sticky
            token = server_token(self.pool, self.server)
            assert sticky.cookie is not None
            if cookie(self.head, sticky.cookie.encode()) != token.encode():
                values.append(cookie_value(sticky, token, self.scheme == "https"))
        return values

    def answer(self, local: LocalResponse) -> None:
        for hook in self.actions.chain.on_local:
            local = hook(self, local)
        super().answer(local)

    # FINISH

    def _finish(self, now: float = 0.0) -> None:
        if self.state is State.DONE:
            return
        super()._finish(now)
        if self._comparison is not None:
            self._comparison.original_done(is_whole=self.error is None and not self._is_spliced)
        if self._shadow is not None and self._shadow.is_collecting:
            self._shadow.give_up("incomplete")


def _constant(value: bytes) -> Any:
    return lambda exchange: value
