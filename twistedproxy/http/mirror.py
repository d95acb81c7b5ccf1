"""Copies of requests for another pool, whose answers no client sees: never slower, never failing the original.

How it works
    For a share of the requests on a route, `Mirrors.shadow` makes a `Shadow` beside the exchange. It collects the body (up to `MAX_BODY`),
    and once the original request is complete it sends its copy on a connection of its own, as one more HTTP/1 request. It never waits: no
    room among the `MAX_IN_FLIGHT` copies or no free server, and it is dropped and counted. With `compare`, both answers leave behind their
    status, some fields, and length and digest of their body; once both are there, the difference is classed, counted, and for the first of
    a kind and a few more kept as a sample, with every value that could be a secret left out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from twistedproxy.config.model import Mirror
from twistedproxy.errors import ConnectFailed, ProxyError
from twistedproxy.http.messages import CHUNKED, ResponseHead
from twistedproxy.http.upstream import UpstreamConnection
from twistedproxy.net.connector import connect
from twistedproxy.net.proxy_protocol import encode as encode_proxy_header
from twistedproxy.net.transport import Transport
from twistedproxy.pool.pool import Lease, Pool
from twistedproxy.pool.queue import Queued
from twistedproxy.pool.server import Outcome

if TYPE_CHECKING:
    from twistedproxy.http.exchange import Exchange
    from twistedproxy.http.front import HttpFront

MAX_BODY = 64 * 1024
MAX_IN_FLIGHT = 64
"""Copies on their way, in one worker."""
MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are looked at; of a longer one only its beginning is read."""
MAX_SAMPLES = 100
_SHOWN = frozenset({
    b"content-type", b"content-encoding", b"content-language", b"cache-control", b"vary", b"allow", b"location", b"content-length",
})  # fmt: skip
"""Fields whose values samples show; of others they only say that they differ."""


class Answer:
    """What is kept of one answer."""

    __slots__ = ("_digest", "fields", "is_whole", "length", "status")

    def __init__(self) -> None:
        self.status = 0
        self.fields: dict[bytes, bytes | None] = {}
        self.length = 0
        self.is_whole = False
        self._digest = blake2b(digest_size=16)

    def head(self, head: ResponseHead, names: tuple[bytes, ...]) -> None:
        self.status = head.status
        self.fields = {name: head.get(name) for name in names}

    def add(self, data: bytes) -> None:
        room = MAX_ANSWER - self.length
        self.length += len(data)
        if room > 0:
            self._digest.update(data[:room])

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    @property
    def seen(self) -> tuple[int, str]:
        """What is compared: of a body longer than `MAX_ANSWER` its beginning, and that there is more."""
        return min(self.length, MAX_ANSWER + 1), self.digest


class Comparison:
    """Two answers to the same request."""

    def __init__(self, mirrors: Mirrors, key: tuple[str, str, str], exchange: Exchange, names: tuple[str, ...]) -> None:
        self._mirrors = mirrors
        self._key = key
        self._names = tuple(name.encode() for name in names)
        target = exchange.head.path.decode("latin-1")
        self._request = f"{exchange.method.decode('latin-1')} {target[:200]}"
        self._id = exchange.request_id.decode("latin-1")
        self._one = Answer()
        self._two = Answer()
        self._waits_for = 2

    def original(self, head: ResponseHead, body: bytes) -> None:
        self._one = Answer()
        self._one.head(head, self._names)
        self._one.add(body)

    def original_data(self, data: bytes) -> None:
        self._one.add(data)

    def original_done(self, is_whole: bool) -> None:
        self._one.is_whole = is_whole
        self._done()

    def copy(self, head: ResponseHead, body: bytes) -> None:
        self._two.head(head, self._names)
        self._two.add(body)

    def copy_data(self, data: bytes) -> None:
        self._two.add(data)

    def copy_done(self, is_whole: bool) -> None:
        self._two.is_whole = is_whole
        self._done()

    def _done(self) -> None:
        self._waits_for -= 1
        if not self._waits_for and self._one.status and self._two.status:
            kinds = self._differences()
            self._mirrors.compared(self._key, kinds, self._sample(kinds))

    def _differences(self) -> list[str]:
        one, two = self._one, self._two
        kinds = [f"status {one.status} {two.status}"] if one.status != two.status else []
        kinds += [f"header {name.decode()}" for name in self._names if one.fields[name] != two.fields[name]]
        if one.is_whole and two.is_whole and one.seen != two.seen:
            kinds.append("body")
        return kinds

    def _sample(self, kinds: list[str]) -> dict[str, Any]:
        def shown(answer: Answer) -> dict[str, Any]:
            return {
                "status": answer.status,
                "headers": {n.decode(): _shown(n, v) for n, v in answer.fields.items()},
                "body_bytes": answer.length,
                "body_digest": answer.digest,
            }

        site, path, pool = self._key
        return {
            "id": self._id, "site": site, "path": path, "pool": pool, "request": self._request, "differences": kinds,
            "original": shown(self._one), "mirror": shown(self._two),
        }  # fmt: skip


