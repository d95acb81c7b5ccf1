"""A data plane converges to what it is told, and what a change does not name is not touched.

It has over 500 lines: one case for each thing a worker is told.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes
from twistedproxy.config.changes import AddServer, Batch, Ejected, HealthSeen, RemoveServer, Resolved, RowAssigned, SetState, SetWeight
from twistedproxy.config.model import (
    AccessLog,
    Address,
    AdminState,
    Health,
    HttpListener,
    Logs,
    Model,
    Pool,
    Route,
    Server,
    Site,
    TcpListener,
    Timeouts,
)
from twistedproxy.errors import Cause, ChangeRefused, ProxyError
from twistedproxy.http.codings import Effort
from twistedproxy.pool.pool import Lease
from twistedproxy.pool.server import Outcome
from twistedproxy.worker import fronts, overload, service
from twistedproxy.worker.service import Worker

A, B, C = Address("127.0.0.1:9001"), Address("127.0.0.1:9002"), Address("db.example:5432")
HTTP = HttpListener(Address("127.0.0.1:8080"), max_connections=1001)
TCP = TcpListener(Address("127.0.0.1:6432"), "pg")
MODEL = Model(
    http=(HTTP,),
    tcp=(TCP,),
    pools={"web": Pool("web", (Server(A), Server(B))), "pg": Pool("pg", (Server(C),), max_connections=1)},
    sites={"*": Site("*", ("*",), (Route("/", "web"),))},
    timeouts=Timeouts(drain_http_s=30, drain_tcp_s=300),
)


class Front:
    """Stands for either front end."""

    made: list[Front]

    def __init__(self, listener: Any, target: Any, **parts: Any) -> None:
        self.listener, self.target, self.parts = listener, target, parts
        self.router = target
        self.timeouts = parts.get("timeouts")
        self.access_log = parts["access_log"]
        self.open = 0
        self.is_draining = self.was_cut = False
        type(self).made.append(self)

    def drain(self) -> None:
        self.is_draining = True

    def cut(self) -> None:
        self.was_cut = True
        self.open = 0


class HttpFront(Front):
    made: list[Front] = []
    is_crowded = False
    share = 0.0
    effort = Effort()

    def mind_crowding(self, is_crowded: bool) -> None:
        self.is_crowded = is_crowded

    def shed(self, share: float, why: ProxyError) -> None:
        self.share = share

    def cut_requests(self) -> None:
        self.cut()


class StreamFront(Front):
    made: list[Front] = []


class StillPulse:
    """This reactor reads nothing; what requests would wait is said by the test."""

    waited = 0.0

    def __init__(self, reactor: Any) -> None: ...

    def beat(self) -> None: ...

    def stop(self) -> None: ...

    def take_longest(self) -> float:
        return self.waited


class Reports:
    def __init__(self) -> None:
        self.heartbeats: list[tuple[Any, ...]] = []
        self.totals: list[Mapping[str, Any]] = []
        self.rows: list[list[Any]] = []

    def heartbeat(self, *facts: Any) -> None:
        self.heartbeats.append(facts)

    def statistics(self, totals: Mapping[str, Any]) -> None:
        self.totals.append(totals)

    def failures(self, rows: Sequence[Sequence[Any]]) -> None:
        self.rows.extend(map(list, rows))


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        HttpFront.made, StreamFront.made = [], []
        self.patch(service, "HttpFront", HttpFront)
        self.patch(fronts, "HttpFront", HttpFront)
        self.patch(overload, "Pulse", StillPulse)
        self.patch(overload, "Memory", lambda **parts: SimpleNamespace(see=lambda connections: None, taken=lambda limit: 0.0))
        StillPulse.waited = 0.0
        self.patch(fronts, "StreamFront", StreamFront)
        self.reactor = MemoryReactorClock()
        self.reactor.advance(1000.0)
        self.reports = Reports()
        self.ended = 0
        self.worker = Worker(self.reactor, self.reports, finished=self._finished)

    def _finished(self) -> None:
        self.ended += 1

    def configure(self, model: Model = MODEL, revision: int = 1, seen: Sequence[Any] = (), slots: int = 1) -> None:
        self.worker.configure(model, revision, seen, slots)

    def pass_time(self, seconds: float) -> None:
        self.reactor.pump([0.01] * round(seconds * 100))

    def session(self, pool: str = "web") -> tuple[Lease, list[ProxyError]]:
        lease = self.worker.pools[pool].acquire(0, frozenset(), lambda _: None)
        assert isinstance(lease, Lease)
        cut: list[ProxyError] = []
        lease.on_cut(cut.append)
        return lease, cut

    def file(self, name: str) -> str:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return os.path.join(folder.name, name)

    def listening(self) -> tuple[socket.socket, int]:
        """A listening socket and a descriptor of it to give away."""
        sock = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(sock.close)
        return sock, os.dup(sock.fileno())


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class ConfigureTests(Base):
    def test_composes(self) -> None:
        """From one model come pools, routes and front ends that belong together."""
        self.configure(revision=7)
        self.assertEqual(self.worker.revision, 7)
        self.assertEqual(set(self.worker.pools), {"web", "pg"})
        (http,), (stream,) = HttpFront.made, StreamFront.made
        self.assertIs(stream.target, self.worker.pools["pg"])
        self.assertEqual(http.listener, HTTP)
        self.assertTrue(http.router)

    def test_observations_come_with_it(self) -> None:
        """A worker that starts late knows at once who is down, ejected, resolved."""
        self.configure(
            seen=[
                HealthSeen("web", A, Health.DOWN, "refused", 0.0),
                Ejected("web", B, self.reactor.seconds() + 50),
                Resolved("pg", C, ("10.0.0.9", "fd00::9")),
                RowAssigned("web", A, 3),
                HealthSeen("gone", A, Health.DOWN, "", 0.0),
                HealthSeen("web", C, Health.DOWN, "", 0.0),
            ]
        )
        web, pg = self.worker.pools["web"], self.worker.pools["pg"]
        a, b, c = web.server(A), web.server(B), pg.server(C)
        assert a is not None
        assert b is not None
        assert c is not None
        self.assertEqual(a.health, Health.DOWN)
        self.assertGreater(b.ejected_until, self.reactor.seconds())
        self.assertEqual([e.sockaddr for e in c.endpoints], [("10.0.0.9", 5432), ("fd00::9", 5432)])

    def test_again_touches_nothing(self) -> None:
        """A laggard that is sent the whole model again keeps its connections, pools and counters."""
        self.configure()
        pools, (http,), (stream,) = dict(self.worker.pools), HttpFront.made, StreamFront.made
        lease, cut = self.session()
        self.configure(replace(MODEL), revision=9)
        self.assertEqual(self.worker.revision, 9)
        self.assertEqual(self.worker.pools, pools)
        self.assertEqual((len(HttpFront.made), len(StreamFront.made)), (1, 1))
        self.assertFalse(http.is_draining or stream.is_draining)
        self.assertEqual(lease.server.active, 1)
        self.assertEqual(cut, [])

    def test_catches_up(self) -> None:
        """A worker that missed changes ends where the others are."""
        self.configure()
        self.configure(changes.apply(changes.apply(MODEL, SetWeight("web", A, 7)), RemoveServer("web", B)), revision=3)
        web = self.worker.pools["web"]
        self.assertEqual([(s.address, s.weight) for s in web.servers], [(A, 7)])

    def test_changed_listener(self) -> None:
        """A changed listener serves new clients by its new rules; those who are there finish by the old ones."""
        self.configure()
        old = HttpFront.made[0]
        old.open = 2
        self.configure(replace(MODEL, http=(replace(HTTP, max_head=1000),)))
        self.assertTrue(old.is_draining)
        self.assertFalse(old.was_cut)
        self.assertEqual(len(HttpFront.made), 2)
        self.assertIs(self.worker.places[HTTP.address].front, HttpFront.made[1])
        self.assertEqual(self.worker.open, 2)
        self.assertFalse(StreamFront.made[0].is_draining)
        old.open = 0
        self.pass_time(0.3)
        self.assertEqual(self.worker._leaving, [])

    def test_removed_listener(self) -> None:
        """A listener that is gone accepts nobody and lets those who are there finish."""
        self.configure()
        _, descriptor = self.listening()
        self.worker.adopt_socket(TCP.address, 0, descriptor)
        StreamFront.made[0].open = 1
        self.configure(replace(MODEL, tcp=()))
        self.assertFalse(is_open(descriptor))
        self.assertTrue(StreamFront.made[0].is_draining)
        self.assertEqual(self.worker.open, 1)

    def test_changed_routes(self) -> None:
        """New routes are in force for the next request; no listener is touched."""
        self.configure()
        front = HttpFront.made[0]
        before = front.router
        self.configure(replace(MODEL, sites={"*": Site("*", ("*",), (Route("/x/", "web"),))}))
        self.assertIsNot(front.router, before)
        self.assertEqual(len(HttpFront.made), 1)
        self.assertFalse(front.is_draining)

    def test_maximum_is_divided(self) -> None:
        """A listener's maximum holds for the machine: each worker takes its share, rounded up."""
        self.configure(slots=4)
        self.assertEqual(self.worker.places[HTTP.address].max_connections, 251)
        self.configure(slots=2)
        self.assertEqual(self.worker.places[HTTP.address].max_connections, 501)

    def test_access_log_changes(self) -> None:
        """Switching the access log on, elsewhere and off reaches every front end."""
        first, second = self.file("one.log"), self.file("two.log")
        self.configure()
        for file in (first, second):
            self.configure(replace(MODEL, logs=Logs(AccessLog(file))))
            self.assertEqual([front.access_log.file for front in self.worker._fronts()], [file, file])
            self.assertTrue(os.path.exists(file))
        self.configure()
        self.assertEqual([front.access_log for front in self.worker._fronts()], [None, None])


