"""Which route takes this request: one pure function, compiled once per configuration.

How it works
    Hosts are looked up in a dict of exact names, then by stripping labels in a dict of ``*.suffix`` names, then ``*``.
    In a site, rules come first, in their order: each is a list of conditions (`matching`), all of which must hold. Then the paths: every
    route is entered under the text it matches: ``=/x`` and ``/x`` under the whole path, ``/x/`` and ``/x`` under the prefix
    ``/x/``. A request's path is looked up whole, then cut at its slashes from the right; the first hit is the longest. So the
    cost grows with the depth of the path and the rules of one site, never with the number of sites or routes.

    The same `Router` serves the data path, ``explain`` and tests in the file. It knows nothing of running pools: `bind` turns
    each route into whatever its user wants to find in the `Decision` (a `Destination` in a worker, nothing offline). What a route does
    besides leading to a pool is in `Decision.actions`; a site without rules and a route without actions pay nothing for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from twistedproxy.config.model import Route, Site
from twistedproxy.http.actions import Actions, compile_actions
from twistedproxy.http.matching import Certificate, Condition, conditions
from twistedproxy.http.messages import RequestHead
from twistedproxy.http.splits import Split

T = TypeVar("T")
NO_POOLS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """Where a request goes. Made when the configuration is compiled and shared by all requests that take the route."""

    site: str
    route: Route
    """Of a split's side: the route as if that side were its only pool."""
    destination: T
    actions: Actions | None = None
    """What happens besides; None: nothing."""

    @property
    def rule(self) -> str:
        """``rules[0]``; "" for a route that was found by its path."""
        return self.route.path if self.route.when is not None else ""


@dataclass(slots=True)
class Trace:
    """Every step a routing decision took, for people."""

    steps: list[str] = field(default_factory=list)


class _Rule(Generic[T]):
    """One rule, compiled."""

    __slots__ = ("conditions", "decision")

    def __init__(self, decision: Decision[T], wanted: tuple[Condition, ...]) -> None:
        self.decision = decision
        self.conditions = wanted

    def objection(self, head: RequestHead, client: str, shown: Certificate | None) -> str:
        """Why the rule does not match; "" when it does."""
        for condition in self.conditions:
            why = condition(head, client, shown)
            if why:
                return why
        return ""


class _Paths(Generic[T]):
    """The routes of one site."""

    __slots__ = ("_longest", "_prefix", "_root", "_whole", "name", "only", "rules")

    def __init__(self, site: Site, bind: Callable[[Site, Route], T], sticky_pools: frozenset[str]) -> None:
        self.name = site.name
        self.rules: tuple[_Rule[T], ...] = ()
        self._whole: dict[bytes, Decision[T]] = {}
        self._prefix: dict[bytes, Decision[T]] = {}
        # Shorter spellings first, so that "/x/" takes the prefix over from "/x" and "=/x" the whole path.
        for route in sorted(site.routes, key=lambda r: (r.path.startswith("="), r.path)):
            path = route.path.removeprefix("=").encode()
            decision = _decide(site, route, path, path.rstrip(b"/"), bind, sticky_pools)
            if route.path.startswith("=") or not path.endswith(b"/"):
                self._whole[path] = decision
            if not route.path.startswith("="):
                self._prefix[path.rstrip(b"/") + b"/"] = decision
        self._root = self._prefix.get(b"/")
        self._longest = max(map(len, self._prefix), default=0)
        self.only = self._root if not self._whole and self._longest <= 1 else None
        """The site's decision for every path, when it has but the route "/"."""

    def find(self, head: RequestHead, client: str, shown: Certificate | None) -> Decision[T] | None:
        return self.by_path(head.path)

    def by_path(self, path: bytes) -> Decision[T] | None:
        decision = self._whole.get(path)
        if decision is not None:
            return decision
        end = path.rfind(b"/", 0, self._longest)
        while end > 0:
            decision = self._prefix.get(path[: end + 1])
            if decision is not None:
                return decision
            end = path.rfind(b"/", 0, end)
        return self._root if path[:1] in (b"/", b"*") else None

    def listed(self) -> Iterable[str]:
        return sorted({d.route.path for table in (self._whole, self._prefix) for d in table.values()})


class _RuledPaths(_Paths[T]):
    """The routes of a site with rules, or in maintenance, when even what leads nowhere is answered 503."""

    __slots__ = ("_nothing",)

    def __init__(self, site: Site, bind: Callable[[Site, Route], T], sticky_pools: frozenset[str]) -> None:
        super().__init__(site, bind, sticky_pools)
        found = []
        for rule in site.rules:
            assert rule.when is not None
            pattern, star, _ = (rule.when.path or "").partition("*")
            literal = pattern.encode()
            matched = literal[: literal.rfind(b"/") + 1] if star else literal
            found.append(_Rule(_decide(site, rule, matched, matched.rstrip(b"/"), bind, sticky_pools), conditions(rule.when)))
        self.rules = tuple(found)
        self._nothing = None
        if site.is_in_maintenance:
            nowhere = Route("", "")
            self._nothing = Decision(site.name, nowhere, bind(site, nowhere), compile_actions(site, nowhere, b"", b"", None, False))
        self.only = None

    def find(self, head: RequestHead, client: str, shown: Certificate | None) -> Decision[T] | None:
        for rule in self.rules:
            for condition in rule.conditions:
                if condition(head, client, shown):
                    break
            else:
                return rule.decision
        return self.by_path(head.path) or self._nothing


