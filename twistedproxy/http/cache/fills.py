"""One answer on its way from a server into the cache, and to everybody who waits for it.

The class has over 300 lines, since its states and where it has the body are one thing.

How it works
    The first request for something that is not there makes a `Fill` and *leads* it; it and all later ones for the same key *follow* it.

    Nearly always nobody else waits, and the answer is small and comes at once. So the leader asks the server by itself, like any request,
    and tells the fill what came of it: `answered_at_once`, or `asked_in_vain`. As soon as there is more to it (others wait, the body is
    long or still on its way, the client left) the fill takes the request over (`take_over`) with a `Fetch`, an exchange without a client:
    no client's pace or leave decides what the others get. Where a copy is to be renewed, or the request has conditions of its own, it is
    a `Fetch` from the start (`begin`).

        ASKING ──head may be kept──▶ KEEPING ──whole──▶ DONE        followers read what there is, at their own pace
           │                            └─ too large, disk broken ─▶ PASSING
           ├────head may not be kept──▶ PASSING                     the first follower goes on, the others go their own ways
           ├────304 to our validators─▶ DONE                        followers get the copy that was there, renewed
           └────error, or 5xx ────────▶ FAILED                      followers get the stale copy if they may, else the error

    KEEPING holds the body in memory while it is small, then in the file it will be kept in. PASSING holds only a window of it: the server
    is read as fast as the slowest follower takes it.
"""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Any, Protocol

from twistedproxy.errors import ProxyError
from twistedproxy.http.cache import freshen, policy
from twistedproxy.http.cache.entries import Entry
from twistedproxy.http.cache.fetch import Fetch
from twistedproxy.http.cache.stored import Flag
from twistedproxy.http.messages import RequestHead, ResponseHead
from twistedproxy.net.transport import HIGH_WATER, LOW_WATER

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache
    from twistedproxy.http.cache.neighbours import RemoteFill

PIECE = 64 * 1024
"""Bytes of a body that are taken at once."""
WORTH_FINISHING = 1024 * 1024
"""When all followers have left, a fill goes on if it has at most so much to go, or has more than half."""

FIELDS = "fields"
"""Why an answer is not kept: its fields are too long, or its `Vary` names too much."""
STORE_FAILED = "store-failed"
"""Why an answer is not kept: neither memory nor disk took it."""


class FillState(enum.StrEnum):
    ASKING = "asking"
    KEEPING = "keeping"
    PASSING = "passing"
    DONE = "done"
    FAILED = "failed"


TRANSITIONS: dict[FillState, frozenset[FillState]] = {
    FillState.ASKING: frozenset({FillState.KEEPING, FillState.PASSING, FillState.DONE, FillState.FAILED}),
    FillState.KEEPING: frozenset({FillState.PASSING, FillState.DONE, FillState.FAILED}),
    FillState.PASSING: frozenset({FillState.DONE, FillState.FAILED}),
    FillState.DONE: frozenset(),
    FillState.FAILED: frozenset(),
}


class Follower(Protocol):
    """Who waits for a fill."""

    @property
    def position(self) -> int:
        """How much of the body it has taken."""

    def fill_began(self, fill: Fill | RemoteFill) -> None:
        """The head is there and the body comes; read it from the fill."""

    def fill_grew(self, data: bytes) -> None:
        """`data` was added to the body."""

    def fill_ended(self) -> None:
        """All of the body is there."""

    def fill_renewed(self, entry: Entry) -> None:
        """The copy that was there is good."""

    def fill_failed(self, error: ProxyError) -> None:
        """There will be no answer, or no more of it."""

    def chooses(self, entry: Entry) -> bool:
        """Whether this is the variant its request chooses."""

    def fill_released(self) -> None:
        """This fill is of no use to this follower: look again, or go alone."""