class ApplyTests(Base):
    def test_touches_its_pool_only(self) -> None:
        """A weight change reaches its pool, and no other pool, route or listener hears of it."""
        self.configure()
        router = HttpFront.made[0].router
        updated: list[str] = []
        update = service.Pool.update
        self.patch(service.Pool, "update", lambda pool, spec: (updated.append(pool.name), update(pool, spec))[1])
        self.worker.apply(SetWeight("web", A, 5), 2)
        self.assertEqual(updated, ["web"])
        self.assertEqual(self.worker.revision, 2)
        self.assertEqual([s.weight for s in self.worker.pools["web"].servers], [5, 1])
        self.assertIs(HttpFront.made[0].router, router)
        self.assertEqual(len(HttpFront.made) + len(StreamFront.made), 2)

    def test_refused(self) -> None:
        """A change that does not fit leaves everything as it was, the revision too."""
        self.configure()
        self.assertRaises(ChangeRefused, self.worker.apply, Batch((SetWeight("web", A, 5), SetWeight("web", C, 5))), 2)
        self.assertEqual(self.worker.revision, 1)
        self.assertEqual([s.weight for s in self.worker.pools["web"].servers], [1, 1])

    def test_batch(self) -> None:
        self.configure()
        self.worker.apply(Batch((AddServer("web", Server(Address("127.0.0.1:9003"))), SetState("web", A, AdminState.DRAIN))), 2)
        web = self.worker.pools["web"]
        self.assertEqual(len(web.servers), 3)
        self.assertEqual(web.servers[0].state, AdminState.DRAIN)

    def test_remove(self) -> None:
        """Removing a server lets its sessions finish; removing it now cuts them."""
        self.configure()
        (one, cut_one), (two, cut_two) = self.session(), self.session()
        self.assertNotEqual(one.server, two.server)
        self.worker.apply(RemoveServer("web", Address(one.server.address)), 2)
        self.worker.apply(RemoveServer("web", Address(two.server.address), now=True), 3)
        self.assertEqual(cut_one, [])
        self.assertEqual([type(e).__name__ for e in cut_two], ["Drained"])

    def test_removed_now_is_removed_first(self) -> None:
        """Places that come free while a removed server's sessions are cut go to nobody: those who wait are told that none is left."""
        self.configure(seen=[Resolved("pg", C, ("127.0.0.1",))])
        pool = self.worker.pools["pg"]
        lease, _ = self.session("pg")
        lease.on_cut(lambda error: lease.release(Outcome.NEUTRAL))
        answers: list[Any] = []
        pool.acquire(0, frozenset(), answers.append)
        self.worker.apply(RemoveServer("pg", C, now=True), 2)
        self.assertEqual(([type(a).__name__ for a in answers], lease.server.active), (["NoServer"], 0))

    def test_added_and_removed_in_one_batch(self) -> None:
        self.configure()
        new = Address("127.0.0.1:9003")
        self.worker.apply(Batch((AddServer("web", Server(new)), RemoveServer("web", new, now=True))), 2)
        self.assertEqual(len(self.worker.pools["web"].servers), 2)

    def test_maintenance_then_removed(self) -> None:
        """A server that is taken out while its maintenance runs does not keep its sessions beyond `drain_tcp`."""
        self.configure(replace(MODEL, timeouts=Timeouts(drain_tcp_s=5)))
        lease, cut = self.session()
        address = Address(lease.server.address)
        self.worker.apply(SetState("web", address, AdminState.MAINT), 2)
        self.pass_time(1)
        self.worker.apply(RemoveServer("web", address), 3)
        self.assertEqual(cut, [])
        self.pass_time(4.1)
        self.assertEqual(len(cut), 1)
        self.worker.apply(SetWeight("web", B if address == A else A, 2), 4)
        self.assertEqual(len(self.worker._cuts), 0, "nothing is remembered of it")

    def test_maintenance_cuts_at_the_deadline(self) -> None:
        """Sessions on a server in maintenance have `drain_tcp` to finish; coming back in time spares them."""
        self.configure(replace(MODEL, timeouts=Timeouts(drain_tcp_s=5)))
        (one, cut_one), (two, cut_two) = self.session(), self.session()
        for lease, revision in ((one, 2), (two, 3)):
            self.worker.apply(SetState("web", Address(lease.server.address), AdminState.MAINT), revision)
        self.pass_time(4)
        self.worker.apply(SetState("web", Address(two.server.address), AdminState.READY), 4)
        self.assertEqual(cut_one, [])
        self.pass_time(2)
        self.assertEqual((len(cut_one), len(cut_two)), (1, 0))


