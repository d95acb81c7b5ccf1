"""What the admin side may ask of the supervisor: the only door between the two.

The admin app is written against `Control` and cannot tell one worker from eight; the supervisor implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twistedproxy.config.changes import Change, HealthSeen
from twistedproxy.config.model import Model


@dataclass(frozen=True, slots=True)
class Applied:
    """A change that is durable, and how far it has reached."""

    revision: int
    total: int
    """Live workers when the change was broadcast."""
    acked: int
    lagging: tuple[int, ...] = ()
    """Slots that had not answered after 5 s; they are being sent the whole model or replaced."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal."""

    revision: int
    at: str
    """RFC 3339, UTC."""
    by: str
    reason: str
    change: Mapping[str, Any]
    """As `changes.describe` gives it: kind, pool, server, before, after."""
    undone_by: int | None = None
    confirm_by: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerView:
    slot: int
    pid: int
    state: str
    """``starting``, ``serving``, ``lagging``, ``stopping`` or ``gone``."""
    revision: int
    connections: int = 0
    requests: int = 0
    lag_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the supervisor knows now that is not a counter."""

    model: Model
    revision: int
    uptime_s: float
    head_codec: str
    """``native`` or ``python``."""
    workers: tuple[WorkerView, ...] = ()
    health: Mapping[tuple[str, str], HealthSeen] = field(default_factory=dict)
    """By (pool, server address)."""
    ejected: frozenset[tuple[str, str]] = frozenset()
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Configured listen address to the one that was bound (port 0 picks one)."""
    is_ready: bool = False
    """At least one worker serves and none lags behind the latest revision by over 5 s."""


@dataclass(frozen=True, slots=True)
class Event:
    """For the event stream: ``stats``, ``change``, ``health``, ``worker`` or ``certificate``."""

    kind: str
    data: Mapping[str, Any]


class Control(Protocol):
    """The supervisor, as the admin app sees it."""

    async def apply(self, change: Change, *, by: str, reason: str = "", expected_revision: int | None = None) -> Applied:
        """Validate, journal and broadcast; returns once every live worker applied it or after 5 s. Raises `ChangeRefused`."""
        ...

    def snapshot(self) -> Snapshot: ...

    def statistics(self) -> Mapping[str, Any]:
        """Totals over all workers, living and gone, in the shape of ``observability.metrics.Metrics.to_plain``, at most 1 s old."""
        ...

    async def fresh_statistics(self) -> Mapping[str, Any]:
        """The same after asking every worker, for a scrape; a worker that does not answer within 1 s counts with what it said last."""
        ...

    def history(self, after: int = 0) -> Sequence[Entry]:
        """Journal entries with a revision above `after`, oldest first."""
        ...

    def subscribe(self, observer: Callable[[Event], None]) -> Callable[[], None]:
        """Call `observer` for every event until the returned function is called."""
        ...