class Followed:
    """An answer on its way, as those see it who follow it: a fill of this worker, or another's (`neighbours.RemoteFill`)."""

    state = FillState.ASKING
    entry: Entry | None = None
    """What is being kept."""
    stale: Entry | None = None
    """What was there, and is asked to be renewed."""
    head: ResponseHead | None = None
    """The server's head, of an answer that is passed on."""
    length = 0
    """Of the body, as `body_length_for` says it."""
    size = 0
    """Bytes of the body that have come."""
    url: bytes
    is_forgotten = False
    """What it fills was invalidated meanwhile: it is not kept."""
    claimed_key = b""
    """Under which other workers find it; b"": they do not."""
    refused: policy.Refused | None = None
    """Why the answer is not kept."""
    not_kept = ""
    """Why an answer that might be kept is not."""
    fetch: Fetch | None = None
    """Who asks the server; None while the leader does so itself, or another worker."""
    followers: dict[Follower, None]
    _was_followed = False

    @property
    def is_complete(self) -> bool:
        return self.state is FillState.DONE

    @property
    def takes_followers(self) -> bool:
        """Whether one that comes now gets all of it."""
        return self.state is FillState.ASKING or self.state is FillState.KEEPING

    def attach(self, follower: Follower) -> bool:
        """False: the answer that comes is another variant than this follower's request chooses."""
        if self.entry is not None and not follower.chooses(self.entry):
            return False
        self.followers[follower] = None
        self._was_followed = True
        return True

    def detach(self, follower: Follower) -> None:
        """A follower has all it wanted, or its client is gone."""
        self.followers.pop(follower, None)

    def _all(self) -> list[Follower]:
        return list(self.followers)

    def _release_all(self, but: Follower | None = None) -> None:
        """It is of no use to them."""
        for follower in self._all():
            if follower is not but:
                self.followers.pop(follower, None)
                follower.fill_released()


