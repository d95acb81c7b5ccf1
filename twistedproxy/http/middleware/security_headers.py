"""``use = ["security_headers"]``: the fields that every site should send, filled in where the server says nothing.

OWASP Secure Headers, as far as it breaks no site: no Content-Security-Policy (it needs to know the site), framing by the same origin only.
Strict-Transport-Security goes out over TLS alone (RFC 6797 7.2) and names no subdomains. What tells of the server's software is removed.
"""

from __future__ import annotations

from typing import Any

from twistedproxy.http.messages import LocalResponse, ResponseHead
from twistedproxy.http.middleware.chain import EditedHead, Edits, Line

FIELDS = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"SAMEORIGIN"),
    (b"Referrer-Policy", b"strict-origin-when-cross-origin"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Permissions-Policy", b"camera=(), geolocation=(), microphone=()"),
)
STRICT_TRANSPORT = (b"Strict-Transport-Security", b"max-age=31536000")
REMOVED = (b"server", b"x-powered-by", b"x-aspnet-version", b"x-aspnetmvc-version")


def _line(name: bytes, value: bytes) -> Line:
    return name, lambda exchange: value


class SecurityHeaders:
    """Edits responses only."""

    def __init__(self) -> None:
        lines = [_line(*field) for field in FIELDS]
        self._plain = Edits(remove=REMOVED, default=lines)
        self._tls = Edits(remove=REMOVED, default=[*lines, _line(*STRICT_TRANSPORT)])

    def _edits(self, exchange: Any) -> Edits:
        return self._tls if exchange.scheme == "https" else self._plain

    def on_response(self, exchange: Any, head: ResponseHead) -> ResponseHead:
        edited: Any = EditedHead(head, self._edits(exchange), exchange)
        return edited  # type: ignore[no-any-return]

    def on_local(self, exchange: Any, local: LocalResponse) -> LocalResponse:
        return self._edits(exchange).local(exchange, local)
