"""``use = ["compress"]`` and ``"compress.NAME"``: answers are compressed for clients that want that, or decompressed for those that must.

How it works
    `plan` looks at one answer's head and says what can be done with its body; it is pure and serves whoever has a head, a stored one too.
    `as_planned` gives the head that fits. What could have been sent in another coding says so (``Vary``), a body that was changed has no
    strong validator any more, no ranges, and no digests of bytes that nobody gets (RFC 9110 7.7, 8.8.1, 12.5.5; RFC 9530).

    Left alone: what is compressed already, parts (206), 204, 205 and 304, ``no-transform`` of either side, types that are not named,
    bodies known to be small. A part says `Vary` as the whole would. A 304 gets the weak form of its ETag when that is what the client has.
    Where the body's length is not known in advance, everything that came is flushed out at once: events, logs, answers that are written
    bit by bit reach the client as soon as the server sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twistedproxy.errors import CodingFailed
from twistedproxy.http import codings
from twistedproxy.http.codings import Effort
from twistedproxy.http.messages import LocalResponse, ResponseHead
from twistedproxy.http.middleware.chain import ReplacedFields

_UNTOUCHED = frozenset({204, 205, 206, 304})
_OF_THE_BYTES = (b"content-length", b"accept-ranges", b"content-md5", b"digest", b"content-digest", b"repr-digest")
"""Fields that are not true any more once the body is changed."""
_EVENTS = b"text/event-stream"
_PARTS = b"multipart/byteranges"
_MOST_TYPES = 256
"""Content types whose answer is remembered."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of one body."""

    decode: str = ""
    """The server's coding, undone first; "": none."""
    encode: str = ""
    """The coding it gets; "": none."""

    def __bool__(self) -> bool:
        return bool(self.decode or self.encode)


AS_IT_IS = Plan()


