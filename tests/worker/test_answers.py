"""What a worker answers its supervisor, and a client with an operator's token."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.model import Address, Model, Pool, Route, Server, Site
from twistedproxy.errors import BadHead
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.http.mirror import Mirrors
from twistedproxy.http.routes import Router
from twistedproxy.http.stories import Stories
from twistedproxy.pool.pool import Pool as LivePool
from twistedproxy.worker.answers import Answers

SITES = {"*": Site("*", ("*",), (Route("/", redirect="/y"),))}


class AnswerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.worker = worker = SimpleNamespace(model=Model(sites=SITES), pools={}, wheel=SimpleNamespace(seconds=lambda: 0.0))
        self.stories = Stories(lambda: 1.0)
        self.answers = Answers(cast(Any, worker), self.stories, Mirrors(lambda name: None, Counter()))
        self.answers.digests = frozenset({hashlib.sha256(b"token").hexdigest(), "0" * 64})

    def test_questions(self) -> None:
        """Stories by id, the newest without; mirrors; anything else is told apart."""
        self.stories.refused(b"i", BadHead("x"), "c")
        self.assertEqual(self.answers.answer({"ask": "why", "id": "i"})[0]["status"], 400)
        self.assertEqual(self.answers.answer({"ask": "why", "id": ""})[0]["id"], "i")
        self.assertEqual(self.answers.answer({"ask": "mirrors"}), {"results": [], "differences": [], "samples": []})
        self.assertRaises(ValueError, self.answers.answer, {"ask": "x"})

    def test_keys_of_late(self) -> None:
        """By pool, of those that are asked for and that there are; none of a pool that does not go by keys."""
        for balance in ("hash:path", "round_robin"):
            spec = Pool(balance, (Server(Address("10.0.0.1:80")),), balance=balance)
            pool = LivePool(spec, seconds=lambda: 1.0, wheel=Wheel(lambda: 1.0), random=Random(1))
            pool.acquire(7, frozenset(), lambda _: None)
            self.worker.pools[balance] = pool
        asked = {"ask": "keys", "pools": ["hash:path", "round_robin", "gone"]}
        self.assertEqual(self.answers.answer(asked), {"hash:path": [(7, 1)], "round_robin": []})

    def ask(self, token: str) -> Any:
        head = parse_request(f"GET / HTTP/1.1\r\nHost: h\r\nX-Revproxy-Explain: {token}\r\n\r\n".encode(), Limits())
        front = SimpleNamespace(router=Router(SITES.values(), lambda site, route: None))
        connection = SimpleNamespace(client=SimpleNamespace(scheme="http", tls=None), local=("127.0.0.1", 80))
        exchange: Any = SimpleNamespace(head=head, client_ip="c", front=front, connection=connection, request_id=b"i")
        return self.answers.explain(exchange)

    def test_a_token_gets_the_trace_and_nothing_else_does(self) -> None:
        """Of tokens only digests are known here."""
        found = json.loads(self.ask("token").body)
        self.assertEqual((found["site"], found["response"]["location"], found["id"]), ("*", "/y", "i"))
        for wrong in ("", "Token", "t" * 600, "0" * 64):
            self.assertIsNone(self.ask(wrong))
