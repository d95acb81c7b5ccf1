"""Every way this proxy can fail, in one tree: who failed, in which phase, what the client is told.

An error is raised (or handed over as a value) by the layer that knows. It is turned into a response in
one place (``http.exchange``) and into a log cause in one place (``observability.access_log``).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Cause(enum.Enum):
    """Who is to blame, as the access log says it."""

    OK = "ok"
    CLIENT = "client"
    SERVER = "server"
    PROXY = "proxy"
    TIMEOUT = "timeout"
    LIMIT = "limit"


class Phase(enum.Enum):
    """How far the connection or request had come."""

    ACCEPT = "accept"
    TLS = "tls"
    HEAD = "head"
    ROUTE = "route"
    QUEUE = "queue"
    CONNECT = "connect"
    REQUEST = "request"
    RESPONSE = "response"
    TUNNEL = "tunnel"


class ProxyError(Exception):
    """Base of all failures of one request or session; the class carries what everybody needs to know."""

    status = 500
    """HTTP status told to the client when nothing was sent to it yet."""
    cause = Cause.PROXY
    phase = Phase.REQUEST
    retryable = False
    """True when nothing reached a server, so that any method may be tried elsewhere (limits: rule 2)."""
    reason = "internal"
    """Slug: label of ``revproxy_rejected_total`` and of the retry counter."""
    retry_after_s = 0
    """Seconds for a Retry-After header; 0: none."""

    @property
    def detail(self) -> str:
        """One sentence for the person who reads the response or the log."""
        return str(self.args[0]) if self.args else self.reason.replace("_", " ")


# The client's side


class ClientError(ProxyError):
    status = 400
    cause = Cause.CLIENT
    phase = Phase.HEAD
    reason = "bad_request"


class BadHead(ClientError):
    """The request head breaks the grammar (RFC 9112) or a rule that keeps framing unambiguous."""

    def __init__(self, detail: str, status: int = 400, reason: str = "bad_request") -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason


class HeadTooLarge(BadHead):
    """Request line (414), one field, all fields, or their number (431) exceed the listener's limit."""

    cause = Cause.LIMIT

    def __init__(self, detail: str, status: int = 431) -> None:
        super().__init__(detail, status, "head_too_large")


class HeadTimeout(ClientError):
    status = 408
    cause = Cause.TIMEOUT
    reason = "head_timeout"


class BadBody(ClientError):
    """Chunked coding or trailers break RFC 9112 section 7."""

    phase = Phase.REQUEST
    reason = "bad_body"


class BodyTooLarge(ClientError):
    status = 413
    cause = Cause.LIMIT
    phase = Phase.REQUEST
    reason = "body_too_large"


class BodyTimeout(ClientError):
    """The client stopped sending its body, or sends it slower than ``min_body_rate``."""

    status = 408
    cause = Cause.TIMEOUT
    phase = Phase.REQUEST
    reason = "body_timeout"


class ClientGone(ClientError):
    """The client closed or reset before it had its answer; 499 is what the log shows (nginx's number)."""

    status = 499
    phase = Phase.REQUEST
    reason = "client_gone"


class WriteStall(ClientError):
    """The client took no byte for ``write_stall``."""

    status = 499
    cause = Cause.TIMEOUT
    phase = Phase.RESPONSE
    reason = "write_stall"


class Denied(ClientError):
    """``deny`` or a missing ``allow`` refuses this client."""

    status = 403
    phase = Phase.ACCEPT
    reason = "denied"


class BadProxyHeader(ClientError):
    """PROXY protocol header missing, broken or late on a listener that requires one."""

    phase = Phase.ACCEPT
    reason = "bad_proxy_header"


class TlsFailed(ClientError):
    """The TLS handshake with a client did not come about, or its TLS broke later."""

    phase = Phase.TLS
    reason = "tls_handshake"


class TlsTimeout(TlsFailed):
    """No complete handshake within ``tls_handshake``."""

    cause = Cause.TIMEOUT
    reason = "tls_timeout"


class BadHello(TlsFailed):
    """What came is not a ClientHello; `seen` are the first bytes of it."""

    reason = "bad_client_hello"

    def __init__(self, detail: str, seen: bytes = b"", alert: int = 50) -> None:
        super().__init__(detail)
        self.seen = seen[:64]
        self.alert = alert
        """What to tell the client (RFC 8446 6); 50 is decode_error."""


class Misdirected(ClientError):
    """Over this TLS connection the site must not be asked for: it wants another client CA or TLS version (RFC 9110 15.5.20)."""

    status = 421
    phase = Phase.ROUTE
    reason = "misdirected"


class NoRoute(ProxyError):
    """No site has this host, or the site no route for this path."""

    status = 404
    cause = Cause.CLIENT
    phase = Phase.ROUTE
    reason = "no_route"


