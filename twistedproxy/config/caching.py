"""The cache, key by key: the part of `schema` about answers that are kept and given again."""

from __future__ import annotations

from typing import Annotated, Any

from twistedproxy.config import kinds, values
from twistedproxy.config.basics import LIVE, RESTART
from twistedproxy.config.kinds import Json, Kind, Origin, Section, ShortForm, key

_NEGATIVE = (404, 405, 410, 414, 421, 451, 500, 501, 502, 503, 504)
"""Statuses that `negative` may name (RFC 9111 leaves it to us): none of them is kept unless it is asked for or the server says so."""


def _read_negative(value: Any, origin: Origin) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        raise ValueError('must be a table of statuses with durations, such as { 404 = "10s" }')
    found = []
    for status, life in value.items():
        if status not in map(str, _NEGATIVE):
            raise ValueError(f"{values.shown(status)} is none of {', '.join(map(str, _NEGATIVE))}")
        found.append((int(status), values.parse_duration(life)))
        if not 0 < found[-1][1] <= 86400:
            raise ValueError(f"{status}: {values.shown(life)} is not between 1ms and 1d")
    return tuple(sorted(found))


Negative = Annotated[
    tuple[tuple[int, float], ...], Kind("table of: duration", "statuses with durations", _read_negative, {"type": "object"})
]


class RouteCache(Section):
    """Answers of this route are kept and given again. A duration stands for a table with this `ttl`; `{}` follows the server's fields."""

    ttl: Annotated[float, kinds.duration("1s", "365d")] | None = key(
        None,
        "How long an answer is fresh, whatever `max-age`, `s-maxage` and `Expires` say. What is `private`, `no-store`, sets a cookie or"
        " belongs to one user is not kept all the same. Absent: as long as the server says.",
        reload=LIVE,
    )
    stale_while_revalidate: Annotated[float, kinds.duration("0s", "30d")] | None = key(
        None,
        "For so long after its freshness an answer is still given at once, while one request in the background asks for a new one."
        " Counts where the server does not say it itself.",
        reload=LIVE,
    )
    stale_if_error: Annotated[float, kinds.duration("0s", "30d")] | None = key(
        None, "For so long it is given when the server fails or is not there. Counts where the server does not say it itself.", reload=LIVE
    )
    negative: Negative = key(
        {}, 'Errors that are kept, with how long at most: `{ 404 = "10s" }`. No others are, whatever the server says.', reload=LIVE
    )
    heuristics: kinds.Flag = key(
        False, "Answers that have `Last-Modified` and nothing else to go by are fresh for a tenth of their age, a day at most.", reload=LIVE
    )


def route_cache_table(value: Any) -> Any:
    """The short form as its table; `false` is for a route below a site with a cache."""
    if value is False:
        return None
    return {"ttl": values.parse_text(value, 'a duration such as "1h", a table, or false')}


_SHORT: Json = {"anyOf": [{"type": "string"}, {"const": False}]}
RouteCacheOrTtl = Annotated[
    RouteCache | None, ShortForm("duration, table or false", 'a duration such as "1h", a table, or false', route_cache_table, _SHORT)
]


class Cache(Section):
    """Where answers are kept, for all routes with `cache`. Nothing is made before there is one."""

    memory: Annotated[int, kinds.size("4MiB", "1024GiB")] = key(
        "64MiB", "For small answers, shared by all workers: one file of this size that is mapped into memory.", reload=LIVE
    )
    disk: Annotated[int, kinds.size("0B", "1048576GiB")] = key(
        "1GiB", 'For the others: plain files of this size together; `"0B"`: none.', reload=LIVE
    )
    files: Annotated[int, kinds.integer(100, 100_000_000)] = key(100_000, "At most so many files.", reload=LIVE)
    max_object: Annotated[int, kinds.size("1KiB", "1024GiB")] = key("1GiB", "A larger answer is passed on and not kept.", reload=LIVE)
    path: kinds.FileName | None = key(
        None, "Directory of both. On a tmpfs nothing is written to a disk. Default: `cache` in the state directory.", reload=RESTART
    )
