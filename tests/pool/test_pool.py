"""A pool under requests, changes and observations: nobody gets what is not there, nobody is forgotten.

It has over 500 lines: one case for each rule of a pool.
"""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, AdminState, Eject, Endpoint, Health, Queue
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.errors import Drained, NoServer, ProxyError, QueueFull, QueueTimeout, Refusal
from twistedproxy.ipc.scoreboard import LeaseBoard, Scoreboard
from twistedproxy.pool.pool import Lease, Pool
from twistedproxy.pool.queue import Queued
from twistedproxy.pool.server import Outcome, Server

NONE: frozenset[Server] = frozenset()
A, B, C = (f"10.0.0.{n}:80" for n in (1, 2, 3))


def spec_of(*servers: ServerSpec | str, **more: object) -> PoolSpec:
    given = tuple(ServerSpec(Address(s)) if isinstance(s, str) else s for s in servers)
    return PoolSpec("web", given, **more)  # type: ignore[arg-type]


def server_spec(address: str, **more: object) -> ServerSpec:
    return ServerSpec(Address(address), **more)  # type: ignore[arg-type]


class Rig:
    """A pool of one worker with a clock in our hand."""

    def __init__(self, spec: PoolSpec, board: LeaseBoard | None = None, seed: int = 1) -> None:
        self.now = 100.0
        self.wheel = Wheel(lambda: self.now)
        self.told: list[Lease | Refusal] = []
        self.pool = Pool(spec, seconds=lambda: self.now, wheel=self.wheel, random=Random(seed), board=board)

    def ask(self, *tried: Server, prefer: Server | None = None, key: int = 0) -> Lease | Refusal | Queued:
        return self.pool.acquire(key, frozenset(tried), self.told.append, prefer)

    def lease(self, *tried: Server, prefer: Server | None = None) -> Lease:
        lease = self.ask(*tried, prefer=prefer)
        assert isinstance(lease, Lease), lease
        return lease

    def spread(self, times: int = 100) -> dict[str, int]:
        """How `times` requests that end at once are shared out."""
        counted: Counter[str] = Counter()
        for _ in range(times):
            lease = self.lease()
            counted[lease.server.address] += 1
            lease.release(Outcome.OK)
        return dict(counted)

    def server(self, address: str) -> Server:
        server = self.pool.server(address)
        assert server is not None
        return server

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 0.02, end)
            self.wheel.advance(self.now)
            self.pool.re_check(self.now)


class ServingTests(SynchronousTestCase):
    def test_counts(self) -> None:
        """Leases, failures and what runs now are counted per server."""
        rig = Rig(spec_of(A))
        ok, failed, running = rig.lease(), rig.lease(), rig.lease()
        ok.release(Outcome.OK)
        failed.release(Outcome.FAILED)
        self.assertEqual(list(rig.pool.statistics()), [(A, 1, 3, 1)])
        running.release(Outcome.NEUTRAL)
        self.assertEqual(list(rig.pool.statistics()), [(A, 0, 3, 1)])

    def test_second_release_is_an_error(self) -> None:
        """A bug that gives a place back twice shows at once instead of overloading the server."""
        rig = Rig(spec_of(A))
        lease = rig.lease()
        lease.release(Outcome.OK)
        self.assertRaises(AssertionError, lease.release, Outcome.OK)
        self.assertRaises(AssertionError, lease.on_cut, print)
        self.assertEqual(rig.server(A).active, 0)

    def test_weights_change_live(self) -> None:
        """3:1 becomes 1:1 between two requests, exactly."""
        rig = Rig(spec_of(server_spec(A, weight=3), B))
        self.assertEqual(rig.spread(), {A: 75, B: 25})
        rig.pool.update(spec_of(server_spec(A, weight=3, weight_set=1), B))
        self.assertEqual(rig.spread(), {A: 50, B: 50})

    def test_balance_changes_live(self) -> None:
        rig = Rig(spec_of(A, B, C))
        rig.pool.update(spec_of(A, B, C, balance="source_ip"))
        self.assertEqual(len(rig.spread()), 1)

    def test_tried_are_skipped(self) -> None:
        """A retry goes to a server that was not tried; when there is none it fails at once."""
        rig = Rig(spec_of(A, B))
        first = rig.lease().server
        second = rig.lease(first).server
        self.assertIsNot(first, second)
        refusal = rig.ask(first, second)
        self.assertIsInstance(refusal, NoServer)
        self.assertIn("2 tried", str(refusal))

    def test_least_time_learns(self) -> None:
        """The latency given to `release` decides, and only where it is asked for."""
        rig = Rig(spec_of(A, B, balance="least_time"))
        for _ in range(2):
            lease = rig.lease()
            lease.release(Outcome.OK, 0.5 if lease.server.address == A else 0.001)
        self.assertEqual(rig.spread(20), {B: 20})

    def test_everything_down(self) -> None:
        """All down, drained, weightless or absent: refused at once, with a time to come again."""
        for spec in (spec_of(), spec_of(server_spec(A, weight=0)), spec_of(server_spec(A, state_set=AdminState.MAINT))):
            refusal = Rig(spec).ask()
            self.assertIsInstance(refusal, NoServer)
            self.assertGreaterEqual(refusal.retry_after_s, 1)  # type: ignore[union-attr]


