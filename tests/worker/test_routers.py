"""A worker's routers follow the model, and leave alone what has not changed."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, HttpListener, Model, Route, Site, Timeouts
from twistedproxy.config.model import Pool as PoolSpec
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool
from twistedproxy.worker.routers import Routers

HTTP = HttpListener(Address("127.0.0.1:80"))
HTTPS = replace(HttpListener(Address("127.0.0.1:8443")), is_tls=True)
MODEL = Model(http=(HTTP, HTTPS), pools={"web": PoolSpec("web")}, sites={"a": Site("a", ("a",), (Route("/", "web"),))}, timeouts=Timeouts())


def pool(name: str) -> Pool:
    return Pool(PoolSpec(name), seconds=lambda: 0.0, wheel=Wheel(lambda: 0.0), random=random.Random(1))


class RoutersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.routers = Routers({"web": pool("web")}, pool(""), Metrics())

    def route(self, listener: HttpListener, host: bytes = b"a") -> Any:
        head: Any = SimpleNamespace(host=host, path=b"/", method=b"GET")
        return self.routers.of(listener).route(head, "127.0.0.1")

    def test_a_site_is_found_on_every_listener(self) -> None:
        self.assertTrue(self.routers.configure(MODEL, {}))
        self.assertIs(self.routers.of(HTTP), self.routers.of(HTTPS))
        self.assertEqual(self.route(HTTP).destination.pool.name, "web")
        self.assertIsNone(self.route(HTTP, b"b"))

    def test_the_same_sites_keep_their_router(self) -> None:
        self.routers.configure(MODEL, {})
        before = self.routers.of(HTTP)
        self.assertFalse(self.routers.configure(replace(MODEL, workers=4), {}))
        self.assertIs(self.routers.of(HTTP), before)

    def test_another_balance_makes_them_anew(self) -> None:
        self.routers.configure(MODEL, {})
        self.assertTrue(self.routers.configure(replace(MODEL, pools={"web": PoolSpec("web", balance="source_ip")}), {}))
