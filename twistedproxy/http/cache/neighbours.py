"""Fills of other workers: at most one of them asks the server for a key, the others follow it.

How it works
    Before a worker begins to fill a key it *claims* it: it writes the key's mark into its own cell of the scoreboard's table of fills, and
    looks whether another worker's cell in that row has the same mark. Who was first keeps it; of two who wrote in the same moment the one
    with the lower slot. A cell is found by a hash of the key, so now and then two keys want the same cell: then the second is filled
    without a claim.

    Who comes second makes a `RemoteFill` and says FOLLOW to the worker that has the claim. That one answers with words: where the file is
    that it writes (GREW, each time there is more), DONE, FAILED, PASS (not to be kept: ask for yourself), GONE (look again: it is in the
    store, or nobody fills it). A small answer that comes at once is not written to a file for them: they hear GONE and find it.
    A follower that hears nothing looks whether the claim still stands, and after a while it does not wait: workers die.

    FORGET says that an unsafe request has made an answer untrue: a fill of it that is on is of no use for the store.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

from twistedproxy.clock import Timed
from twistedproxy.errors import ProxyError, ServerClosed
from twistedproxy.http.cache.entries import Entry, decoded
from twistedproxy.http.cache.fills import PIECE, Fill, FillState, Followed, Follower
from twistedproxy.http.cache.stored import CorruptEntry
from twistedproxy.ipc.scoreboard import Column
from twistedproxy.net.doorbell import Doorbell

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache

_WORD = struct.Struct("<BB16sQ")
FOLLOW, GREW, DONE, FAILED, PASS, GONE, FORGET = range(1, 8)
SILENCE_S = 5.0
"""How long a fill of another worker may say nothing before it has begun."""
KEYS_PER_WORD = 100
LOOK_EVERY_S = 1.0
"""How often one that says nothing is looked at."""


class Neighbours:
    """This worker among the others: claims, and words about fills."""

    def __init__(self, cells: Column, bell: Doorbell) -> None:
        self._cells = cells
        cells.use_all()
        self._bell = bell
        self.cache: Cache | None = None
        """Set once it is made; what is heard before is of no use."""
        self._claimed: dict[bytes, Fill] = {}
        self._followed: dict[bytes, RemoteFill] = {}

    # Claims

    def holder(self, key: bytes) -> int:
        """The worker that fills `key`; -1: nobody, or we ourselves."""
        return self._cells.who(*self._place(key))

    def claim(self, key: bytes) -> int:
        """Say that we fill `key`; the slot of another worker when that one does, else -1: see `hold`."""
        cells = self._cells
        row, mark = self._place(key)
        holder = cells.who(row, mark)
        if holder >= 0 or cells.get(row):
            return holder
        cells.set(row, mark)
        holder = cells.who(row, mark)
        if 0 <= holder < cells.slot:  # both wrote at once
            cells.set(row, 0)
            return holder
        return -1

    def hold(self, key: bytes, fill: Fill) -> None:
        """This is the fill that `key` was claimed for."""
        self._claimed[key] = fill
        fill.claimed_key = key

    def release(self, fill: Fill) -> None:
        """Its fill is over."""
        key = fill.claimed_key
        if key and self._claimed.get(key) is fill:
            del self._claimed[key]
            row, mark = self._place(key)
            if self._cells.get(row) == mark:
                self._cells.set(row, 0)

    def _place(self, key: bytes) -> tuple[int, int]:
        number = int.from_bytes(key[:8], "little")
        return number % self._cells.rows, (number >> 1) | 1 << 62

    # Words

    def follow(self, cache: Cache, key: bytes, leader: Any, slot: int) -> RemoteFill | None:
        """What worker `slot` fills; None: it cannot be told, or would be mistaken for what we still follow from before a purge."""
        if key in self._followed:
            return None
        fill = RemoteFill(cache, key, leader, self)
        if not self.say(slot, FOLLOW, key):
            return None
        self._followed[key] = fill
        return fill

    def say(self, slot: int, word: int, key: bytes, number: int = 0, path: str = "") -> bool:
        """False when there is no such worker; a later word about the same key takes the place of one that waits."""
        return self._bell.ring(slot, _WORD.pack(word, self._cells.slot, key, number) + os.fsencode(path), about=key)

    def forget(self, keys: list[bytes]) -> None:
        """Whoever fills one of them is not to keep it."""
        for at in range(0, len(keys), KEYS_PER_WORD):
            first, *more = keys[at : at + KEYS_PER_WORD]
            word = _WORD.pack(FORGET, self._cells.slot, first, 0) + b"".join(more)
            for slot in self._cells.others:
                self._bell.ring(slot, word)

    def heard(self, data: bytes) -> None:
        """A word from another worker."""
        if len(data) < _WORD.size or self.cache is None:
            return
        word, slot, key, number = _WORD.unpack_from(data)
        if word == FOLLOW:
            self._is_followed(key, slot)
            return
        if word == FORGET:
            self.cache.forget(key)
            for at in range(_WORD.size, len(data) - 15, 16):
                self.cache.forget(data[at : at + 16])
            return
        fill = self._followed.get(key)
        if fill is not None:
            fill.heard(word, number, os.fsdecode(data[_WORD.size :]))

    def _is_followed(self, key: bytes, slot: int) -> None:
        fill = self._claimed.get(key)
        if fill is None or not fill.takes_followers:
            self.say(slot, PASS if fill is not None and fill.state is FillState.PASSING else GONE, key)
            return
        follower = RemoteFollower(self, fill, slot, key)
        if fill.attach(follower) and fill.state is FillState.KEEPING:
            follower.fill_began(fill)

    def unfollow(self, fill: RemoteFill) -> None:
        if self._followed.get(fill.claimed_key) is fill:
            del self._followed[fill.claimed_key]


class RemoteFollower:
    """Another worker that follows a fill of ours: it reads the file, and is told how far that goes."""

    def __init__(self, neighbours: Neighbours, fill: Fill, slot: int, key: bytes) -> None:
        self._neighbours = neighbours
        self._fill = fill
        self._slot = slot
        self._key = key
        self._reads_along = False
        """It was told of the file."""

    @property
    def position(self) -> int:
        """It takes nothing from memory, so nothing is held for it."""
        return self._fill.size

    def chooses(self, entry: Entry) -> bool:
        """The other worker sees for itself whom the answer is for."""
        return True

    def _say(self, word: int, number: int = 0, path: str = "") -> None:
        if not self._neighbours.say(self._slot, word, self._key, number, path):
            self._leave()  # nobody is there any more

    def _leave(self) -> None:
        if self in self._fill.followers:
            self._fill.detach(self)

    def _say_last(self, word: int, number: int = 0) -> None:
        self._say(word, number)
        self._leave()

    def fill_began(self, fill: Any) -> None:
        if fill.is_complete:
            self._say_last(GONE)
        elif fill.state is not FillState.KEEPING:
            self._say_last(PASS)
        elif fill.share():
            self._reads_along = True
            self._say(GREW, fill.size, fill.path)

    def fill_grew(self, data: bytes) -> None:
        fill = self._fill
        if fill.state is FillState.KEEPING:
            if self._reads_along:
                self._say(GREW, fill.size, fill.path)
        else:  # it cannot be kept, as it turned out
            self._say_last(FAILED if self._reads_along else PASS)

    def fill_ended(self) -> None:
        self._say_last(DONE if self._reads_along else GONE, self._fill.size)

    def fill_renewed(self, entry: Entry) -> None:
        self._say_last(GONE)

    def fill_failed(self, error: ProxyError) -> None:
        self._say_last(FAILED if self._reads_along else GONE)

    def fill_released(self) -> None:
        self._say(PASS)


class RemoteFill(Timed, Followed):
    """A fill of another worker, for the exchanges here that follow it."""

    def __init__(self, cache: Cache, key: bytes, leader: Any, neighbours: Neighbours) -> None:
        super().__init__()
        self.cache = cache
        self.key = self.claimed_key = key
        self.primary = leader.primary
        self.url = leader.url
        self.followers: dict[Follower, None] = {}
        self.started = cache.seconds()
        self._neighbours = neighbours
        self._file: Any = None
        cache.wheel.arm(self, self.started + LOOK_EVERY_S)

    def read(self, position: int, most: int = PIECE) -> bytes:
        data: bytes = self._file.read(position, min(most, self.size - position))
        return data

    def progressed(self) -> None:
        """The file waits for nobody."""

    def heard(self, word: int, number: int, path: str) -> None:
        """What the other worker says."""
        if not self.takes_followers:
            return
        if word == GREW:
            self._grow(number, path)
        elif word == DONE and self.state is FillState.KEEPING:
            self.size = number
            self._end(FillState.DONE)
            for follower in self._all():
                follower.fill_ended()
        elif word == PASS:
            self.cache.passed_on.believe(self.claimed_key)
            self._release(FillState.FAILED)
        elif word == FAILED and self.state is FillState.KEEPING:
            self._fail()
        else:  # it is there, or nobody fills it, or the server failed before it answered
            self._release(FillState.FAILED)

    def _grow(self, size: int, path: str) -> None:
        self.cache.wheel.arm(self, self.cache.seconds() + LOOK_EVERY_S)
        self.size = max(size, self.size)
        if self.state is FillState.KEEPING:
            for follower in self._all():
                follower.fill_ended()  # read on
            return
        reader = self.cache.store.follow(path)
        entry = None
        if reader is not None:
            try:
                entry = decoded(reader.key, reader.meta, None)
            except CorruptEntry:
                entry = None
        if not isinstance(entry, Entry):
            self._release(FillState.FAILED)
            return
        self._file, self.entry = reader, entry
        self.length = entry.stored.body_length
        self.state = FillState.KEEPING
        self.cache.chose(self, entry)
        for follower in self._all():
            if follower.chooses(entry):
                follower.fill_began(self)
            else:
                self.followers.pop(follower, None)
                follower.fill_released()
        self.cache.prefer(self)

    def yield_to(self) -> None:
        """Another fill of the same key has its answer first."""
        self._release(FillState.FAILED)

    def deadline_passed(self, now: float) -> None:
        """Nothing was said for a while."""
        if not self.takes_followers:
            return
        if self.state is FillState.ASKING:
            if now - self.started >= SILENCE_S:
                self.cache.distrust(self.claimed_key)
                self._release(FillState.FAILED)
            elif self._neighbours.holder(self.claimed_key) < 0:  # it is over, or its worker is dead
                self._release(FillState.FAILED)
            else:
                self.cache.wheel.arm(self, now + LOOK_EVERY_S)
        elif self._file.state() == "broken" or not self.followers:
            self._fail()
        else:  # a slow server; words may have been lost
            self._grow(self._file.available(), "")
            if self._file.state() == "complete":
                self.heard(DONE, self._file.available(), "")

    def _fail(self) -> None:
        self._end(FillState.FAILED)
        for follower in self._all():
            follower.fill_failed(ServerClosed("the answer broke off on its way into the cache"))

    def _release(self, state: FillState) -> None:
        self._end(state)
        self._release_all()

    def _end(self, state: FillState) -> None:
        self.state = state
        self.cache.wheel.disarm(self)
        self._neighbours.unfollow(self)
        self.cache.fill_over(self)
