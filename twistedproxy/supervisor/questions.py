"""What operators ask rather than change: explain, why, mirrors. Whatever only workers know is asked of all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from random import random
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from twistedproxy.config import plain
from twistedproxy.config.control import Entry
from twistedproxy.config.model import Model
from twistedproxy.errors import BadHead, ChangeRefused
from twistedproxy.http.explain import explain, question
from twistedproxy.http.matching import Imagined
from twistedproxy.http.trials import offline_router
from twistedproxy.pool.twin import Known
from twistedproxy.supervisor.journal import rfc3339

KEPT_TRANSITIONS = 2000
AROUND_HEALTH_S = 30.0
AROUND_CHANGES_S = 300.0


class Knowledge(Protocol):
    """What the supervisor knows."""

    model: Model
    revision: int

    def health(self) -> tuple[Mapping[tuple[str, str], Any], frozenset[tuple[str, str]]]: ...

    def unresolved(self) -> frozenset[tuple[str, str]]: ...

    def history(self, after: int = 0) -> Sequence[Entry]: ...

    def ask_workers(self, asked: Mapping[str, Any]) -> Deferred[list[Any]]: ...


class Questions:
    """Answers for the admin side."""

    def __init__(self, knowledge: Knowledge, wall: Callable[[], float]) -> None:
        self._knowledge = knowledge
        self._wall = wall
        self._transitions: deque[tuple[float, dict[str, Any]]] = deque(maxlen=KEPT_TRANSITIONS)
        self._routed: tuple[Any, Any] = (None, None)

    def saw(self, kind: str, data: Mapping[str, Any]) -> None:
        """An event is published: changes of health are remembered for `why`."""
        if kind == "health":
            self._transitions.append((self._wall(), dict(data)))

    async def answer(self, what: str, arguments: Mapping[str, Any]) -> Any:
        if what == "explain":
            return self._explain(arguments)
        if what == "why":
            return await self._why(str(arguments.get("id", "")))
        return await self._mirrors()

    def _explain(self, arguments: Mapping[str, Any]) -> Any:
        model = self._knowledge.model
        if self._routed[0] is not model.sites:
            self._routed = (model.sites, offline_router(model))
        headers = []
        for line in arguments.get("header", ()):
            name, colon, value = line.partition(":")
            if not colon or not name.strip():
                raise ChangeRefused(400, f"header {line!r:.80} is not 'Name: value'", "header")
            headers.append((name.strip(), value.strip()))
        try:
            client = arguments.get("client", "127.0.0.1")
            asked = question(arguments.get("method", "GET"), arguments["url"], headers, client, _shown(arguments))
        except BadHead as error:
            raise ChangeRefused(400, f"a client would be told {error.status}: {error.detail}", "url") from None
        except ValueError as error:
            raise ChangeRefused(400, str(error), "url") from None
        return explain(self._routed[1], asked, self._known, model.via_of, random())

    def _known(self, name: str) -> Known | None:
        spec = self._knowledge.model.pools.get(name)
        if spec is None:
            return None
        health, ejected = self._knowledge.health()
        verdicts = {address: seen.health for (pool, address), seen in health.items() if pool == name}
        unresolved = frozenset(address for pool, address in self._knowledge.unresolved() if pool == name)
        return Known(spec, verdicts, frozenset(address for pool, address in ejected if pool == name), unresolved)

    async def _why(self, request_id: str) -> Any:
        answers = await self._knowledge.ask_workers({"ask": "why", "id": request_id})
        stories = [story for answer in answers for story in answer]
        if not request_id:
            return {"latest": sorted(stories, key=lambda story: -story["at"])[:20]}
        if not stories:
            raise ChangeRefused(
                404,
                f"nothing is kept of {request_id!r:.80}: the workers remember the last 500 failed and slow requests each, "
                "since their own start",
                "id",
            )
        return {"stories": [self._joined(story) for story in stories]}

    def _joined(self, story: Mapping[str, Any]) -> dict[str, Any]:
        """A story with what happened around it."""
        at, pool = story["at"], story.get("pool")
        health = [
            {"at": rfc3339(when), "seconds": round(when - at, 3), **data}
            for when, data in self._transitions
            if abs(when - at) <= AROUND_HEALTH_S + story["duration_seconds"] and (pool is None or data.get("pool") == pool)
        ]
        changes = []
        for entry in self._knowledge.history():
            seconds = datetime.fromisoformat(entry.at).timestamp() - at
            if abs(seconds) <= AROUND_CHANGES_S + story["duration_seconds"]:
                changes.append({"seconds": round(seconds, 3), **plain.encode(entry)})
        return {**story, "at": rfc3339(at), "health": health, "changes": changes}

    async def _mirrors(self) -> Any:
        answers = await self._knowledge.ask_workers({"ask": "mirrors"})
        results: dict[tuple[str, str, str], dict[str, int]] = {}
        differences: dict[tuple[str, str, str], dict[str, int]] = {}
        for answer in answers:
            for table, rows in ((results, answer["results"]), (differences, answer["differences"])):
                for site, path, pool, kind, n in rows:
                    counts = table.setdefault((site, path, pool), {})
                    counts[kind] = counts.get(kind, 0) + n
        samples = [sample for answer in answers for sample in answer["samples"]]
        return {
            "mirrors": [
                {
                    "site": key[0], "path": key[1], "pool": key[2], "results": results[key], "differences": differences.get(key, {}),
                    "samples": [s for s in samples if (s["site"], s["path"], s["pool"]) == key],
                }
                for key in sorted(results)
            ]
        }  # fmt: skip


def _shown(arguments: Mapping[str, Any]) -> Imagined | None:
    """The certificate that the imagined client shows."""
    names = tuple(arguments.get("client_cert_san", ()))
    subject, sha256 = (str(arguments.get(f"client_cert_{part}", "")) for part in ("subject", "sha256"))
    return Imagined(subject, names, sha256.replace(":", "").lower()) if subject or names or sha256 else None
