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

The class has over 300 lines, so that a request's way through the cache can be read in one piece.
"""

from __future__ import annotations

from collections import deque
from secrets import token_hex
from typing import TYPE_CHECKING

from twistedproxy.errors import OnlyIfCached, ProxyError
from twistedproxy.http.cache import conditional, forms, freshen, keys, policy, ranges
from twistedproxy.http.cache.entries import Entry, url_of
from twistedproxy.http.cache.fills import Fill, FillState
from twistedproxy.http.cache.neighbours import RemoteFill
from twistedproxy.http.cache.ready import make_ready, parse_kept
from twistedproxy.http.cache.sending import SendingExchange
from twistedproxy.http.cache.status import Forwarded, forwarded, hit, marked
from twistedproxy.http.destination import Destination
from twistedproxy.http.exchange import State
from twistedproxy.http.messages import CHUNKED, NO_BODY, Kind, LocalResponse, RequestHead, ResponseHead
from twistedproxy.http.record import outcome_of
from twistedproxy.http.routes import Decision
from twistedproxy.pool.server import Outcome

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache

NOT_AS_IT_IS = Kind.CONDITIONS | Kind.CLAIM
"""A request with any of these asks a server for something else than what is to be kept."""
PATIENCE_S = 5.0
"""How long a follower waits for a head that another's request is to bring."""