class Fill(Followed):
    """One key's answer on its way. `leader` is the exchange whose request it is; `stale` the copy that is asked to be renewed."""

    _base = 0
    """Where in the body `_memory` begins."""
    _writer: Any = None
    _file: Any = None
    """Reads what the writer wrote, also after it is done."""
    _in_file = 0
    """When the file was given up: so much of the body is in it, and what came after in memory."""
    _is_held = False
    """The server is not read, since followers are behind."""

    def __init__(self, cache: Cache, key: bytes, leader: Any, stale: Entry | None) -> None:
        self.cache = cache
        self.key = key
        self.leader = leader
        self.request: RequestHead = leader.head
        self.url = leader.url
        self.primary: bytes = leader.primary
        self.settings = leader.settings
        self.stale = stale
        self.followers = {}
        self.asked_at = cache.now()
        self._memory = bytearray()

    def __repr__(self) -> str:
        return f"<Fill {self.url.decode('latin-1')} {self.state.value} {self.size}>"

    def begin(self, destination: Any) -> None:
        """Ask the server."""
        self.fetch = Fetch(self, self.leader)
        self.fetch.begin_fetch(destination, freshen.conditional_fields(self.stale.stored) if self.stale is not None else ())

    # Followers

    def detach(self, follower: Follower) -> None:
        self.followers.pop(follower, None)
        if self.followers:
            self.progressed()
        elif self.state is FillState.PASSING or (self.state is FillState.KEEPING and not self._is_worth_finishing()):
            self._give_up()

    def _give_up(self) -> None:
        """Nobody wants it."""
        if self._writer is not None:
            self._writer.abort()
        self._end(FillState.FAILED)
        if self.fetch is not None:
            self.fetch.abandon()

    def _is_worth_finishing(self) -> bool:
        left = self.length - self.size
        return self.length >= 0 and (left <= WORTH_FINISHING or self.size > left)

    def read(self, position: int, most: int = PIECE) -> bytes:
        """What there is of the body from `position` on, at most so many bytes."""
        if self._file is not None and not self._in_file:
            data: bytes = self._file.read(position, min(most, self.size - position))
            return data
        if position < self._in_file:  # of a file that has no name any more
            return os.pread(self._file.fd, min(most, self._in_file - position), self._file.body_offset + position)
        at = position - self._base
        return bytes(self._memory[at : at + most]) if at >= 0 else b""

    @property
    def is_open(self) -> bool:
        """More may come of it."""
        return self.state is not FillState.DONE and self.state is not FillState.FAILED

    # A leader that asks by itself

    def is_only(self, follower: Follower) -> bool:
        """Whether nobody else waits."""
        return len(self.followers) == 1 and follower in self.followers

    def take_over(self, leader: Any) -> Fetch:
        """Others wait as well, or the answer will take a while: from here on it does not depend on the leader's client."""
        fetch = self.fetch = Fetch(self, leader)
        fetch.take_over(leader)
        return fetch

    def answered_at_once(self, head: ResponseHead, length: int, body: bytes) -> None:
        """All of the answer is there, it is small, and nobody but the leader waits, who has it already."""
        cache, now = self.cache, self.cache.now()
        self.head, self.length, self.size = head, length, len(body)
        found = policy.storable(self.request, head, self.settings, self.asked_at, now)
        if isinstance(found, policy.Refused):
            self.refused = found
        elif len(body) <= cache.spec.max_object:
            self.entry = cache.entry_for(self, head, found, now)
            self.not_kept = "" if self.entry is not None else FIELDS
        else:
            self.not_kept = policy.Refused.TOO_LARGE.value
        if self.entry is None:
            self._move(FillState.PASSING)
            cache.passed_on.note(self)
        else:
            self._move(FillState.KEEPING)
            if not self.is_forgotten and not cache.keep(self, self.entry, body):
                self.not_kept = STORE_FAILED
        self._end(FillState.DONE)
        if self.entry is not None:
            cache.prefer(self)

    def asked_in_vain(self, error: ProxyError | None) -> None:
        """The leader got no answer, or (None) left: the others get the error, or ask for themselves."""
        self.followers.pop(self.leader, None)
        if error is not None:
            self.failed(error)
            return
        self._end(FillState.FAILED)
        self._release_all()

    # What the fetch tells

    def answered(self, head: ResponseHead, length: int, body: bytes, is_whole: bool) -> None:
        """The server's head is there, and so much of the body."""
        stale, now = self.stale, self.cache.now()
        if stale is not None:
            if head.status == 304:
                self._renew(head, stale, now)
                return
            if head.status >= 500 and policy.may_serve_on_error(stale.stored, self.request, now):
                self._end(FillState.FAILED)
                for follower in self._all():
                    follower.fill_renewed(stale)
                return
        self.head = head
        self.length = length
        found = policy.storable(self.request, head, self.settings, self.asked_at, now)
        if isinstance(found, policy.Refused):
            self.refused = found
        elif length <= self.cache.spec.max_object:
            self.entry = self.cache.entry_for(self, head, found, now)
            self.not_kept = "" if self.entry is not None else FIELDS
        else:
            self.not_kept = policy.Refused.TOO_LARGE.value
        if self.entry is None:
            self._pass()
            if not self.is_open:
                return
        else:
            self._move(FillState.KEEPING)
            if length > self.cache.memory_max:
                self._spill()
            self._release_others(self.entry)
        self._take(body)
        if is_whole:
            self._whole()
        for follower in self._all():
            follower.fill_began(self)
        if self.state is FillState.KEEPING and self._was_followed and not self.followers and not self._is_worth_finishing():
            self._give_up()
        elif self.state is FillState.KEEPING or self.state is FillState.DONE:
            self.cache.prefer(self)

    def yield_to(self) -> None:
        """Another fill of the same key, begun before this one, has its answer first."""
        self._release_all()
        if self.is_open and not self.followers:
            self._give_up()

    def _renew(self, head: ResponseHead, stale: Entry, now: float) -> None:
        stored = freshen.refreshed(stale.stored, self.request, head, self.settings, self.asked_at, now)
        if stored is None:  # the 304 speaks of something else than what we have
            self.stale = None
            before = self.fetch
            assert before is not None
            self.begin(before.destination)
            before.abandon()
            return
        entry = self.cache.renewed(stale, stored, self.asked_at, keeps=not self.is_forgotten)
        self._end(FillState.DONE)
        for follower in self._all():
            if stored.flags & Flag.DROP and follower is not self.leader:
                self.followers.pop(follower, None)
                follower.fill_released()
            else:
                follower.fill_renewed(entry)

    def _pass(self) -> None:
        """Not to be kept: the answer belongs to the first follower, who asked for it."""
        self._move(FillState.PASSING)
        self.cache.passed_on.note(self)
        self._release_all(but=self.leader)
        if not self.followers:
            self._end(FillState.FAILED)

    def _release_others(self, entry: Entry) -> None:
        """Followers whose requests choose another variant."""
        for follower in self._all():
            if follower is not self.leader and not follower.chooses(entry):
                self.followers.pop(follower, None)
                follower.fill_released()

    def data(self, data: bytes) -> None:
        """More of the body."""
        if data and self.is_open:
            self._take(data)
            for follower in self._all():
                follower.fill_grew(data)
            self.progressed()

    def _take(self, data: bytes) -> None:
        size = self.size + len(data)
        if self.state is FillState.KEEPING:
            if size > self.cache.spec.max_object:
                self._stop_keeping(policy.Refused.TOO_LARGE.value)
            elif self._writer is None and size > self.cache.memory_max:
                self._spill()
        if self._writer is None:
            self._memory += data
        elif not self._writer.write(data):
            self._stop_keeping()
            self._memory += data
        self.size = size

    def ended(self) -> None:
        """All of the answer is there."""
        if not self.is_open:
            return
        self._whole()
        for follower in self._all():
            follower.fill_ended()

    def _whole(self) -> None:
        if self.state is FillState.KEEPING:
            self._keep()
        self._end(FillState.DONE)

    def failed(self, error: ProxyError) -> None:
        """The server did not answer, or not to the end."""
        began, stale = self.state is not FillState.ASKING, self.stale
        if self._writer is not None:
            self._writer.abort()
        self._end(FillState.FAILED)
        if stale is not None and (began or not policy.may_serve_on_error(stale.stored, self.request, self.cache.now())):
            stale = None
        for follower in self._all():
            if stale is not None:
                follower.fill_renewed(stale)
            else:
                follower.fill_failed(error)

    # Keeping

    def _spill(self) -> None:
        """The body goes on in the file it will be kept in; without one it is passed on only."""
        if not self._goes_to_file():
            self._stop_keeping()

    def _goes_to_file(self) -> bool:
        assert self.entry is not None
        store = self.cache.store
        writer = store.writer(self.entry.key, self.entry.to_meta())
        reader = store.follow(writer.path) if writer is not None and writer.write(bytes(self._memory)) else None
        if reader is None:
            if writer is not None:
                writer.abort()
            return False
        self._writer, self._file = writer, reader
        self._memory.clear()
        return True

    @property
    def path(self) -> str:
        """The file the body is written to; "" without one."""
        return self._writer.path if self._writer is not None else ""

    def share(self) -> bool:
        """Let other workers read along; False when that cannot be, and they wait until it is whole."""
        return self._writer is not None or (self.state is FillState.KEEPING and self._goes_to_file())

    def _stop_keeping(self, why: str = STORE_FAILED) -> None:
        """It is too large, or the disk takes no more: followers that are behind read what there is, the rest comes at their pace."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._base = self._in_file = self.size  # what was written can be read for as long as the file is open
            if not self.size:
                self._file = None
            writer.abort()
        self.not_kept = why
        self._move(FillState.PASSING)
        self.cache.passed_on.note(self)

    def _keep(self) -> None:
        entry, writer = self.entry, self._writer
        assert entry is not None
        if self.is_forgotten:
            if writer is not None:
                writer.leave()
        elif writer is None:
            if not self.cache.keep(self, entry, bytes(self._memory)):
                self.not_kept = STORE_FAILED
        elif writer.finish() and self.cache.is_kept_whole(entry, self.size):
            self.cache.kept(self, entry)
        else:
            self.not_kept = STORE_FAILED

    def _mind_window(self) -> None:
        """PASSING: forget what all followers have, and do not read the server while one is far behind."""
        lowest = min(self.size, min([follower.position for follower in self.followers], default=self.size))
        if lowest > self._base and (lowest - self._base >= LOW_WATER or lowest == self.size):
            del self._memory[: lowest - self._base]
            self._base = lowest
        waiting = self.size - lowest
        if waiting > HIGH_WATER and not self._is_held:
            self._is_held = True
            if self.fetch is not None:
                self.fetch.pause_response()
        elif waiting <= LOW_WATER and self._is_held:
            self._is_held = False
            if self.fetch is not None:
                self.fetch.resume_response()

    def progressed(self) -> None:
        """A follower has taken something."""
        if self.state is FillState.PASSING:
            self._mind_window()

    # Ends

    def _move(self, to: FillState) -> None:
        assert to in TRANSITIONS[self.state], f"{self.state} to {to}"
        self.state = to

    def _end(self, state: FillState) -> None:
        self._move(state)
        self.cache.fill_over(self)
