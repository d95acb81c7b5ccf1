"""Makes the front end that a listener asks for; those with TLS are imported only where there is some, since OpenSSL is large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from twistedproxy.clock import Wheel
from twistedproxy.config.model import HttpListener, TcpListener, Timeouts
from twistedproxy.http.destination import Destination
from twistedproxy.http.front import HttpFront
from twistedproxy.http.pacing import Pacing
from twistedproxy.http.routes import Router
from twistedproxy.observability.access_log import AccessLog
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool
from twistedproxy.stream.front import StreamFront
from twistedproxy.worker.answers import Answers
from twistedproxy.worker.places import Front

if TYPE_CHECKING:
    from twistedproxy.worker.tls import TlsParts


@dataclass(frozen=True, slots=True)
class FrontParts:
    """What every front end of a worker is made with."""

    reactor: Any
    wheel: Wheel
    metrics: Metrics
    access_log: AccessLog | None
    on_closed: Callable[[], None]

    def named(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def http_front(
    listener: HttpListener,
    router: Router[Destination],
    timeouts: Timeouts,
    parts: FrontParts,
    tls: TlsParts | None,
    answers: Answers,
    pacing: Pacing,
) -> Front:
    """For an HTTP listener; `answers` has what live explanations, stories and mirrors need."""
    told: dict[str, Any] = {"mirrors": answers.mirrors, "stories": answers.stories, "explainer": answers.explain, "pacing": pacing}
    if not listener.is_tls:
        return HttpFront(listener, router, timeouts=timeouts, **told, **parts.named())
    from twistedproxy.http.tls_front import HttpsFront  # noqa: PLC0415

    assert tls is not None
    return HttpsFront(listener, router, timeouts=timeouts, certificates=tls.sites, **told, **parts.named())


def stream_front(listener: TcpListener, pools: Mapping[str, Pool], parts: FrontParts, tls: TlsParts | None) -> Front:
    """For a TCP listener, whether it passes bytes on, ends TLS, or chooses the pool by the name in the ClientHello."""
    if listener.tls is None and not listener.sni and not listener.protocol:
        return StreamFront(listener, pools[listener.pool], **parts.named())
    context = tls.context_of(listener.tls) if tls is not None and listener.tls is not None else None
    if listener.protocol:
        from twistedproxy.stream.mysql_session import MysqlFront  # noqa: PLC0415

        return MysqlFront(listener, pools[listener.pool], context=context, **parts.named())
    from twistedproxy.stream.tls_front import TlsStreamFront  # noqa: PLC0415

    return TlsStreamFront(listener, pools, context=context, **parts.named())
