"""What would become of this request, and why: the whole way from host to server, without sending anything.

The decision is `Router.route`, the request for the server is made by the functions of the data path, and the server is picked by
a copy of the pool's balancer, so that an explanation cannot differ from what happens. Used by ``revproxy explain`` with and without a
daemon, by the API, for ``X-Revproxy-Explain`` on live requests, and by the tests in the file (`trials`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from twistedproxy.config.model import Route, RouteCache
from twistedproxy.errors import ProxyError
from twistedproxy.http.destination import cookie, key_function
from twistedproxy.http.forwarding import Client
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.http.local import SPECIAL, forwards_field
from twistedproxy.http.matching import Imagined as Shown
from twistedproxy.http.messages import LocalResponse, RequestHead
from twistedproxy.http.middleware.chain import Outgoing
from twistedproxy.http.routes import Decision, Router, Trace
from twistedproxy.http.sticky import server_behind
from twistedproxy.http.variables import tls_fact
from twistedproxy.pool.pool import Lease
from twistedproxy.pool.twin import Known, twin

REQUEST_ID = b"explain"


@dataclass(frozen=True, slots=True)
class Question:
    """A request that is only imagined."""

    head: RequestHead
    client: str
    scheme: str
    port: int
    live: Any = None
    """The exchange, of a request that is not only imagined."""
    shown: Any = None
    """What the client's TLS tells of it: facts or `matching.Imagined`; None without TLS."""


def question(
    method: str, url: str, headers: Sequence[tuple[str, str]] = (), client: str = "127.0.0.1", shown: Shown | None = None
) -> Question:
    """`ValueError` says what is wrong with it; `BadHead` is what a client would be told."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r:.100} is not a URL such as https://www.example.com/path")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1"]
    if not any(name.lower() == "host" for name, _ in headers):
        lines.append(f"Host: {parts.netloc.rpartition('@')[2]}")
    lines += [f"{name}: {value}" for name, value in headers]
    if any(c in line for line in lines for c in "\r\n\0"):
        raise ValueError("a line break is in the method, the URL or a header")
    head = parse_request(("\r\n".join(lines) + "\r\n\r\n").encode(), Limits(max_head=1 << 20, max_request_line=65536, max_field=65536))
    if head is None:
        raise ValueError("the method, URL and headers make no request")
    return Question(head, client, parts.scheme, parts.port or (443 if parts.scheme == "https" else 80), shown=shown)


class Imagined:
    """Stands in for an exchange: what variables and hooks look at."""

    is_moved = False
    """The server is asked for another path or query."""

    def __init__(self, asked: Question, decision: Decision[Any]) -> None:
        self.live = asked.live
        self._shown = asked.shown
        self.head = asked.head
        self.outgoing = asked.head
        self.client_ip = asked.client
        self.scheme = asked.scheme
        self.local_port = asked.port
        self.request_id: bytes = REQUEST_ID if asked.live is None else asked.live.request_id
        self.site = decision.site
        self.pool = decision.route.pool
        self.server = ""
        self.decision = decision

    @property
    def client_port(self) -> int:
        return 0 if self.live is None else self.live.connection.client_port

    def tls(self, what: str) -> str:
        return tls_fact(self._shown, what)


Explanation = dict[str, Any]
"""``{site, rule, path, pool, split, server, servers, response, steps, request}``; what does not apply is None."""


def explain(
    router: Router[Any], asked: Question, known: Callable[[str], Known | None], vias: Callable[[str], str | None], draw: float
) -> Explanation:
    """`known` tells of a pool, `vias` what a site sends in Via, `draw` in [0, 1) picks a side for a client without history."""
    trace = Trace()
    answer: Explanation = {
        "site": None, "rule": None, "path": None, "pool": None, "split": None, "server": None, "servers": [], "response": None,
        "steps": trace.steps, "request": None,
    }  # fmt: skip
    decision = router.route(asked.head, asked.client, draw, trace, asked.shown)
    if decision is None:
        _answered(answer, 404, None)
        return answer
    answer |= {"site": decision.site, "rule": decision.rule or None, "path": None if decision.rule else decision.route.path or None}
    imagined = Imagined(asked, decision)
    try:
        local = _act(router, decision, imagined, answer, draw)
    except ProxyError as error:
        trace.steps.append(error.detail)
        _answered(answer, error.status, None)
        return answer
    if local is not None:
        location = next((value.decode("latin-1") for name, value in local.fields if name.lower() == b"location"), None)
        _answered(answer, local.status, location)
        return answer
    pool = known(decision.route.pool)
    answer["pool"] = decision.route.pool
    if pool is not None:
        imagined.server = _pick(pool, decision.route, imagined, answer)
    _request(decision, imagined, answer, vias(decision.site))
    return answer


def _answered(answer: Explanation, status: int, location: str | None) -> None:
    answer["response"] = {"status": status, "location": location}
    answer["steps"].append(f"answered here with {status}" + (f", Location: {location}" if location is not None else ""))


def _act(router: Router[Any], decision: Decision[Any], imagined: Imagined, answer: Explanation, draw: float) -> LocalResponse | None:
    """Walk through the route's actions as `acting` does; an answer made here, if there is one."""
    actions, steps, head = decision.actions, answer["steps"], imagined.head
    if actions is None:
        return None
    if actions.maintenance is not None:
        if not actions.maintenance.contains(imagined.client_ip):
            steps.append(f"site {decision.site!r} is in maintenance, and {imagined.client_ip} not among maintenance_allow")
            return LocalResponse(503)
        steps.append(f"site {decision.site!r} is in maintenance, but {imagined.client_ip} is among maintenance_allow")
    if not decision.route.path:
        return LocalResponse(404)
    if actions.split is not None:
        total = sum(weight for _, weight, _ in actions.split.sides) or 1
        answer["split"] = [
            {"pool": pool, "weight": weight, "share": round(weight / total, 6), "is_chosen": pool == decision.route.pool}
            for pool, weight, _ in actions.split.sides
        ]
        shares = ", ".join(f"{pool} {weight / total:.1%}" for pool, weight, _ in actions.split.sides)
        if not actions.split.is_open:
            steps.append("all sides of the split have weight 0")
            return LocalResponse(503)
        is_own = actions.split.own_side(head, imagined.client_ip) is not None
        why = "this client's side" if is_own else f"for a draw of {draw:g}"
        steps.append(f"split over {shares}: {decision.route.pool}, {why}")
    path, query = actions.path(head.path, head.query)
    if (path, query) != (head.path, head.query):
        moved: Any = Outgoing(head, path, query)
        imagined.outgoing = moved
        imagined.is_moved = True
        steps.append(f"path {head.path.decode('latin-1')!r} becomes {path.decode('latin-1')!r}")
    for hook in actions.chain.on_request:
        local: LocalResponse | None = hook(imagined)
        if local is not None:
            return local
    if actions.answer is not None:
        return actions.answer(imagined)
    if actions.cache is not None:
        steps += _cached(head, actions.cache)
    if actions.mirror is not None:
        steps.append(f"{actions.mirror.percent:g}% of these requests are copied to pool {actions.mirror.pool!r}")
    return None


