"""Names of servers in cookies."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, Pool, Server
from twistedproxy.http.sticky import server_behind, server_token
from twistedproxy.pool.pool import Pool as RunningPool


class StickyTests(SynchronousTestCase):
    def test_a_token_finds_its_server_and_tells_nothing(self) -> None:
        """The same in every process, different in every pool, not the address, and nobody's when the server is gone."""
        addresses = [f"10.0.0.{i}:80" for i in range(5)]
        spec = Pool("web", tuple(Server(Address(a)) for a in addresses))
        pool = RunningPool(spec, seconds=lambda: 0.0, wheel=Wheel(lambda: 0.0), random=random.Random(1))
        for address in addresses:
            token = server_token("web", address)
            found = server_behind(pool, token.encode())
            assert found is not None
            self.assertEqual(found.address, address)
            self.assertNotEqual(token, server_token("other", address))
        self.assertEqual(server_token("web", "10.0.0.1:80"), server_token("web", "10.0.0.1:80"))
        for token_bytes in (None, b"", b"nonsense", b"\xff"):
            self.assertIsNone(server_behind(pool, token_bytes))
