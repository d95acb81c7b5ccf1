"""Does a rule want this request? Patterns with ``*`` and the conditions of `when`, compiled once.

Everything is compared as bytes, so that what is no UTF-8 can neither pass nor break a rule (faults RT-08). A pattern costs time linear
in the text whatever it holds: the pieces between its stars are looked for one after the other, never going back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote_to_bytes

from twistedproxy.config.model import When
from twistedproxy.http.messages import RequestHead
from twistedproxy.net.networks import Networks


class Glob:
    """Text in which ``*`` stands for anything, also for nothing."""

    __slots__ = ("_first", "_last", "_length", "_middle", "text")

    def __init__(self, pattern: str) -> None:
        self.text = pattern
        first, *rest = pattern.encode().split(b"*")
        self._first = first
        self._last = rest.pop() if rest else None
        """None: there is no star."""
        self._middle = [piece for piece in rest if piece]
        self._length = len(first) + len(self._last or b"")

    def matches(self, text: bytes) -> bool:
        last = self._last
        if last is None:
            return text == self._first
        if len(text) < self._length or not text.startswith(self._first) or not text.endswith(last):
            return False
        at, end = len(self._first), len(text) - len(last)
        for piece in self._middle:
            at = text.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True


class Certificate(Protocol):
    """What a client's TLS told of it: `tls.clients.ClientTls`, or what is only imagined."""

    @property
    def subject(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def sha256(self) -> str:
        """Empty without a certificate."""
        ...


@dataclass(frozen=True, slots=True)
class Imagined:
    """The certificate of a client that is only imagined (`explain`, tests in the file)."""

    subject: str = ""
    names: tuple[str, ...] = ()
    sha256: str = ""
    version: str = ""
    name: str = ""


class Condition(Protocol):
    """Why a request from a client's IP does not match; "" when it does."""

    def __call__(self, head: RequestHead, client: str, shown: Certificate | None = None, /) -> str: ...


_Values = tuple[tuple[str, tuple[str, ...]], ...]


def conditions(when: When) -> tuple[Condition, ...]:
    """What `when` asks, the cheapest first; all must hold."""
    found: list[Condition] = []
    if when.method:
        found.append(_method(frozenset(m.encode() for m in when.method)))
    if when.path is not None:
        found.append(_path(Glob(when.path)))
    if when.client:
        found.append(_client(when.client))
    for kind, wanted, read in (("header", when.header, _header), ("query", when.query, _query), ("cookie", when.cookie, _cookie)):
        found += [_value(kind, name, values, read(name)) for name, values in wanted]
    found += [_certificate(part, values) for part, values in when.client_cert]
    return tuple(found)


def _method(wanted: frozenset[bytes]) -> Condition:
    named = ", ".join(sorted(m.decode() for m in wanted))
    return lambda head, client, shown=None: "" if head.method in wanted else f"method is {head.method.decode('latin-1')}, not {named}"


def _path(glob: Glob) -> Condition:
    return lambda head, client, shown=None: "" if glob.matches(head.path) else f"path does not match {glob.text!r}"


def _client(cidrs: tuple[str, ...]) -> Condition:
    networks = Networks(cidrs)
    named = ", ".join(cidrs[:5]) + (" …" if len(cidrs) > 5 else "")
    return lambda head, client, shown=None: "" if networks.contains(client) else f"client {client or 'without an IP'} is not in {named}"


def _value(kind: str, name: str, values: tuple[str, ...], read: Callable[[RequestHead], Iterable[bytes]]) -> Condition:
    globs = [Glob(value) for value in values]
    named = " or ".join(map(repr, values))

    def condition(head: RequestHead, client: str, shown: Certificate | None = None) -> str:
        is_there = False
        for value in read(head):
            is_there = True
            if any(glob.matches(value) for glob in globs):
                return ""
        return f"{kind} {name} is not {named}" if is_there else f"{kind} {name} is absent"

    return condition


def _certificate(part: str, values: tuple[str, ...]) -> Condition:
    """`part` is ``subject``, ``san`` (any of the names) or ``sha256``."""
    globs = [Glob(value) for value in values]
    named = " or ".join(map(repr, values))

    def condition(head: RequestHead, client: str, shown: Certificate | None = None) -> str:
        if shown is None or not (shown.sha256 or shown.subject or shown.names):
            return "the client has shown no certificate"
        found = shown.names if part == "san" else (shown.subject if part == "subject" else shown.sha256,)
        if any(glob.matches(text.encode()) for text in found for glob in globs):
            return ""
        return f"client_cert {part} is {' and '.join(map(repr, found)) or 'absent'}, not {named}"

    return condition


def _header(name: str) -> Callable[[RequestHead], Iterable[bytes]]:
    wanted = name.lower().encode()
    return lambda head: head.get_all(wanted)


def _cookie(name: str) -> Callable[[RequestHead], Iterable[bytes]]:
    wanted = name.lower().encode()
    return lambda head: [value for key, value in cookies(head) if key.lower() == wanted]


def _query(name: str) -> Callable[[RequestHead], Iterable[bytes]]:
    wanted = name.lower().encode()
    return lambda head: [value for key, value in parameters(head.query) if key.lower() == wanted]


def cookies(head: RequestHead) -> Iterable[tuple[bytes, bytes]]:
    """(name, value) of all cookies (RFC 6265 4.2.1), without the quotes a value may have."""
    for line in head.get_all(b"cookie"):
        for pair in line.split(b";"):
            key, equals, value = pair.strip().partition(b"=")
            if equals:
                yield key, value[1:-1] if len(value) > 1 and value[:1] == value[-1:] == b'"' else value


def parameters(query: bytes) -> Iterable[tuple[bytes, bytes]]:
    """(name, value) of all query parameters, decoded."""
    for pair in query.split(b"&"):
        if pair:
            key, _, value = pair.replace(b"+", b" ").partition(b"=")
            yield unquote_to_bytes(key), unquote_to_bytes(value)
