"""One data plane: composes a model into pools, routes, front ends and listeners, and keeps them up to date while traffic flows.

How it works
    `configure` takes the whole truth and converges to it from wherever the worker is: what did not change is not touched, so it
    serves first start, reload and a worker that fell behind alike. `apply` takes one change and touches only the pools it names.
    Pools and places (listen addresses) live across both; front ends are replaced when their listener changed, and what an old
    one holds finishes there.

    Everything periodic hangs on one 50 ms tick: deadlines; every second time failures and the access log; every twentieth time
    heartbeat and statistics. How late that tick comes is the lag the operator sees.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twisted.logger import Logger

from twistedproxy.clock import TICK_S, Wheel
from twistedproxy.config import changes
from twistedproxy.config.model import Endpoint, HttpListener, Model, endpoint
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.http.front import HttpFront
from twistedproxy.http.mirror import Mirrors
from twistedproxy.http.stories import Stories
from twistedproxy.net.sparse import SparseLog
from twistedproxy.observability.access_log import AccessLog
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool
from twistedproxy.worker.answers import Answers
from twistedproxy.worker.fronts import FrontParts, http_front, stream_front
from twistedproxy.worker.maintenance import Cuts, cut_sessions
from twistedproxy.worker.overload import Load
from twistedproxy.worker.places import Front, ListenerSpec, Place, share
from twistedproxy.worker.routers import Routers

if TYPE_CHECKING:
    from twistedproxy.worker.caches import Caches
    from twistedproxy.worker.tls import TlsParts

QUEUE_TICK_S = 0.02
"""How soon a waiting request notices that another worker released a lease."""
TICKS_PER_FLUSH = 2
TICKS_PER_BEAT = 20
ORPHAN_LIMIT_S = 4.5
"""How long a worker without supervisor finishes what is open; the promise is 5 s."""

_log = Logger(namespace="worker")


class Reports(Protocol):
    """What a worker tells its supervisor."""

    def heartbeat(self, revision: int, connections: int, requests: int, lag_seconds: float) -> None: ...

    def statistics(self, totals: Mapping[str, Any]) -> None: ...

    def failures(self, rows: Sequence[Sequence[Any]]) -> None: ...


class Worker:
    """The data plane of one process.

    `board` is this worker's view of the scoreboard (None: it counts alone); `finished` is called once, when draining is done.
    """

    def __init__(self, reactor: Any, reports: Reports, *, board: Any = None, finished: Callable[[], None]) -> None:
        self._reactor = reactor
        self._reports = reports
        self._board = board
        self._finished = finished
        self._seconds: Callable[[], float] = reactor.seconds
        self._random = random.Random()
        self.wheel = Wheel(self._seconds)
        self.metrics = Metrics()
        self.model = Model()
        self.revision = -1
        """-1: never configured."""
        self.pools: dict[str, Pool] = {}
        self.places: dict[str, Place] = {}
        self._leaving: list[Front] = []
        """Fronts that were replaced or removed and still hold connections."""
        no_pool = Pool(PoolSpec(""), seconds=self._seconds, wheel=self.wheel, random=self._random)
        self._routers = Routers(self.pools, no_pool, self.metrics)
        self.answers = Answers(self, Stories(), Mirrors(self.pools.get, self.metrics.mirrors))
        self._tls: TlsParts | None = None
        """None until a model asks for TLS."""
        self._caches: Caches | None = None
        """None until a model asks for a cache."""
        self._slots = 1
        self._access_log: AccessLog | None = None
        self._log_lines_dropped = 0
        """By access logs that are closed."""
        self._cuts = Cuts(reactor, self.pools)
        self._is_draining = False
        self._drain_timers: list[Any] = []
        self._crash_log = SparseLog(_log, self._seconds, every_s=1.0)
        self._ticks = 0
        self._tick_due = self._seconds() + TICK_S
        self._lag = 0.0
        self._load = Load(reactor)
        self._tick_timer = reactor.callLater(TICK_S, self._tick)
        self._queue_timer: Any = None

    # The whole truth

    def configure(self, model: Model, revision: int, observations: Iterable[changes.Observation] = (), slots: int = 1) -> None:
        """Become what `model` says, without touching what it leaves as it is."""
        self._slots = slots
        observations = list(observations)
        if self._tls is None and model.has_tls:
            from twistedproxy.worker.tls import TlsParts  # noqa: PLC0415 - OpenSSL, which not everybody needs

            self._tls = TlsParts(self._seconds)
        if self._tls is not None:
            self._tls.take(observations)
        if self._caches is None and model.has_cache:
            from twistedproxy.worker.caches import Caches  # noqa: PLC0415 - what not everybody needs

            self._caches = Caches(self._reactor, self.wheel, self.metrics, self._board)
        self._configure_access_log(model)
        for spec in model.pools.values():
            self._configure_pool(spec)
        self.model = model
        self._load.configure(model.shedding, slots)
        for name in self.pools.keys() - model.pools.keys():
            del self.pools[name]  # nothing leads to it any more; the leases that are out hold it until they end
        self._cuts.follow(model)
        if self._tls is not None:
            self._tls.configure(model, self.pools, self._fronts())
        self._configure_routes(model)
        self._configure_places((*model.http, *model.tcp))
        self.observe(observations)
        self.revision = revision

    def _configure_access_log(self, model: Model) -> None:
        spec = model.logs.access
        old = self._access_log
        if (old is None and spec is None) or (old and spec and (old.file, old.format) == (spec.file, spec.format)):
            return
        self._access_log = AccessLog(spec.file, spec.format, seconds=self._seconds) if spec else None
        for front in self._fronts():
            front.access_log = self._access_log
        if old is not None:
            old.close()
            self._log_lines_dropped += old.dropped

    def _configure_pool(self, spec: PoolSpec) -> None:
        pool = self.pools.get(spec.name)
        if pool is None:
            self.pools[spec.name] = Pool(spec, seconds=self._seconds, wheel=self.wheel, random=self._random, board=self._board)
        elif pool.spec != spec:
            pool.update(spec)

    def _configure_routes(self, model: Model) -> None:
        if self._routers.configure(model, self._tls.challenges if self._tls is not None else {}):
            for place in self.places.values():
                if isinstance(place.front, HttpFront) and isinstance(place.spec, HttpListener):
                    place.front.router = self._routers.of(place.spec)
                    place.front.timeouts = model.timeouts
        if self._caches is not None:
            self._caches.configure(model, self._slots)
            for front in self._fronts():
                self._caches.serve(front)

    def _configure_places(self, specs: Iterable[ListenerSpec]) -> None:
        wanted = {spec.address: spec for spec in specs}
        for address in self.places.keys() - wanted.keys():
            place = self.places.pop(address)
            place.stop()
            self._retire(place.front)
        for address, spec in wanted.items():
            limit = share(spec.max_connections, self._slots)
            if address not in self.places:
                self.places[address] = Place(self._reactor, spec, limit, self._front)
                continue
            place = self.places[address]
            if place.max_connections != limit:
                place.limit(limit)
            if place.spec != spec:
                self._retire(place.serve(spec))

    def _front(self, spec: ListenerSpec, on_closed: Callable[[], None]) -> Front:
        parts = FrontParts(self._reactor, self.wheel, self.metrics, self._access_log, on_closed)
        if isinstance(spec, HttpListener):
            front = http_front(spec, self._routers.of(spec), self.model.timeouts, parts, self._tls, self.answers, self._load.pacing)
            if self._caches is not None:
                self._caches.serve(front)
            return front
        return stream_front(spec, self.pools, parts, self._tls)

    def _retire(self, front: Front) -> None:
        front.drain()
        self._leaving.append(front)

    def _fronts(self) -> list[Any]:
        return [*(place.front for place in self.places.values()), *self._leaving]

    # Sockets

    def adopt_socket(self, address: str, index: int, descriptor: int) -> None:
        """Accept on a listening socket; `LookupError` when the address is not configured. Takes the descriptor over."""
        sock = socket.socket(fileno=descriptor)
        place = self.places.get(address)
        if place is None or self._is_draining:
            sock.close()
            raise LookupError(f"no listener {address!r} to accept on; there are: {', '.join(self.places) or 'none'}")
        sock.setblocking(False)
        place.add_socket(index, sock)

    def return_socket(self, address: str, index: int) -> None:
        place = self.places.get(address)
        if place is not None:
            place.remove_socket(index)

    # Changes and observations

    def apply(self, change: changes.Change, revision: int) -> None:
        """Apply one change; `ChangeRefused` when this worker's model is not the one it was made for."""
        model = changes.apply(self.model, change)
        removed = self._cuts.at_once(change)
        before, self.model = self.model, model
        for name, spec in model.pools.items():
            if spec is not before.pools.get(name):
                self._configure_pool(spec)
        for found in removed:  # out of its pool by now, so that the places that come free there go to nobody
            cut_sessions(found, "was removed")
        self._cuts.follow(model)
        if model.sites is not before.sites:
            self._configure_routes(model)
        self.revision = revision

    def observe(self, observations: Iterable[changes.Observation]) -> None:
        """Take facts of the moment in; those about servers that are not here (any more) are passed over."""
        observations = list(observations)
        if self._tls is not None and self._tls.take(observations):
            self._tls.configure(self.model, self.pools, self._fronts())
            self._configure_routes(self.model)
        for seen in observations:
            if isinstance(seen, changes.CachePurged):
                if self._caches is not None:
                    self._caches.observe(seen)
                continue
            if isinstance(seen, changes.CertificateRead | changes.ChallengeSet | changes.HandshakeChallengeSet):
                continue
            pool = self.pools.get(seen.pool)
            if pool is None:
                continue
            if isinstance(seen, changes.HealthSeen):
                pool.observe_health(seen.server, seen.health)
            elif isinstance(seen, changes.Ejected):
                pool.eject(seen.server, seen.until)
            elif isinstance(seen, changes.Resolved):
                pool.resolve(seen.server, _endpoints(seen))
            else:
                pool.assign_row(seen.server, seen.row)

    # Time

    def _tick(self) -> None:
        now = self._seconds()
        self._lag = max(self._lag, now - self._tick_due)
        self._tick_due = now + TICK_S
        self._load.beat()
        self._tick_timer = self._reactor.callLater(TICK_S, self._tick)
        self._ticks += 1
        _attempt(self._crash_log, self.wheel.advance, now)
        if self._queue_timer is None and any(pool.waiting for pool in self.pools.values()):
            _attempt(self._crash_log, self._queue_tick)
        if self._ticks % TICKS_PER_FLUSH == 0:
            _attempt(self._crash_log, self._flush)
        if self._ticks % TICKS_PER_BEAT == 0:
            _attempt(self._crash_log, self._beat)

    def _queue_tick(self) -> None:
        """While somebody waits for a lease: ask again what the other workers released."""
        self._queue_timer = None
        now = self._seconds()
        waiting = False
        for pool in self.pools.values():
            if pool.waiting:
                pool.re_check(now)
                waiting = waiting or bool(pool.waiting)
        if waiting:
            self._queue_timer = self._reactor.callLater(QUEUE_TICK_S, self._queue_tick)

    def _flush(self) -> None:
        rows = [[name, *row] for name, pool in self.pools.items() for row in pool.take_failures()]
        if rows:
            self._reports.failures(rows)
        if self._access_log is not None:
            self._access_log.flush()
        self._lag = max(self._lag, self._load.mind([place for place in self.places.values() if isinstance(place.front, HttpFront)]))
        if self._leaving:
            self._leaving = [front for front in self._leaving if front.open]
        if self._is_draining and not self.open:
            self._finish()

    def _beat(self) -> None:
        if self._caches is not None:
            self._caches.each_second()
        self._reports.heartbeat(self.revision, self.open, self.metrics.requests, round(self._lag, 6))
        self._lag = 0.0
        self._load.mind_memory(self.places.values(), self.open)
        self.collect()

    def collect(self) -> None:
        """Report running totals now."""
        dropped = self._access_log.dropped if self._access_log is not None else 0
        self.metrics.log_lines_dropped = self._log_lines_dropped + dropped
        rows = [(name, *row) for name, pool in self.pools.items() for row in pool.statistics()]
        self._reports.statistics(self.metrics.to_plain(rows, {name: pool.waiting for name, pool in self.pools.items()}))

    @property
    def open(self) -> int:
        """Client connections that are not finished."""
        return sum(front.open for front in self._fronts())

    def reopen_logs(self) -> None:
        if self._access_log is not None:
            self._access_log.reopen()

    def drain(self, limit_s: float | None = None) -> None:
        """Stop accepting, let what is open finish within its limits (all of it within `limit_s`), then call `finished`.

        May be called again with a shorter limit.
        """
        if not self._is_draining:
            self._is_draining = True
            if self._caches is not None:
                self._caches.drain()
            for place in self.places.values():
                place.stop()
                place.front.drain()
        timeouts = self.model.timeouts
        for limit, act in ((timeouts.drain_http_s, self._cut_http), (max(timeouts.drain_http_s, timeouts.drain_tcp_s), self._cut_all)):
            self._drain_timers.append(self._reactor.callLater(limit if limit_s is None else min(limit, limit_s), act))

    def _cut_http(self) -> None:
        for front in self._fronts():
            if isinstance(front, HttpFront):
                front.cut_requests()

    def _cut_all(self) -> None:
        _cut(self._fronts())
        self._finish()

    def _finish(self) -> None:
        if self._tick_timer is None:
            return
        for timer in (self._tick_timer, self._queue_timer, *self._drain_timers):
            if timer is not None and timer.active():
                timer.cancel()
        self._cuts.stop()
        self._tick_timer = None
        self._load.stop()
        self._beat()
        if self._access_log is not None:
            self._access_log.close()
        self._finished()


def _attempt(crashes: SparseLog, task: Callable[..., None], *arguments: float) -> None:
    """One periodic task's error must not stop the others, nor the clock."""
    try:
        task(*arguments)
    except Exception:
        crashes.failure("a periodic task failed: {task}", task=task.__qualname__)


def _cut(fronts: Sequence[Front]) -> None:
    count = sum(front.open for front in fronts)
    if count:
        _log.warn("{count} connections were still open at the end of their time to finish and are cut", count=count)
    for front in fronts:
        front.cut()


def _endpoints(seen: changes.Resolved) -> list[Endpoint]:
    """The addresses of a host name, with the port the server is configured with."""
    port = endpoint(seen.server).port
    return [endpoint(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}") for ip in seen.addresses]
