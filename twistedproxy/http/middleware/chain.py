"""What stands between routing and forwarding on one route: hooks, compiled into lists that hold only those that exist.

    request    outermost ▶ … ▶ innermost ▶ server
    response   outermost ◀ … ◀ innermost ◀ server

How it works
    A middleware is any object with some of the methods of `Middleware`; a method it lacks costs nothing. `on_request` runs on the way
    in and may answer by itself; `on_response` and `on_local` run on the way out, in the opposite order. Hooks run once per request: retries
    happen below them. A head is never changed, it is wrapped: `EditedHead` says the same as the head in it, but for its edits.

    Bodies of answers: an `on_response` that wants to see or change the body says so with `exchange.transform_by(a Transform)`. Whoever
    does so twice gets one behind the other, in the order of the hooks. An answer without a transform is passed on as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from twistedproxy.http.messages import LocalResponse, RequestHead, ResponseHead

Value = Callable[[Any], bytes]
"""A field's value, for the exchange at hand."""
Line = tuple[bytes, Value]
"""Name as sent, and value."""

_CONTROLS = bytes((*range(9), *range(10, 32), 127))
_OURS = (b"x-forwarded-", b"x-request-id", b"via", b"max-forwards")
"""Fields that forwarding puts in itself, behind those of the message."""


class Middleware(Protocol):
    """All hooks; each is optional."""

    def on_request(self, exchange: Any) -> LocalResponse | None:
        """Look at the request, wrap `exchange.outgoing`, or answer."""
        ...

    def on_response(self, exchange: Any, head: ResponseHead) -> ResponseHead:
        """The head for the client."""
        ...

    def on_local(self, exchange: Any, local: LocalResponse) -> LocalResponse:
        """An answer that the proxy made itself."""
        ...


class Transform(Protocol):
    """Changes one answer's body on its way to the client; it may hold back what it likes until `end`. Errors are `ProxyError`s."""

    @property
    def is_behind(self) -> bool:
        """There is more in what it was given than it gave back: `data` wants to be called again, with b"", when the client has room."""
        ...

    def data(self, data: bytes) -> bytes:
        """What can be sent now, at most a few hundred KiB more than came."""
        ...

    def end(self) -> bytes:
        """The body has ended: the rest. Not while it `is_behind`."""
        ...

    def close(self) -> None:
        """The exchange is over, whatever became of it; called once."""
        ...


class OneBehindTheOther:
    """Two transforms as one."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Transform, second: Transform) -> None:
        self._first = first
        self._second = second

    @property
    def is_behind(self) -> bool:
        return self._first.is_behind or self._second.is_behind

    def data(self, data: bytes) -> bytes:
        if self._second.is_behind and not data:
            return self._second.data(b"")
        return self._second.data(self._first.data(data))

    def end(self) -> bytes:
        return self._second.data(self._first.end()) + self._second.end()

    def close(self) -> None:
        self._first.close()
        self._second.close()


class Chain:
    """The hooks of one route, outermost first."""

    __slots__ = ("on_local", "on_request", "on_response")

    def __init__(self, middlewares: Sequence[Any]) -> None:
        self.on_request = [m.on_request for m in middlewares if hasattr(m, "on_request")]
        self.on_response = [m.on_response for m in reversed(middlewares) if hasattr(m, "on_response")]
        self.on_local = [m.on_local for m in reversed(middlewares) if hasattr(m, "on_local")]

    def __bool__(self) -> bool:
        return bool(self.on_request or self.on_response or self.on_local)


class Edits:
    """Edits of one message's fields: `put` replaces, `add` goes besides, `remove` are lower-case names, `default` fills gaps."""

    __slots__ = ("_touches_ours", "add", "default", "put", "remove")

    def __init__(
        self, put: Sequence[Line] = (), add: Sequence[Line] = (), remove: Sequence[bytes] = (), default: Sequence[Line] = ()
    ) -> None:
        self.put = tuple(put)
        self.add = tuple(add)
        self.remove = (*remove, *dict.fromkeys(name.lower() for name, _ in put))
        self.default = tuple(default)
        self._touches_ours = any(name.startswith(_OURS) for name in self.remove)

    def __bool__(self) -> bool:
        return bool(self.put or self.add or self.remove or self.default)

    def lines(self, exchange: Any, has: Callable[[bytes], bool], without: Sequence[bytes]) -> bytes:
        """What is put in, as header lines; `has` tells whether the message has a field (lower case), `without` names what others remove."""
        parts = [line for line in (*self.put, *self.add) if not without or line[0].lower() not in without]
        parts += [line for line in self.default if line[0].lower() not in without and not has(line[0].lower())]
        return b"".join([b"%b: %b\r\n" % (name, value(exchange).translate(None, _CONTROLS)) for name, value in parts])

    def tail(self, tail: bytes) -> bytes:
        """What forwarding appends, without the fields that are edited."""
        if not self._touches_ours:
            return tail
        kept = [line for line in tail[:-2].split(b"\r\n")[:-1] if line.partition(b":")[0].lower() not in self.remove]
        return b"".join([line + b"\r\n" for line in kept]) + b"\r\n"

    def local(self, exchange: Any, local: LocalResponse) -> LocalResponse:
        """The same for an answer made here."""
        kept = [(name, value) for name, value in local.fields if name.lower() not in self.remove]
        names = {name.lower() for name, _ in kept}
        more = [(name, value(exchange)) for name, value in (*self.put, *self.add)]
        more += [(name, value(exchange)) for name, value in self.default if name.lower() not in names]
        return LocalResponse(local.status, local.body, (*kept, *more))


