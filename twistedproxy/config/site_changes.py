"""Live changes of sites: maintenance and the weights of a split. Part of the vocabulary of ``changes``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from twistedproxy.config.model import Model, Route, Site
from twistedproxy.errors import ChangeRefused

MOST_WEIGHT = 1000


@dataclass(frozen=True, slots=True)
class SetMaintenance:
    """None returns to the file's value."""

    site: str
    maintenance: bool | None


@dataclass(frozen=True, slots=True)
class SetSplit:
    """Weights of all sides of the split of one route or rule; None returns to the file's."""

    site: str
    path: str
    """``/x/``, or ``rules[0]``."""
    weights: tuple[tuple[str, int], ...] | None


def find_site(model: Model, name: str) -> Site:
    site = model.sites.get(name)
    if site is None:
        raise ChangeRefused(404, f"no site {name!r}; there are: {', '.join(sorted(model.sites)[:20]) or 'none'}", "site")
    return site


def find_split(site: Site, path: str) -> Route:
    for route in site.all_routes:
        if route.path == path and route.split:
            return route
    known = ", ".join(route.path for route in site.all_routes if route.split) or "none"
    raise ChangeRefused(404, f"site {site.name!r} has no split at {path!r}; there are: {known}", "path")


def set_maintenance(model: Model, change: SetMaintenance) -> Model:
    site = find_site(model, change.site)
    return replace(model, sites={**model.sites, site.name: replace(site, maintenance_set=change.maintenance)})


def set_split(model: Model, change: SetSplit) -> Model:
    site = find_site(model, change.site)
    route = find_split(site, change.path)
    if change.weights is None:
        split = tuple(replace(side, weight_set=None) for side in route.split)
    else:
        weights = dict(change.weights)
        sides = [side.pool for side in route.split]
        unknown = [pool for pool in weights if pool not in sides]
        if unknown:
            raise ChangeRefused(400, f"{', '.join(unknown)} is no side of this split; sides are: {', '.join(sides)}", "split")
        if len(weights) != len(change.weights):
            raise ChangeRefused(400, f"a side is named twice; sides are: {', '.join(sides)}", "split")
        for pool, weight in weights.items():
            if not 0 <= weight <= MOST_WEIGHT:
                raise ChangeRefused(400, f"the weight of {pool!r} is {weight}; allowed are 0 to {MOST_WEIGHT}", "split")
        split = tuple(replace(side, weight_set=weights.get(side.pool, side.weight_set)) for side in route.split)
        if not any(side.weight_now for side in split):
            raise ChangeRefused(409, "all sides would have weight 0, and nobody would be served; use maintenance for that", "split")

    def changed(routes: tuple[Route, ...]) -> tuple[Route, ...]:
        return tuple(replace(r, split=split) if r is route else r for r in routes)

    changed_site = replace(site, routes=changed(site.routes), rules=changed(site.rules))
    return replace(model, sites={**model.sites, site.name: changed_site})


def describe_site(model: Model, change: SetMaintenance | SetSplit) -> dict[str, Any]:
    """What `changes.describe` says of it."""
    site = find_site(model, change.site)
    if isinstance(change, SetMaintenance):
        after = site.maintenance if change.maintenance is None else change.maintenance
        return {"kind": "set_maintenance", "site": site.name, "before": site.is_in_maintenance, "after": after}
    before = find_split(site, change.path)
    then = find_split(find_site(set_split(model, change), site.name), change.path)
    return {"kind": "set_split", "site": site.name, "path": change.path, "before": weights_of(before), "after": weights_of(then)}


def weights_of(route: Route) -> Mapping[str, int]:
    return {side.pool: side.weight_now for side in route.split}


def inverse_of(model: Model, change: SetMaintenance | SetSplit) -> SetMaintenance | SetSplit:
    """What takes it back."""
    site = find_site(model, change.site)
    if isinstance(change, SetMaintenance):
        return SetMaintenance(site.name, site.maintenance_set)
    route = find_split(site, change.path)
    if all(side.weight_set is None for side in route.split):
        return SetSplit(site.name, change.path, None)
    return SetSplit(site.name, change.path, tuple(weights_of(route).items()))


# What the file says, for live values laid over it

FIELDS = ("maintenance", "split")


def file_says(configured: Model, name: str, path: str, field: str) -> Any:
    """The file's own value, in its JSON form; None when the site or split is not there."""
    site = configured.sites.get(name)
    if site is None or field == "presence":
        return None if site is None else True
    if field == "maintenance":
        return site.maintenance
    return next(([[s.pool, s.weight] for s in route.split] for route in site.all_routes if route.path == path and route.split), None)


def value_of(change: SetMaintenance | SetSplit) -> tuple[str, str, Any]:
    """(path, field, value in its JSON form)."""
    if isinstance(change, SetMaintenance):
        return "", "maintenance", change.maintenance
    return change.path, "split", None if change.weights is None else [list(pair) for pair in change.weights]


def change_from(name: str, path: str, field: str, value: Any) -> SetMaintenance | SetSplit:
    if field == "maintenance":
        if type(value) is not bool:
            raise ValueError(f"maintenance is {value!r}")
        return SetMaintenance(name, value)
    if not isinstance(value, list) or not all(isinstance(p, list) and len(p) == 2 and type(p[1]) is int for p in value):
        raise ValueError(f"weights are {value!r}")
    return SetSplit(name, path, tuple((str(pool), weight) for pool, weight in value))
