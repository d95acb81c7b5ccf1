"""What the admin side may ask of the supervisor: the only door between the two.

The admin app is written against `Control` and cannot tell one worker from eight; the supervisor implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twistedproxy.config.changes import Change, HealthSeen
from twistedproxy.config.model import Model
from twistedproxy.errors import ChangeRefused


@dataclass(frozen=True, slots=True)
class Terms:
    """Who wants a change, why, and on which conditions."""

    by: str
    reason: str = ""
    expected_revision: int | None = None
    """Refuse (412) unless this is the revision now."""
    confirm_within_s: float | None = None
    """Take the change back unless it is confirmed in time."""
    abort_if: str | None = None
    """Take it back when this comes true: ``errors > 1% or p95 > +20%``."""
    is_preview: bool = False
    """Only say what would happen."""


def check_revision(expected: int | None, now: int) -> None:
    """`ChangeRefused` (412) when somebody else was faster: nobody overwrites what they have not seen."""
    if expected is not None and expected != now:
        raise ChangeRefused(412, f"you changed revision {expected}, the proxy is at revision {now}; look again and retry")


@dataclass(frozen=True, slots=True)
class ShareChange:
    """A server whose part of its pool's traffic changes."""

    pool: str
    server: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class SplitChange:
    """A side of a split whose part of the route's traffic changes."""

    site: str
    path: str
    pool: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Replay:
    """Of a pool that goes by keys: what a copy of its balancer made of the requests recorded lately."""

    pool: str
    requests: int
    """How many were replayed; 0: none came lately, and shares are by weight."""
    moved: float
    """Part of them that would go to another server."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would do."""

    changes: tuple[Mapping[str, Any], ...] = ()
    """As the journal would describe it."""
    shares: tuple[ShareChange, ...] = ()
    splits: tuple[SplitChange, ...] = ()
    replays: tuple[Replay, ...] = ()
    closing: int = 0
    """Open sessions that would be closed, at once or at the end of their time to finish."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """What takes a change back by itself when traffic gets worse."""

    abort_if: str
    until: str
    """RFC 3339, UTC: it is watched so long."""
    min_requests: int
    """Nothing is judged before so many since the change; a comparison needs as many in the minute before it."""
    baseline_requests: int
    """How many there were in the minute before."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A change that is durable, and how far it has reached."""

    revision: int
    total: int
    """Live workers when the change was broadcast."""
    acked: int
    lagging: tuple[int, ...] = ()
    """Slots that had not answered after 5 s; they are being sent the whole model or replaced."""
    superseded: tuple[str, ...] = ()
    """Of a reload: live values that the file has overtaken, in words."""
    notes: tuple[str, ...] = ()
    """What else the operator should know."""
    confirm_by: str | None = None
    guard: Guarded | None = None
    preview: Preview | None = None
    """Set when nothing was changed, only asked."""


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
    guard: Guarded | None = None
    """What watches it, or watched it before it was undone or its time was over; None also once it is confirmed."""


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
class CertificateView:
    """One certificate in use."""

    used_by: tuple[str, ...]
    """Names of sites; ``tcp ADDRESS``, ``pool NAME``; ``files`` for `certificates.files`."""
    source: str
    """Its file; ``auto`` for one that an authority made on demand."""
    names: tuple[str, ...]
    not_before: float
    not_after: float
    """Seconds since the epoch."""
    issuer: str
    is_placeholder: bool = False
    """Self-signed, until the authority has made the real one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the supervisor knows now that is not a counter."""

    model: Model
    revision: int
    uptime_s: float
    head_codec: str
    """``native`` or ``python``; ``starting`` before the first worker said."""
    workers: tuple[WorkerView, ...] = ()
    health: Mapping[tuple[str, str], HealthSeen] = field(default_factory=dict)
    """By (pool, server address)."""
    ejected: frozenset[tuple[str, str]] = frozenset()
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Configured listen address to the one that was bound (port 0 picks one)."""
    effective: Mapping[str, Any] = field(default_factory=dict)
    """The configuration in the form of the file, live values included, placeholders as written; digests of tokens are still in it."""
    certificates: tuple[CertificateView, ...] = ()
    is_ready: bool = False
    """At least one worker serves and none lags behind the latest revision by over 5 s."""
    unresolved: frozenset[tuple[str, str]] = frozenset()
    """Servers whose host name has never had an address."""
    upgrade: Mapping[str, Any] | None = None
    """The latest upgrade in place: state, reason and who; None: there was none."""


@dataclass(frozen=True, slots=True)
class Event:
    """For the event stream: ``stats``, ``change``, ``health``, ``worker``, ``certificate``, ``purge`` and others."""

    kind: str
    data: Mapping[str, Any]


class Control(Protocol):
    """The supervisor, as the admin app sees it."""

    async def apply(
        self,
        change: Change,
        *,
        by: str,
        reason: str = "",
        expected_revision: int | None = None,
        confirm_within_s: float | None = None,
        abort_if: str | None = None,
        preview: bool = False,
    ) -> Applied:
        """Validate, journal and broadcast; returns once every live worker applied it or after 5 s. Raises `ChangeRefused`."""
        ...

    async def reload(self, terms: Terms) -> Applied:
        """Read the file again; `ConfigurationError` with every problem, and then nothing has changed."""
        ...

    def check(self, text: str) -> None:
        """Validate a configuration that somebody sent: placeholders are refused. Raises `ConfigurationError`."""
        ...

    async def undo(self, revision: int, terms: Terms) -> Applied:
        """Take a change back; 409 when a later one touched the same values."""
        ...

    async def confirm(self, revision: int, by: str) -> None:
        """Keep a change that waits for confirmation; 409 when it does not."""
        ...

    async def configuration_at(self, revision: int) -> Mapping[str, Any]:
        """`Snapshot.effective` as it was at a past revision."""
        ...

    async def difference(self) -> Sequence[Mapping[str, Any]]:
        """Live values against the file as it is on disk: path, file, running."""
        ...

    async def adopt(self, terms: Terms) -> tuple[str, Applied | None]:
        """Write the live values into the file; the edit as a unified diff, and with `is_preview` nothing else."""
        ...

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> Any:
        """``explain``, ``why``, ``cache``, ``purge`` and others: what the supervisor or its workers know or do, as JSON-able values.

        Raises `ChangeRefused`.
        """
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
