"""Traffic divided over pools by weight, so that a client stays on its side while the weights move.

How it works
    A client without history gets the side that `draw` in [0, 1) falls on. With a cookie it then keeps that side for as long as the
    side exists and has a weight above 0. With a stable hash there is nothing to remember: each side scores the client's key (weighted
    rendezvous hashing, Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005) and the best score wins, so that a change
    of weights moves exactly the part of the clients that must move, and all of them to sides that grew.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Generic, TypeVar

from twistedproxy.config.model import Sticky
from twistedproxy.http.destination import cookie, query_value
from twistedproxy.http.messages import RequestHead
from twistedproxy.pool.balancers import stable_hash

T = TypeVar("T")


class Split(Generic[T]):
    """The sides of one route; `T` is what the router decides for each."""

    __slots__ = ("_by_name", "_key_of", "_open", "_total", "cookie", "sides", "sticky")

    def __init__(self, sides: list[tuple[str, int, T]], sticky: Sticky | None) -> None:
        """`sides` are (pool, weight, decision)."""
        self.sticky = sticky
        self.cookie = sticky.cookie.encode() if sticky is not None and sticky.cookie else None
        self._key_of = _key_function(sticky.key) if sticky is not None and sticky.key else None
        self.open(sides)

    def open(self, sides: list[tuple[str, int, T]]) -> None:
        """Divide traffic over these."""
        self.sides = sides
        self._open = [side for side in sides if side[1] > 0]
        self._total = sum(weight for _, weight, _ in self._open)
        self._by_name = {name.encode(): decision for name, _, decision in self._open}

    def choose(self, head: RequestHead, client: str, draw: float) -> T:
        """The side for this request."""
        own = self.own_side(head, client)
        return self._by_draw(draw) if own is None else own

    def own_side(self, head: RequestHead, client: str) -> T | None:
        """The side this client gets whatever the draw: the one its cookie or its hash names. None: it has none of its own."""
        if self.cookie is not None:
            return self._by_name.get(cookie(head, self.cookie) or b"")
        if self._key_of is not None:
            key = self._key_of(head, client)
            if key:
                return self._by_hash(key)
        return None

    def _by_draw(self, draw: float) -> T:
        at = draw * self._total
        for _, weight, decision in self._open:
            at -= weight
            if at < 0:
                return decision
        return self._last()

    def _last(self) -> T:
        """All weights are 0: nobody is open, which the decision's user finds out by `is_open`."""
        return (self._open or self.sides)[-1][2]

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def _by_hash(self, key: bytes) -> T:
        best: tuple[float, T] | None = None
        for name, weight, decision in self._open:
            # In (0, 1): 53 bits of a hash of key and side.
            chance = (stable_hash(key + b"\0" + name.encode()) % (1 << 53) + 0.5) / (1 << 53)
            score = -weight / log(chance) if weight else 0.0
            if best is None or score > best[0]:
                best = (score, decision)
        return self._last() if best is None else best[1]

    def set_cookie(self, head: RequestHead, side: str, is_tls: bool) -> bytes | None:
        """The Set-Cookie value that makes the client remember `side`; None when it does already, or is known by a hash."""
        if self.cookie is None or self.sticky is None or cookie(head, self.cookie) == side.encode():
            return None
        return cookie_value(self.sticky, side, is_tls)


def cookie_value(sticky: Sticky, value: str, is_tls: bool) -> bytes:
    """A Set-Cookie value (RFC 6265 4.1); scripts cannot read it."""
    parts = [f"{sticky.cookie}={value}", f"Path={sticky.path}"]
    if sticky.ttl_s:
        parts.append(f"Max-Age={round(sticky.ttl_s)}")
    parts.append("HttpOnly")
    parts.append(f"SameSite={sticky.same_site.capitalize()}")
    if is_tls if sticky.secure is None else sticky.secure:
        parts.append("Secure")
    return "; ".join(parts).encode()


def _key_function(by: str) -> Callable[[RequestHead, str], bytes]:
    """What identifies a client; empty when it sends nothing of the kind."""
    if by == "source_ip":
        return lambda head, client: client.encode()
    part, _, name = by.removeprefix("hash:").partition(".")
    wanted = name.encode()
    if part == "header":
        field = wanted.lower()
        return lambda head, client: head.get(field) or b""
    if part == "cookie":
        return lambda head, client: cookie(head, wanted) or b""
    return lambda head, client: query_value(head.query, wanted) or b""
