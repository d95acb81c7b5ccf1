"""A worker that cannot keep up refuses some, never all, and takes everybody again soon after."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, HttpListener, Shedding, TcpListener
from twistedproxy.errors import MemoryShort, ProxyError
from twistedproxy.http.codings import Effort
from twistedproxy.worker import overload
from twistedproxy.worker.overload import MOST, Load, Overload

LATE_S = Shedding().lag_s


class OverloadTests(SynchronousTestCase):
    def test_a_busy_worker_refuses_nobody(self) -> None:
        overload = Overload()
        self.assertEqual({overload.see(LATE_S) for _ in range(100)}, {0.0})

    def test_while_requests_wait_too_long_more_and_more_are_refused_but_never_all(self) -> None:
        overload = Overload()
        shares = [overload.see(LATE_S * 2) for _ in range(30)]
        self.assertEqual(shares, sorted(shares))
        self.assertGreater(shares[0], 0)
        self.assertEqual(shares[-1], MOST)

    def test_five_seconds_after_it_got_better_everybody_is_taken_again(self) -> None:
        overload = Overload()
        for _ in range(30):
            overload.see(1.0)
        for _ in range(50):
            overload.see(0.01)
        self.assertEqual(overload.share, 0.0)

    def test_how_long_is_too_long_is_configured(self) -> None:
        overload = Overload()
        overload.late_s = 0.05
        self.assertGreater(overload.see(0.1), 0.0)


class Memory:
    """Says what the test wants."""

    share = 0.0
    limit: int | None = None
    connections = 0

    def taken(self, limit: int | None) -> float:
        self.limit = limit
        return self.share

    def see(self, connections: int) -> None:
        self.connections = connections


class Place:
    """A listener with a front end that writes down what it is told."""

    is_crowded = False
    is_paused = False
    share = 0.0
    is_short = False
    why: ProxyError | None = None

    def __init__(self, spec: HttpListener | TcpListener) -> None:
        self.spec = spec
        self.front = self
        self.effort = Effort()

    def pause(self, is_paused: bool) -> None:
        self.is_paused = is_paused

    def mind_crowding(self, is_crowded: bool) -> None: ...

    def mind_memory(self, is_short: bool) -> None:
        self.is_short = is_short

    def shed(self, share: float, why: ProxyError) -> None:
        self.share, self.why = share, why


class MemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(overload, "Pulse", lambda reactor: SimpleNamespace(take_longest=lambda: 0.0, stop=lambda: None))
        self.memory = Memory()
        self.load = Load(MemoryReactorClock(), self.memory)  # type: ignore[arg-type]
        self.load.configure(Shedding(memory=0.9, memory_bytes=1000), 4)
        self.http: Any = Place(HttpListener(Address("127.0.0.1:80")))
        self.tcp: Any = Place(TcpListener(Address("127.0.0.1:81"), "pg"))

    def at(self, share: float) -> tuple[bool, float, bool]:
        """(connections are not kept, share of requests refused, TCP waits) when so much of the memory is taken."""
        self.memory.share = share
        self.load.mind_memory([self.http, self.tcp], 7)
        self.load.mind([self.http])
        return self.http.is_short, self.http.share, self.tcp.is_paused

    def test_DO_11_memory_that_runs_out_closes_connections_first_and_refuses_requests_then(self) -> None:
        self.assertEqual(self.at(0.86), (False, 0.0, False))
        self.assertEqual(self.at(0.88), (True, 0.0, False))
        self.assertEqual(self.at(0.91), (True, 1.0, True))
        self.assertIsInstance(self.http.why, MemoryShort)
        self.assertEqual(self.at(0.88), (True, 1.0, True), "not back and forth")
        self.assertEqual(self.at(0.86), (True, 0.0, False))
        self.assertEqual(self.at(0.83), (False, 0.0, False))
        self.assertEqual(self.at(0.86), (False, 0.0, False))

    def test_DO_11_the_limit_is_that_of_all_workers_together(self) -> None:
        self.at(0.1)
        self.assertEqual((self.memory.limit, self.memory.connections), (250, 7))
        self.load.configure(Shedding(), 4)
        self.at(0.1)
        self.assertIsNone(self.memory.limit)
