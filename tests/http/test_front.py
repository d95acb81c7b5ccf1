"""The HTTP listener as its users see it: connections are counted, drained and cut, and PROXY headers believed only where configured."""

from __future__ import annotations

import dataclasses

from twisted.trial.unittest import SynchronousTestCase


class FrontTests(SynchronousTestCase):
    uses_bed = True

    def test_a_request_goes_to_the_server_and_its_answer_back(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(b"/x?y=1"))
        request = server.request()
        self.assertEqual(request.start, b"GET /x?y=1 HTTP/1.1")
        self.assertEqual(request.get(b"Host"), b"example.com")
        server.send(f.answer(b"hello"))
        response = client.response()
        self.assertEqual((response.status, response.body), (200, b"hello"))
        line = self.bed.logged()
        self.assertEqual((line.status, line.bytes_sent, line.cause.value, line.site, line.pool), (200, 5, "ok", "site", "web"))