class StateTests(SynchronousTestCase):
    def test_health(self) -> None:
        """Down gets nothing; unknown counts as up."""
        rig = Rig(spec_of(A, B))
        rig.pool.observe_health(A, Health.DOWN)
        self.assertEqual(rig.spread(10), {B: 10})
        rig.pool.observe_health(A, Health.UNKNOWN)
        self.assertEqual(rig.spread(10), {A: 5, B: 5})
        rig.pool.observe_health("10.9.9.9:80", Health.DOWN)

    def test_backups(self) -> None:
        """Backups serve while no primary is available and step back after."""
        rig = Rig(spec_of(A, server_spec(B, backup=True)))
        self.assertEqual(rig.spread(10), {A: 10})
        rig.pool.observe_health(A, Health.DOWN)
        self.assertEqual(rig.spread(10), {B: 10})
        rig.pool.observe_health(A, Health.UP)
        self.assertEqual(rig.spread(10), {A: 10})

    def test_drain_and_maint(self) -> None:
        """A draining server gets only clients that were there before, one in maintenance nobody."""
        rig = Rig(spec_of(A, B))
        server = rig.server(A)
        rig.pool.update(spec_of(server_spec(A, state_set=AdminState.DRAIN), B))
        self.assertEqual(rig.spread(10), {B: 10})
        self.assertIs(rig.lease(prefer=server).server, server)
        self.assertIsNot(rig.lease(server, prefer=server).server, server)
        rig.pool.update(spec_of(server_spec(A, state_set=AdminState.MAINT), B))
        self.assertEqual(rig.lease(prefer=server).server.address, B)

    def test_sticky_server_that_is_full_down_or_gone(self) -> None:
        """Stickiness is a wish: the request goes elsewhere rather than fail."""
        rig = Rig(spec_of(server_spec(A, max_connections=1), B))
        server = rig.server(A)
        held = rig.lease(prefer=server)
        self.assertEqual(rig.lease(prefer=server).server.address, B)
        held.release(Outcome.OK)
        rig.pool.observe_health(A, Health.DOWN)
        self.assertEqual(rig.lease(prefer=server).server.address, B)
        rig.pool.update(spec_of(B))
        self.assertEqual(rig.lease(prefer=server).server.address, B)

    def test_ejection_ends_by_itself(self) -> None:
        """Ejected until a time: nothing before it, its share after it, without another word; 0 takes it back."""
        rig = Rig(spec_of(A, B))
        rig.pool.eject(A, 130.0)
        self.assertEqual(rig.spread(10), {B: 10})
        rig.now = 130.0
        self.assertEqual(rig.spread(10), {A: 5, B: 5})
        rig.pool.eject(A, 160.0)
        rig.pool.eject(A, 0.0)
        self.assertEqual(rig.spread(10), {A: 5, B: 5})

    def test_slow_start(self) -> None:
        """A server that recovers gets its share step by step; at the start of the proxy nobody ramps."""
        rig = Rig(spec_of(A, B, slow_start_s=10.0))
        self.assertEqual(rig.spread(), {A: 50, B: 50})
        rig.pool.observe_health(A, Health.DOWN)
        rig.spread(10)
        rig.pool.observe_health(A, Health.UP)
        shares = []
        for _ in range(3):
            shares.append(rig.spread(420).get(A, 0))
            rig.now += 5.0
        self.assertApproximates(shares[0], 20, 4)
        self.assertApproximates(shares[1], 140, 4)
        self.assertEqual(shares[2], 210)

    def test_new_server_ramps(self) -> None:
        rig = Rig(spec_of(A, slow_start_s=10.0))
        rig.pool.update(spec_of(A, B, slow_start_s=10.0))
        self.assertLess(rig.spread()[B], 10)
        rig.now += 10.0
        self.assertEqual(rig.spread(), {A: 50, B: 50})

    def test_host_names(self) -> None:
        """A server with a host name serves once it is resolved."""
        rig = Rig(spec_of("db.example:80"))
        self.assertIn("1 unresolved", str(rig.ask()))
        there = Endpoint(socket.AF_INET, "10.0.0.9", 80)
        rig.pool.resolve("db.example:80", [there])
        self.assertEqual(rig.lease().server.endpoints, (there,))