class CachingExchange(SendingExchange):
    """An exchange on a route with a cache."""

    cache: Cache
    settings: policy.Settings
    url = b""
    primary = b""
    _why: Forwarded | None = None
    """Why a server is asked."""
    _detail = ""
    _result = ""
    """What the request is counted as; "": the cache had nothing to do with it."""
    _fill: Fill | RemoteFill | None = None
    _recorder: forms.Recorder | None = None
    """Keeps what goes out compressed."""
    _leads = False
    """The fill is this request's."""
    _is_following = False
    """It waits for the fill's head."""
    _asks: Fill | None = None
    """The fill that this request brings by itself, until there is more to it than that."""
    _stale: Entry | None = None
    """What was there, and is to be renewed."""
    _was_released = 0

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
        client, authority = self.connection.client, head.authority
        scheme = b"http" if client.tls is None else b"https"
        scope = cache.scope(decision)
        if client.is_trusted:
            scope += keys.claims(head)
            self.url = url_of(*keys.outside(head, scheme), head.path, head.query)
        else:
            self.url = url_of(scheme, authority, head.path, head.query)
        self.primary = keys.primary(scheme, authority, head.path, head.query, scope)
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
        self._stale = stale
        passed_on = cache.passed_on.why(key)
        if passed_on or self.method == b"HEAD" or self._was_released > 1:
            return self._goes_past(why, passed_on)
        self._why = why
        fill = cache.fills.get(key)
        if fill is not None and not fill.takes_followers:
            return self._goes_past(why, "collapsed")
        if fill is None:
            fill = cache.fill(key, self, stale)
            self._leads = isinstance(fill, Fill)
            if self._leads and self._shadow is not None:
                self._shadow.complete()
        if not fill.attach(self):
            return self._goes_past(Forwarded.VARY_MISS)
        self._fill = fill
        if self._leads and stale is None and not self.head.kinds & NOT_AS_IT_IS and isinstance(fill, Fill):
            self._asks = fill
            return False
        self._wait(decision)
        if fill.state is FillState.KEEPING:
            self.fill_began(fill)
        elif self._leads and isinstance(fill, Fill):
            fill.begin(decision.destination)
        return True

    # A leader that asks by itself: nearly always nobody else waits, and the answer is small and comes at once

    def fail(self, error: ProxyError) -> None:
        if self._asks is not None:
            fill, self._asks = self._asks, None
            fill.asked_in_vain(error)
        if not self._is_stale_good_enough(outcome_of(error, 0)):
            super().fail(error)

    def _is_stale_good_enough(self, outcome: Outcome) -> bool:
        """A server failed this request: the copy that was to be renewed is given instead, if it may be."""
        stale, self._stale = self._stale, None
        if stale is None or self.state is State.RESPONDING or self.state is State.DONE:
            return False
        if not policy.may_serve_on_error(stale.stored, self.head, self.cache.now()):
            return False
        lease, self._lease = self._lease, None
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()
        if lease is not None:
            lease.release(outcome)
        self._stop_waiting()
        self._leave_fill()
        self._serve(stale, "stale")
        return True

    def client_gone(self, error: ProxyError) -> None:
        if self._asks is not None:
            fill, self._asks = self._asks, None
            if self._upstream is not None:  # the server is at work already: who comes next has the good of it
                fill.followers.pop(self, None)
                fill.take_over(self)
            else:
                fill.asked_in_vain(None)
        super().client_gone(error)

    def _answered(self, fill: Fill, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        """The answer that this request asked for by itself, or its beginning."""
        if (head.status >= 502 or head.status == 429) and self._is_not_wanted(head):
            return
        self._asks = None
        if not is_done or len(body) > self.cache.memory_max or not fill.is_only(self):
            self._is_following = True
            fill.take_over(self).respond(head, length, body, is_done)
            return
        fill.answered_at_once(head, length, body)
        self._result = "miss"
        super().respond(marked(head, self._line(fill, self.cache.now())), length, body, True)

    def chooses(self, entry: Entry) -> bool:
        return policy.matches(entry.stored, self.head)

    def _wait(self, decision: Decision[Destination]) -> None:
        """Until the fill says more: a leader as long as any request, others not longer than `PATIENCE_S`."""
        if self.state is not State.QUEUED:
            self.state = State.QUEUED
        self._is_following = True
        deadline = self.started + decision.destination.timeouts.request_s
        self.connection.await_response(deadline if self._leads else min(deadline, self.front.seconds() + PATIENCE_S))

    def deadline_passed(self) -> None:
        """Time is up; a follower's patience with another's request is shorter: then one of them asks again, for all of them."""
        fill, decision = self._fill, self.decision
        if fill is None or decision is None or not self._is_following:
            super().deadline_passed()
        elif self._leads and isinstance(fill, Fill):
            assert fill.fetch is not None
            fill.fetch.deadline_passed()  # so that all are told, and get the copy that was there if they may
        elif self.front.seconds() >= self.started + decision.destination.timeouts.request_s:
            stale = fill.stale
            if stale is not None and policy.may_serve_on_error(stale.stored, self.head, self.cache.now()):
                self.fill_renewed(stale)
            else:
                super().deadline_passed()
        else:
            self._leave_fill()
            self.cache.give_up(fill)
            self._look_again(decision)

    def _look_again(self, decision: Decision[Destination]) -> None:
        self._is_following = self._leads = False
        if not self._look(decision):
            self._go_alone(self._detail)

    def _go_alone(self, detail: str) -> None:
        """Ask the server for this client only, or for everybody if nobody does."""
        decision = self.decision
        assert decision is not None
        self._is_following = False
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
        entry = fill.entry
        self._note_server()
        self._result = "miss" if self._leads else "collapsed"
        line = self._line(fill, now)
        self._source = fill
        if entry is not None and fill.length >= 0 and self._is_answered_with_less(entry, now, line):
            return
        if self._leads and fill.head is not None:
            head = marked(fill.head, line)  # with what is for this client alone, and not kept
        else:
            assert entry is not None
            head = parse_kept(entry.stored.head(now, extra=line))
        first = fill.read(0)
        self.position = len(first)
        length = fill.length if fill.length >= 0 or entry is None else CHUNKED
        is_whole = fill.is_complete and fill.size == len(first)
        self._give(head, length, first, is_whole)
        if not is_whole:
            self._pump()

    def _line(self, fill: Fill | RemoteFill, now: float) -> bytes:
        """Cache-Status of what a fill brings."""
        why, is_collapsed, entry = self._why or Forwarded.URI_MISS, not self._leads, fill.entry
        if entry is None:
            assert fill.head is not None
            refused = fill.refused.value if fill.refused is not None else fill.not_kept
            return forwarded(why, status=fill.head.status, collapsed=is_collapsed, detail=refused)
        stored = entry.stored
        lost = fill.not_kept
        if not lost and (fill.is_forgotten or self.cache.purges.latest >= entry.asked_at):
            lost = self.cache.why_untrue(fill, entry)
        ttl_s = max(stored.fresh_until, stored.stored_at) - now
        return forwarded(why, status=stored.status, stored=not lost, collapsed=is_collapsed, ttl_s=ttl_s, detail=lost)

    def hear_interim(self, head: ResponseHead) -> None:
        """A 1xx came on the way to the answer that this request asked for."""
        if self._is_following:
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
        self._note_server()
        self._stop_waiting()
        has_answer = self._fill is not None and self._fill.is_complete
        self._leave_fill()
        self._serve(entry, "revalidated" if has_answer else "stale")

    def fill_failed(self, error: ProxyError) -> None:
        self._note_server()
        self._stop_waiting()
        self.fail(error)

    def _note_server(self) -> None:
        """Who was asked for this request, for log and counters: of all who follow a fill only its leader caused that."""
        if self._leads and self._fill is not None and self._fill.fetch is not None:
            self.served_from = self._fill.fetch.server_address
            self.attempts = self._fill.fetch.attempts

    def fill_released(self) -> None:
        """The answer is another's: look again, and after that ask for ourselves."""
        self._fill = None
        self._was_released += 1
        assert self.decision is not None
        self._look_again(self.decision)

    def _stop_waiting(self) -> None:
        self._is_following = False
        self.connection.stop_waiting()

    def _leave_fill(self) -> None:
        fill, self._fill = self._fill, None
        if fill is not None:
            fill.detach(self)

    # RESPOND

    @property
    def server(self) -> str:
        """Also when another exchange asked it for this one."""
        return super().server or self.served_from

    def _inside(self) -> tuple[bytes, ...]:
        """What a kept answer came from may be any server of the pool."""
        if self._lease is not None:
            return super()._inside()
        host, decision = self.actions.host, self.decision
        assert decision is not None
        servers = [server.address.lower().encode() for server in decision.destination.pool.servers]
        return (host.render(self).lower() if host is not None else self.head.authority.lower(), *servers)

    def respond(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        """A server's own answer to this request."""
        if self._asks is not None:
            self._answered(self._asks, head, length, body, is_done)
            return
        if head.status >= 500 and self._is_stale_good_enough(Outcome.FAILED):
            return
        self.cache.invalidate(self, head)
        if self._why is not None:
            head = marked(head, forwarded(self._why, status=head.status, detail=self._detail))
        super().respond(head, length, body, is_done)

    def _incoming(self, head: ResponseHead) -> ResponseHead:
        head = super()._incoming(head)
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            if self.transform is not None and head.get(b"content-encoding") == recorder.coding:
                self.transform_by(recorder)
            else:
                recorder.close()
        return head

    def _try_for_better(self, status: int) -> bool:
        return self._lease is not None and super()._try_for_better(status)

    def _serve(self, entry: Entry, result: str) -> None:
        """Answer from what is kept."""
        cache = self.cache
        now = cache.now()
        stored = entry.stored
        self._result = result
        line = hit(max(stored.fresh_until, stored.stored_at) - now, detail="revalidated" if result == "revalidated" else "")
        if self._is_answered_with_less(entry, now, line):
            return
        if self.method == b"HEAD":
            self._give(parse_kept(stored.head(now, extra=line)), NO_BODY, b"", True)
            return
        compression = self.actions.compression
        form = forms.form_for(entry, self.head, compression) if compression is not None else None
        given = forms.find(cache, form) if form is not None else None
        body = cache.body(given or entry)
        if body is not None:
            if form is not None and given is None and compression is not None:
                given, body = forms.make(cache, form, body, compression, self.effort) or (None, body)
            if result == "hit":
                make_ready(cache, self, entry, given)
            self._give(parse_kept((given or entry).stored.head(now, extra=line)), len(body), body, True)
            return
        stored, reader = (given or entry).stored, cache.reader(given or entry)
        if reader is None or (stored.body_length and reader.read(0, 1) is None):  # evicted since, or found to be broken
            self._is_lost(given or entry, entry.key)
            return
        if form is not None and given is None:
            self._recorder = forms.Recorder(cache, form)
        if result == "hit":
            make_ready(cache, self, entry, given)
        self._source = reader
        self._end = stored.body_length
        self._give(parse_kept(stored.head(now, extra=line)), stored.body_length, b"", stored.body_length == 0)
        self._pump()

    def _is_lost(self, lost: Entry, key: bytes) -> None:
        """What was there for `key` is not: ask for it again."""
        decision = self.decision
        assert decision is not None
        self.cache.forget(lost.key)
        self._leads = False
        if not self._follow(decision, key, None, Forwarded.URI_MISS):
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
            elif isinstance(wanted, tuple) and (self._source is None or len(wanted) == 1):  # what is on its way goes only forward
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
            reader = self.cache.reader(entry)
            if reader is None or reader.read(partial.parts[0].first, 1) is None:
                self._is_lost(entry, entry.key)
                return
            self._source = reader
        self._parts = deque(partial.parts)
        self._after = partial.after
        before = self._next_part()
        self._give(parse_kept(partial.head), partial.body_length, before, False)
        self._pump()

    # FINISH

    def attempt_log(self, server: str) -> list[dict[str, object]]:
        fetch = self._fill.fetch if self._fill is not None and self._leads else None
        return super().attempt_log(server) if fetch is None else fetch.attempt_log(server)

    def _finish(self, now: float = 0.0) -> None:
        if self.state is State.DONE:
            return
        super()._finish(now)
        if self._result:
            self.cache.counts[self.site, self._result] += 1
        self._leave_fill()


def has_conditions(head: RequestHead) -> bool:
    """Whether a request asks for less than the whole answer."""
    return bool(head.kinds & Kind.CONDITIONS) and any(head.get(name) is not None for name in freshen.CONDITIONAL)
