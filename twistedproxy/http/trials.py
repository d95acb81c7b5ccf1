"""The tests in the file: each names a request and what must become of it. A model that breaks one must not come into force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twistedproxy.config.model import Model, Test
from twistedproxy.errors import BadHead
from twistedproxy.http.explain import Explanation, explain, question
from twistedproxy.http.matching import Imagined as Shown
from twistedproxy.http.routes import Router
from twistedproxy.pool.twin import Known

_DRAW = 0.0


@dataclass(frozen=True, slots=True)
class Broken:
    """One test that fails."""

    index: int
    request: str
    objections: tuple[str, ...]
    steps: tuple[str, ...]

    def __str__(self) -> str:
        trace = "; ".join(self.steps)
        return f"{self.request}: {'; '.join(self.objections)}. The trace: {trace}"


def offline_router(model: Model) -> Router[None]:
    """The model's routes, leading nowhere."""
    return Router(model.sites.values(), lambda site, route: None, model.sticky_pools)


def broken(model: Model) -> tuple[Broken, ...]:
    """The tests of `model` that it does not pass."""
    if not model.tests:
        return ()
    # Maintenance is no routing: a site must be able to enter it whatever its tests expect of normal days.
    sites = {name: replace(site, maintenance=False, maintenance_set=None) for name, site in model.sites.items()}
    model = replace(model, sites=sites)
    router = offline_router(model)
    return tuple(found for index, test in enumerate(model.tests) if (found := _try(model, router, index, test)) is not None)


def explained(model: Model, router: Router[Any], test: Test) -> Explanation:
    method, _, url = test.request.partition(" ")
    said = dict(test.client_cert)
    shown = None
    if said:
        subject, sha256 = said.get("subject", ("",)), said.get("sha256", ("",))
        shown = Shown(subject[0], said.get("san", ()), sha256[0])
    asked = question(method, url, test.headers, test.client, shown)
    return explain(router, asked, lambda pool: Known(model.pools[pool]) if pool in model.pools else None, model.via_of, _DRAW)


def _try(model: Model, router: Router[Any], index: int, test: Test) -> Broken | None:
    try:
        answer = explained(model, router, test)
    except (BadHead, ValueError) as error:
        status = error.status if isinstance(error, BadHead) else 400
        if test.status == status:
            return None
        return Broken(index, test.request, (f"the request is refused: {error}",), ())
    objections = tuple(_objections(test, answer))
    return Broken(index, test.request, objections, tuple(answer["steps"])) if objections else None


def _objections(test: Test, answer: Mapping[str, Any]) -> Iterator[str]:
    request: Mapping[str, Any] = answer["request"] or {}
    response: Mapping[str, Any] = answer["response"] or {}
    sides = [side for side in answer["split"] or () if side["weight"]]
    if test.pool is not None:
        if len(sides) > 1 and "draw" in " ".join(step for step in answer["steps"] if step.startswith("split over")):
            yield f"pool is any of {', '.join(side['pool'] for side in sides)}, not always {test.pool!r}; expect split instead"
        elif answer["pool"] != test.pool:
            yield f"pool is {_shown(answer['pool'])}, not {test.pool!r}"
    if test.split is not None:
        has_weights = any(weight is not None for _, weight in test.split)
        found = {side["pool"]: side["weight"] if has_weights else None for side in answer["split"] or ()}
        if not has_weights:
            found = {side["pool"]: None for side in sides}
        if found != dict(test.split):
            told = ", ".join(f"{s['pool']} {s['weight']}" for s in answer["split"] or ()) or "none"
            yield f"split is {told}"
    for name, wanted, got in (
        ("path", test.path, request.get("path")),
        ("host", test.host, request.get("host")),
        ("redirect", test.redirect, response.get("location")),
        ("status", test.status, response.get("status")),
        ("rule", test.rule, answer["rule"] or ""),
    ):
        if wanted is not None and got != wanted:
            yield f"{name} is {_shown(got)}, not {wanted!r}"
    for name, wanted_value in test.expect_headers or ():
        values = [value for given, value in request.get("headers", ()) if given.lower() == name.lower()]
        if wanted_value not in values:
            yield f"header {name} is {', '.join(map(repr, values)) or 'absent'}, not {wanted_value!r}"


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)