class Compression:
    """One table of `[compress]`."""

    def __init__(
        self,
        offered: Sequence[str] = codings.CODINGS,
        types: Sequence[str] = ("text/*",),
        min_size: int = 1000,
        levels: Sequence[tuple[str, int]] = (),
        decompress: bool = False,
    ) -> None:
        self._offered = codings.known(offered)
        self._decodable = frozenset(codings.known(codings.CODINGS)) if decompress else frozenset[str]()
        self._levels = dict.fromkeys(codings.CODINGS, codings.DEFAULT_LEVEL) | dict(levels)
        self._min_size = min_size
        names = [name.lower().encode() for name in types]
        self._exact = frozenset(name for name in names if not name.endswith(b"/*") and not name.startswith(b"+"))
        self._beginnings = tuple(name[:-1] if name != b"*/*" else b"" for name in names if name.endswith(b"/*"))
        self._ends = tuple(name for name in names if name.startswith(b"+"))
        self._types: dict[bytes, bool] = {}

    # What can be done

    def plan(self, accept: bytes, head: Any, size: int) -> Plan | None:
        """None: this answer is nobody's business here. An empty plan: it stays as it is for this client, and would not for others.

        `accept` is the client's Accept-Encoding, b"" for none; `head` an answer's; `size` the body's bytes, -1 when not known.
        """
        if head.status in _UNTOUCHED or head.status < 200 or head.get(b"content-range") is not None or _says_no(head):
            return None
        coded = _coding(head)
        if coded:
            if coded not in self._decodable:
                return None
            if codings.accepts(accept, coded):
                return AS_IT_IS
            return Plan(coded, codings.choose(accept, self._offered) if self._is_wanted(head) else "")
        if 0 <= size < max(self._min_size, 1) or not self._is_wanted(head):
            return None
        encode = codings.choose(accept, self._offered)
        return Plan("", encode) if encode else AS_IT_IS

    def _is_wanted(self, head: Any) -> bool:
        given: bytes = head.get(b"content-type") or b""
        known = self._types.get(given)
        if known is None:
            kind = given.partition(b";")[0].strip().lower()
            known = kind in self._exact or kind.startswith(self._beginnings) or kind.endswith(self._ends)
            if len(self._types) < _MOST_TYPES and len(given) <= 128:
                self._types[given] = known
        return known

    # Hooks

    def on_response(self, exchange: Any, head: ResponseHead) -> ResponseHead:
        request = exchange.head
        if head.status == 304:
            return _still_weak(request, head)
        if _says_no(request):
            return head
        if head.status == 206:
            return self._part(head)
        plan = self.plan(accept_encoding(request), head, exchange.answer_size)
        if plan is None:
            return head
        effort: Effort = exchange.effort
        if plan.encode and not effort.may_begin():
            plan = Plan(plan.decode)
        if plan and exchange.method != b"HEAD":
            if plan.decode:
                exchange.transform_by(Decompressing(plan.decode, effort))
            if plan.encode:
                is_stream = _is_events(head)
                size = -1 if plan.decode else exchange.answer_size
                level = effort.level(plan.encode, self._levels[plan.encode])
                coder = codings.encoder(plan.encode, level, size, is_stream)
                exchange.transform_by(Compressing(plan.encode, coder, effort, flushes=size < 0))
        return as_planned(plan, head)

    def _part(self, head: ResponseHead) -> ResponseHead:
        """A part stays as it is; what the whole would say in `Vary` it has to say too (RFC 9110 15.3.7)."""
        coded = _coding(head)
        if _says_no(head) or (coded and coded not in self._decodable):
            return head
        size = (head.get(b"content-range") or b"").rpartition(b"/")[2]
        is_small = not coded and size.isdigit() and len(size) < 19 and int(size) < max(self._min_size, 1)
        kind: bytes = head.get(b"content-type") or b""
        may_change = coded or self._is_wanted(head) or kind[: len(_PARTS)].lower() == _PARTS  # of which only the parts say the type
        return as_planned(AS_IT_IS, head) if may_change and not is_small else head

    def on_local(self, exchange: Any, local: LocalResponse) -> LocalResponse:
        head: Any = _LocalHead(local)
        if _says_no(exchange.head):
            return local
        plan = self.plan(accept_encoding(exchange.head), head, len(local.body))
        if plan is None or plan.decode:
            return local
        body = local.body
        if plan.encode:
            coded = self.coded(plan.encode, body, exchange.effort)
            if coded is None:
                plan = AS_IT_IS
            else:
                body = coded
        return LocalResponse(local.status, body, tuple(as_planned(plan, head).fields()))

    # For bodies that are all there

    def coding_for(self, request: Any, head: Any, size: int) -> str:
        """What this client is to get a kept body in; "": as it is, or in a way that is found out elsewhere."""
        plan = None if _says_no(request) else self.plan(accept_encoding(request), head, size)
        return "" if plan is None or plan.decode else plan.encode

    def coded(self, coding: str, body: bytes, effort: Effort) -> bytes | None:
        """The whole body in `coding`; None when there is no time for it now, or it cannot be done."""
        if not effort.may_begin():
            return None
        try:
            coder = codings.encoder(coding, effort.level(coding, self._levels[coding]), len(body))
            out = coder.compress(body) + coder.finish()
        except CodingFailed:
            effort.eased["failed"] += 1
            return None
        effort.count("compress", coding, len(body), len(out))
        return out


# Heads


def accept_encoding(request: Any) -> bytes:
    """All that a request says in Accept-Encoding; b"" when it says nothing."""
    lines: list[bytes] = request.get_all(b"accept-encoding")
    return lines[0] if len(lines) == 1 else b",".join(lines)