class SocketTests(Base):
    def test_lend_and_return(self) -> None:
        """A socket that is lent is accepted on until it is given back; the supervisor's own stays open."""
        self.configure()
        sock, descriptor = self.listening()
        self.worker.adopt_socket(HTTP.address, 3, descriptor)
        self.assertEqual(len(self.reactor.getReaders()), 1)
        self.worker.return_socket(HTTP.address, 3)
        self.worker.return_socket(HTTP.address, 3)
        self.worker.return_socket("127.0.0.1:1", 0)
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertFalse(is_open(descriptor))
        socket.create_connection(sock.getsockname()).close()

    def test_unknown_listener(self) -> None:
        """A socket for an address we do not serve is refused and does not leak."""
        self.configure()
        _, descriptor = self.listening()
        error = self.assertRaises(LookupError, self.worker.adopt_socket, "127.0.0.1:1", 0, descriptor)
        self.assertIn(HTTP.address, str(error))
        self.assertFalse(is_open(descriptor))


class TimeTests(Base):
    def test_P1_a_worker_that_cannot_keep_up_refuses_some_and_takes_everybody_again_afterwards(self) -> None:
        """What requests wait decides; every HTTP listener is told the share to refuse."""
        self.configure()
        StillPulse.waited = 2.0
        self.pass_time(0.5)
        self.assertGreater(HttpFront.made[0].share, 0.2)
        StillPulse.waited = 0.01
        self.pass_time(6)
        self.assertEqual(HttpFront.made[0].share, 0.0)

    def test_heartbeat(self) -> None:
        """The supervisor hears of us once a second: revision, connections, requests, and how late the loop runs."""
        self.configure(revision=4)
        HttpFront.made[0].open = 3
        self.worker.metrics.http("*", "web").record("a", 200, 0.1)
        self.pass_time(3.1)
        self.assertEqual(len(self.reports.heartbeats), 3)
        revision, connections, requests, lag = self.reports.heartbeats[-1]
        self.assertEqual((revision, connections, requests), (4, 3, 1))
        self.assertLess(lag, 0.02)
        self.reactor.advance(0.8)
        self.pass_time(1)
        self.assertGreater(self.reports.heartbeats[-1][3], 0.7)

    def test_statistics(self) -> None:
        """Totals arrive with the heartbeat and when asked for."""
        self.configure()
        lease, _ = self.session()
        self.worker.collect()
        self.assertIn(["web", lease.server.address, 1], self.reports.totals[-1]["gauges"]["servers"])
        self.pass_time(1.1)
        self.assertEqual(len(self.reports.totals), 2)

    def test_failures_within_100_ms(self) -> None:
        """A failing server is known to the supervisor within 100 ms, summed over what happened since."""
        self.configure()
        self.pass_time(1.05)
        leases = [self.session()[0] for _ in range(4)]
        for lease in leases:
            lease.release(Outcome.FAILED)
        self.reports.rows.clear()
        self.pass_time(0.11)
        self.assertEqual(sorted(self.reports.rows), [["web", A, 2, 2], ["web", B, 2, 2]])

    def test_deadlines_are_kept(self) -> None:
        """The wheel runs: a queued request is refused when its time in the queue is over."""
        self.configure(seen=[Resolved("pg", C, ("127.0.0.1",))])
        answers: list[Any] = []
        pool = self.worker.pools["pg"]
        lease = pool.acquire(0, frozenset(), answers.append)
        pool.acquire(0, frozenset(), answers.append)
        self.assertEqual(pool.waiting, 1)
        self.pass_time(2.3)
        self.assertEqual([type(a).__name__ for a in answers], ["QueueTimeout"])
        assert isinstance(lease, Lease)

    def test_queue_looks_again(self) -> None:
        """Who waits for a lease is asked for again every 20 ms, and nobody is when nobody waits."""
        checks: list[float] = []
        self.patch(service.Pool, "re_check", lambda pool, now: checks.append(now))
        self.configure(seen=[Resolved("pg", C, ("127.0.0.1",))])
        pool = self.worker.pools["pg"]
        lease = pool.acquire(0, frozenset(), lambda _: None)
        self.pass_time(0.5)
        self.assertEqual(checks, [])
        pool.acquire(0, frozenset(), lambda _: None)
        self.pass_time(0.5)
        self.assertGreater(len(checks), 20)
        assert isinstance(lease, Lease)
        lease.release(Outcome.OK)
        count = len(checks)
        self.pass_time(0.5)
        self.assertLessEqual(len(checks), count + 1)

    def test_a_broken_task_stops_no_clock(self) -> None:
        """An error in one periodic task is logged; deadlines and heartbeats go on."""
        self.configure()

        def broken() -> None:
            raise ZeroDivisionError

        self.patch(self.worker, "_flush", broken)
        self.pass_time(1.1)
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))
        self.assertEqual(len(self.reports.heartbeats), 1)


