"""One answer on its way from a server into the cache, and to everybody who waits for it.

How it works
    The first request for something that is not there makes a `Fill`; it and all later ones for the same key *follow* it. The fill asks the
    server through a `Fetch`, an exchange without a client, so no client's pace or leave decides what the others get.

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
from typing import TYPE_CHECKING, Any, Protocol

from twistedproxy.clock import Timed
from twistedproxy.errors import ProxyError, ResponseTimeout
from twistedproxy.http.acting import ActingExchange
from twistedproxy.http.cache import freshen, policy
from twistedproxy.http.cache.entries import Entry
from twistedproxy.http.cache.stored import Flag
from twistedproxy.http.exchange import Exchange, State
from twistedproxy.http.messages import RequestHead, ResponseHead
from twistedproxy.http.middleware.chain import EditedHead, Edits
from twistedproxy.net.transport import HIGH_WATER, LOW_WATER

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache

PIECE = 64 * 1024
WORTH_FINISHING = 1024 * 1024
"""When all followers have left, a fill goes on if it has at most so much to go, or has more than half."""


class FillState(enum.Enum):
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

    def fill_began(self, fill: Any) -> None:
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


class Fill:
    """One key's answer on its way. `leader` is the exchange whose request it is; `stale` the copy that is asked to be renewed."""

    def __init__(self, cache: Cache, key: bytes, leader: Any, stale: Entry | None) -> None:
        self.cache = cache
        self.key = key
        self.request: RequestHead = leader.head
        self.url: bytes = leader.url
        self.primary: bytes = leader.primary
        self.settings = leader.settings
        self.stale = stale
        self.state = FillState.ASKING
        self.entry: Entry | None = None
        """What is being kept."""
        self.head: ResponseHead | None = None
        """The server's head, of an answer that is passed on."""
        self.length = 0
        """Of the body, as `body_length_for` says it."""
        self.size = 0
        """Bytes of the body that have come."""
        self.is_forgotten = False
        """What it fills was invalidated meanwhile: it is not kept."""
        self.followers: dict[Any, None] = {}
        self.refused: policy.Refused | None = None
        """Why the answer is not kept."""
        self.asked_at = cache.now()
        self.started = cache.seconds()
        self._base = 0
        """Where in the body `_memory` begins."""
        self._memory = bytearray()
        self._writer: Any = None
        self._file: Any = None
        """Reads what the writer wrote, also after it is done."""
        self._is_held = False
        """The server is not read, since followers are behind."""
        self.fetch = Fetch(self, leader)

    def __repr__(self) -> str:
        return f"<Fill {self.url.decode('latin-1')} {self.state.value} {self.size}>"

    def begin(self, destination: Any) -> None:
        """Ask the server."""
        self.fetch.begin_fetch(destination, freshen.conditional_fields(self.stale.stored) if self.stale is not None else ())

    # Followers

    def attach(self, follower: Any) -> bool:
        """False: the answer that comes is another variant than this follower's request chooses."""
        if self.entry is not None and not follower.chooses(self.entry):
            return False
        self.followers[follower] = None
        return True

    def detach(self, follower: Any) -> None:
        """A follower has all it wanted, or its client is gone."""
        self.followers.pop(follower, None)
        if self.state is FillState.PASSING:
            if self.followers:
                self._mind_window()
            else:
                self._end(FillState.FAILED)
                self.fetch.abandon()
        elif not self.followers and self.state is FillState.KEEPING and not self._is_worth_finishing():
            self._end(FillState.FAILED)
            self.fetch.abandon()

    def _is_worth_finishing(self) -> bool:
        left = self.length - self.size
        return self.length >= 0 and (left <= WORTH_FINISHING or self.size > left)

    def read(self, position: int, most: int = PIECE) -> bytes:
        """What there is of the body from `position` on, at most so many bytes."""
        if self._file is not None:
            data: bytes = self._file.read(position, min(most, self.size - position))
            return data
        at = position - self._base
        return bytes(self._memory[at : at + most])

    @property
    def is_complete(self) -> bool:
        return self.state is FillState.DONE

    @property
    def takes_followers(self) -> bool:
        """Whether one that comes now gets all of it."""
        return self.state is FillState.ASKING or self.state is FillState.KEEPING

    @property
    def is_open(self) -> bool:
        """More may come of it."""
        return self.state is not FillState.DONE and self.state is not FillState.FAILED

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

    def _renew(self, head: ResponseHead, stale: Entry, now: float) -> None:
        stored = freshen.refreshed(stale.stored, self.request, head, self.settings, self.asked_at, now)
        if stored is None:  # the 304 speaks of something else than what we have
            self.stale = None
            before, self.fetch = self.fetch, Fetch(self, self.fetch.leader)
            before.abandon()
            self.begin(before.destination)
            return
        entry = self.cache.renewed(stale, stored, self.asked_at)
        self._end(FillState.DONE)
        for follower in self._all():
            if stored.flags & Flag.DROP and follower is not self.fetch.leader:
                self.followers.pop(follower, None)
                follower.fill_released()
            else:
                follower.fill_renewed(entry)

    def _pass(self) -> None:
        """Not to be kept: the answer belongs to the first follower, who asked for it."""
        self._move(FillState.PASSING)
        self.cache.passes_on(self)
        for follower in self._all():
            if follower is not self.fetch.leader:
                self.followers.pop(follower, None)
                follower.fill_released()
        if not self.followers:
            self._end(FillState.FAILED)

    def _release_others(self, entry: Entry) -> None:
        """Followers whose requests choose another variant."""
        for follower in self._all():
            if not follower.chooses(entry):
                self.followers.pop(follower, None)
                follower.fill_released()

    def data(self, data: bytes) -> None:
        """More of the body."""
        if data:
            self._take(data)
            for follower in self._all():
                follower.fill_grew(data)
            if self.state is FillState.PASSING:
                self._mind_window()

    def _take(self, data: bytes) -> None:
        size = self.size + len(data)
        if self.state is FillState.KEEPING:
            if size > self.cache.spec.max_object:
                self._stop_keeping()
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
        is_useful = not began and stale is not None and policy.may_serve_on_error(stale.stored, self.request, self.cache.now())
        for follower in self._all():
            if is_useful:
                follower.fill_renewed(stale)
            else:
                follower.fill_failed(error)

    # Keeping

    def _spill(self) -> None:
        """The body goes on in the file it will be kept in; without one it is passed on only."""
        assert self.entry is not None
        store = self.cache.store
        writer = store.writer(self.entry.key, self.entry.to_meta())
        reader = store.follow(writer.path) if writer is not None and writer.write(bytes(self._memory)) else None
        if reader is None:
            if writer is not None:
                writer.abort()
            self._stop_keeping()
            return
        self._writer, self._file = writer, reader
        self._memory.clear()

    @property
    def path(self) -> str:
        """The file the body is written to; "" without one."""
        return self._writer.path if self._writer is not None else ""

    def share(self) -> bool:
        """Let other workers read along; False when that cannot be."""
        if self._writer is None and self.state is FillState.KEEPING:
            self._spill()
        return self._writer is not None

    def _stop_keeping(self) -> None:
        """It is too large, or the disk takes no more: followers that are behind read what there is, the rest comes at their pace."""
        writer, self._writer = self._writer, None
        if writer is not None:
            lowest = min([follower.position for follower in self.followers], default=self.size)
            self._base = lowest
            while len(self._memory) < self.size - lowest:
                piece = self._file.read(lowest + len(self._memory), PIECE)
                if not piece:
                    break
                self._memory += piece
            self._file = None
            writer.abort()
        self._move(FillState.PASSING)
        self.cache.passes_on(self)

    def _keep(self) -> None:
        entry, writer = self.entry, self._writer
        assert entry is not None
        if self.is_forgotten:
            if writer is not None:
                writer.abort()
        elif writer is None:
            self.cache.keep(self, entry, bytes(self._memory))
        elif writer.finish():
            self.cache.kept(self, entry)

    def _mind_window(self) -> None:
        """PASSING: forget what all followers have, and do not read the server while one is far behind."""
        lowest = min([follower.position for follower in self.followers], default=self.size)
        if lowest - self._base >= LOW_WATER or lowest == self.size:
            del self._memory[: lowest - self._base]
            self._base = lowest
        waiting = self.size - lowest
        if waiting > HIGH_WATER and not self._is_held:
            self._is_held = True
            self.fetch.pause_response()
        elif waiting <= LOW_WATER and self._is_held:
            self._is_held = False
            self.fetch.resume_response()

    def progressed(self) -> None:
        """A follower has taken something."""
        if self.state is FillState.PASSING:
            self._mind_window()

    # Ends

    def _all(self) -> list[Any]:
        return list(self.followers)

    def _move(self, to: FillState) -> None:
        assert to in TRANSITIONS[self.state], f"{self.state} to {to}"
        self.state = to

    def _end(self, state: FillState) -> None:
        self._move(state)
        self.cache.fill_over(self)


