"""Exchanges on routes with a cache: answered from it, following what is on its way, or going to the server like any other.

    hooks ▶ may this request use the cache? ─no─▶ ACQUIRE, and what the answer makes untrue is forgotten
              │ yes
              ▼
            is it there? ─fresh, or stale and allowed─▶ RESPOND from the store
              │ no, or to be renewed
              ▼
            FOLLOW the fill of its key, the one that is on or a new one ▶ RESPOND as it comes

How it works
    A kept answer passes the same `respond` as a server's: path adjustments, header edits, compression and cookies come after the cache, so
    what is kept is what the server said. Bodies that are longer than one piece are sent as fast as the client takes them.
"""

from __future__ import annotations

from collections import deque
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from twistedproxy.errors import BrokenCopy, OnlyIfCached, ProxyError
from twistedproxy.http.acting import ActingExchange
from twistedproxy.http.cache import conditional, freshen, keys, policy, ranges
from twistedproxy.http.cache.entries import Entry, url_of
from twistedproxy.http.cache.fills import PIECE, Fill, FillState
from twistedproxy.http.cache.kept import Kept
from twistedproxy.http.cache.neighbours import RemoteFill
from twistedproxy.http.cache.status import Forwarded, forwarded, hit
from twistedproxy.http.destination import Destination
from twistedproxy.http.exchange import State
from twistedproxy.http.head import RESPONSE_LIMITS, parse_response
from twistedproxy.http.messages import CHUNKED, NO_BODY, Kind, LocalResponse, RequestHead, ResponseHead
from twistedproxy.http.middleware.chain import EditedHead, Edits
from twistedproxy.http.routes import Decision
from twistedproxy.net.sendfile import FileSend

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache

SEND_FROM = 32 * 1024
"""Bytes of a file from which sending them inside the kernel pays."""
PATIENCE_S = 5.0
"""How long a follower waits for a head that another's request is to bring."""