def as_planned(plan: Plan, head: ResponseHead) -> ResponseHead:
    """The head for a body that was changed as planned."""
    lines: dict[bytes, Sequence[tuple[bytes, bytes]]] = {}
    varies = b", ".join(head.get_all(b"vary"))
    names = [name.strip().lower() for name in varies.split(b",")]
    if b"accept-encoding" not in names and b"*" not in names:
        lines[b"vary"] = ((b"Vary", varies + b", Accept-Encoding" if varies else b"Accept-Encoding"),)
    if plan:
        lines |= dict.fromkeys(_OF_THE_BYTES, ())
        lines[b"content-encoding"] = ((b"Content-Encoding", plan.encode.encode()),) if plan.encode else ()
        tag = head.get(b"etag")
        if tag is not None and tag.startswith(b'"'):
            lines[b"etag"] = ((b"ETag", b"W/" + tag),)
    replaced: Any = ReplacedFields(head, lines) if lines else head
    return replaced  # type: ignore[no-any-return]


def _still_weak(request: Any, head: ResponseHead) -> ResponseHead:
    """A 304 for what the client got from here compressed: the same ETag and Vary as then (RFC 9110 15.4.5)."""
    tag = head.get(b"etag")
    if tag is None or not tag.startswith(b'"') or not any(b"W/" + tag in line for line in request.get_all(b"if-none-match")):
        return head
    weak: Any = ReplacedFields(as_planned(AS_IT_IS, head), {b"etag": ((b"ETag", b"W/" + tag),)})
    return weak  # type: ignore[no-any-return]


def _coding(head: Any) -> str:
    """The server's codings as one word, "" for none; "identity" is none (RFC 9110 8.4.1)."""
    lines = head.get_all(b"content-encoding")
    if not lines:
        return ""
    names = [name.strip().lower().decode("latin-1") for line in lines for name in line.split(b",")]
    return ",".join("gzip" if name == "x-gzip" else name for name in names if name and name != "identity")


def _says_no(head: Any) -> bool:
    return any(b"no-transform" in line.lower() for line in head.get_all(b"cache-control"))


def _is_events(head: Any) -> bool:
    kind: bytes = head.get(b"content-type") or b""
    return kind[: len(_EVENTS)].lower() == _EVENTS


class _LocalHead:
    """An answer made here, as a head."""

    def __init__(self, local: LocalResponse) -> None:
        self.status = local.status
        self._fields = local.fields

    def get(self, name: bytes) -> bytes | None:
        return next((value for given, value in self._fields if given.lower() == name), None)

    def get_all(self, name: bytes) -> list[bytes]:
        return [value for given, value in self._fields if given.lower() == name]

    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        return self._fields


# Bodies


class Compressing:
    """A `chain.Transform`. With `flushes`, what came goes out at once, at the price of some bytes each time."""

    is_behind = False

    def __init__(self, coding: str, coder: codings.Encoder, effort: Effort, flushes: bool) -> None:
        self._coding = coding
        self._coder = coder
        self._effort = effort
        self._flushes = flushes
        self._in = self._out = 0
        effort.open += 1

    def data(self, data: bytes) -> bytes:
        if not data:
            return b""
        self._in += len(data)
        out = self._coder.compress(data)
        if self._flushes:
            out += self._coder.flush()
        self._out += len(out)
        return out

    def end(self) -> bytes:
        out = self._coder.finish()
        self._out += len(out)
        return out

    def close(self) -> None:
        self._effort.open -= 1
        self._effort.count("compress", self._coding, self._in, self._out)


class Decompressing:
    """A `chain.Transform` the other way."""

    def __init__(self, coding: str, effort: Effort) -> None:
        self._decoder = codings.decoder(coding)
        self._effort = effort
        self._in = self._out = 0
        effort.open += 1

    @property
    def is_behind(self) -> bool:
        return self._decoder.is_behind

    def data(self, data: bytes) -> bytes:
        self._in += len(data)
        out = self._decoder.decompress(data)
        self._out += len(out)
        return out

    def end(self) -> bytes:
        return self._decoder.finish()

    def close(self) -> None:
        self._effort.open -= 1
        self._effort.count("decompress", self._decoder.coding, self._in, self._out)
