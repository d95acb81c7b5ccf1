"""Workers with a cache in one process, over a `Bed` (``tests/http/fakes_http.py``); loaded by path, as `tests/` is no package."""

from __future__ import annotations

import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Cache as CacheSpec
from twistedproxy.config.model import Route, RouteCache, Site
from twistedproxy.http.cache.arena import Arena
from twistedproxy.http.cache.cache import Cache
from twistedproxy.http.cache.disk import Disk
from twistedproxy.http.cache.geometry import MIN_BYTES
from twistedproxy.http.cache.neighbours import Neighbours
from twistedproxy.http.cache.store import Store
from twistedproxy.ipc.scoreboard import Scoreboard
from twistedproxy.net.doorbell import Doorbell

T0 = 1_800_000_000.0
"""When the wall clock of these tests begins."""
FRESH = b"Cache-Control: max-age=60"


class Worker:
    """One worker: a front, its pool, its view of the stores in `directory`."""

    def __init__(
        self, bed: Any, directory: str, origin: Any = None, *, memory: int = MIN_BYTES, disk: bool = True, board: Any = None,
        rules: RouteCache | None = None, spec: CacheSpec | None = None, route: dict[str, Any] | None = None, **proxy: Any,
    ) -> None:  # fmt: skip
        self.bed = bed
        made = Route("/", "web", cache=rules or RouteCache(), **(route or {}))
        self.origin = bed.proxy(*([origin] if origin else []), routes=[made], **proxy)
        self.port, self.front, self.pool, self.metrics = bed.port, bed.front, bed.pool, bed.metrics
        self.arena = Arena.open(directory, memory) if memory else None
        if self.arena is not None:
            self.arena.own(2 if board is not None else 1)
        seconds = bed.loop.seconds
        self.began = seconds()
        self.store = Store(self.arena, Disk(directory, seconds) if disk else None, lambda work: work())
        self.bell = None
        neighbours: Neighbours | None = None
        if board is not None:
            slot = board.take_slot()

            def heard(word: bytes) -> None:
                assert neighbours is not None
                neighbours.heard(word)

            self.bell = Doorbell(bed.loop.reactor, f"{directory}/bells", slot, heard)
            neighbours = Neighbours(board.board(slot).fills, self.bell)
        self.cache = Cache(
            spec or CacheSpec(directory), self.store, now=self.wall, wheel=bed.loop.wheel, counts=self.metrics.cache, neighbours=neighbours
        )  # fmt: skip
        if neighbours is not None:
            neighbours.cache = self.cache
        self.cache.follow_routes([Site("site", ("*",), (made,))])
        self.front.act = self.cache.act

    def wall(self) -> float:
        now: float = self.bed.loop.seconds()
        return T0 + now - self.began

    def client(self, data: bytes = b"", **how: Any) -> Any:
        self.bed.port = self.port
        return self.bed.client(data, **how)

    def ask(self, *lines: bytes, path: bytes = b"/x", method: bytes = b"GET", client: Any = None) -> Any:
        """The answer to a request that needs no server."""
        data = b"%b %b HTTP/1.1\r\nHost: example.com\r\n%b\r\n" % (method, path, b"".join(line + b"\r\n" for line in lines))
        client = client or self.client()
        return client.send(data).response(to=method)

    def counted(self) -> dict[str, int]:
        return {result: n for (_, result), n in self.metrics.cache.items()}

    @property
    def leases(self) -> int:
        return sum(server.active for server in self.pool.servers)

    def stop(self) -> None:
        if self.bell is not None:
            self.bell.stop()
        if self.arena is not None:
            self.arena.release()


class CachingCase(SynchronousTestCase):
    """A test with a worker that keeps answers; `self.second()` is another one of the same machine."""

    uses_bed = True
    bed: Any
    fakes: Any

    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.board: Any = None

    def worker(self, **how: Any) -> Worker:
        worker = Worker(self.bed, self.directory, **how)
        self.addCleanup(worker.stop)
        return worker

    def two(self, **how: Any) -> tuple[Worker, Worker]:
        self.board = self.bed.loop.keep(Scoreboard.create(4096, 4))
        first = self.worker(board=self.board, **how)
        return first, self.worker(origin=first.origin, board=self.board, **how)

    def get(self, *lines: bytes, path: bytes = b"/x", **how: Any) -> bytes:
        data: bytes = self.fakes.get(path, *lines, **how)
        return data

    def answer(self, body: bytes = b"body", *lines: bytes, **how: Any) -> bytes:
        data: bytes = self.fakes.answer(body, *(lines or (FRESH,)), **how)
        return data

    def fill(
        self, worker: Worker, body: bytes = b"body", *lines: bytes, path: bytes = b"/x", asks: tuple[bytes, ...] = (), **how: Any
    ) -> Any:
        """A miss that is answered; what its client got."""
        client = worker.client(self.get(*asks, path=path))
        server = worker.origin.accept()
        server.request()
        server.send(self.answer(body, *lines, **how))
        found = client.response()
        client.close()
        server.close()
        self.bed.until(lambda: not any(server.idle for server in worker.pool.servers), "the idle connection to be gone")
        return found
