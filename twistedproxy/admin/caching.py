"""The part of the admin API about the cache: what is kept, how much of the traffic it answers, and purges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twistedproxy.config.control import Control

FROM_CACHE = frozenset({"hit", "stale", "revalidated", "collapsed"})
"""Results of requests that got a body which the server did not send for them."""
PASSED_BY = "bypass"
"""Requests that may not use the cache: they say nothing of how good it is."""


class CacheApi:
    """Handlers that `api.Api` inherits; it gives them `_control` and how to answer."""

    _control: Control

    def based_on(self, request: Any) -> int | None:
        """The revision that If-Match names; `ChangeRefused` (412) when it is stale."""
        raise NotImplementedError

    def _answer(self, request: Any, value: Any, revision: int | None = None) -> bytes:
        raise NotImplementedError

    async def cache(self, request: Any) -> bytes:
        details = await self._control.ask("cache", {})
        statistics = self._control.statistics()
        shown = {"totals": figures(statistics), "sites": sites(statistics), **details}
        return self._answer(request, shown, self._control.snapshot().revision)

    async def purge(self, request: Any) -> bytes:
        self.based_on(request)
        by = request.identity.name if request.identity else ""
        return self._answer(request, await self._control.ask("purge", {**request.arguments, "by": by}))


def figures(statistics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cache in numbers; None: no route has one."""
    shared = statistics.get("cache_totals")
    if shared is None:
        return None
    results: dict[str, int] = {}
    for _, result, count in statistics["cache"]:
        results[result] = results.get(result, 0) + count
    tiers = {tier: {**shared[tier], "evicted": 0, "corrupt": 0} for tier in ("memory", "disk")}
    tiers["disk"]["evicted"] = shared["evicted"]
    errors = shared["failures"]
    for tier, what, count in statistics["cache_store"]:
        if what in ("evicted", "corrupt"):
            tiers[tier][what] += count
        else:
            errors += count
    return {
        "requests": sum(results.values()),
        "results": results,
        "hit_ratio": ratio(results),
        **tiers,
        "errors": errors,
        "fills": sum(count for _, count in statistics["gauges"]["fills"]),
    }


def ratio(results: Mapping[str, int]) -> float | None:
    """The part of the requests that may use the cache and got their answer from it; None: there was none."""
    asked = sum(count for result, count in results.items() if result != PASSED_BY)
    return round(sum(results.get(result, 0) for result in FROM_CACHE) / asked, 4) if asked else None


def sites(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same by site."""
    found: dict[str, dict[str, int]] = {}
    for site, result, count in statistics["cache"]:
        found.setdefault(site, {})[result] = count
    return [
        {"site": site, "requests": sum(results.values()), "hit_ratio": ratio(results), "results": results}
        for site, results in sorted(found.items())
    ]