class MembershipTests(SynchronousTestCase):
    def test_open_lease_outlives_its_server(self) -> None:
        """Removing a server returns it; what is open there ends in peace and is still counted."""
        rig = Rig(spec_of(A, B))
        lease = rig.lease(rig.server(B))
        kept = rig.server(B)
        self.assertEqual(rig.pool.update(spec_of(B)), [lease.server])
        self.assertIs(rig.server(B), kept)
        self.assertEqual(rig.spread(10), {B: 10})
        self.assertEqual([row[:2] for row in rig.pool.statistics()], [(B, 0), (A, 1)])
        lease.release(Outcome.OK)
        self.assertEqual([row[:2] for row in rig.pool.statistics()], [(B, 0)])

    def test_reloads_keep_everybodys_turn(self) -> None:
        """Reloads every seven requests, with the same pool or with another weight of a neighbour, leave 3:1 as it is."""
        for name in ("round_robin", "least_conn"):
            for neighbour in ((1, 1), (1, 2)):
                with self.subTest(balance=name, neighbour=neighbour):
                    spread: Counter[str] = Counter()
                    specs = [
                        spec_of(server_spec(A, weight=3), server_spec(B), server_spec(C, weight=weight), balance=name)
                        for weight in neighbour
                    ]
                    rig = Rig(specs[0])
                    for number in range(600):
                        if number % 7 == 0:
                            rig.pool.update(specs[number % 2])
                        lease = rig.lease()
                        spread[lease.server.address] += 1
                        lease.release(Outcome.OK)
                    self.assertLess(abs(spread[A] - 3 * spread[B]), 12, spread)

    def test_a_reload_forgets_no_open_request(self) -> None:
        """least_conn goes on from what is open, also when a neighbour's weight changed."""
        rig = Rig(spec_of(*(server_spec(each, weight=10) for each in (A, B, C)), balance="least_conn"))
        held = [rig.lease() for _ in range(6)]
        for lease in held:
            if lease.server.address == B:
                lease.release(Outcome.OK)
        rig.pool.update(spec_of(*(server_spec(each, weight=weight) for each, weight in ((A, 10), (B, 10), (C, 11))), balance="least_conn"))
        self.assertEqual([rig.lease().server.address for _ in range(3)], [B, B, C])

    def test_back_again_with_open_leases(self) -> None:
        """Removing and adding a server does not let it exceed its limit."""
        rig = Rig(spec_of(server_spec(A, max_connections=1)))
        lease = rig.lease()
        rig.pool.observe_health(A, Health.DOWN)
        rig.pool.update(spec_of())
        rig.pool.update(spec_of(server_spec(A, max_connections=1)))
        self.assertIs(rig.server(A), lease.server)
        self.assertIsInstance(rig.ask(), Queued)
        lease.release(Outcome.OK)
        self.assertEqual(len(rig.told), 1)

    def test_cut(self) -> None:
        """Removed now: every open session of that server is told, and nobody who has ended already."""
        rig = Rig(spec_of(A))
        told: list[ProxyError] = []
        one, two, silent = rig.lease(), rig.lease(), rig.lease()
        for lease in (one, two):
            lease.on_cut(told.append)
        one.release(Outcome.OK)
        error = Drained("removed")
        rig.server(A).cut(error)
        self.assertEqual(told, [error])
        two.release(Outcome.NEUTRAL)
        silent.release(Outcome.NEUTRAL)
        self.assertEqual(rig.server(A).active, 0)


class WaitingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = Rig(spec_of(server_spec(A, max_connections=1), server_spec(B, max_connections=1), queue=Queue(3, 2.0)))
        self.held = [self.rig.lease(), self.rig.lease()]

    def test_full_then_wait_then_served_in_order(self) -> None:
        """With all servers full a request waits; places that come free go to who came first."""
        order: list[str] = []
        for name in "xyz":
            self.rig.pool.acquire(0, NONE, lambda lease, name=name: order.append(name))  # type: ignore[misc]
        self.assertEqual(self.rig.pool.waiting, 3)
        self.held[1].release(Outcome.OK)
        self.held[0].release(Outcome.OK)
        self.assertEqual((order, self.rig.pool.waiting), (["x", "y"], 1))

    def test_queue_full(self) -> None:
        """The fourth in a line of three is turned away at once."""
        for _ in range(3):
            self.assertIsInstance(self.rig.ask(), Queued)
        refusal = self.rig.ask()
        self.assertIsInstance(refusal, QueueFull)
        self.assertEqual((refusal.status, refusal.retry_after_s), (503, 1))  # type: ignore[union-attr]

    def test_time_out(self) -> None:
        self.rig.ask()
        self.rig.pass_time(1.9)
        self.assertEqual(self.rig.told, [])
        self.rig.pass_time(0.2)
        self.assertIsInstance(self.rig.told[0], QueueTimeout)

    def test_client_leaves(self) -> None:
        """A place that comes free is not given to a client that is gone."""
        gone, here = self.rig.ask(), self.rig.ask()
        assert isinstance(gone, Queued) and isinstance(here, Queued)
        gone.cancel()
        self.held[0].release(Outcome.OK)
        self.assertEqual((len(self.rig.told), here.is_waiting), (1, False))

    def test_retry_waits_for_another_server(self) -> None:
        """Who has tried A waits for B; the next in line may take A meanwhile."""
        a, b = self.held if self.held[0].server.address == A else reversed(self.held)
        told: list[Lease | Refusal] = []
        self.rig.pool.acquire(0, frozenset({a.server}), told.append)
        self.rig.ask()
        a.release(Outcome.OK)
        self.assertEqual((len(told), [t.server.address for t in self.rig.told if isinstance(t, Lease)]), (0, [A]))
        b.release(Outcome.OK)
        self.assertEqual([t.server.address for t in told if isinstance(t, Lease)], [B])

    def test_all_tried_does_not_wait(self) -> None:
        """A request that has tried everybody fails at once, also while others wait."""
        self.rig.ask()
        self.assertIsInstance(self.rig.ask(*self.rig.pool.servers), NoServer)

    def test_more_room_by_a_change(self) -> None:
        """Raising a limit or adding a server serves those who wait, at once."""
        for _ in range(3):
            self.rig.ask()
        self.rig.pool.update(replace(self.rig.pool.spec, servers=(server_spec(A, max_connections=2), *self.rig.pool.spec.servers[1:])))
        self.assertEqual(len(self.rig.told), 1)
        self.rig.pool.update(replace(self.rig.pool.spec, servers=(*self.rig.pool.spec.servers, server_spec(C))))
        self.assertEqual((len(self.rig.told), self.rig.pool.waiting), (3, 0))

    def test_less_room_by_a_change(self) -> None:
        """A limit lowered under the open leases holds: places above it are not handed on when they come free."""
        rig = Rig(spec_of(server_spec(A, max_connections=2)))
        held = [rig.lease(), rig.lease()]
        rig.ask()
        rig.pool.update(spec_of(server_spec(A, max_connections=1)))
        held[0].release(Outcome.OK)
        self.assertEqual(rig.told, [])
        held[1].release(Outcome.OK)
        self.assertEqual(len(rig.told), 1)

    def test_drained_server_hands_on_nothing(self) -> None:
        """A place that comes free at a server being drained is not given to who waits for the others."""
        a, b = self.held if self.held[0].server.address == A else reversed(self.held)
        self.rig.ask()
        servers = self.rig.pool.spec.servers
        self.rig.pool.update(replace(self.rig.pool.spec, servers=(replace(servers[0], state_set=AdminState.DRAIN), servers[1])))
        a.release(Outcome.OK)
        self.assertEqual(self.rig.told, [])
        b.release(Outcome.OK)
        self.assertEqual(len(self.rig.told), 1)

    def test_served_client_sends_another_away(self) -> None:
        """A request that is served may cancel others in line in the same breath: they are passed over, nobody stumbles."""
        for by_change in (False, True):
            self.setUp()
            order: list[str] = []
            others: list[Queued] = []

            def first(answer: Lease | Refusal, others: list[Queued] = others, order: list[str] = order) -> None:
                order.append("first")
                others[0].cancel()

            self.rig.pool.acquire(0, NONE, first)
            for name in ("second", "third"):
                queued = self.rig.pool.acquire(0, NONE, lambda answer, name=name, order=order: order.append(name))  # type: ignore[misc]
                assert isinstance(queued, Queued)
                others.append(queued)
            if by_change:
                self.rig.pool.update(replace(self.rig.pool.spec, servers=(*self.rig.pool.spec.servers, server_spec(C))))
            else:
                for lease in self.held:
                    lease.release(Outcome.OK)
            self.assertEqual(order, ["first", "third"])

    def test_served_client_frees_another_place(self) -> None:
        """A request that is served by a change and ends another one thereby lets the next in line in at once."""
        a, b = self.held if self.held[0].server.address == A else reversed(self.held)
        told: list[Lease | Refusal] = []
        self.rig.pool.acquire(0, frozenset({a.server}), told.append)
        self.rig.pool.acquire(0, NONE, lambda answer: b.release(Outcome.OK))
        servers = self.rig.pool.spec.servers
        self.rig.pool.update(replace(self.rig.pool.spec, servers=(replace(servers[0], max_connections=2), servers[1])))
        self.assertEqual([t.server.address for t in told if isinstance(t, Lease)], [B])

    def test_served_client_stumbles(self) -> None:
        """A place that was handed to broken code is free again, whether or not that code remembers to give it back later."""
        rig = Rig(spec_of(server_spec(A, max_connections=1)))
        held = rig.lease()
        kept: list[Lease] = []

        def broken(answer: Lease | Refusal) -> None:
            assert isinstance(answer, Lease)
            kept.append(answer)
            raise RuntimeError("broken request")

        rig.pool.acquire(0, NONE, broken)
        rig.ask()
        held.release(Outcome.OK)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        (lease,) = rig.told
        assert isinstance(lease, Lease)
        self.assertEqual((rig.server(A).active, kept[0].is_held, lease.is_held), (1, False, True))
        kept[0].release(Outcome.FAILED)
        self.assertEqual((rig.server(A).active, rig.server(A).failures), (1, 0))

    def test_pool_goes_away_under_the_waiting(self) -> None:
        """When the last server is taken away those who wait are told at once, not after the time-out."""
        self.rig.ask()
        self.rig.pool.observe_health(A, Health.DOWN)
        self.assertEqual(self.rig.told, [])
        self.rig.pool.observe_health(B, Health.DOWN)
        self.assertIsInstance(self.rig.told[0], NoServer)

    def test_nobody_overtakes(self) -> None:
        """A newcomer does not get the place that came free elsewhere before who waits for it."""
        scoreboard = Scoreboard.create(4, 2)
        self.addCleanup(scoreboard.close)
        ours, theirs = scoreboard.board(scoreboard.take_slot()), scoreboard.board(scoreboard.take_slot())
        rig = Rig(spec_of(server_spec(A, max_connections=1)), ours)
        rig.pool.assign_row(A, 0)
        theirs.set(0, 1)
        order: list[str] = []
        rig.pool.acquire(0, NONE, lambda lease: order.append("first"))
        theirs.set(0, 0)
        self.assertIsInstance(rig.pool.acquire(0, NONE, lambda lease: order.append("second")), Queued)
        self.assertEqual(order, ["first"])

    def test_waiters_that_release_at_once(self) -> None:
        """A thousand waiting clients that are all gone by the time they are served do not overflow the stack."""
        rig = Rig(spec_of(server_spec(A, max_connections=1), queue=Queue(5000, 2.0)))
        held = rig.lease()
        served = []

        def waiter(answer: Lease | Refusal) -> None:
            assert isinstance(answer, Lease)
            served.append(answer)
            answer.release(Outcome.NEUTRAL)

        for _ in range(3000):
            rig.pool.acquire(0, NONE, waiter)
        held.release(Outcome.OK)
        self.assertEqual((len(served), rig.server(A).active, rig.pool.waiting), (3000, 0, 0))


