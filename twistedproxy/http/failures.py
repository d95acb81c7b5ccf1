"""The one place where an error becomes the answer a client sees (RFC 9457 problem, or HTML for browsers)."""

from __future__ import annotations

import json
from functools import lru_cache
from html import escape

from twistedproxy.errors import ProxyError, UnderMaintenance
from twistedproxy.http.messages import REASONS, LocalResponse, RequestHead

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{status} {title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;padding:0 1em;color-scheme:light dark}}\
code{{opacity:.7}}</style><h1>{title}</h1><p>{detail}.</p><p><code>{status} &middot; {request_id}</code></p></html>
"""


def failure_response(error: ProxyError, head: RequestHead | None, request_id: bytes) -> LocalResponse:
    """What the client is told of `error`; it names neither server nor pool."""
    status = error.status
    title = REASONS.get(status, b"Error").decode()
    if isinstance(error, UnderMaintenance):
        detail = "this site is under maintenance; please come back later"
    else:
        detail = error.detail if status < 500 else _PUBLIC.get(status, title.lower())
    accept = head.get(b"accept") if head is not None else None
    if accept is not None and prefers_html(accept):
        kind = b"text/html; charset=utf-8"
        body = _PAGE.format(status=status, title=title, detail=escape(detail), request_id=escape(request_id.decode("latin-1"))).encode()
    else:
        kind = b"application/problem+json"
        start = _problem(status, title, detail) if status >= 500 else _problem.__wrapped__(status, title, detail)
        body = b"%b%b}" % (start, json.dumps(request_id.decode("latin-1")).encode())
    fields = [(b"Content-Type", kind), (b"Cache-Control", b"no-store"), (b"X-Request-Id", request_id)]
    if error.retry_after_s:
        fields.append((b"Retry-After", b"%d" % error.retry_after_s))
    if status == 405:
        fields.append((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    return LocalResponse(status, body, tuple(fields))


@lru_cache(maxsize=64)
def _problem(status: int, title: str, detail: str) -> bytes:
    """A problem up to its instance. Cached where `detail` is ours alone: refusing must be cheap."""
    text = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
    return text[:-1].encode() + b', "instance": '


def prefers_html(accept: bytes) -> bool:
    """Does this Accept field rank HTML above JSON (RFC 9110 12.5.1)? Of equal weights what is named wins over a wildcard."""
    if b"text/html" not in accept.lower():
        return False
    ranks = {"html": (0.0, 0), "json": (0.0, 0)}
    for item in accept.lower().split(b","):
        kind, *parameters = item.replace(b" ", b"").replace(b"\t", b"").split(b";")
        if kind not in _ACCEPTED:
            continue
        family, named = _ACCEPTED[kind]
        try:
            weight = next((float(p[2:]) for p in parameters if p.startswith(b"q=")), 1.0)
        except ValueError:
            weight = 0.0
        if weight > 0:
            ranks[family] = max(ranks[family], (weight, named))
    return ranks["html"] > ranks["json"]


_ACCEPTED = {
    b"text/html": ("html", 2),
    b"application/problem+json": ("json", 2),
    b"application/json": ("json", 2),
    b"application/*": ("json", 1),
    b"*/*": ("json", 0),
}

_PUBLIC = {
    502: "the server behind this proxy could not be reached or gave no valid answer",
    503: "no server is available for this request now",
    504: "the server behind this proxy did not answer in time",
}