def _decide(
    site: Site, route: Route, matched: bytes, prefix: bytes, bind: Callable[[Site, Route], T], sticky_pools: frozenset[str]
) -> Decision[T]:
    """The decision for `route`; `matched` is the part of the path it matches by, `prefix` the same without the slash at its end."""
    is_sticky = not sticky_pools.isdisjoint(route.pools)
    prefix = prefix if route.strip else b""
    if not route.split:
        return Decision(site.name, route, bind(site, route), compile_actions(site, route, prefix, matched, None, is_sticky))
    sides: list[tuple[str, int, Decision[T]]] = []
    split: Split[Decision[T]] = Split([], route.sticky)
    actions = compile_actions(site, route, prefix, matched, split, is_sticky)
    for side in route.split:
        as_one = replace(route, pool=side.pool)
        sides.append((side.pool, side.weight_now, Decision(site.name, as_one, bind(site, as_one), actions)))
    split.open(sides)
    return Decision(site.name, route, sides[0][2].destination, actions)


class Router(Generic[T]):
    """All sites of one configuration. Immutable: a changed configuration is a new router.

    `sticky_pools` are those that bring clients back to their server, which concerns the routes that lead to them.
    """

    def __init__(self, sites: Iterable[Site], bind: Callable[[Site, Route], T], sticky_pools: frozenset[str] = NO_POOLS) -> None:
        self._exact: dict[bytes, _Paths[T]] = {}
        self._suffix: dict[bytes, _Paths[T]] = {}
        self._any: _Paths[T] | None = None
        for site in sites:
            kind: type[_Paths[T]] = _RuledPaths if site.rules or site.is_in_maintenance else _Paths
            paths = kind(site, bind, sticky_pools)
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

    def site_name(self, host: bytes) -> str:
        """The site of this host, whether or not it has a route; "" when there is none."""
        paths = self._site(host)
        return "" if paths is None else paths.name

    def route(
        self, head: RequestHead, client: str, draw: float | None = None, trace: Trace | None = None, shown: Certificate | None = None
    ) -> Decision[T] | None:
        """The decision for this request; None when no site has its host or the site no route for its path.

        `client` is the client's IP, `shown` what its TLS tells of it; `draw` in [0, 1) picks a side where traffic is split. Equal
        arguments give equal decisions. Without a draw the decision of a split is the split itself: the data path draws (`side_of`) only
        where there is something to draw.
        """
        paths = self._exact.get(head.host) if self._exact else None
        if paths is None:
            paths = self._site(head.host) if self._suffix else self._any
        decision = None if paths is None else paths.only or paths.find(head, client, shown)
        if draw is not None:
            if trace is not None:
                self._explain(head, client, shown, paths, decision, trace)
            if decision is not None:
                decision = side_of(decision, head, client, draw)
        return decision

    def _explain(
        self,
        head: RequestHead,
        client: str,
        shown: Certificate | None,
        paths: _Paths[T] | None,
        decision: Decision[T] | None,
        trace: Trace,
    ) -> None:
        host, path = head.host.decode("latin-1"), head.path.decode("latin-1")
        if paths is None:
            known = sorted(name.decode() for name in (*self._exact, *(b"*" + s for s in self._suffix)))
            more = f" and {len(known) - 20} more" if len(known) > 20 else ""
            trace.steps.append(f"host {host!r} matches no site; there are: {', '.join(known[:20]) or 'none'}{more}")
            return
        trace.steps.append(f"host {host!r} is site {paths.name!r}")
        for rule in paths.rules:
            why = rule.objection(head, client, shown)
            trace.steps.append(f"{rule.decision.route.path}: no, {why}" if why else f"{rule.decision.route.path}: yes, all of it matches")
            if not why:
                return
        if decision is None or not decision.route.path:
            trace.steps.append(f"path {path!r} matches no route; there are: {', '.join(paths.listed()) or 'none'}")
            return
        trace.steps.append(f"path {path!r} takes route {decision.route.path!r}, the longest match")

    def __bool__(self) -> bool:
        return bool(self._exact or self._suffix or self._any)


def side_of(decision: Decision[T], head: RequestHead, client: str, draw: float) -> Decision[T]:
    """The decision itself, or where its traffic is split, the one of the side that `draw` or the client's history picks."""
    actions = decision.actions
    if actions is None or actions.split is None:
        return decision
    side: Decision[T] = actions.split.choose(head, client, draw)
    return side


def no_route_detail(router: Router[Any], head: RequestHead) -> str:
    """One sentence for a 404: whether the host or the path is unknown; it does not list what exists."""
    if not router.site_name(head.host):
        return "no site is configured for this host"
    return "no route is configured for this path"
