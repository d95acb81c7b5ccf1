"""Heads, moments and copies for the tests of the cache's pure part; loaded by path, as `tests/` is no package."""

from __future__ import annotations

from collections.abc import Sequence

from twistedproxy.http.cache.policy import Freshness, Settings, storable, store
from twistedproxy.http.cache.stored import Stored
from twistedproxy.http.head import Limits, parse_request, parse_response
from twistedproxy.http.messages import RequestHead, ResponseHead

T0 = 1767225600.0
DATE = "Date: Thu, 01 Jan 2026 00:00:00 GMT"
"""The same moment."""

LIMITS = Limits()
LENGTH = "Content-Length: 5"


def ask(fields: Sequence[str] = (), method: str = "GET", target: str = "/x") -> RequestHead:
    lines = [f"{method} {target} HTTP/1.1", "Host: www.example.com", *fields, "", ""]
    head = parse_request("\r\n".join(lines).encode("latin-1"), LIMITS)
    assert head is not None
    return head


def answer(fields: Sequence[str] = (), status: int = 200, bare: bool = False) -> ResponseHead:
    lines = [f"HTTP/1.1 {status} X", *([] if bare else [DATE, LENGTH]), *fields, "", ""]
    head = parse_response("\r\n".join(lines).encode("latin-1"))
    assert head is not None
    return head


def keep(
    fields: Sequence[str] = (), *, request: RequestHead | None = None, status: int = 200, settings: Settings | None = None,
    now: float = T0, bare: bool = False,
) -> Stored:  # fmt: skip
    """The copy of an answer that may be kept."""
    request = request or ask()
    head = answer(fields, status, bare)
    verdict = storable(request, head, settings or Settings(), now, now)
    assert isinstance(verdict, Freshness), verdict
    stored = store(request, head, verdict, now)
    assert stored is not None
    return stored
