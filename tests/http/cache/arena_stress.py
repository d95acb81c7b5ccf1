"""A process of the stress test: ``write`` or ``read`` DIRECTORY SEED ROUNDS."""

from __future__ import annotations

import hashlib
import random
import struct
import sys
import time

from twistedproxy.http.cache.arena import Arena
from twistedproxy.http.cache.geometry import MIN_BYTES

KEYS = [hashlib.md5(str(n).encode()).digest() for n in range(200)]


def write(arena: Arena, chance: random.Random, rounds: int) -> None:
    arena.own(2)
    for i in range(rounds):
        n = chance.randrange(200)
        length, word = chance.randrange(1900), chance.getrandbits(32)
        arena.put(KEYS[n], struct.pack("<III", n, length, word), struct.pack("<I", word) * length)
        if i % 50 == 0:
            arena.remove(KEYS[chance.randrange(200)])
        if i == 100:
            print("wrote", flush=True)


def read(arena: Arena, chance: random.Random, rounds: int) -> None:
    hits = 0
    places = {}
    deadline = time.monotonic() + 60
    while not any(arena.find(each) for each in KEYS):
        assert time.monotonic() < deadline, "nobody writes"
        time.sleep(0.01)
    for _ in range(rounds):
        n = chance.randrange(200)
        place = places.get(n)
        if place is not None and arena.is_current(place):
            body = arena.body(place)
            if body is None:
                continue
            assert body == body[:4] * (len(body) // 4), f"torn body of {n}"
            arena.touch(place)
            hits += 1
            continue
        place = arena.find(KEYS[n])
        both = arena.read(place) if place is not None else None
        if place is None or both is None:
            continue
        number, length, word = struct.unpack("<III", both[0])
        assert number == n, f"{number} found under {n}"
        assert both[1] == struct.pack("<I", word) * length, f"wrong body of {n}"
        places[n] = place
    assert not arena.corrupt, f"{arena.corrupt} corrupt"
    print(hits, flush=True)


if __name__ == "__main__":
    what, directory, seed, rounds = sys.argv[1:]
    {"write": write, "read": read}[what](Arena.open(directory, MIN_BYTES), random.Random(int(seed)), int(rounds))