class NoClient(Timed):
    """Where an exchange without a client finds what it asks a client's connection for."""

    __slots__ = ("client", "client_port", "exchange", "front", "is_gone", "local", "response_deadline", "transport")

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self.front = connection.front
        self.client = connection.client
        self.client_port = connection.client_port
        self.local = connection.local
        self.transport = self
        self.is_gone = False
        self.response_deadline = 0.0
        self.exchange: Any = None

    is_plain = False

    def await_response(self, deadline: float) -> None:
        self.response_deadline = deadline
        self.front.wheel.arm(self, deadline)

    def stop_waiting(self) -> None:
        self.front.wheel.disarm(self)

    def deadline_passed(self, now: float) -> None:
        self.exchange.fail(ResponseTimeout("no response within the request time-out"))

    def exchange_done(self, exchange: Any, now: float) -> None:
        self.front.wheel.disarm(self)
        self.exchange = None

    def resume_reading(self) -> None:
        """There is no request body."""

    def pause_reading(self) -> None:
        """As above."""

    def splice_body(self, sink: Any) -> None:
        """As above."""

    def write(self, data: bytes) -> None:
        """A 1xx, which is for a client."""


class Fetch(ActingExchange):
    """The request of a fill: an exchange whose answer goes to the fill. It is neither counted nor logged; its followers are."""

    is_recorded = False

    def __init__(self, fill: Fill, leader: Any) -> None:
        connection: Any = NoClient(leader.connection)
        Exchange.__init__(self, connection, leader.head, leader.request_id, connection.front.seconds())
        connection.exchange = self
        self.fill = fill
        self.leader = leader
        self.client_ip = leader.client_ip
        self.decision = leader.decision
        self.actions = leader.actions
        self.is_request_complete = True
        self.destination: Any = None
        self._is_moved = leader._is_moved

    def begin_fetch(self, destination: Any, conditions: tuple[tuple[bytes, bytes], ...]) -> None:
        """Ask for the whole thing, whatever part of it the first client wants; with `conditions`, only if it has changed."""
        self.destination = destination
        edits = Edits(
            put=[(name, _constant(value)) for name, value in conditions],
            remove=[name for name in freshen.FILL_REMOVES if self.leader.outgoing.get(name) is not None],
        )
        outgoing: Any = EditedHead(self.leader.outgoing, edits, self.leader) if edits else self.leader.outgoing
        self.outgoing = outgoing
        timeouts = destination.timeouts
        self.response_idle_s = timeouts.response_idle_s
        self.connection.await_response(self.started + timeouts.request_s)
        self._acquire(destination)

    def abandon(self) -> None:
        """Nobody wants the answer any more."""
        self._finish()

    # What upstream and pool tell

    def interim(self, head: ResponseHead) -> None:
        self.leader.hear_interim(head)

    def respond(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        if (head.status >= 502 or head.status == 429) and self._is_not_wanted(head):
            return
        self.state = State.RESPONDING
        self.status = head.status
        self.error = None
        self.head_at = self.front.seconds()
        self.connection.stop_waiting()
        fill = self.fill
        if is_done:
            self._finish()
        fill.answered(head, length, body, is_done)
        if not fill.is_open:
            self._finish()

    def response_data(self, data: bytes, is_done: bool) -> None:
        if is_done:
            self._finish()
        self.fill.data(data)
        if is_done:
            self.fill.ended()

    def fail(self, error: ProxyError) -> None:
        if self.state is State.DONE:
            return
        self.error = error
        self._finish()
        if self.fill.fetch is self and self.fill.is_open:
            self.fill.failed(error)

    @property
    def server_address(self) -> str:
        """Who was asked."""
        return self._lease.server.address if self._lease is not None else self._asked

    _asked = ""

    def _finish(self, now: float = 0.0) -> None:
        if self._lease is not None:
            self._asked = self._lease.server.address
        super()._finish(now)


def _constant(value: bytes) -> Any:
    return lambda exchange: value
