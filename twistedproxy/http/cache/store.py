"""Both tiers behind one face: where is the object of this key, keep this one, forget that one.

How it works
    Small objects go to memory. One that proves itself there, by moving on to the main log, is also written to disk by a thread, so
    that it survives being dropped. Large ones are written to disk as they arrive. A small object found on disk goes back to memory.
    Each worker holds a number of copies it has met, with a slot for what its owner made of their meta; a held copy is good as long as
    two cells of the arena say so, or its file has a name.

    An object may be replaced or removed by one process while another carries it from tier to tier. Each carrier looks once more
    after it has put the object down, and takes it up again when what it came from is gone; `remove` clears memory before and after
    the disk. So nothing that was removed comes back.

    When only the meta of an object changes (`renew`: the server said 304) a file is left as it is. Its new meta is kept in memory, as
    an object of its own under a key that follows from the object's; its body says which file it belongs to. When memory drops it, the
    file's own meta counts again, and the worst is one more question to the server.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from twistedproxy.http.cache.arena import Arena, Place
from twistedproxy.http.cache.disk import Disk, Reader, Writer
from twistedproxy.http.cache.spill import Spill

MOST_OPEN: Final = 128
"""Files held open."""
MOST_ABSENT: Final = 4096
"""Keys known not to be on disk."""

_RENEWAL: Final = int.from_bytes(b"meta of the file", "little")
"""Turns the key of an object into that of its renewed meta."""


class Copy:
    """A kept object as one worker knows it."""

    __slots__ = ("_arena", "_body", "key", "length", "meta", "place", "reader", "renewal_spot", "value")

    def __init__(self, key: bytes, meta: bytes, length: int, arena: Arena | None, place: Place | None, reader: Reader | None) -> None:
        self.key = key
        self.meta = meta
        self.length = length
        """Of the body."""
        self.place = place
        """Where it is in memory; of a file whose meta was renewed, where that is; else None."""
        self.reader = reader
        """On disk; else None. Keep a reference while you send from it."""
        self.value: Any = None
        """The holder's: what it made of `meta`."""
        self.renewal_spot: tuple[int, int] | None = None
        """Where in memory the new meta of a file would be."""
        self._arena = arena
        self._body: bytes | None = None

    def __repr__(self) -> str:
        return f"<Copy {self.key.hex()} {self.length} bytes {'in memory' if self.reader is None else 'on disk'}>"

    def body(self) -> bytes | None:
        """The whole body of a small one; None when it is gone or damaged since the copy was found: a miss."""
        body = self._body
        if body is not None:
            self._body = None
            return body
        if self.reader is not None:
            return self.reader.whole()
        assert self._arena is not None and self.place is not None
        return self._arena.body(self.place)


