"""Watches a change and takes it back when traffic gets worse: ``abort_if = "errors > 1% or p95 > +20%"``.

How it works
    The totals of all workers are noted every five seconds; a minute of them is kept. When a watched change begins, the minute before it
    is the baseline. What happened since is compared with it as soon as there are `MIN_REQUESTS` requests. Only traffic of the pools and
    sites that the change is about counts (`Scope`); after a reload all does. Errors are answers of status 500 and above, and failures of
    a pool's servers where TCP sessions are all it serves; p95 is read off the histogram, within its bucket in proportion. ``> 1%`` is
    absolute, ``> +20%`` relative to the baseline. Condition, end and baseline are journaled with the change, so that a restart goes on
    watching.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twistedproxy.config import undo
from twistedproxy.config.control import Guarded
from twistedproxy.config.model import Model
from twistedproxy.errors import ChangeRefused
from twistedproxy.observability.metrics import BUCKETS_S

MIN_REQUESTS = 50
BASELINE_S = 60
NOTED_EVERY_S = 5
_TERM = re.compile(r"\s*(errors|p50|p95|p99)\s*>\s*(\+)?\s*(\d+(?:\.\d+)?)\s*(%|ms|s)\s*", re.ASCII)
FORM = 'conditions such as "errors > 1%", "p95 > +20%" or "p95 > 500ms", joined by "or"'


@dataclass(frozen=True, slots=True)
class Condition:
    what: str
    """``errors``, ``p50``, ``p95`` or ``p99``."""
    is_relative: bool
    limit: float
    """A ratio (0.01), or seconds."""
    text: str


def parse(text: str) -> tuple[Condition, ...]:
    """`ChangeRefused` (400) says what may stand there."""
    conditions = []
    for part in text.split(" or "):
        found = _TERM.fullmatch(part)
        wrong = found is None or (found[1] == "errors" and found[4] != "%") or (found[1] != "errors" and not found[2] and found[4] == "%")
        if found is None or wrong or (found[2] and found[4] != "%"):
            raise ChangeRefused(400, f"abort_if: {part.strip()!r:.60} is not understood; allowed are {FORM}", "abort_if")
        scale = {"%": 0.01, "ms": 0.001, "s": 1.0}[found[4]]
        conditions.append(Condition(found[1], bool(found[2]), float(found[3]) * scale, part.strip()))
    return tuple(conditions)


@dataclass(frozen=True, slots=True)
class Scope:
    """The traffic that a change is about. None: all HTTP traffic."""

    pools: frozenset[str] | None = None
    sites: frozenset[str] = frozenset()
    tcp: frozenset[str] = frozenset()
    """Those of the pools that serve TCP sessions only."""

    def covers(self, site: str, pool: str) -> bool:
        return self.pools is None or pool in self.pools or site in self.sites


EVERYTHING = Scope()


def scope_of(apply: Mapping[str, Any], model: Model) -> Scope:
    """What a change, in its JSON form, is about."""
    touched = undo.touched(apply)
    if any(len(value) < 2 for value in touched):
        return EVERYTHING
    pools = frozenset(value[1] for value in touched if value[0] == "pools")
    http = {pool for site in model.sites.values() for route in site.all_routes for pool in route.pools}
    tcp = {pool for listener in model.tcp for pool in listener.pools} - http
    return Scope(pools, frozenset(value[1] for value in touched if value[0] == "sites"), pools & tcp)


@dataclass(frozen=True, slots=True)
class Sample:
    """Running totals of some traffic, or the difference of two."""

    requests: int
    errors: int
    buckets: tuple[int, ...]

    def since(self, before: Sample) -> Sample:
        spent = tuple(a - b for a, b in zip(self.buckets, before.buckets, strict=True))
        return Sample(self.requests - before.requests, self.errors - before.errors, spent)

    @property
    def error_ratio(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def quantile(self, q: float) -> float:
        """Seconds."""
        total = sum(self.buckets)
        wanted, seen = q * total, 0
        for index, count in enumerate(self.buckets):
            if count and seen + count >= wanted:
                low = BUCKETS_S[index - 1] if index else 0.0
                high = BUCKETS_S[index] if index < len(BUCKETS_S) else low
                return low + (high - low) * (wanted - seen) / count
            seen += count
        return 0.0

    def value(self, what: str) -> float:
        return self.error_ratio if what == "errors" else self.quantile(int(what[1:]) / 100)

    def to_plain(self) -> list[Any]:
        return [self.requests, self.errors, list(self.buckets)]

    @classmethod
    def from_plain(cls, given: Any) -> Sample:
        """What `to_plain` gave; nothing at all when it was another version with other buckets."""
        requests, errors, buckets = given
        return cls(requests, errors, tuple(buckets)) if len(buckets) == len(NOTHING.buckets) else NOTHING


NOTHING = Sample(0, 0, (0,) * (len(BUCKETS_S) + 1))
_TABLES = ("requests", "durations", "servers")


def sample(statistics: Mapping[str, Any], scope: Scope = EVERYTHING) -> Sample:
    requests = errors = 0
    for row in statistics["requests"]:
        if scope.covers(row[0], row[1]):
            requests += row[-1]
            if int(row[3]) >= 500:
                errors += row[-1]
    buckets = [0] * (len(BUCKETS_S) + 1)
    for row in statistics["durations"]:
        if scope.covers(row[0], row[1]):
            for index, count in enumerate(row[2]):
                buckets[index] += count
    for pool, _, leases, failures in statistics["servers"] if scope.tcp else ():
        if pool in scope.tcp:
            requests += leases
            errors += failures
    return Sample(requests, errors, tuple(buckets))


def tripped(conditions: Sequence[Condition], before: Sample, now: Sample) -> str:
    """The figures of the first condition that is true; "" while there are too few requests, or none is."""
    if now.requests < MIN_REQUESTS:
        return ""
    for condition in conditions:
        value, was = now.value(condition.what), before.value(condition.what)
        if condition.is_relative and before.requests < MIN_REQUESTS:
            continue
        limit = was * (1 + condition.limit) if condition.is_relative else condition.limit
        if value > limit:
            return (
                f"{condition.text}: {_figure(condition.what, value)} in {now.requests} requests since the change, "
                f"{_figure(condition.what, was)} in {before.requests} before"
            )
    return ""


def _figure(what: str, value: float) -> str:
    return f"{what} {value:.2%}" if what == "errors" else f"{what} {value * 1000:.1f} ms"


@dataclass(slots=True)
class _Watched:
    conditions: tuple[Condition, ...]
    scope: Scope
    baseline: Sample
    start: Sample
    until: float


@dataclass(frozen=True, slots=True)
class Watch:
    """What is to be watched, as it is journaled with the change."""

    abort_if: str
    until: str
    """RFC 3339."""
    before: Sample = field(default=NOTHING)
    """The minute before the change."""

    @property
    def shown(self) -> Guarded:
        """For people."""
        return Guarded(self.abort_if, self.until, MIN_REQUESTS, self.before.requests)

    def to_plain(self) -> dict[str, Any]:
        return {"abort_if": self.abort_if, "until": self.until, "before": self.before.to_plain()}

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Watch:
        parse(given["abort_if"])
        return cls(given["abort_if"], str(given["until"]), Sample.from_plain(given["before"]))


class Guard:
    """`statistics` gives running totals, `trip` gets the revision and the figures that condemn it, `passed` how many requests did not."""

    def __init__(
        self,
        seconds: Callable[[], float],
        statistics: Callable[[], Mapping[str, Any]],
        trip: Callable[[int, str], None],
        passed: Callable[[int, int], None] = lambda revision, requests: None,
    ) -> None:
        self._seconds = seconds
        self._statistics = statistics
        self._trip = trip
        self._passed = passed
        self._past: deque[Mapping[str, Any]] = deque(maxlen=BASELINE_S // NOTED_EVERY_S)
        self._note_at = seconds()
        self._watched: dict[int, _Watched] = {}

    def check(self, text: str | None) -> None:
        """`ChangeRefused` when `text` is no condition."""
        if text is not None:
            parse(text)

    def baseline(self, scope: Scope) -> Sample:
        """The minute until now; less when there is less."""
        now = sample(self._statistics(), scope)
        return now.since(sample(self._past[0], scope)) if self._past else now

    def watch(self, revision: int, text: str, for_s: float, scope: Scope = EVERYTHING, baseline: Sample | None = None) -> None:
        """`baseline`: what it is compared with; None: the minute until now."""
        before = self.baseline(scope) if baseline is None else baseline
        start = sample(self._statistics(), scope)
        self._watched[revision] = _Watched(parse(text), scope, before, start, self._seconds() + for_s)

    def watches(self, revision: int) -> bool:
        return revision in self._watched

    def forget(self, revision: int) -> None:
        self._watched.pop(revision, None)

    def look(self) -> None:
        """Called once a second."""
        now = self._seconds()
        is_time = now >= self._note_at
        if not is_time and not self._watched:
            return
        statistics = self._statistics()
        if is_time:
            self._note_at = now + NOTED_EVERY_S
            self._past.append({name: statistics[name] for name in _TABLES})
        for revision, watched in tuple(self._watched.items()):
            since = sample(statistics, watched.scope).since(watched.start)
            figures = tripped(watched.conditions, watched.baseline, since)
            if figures:
                del self._watched[revision]
                self._trip(revision, figures)
            elif now > watched.until:
                del self._watched[revision]
                self._passed(revision, since.requests)
