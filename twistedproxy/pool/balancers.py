"""Which of the available servers is next: one tiny class per algorithm, no I/O, nothing remembered but turns.

How it works
    A `Balancer` lives as long as its pool and keeps what must survive a change (whose turn it is). For every new set of
    available servers and weights the pool asks it to `prepare` a `Picker`, which does the work of one request. Weights are
    effective weights (slow start included). `tried` are servers the picker must not name: tried already for this request, or full.

    `copy.copy` of a balancer or a picker is independent of the original, so that a what-if can replay requests on it.
    Pickers read `server.active` and `server.elsewhere`; the pool refreshes the latter where `reads_loads` says so.

    To add one: write the class, enter it in `_BALANCERS`, add its table to ``tests/pool/test_balancers.py``.

    Papers: Mitzenmacher, "The Power of Two Choices" (2001) · Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit
    Rates" (1998, rendezvous) · Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016) · Twitter Finagle,
    ``PeakEwma`` · nginx, ``ngx_http_upstream_get_peer`` (smooth weighted round robin).
"""

from __future__ import annotations

import zlib
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import ceil, gcd, log
from random import Random
from typing import Protocol

from twistedproxy.pool.server import Server

Weighted = tuple[Server, float]
"""A server and its effective weight, above 0."""


class Picker(Protocol):
    def pick(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
        """The server for one request; None when all are in `tried`."""
        ...


class Balancer(Protocol):
    reads_loads: bool
    """Whether pickers compare loads, so that those of the other workers must be read."""
    reads_latency: bool
    """Whether pickers compare latencies, so that they must be measured."""

    def prepare(self, servers: Sequence[Weighted]) -> Picker:
        """A picker for these servers; whose turn it is goes on from the picker prepared before."""
        ...


class Turns:
    """Smooth weighted round robin over any part of the servers, as nginx does it: O(n), spreads evenly, exact over a cycle."""

    __slots__ = ("currents", "weights")

    def __init__(self, weights: Sequence[float], currents: Sequence[float]) -> None:
        self.weights = list(weights)
        self.currents = list(currents)

    def next(self, allowed: Sequence[int]) -> int:
        """Whose turn it is among the indices `allowed` (not empty)."""
        currents = self.currents
        weights = self.weights
        total = 0.0
        best = -1
        most = 0.0
        for i in allowed:
            weight = weights[i]
            total += weight
            currents[i] = current = currents[i] + weight
            if best < 0 or current > most:
                best = i
                most = current
        currents[best] -= total
        return best

    def __copy__(self) -> Turns:
        return Turns(self.weights, self.currents)


# round_robin


class RoundRobin:
    """Smooth weighted round robin; each worker starts at its own random phase, so that workers do not march in step."""

    reads_loads = False
    reads_latency = False

    def __init__(self, random: Random) -> None:
        self._random = random
        self._last: RoundRobinPicker | None = None

    def prepare(self, servers: Sequence[Weighted]) -> RoundRobinPicker:
        whole = _whole_weights([weight for _, weight in servers])
        total = sum(whole)
        if self._last is None:
            picker = RoundRobinPicker([s for s, _ in servers], whole, [0] * len(whole))
            picker.skip(self._random.randrange(min(total, 1000)) if total else 0)
        else:
            turns = self._last.turns()
            picker = RoundRobinPicker([s for s, _ in servers], whole, [round(turns.get(s, 0.0) * total) for s, _ in servers])
        self._last = picker
        return picker

    def __copy__(self) -> RoundRobin:
        twin = RoundRobin(Random(0))
        twin._last = None if self._last is None else self._last.__copy__()
        return twin


class RoundRobinPicker:
    """Writes down the turns ahead, so that a pick is one list access.

    With unchanged weights the sequence repeats after the sum of the weights (divided by their greatest common divisor), so
    that it is computed once; in stretches, lest a large pool stop the world. What is too long to keep is computed as it comes.
    """

    __slots__ = ("_index", "_instead", "_schedule", "_servers", "_start", "_turns", "_weights")

    STRETCH_WORK = 4096
    KEPT = 16384

    def __init__(self, servers: list[Server], weights: list[int], currents: list[int]) -> None:
        self._servers = servers
        self._weights = weights
        self._start: list[float] = list(currents)
        """Currents before the first turn of the schedule."""
        self._turns = Turns(weights, currents)
        """Currents after its last turn."""
        self._schedule: list[Server] = []
        self._index = 0
        self._instead: Turns | None = None

    def _go_on(self) -> None:
        """The schedule is used up: wrap round, write down some more, or start a new one."""
        turns = self._turns
        weights = self._weights
        length = len(self._schedule)
        cycle = sum(weights)
        if length and length % cycle == 0 and turns.currents == self._start:
            if length < 64:
                self._schedule *= 64 // length + 1
            self._index = 0
            return
        if length >= min(cycle, self.KEPT):
            self._start = list(turns.currents)
            self._schedule = []
            self._index = length = 0
        everybody = range(len(weights))
        stretch = min(cycle - length, max(self.STRETCH_WORK // len(weights), 1))
        self._schedule += [self._servers[turns.next(everybody)] for _ in range(stretch)]

    def pick(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
        try:
            server = self._schedule[self._index]
        except IndexError:
            if not self._servers:
                return None
            self._go_on()
            server = self._schedule[self._index]
        self._index += 1
        if tried and server in tried:
            return self._pick_instead(tried)
        return server

    def _pick_instead(self, tried: frozenset[Server]) -> Server | None:
        """The turn of a server that cannot take it goes to the others, by their weights and without upsetting their own turns."""
        allowed = [i for i, s in enumerate(self._servers) if s not in tried]
        if not allowed:
            return None
        if self._instead is None:
            self._instead = Turns(self._weights, [0] * len(self._weights))
        return self._servers[self._instead.next(allowed)]

    def turns(self) -> dict[Server, float]:
        """How much of a turn each server is owed (negative: it is ahead), in turns."""
        index = self._index
        taken = dict.fromkeys(self._servers, 0)
        for server in self._schedule[:index]:
            taken[server] += 1
        total = sum(self._weights) or 1
        parts = zip(self._start, self._weights, self._servers, strict=True)
        return {server: (start + index * weight) / total - taken[server] for start, weight, server in parts}

    def skip(self, turns: int) -> None:
        for _ in range(turns):
            self.pick(0, 0.0, _NO_RANDOM, _NONE)

    def __copy__(self) -> RoundRobinPicker:
        twin = RoundRobinPicker(self._servers, self._weights, [])
        twin._start = self._start
        twin._turns = self._turns.__copy__()
        twin._schedule = list(self._schedule)
        twin._index = self._index
        twin._instead = None if self._instead is None else self._instead.__copy__()
        return twin


_NONE: frozenset[Server] = frozenset()
_NO_RANDOM = Random(0)


def _whole_weights(weights: Sequence[float]) -> list[int]:
    """The same proportions in small whole numbers; what slow start makes of a weight is kept to a hundredth of it."""
    whole = [round(w) for w in weights] if all(w == round(w) for w in weights) else [max(round(w * 100), 1) for w in weights]
    divisor = gcd(*whole) or 1
    return [w // divisor for w in whole]


# least_conn, p2c, random


class LeastConn:
    """Fewest leases for its weight, over all workers; ties go round by weight."""

    reads_loads = True
    reads_latency = False

    def __init__(self, random: Random) -> None:
        self._random = random
        self._last: LeastConnPicker | None = None

    def prepare(self, servers: Sequence[Weighted]) -> LeastConnPicker:
        total = sum(weight for _, weight in servers)
        turns = {s: self._random.random() for s, _ in servers} if self._last is None else self._last.turns()
        currents = [turns.get(server, 0.0) * total for server, _ in servers]
        self._last = LeastConnPicker(servers, Turns([w for _, w in servers], currents))
        return self._last


class LeastConnPicker:
    __slots__ = ("_servers", "_ties")

    def __init__(self, servers: Sequence[Weighted], ties: Turns) -> None:
        self._servers = tuple(servers)
        self._ties = ties

    def turns(self) -> dict[Server, float]:
        """How far each server is from its turn, in parts of the sum of the weights."""
        total = sum(self._ties.weights) or 1.0
        return {server: current / total for (server, _), current in zip(self._servers, self._ties.currents, strict=True)}

    def pick(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
        least = float("inf")
        best: list[int] = []
        for i, (server, weight) in enumerate(self._servers):
            if server in tried:
                continue
            load = (server.active + server.elsewhere) / weight
            if load < least:
                least = load
                best = [i]
            elif load == least:
                best.append(i)
        if not best:
            return None
        return self._servers[best[0] if len(best) == 1 else self._ties.next(best)][0]

    def __copy__(self) -> LeastConnPicker:
        return LeastConnPicker(self._servers, self._ties.__copy__())


class WeightedRandom:
    """By chance, in proportion to the weights."""

    reads_loads = False
    reads_latency = False

    def prepare(self, servers: Sequence[Weighted]) -> WeightedRandomPicker:
        return WeightedRandomPicker(servers)


class WeightedRandomPicker:
    __slots__ = ("_bounds", "_servers", "_total", "_weighted")

    def __init__(self, servers: Sequence[Weighted]) -> None:
        self._weighted = tuple(servers)
        self._servers = [s for s, _ in servers]
        self._bounds = list(accumulate(w for _, w in servers))
        self._total = self._bounds[-1] if self._bounds else 0.0

    def pick(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
        if not self._servers:
            return None
        server = self._servers[min(bisect(self._bounds, rng.random() * self._total), len(self._servers) - 1)]
        if server not in tried:
            return server
        rest = [(s, w) for s, w in self._weighted if s not in tried]
        return rng.choices([s for s, _ in rest], [w for _, w in rest])[0] if rest else None


class TwoChoices:
    """The less loaded of two drawn by weight: nearly as even as `LeastConn`, at a cost that does not grow with the pool."""

    reads_loads = True
    reads_latency = False

    def prepare(self, servers: Sequence[Weighted]) -> TwoChoicesPicker:
        return TwoChoicesPicker(servers)


class TwoChoicesPicker:
    __slots__ = ("_draw", "_weights")

    def __init__(self, servers: Sequence[Weighted]) -> None:
        self._draw = WeightedRandomPicker(servers)
        self._weights = dict(servers)

    def pick(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
        one = self._draw.pick(key, now, rng, tried)
        if one is None or len(self._weights) == 1:
            return one
        two = self._draw.pick(key, now, rng, tried)
        if two is one or two is None:
            two = self._draw.pick(key, now, rng, tried | {one})
            if two is None:
                return one
        weights = self._weights
        if (two.active + two.elsewhere) / weights[two] < (one.active + one.elsewhere) / weights[one]:
            return two
        return one


class LeastTime:
    """Least peak-EWMA latency times leases in this worker, for its weight."""

    reads_loads = False
    reads_latency = True

    def __init__(self, random: Random) -> None:
        self._random = random

    def prepare(self, servers: Sequence[Weighted]) -> LeastTimePicker:
        return LeastTimePicker(servers, Turns([w for _, w in servers], [self._random.random() for _ in servers]))


class LeastTimePicker:
    """A server never measured gets one request at once and no second one before the first is answered, unless all are like that."""

    __slots__ = ("_servers", "_ties")

    UNMEASURED_S = 1e6

    def __init__(self, servers: Sequence[Weighted], ties: Turns) -> None:
        self._servers = tuple(servers)
        self._ties = ties

    def pick(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
        least = float("inf")
        best: list[int] = []
        for i, (server, weight) in enumerate(self._servers):
            if server in tried:
                continue
            active = server.active
            latency = server.expected_latency(now) * (active + 1) if server.latency else active * self.UNMEASURED_S
            cost = latency / weight
            if cost < least:
                least = cost
                best = [i]
            elif cost == least:
                best.append(i)
        if not best:
            return None
        return self._servers[best[0] if len(best) == 1 else self._ties.next(best)][0]

    def __copy__(self) -> LeastTimePicker:
        return LeastTimePicker(self._servers, self._ties.__copy__())


# By key: source_ip, hash:*

_MASK = (1 << 64) - 1
BUCKET_BITS = 15


def _mix(x: int) -> int:
    """Spread 64 bits over 64 bits (the finaliser of splitmix64)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def stable_hash(data: bytes) -> int:
    """64 bits that are the same in all processes and releases; spreads keys, does not resist an attacker who looks for collisions.

    A CRC tells 2**32 keys apart, plenty for the 2**15 buckets they fall into, and costs a tenth of a cryptographic hash.
    """
    return _mix(zlib.crc32(data) + 0x9E3779B97F4A7C15)


class Rendezvous:
    """The same key to the same server in every worker; when a server comes, leaves or changes weight, only its share of keys moves."""

    reads_loads = False
    reads_latency = False

    def prepare(self, servers: Sequence[Weighted]) -> RendezvousPicker:
        return RendezvousPicker(servers)


class RendezvousPicker:
    """Weighted highest random weight over 2**15 buckets of keys; what a bucket's order is, is found out when first asked for."""

    __slots__ = ("_first", "_orders", "_seeds", "_servers", "_weights")

    def __init__(self, servers: Sequence[Weighted]) -> None:
        self._servers = [s for s, _ in servers]
        self._weights = [w for _, w in servers]
        self._seeds = [stable_hash(s.address.encode()) for s in self._servers]
        self._first: dict[int, Server] = {}
        self._orders: dict[int, list[Server]] = {}

    def pick(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
        bucket = (key * 0x9E3779B97F4A7C15 & _MASK) >> (64 - BUCKET_BITS)
        server = self._first.get(bucket)
        if server is None:
            if not self._servers:
                return None
            server = self._first[bucket] = max(self._scored(bucket))[2]
        if server not in tried:
            return server
        for server in self.order(bucket):
            if server not in tried:
                return server
        return None

    def _scored(self, bucket: int) -> list[tuple[float, int, Server]]:
        """(score, number, server): the greatest wins; scores are -weight / ln(u) with u in (0, 1) drawn from bucket and address."""
        point = _mix(bucket + 1)
        numbers = range(len(self._servers))
        parts = zip(self._weights, self._seeds, numbers, self._servers, strict=True)
        return [(-w / log(((_mix(point ^ seed) >> 12) + 0.5) / (1 << 52)), -i, s) for w, seed, i, s in parts]

    def order(self, bucket: int) -> list[Server]:
        """All servers, best first, for the keys of one bucket."""
        order = self._orders.get(bucket)
        if order is None:
            if len(self._orders) >= 4096:
                self._orders.clear()
            order = self._orders[bucket] = [s for _, _, s in sorted(self._scored(bucket), reverse=True)]
        return order


class BoundedHash:
    """`Rendezvous`, but no server gets more than 1.25 times its share of the leases in flight: a hot key spills to the next in order."""

    reads_loads = True
    reads_latency = False

    def prepare(self, servers: Sequence[Weighted]) -> BoundedHashPicker:
        return BoundedHashPicker(servers)


class BoundedHashPicker(RendezvousPicker):
    __slots__ = ("_shares",)

    BOUND = 1.25

    def __init__(self, servers: Sequence[Weighted]) -> None:
        super().__init__(servers)
        total = sum(self._weights)
        self._shares = {s: w / total for s, w in servers}

    def pick(self, key: int, now: float, rng: Random, tried: frozenset[Server]) -> Server | None:
        server = super().pick(key, now, rng, tried)
        if server is None or server.active + server.elsewhere == 0:
            return server
        busy = 1
        for other in self._servers:
            busy += other.active + other.elsewhere
        shares = self._shares
        if server.active + server.elsewhere < ceil(self.BOUND * busy * shares[server]):
            return server
        bucket = (key * 0x9E3779B97F4A7C15 & _MASK) >> (64 - BUCKET_BITS)
        for other in self.order(bucket):
            if other not in tried and other.active + other.elsewhere < ceil(self.BOUND * busy * shares[other]):
                return other
        return server


_BALANCERS: dict[str, Callable[[Random], Balancer]] = {
    "round_robin": RoundRobin,
    "least_conn": LeastConn,
    "p2c": lambda _: TwoChoices(),
    "random": lambda _: WeightedRandom(),
    "least_time": LeastTime,
    "source_ip": lambda _: Rendezvous(),
    "hash": lambda _: BoundedHash(),
}


def balancer(balance: str, random: Random) -> Balancer:
    """The balancer a pool's ``balance`` names (``hash:path`` and the like are one: the front end computes the key)."""
    make = _BALANCERS.get(balance.partition(":")[0])
    if make is None:
        raise ValueError(f"balance {balance!r} is not one of {', '.join(_BALANCERS)}")
    return make(random)