class Store:
    """One worker's view of what is kept on this machine."""

    def __init__(
        self, arena: Arena | None, disk: Disk | None, in_thread: Callable[[Callable[[], object]], object], most_held: int = 4096
    ) -> None:
        self.arena = arena
        self.disk = disk
        self.largest_in_memory = 0 if arena is None else arena.largest
        """Bytes of meta and body together."""
        self._most_held = most_held
        self._held: dict[bytes, Copy] = {}
        self._open: dict[bytes, Copy] = {}
        """Those held that are on disk."""
        self._absent: dict[bytes, None] = {}
        self._last: Copy | None = None
        """The one copy that may have its body at hand."""
        self.is_on_disk = False
        """Whether the disk took what memory did not, at the last `put` that gave None."""
        self._spill = None
        if arena is not None and disk is not None:
            self._spill = Spill(arena, disk, in_thread)
            arena.promoted = self._spill.write

    # Finding

    def find(self, key: bytes) -> Copy | None:
        """The object of `key`, which counts as used by that."""
        copy = self._held.get(key)
        if copy is not None:
            if copy.reader is None:
                arena, place = self.arena, copy.place
                assert arena is not None and place is not None
                if arena.is_current(place):
                    arena.touch(place)
                    return copy
            elif copy.reader.is_linked and self._is_latest(copy):
                copy.reader.used()
                return copy
            self._forget(key)
        return self._find(key)

    def file(self, key: bytes, now: float) -> Copy | None:
        """What `find` says of a large object that is held open, at a fraction of its cost; None: ask `find`."""
        copy = self._open.get(key)
        if copy is None:
            return None
        assert copy.reader is not None
        return copy if copy.reader.is_ready(now) and self._is_latest(copy) else None

    def _find(self, key: bytes) -> Copy | None:
        arena = self.arena
        if arena is not None:
            place = arena.find(key)
            if place is not None:
                both = arena.read(place)
                if both is not None:
                    arena.touch(place)
                    copy = Copy(key, both[0], place.body_length, arena, place, None)
                    self._hold(copy, both[1])
                    return copy
        if self.disk is None:
            return None
        return self._find_on_disk(key, self.disk)

    def _find_on_disk(self, key: bytes, disk: Disk) -> Copy | None:
        reader = disk.open(key)
        if reader is None:
            if len(self._absent) >= MOST_ABSENT:
                del self._absent[next(iter(self._absent))]
            self._absent[key] = None
            return None
        self._absent.pop(key, None)
        reader.used()
        assert reader.length is not None
        if len(reader.meta) + reader.length <= self.largest_in_memory:
            body = reader.whole()
            if body is None:
                return None
            copy = self._to_memory(key, reader, body)
            if copy is not None:
                return copy
        copy = self._renewed(key, reader) or Copy(key, reader.meta, reader.length, self.arena, None, reader)
        self._hold_open(copy)
        return copy

    def _hold_open(self, copy: Copy) -> None:
        if len(self._open) >= MOST_OPEN:
            self._forget(next(iter(self._open)))
        self._open[copy.key] = copy
        self._hold(copy, None)

    def _to_memory(self, key: bytes, reader: Reader, body: bytes) -> Copy | None:
        arena = self.arena
        assert arena is not None
        place = arena.put(key, reader.meta, body)
        if place is None:
            return None
        if not reader.is_linked:  # removed while we carried it
            arena.remove(key)
            return None
        copy = Copy(key, reader.meta, len(body), arena, place, None)
        self._hold(copy, body)
        return copy

    def _hold(self, copy: Copy, body: bytes | None) -> None:
        held = self._held
        if len(held) >= self._most_held and copy.key not in held:
            self._hold_fewer()
        held[copy.key] = copy
        if self._last is not None:
            self._last._body = None
        self._last = copy
        copy._body = body

    def _hold_fewer(self) -> None:
        """The oldest sixteenth at once: looking for the first of a dict takes longer the more were taken from its front."""
        for key in list(islice(self._held, max(1, self._most_held // 16))):
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        """Let go of what is held; says nothing of what is kept."""
        copy = self._held.pop(key, None)
        if copy is not None and copy.reader is not None:
            self._open.pop(key, None)
            if self._last is copy:
                self._last = None
            copy.value = None  # it may lead back here; but a file is closed with the last who sends from it, not by the collector

    # Files whose meta was renewed

    def _renewed(self, key: bytes, reader: Reader) -> Copy | None:
        """The file with its new meta, if that is in memory."""
        arena = self.arena
        place = None if arena is None else arena.find(_renewal_key(key))
        if arena is None or place is None or reader.length is None:
            return None
        both = arena.read(place)
        if both is None or both[1] != reader.identity:
            return None
        arena.touch(place)
        return Copy(key, both[0], reader.length, arena, place, reader)

    def _is_latest(self, copy: Copy) -> bool:
        """Whether nobody renewed the file of a held copy, or dropped its renewal."""
        arena = self.arena
        if arena is None:
            return True
        if copy.place is not None:
            if not arena.is_current(copy.place):
                return False
            arena.touch(copy.place)
            return True
        assert copy.reader is not None
        spot = copy.renewal_spot
        if spot is None:
            spot = copy.renewal_spot = arena.spot(_renewal_key(copy.key))
        return arena.is_vacant(spot) or self._renewed(copy.key, copy.reader) is None

    def renew(self, copy: Copy, meta: bytes) -> Copy | None:
        """Keep `meta` in place of the meta of a copy, whose body stays. None: the copy is gone, or memory takes nothing."""
        reader = copy.reader
        if reader is None:
            body = copy.body()
            return None if body is None else self.put(copy.key, meta, body)
        if self.arena is None or not reader.is_linked:
            return None
        place = self.arena.put(_renewal_key(copy.key), meta, reader.identity)
        if place is None:
            return None
        self._forget(copy.key)
        renewed = Copy(copy.key, meta, copy.length, self.arena, place, reader)
        self._hold_open(renewed)
        return renewed

    # Keeping

    def put(self, key: bytes, meta: bytes, body: bytes) -> Copy | None:
        """Keep a complete object. None: it is not in memory (too large, or this worker drains); it may be on disk in a moment."""
        held = self._held
        if key in held:
            self._forget(key)
        arena, disk = self.arena, self.disk
        place = None
        if arena is not None:
            place = arena.put(key, meta, body)
            if place is None:
                arena.remove(key)
        spill = self._spill
        if spill is not None:
            spill.forget(key)
        if place is not None:
            if key in self._absent:
                del self._absent[key]
            elif spill is not None:
                spill.unlink(key)
            return Copy(key, meta, len(body), arena, place, None)
        if disk is not None:
            self.is_on_disk = disk.write(key, meta, body)
        return None

    def writer(self, key: bytes, meta: bytes) -> Writer | None:
        """For an object that is large, or that others want to read while it arrives. None: there is no disk, or it fails."""
        if self.disk is None:
            return None
        writer = self.disk.writer(key, meta)
        if writer is not None:
            writer.on_finished = self._written
        return writer

    def follow(self, growing: Writer | str) -> Reader | None:
        """What somebody writes: one's own writer, or the path of another process's."""
        path = growing if isinstance(growing, str) else growing.path
        return None if self.disk is None else self.disk.follow(path)

    def _written(self, key: bytes) -> None:
        self._forget(key)
        self._absent.pop(key, None)
        if self._spill is not None:
            self._spill.forget(key)
        if self.arena is not None:
            self.arena.remove(key)

    def remove(self, key: bytes) -> bool:
        """Forget an object, for all workers; whether there was one."""
        self._forget(key)
        if self._spill is not None:
            self._spill.forget(key)
        arena, disk = self.arena, self.disk
        was_there = arena is not None and arena.remove(key)
        if disk is not None:
            was_there = disk.remove(key) or was_there
            if arena is not None:
                arena.remove(key)
        return was_there

    # Life

    def own(self, count: int) -> None:
        """This process is one of `count` that keep things; call it again once a second (`Arena.own`)."""
        if self.arena is not None:
            self.arena.own(count)

    def let_go(self) -> None:
        """Close the files that were evicted or removed, by whomever; call it once a second, or they take up the disk for as long as nobody
        asks for them."""
        for key, copy in list(self._open.items()):
            assert copy.reader is not None
            if not copy.reader.is_linked:
                self._forget(key)

    def release(self) -> None:
        """This worker drains: it goes on reading and puts nothing into memory any more."""
        if self.arena is not None:
            self.arena.release()

    def statistics(self) -> dict[str, int]:
        found = {"held": len(self._held)}
        if self._spill is not None:
            found |= {"spilled": self._spill.written, "not_spilled": self._spill.not_written}
        if self.arena is not None:
            found |= {f"memory_{name}": value for name, value in self.arena.statistics().items()}
        if self.disk is not None:
            found |= {f"disk_{name}": value for name, value in self.disk.statistics().items()}
        return found


def _renewal_key(key: bytes) -> bytes:
    return (int.from_bytes(key, "little") ^ _RENEWAL).to_bytes(16, "little")
