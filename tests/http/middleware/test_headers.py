"""Header edits as a middleware."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.head import parse_response
from twistedproxy.http.messages import LocalResponse
from twistedproxy.http.middleware.chain import Chain, Edits
from twistedproxy.http.middleware.headers import Headers

EDIT = Edits([(b"X-A", lambda exchange: exchange.value)])


class HeadersTests(SynchronousTestCase):
    def test_hooks_are_there_only_for_what_is_edited(self) -> None:
        """No request edits, no hook for requests."""
        chain = Chain([Headers(Edits(), EDIT)])
        self.assertEqual((len(chain.on_request), len(chain.on_response), len(chain.on_local)), (0, 1, 1))
        self.assertEqual(len(Chain([Headers(EDIT, Edits())]).on_request), 1)

    def test_values_are_made_when_the_head_is_written(self) -> None:
        """So that a retry on another server is told truly."""
        exchange: Any = SimpleNamespace(value=b"1", outgoing=parse_response(b"HTTP/1.1 200 OK\r\n\r\n"))
        Chain([Headers(EDIT, Edits())]).on_request[0](exchange)
        exchange.value = b"2"
        self.assertIn(b"X-A: 2\r\n", exchange.outgoing.write_h1(None, 0, (), b"\r\n"))
        local = Chain([Headers(Edits(), EDIT)]).on_local[0](exchange, LocalResponse(200))
        self.assertEqual(local.fields, ((b"X-A", b"2"),))
