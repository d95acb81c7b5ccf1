"""A listener gets the front end it asks for, and a worker without TLS never loads OpenSSL for it."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, HttpListener, TcpListener, Timeouts
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.http.front import HttpFront
from twistedproxy.http.pacing import Pacing
from twistedproxy.http.routes import Router
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool
from twistedproxy.stream.front import StreamFront
from twistedproxy.worker.fronts import FrontParts, http_front, stream_front


class FrontsTests(SynchronousTestCase):
    def setUp(self) -> None:
        reactor = MemoryReactorClock()
        self.wheel = Wheel(reactor.seconds)
        self.parts = FrontParts(reactor, self.wheel, Metrics(), None, lambda: None)
        self.answers: Any = SimpleNamespace(mirrors=None, stories=None, explain=None)

    def test_plain_http(self) -> None:
        listener = HttpListener(Address("127.0.0.1:80"))
        router: Router[Any] = Router((), lambda site, route: None)
        front = http_front(listener, router, Timeouts(), self.parts, None, self.answers, Pacing(MemoryReactorClock()))
        self.assertIs(type(front), HttpFront)
        self.assertIs(front.router, router)  # type: ignore[attr-defined]

    def test_plain_tcp(self) -> None:
        pool = Pool(PoolSpec("pg"), seconds=self.wheel.seconds, wheel=self.wheel, random=random.Random(1))
        listener = TcpListener(Address("127.0.0.1:5432"), "pg")
        front = stream_front(listener, {"pg": pool}, self.parts, None)
        self.assertIs(type(front), StreamFront)
        self.assertIs(front.pool, pool)  # type: ignore[attr-defined]

    def test_names_in_the_hello_choose_the_pool(self) -> None:
        listener = TcpListener(Address("127.0.0.1:5432"), "", sni=(("db.example", "pg"),))
        pool = Pool(PoolSpec("pg"), seconds=self.wheel.seconds, wheel=self.wheel, random=random.Random(1))
        front = stream_front(listener, {"pg": pool}, self.parts, None)
        self.assertIn("twistedproxy.stream.tls_front", sys.modules)
        self.assertEqual(type(front).__name__, "TlsStreamFront")