def _shown(name: bytes, value: bytes | None) -> str | None:
    if value is None:
        return None
    return value[:200].decode("latin-1") if name in _SHOWN else "(not shown)"


class Mirrors:
    """All mirroring of one worker: how much is on its way, what was counted, samples of differences."""

    def __init__(self, pool_of: Callable[[str], Pool | None], counts: Counter[tuple[str, str, str, str]]) -> None:
        self.pool_of = pool_of
        self._counts = counts
        """(site, path, pool, result)."""
        self.in_flight = 0
        self._classes: Counter[tuple[str, str, str, str]] = Counter()
        """(site, path, pool, class of difference)."""
        self._samples: deque[dict[str, Any]] = deque(maxlen=MAX_SAMPLES)

    def shadow(self, exchange: Any, spec: Mirror, chance: float) -> Shadow | None:
        """The copy of a request to come, or None when this one is not to be copied; `chance` is in [0, 100)."""
        if chance >= spec.percent or (spec.methods and exchange.method.decode("latin-1") not in spec.methods):
            return None
        key = (exchange.decision.site, exchange.decision.route.path, spec.pool)
        if self.in_flight >= MAX_IN_FLIGHT or exchange.head.upgrade is not None:
            self.count(key, "dropped")
            return None
        comparison = Comparison(self, key, exchange, spec.headers) if spec.compare else None
        exchange._comparison = comparison
        return Shadow(self, exchange, key, comparison)

    def count(self, key: tuple[str, str, str], result: str) -> None:
        self._counts[(*key, result)] += 1

    def compared(self, key: tuple[str, str, str], kinds: list[str], sample: dict[str, Any]) -> None:
        self.count(key, "different" if kinds else "same")
        is_new = False
        for kind in kinds:
            seen = (*key, kind)
            if seen not in self._classes and len(self._classes) < 1000:
                is_new = True
                self._classes[seen] = 0
            if seen in self._classes:
                self._classes[seen] += 1
        if kinds and (is_new or max(self._classes.get((*key, kind), 0) for kind in kinds) % 10 == 0):
            self._samples.append(sample)

    def to_plain(self) -> dict[str, Any]:
        return {
            "results": [[*key, n] for key, n in self._counts.items()],
            "differences": [[*key, n] for key, n in self._classes.items()],
            "samples": list(self._samples),
        }