def _cached(head: RequestHead, spec: RouteCache) -> list[str]:
    """Whether the route's cache may be used, and by which settings; what lies in it is not looked at."""
    from twistedproxy.http.cache import policy  # noqa: PLC0415 - what not everybody needs

    bypass = policy.may_use(head, policy.Settings())
    if bypass is not None:
        return [f"the cache of this route is not used for this request: {bypass.value}"]
    settings = [f"fresh for {spec.ttl_s:g} s" if spec.ttl_s is not None else "fresh for as long as the server says"]
    if spec.stale_while_revalidate_s:
        settings.append(f"stale for {spec.stale_while_revalidate_s:g} s while a new one is asked for")
    if spec.stale_if_error_s:
        settings.append(f"stale for {spec.stale_if_error_s:g} s when the server fails")
    settings += [f"{status} for {seconds:g} s" for status, seconds in spec.negative]
    if spec.heuristics:
        settings.append("by Last-Modified where nothing else is said")
    return [f"the cache of this route is asked first: {', '.join(settings)}"]


def _pick(known: Known, route: Route, imagined: Imagined, answer: Explanation) -> str:
    """The server a copy of the balancer picks, "" for none; tells of every server."""
    spec, steps = known.spec, answer["steps"]
    pool = twin(known)
    key_of = key_function(spec.balance)
    prefer = None
    if spec.sticky is not None and spec.sticky.cookie is not None:
        prefer = server_behind(pool, cookie(imagined.head, spec.sticky.cookie.encode()))
        if prefer is not None:
            steps.append(f"the cookie {spec.sticky.cookie} names {prefer.address}")
    key = 0 if key_of is None else key_of(imagined.head, imagined.client_ip)
    lease = pool.acquire(key, frozenset(), lambda lease: None, prefer)
    picked = lease.server.address if isinstance(lease, Lease) else ""
    for server in pool.servers:
        why = server.why_not(0.0)
        answer["servers"].append(
            {
                "address": server.address,
                "weight": server.weight,
                "state": server.state.value,
                "health": server.health.value,
                "ejected": server.address in known.ejected,
                "backup": server.is_backup,
                "available": not why,
                "why_not": why or None,
                "is_picked": server.address == picked,
            }
        )
        told = f"not available: {why}" if why else ("picked" if server.address == picked else "available")
        steps.append(f"server {server.address}: weight {server.weight}, {server.state.value}, {server.health.value}: {told}")
    answer["server"] = picked or None
    steps.append(f"pool {spec.name!r} ({spec.balance}) picks {picked}" if picked else f"pool {spec.name!r} has no server for it: 503")
    return picked


def _request(decision: Decision[Any], imagined: Imagined, answer: Explanation, via: str | None) -> None:
    """The request as the server gets it."""
    actions, head = decision.actions, imagined.outgoing
    path = head.path if imagined.is_moved or not head.is_canonical else None
    host = None
    if actions is not None and actions.host is not None:
        host = actions.host.render(imagined)
    elif not head.authority:
        host = b"localhost" if imagined.server.startswith("unix:") else imagined.server.encode()
    more = (b"Via: 1.1 %b\r\n" % via.encode() if via else b"") + (forwards_field(head) if head.method in SPECIAL else b"")
    live = imagined.live
    if live is None:
        data = Client(imagined.client_ip, imagined.local_port, False).request(head, path, host, more, REQUEST_ID, 0, None)
    else:
        data = live.connection.client.request(head, path, host, more, live.request_id, live._body_length, live._upgrade)
    start, *fields = data.decode("latin-1").split("\r\n")[:-2]
    if imagined.scheme == "https" and live is None:
        fields = [f.replace(": http", ": https") if f == "X-Forwarded-Proto: http" else f for f in fields]
    pairs = [field.split(": ", 1) for field in fields]
    answer["request"] = {
        "line": start,
        "path": start.split(" ")[1].partition("?")[0],
        "host": next((value for name, value in pairs if name.lower() == "host"), None),
        "headers": pairs,
    }
    answer["steps"].append(f"the server is asked: {start}")
