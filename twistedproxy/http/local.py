"""Requests the proxy answers itself, whatever the routes say: CONNECT, and TRACE and OPTIONS that must go no further.

RFC 9110: 9.3.6 (CONNECT), 9.3.8 (TRACE), 7.6.2 (Max-Forwards).
"""

from __future__ import annotations

import functools
import time
from email.utils import formatdate

from twistedproxy.errors import BadHead
from twistedproxy.http.messages import LocalResponse, RequestHead

SPECIAL = frozenset({b"CONNECT", b"TRACE", b"OPTIONS"})
"""The methods this is about; others need not ask."""
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_SECRET = frozenset({b"authorization", b"cookie", b"proxy-authorization", b"x-revproxy-explain"})


def local_answer(method: bytes, head: RequestHead) -> LocalResponse | BadHead | None:
    """The answer to a request that ends here, or why there is none; None when it goes on like any other. Ask for methods in `SPECIAL`."""
    if method == b"CONNECT":
        return BadHead("this is a reverse proxy: CONNECT is not spoken here", 405, "method_not_allowed")
    if method not in SPECIAL or hops_left(head) != 0:
        return None
    if method == b"OPTIONS":
        return LocalResponse(200, b"", ((b"Allow", _METHODS),))
    lines = [b"TRACE %b HTTP/1.%d" % (head.target, head.minor)]
    lines += [b"%b: %b" % (name, value) for name, value in head.fields() if name.lower() not in _SECRET]
    return LocalResponse(200, b"\r\n".join(lines) + b"\r\n\r\n", ((b"Content-Type", b"message/http"),))


def hops_left(head: RequestHead) -> int | None:
    """Max-Forwards, where it counts (TRACE and OPTIONS); None when absent or no number."""
    value = head.get(b"max-forwards")
    return int(value) if value is not None and value.isdigit() and len(value) < 10 else None


def forwards_field(head: RequestHead) -> bytes:
    """The decremented Max-Forwards line to send on, b"" for none."""
    left = hops_left(head)
    return b"Max-Forwards: %d\r\n" % (left - 1) if left else b""


def date() -> bytes:
    """Now, for the Date field of answers made here (RFC 9110 6.6.1)."""
    return _date(int(time.time()))


@functools.lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