class EditedHead:
    """A head with edits: whatever is not edited is answered by the head inside."""

    __slots__ = ("_edits", "_exchange", "_inside")

    def __init__(self, inside: Any, edits: Edits, exchange: Any) -> None:
        self._inside = inside
        self._edits = edits
        self._exchange = exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def get(self, name: bytes) -> bytes | None:
        edits = self._edits
        for line in (*edits.put, *edits.add):
            if line[0].lower() == name:
                return line[1](self._exchange)
        if name in edits.remove:
            return None
        found: bytes | None = self._inside.get(name)
        return found

    def get_all(self, name: bytes) -> list[bytes]:
        edits = self._edits
        kept = [] if name in edits.remove else list(self._inside.get_all(name))
        return kept + [value(self._exchange) for given, value in (*edits.put, *edits.add) if given.lower() == name]

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        edits = self._edits
        yield from ((name, value) for name, value in self._inside.fields() if name.lower() not in edits.remove)
        yield from ((name, value(self._exchange)) for name, value in (*edits.put, *edits.add))
        yield from ((name, value(self._exchange)) for name, value in edits.default if self._inside.get(name.lower()) is None)

    def write_h1(self, start_line: bytes | None, drop: int, remove: tuple[bytes, ...], tail: bytes) -> bytes:
        edits = self._edits
        removed = (*remove, *edits.remove)
        lines = edits.lines(self._exchange, lambda name: name not in removed and self._inside.get(name) is not None, remove)
        data: bytes = self._inside.write_h1(start_line, drop, removed, lines + edits.tail(tail))
        return data


class ReplacedFields:
    """A response head in which some fields have other values: ``{lower-case name: lines}``."""

    __slots__ = ("_inside", "_lines")

    def __init__(self, inside: Any, lines: dict[bytes, Sequence[tuple[bytes, bytes]]]) -> None:
        self._inside = inside
        self._lines = lines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def get(self, name: bytes) -> bytes | None:
        lines = self._lines.get(name)
        if lines is None:
            found: bytes | None = self._inside.get(name)
            return found
        return lines[0][1] if lines else None

    def get_all(self, name: bytes) -> list[bytes]:
        lines = self._lines.get(name)
        return list(self._inside.get_all(name)) if lines is None else [value for _, value in lines]

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        for name, value in self._inside.fields():
            if name.lower() not in self._lines:
                yield name, value
        for lines in self._lines.values():
            yield from lines

    def write_h1(self, start_line: bytes | None, drop: int, remove: tuple[bytes, ...], tail: bytes) -> bytes:
        lines = b"".join(
            [
                b"%b: %b\r\n" % (name, value.translate(None, _CONTROLS))
                for lower, lines in self._lines.items()
                if lower not in remove
                for name, value in lines
            ]
        )
        data: bytes = self._inside.write_h1(start_line, drop, (*remove, *self._lines), lines + tail)
        return data


class Outgoing:
    """The request as the server is asked it: another path, query or Host than the client sent."""

    __slots__ = ("_inside", "path", "query")

    def __init__(self, inside: RequestHead, path: bytes, query: bytes) -> None:
        self._inside = inside
        self.path = path
        self.query = query

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)
