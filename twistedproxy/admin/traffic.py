"""The part of the admin API about where requests go: sites, splits, shifts, explanations, stories, mirrors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twistedproxy.admin.bodies import read_duration
from twistedproxy.admin.problems import Refuse
from twistedproxy.config.changes import Batch, Change
from twistedproxy.config.control import Control
from twistedproxy.config.model import Route, Site
from twistedproxy.config.site_changes import MOST_WEIGHT, SetMaintenance, SetSplit, find_site


class TrafficApi:
    """Handlers that `api.Api` inherits; it gives them `_control`, `_apply` and how to answer."""

    _control: Control

    async def _apply(self, request: Any, change: Change) -> bytes:
        raise NotImplementedError

    def based_on(self, request: Any) -> int | None:
        """The revision that If-Match names; `ChangeRefused` (412) when it is stale."""
        raise NotImplementedError

    def _answer(self, request: Any, value: Any, revision: int | None = None) -> bytes:
        raise NotImplementedError

    async def sites(self, request: Any) -> bytes:
        snapshot = self._control.snapshot()
        statistics = self._control.statistics()
        shown = [site(each, statistics) for each in snapshot.model.sites.values()]
        return self._answer(request, {"sites": shown}, snapshot.revision)

    async def change_site(self, request: Any, site: str) -> bytes:
        body = request.arguments
        find_site(self._control.snapshot().model, site)
        parts: list[SetMaintenance | SetSplit] = []
        if "maintenance" in body:
            parts.append(SetMaintenance(site, body["maintenance"]))
        if "split" in body:
            parts.append(SetSplit(site, *_split(body["split"])))
        return await self._apply(request, parts[0] if len(parts) == 1 else Batch(tuple(parts)))

    async def explain(self, request: Any) -> bytes:
        if "url" not in request.arguments:
            raise Refuse(400, "url is missing; it is the whole URL, such as https://www.example.com/api/x", field="url")
        answer = await self._control.ask("explain", request.arguments)
        return self._answer(request, answer, self._control.snapshot().revision)

    async def why(self, request: Any, id: str) -> bytes:
        return self._answer(request, await self._control.ask("why", {"id": id}))

    async def why_latest(self, request: Any) -> bytes:
        return self._answer(request, await self._control.ask("why", {}))

    async def mirrors(self, request: Any) -> bytes:
        return self._answer(request, await self._control.ask("mirrors", {}))

    # Shifts

    async def shifts(self, request: Any) -> bytes:
        return self._answer(request, await self._control.ask("shifts", {}))

    async def start_shift(self, request: Any) -> bytes:
        body = dict(request.arguments)
        body["every_s"] = read_duration(body, "every")
        by = request.identity.name if request.identity else ""
        body["expected_revision"] = self.based_on(request)
        what = "preview_shift" if body.pop("preview", False) else "start_shift"
        return self._answer(request, await self._control.ask(what, body | {"by": by}))

    async def stop_shift(self, request: Any, id: str) -> bytes:
        by = request.identity.name if request.identity else ""
        back = request.arguments.get("back", True)
        return self._answer(request, await self._control.ask("stop_shift", {"id": id, "by": by, "back": back}))


def _split(given: Mapping[str, Any]) -> tuple[str, tuple[tuple[str, int], ...] | None]:
    """Path and weights of ``{"path": "/", "weights": {"web": 80, "web-canary": 20}}``; weights null: the file's."""
    unknown = given.keys() - {"path", "weights"}
    if unknown or not isinstance(given.get("path"), str) or "weights" not in given:
        raise Refuse(400, 'split is an object such as {"path": "/", "weights": {"web": 80, "web-canary": 20}}', field="split")
    weights = given["weights"]
    if weights is None:
        return given["path"], None
    if not isinstance(weights, dict) or not weights or not all(type(weight) is int for weight in weights.values()):
        raise Refuse(400, f"split.weights has a whole number from 0 to {MOST_WEIGHT} for each pool, or is null", field="split")
    return given["path"], tuple(weights.items())


def site(site: Site, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """One site as the API shows it."""
    taken = {(path, pool): n for name, path, pool, n in statistics.get("splits", ()) if name == site.name}
    return {
        "name": site.name,
        "hosts": list(site.hosts),
        "maintenance": site.is_in_maintenance,
        "maintenance_set": site.maintenance_set,
        "routes": [_route(route, taken) for route in site.all_routes],
    }


def _route(route: Route, taken: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    does = "split" if route.split else "pool" if route.pool else "redirect" if route.redirect is not None else "respond"
    shown: dict[str, Any] = {"path": route.path, "does": does, "pool": route.pool or None, "redirect": route.redirect}
    if route.split:
        total = sum(side.weight_now for side in route.split) or 1
        requests = [taken.get((route.path, side.pool), 0) for side in route.split]
        seen = sum(requests) or 1
        shown["split"] = [
            {
                "pool": side.pool, "weight": {"configured": side.weight, "set": side.weight_set, "effective": side.weight_now},
                "share": round(side.weight_now / total, 6), "requests": n, "exposure": round(n / seen, 6),
            }
            for side, n in zip(route.split, requests, strict=True)
        ]  # fmt: skip
    return shown
