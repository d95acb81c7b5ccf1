"""Every balancer: how it spreads, what it does when servers come and go, and that a copy is its own."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.pool.balancers import Picker, RoundRobinPicker, balancer, stable_hash
from twistedproxy.pool.server import Outcome, Server

NONE: frozenset[Server] = frozenset()
ALL = ("round_robin", "least_conn", "p2c", "random", "least_time", "source_ip", "hash:path")
KEYS = [stable_hash(b"/path/%d" % i) for i in range(10_000)]


def servers(*weights: float) -> list[tuple[Server, float]]:
    return [(Server(ServerSpec(Address(f"10.0.0.{i}:80")), 10_000), weight) for i, weight in enumerate(weights)]


def spread(picker: Picker, of: Sequence[tuple[Server, float]], times: int, tried: frozenset[Server] = NONE) -> list[float]:
    """Share of each server over `times` requests that are answered at once."""
    rng = Random(1)
    counted = Counter(picker.pick(KEYS[i % len(KEYS)], 0.0, rng, tried) for i in range(times))
    return [counted[s] / times for s, _ in of]


class AllBalancersTests(SynchronousTestCase):
    def test_shares_follow_weights(self) -> None:
        """Whatever the algorithm, idle servers get work in proportion to their weights."""
        tables = [(1, 1), (3, 1), (5, 1, 1), (1, 2, 3, 4), (1000, 500), (7,), (1.5, 0.5)]
        for balance in ALL:
            for weights in tables:
                of = servers(*weights)
                shares = spread(balancer(balance, Random(3)).prepare(of), of, 20_000)
                allowed = 0.001 if balance in ("round_robin", "least_conn", "least_time") else 0.02
                for share, weight in zip(shares, weights, strict=True):
                    self.assertApproximates(share, weight / sum(weights), allowed, f"{balance} {weights} {shares}")

    def test_tried_are_never_named(self) -> None:
        """A retry goes elsewhere, still by weight; None when there is no elsewhere."""
        for balance in ALL:
            of = servers(4, 3, 1)
            picker = balancer(balance, Random(3)).prepare(of)
            shares = spread(picker, of, 8000, frozenset({of[0][0]}))
            self.assertEqual(shares[0], 0.0, balance)
            self.assertApproximates(shares[1], 0.75, 0.03, balance)
            self.assertIsNone(picker.pick(1, 0.0, Random(1), frozenset(s for s, _ in of)), balance)

    def test_no_servers(self) -> None:
        for balance in ALL:
            self.assertIsNone(balancer(balance, Random(1)).prepare([]).pick(1, 0.0, Random(1), NONE), balance)

    def test_copy_is_independent(self) -> None:
        """A what-if replays requests on a copy: it picks what the original would, and the original does not notice."""
        for balance in ALL:
            of = servers(5, 3, 1)
            original = balancer(balance, Random(3))
            picker = original.prepare(of)
            spread(picker, of, 7)
            twin = copy.copy(picker)
            foreseen = [twin.pick(k, 0.0, Random(k), NONE) for k in KEYS[:50]]
            copy.copy(original).prepare(of).pick(1, 0.0, Random(1), NONE)
            self.assertEqual([picker.pick(k, 0.0, Random(k), NONE) for k in KEYS[:50]], foreseen, balance)

    def test_unknown_name(self) -> None:
        error = self.assertRaises(ValueError, balancer, "fastest", Random(1))
        self.assertIn("round_robin", str(error))


class RoundRobinTests(SynchronousTestCase):
    def test_exact_whatever_the_number_of_workers(self) -> None:
        """weight=3 to weight=1 is 3:1 within 1 % over 10,000 requests, in one worker or in eight."""
        for workers in (1, 2, 3, 8):
            of = servers(3, 1)
            pickers = [balancer("round_robin", Random(seed)).prepare(of) for seed in range(workers)]
            counted = Counter(pickers[i % workers].pick(0, 0.0, Random(1), NONE) for i in range(10_000))
            self.assertApproximates(counted[of[0][0]], 7500, 3 * workers)

    def test_smooth(self) -> None:
        """The heavy server's turns are spread out (nginx's a a b a c a a), not sent in bursts."""
        of = servers(5, 1, 1)
        picker = balancer("round_robin", Random(3)).prepare(of)
        got = "".join("abc"[[s for s, _ in of].index(picker.pick(0, 0.0, Random(1), NONE))] for _ in range(70))  # type: ignore[arg-type]
        self.assertIn("aabacaa", got)
        self.assertNotIn("aaaaa", got)

    def test_workers_do_not_march_in_step(self) -> None:
        """The first request of each worker does not always hit the first server."""
        of = servers(1, 1, 1)
        first = {balancer("round_robin", Random(seed)).prepare(of).pick(0, 0.0, Random(1), NONE) for seed in range(20)}
        self.assertEqual(first, {s for s, _ in of})

    def test_turns_survive_changes(self) -> None:
        """Changing weights between any two requests does not send everything to the first server."""
        of = servers(1, 1, 1, 1)
        it = balancer("round_robin", Random(3))
        counted: Counter[Server | None] = Counter()
        for i in range(4000):
            picker = it.prepare([(s, 1 if i % 2 else 2) for s, _ in of])
            counted[picker.pick(0, 0.0, Random(1), NONE)] += 1
        self.assertEqual(set(counted.values()), {1000})

    def test_old_debts_are_paid_once(self) -> None:
        """Turns owed from before a change are made up for, then the weights hold: the debt is not repeated every cycle."""
        of = servers(3, 1)
        picker = RoundRobinPicker([s for s, _ in of], [3, 1], [8, -8])
        counted = Counter(picker.pick(0, 0.0, Random(1), NONE) for _ in range(4000))
        self.assertApproximates(counted[of[0][0]], 3000, 4)

    def test_long_cycles_stay_exact(self) -> None:
        """Weights without a common divisor, longer than what is written down ahead."""
        weights = [997, 991, 983, *range(500, 540)]
        of = servers(*weights)
        total = sum(weights)
        self.assertGreater(total, 16384)
        picker = balancer("round_robin", Random(3)).prepare(of)
        counted = Counter(picker.pick(0, 0.0, Random(1), NONE) for _ in range(total))
        for server, weight in of:
            self.assertApproximates(counted[server], weight, 2)

    def test_full_servers_turn_goes_to_others_by_weight(self) -> None:
        """While one server is skipped the others share by weight, and afterwards nobody has a debt to work off."""
        of = servers(6, 3, 1)
        picker = balancer("round_robin", Random(3)).prepare(of)
        shares = spread(picker, of, 1000, frozenset({of[0][0]}))
        self.assertApproximates(shares[1], 0.75, 0.01)
        self.assertApproximates(spread(picker, of, 100)[0], 0.6, 0.02)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 100))
    def test_never_far_from_exact(self, rounds: list[list[int]], offset: int) -> None:
        """Through any series of weight changes each server is within two turns per change of its due."""
        of = servers(1, 1, 1)
        it = balancer("round_robin", Random(offset))
        due = [0.0] * 3
        got: Counter[Server | None] = Counter()
        for weights in rounds:
            picker = it.prepare([(s, w) for (s, _), w in zip(of, weights, strict=True)])
            for _ in range(37 + offset):
                got[picker.pick(0, 0.0, Random(1), NONE)] += 1
            due = [d + (37 + offset) * w / sum(weights) for d, w in zip(due, weights, strict=True)]
        for (server, _), d in zip(of, due, strict=True):
            self.assertApproximates(got[server], d, 2 * len(rounds) + 1)


class LoadTests(SynchronousTestCase):
    def test_least_conn_fills_evenly(self) -> None:
        """Long sessions end up spread by weight; leases held by other workers count."""
        of = servers(2, 1, 1)
        picker = balancer("least_conn", Random(3)).prepare(of)
        of[2][0].elsewhere = 25
        for _ in range(75):
            server = picker.pick(0, 0.0, Random(1), NONE)
            assert server is not None
            server.active += 1
        self.assertEqual([s.active + s.elsewhere for s, _ in of], [50, 25, 25])

    def test_p2c_avoids_the_busy(self) -> None:
        """With two to choose from, the busier one is never taken; with many, hardly anybody is far above the mean."""
        of = servers(1, 1)
        of[0][0].active = 5
        self.assertEqual(spread(balancer("p2c", Random(3)).prepare(of), of, 500), [0.0, 1.0])
        many = servers(*[1] * 50)
        picker = balancer("p2c", Random(3)).prepare(many)
        rng = Random(1)
        for _ in range(1000):
            server = picker.pick(0, 0.0, rng, NONE)
            assert server is not None
            server.active += 1
        self.assertLessEqual(max(s.active for s, _ in many), 25)

    def test_least_time_prefers_the_fast(self) -> None:
        """The fast server gets more, yet not all: its own queue counts against it."""
        of = servers(1, 1)
        (fast, _), (slow, _) = of
        fast.see_latency(0.01, Outcome.OK, 0.0)
        slow.see_latency(0.05, Outcome.OK, 0.0)
        picker = balancer("least_time", Random(3)).prepare(of)
        for _ in range(60):
            server = picker.pick(0, 0.0, Random(1), NONE)
            assert server is not None
            server.active += 1
        self.assertApproximates(fast.active / slow.active, 5, 1)

    def test_least_time_tries_the_unknown_once(self) -> None:
        """A new server gets one request, and no second before that is answered."""
        of = servers(1, 1)
        (known, _), (new, _) = of
        known.see_latency(0.5, Outcome.OK, 0.0)
        picker = balancer("least_time", Random(3)).prepare(of)
        self.assertIs(picker.pick(0, 0.0, Random(1), NONE), new)
        new.active = 1
        known.active = 20
        self.assertIs(picker.pick(0, 0.0, Random(1), NONE), known)


class HashTests(SynchronousTestCase):
    def test_key_stays(self) -> None:
        """The same key goes to the same server, in every worker."""
        for balance in ("source_ip", "hash:path"):
            of = servers(1, 2, 3)
            one, two = (balancer(balance, Random(seed)).prepare(list(reversed(of)) if seed else of) for seed in (0, 1))
            for key in KEYS[:500]:
                first = one.pick(key, 0.0, Random(1), NONE)
                self.assertIs(two.pick(key, 9.0, Random(2), NONE), first)

    def test_minimal_movement(self) -> None:
        """When one of n leaves or comes, at most 1.2/n of the keys move, and only those of that server."""
        for balance in ("source_ip", "hash:path"):
            for n in (2, 7, 20):
                of = servers(*[1] * n)
                it = balancer(balance, Random(3))
                gone = of[n // 2][0]
                before, after = it.prepare(of), it.prepare([pair for pair in of if pair[0] is not gone])
                moved = 0
                for key in KEYS:
                    old, new = before.pick(key, 0.0, Random(1), NONE), after.pick(key, 0.0, Random(1), NONE)
                    if old is not new:
                        self.assertIs(old, gone)
                        moved += 1
                self.assertLessEqual(moved / len(KEYS), 1.2 / n)
                self.assertGreaterEqual(moved / len(KEYS), 0.8 / n)

    def test_weight_change_moves_the_difference(self) -> None:
        """Raising a weight only draws keys to that server, as many as its share grows."""
        of = servers(1, 1, 1, 1)
        it = balancer("source_ip", Random(3))
        raised = of[0][0]
        before, after = it.prepare(of), it.prepare([(raised, 2), *of[1:]])
        moved = 0
        for key in KEYS:
            old, new = before.pick(key, 0.0, Random(1), NONE), after.pick(key, 0.0, Random(1), NONE)
            if old is not new:
                self.assertIs(new, raised)
                moved += 1
        self.assertApproximates(moved / len(KEYS), 2 / 5 - 1 / 4, 0.02)

    def test_bounded_load(self) -> None:
        """One hot key does not sink one server: nobody holds more than 1.25 times its share."""
        of = servers(1, 1, 2)
        picker = balancer("hash:path", Random(3)).prepare(of)
        for i in range(1, 401):
            server = picker.pick(KEYS[0], 0.0, Random(1), NONE)
            assert server is not None
            server.active += 1
            for one, weight in of:
                self.assertLessEqual(one.active, -(-1.25 * i * weight // 4))
        self.assertEqual(sum(s.active for s, _ in of), 400)

    def test_overflow_has_an_order_of_its_own(self) -> None:
        """What does not fit at a key's server goes to the key's next one: not all hot keys spill to the same."""
        of = servers(*[1] * 8)
        picker = balancer("hash:path", Random(3)).prepare(of)
        second = set()
        for key in KEYS[:40]:
            first = picker.pick(key, 0.0, Random(1), NONE)
            assert first is not None
            expected = picker.pick(key, 0.0, Random(1), frozenset({first}))
            first.active = 5
            self.assertIs(picker.pick(key, 0.0, Random(1), NONE), expected)
            first.active = 0
            second.add(expected)
        self.assertEqual(len(second), 8)

    def test_idle_servers_keep_their_keys(self) -> None:
        """Without overload the bound moves nothing, however many requests went before."""
        of = servers(1, 1, 1)
        picker = balancer("hash:path", Random(3)).prepare(of)
        self.assertEqual(len({picker.pick(KEYS[0], 0.0, Random(1), NONE) for _ in range(100)}), 1)

    def test_source_ip_is_not_bounded(self) -> None:
        """Affinity by address holds under load."""
        of = servers(1, 1, 1)
        picker = balancer("source_ip", Random(3)).prepare(of)
        for _ in range(50):
            server = picker.pick(KEYS[0], 0.0, Random(1), NONE)
            assert server is not None
            server.active += 1
        self.assertEqual(sorted(s.active for s, _ in of), [0, 0, 50])

    def test_hash_is_the_same_everywhere(self) -> None:
        """Two processes agree on a key, whatever PYTHONHASHSEED; so do two releases."""
        program = "from twistedproxy.pool.balancers import stable_hash; print(stable_hash(b'10.1.2.3'))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
        self.assertEqual(int(done.stdout), stable_hash(b"10.1.2.3"))
        self.assertEqual(stable_hash(b"10.1.2.3"), EXPECTED)

    def test_neighbouring_keys_spread(self) -> None:
        """A /24 of clients does not end on one server."""
        of = servers(1, 1, 1, 1)
        picker = balancer("source_ip", Random(3)).prepare(of)
        counted = Counter(picker.pick(stable_hash(b"192.168.1.%d" % i), 0.0, Random(1), NONE) for i in range(256))
        self.assertGreater(min(counted.values()), 40)
        self.assertEqual(len(counted), 4)


EXPECTED = 789716646895402230