class Shadow:
    """One copy: collects, sends, and forgets. It stands in for an exchange towards its upstream connection."""

    __slots__ = (
        "_answered",
        "_body",
        "_collected",
        "_comparison",
        "_exchange",
        "_front",
        "_is_over",
        "_key",
        "_lease",
        "_mirrors",
        "_until",
        "_upstream",
        "method",
        "response_idle_s",
    )

    def __init__(self, mirrors: Mirrors, exchange: Exchange, key: tuple[str, str, str], comparison: Comparison | None) -> None:
        self._mirrors = mirrors
        self._exchange: Any = exchange
        self._front: HttpFront = exchange.front
        self._key = key
        self._comparison = comparison
        self._body: list[bytes] = []
        self._collected = 0
        self._answered = 0
        """Bytes of the answer's body."""
        self._until = 0.0
        """When an answer that still comes is broken off: an endless one shall not keep its place for good."""
        self._lease: Lease | None = None
        self._upstream: UpstreamConnection | None = None
        self._is_over = False
        self.method = exchange.method
        self.response_idle_s = 60.0
        mirrors.in_flight += 1

    @property
    def is_collecting(self) -> bool:
        """Nothing was sent yet, and nothing decided."""
        return not self._is_over and self._lease is None

    def add(self, data: bytes) -> None:
        """More of the request's body."""
        if not self._is_over:
            self._body.append(data)
            self._collected += len(data)
            if self._collected > MAX_BODY:
                self.give_up("large")

    def give_up(self, result: str) -> None:
        """No copy, or none that came through."""
        if self._is_over:
            return
        self._end(result, Outcome.NEUTRAL)

    def complete(self) -> None:
        """The original request is whole: send the copy."""
        if self._is_over or self._lease is not None:
            return
        pool = self._mirrors.pool_of(self._key[2])
        answer = pool.acquire(0, frozenset(), lambda lease: None) if pool is not None else None
        if isinstance(answer, Queued):
            answer.cancel()
        if not isinstance(answer, Lease):
            self.give_up("dropped")
            return
        assert pool is not None
        self._lease = answer
        server = answer.server
        if server.idle:
            self._send(server.idle.pop())
        elif not server.endpoints:
            self.give_up("failed")
        else:
            timeouts = self._exchange.decision.destination.timeouts
            begin = connect if pool.tls is None else pool.tls.to(server.address, self._proxy_header(pool), timeouts.tls_handshake_s)
            begin(
                self._front.reactor, self._front.wheel, server.endpoints[0], timeouts.connect_s,
                lambda transport: self._connected(transport, pool), self._connect_failed, timeouts.write_stall_s,
            )  # fmt: skip

    def _connected(self, transport: Transport, pool: Pool) -> None:
        assert self._lease is not None
        header = self._proxy_header(pool)
        upstream = UpstreamConnection(transport, self._lease.server, self._front.wheel, pool.spec.keepalive, may_reuse=not header)
        if header and transport.is_plain:  # with TLS it went before the handshake
            transport.write(header)
        self._send(upstream)

    def _proxy_header(self, pool: Pool) -> bytes:
        exchange, version = self._exchange, pool.spec.send_proxy
        return encode_proxy_header(version, (exchange.client_ip, exchange.client_port), exchange.connection.local) if version else b""

    def _connect_failed(self, error: ConnectFailed) -> None:
        self._end("failed", Outcome.FAILED if error.blames_server else Outcome.NEUTRAL)

    def _send(self, upstream: UpstreamConnection) -> None:
        exchange = self._exchange
        self._upstream = upstream
        body = b"".join(self._body)
        head, path, host = exchange.outgoing_head(upstream.server)
        length = len(body) if exchange._body_length == CHUNKED else exchange._body_length
        data = exchange.connection.client.request(head, path, host, b"", exchange.request_id, exchange._body_length, None)
        if exchange._body_length == CHUNKED:
            data += (b"%x\r\n%b\r\n" % (length, body) if body else b"") + b"0\r\n\r\n"
        else:
            data += body
        timeouts = exchange.decision.destination.timeouts
        now = self._front.seconds()
        self._until = now + timeouts.request_s
        upstream.send(self, data, now + timeouts.response_head_s)  # type: ignore[arg-type]  # as far as it is asked, an exchange

    # What the upstream connection tells an exchange

    def interim(self, head: ResponseHead) -> None:
        """Nobody waits for it."""

    def switched(self, head: ResponseHead, data: bytes) -> None:
        self._end("failed", Outcome.NEUTRAL)

    def respond(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        if self._comparison is not None:
            self._comparison.copy(head, body)
        self._took(len(body), is_done)

    def response_data(self, data: bytes, is_done: bool) -> None:
        if self._comparison is not None:
            self._comparison.copy_data(data)
        self._took(len(data), is_done)

    def _took(self, count: int, is_done: bool) -> None:
        """`count` bytes of the answer's body have come."""
        self._answered += count
        if is_done or self._answered > MAX_ANSWER:
            self._finished(is_whole=True)
        elif self._front.seconds() > self._until:
            self._finished(is_whole=False)

    def upstream_failed(self, error: ProxyError, has_begun: bool) -> None:
        self._upstream = None
        self._end("failed", Outcome.FAILED)

    def pause_request(self) -> None:
        """The whole copy is with the transport already."""

    def resume_request(self) -> None:
        """As above."""

    def _finished(self, is_whole: bool) -> None:
        """All of the answer that is looked at is here; with `is_whole` False, all that there was time for."""
        comparison = self._comparison
        self._end("sent", Outcome.OK)
        if comparison is not None:
            comparison.copy_done(is_whole)

    def _end(self, result: str, outcome: Outcome) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._mirrors.in_flight -= 1
        self._mirrors.count(self._key, result)
        self._body.clear()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if result == "sent":
                upstream.release(keep=True, now=self._front.seconds())
            else:
                upstream.close()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release(outcome)
        self._exchange = None