class SharedTests(SynchronousTestCase):
    """Two workers of one machine."""

    def setUp(self) -> None:
        scoreboard = Scoreboard.create(8, 4)
        self.addCleanup(scoreboard.close)
        self.scoreboard = scoreboard
        self.slots = [scoreboard.take_slot(), scoreboard.take_slot()]

    def rigs(self, spec: PoolSpec) -> list[Rig]:
        rigs = [Rig(spec, self.scoreboard.board(slot), seed=slot) for slot in self.slots]
        for rig in rigs:
            for row, server in enumerate(spec.servers):
                rig.pool.assign_row(server.address, row)
            rig.pool.assign_row("", 7)
        return rigs

    def test_limit_is_of_the_machine(self) -> None:
        """`max_connections = 3` is three over both workers; a place one gives back serves who waits in the other by the next tick."""
        one, two = self.rigs(spec_of(server_spec(A, max_connections=3)))
        held = [one.lease(), two.lease(), one.lease()]
        self.assertIsInstance(two.ask(), Queued)
        held[0].release(Outcome.OK)
        self.assertEqual(two.told, [])
        two.pool.re_check(two.now)
        self.assertEqual(len(two.told), 1)
        self.assertEqual(self.scoreboard.total("leases", 0), 3)

    def test_dead_workers_places_come_free(self) -> None:
        self.scoreboard.use_row(7)
        one, two = self.rigs(spec_of(server_spec(A, max_connections=1)))
        one.lease()
        two.ask()
        self.scoreboard.free_slot(self.slots[0])
        two.pool.re_check(two.now)
        self.assertEqual(len(two.told), 1)

    def test_queue_size_is_of_the_machine(self) -> None:
        one, two = self.rigs(spec_of(server_spec(A, max_connections=1), queue=Queue(2, 2.0)))
        one.lease()
        self.assertEqual([type(rig.ask()) for rig in (one, two, one, two)], [Queued, Queued, QueueFull, QueueFull])

    def test_least_conn_sees_all(self) -> None:
        """Long sessions that came in through two workers are spread over the servers as if through one."""
        rigs = self.rigs(spec_of(A, B, C, balance="least_conn"))
        for i in range(60):
            rigs[i % 7 % 2].lease()
        self.assertEqual([self.scoreboard.total("leases", row) for row in range(3)], [20, 20, 20])

    def test_hash_bound_sees_all(self) -> None:
        """The bound of consistent hashing holds over both workers together."""
        rigs = self.rigs(spec_of(A, B, balance="hash:path"))
        for i in range(100):
            rigs[i % 2].lease()
        self.assertEqual(sorted(self.scoreboard.total("leases", row) for row in range(2)), [37, 63])

    def test_retry_budget_is_of_the_machine(self) -> None:
        one, two = self.rigs(spec_of(A))
        for _ in range(20):
            one.lease()
        self.assertEqual([rig.pool.may_retry() for rig in (one, two, one, two, one)], [True, True, True, True, False])
        one.pool.retry_done()
        self.assertTrue(two.pool.may_retry())

    def test_rows_given_late(self) -> None:
        """Leases from before the row was known are counted once it is."""
        rig = Rig(spec_of(A), self.scoreboard.board(self.slots[0]))
        lease = rig.lease()
        rig.pool.assign_row(A, 3)
        rig.pool.assign_row("10.9.9.9:80", 4)
        self.assertEqual(self.scoreboard.total("leases", 3), 1)
        lease.release(Outcome.OK)
        self.assertEqual(self.scoreboard.total("leases", 3), 0)