class CachingExchange(ActingExchange):
    """An exchange on a route with a cache."""

    cache: Cache
    settings: policy.Settings
    url = b""
    key: bytes | None = None
    """What is filled or was found; None: this request does not use the cache."""
    position = 0
    """How much of the body went to the client; of parts: where in the whole the next byte is."""
    primary = b""
    _why: Forwarded | None = None
    """Why a server is asked."""
    _detail = ""
    _result = "miss"
    """What the request is counted as."""
    _fill: Fill | RemoteFill | None = None
    _leads = False
    """The fill is this request's."""
    _is_waiting = False
    _was_released = 0
    _source: Any = None
    """Where the rest of the body is read: a fill or a file."""
    _end: int | None = None
    """Where in it this answer ends; None: where it does."""
    _parts: deque[ranges.Part]
    _after = b""
    _is_paused = False
    _sending: FileSend | None = None

    # ROUTE

    def begin(self, decision: Decision[Destination]) -> Decision[Destination] | None:
        going = super().begin(decision)
        return None if going is None or self._is_answered_from_cache(going) else going

    def _is_answered_from_cache(self, decision: Decision[Destination]) -> bool:
        """True: there is an answer, or it is waited for; False: go on to the server."""
        cache, head = self.cache, self.head
        self.decision = decision
        self.settings = cache.settings_of(self.actions.cache)
        bypass = policy.may_use(head, self.settings)
        scheme = self.scheme.encode()
        self.url = url_of(scheme, head.authority, head.path, head.query)
        scope = cache.scope(decision)
        if self.connection.client.is_trusted:
            scope += keys.claims(head)
        self.primary = keys.primary(scheme, head.authority, head.path, head.query, scope)
        if bypass is not None:
            return self._goes_past(Forwarded.METHOD if bypass is policy.Bypass.METHOD else Forwarded.BYPASS, bypass.value)
        return self._look(decision)

    def _goes_past(self, why: Forwarded, detail: str = "") -> bool:
        self._why = why
        self._detail = detail
        self._result = "bypass" if why is Forwarded.BYPASS or why is Forwarded.METHOD else "miss"
        return False

    def _look(self, decision: Decision[Destination]) -> bool:
        cache, head = self.cache, self.head
        key, entry = cache.find(self.primary, head)
        self.key = key
        if entry is None:
            if key is None:
                return self._goes_past(Forwarded.VARY_MISS)
            if policy.only_if_cached(head, self.settings):
                self.fail(OnlyIfCached("the client wants it from the cache only, and it is not there"))
                return True
            return self._follow(decision, key, None, Forwarded.URI_MISS)
        use = policy.usable(entry.stored, head, cache.now(), self.settings)
        if use is policy.Use.FRESH:
            self._serve(entry, "hit")
            return True
        if use is policy.Use.STALE_WHILE_REVALIDATE:
            if cache.may_renew(entry.key):
                fill = cache.fill(entry.key, self, entry)
                if isinstance(fill, Fill):
                    fill.begin(decision.destination)
            self._serve(entry, "stale")
            return True
        if use is policy.Use.PASS:
            return self._goes_past(Forwarded.REQUEST)
        return self._follow(decision, entry.key, entry, Forwarded.STALE)

    def _follow(self, decision: Decision[Destination], key: bytes, stale: Entry | None, why: Forwarded) -> bool:
        """Wait for the fill of `key`, or begin it; False: ask the server without keeping anything."""
        cache = self.cache
        if self.method == b"HEAD" or cache.is_passed_on(key) or self._was_released > 1:
            return self._goes_past(why)
        self._why = why
        fill = cache.fills.get(key)
        if fill is not None and not fill.takes_followers:
            return self._goes_past(why, "collapsed")
        if fill is None:
            fill = cache.fill(key, self, stale)
            self._leads = isinstance(fill, Fill)
        if not fill.attach(self):
            return self._goes_past(Forwarded.VARY_MISS)
        self._fill = fill
        self._wait(decision)
        if fill.state is FillState.KEEPING:
            self.fill_began(fill)
        elif self._leads and isinstance(fill, Fill):
            fill.begin(decision.destination)
        return True

    def chooses(self, entry: Entry) -> bool:
        return policy.matches(entry.stored, self.head)

    def _wait(self, decision: Decision[Destination]) -> None:
        """Until the fill says more: a leader as long as any request, others not longer than `PATIENCE_S`."""
        self.state = State.QUEUED
        self._is_waiting = True
        connection = self.connection
        connection.response_deadline = deadline = self.started + decision.destination.timeouts.request_s
        now = self.front.seconds()
        connection.await_response(deadline if self._leads else min(deadline, now + PATIENCE_S))
        connection.response_deadline = deadline

    def deadline_passed(self) -> None:
        """Time is up; a follower's patience with another's request is shorter, and it may still ask for itself."""
        connection = self.connection
        if self._is_waiting and not self._leads and self.front.seconds() < connection.response_deadline:
            fill = self._fill
            self._leave_fill()
            if fill is not None:
                self.cache.give_up(fill)
            self._go_alone("impatient")
        else:
            super().deadline_passed()

    def _go_alone(self, detail: str) -> None:
        """Ask the server for this client only, or for everybody if nobody does."""
        decision = self.decision
        assert decision is not None
        self._is_waiting = False
        connection = self.connection
        if connection.is_gone:
            return
        connection.await_response(self.started + decision.destination.timeouts.request_s)
        self._detail = detail
        self._acquire(decision.destination)

    # What a fill tells

    def fill_began(self, fill: Fill | RemoteFill) -> None:
        self._stop_waiting()
        now = self.cache.now()
        entry, fetch = fill.entry, fill.fetch
        if self._leads:
            self.served_from = fetch.server_address
            self.attempts = fetch.attempts
        self._result = "miss" if self._leads else "collapsed"
        why = self._why or Forwarded.URI_MISS
        is_collapsed = not self._leads
        self._source = fill
        if entry is None:
            assert fill.head is not None
            refused = fill.refused.value if fill.refused is not None else ""
            line = forwarded(why, status=fill.head.status, collapsed=is_collapsed, detail=refused)
        else:
            stored = entry.stored
            ttl = stored.fresh_until - now
            line = forwarded(why, status=stored.status, stored=True, collapsed=is_collapsed, ttl_s=ttl)
            if fill.length >= 0 and self._is_answered_with_less(entry, now, line):
                return
        if self._leads and fill.head is not None:
            head = marked(fill.head, line, self)  # with what is for this client alone, and not kept
        else:
            assert entry is not None
            head = parse_kept(entry.stored.head(now, extra=line))
        first = fill.read(0)
        self.position = len(first)
        length = fill.length if fill.length >= 0 or entry is None else CHUNKED
        self._give(head, length, first, fill.is_complete and fill.size == len(first))
        self._pump()

    def hear_interim(self, head: ResponseHead) -> None:
        """A 1xx came on the way to the answer that this request asked for."""
        if self._is_waiting:
            self.interim(head)

    def fill_grew(self, data: bytes) -> None:
        fill = self._fill
        if fill is None or self.state is not State.RESPONDING or self._is_paused or self._end is not None:
            self._pump()
        elif self.position == fill.size - len(data):
            self.position += len(data)
            super().response_data(data, False)
        else:
            self._pump()

    def fill_ended(self) -> None:
        self._pump()

    def fill_renewed(self, entry: Entry) -> None:
        """The copy that was there may be given: it holds, or the server failed."""
        self._stop_waiting()
        self._leave_fill()
        is_fresh = self.cache.now() < entry.stored.fresh_until
        self._serve(entry, "revalidated" if is_fresh else "stale")

    def fill_failed(self, error: ProxyError) -> None:
        if self._leads and self._fill is not None:
            self.served_from = self._fill.fetch.server_address
            self.attempts = self._fill.fetch.attempts
        self._stop_waiting()
        self.fail(error)

    def fill_released(self) -> None:
        """The answer is another's: look again, and after that ask for ourselves."""
        self._fill = None
        self._was_released += 1
        decision = self.decision
        assert decision is not None
        self._is_waiting = False
        if not self._look(decision):
            self._go_alone(self._detail)

    def _stop_waiting(self) -> None:
        self._is_waiting = False
        self.connection.stop_waiting()

    def _leave_fill(self) -> None:
        fill, self._fill = self._fill, None
        if fill is not None:
            fill.detach(self)

    # RESPOND

    def respond(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        """A server's own answer to this request."""
        self.cache.invalidate(self, head)
        if self._why is not None:
            head = marked(head, forwarded(self._why, status=head.status, detail=self._detail), self)
        super().respond(head, length, body, is_done)

    def _give(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        """An answer from the cache, or from a fill: on its way like any server's."""
        ActingExchange.respond(self, head, length, body, is_done)

    def _try_for_better(self, status: int) -> bool:
        return self._lease is not None and super()._try_for_better(status)

    def _serve(self, entry: Entry, result: str) -> None:
        """Answer from what is kept."""
        cache = self.cache
        now = cache.now()
        stored = entry.stored
        self._result = result
        line = hit(stored.fresh_until - now, detail="revalidated" if result == "revalidated" else "")
        if self._is_answered_with_less(entry, now, line):
            return
        if self.method == b"HEAD":
            self._give(parse_kept(stored.head(now, extra=line)), NO_BODY, b"", True)
            return
        body = cache.body(entry)
        if body is not None:
            if result == "hit":
                cache.make_ready(self, entry)
            self._give(parse_kept(stored.head(now, extra=line)), len(body), body, True)
            return
        reader = cache.reader(entry)
        if reader is None:  # it was there a moment ago: evicted, or found to be broken
            self._is_lost(entry)
            return
        self._source = reader
        self._end = stored.body_length
        self._give(parse_kept(stored.head(now, extra=line)), stored.body_length, b"", stored.body_length == 0)
        self._pump()

    def _is_lost(self, entry: Entry) -> None:
        decision = self.decision
        assert decision is not None
        self.cache.forget(entry.key)
        if not self._follow(decision, entry.key, None, Forwarded.URI_MISS):
            self._go_alone("lost")

    def _is_answered_with_less(self, entry: Entry, now: float, line: bytes) -> bool:
        """A client that has it already, whose conditions do not hold, or that wants parts only."""
        head, stored = self.head, entry.stored
        if not has_conditions(head):
            return False
        outcome = conditional.evaluate(stored, head)
        if outcome is conditional.Outcome.NOT_MODIFIED:
            self._give(parse_kept(stored.not_modified_head(now, extra=line)), NO_BODY, b"", True)
        elif outcome is conditional.Outcome.FAILED:
            self.answer(LocalResponse(412, b"", ((b"Cache-Status", line[14:-2]),)))
        else:
            wanted = ranges.wanted(stored, head)
            if wanted is ranges.Answer.UNSATISFIABLE:
                self._give(parse_kept(ranges.unsatisfiable_head(stored, line)), NO_BODY, b"", True)
            elif isinstance(wanted, tuple):
                self._give_parts(entry, ranges.partial(stored, wanted, now, token_hex(12).encode(), line))
            else:
                return False
        return True

    def _give_parts(self, entry: Entry, partial: ranges.Partial) -> None:
        body = self.cache.body(entry) if self._source is None else None
        if body is not None:
            pieces = [part.before + body[part.first : part.first + part.length] for part in partial.parts]
            self._give(parse_kept(partial.head), partial.body_length, b"".join(pieces) + partial.after, True)
            return
        if self._source is None:
            self._source = self.cache.reader(entry)
            if self._source is None:
                self._is_lost(entry)
                return
        self._parts = deque(partial.parts)
        self._after = partial.after
        before = self._next_part()
        self._give(parse_kept(partial.head), partial.body_length, before, False)
        self._pump()

    def _next_part(self) -> bytes:
        part = self._parts.popleft()
        self.position = part.first
        self._end = part.first + part.length
        return part.before

    # The rest of a body, as fast as the client takes it

    def _pump(self) -> None:
        source = self._source
        if self._is_sent_by_kernel(source):
            return
        while self.state is State.RESPONDING and source is not None and not self._is_paused:
            data, is_done = self._next_piece(source)
            if not data and not is_done:
                return
            super().response_data(data, is_done)

    def _is_sent_by_kernel(self, source: Any) -> bool:
        """A long rest of a file that nobody needs to look at goes from the file to the socket; True while it does."""
        if self._sending is not None:
            return True
        end, transport = self._end, self.connection.transport
        if not isinstance(source, Kept) or end is None or self._has_parts or self._after or end - self.position < SEND_FROM:
            return False
        if self.state is not State.RESPONDING or not transport.is_plain or self._response_length < 0 or self.transform is not None:
            return False
        self._sending = source.send(transport, self.position, end - self.position, self._kernel_sent, self._kernel_done)
        return True

    def _kernel_sent(self, count: int) -> None:
        self.position += count
        self.bytes_sent += count
        self.front.counts.bytes_out += count

    def _kernel_done(self, is_whole: bool) -> None:
        self._sending = None
        if is_whole:
            self._finish()
        else:
            self.fail(BrokenCopy("what is kept of the answer is damaged"))

    def _next_piece(self, source: Any) -> tuple[bytes, bool]:
        end = self._end
        most = PIECE if end is None else min(PIECE, end - self.position)
        data: bytes | None = source.read(self.position, most) if most else b""
        if data is None:
            self.fail(BrokenCopy("what is kept of the answer is damaged"))
            return b"", False
        self.position += len(data)
        fill = self._fill
        if fill is not None:
            fill.progressed()
        if end is None:
            return data, fill is not None and fill.is_complete and self.position == fill.size
        if self.position < end:
            return data, False
        if self._has_parts:
            return data + self._next_part(), False
        return data + self._after, True

    @property
    def _has_parts(self) -> bool:
        return bool(self.__dict__.get("_parts"))

    def pause_response(self) -> None:
        self._is_paused = True
        super().pause_response()

    def resume_response(self) -> None:
        self._is_paused = False
        super().resume_response()
        self._pump()

    # FINISH

    def attempt_log(self, server: str) -> list[dict[str, object]]:
        return super().attempt_log(server) if self._fill is None or not self._leads else self._fill.fetch.attempt_log(server)

    def _finish(self, now: float = 0.0) -> None:
        if self.state is State.DONE:
            return
        super()._finish(now)
        self.cache.count(self.site, self._result)
        self._leave_fill()
        self._source = None
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.cancel()


def parse_kept(data: bytes) -> ResponseHead:
    """A head made here, in the form servers' heads have."""
    head: ResponseHead | None = parse_response(data, RESPONSE_LIMITS)
    assert head is not None
    return head


def marked(head: ResponseHead, line: bytes, exchange: Any) -> ResponseHead:
    """`head` with our Cache-Status behind those of other caches."""
    value = line[14:-2]
    edited: Any = EditedHead(head, Edits(add=[(b"Cache-Status", lambda exchange: value)]), exchange)
    return edited  # type: ignore[no-any-return]


def has_conditions(head: RequestHead) -> bool:
    """Whether a request asks for less than the whole answer."""
    return bool(head.kinds & Kind.CONDITIONS) and any(head.get(name) is not None for name in freshen.CONDITIONAL)
