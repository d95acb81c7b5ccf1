"""What a worker answers when its supervisor asks: the story of a request, the differences that mirrors saw,
the keys of recent requests, and live explanations."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from random import random
from typing import TYPE_CHECKING, Any

from twistedproxy.http.explain import Question, explain
from twistedproxy.http.messages import LocalResponse
from twistedproxy.http.mirror import Mirrors
from twistedproxy.http.stories import Stories
from twistedproxy.pool.pool import recent_keys
from twistedproxy.pool.twin import Known

if TYPE_CHECKING:
    from twistedproxy.http.exchange import Exchange
    from twistedproxy.worker.service import Worker

LONGEST_TOKEN = 512


class Answers:
    """Answers for one worker. `digests` are those of the operators' tokens (SHA-256, hexadecimal)."""

    def __init__(self, worker: Worker, stories: Stories, mirrors: Mirrors) -> None:
        self._worker = worker
        self.stories = stories
        self.mirrors = mirrors
        self.digests: frozenset[str] = frozenset()
        self._kinds: dict[str, Callable[[Mapping[str, Any]], Any]] = {"why": self._why, "mirrors": self._seen, "keys": self._keys}

    def answer(self, asked: Mapping[str, Any]) -> Any:
        """`ValueError` for what nobody here knows."""
        kind = self._kinds.get(str(asked.get("ask")))
        if kind is None:
            raise ValueError(f"{asked.get('ask')!r} is no question; there are: {', '.join(self._kinds)}")
        return kind(asked)

    def _why(self, asked: Mapping[str, Any]) -> Any:
        return self.stories.find(asked["id"]) if asked.get("id") else self.stories.latest()

    def _seen(self, asked: Mapping[str, Any]) -> Any:
        return self.mirrors.to_plain()

    def _keys(self, asked: Mapping[str, Any]) -> Any:
        """By pool: keys of late and how often each came."""
        return {name: recent_keys(pool) for name in asked["pools"] if (pool := self._worker.pools.get(name)) is not None}

    def explain(self, exchange: Exchange) -> LocalResponse | None:
        """The answer to a live request that asks for its own trace; None when it has no right to."""
        token = exchange.head.get(b"x-revproxy-explain")
        if not token or len(token) > LONGEST_TOKEN or not self._may_explain(token):
            return None
        client = exchange.connection.client
        asked = Question(exchange.head, exchange.client_ip, client.scheme, exchange.connection.local[1], exchange, client.tls)
        model = self._worker.model
        found = explain(exchange.front.router, asked, self._known, model.via_of, random())
        found["id"] = exchange.request_id.decode("latin-1")
        body = json.dumps(found, indent=1).encode() + b"\n"
        return LocalResponse(200, body, ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")))

    def _may_explain(self, token: bytes) -> bool:
        digest = hashlib.sha256(token).hexdigest()
        # Every digest is compared, in a time that tells nothing of them.
        return sum(hmac.compare_digest(digest, known) for known in self.digests) > 0

    def _known(self, name: str) -> Known | None:
        pool = self._worker.pools.get(name)
        if pool is None:
            return None
        now = self._worker.wheel.seconds()
        health = {server.address: server.health for server in pool.servers}
        ejected = frozenset(s.address for s in pool.servers if s.ejected_until > now)
        return Known(pool.spec, health, ejected, frozenset(s.address for s in pool.servers if not s.endpoints))