class OnlyIfCached(ProxyError):
    """The client wants an answer from the cache or none, and it is not there (RFC 9111 5.2.1.7)."""

    status = 504
    cause = Cause.CLIENT
    phase = Phase.ROUTE
    reason = "only_if_cached"


class BrokenCopy(ProxyError):
    """What is kept of an answer cannot be read on."""

    phase = Phase.RESPONSE
    reason = "broken_copy"


class UnderMaintenance(ProxyError):
    """The site is in maintenance, and the client in none of the networks that are served all the same."""

    status = 503
    phase = Phase.ROUTE
    reason = "maintenance"
    retry_after_s = 60


# Between the two: the pool


class Refusal(ProxyError):
    """The pool has no server for this request; returned by ``Pool.acquire``, never raised there."""

    status = 503
    cause = Cause.SERVER
    phase = Phase.QUEUE
    reason = "no_server"
    retry_after_s = 1


class NoServer(Refusal):
    """Every server is down, ejected, drained, of weight 0, or was tried already."""


class QueueFull(Refusal):
    """All servers are at ``max_connections`` and ``queue.size`` are waiting already."""

    cause = Cause.LIMIT
    reason = "queue_full"


class QueueTimeout(Refusal):
    """No slot came free within ``queue.timeout``."""

    cause = Cause.TIMEOUT
    reason = "queue_timeout"


class Overloaded(Refusal):
    """The worker sheds load."""

    cause = Cause.LIMIT
    reason = "overloaded"


class MemoryShort(Overloaded):
    """The memory that the workers may use is nearly all taken."""

    reason = "memory"
    retry_after_s = 2


# The server's side


class ServerError(ProxyError):
    status = 502
    cause = Cause.SERVER
    phase = Phase.RESPONSE
    reason = "server_error"


class ConnectFailed(ServerError):
    """No connection was made: refused, unreachable, no port left. Nothing was sent."""

    phase = Phase.CONNECT
    retryable = True
    reason = "connect"
    blames_server = True
    """False for local exhaustion (EADDRNOTAVAIL, ENOBUFS, EMFILE): it must not mark the server down."""

    def __init__(self, detail: str, blames_server: bool = True) -> None:
        super().__init__(detail)
        self.blames_server = blames_server


class ConnectTimeout(ConnectFailed):
    status = 504
    cause = Cause.TIMEOUT
    reason = "connect_timeout"


class ServerTlsFailed(ConnectFailed):
    """No TLS with the server: it speaks none, or its certificate is not the one we must see. Nothing of the request was sent."""

    phase = Phase.TLS
    reason = "server_tls"


class ServerClosed(ServerError):
    """The server closed or reset before its answer was complete."""

    reason = "server_closed"


class BadResponse(ServerError):
    """The server's answer breaks RFC 9112 or a limit on response heads."""

    reason = "bad_response"


class ResponseTimeout(ServerError):
    """No response head within ``response_head`` or ``request``, or silence for ``response_idle``."""

    status = 504
    cause = Cause.TIMEOUT
    reason = "response_timeout"


class ServerStall(ServerError):
    """The server took no byte of the request for ``write_stall``."""

    status = 504
    cause = Cause.TIMEOUT
    phase = Phase.REQUEST
    reason = "server_stall"


class CodingFailed(ProxyError):
    """The answer could not be compressed on its way to the client."""

    phase = Phase.RESPONSE
    reason = "compression"


class IdleTimeout(ProxyError):
    """A TCP session or tunnel was silent for its idle limit, or half-closed for too long."""

    status = 504
    cause = Cause.TIMEOUT
    phase = Phase.TUNNEL
    reason = "idle_timeout"


class Drained(ProxyError):
    """Cut because the proxy stopped, or its server was removed or put into maintenance."""

    status = 503
    phase = Phase.TUNNEL
    reason = "drained"
    retry_after_s = 1


# Configuration and live changes


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration, written for the person who must mend it."""

    path: str
    """Dotted path of the key, such as ``pools.web.servers[1]``; empty for the whole file."""
    message: str
    """What is wrong, what is allowed, what to do."""
    line: int = 0
    """1-based line in the file; 0 when unknown."""
    file: str = ""

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        where = f"{self.file}{line}: " if self.file else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class ConfigurationError(Exception):
    """All problems of one configuration at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class ChangeRefused(Exception):
    """A live change cannot be applied; ``status`` is what the admin API answers.

    400 a value is wrong (``field`` names it), 404 no such thing (the message says what exists),
    409 it conflicts with what is there, 412 the caller's revision is stale, 503 it could not be made durable, or not at this moment.
    """

    def __init__(self, status: int, message: str, field: str = "", retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        """When to ask again; 0: that would not help."""


def one_line(text: str) -> str:
    """What others wrote, without line ends and control characters: it forges no rows and speaks to no terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
