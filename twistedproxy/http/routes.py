"""Which route takes this request: one pure function, compiled once per configuration.

How it works
    Hosts are looked up in a dict of exact names, then by stripping labels in a dict of ``*.suffix`` names, then ``*``.
    In a site, every route is entered under the text it matches: ``=/x`` and ``/x`` under the whole path, ``/x/`` and ``/x``
    under the prefix ``/x/``. A request's path is looked up whole, then cut at its slashes from the right; the first hit is
    the longest. So the cost grows with the depth of the path, never with the number of sites or routes.

    The same `Router` serves the data path, ``explain`` and tests in the file. It knows nothing of running pools: `bind` turns
    each route into whatever its user wants to find in the `Decision` (a `Destination` in a worker, nothing offline).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from twistedproxy.config.model import Route, Site
from twistedproxy.http.messages import RequestHead

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """Where a request goes. Made when the configuration is compiled and shared by all requests that take the route."""

    site: str
    route: Route
    destination: T
    prefix: bytes
    """What `strip` removes from the front of the path, without the slash that remains; b"" for nothing."""

    def forwarded_path(self, path: bytes) -> bytes:
        """The canonical path as the server is asked for it."""
        return path[len(self.prefix) :] or b"/" if self.prefix else path


@dataclass(slots=True)
class Trace:
    """Every step a routing decision took, for people."""

    steps: list[str] = field(default_factory=list)


class _Paths(Generic[T]):
    """The routes of one site."""

    __slots__ = ("_whole", "_prefix", "_root", "_longest", "name", "only")

    def __init__(self, site: Site, bind: Callable[[Site, Route], T]) -> None:
        self.name = site.name
        self._whole: dict[bytes, Decision[T]] = {}
        self._prefix: dict[bytes, Decision[T]] = {}
        # Shorter spellings first, so that "/x/" takes the prefix over from "/x" and "=/x" the whole path.
        for route in sorted(site.routes, key=lambda r: (r.path.startswith("="), r.path)):
            path = route.path.removeprefix("=").encode()
            prefix = path.rstrip(b"/") if route.strip else b""
            decision = Decision(site.name, route, bind(site, route), prefix)
            if route.path.startswith("=") or not path.endswith(b"/"):
                self._whole[path] = decision
            if not route.path.startswith("="):
                self._prefix[path.rstrip(b"/") + b"/"] = decision
        self._root = self._prefix.get(b"/")
        self._longest = max(map(len, self._prefix), default=0)
        self.only = self._root if not self._whole and self._longest <= 1 else None
        """The site's decision for every path, when it has but the route "/"."""

    def find(self, path: bytes) -> Decision[T] | None:
        decision = self._whole.get(path)
        if decision is not None:
            return decision
        end = path.rfind(b"/", 0, self._longest)
        while end > 0:
            decision = self._prefix.get(path[: end + 1])
            if decision is not None:
                return decision
            end = path.rfind(b"/", 0, end)
        return self._root

    def listed(self) -> Iterable[str]:
        return sorted({d.route.path for table in (self._whole, self._prefix) for d in table.values()})


class Router(Generic[T]):
    """All sites of one configuration. Immutable: a changed configuration is a new router."""

    def __init__(self, sites: Iterable[Site], bind: Callable[[Site, Route], T]) -> None:
        self._exact: dict[bytes, _Paths[T]] = {}
        self._suffix: dict[bytes, _Paths[T]] = {}
        self._any: _Paths[T] | None = None
        for site in sites:
            paths = _Paths(site, bind)
            for host in site.hosts:
                if host == "*":
                    self._any = paths
                elif host.startswith("*."):
                    self._suffix[host[1:].encode()] = paths
                else:
                    self._exact[host.encode()] = paths

    def _site(self, host: bytes) -> _Paths[T] | None:
        paths = self._exact.get(host)
        if paths is not None:
            return paths
        if self._suffix:
            dot = host.find(b".")
            while dot >= 0:
                paths = self._suffix.get(host[dot:])
                if paths is not None and dot > 0:
                    return paths
                dot = host.find(b".", dot + 1)
        return self._any

    def route(self, head: RequestHead, client: str, draw: float, trace: Trace | None = None) -> Decision[T] | None:
        """The decision for this request; None when no site has its host or the site no route for its path.

        `client` is the client's IP; `draw` in [0, 1) picks a side where traffic is split. Equal arguments give equal decisions.
        """
        paths = self._exact.get(head.host) if self._exact else None
        if paths is None:
            paths = self._site(head.host) if self._suffix else self._any
        decision = None if paths is None else paths.only or paths.find(head.path)
        if trace is not None:
            self._explain(head, paths, decision, trace)
        return decision

    def _explain(self, head: RequestHead, paths: _Paths[T] | None, decision: Decision[T] | None, trace: Trace) -> None:
        host, path = head.host.decode("latin-1"), head.path.decode("latin-1")
        if paths is None:
            known = sorted(name.decode() for name in (*self._exact, *(b"*" + s for s in self._suffix)))
            trace.steps.append(f"host {host!r} matches no site; there are: {', '.join(known) or 'none'}")
            return
        trace.steps.append(f"host {host!r} is site {paths.name!r}")
        if decision is None:
            trace.steps.append(f"path {path!r} matches no route; there are: {', '.join(paths.listed())}")
            return
        trace.steps.append(f"path {path!r} takes route {decision.route.path!r}, the longest match")

    def __bool__(self) -> bool:
        return bool(self._exact or self._suffix or self._any)


def no_route_detail(router: Router[Any], head: RequestHead) -> str:
    """One sentence for a 404: whether the host or the path is unknown; it does not list what exists."""
    if router._site(head.host) is None:
        return "no site is configured for this host"
    return "no route is configured for this path"
