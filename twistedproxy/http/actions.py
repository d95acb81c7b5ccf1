"""What a route does besides passing requests to its pool, compiled once; None for a route that does nothing else.

A `Decision` without actions costs a request one look. With them, the exchange becomes an `acting.ActingExchange`, which walks through what
is here. `explain` and tests in the file use the same objects on requests that are only imagined.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from twistedproxy.config import model
from twistedproxy.config.model import HeaderEdits, Mirror, Route, RouteCache, Site
from twistedproxy.http.messages import LocalResponse
from twistedproxy.http.middleware.chain import Chain, Edits, Line
from twistedproxy.http.middleware.compression import Compression
from twistedproxy.http.middleware.headers import Headers
from twistedproxy.http.middleware.security_headers import SecurityHeaders
from twistedproxy.http.rewrite import Rewriting
from twistedproxy.http.splits import Split
from twistedproxy.http.variables import Subject, Template, body_template, url_template
from twistedproxy.net.networks import Networks

Answer = Callable[[Subject], LocalResponse]


class Actions:
    """Everything a request on this route meets."""

    __slots__ = ("answer", "cache", "chain", "compression", "host", "kept", "maintenance", "mirror", "prefix", "rewriting", "split")

    def __init__(self, site: Site, route: Route, prefix: bytes, matched: bytes, split: Split[Any] | None) -> None:
        """`prefix` is what `strip` removes, `matched` what a redirect replaces."""
        self.split = split
        self.maintenance = Networks(site.maintenance_allow) if site.is_in_maintenance else None
        """Who is served all the same; None: there is no maintenance."""
        self.prefix = prefix
        self.rewriting = Rewriting(route.rewrite) if route.rewrite is not None else None
        self.host = Template(route.host) if route.host else None
        middlewares = _middlewares(route)
        self.chain = Chain(middlewares)
        self.compression = next((each for each in middlewares if isinstance(each, Compression)), None)
        self.mirror: Mirror | None = route.mirror
        self.cache: RouteCache | None = route.cache
        self.answer = _answer(route, matched)
        self.kept: dict[tuple[bytes, bytes, bool], Any] | None = {} if self._only_caches(route, middlewares) else None
        """Of a route that only keeps answers: those used lately as they go out, by (authority, target, is plain) as clients sent them."""

    def _only_caches(self, route: Route, middlewares: list[Any]) -> bool:
        """And compresses, perhaps."""
        changes = self.split or self.maintenance or self.prefix or self.host or self.mirror or self.answer
        return route.cache is not None and not changes and all(each is self.compression for each in middlewares)

    def path(self, path: bytes, query: bytes) -> tuple[bytes, bytes]:
        """(path, query) as the server is asked for them."""
        if self.prefix:
            return path[len(self.prefix) :] or b"/", query
        if self.rewriting is not None:
            return self.rewriting.apply(path, query) or (path, query)
        return path, query


def compile_actions(site: Site, route: Route, prefix: bytes, matched: bytes, split: Split[Any] | None, is_sticky: bool) -> Actions | None:
    """None when requests on `route` only pass through; `is_sticky`: a pool it leads to brings clients back to their server."""
    does_more = (
        split is not None or site.is_in_maintenance or prefix or route.rewrite or route.host or route.mirror
        or route.redirect or route.respond or route.use or is_sticky or route.cache
        or route.request != HeaderEdits() or route.response != HeaderEdits()
    )  # fmt: skip
    if not does_more:
        return None
    actions = Actions(site, route, prefix, matched, split)
    if is_sticky:
        actions.kept = None
    return actions


def _middlewares(route: Route) -> list[Any]:
    found: list[Any] = []
    for use in route.use:
        if use.compression is not None:
            found.append(_compression(use.compression))
        elif use.name == "security_headers":
            found.append(SecurityHeaders())
        else:
            found.append(Headers(_edits(use.request), _edits(use.response)))
    if route.request != HeaderEdits() or route.response != HeaderEdits():
        found.append(Headers(_edits(route.request), _edits(route.response)))
    return found


@functools.lru_cache(maxsize=64)
def _compression(spec: model.Compression) -> Compression:
    """One for all routes that use the same table."""
    return Compression(spec.codings, spec.types, spec.min_size, spec.levels, spec.decompress)


def _edits(spec: HeaderEdits) -> Edits:
    def lines(fields: tuple[tuple[str, str], ...]) -> list[Line]:
        return [(name.encode(), Template(text).render) for name, text in fields]

    return Edits(lines(spec.set), lines(spec.add), [name.lower().encode() for name in spec.remove], lines(spec.default))


def _answer(route: Route, matched: bytes) -> Answer | None:
    if route.redirect is not None:
        return _redirect(route.redirect, route.status, matched)
    if route.respond is None:
        return None
    status, kind = route.respond.status, route.respond.content_type
    body = body_template(route.respond.body, kind)
    fields = ((b"Content-Type", kind.encode()),) if route.respond.body else ()

    def respond(subject: Subject) -> LocalResponse:
        return LocalResponse(status, b"" if status in (204, 304) else body.render(subject), fields)

    return respond


def _redirect(to: str, status: int, matched: bytes) -> Answer:
    template = url_template(to)
    places_path = bool({"path", "query"} & template.names)

    def redirect(subject: Subject) -> LocalResponse:
        target = template.render(subject)
        head = subject.head
        if not places_path:
            target = joined(target, head.path[len(matched) :] if head.path != b"*" else b"", head.query)
        body = b"" if status in (204, 304) else b"%d, see %b\n" % (status, target)
        return LocalResponse(status, body, ((b"Location", target), (b"Content-Type", b"text/plain; charset=utf-8")))

    return redirect


def joined(target: bytes, rest: bytes, query: bytes) -> bytes:
    """`target` with the rest of the path behind it, one slash between them: never ``//``, which would begin a host."""
    target, mark, own_query = target.partition(b"?")
    if rest:
        target = target.rstrip(b"/") + b"/" + rest.lstrip(b"/") if target.rstrip(b"/") else b"/" + rest.lstrip(b"/")
    queries = [part for part in (own_query, query) if part]
    return target + (b"?" + b"&".join(queries) if queries or mark else b"")
