"""An exchange whose answer's body is changed on its way: compressed, decompressed, or whatever else a hook of the chain wants.

How it works
    A hook of the chain calls `transform_by`. A body that is complete when its head is sent goes out with a Content-Length, any other in
    chunks, or to the end of the connection for a client that knows none. A transform may be *behind*: what it was given stands for more
    than can be sent at once (a decoder). Then the server is not read, and the next piece is asked for when the client has taken this one.

    A transform that fails breaks the answer visibly: 502 or 500 before the head, a connection without a proper end after it.
"""

from __future__ import annotations

from typing import Any

from twistedproxy.errors import ProxyError
from twistedproxy.http.exchange import Exchange, State
from twistedproxy.http.h1 import chunk, last_chunk
from twistedproxy.http.messages import CHUNKED, ResponseHead
from twistedproxy.http.middleware.chain import OneBehindTheOther, ReplacedFields, Transform

_OF_THE_BYTES = frozenset({b"content-md5", b"digest", b"content-digest", b"repr-digest"})
"""Trailers that speak of bytes which the client does not get."""


class TransformedExchange(Exchange):
    """An exchange that may have a transform; without one it is an `Exchange`."""

    transform: Transform | None = None
    answer_size = -1
    """Bytes of the answer's body, for hooks that look at its head; -1: not known yet."""
    _is_complete = False
    """The server has given all of the answer; some of it may wait in the transform."""
    _is_waiting = False
    """The transform is behind, and goes on when the client has room."""

    def transform_by(self, transform: Transform) -> None:
        """Let the answer's body pass through `transform`, behind those that were named before."""
        self.transform = transform if self.transform is None else OneBehindTheOther(self.transform, transform)

    def respond(self, head: ResponseHead, length: int, body: bytes, is_done: bool) -> None:
        transform = self.transform
        if transform is None:
            super().respond(head, length, body, is_done)
            return
        try:
            data = transform.data(body)
            is_whole = is_done and not transform.is_behind
            if is_whole:
                data += transform.end()
        except ProxyError as error:
            self.fail(error)
            return
        self._is_complete = is_done
        if is_whole and not self._trailers():
            size = ((b"Content-Length", b"%d" % len(data)),)
            sized: Any = ReplacedFields(head, {b"content-length": size})
            super().respond(sized, len(data), data, True)
            return
        super().respond(head, CHUNKED, data, is_whole)
        if self.state is State.RESPONDING and transform.is_behind:
            self._go_on()

    def response_data(self, data: bytes, is_done: bool) -> None:
        if self.transform is None:
            super().response_data(data, is_done)
        elif self.state is State.RESPONDING:
            self._is_complete = is_done
            self._pass(data)

    def _pass(self, data: bytes) -> None:
        """Through the transform, as far as the client has room."""
        transform = self.transform
        assert transform is not None
        try:
            out = transform.data(data)
            is_whole = self._is_complete and not transform.is_behind
            if is_whole:
                out += transform.end()
        except ProxyError as error:
            self.fail(error)
            return
        super().response_data(out, is_whole)
        if transform.is_behind:
            self._go_on()

    def _go_on(self) -> None:
        """The transform is behind: the rest comes in turns of its own, so that others have theirs."""
        self._is_waiting = True
        super().pause_response()
        if not self.connection.transport.is_full:
            self.connection.transport.reactor.soon(self._room, None)

    def _room(self, _: object) -> None:
        if self._is_waiting and self.state is State.RESPONDING and not self.connection.transport.is_full:
            self.resume_response()

    def resume_response(self) -> None:
        if self.transform is None:
            super().resume_response()
            return
        if self._is_waiting:
            self._is_waiting = False
            self._pass(b"")
            if self._is_waiting:
                return
        if not self._is_complete and not self.connection.transport.is_full:
            super().resume_response()

    def upstream_failed(self, error: ProxyError, has_begun: bool) -> None:
        # What the server does behind a complete answer is none of the client's business.
        if not (self._is_waiting and self._is_complete):
            super().upstream_failed(error, has_begun)

    def _trailers(self) -> tuple[tuple[bytes, bytes], ...]:
        trailers = self._upstream.trailers if self._upstream is not None else ()
        return tuple(trailer for trailer in trailers if trailer[0].lower() not in _OF_THE_BYTES)

    def _framed(self, data: bytes, is_done: bool) -> bytes:
        if self.transform is None or self._response_length >= 0 or self.head.minor == 0:
            return super()._framed(data, is_done)
        return chunk(data) + last_chunk(self._trailers()) if is_done else chunk(data)

    def forget_transform(self) -> None:
        """The answer it was meant for is not sent, or is over."""
        transform, self.transform = self.transform, None
        if transform is not None:
            self._is_complete = False
            transform.close()

    def _finish(self, now: float = 0.0) -> None:
        if self.state is not State.DONE:
            self._is_waiting = False
            super()._finish(now)
            self.forget_transform()
