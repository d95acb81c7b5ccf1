"""What a route means in a running worker: everything a request needs to know about where it goes, looked up once per configuration."""

from __future__ import annotations

from collections.abc import Callable

from twistedproxy.config.model import Route, Site
from twistedproxy.http.messages import RequestHead
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.balancers import stable_hash
from twistedproxy.pool.pool import Pool

KeyOf = Callable[[RequestHead, str], int]
"""Balancing key of a request from a client's IP."""


class Destination:
    """Pool, limits and counters of one route; the fields are read on every request, so they are plain attributes."""

    __slots__ = (
        "pool", "counts", "site", "max_body", "timeouts", "key_of", "via", "sticky", "tries", "retry_on", "keepalive", "send_proxy",
    )  # fmt: skip

    def __init__(self, site: Site, route: Route, pool: Pool, metrics: Metrics) -> None:
        spec = pool.spec
        self.pool = pool
        self.counts = metrics.http(site.name, pool.name)
        self.site = site.name
        self.max_body = route.max_body
        self.timeouts = route.timeouts
        self.key_of = key_function(spec.balance)
        self.via = b"Via: 1.1 %b\r\n" % site.via.encode() if site.via else b""
        self.sticky = spec.sticky
        retry = route.retry or spec.retry
        self.tries = retry.tries
        self.retry_on = frozenset(retry.on)
        self.keepalive = spec.keepalive
        self.send_proxy = spec.send_proxy


def key_function(balance: str) -> KeyOf | None:
    """How a pool's `balance` turns a request into a key; None when it does not look at the request."""
    if balance == "source_ip":
        return lambda head, ip: stable_hash(ip.encode())
    kind, _, what = balance.partition(":")
    if kind != "hash":
        return None
    if what == "path":
        return lambda head, ip: stable_hash(head.path)
    part, _, name = what.partition(".")
    wanted = name.encode()
    if part == "header":
        field = wanted.lower()
        return lambda head, ip: stable_hash(head.get(field) or b"")
    if part == "cookie":
        return lambda head, ip: stable_hash(cookie(head, wanted) or b"")
    if part == "query":
        return lambda head, ip: stable_hash(query_value(head.query, wanted) or b"")
    raise ValueError(f"unknown balance {balance!r}")


def cookie(head: RequestHead, name: bytes) -> bytes | None:
    """The first cookie of that name (RFC 6265 4.2.1); names are case-sensitive."""
    for line in head.get_all(b"cookie"):
        for pair in line.split(b";"):
            key, equals, value = pair.strip().partition(b"=")
            if equals and key == name:
                return value
    return None


def query_value(query: bytes, name: bytes) -> bytes | None:
    """The first value of a query parameter, undecoded."""
    for pair in query.split(b"&"):
        key, _, value = pair.partition(b"=")
        if key == name:
            return value
    return None
