"""The preset that every site should have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.head import parse_response
from twistedproxy.http.messages import LocalResponse
from twistedproxy.http.middleware.security_headers import FIELDS, SecurityHeaders


class SecurityHeadersTests(SynchronousTestCase):
    def written(self, scheme: str, *fields: bytes) -> bytes:
        head = parse_response(b"\r\n".join((b"HTTP/1.1 200 OK", *fields, b"", b"")))
        assert head is not None
        exchange: Any = SimpleNamespace(scheme=scheme)
        return SecurityHeaders().on_response(exchange, head).write_h1(None, 0, (), b"\r\n")

    def test_gaps_are_filled_and_what_the_server_says_stays(self) -> None:
        """Each field once; software is not named."""
        out = self.written("http", b"X-Frame-Options: DENY", b"Server: s/1", b"X-Powered-By: p")
        for name, value in FIELDS:
            wanted = b"DENY" if name == b"X-Frame-Options" else value
            self.assertEqual(out.count(name + b": "), 1)
            self.assertIn(name + b": " + wanted + b"\r\n", out)
        self.assertNotIn(b"Server", out)
        self.assertNotIn(b"Powered", out)

    def test_strict_transport_security_over_tls_only(self) -> None:
        """RFC 6797 7.2."""
        self.assertIn(b"Strict-Transport-Security: max-age=", self.written("https"))
        self.assertNotIn(b"Strict", self.written("http"))
        local = SecurityHeaders().on_local(SimpleNamespace(scheme="https"), LocalResponse(404))
        self.assertIn(b"Strict-Transport-Security", dict(local.fields))