class DrainTests(Base):
    def test_nothing_open(self) -> None:
        """An idle worker leaves at once, and says its last numbers."""
        self.configure()
        _, descriptor = self.listening()
        self.worker.adopt_socket(HTTP.address, 0, descriptor)
        self.worker.drain()
        self.assertFalse(is_open(descriptor))
        self.assertTrue(all(front.is_draining for front in self.worker._fronts()))
        self.pass_time(0.2)
        self.assertEqual(self.ended, 1)
        self.assertTrue(self.reports.totals)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_waits_for_the_last(self) -> None:
        """Open connections are waited for."""
        self.configure()
        HttpFront.made[0].open = 1
        self.worker.drain()
        self.pass_time(20)
        self.assertEqual(self.ended, 0)
        HttpFront.made[0].open = 0
        self.pass_time(0.2)
        self.assertEqual(self.ended, 1)

    def test_lc_11_limits(self) -> None:
        """LC-11: HTTP has `drain_http`, TCP sessions `drain_tcp`; then they are cut and the worker ends."""
        self.configure(replace(MODEL, timeouts=Timeouts(drain_http_s=2, drain_tcp_s=4)))
        (http,), (stream,) = HttpFront.made, StreamFront.made
        http.open = stream.open = 1
        self.worker.drain()
        self.pass_time(2.1)
        self.assertEqual((http.was_cut, stream.was_cut), (True, False))
        self.pass_time(2)
        self.assertTrue(stream.was_cut)
        self.assertEqual(self.ended, 1)

    def test_shorter_limit(self) -> None:
        """LC-04: when the supervisor vanishes during a drain, the rest has 5 s."""
        self.configure()
        HttpFront.made[0].open = 1
        self.worker.drain()
        self.pass_time(1)
        self.worker.drain(service.ORPHAN_LIMIT_S)
        self.pass_time(5)
        self.assertTrue(HttpFront.made[0].was_cut)
        self.assertEqual(self.ended, 1)

    def test_no_new_sockets(self) -> None:
        """A worker that drains takes no socket any more."""
        self.configure()
        HttpFront.made[0].open = 1
        self.worker.drain()
        _, descriptor = self.listening()
        self.assertRaises(LookupError, self.worker.adopt_socket, HTTP.address, 0, descriptor)

    def test_never_configured(self) -> None:
        """A worker that lost its supervisor before it was configured leaves too."""
        self.worker.drain(1.0)
        self.pass_time(0.2)
        self.assertEqual(self.ended, 1)

    def test_last_lines_are_written(self) -> None:
        """What was served last is in the access log."""
        file = self.file("access.log")
        self.configure(replace(MODEL, logs=Logs(AccessLog(file))))
        log = HttpFront.made[0].access_log
        log.log_tcp("192.0.2.1", "l", "pg", C, 1, 2, 0.5, Cause.OK, None, b"id")
        self.worker.drain()
        self.pass_time(0.2)
        with open(file) as f:
            self.assertIn("192.0.2.1", f.read())