class ReportTests(SynchronousTestCase):
    def test_failures_at_once_requests_once_a_second(self) -> None:
        """A failure is reported at the next call with the requests beside it; healthy servers' requests once a second."""
        rig = Rig(spec_of(A, B))
        self.assertEqual(rig.pool.take_failures(), [])
        rig.spread(20)
        rig.lease(rig.server(B)).release(Outcome.FAILED)
        rig.lease(rig.server(B)).release(Outcome.NEUTRAL)
        rig.lease(rig.server(B))
        self.assertEqual(rig.pool.take_failures(), [(A, 1, 11)])
        self.assertEqual(rig.pool.take_failures(), [])
        rig.now += 1.0
        self.assertEqual(rig.pool.take_failures(), [(B, 0, 10)])

    def test_not_wanted(self) -> None:
        """`eject = false`: nothing is reported."""
        rig = Rig(spec_of(A, eject=None))
        rig.lease().release(Outcome.FAILED)
        self.assertEqual(rig.pool.take_failures(), [])

    def test_default_reports(self) -> None:
        self.assertIsInstance(spec_of(A).eject, Eject)


class PoolMachine(RuleBasedStateMachine):
    """Anything may happen in any order in two workers that share a board."""

    def __init__(self) -> None:
        super().__init__()
        self.scoreboard = Scoreboard.create(8, 2)
        self.spec = spec_of(server_spec(A, max_connections=2), server_spec(B, max_connections=1), queue=Queue(4, 2.0))
        self.rigs = [Rig(self.spec, self.scoreboard.board(self.scoreboard.take_slot()), seed=i) for i in range(2)]
        self.held: list[list[Lease]] = [[], []]
        self.waiting: list[set[int]] = [set(), set()]
        self.places: dict[int, tuple[int, Queued]] = {}
        self.number = 0
        self.assign_rows()

    def assign_rows(self) -> None:
        for rig in self.rigs:
            rig.pool.assign_row("", 7)
            for server in rig.pool.servers:
                rig.pool.assign_row(server.address, (A, B, C).index(server.address))

    def teardown(self) -> None:
        for worker, rig in enumerate(self.rigs):
            while self.held[worker]:
                self.held[worker].pop().release(Outcome.OK)
            rig.pass_time(3.0)
            while self.held[worker]:
                self.held[worker].pop().release(Outcome.OK)
            assert not self.waiting[worker], "somebody was never answered"
            assert all(active == 0 for _, active, _, _ in rig.pool.statistics())
        assert [self.scoreboard.total(t, r) for t in ("leases", "queued") for r in range(8)] == [0] * 16
        self.scoreboard.close()

    @rule(worker=st.integers(0, 1), tried=st.sets(st.sampled_from([A, B, C])), prefer=st.sampled_from([None, A, B]), at_once=st.booleans())
    def acquire(self, worker: int, tried: set[str], prefer: str | None, at_once: bool) -> None:
        pool = self.rigs[worker].pool
        self.number += 1
        number = self.number
        skipped = frozenset(s for s in pool.servers if s.address in tried)

        def waiter(answer: Lease | Refusal) -> None:
            assert number in self.waiting[worker], "answered twice, or after leaving"
            self.waiting[worker].discard(number)
            if isinstance(answer, Lease):
                assert answer.server not in skipped
                if at_once:
                    answer.release(Outcome.NEUTRAL)
                else:
                    self.held[worker].append(answer)

        answer = pool.acquire(number, skipped, waiter, pool.server(prefer) if prefer else None)
        if isinstance(answer, Lease):
            assert answer.server not in skipped
            assert answer.server in pool.servers
            self.held[worker].append(answer)
        elif isinstance(answer, Queued):
            self.waiting[worker].add(number)
            self.places[number] = (worker, answer)

    @precondition(lambda self: any(self.held))
    @rule(worker=st.integers(0, 1), which=st.integers(0, 99), outcome=st.sampled_from(Outcome))
    def release(self, worker: int, which: int, outcome: Outcome) -> None:
        if self.held[worker]:
            self.held[worker].pop(which % len(self.held[worker])).release(outcome, 0.01)

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        number = sorted(self.places)[which % len(self.places)]
        worker, queued = self.places.pop(number)
        queued.cancel()
        self.waiting[worker].discard(number)

    @rule(
        present=st.sets(st.sampled_from([A, B, C])),
        weight=st.integers(0, 2),
        state=st.sampled_from(AdminState),
        limit=st.integers(1, 3),
        balance=st.sampled_from(["round_robin", "least_conn", "hash:path", "p2c"]),
    )
    def update(self, present: set[str], weight: int, state: AdminState, limit: int, balance: str) -> None:
        servers = [server_spec(a, weight=1 if a == A else weight, max_connections=limit, backup=a == C) for a in sorted(present)]
        if servers:
            servers[-1] = replace(servers[-1], state_set=state)
        self.spec = replace(self.spec, servers=tuple(servers), balance=balance)
        for rig in self.rigs:
            for left in rig.pool.update(self.spec):
                assert left.address not in present
        self.assign_rows()

    @rule(address=st.sampled_from([A, B, C]), health=st.sampled_from(Health))
    def observe(self, address: str, health: Health) -> None:
        for rig in self.rigs:
            rig.pool.observe_health(address, health)

    @rule(address=st.sampled_from([A, B, C]), seconds=st.sampled_from([0.0, 0.5, 5.0]))
    def eject(self, address: str, seconds: float) -> None:
        for rig in self.rigs:
            rig.pool.eject(address, rig.now + seconds if seconds else 0.0)

    @rule(seconds=st.sampled_from([0.02, 0.5, 3.0]))
    def pass_time(self, seconds: float) -> None:
        for rig in self.rigs:
            rig.pass_time(seconds)

    @invariant()
    def counts_agree(self) -> None:
        """What is held is what is counted, here and on the board; who waits is who is in line."""
        for worker, rig in enumerate(self.rigs):
            active = Counter(lease.server.address for lease in self.held[worker])
            counted = {address: active for address, active, _, _ in rig.pool.statistics() if active}
            assert counted == dict(active), (counted, active)
            assert rig.pool.waiting == len(self.waiting[worker])
        assert self.scoreboard.total("queued", 7) == sum(map(len, self.waiting))
        assert self.scoreboard.total("queued", 7) <= 4
        for row, address in enumerate((A, B, C)):
            both = sum(lease.server.address == address for held in self.held for lease in held)
            assert self.scoreboard.total("leases", row) == both

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        """After a tick, a client who would take any server waits only while every available one is full."""
        for rig in self.rigs:
            rig.pool.re_check(rig.now)
            free = [s for s in rig.pool.servers if s.is_available(rig.now) and self.scoreboard.total("leases", s.row) < s.limit]
            if any(not s.is_backup for s in free):
                mine = [q for w, q in self.places.values() if rig is self.rigs[w] and q.is_waiting and not q.tried]
                assert not mine, (free, mine)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
AnythingInAnyOrderTests = PoolMachine.TestCase
