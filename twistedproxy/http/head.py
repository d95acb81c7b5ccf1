"""Message heads: bytes in, a head out, or an error that says which rule was broken.

Two codecs with the same behaviour stand behind these names: the native one (``_head.pyx``) where it could be built, else the one in
plain Python (``_pure``); ``TWISTEDPROXY_PURE=1`` in the environment chooses the latter. ``CODEC`` says which it is.

How a front uses it::

    head = parse_request(data, limits)           # one call when the head came in one segment, as nearly all do
    if head is None:                             # incomplete, nothing wrong so far
        partial = PartialRequest(limits, data)
    ...
    head = partial.feed(more)                    # None again, or a head; raises as soon as a rule is broken
    rest = partial.data[head.size:]              # what follows the head: body, pipelined requests

A head of a request without body is followed at ``data[head.size:]`` by the next request, if any.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from twistedproxy.http.lines import field_fault, request_line_fault, status_line_fault
from twistedproxy.http.messages import RequestHead, ResponseHead
from twistedproxy.http.refusals import refuse_request, refuse_response

if TYPE_CHECKING:
    from twistedproxy.http._pure import Limits

    CODEC: str

    def parse_request(data: bytes, limits: Limits) -> RequestHead | None:
        """The head at the beginning of `data`; None: incomplete. Raises BadHead, HeadTooLarge."""

    def parse_response(data: bytes, limits: Limits | None = None) -> ResponseHead | None:
        """The head at the beginning of `data`; None: incomplete. Default limits: RESPONSE_LIMITS. Raises BadResponse."""

    def take_chunks(data: bytes, at: int) -> tuple[bytes, int]:
        """(payload, where it ends) of the complete, non-empty chunks without extensions that follow one another from `at` on."""

else:
    _is_pure = os.environ.get("TWISTEDPROXY_PURE", "") not in ("", "0")
    if not _is_pure:
        try:
            from twistedproxy.http._head import Limits, parse_request, parse_response, take_chunks
        except ImportError:
            _is_pure = True
    if _is_pure:
        from twistedproxy.http._pure import Limits, parse_request, parse_response, take_chunks
    CODEC = "python" if _is_pure else "native"

__all__ = [
    "CODEC",
    "RESPONSE_LIMITS",
    "Limits",
    "PartialHead",
    "PartialRequest",
    "PartialResponse",
    "parse_request",
    "parse_response",
    "take_chunks",
]

RESPONSE_LIMITS = Limits(max_head=64 * 1024, max_request_line=8 * 1024, max_field=64 * 1024, max_fields=200)
"""For heads of servers, of interim (1xx) ones too."""

H = TypeVar("H")

_EVENTFUL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_SHORT = 256
_STEP = 1024


class PartialHead(Generic[H]):
    """Collects a head that comes in pieces, at a cost linear in its bytes however they are cut.

    The parser runs again when a piece ends a line or holds a control character, at each limit, and after each KiB of a long line: about
    ``max_fields`` + ``max_head`` / 1 KiB times for a head, not once per piece. In between only the current line is judged, while short.
    So a rule broken within the first 256 bytes of a line is reported at once, a later one with the line's end or the next KiB.
    """

    __slots__ = ("_buffer", "_checked", "_limits", "_line", "_parse")

    def __init__(self, parse: Callable[[bytes, Limits], H | None], limits: Limits, data: bytes = b"") -> None:
        """`data` is what `parse` has already found incomplete."""
        self._parse = parse
        self._limits = limits
        self._buffer = bytearray(data)
        self._checked = len(data)
        self._line = data.rfind(b"\n") + 1

    @property
    def is_blank(self) -> bool:
        """Nothing has come but the line end that may precede a head, as some clients send behind a body."""
        return len(self._buffer) <= 2 and bytes(self._buffer) in (b"\r", b"\r\n")

    @property
    def data(self) -> bytes:
        """Everything fed so far."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> H | None:
        """The head once it is complete; raises what the parser raises. Not to be called again after either."""
        buffer = self._buffer
        start = len(buffer)
        buffer += data
        size = len(buffer)
        line_size = size - self._line
        limits = self._limits
        # The first line ends at 0, or at 2 after the one CR LF that may precede it.
        is_first = self._line <= 2
        limit = limits.max_request_line if is_first else limits.max_field
        if _EVENTFUL.search(data) or line_size > limit or size > limits.max_head or size - self._checked >= _STEP:
            newline = data.rfind(b"\n")
            if newline >= 0:
                self._line = start + newline + 1
            self._checked = size
            return self._parse(bytes(buffer), limits)
        if 0 < line_size <= _SHORT:
            self._judge(bytes(buffer[self._line :]), is_first)
        return None

    def _judge(self, line: bytes, is_first: bool) -> None:
        """Refuses the beginning of a line that can no longer become a valid one."""
        raise NotImplementedError


class PartialRequest(PartialHead[RequestHead]):
    """A request head in pieces. Raises BadHead, HeadTooLarge."""

    __slots__ = ()

    def __init__(self, limits: Limits, data: bytes = b"", parse: Callable[[bytes, Limits], RequestHead | None] = parse_request) -> None:
        super().__init__(parse, limits, data)

    def _judge(self, line: bytes, is_first: bool) -> None:
        rule = request_line_fault(line, False) if is_first else field_fault(line, False)
        if rule is not None:
            raise refuse_request(rule)


class PartialResponse(PartialHead[ResponseHead]):
    """A response head in pieces. Raises BadResponse."""

    __slots__ = ()

    def __init__(
        self, data: bytes = b"", limits: Limits = RESPONSE_LIMITS, parse: Callable[[bytes, Limits], ResponseHead | None] = parse_response
    ) -> None:
        super().__init__(parse, limits, data)

    def _judge(self, line: bytes, is_first: bool) -> None:
        rule = status_line_fault(line, False) if is_first else field_fault(line, False)
        if rule is not None:
            raise refuse_response(rule)
