"""The worker's end of the control channel: words from the supervisor become calls of `Worker`, its reports become words.

Reports never pile up behind a supervisor that does not read: while one of a kind is unanswered, the next of its kind waits
(failures are added up, of the others only the newest counts).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from twistedproxy.config import changes, plain
from twistedproxy.config.model import Model
from twistedproxy.errors import ChangeRefused
from twistedproxy.ipc import commands
from twistedproxy.ipc.commands import NotDone
from twistedproxy.worker.service import ORPHAN_LIMIT_S, Worker

_log = Logger(namespace="worker")


class SupervisorLink(commands.Channel):
    """What this worker hears and says.

    `make_worker` gets this link as its `Reports`; `on_configured` is called once, after the first model took effect.
    """

    def __init__(
        self, make_worker: Callable[[SupervisorLink], Worker], head_codec: str, on_configured: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.worker = make_worker(self)
        self._head_codec = head_codec
        self._is_open = False
        self._on_configured: Callable[[], None] | None = on_configured
        self._unanswered: set[type[amp.Command]] = set()
        self._failures: dict[tuple[str, str], list[int]] = {}

    def connectionMade(self) -> None:
        self._is_open = True
        super().connectionMade()  # type: ignore[no-untyped-call]
        self._say(commands.Hello, pid=os.getpid(), head_codec=self._head_codec)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The supervisor is gone: nobody would take our sockets back, so stop accepting at once."""
        self._is_open = False
        super().connectionLost(reason)
        self.worker.drain(ORPHAN_LIMIT_S)

    # Heard

    @commands.Configure.responder
    def _configure(self, transfer: int) -> dict[str, Any]:
        try:
            value = self.take_value(transfer)
            model = plain.decode(Model, value["model"])
            observations = [changes.from_plain(seen) for seen in value.get("observations", ())]
            self.worker.answers.digests = frozenset(value.get("explainers", ()))
            self.worker.configure(model, value["revision"], observations, value.get("slots", 1))
        except Exception as e:
            _log.failure("the configuration could not be taken over")
            raise NotDone(f"{type(e).__name__}: {e}") from e
        if self._on_configured is not None:
            self._on_configured()
            self._on_configured = None
        return {"revision": self.worker.revision}

    @commands.AdoptSocket.responder
    def _adopt(self, listener: str, index: int, descriptor: int) -> dict[str, Any]:
        try:
            self.worker.adopt_socket(listener, index, descriptor)
        except (LookupError, OSError) as e:
            raise NotDone(str(e)) from e
        return {}

    @commands.ReturnSocket.responder
    def _return(self, listener: str, index: int) -> dict[str, Any]:
        self.worker.return_socket(listener, index)
        return {}

    @commands.Apply.responder
    def _apply(self, revision: int, transfer: int) -> dict[str, Any]:
        try:
            self.worker.apply(changes.from_plain(self.take_value(transfer)), revision)
        except (ChangeRefused, ValueError) as e:
            raise NotDone(f"revision {revision}: {e}") from e
        except Exception as e:
            _log.failure("revision {revision} could not be applied", revision=revision)
            raise NotDone(f"revision {revision}: {type(e).__name__}: {e}") from e
        return {"revision": self.worker.revision}

    @commands.Observe.responder
    def _observe(self, transfer: int) -> dict[str, Any]:
        try:
            self.worker.observe([changes.from_plain(seen) for seen in self.take_value(transfer)])
        except Exception as e:
            _log.failure("an observation could not be taken in")
            raise NotDone(f"{type(e).__name__}: {e}") from e
        return {}

    @commands.Collect.responder
    def _collect(self) -> dict[str, Any]:
        self.worker.collect()
        return {}

    @commands.Ask.responder
    def _ask(self, transfer: int) -> dict[str, Any]:
        try:
            answer = self.worker.answers.answer(self.take_value(transfer))
        except Exception as e:
            raise NotDone(f"{type(e).__name__}: {e}") from e
        return {"transfer": self.send_value(answer)}

    @commands.ReopenLogs.responder
    def _reopen(self) -> dict[str, Any]:
        self.worker.reopen_logs()
        return {}

    @commands.Drain.responder
    def _drain(self) -> dict[str, Any]:
        self.worker.drain()
        return {}

    # Said

    def heartbeat(self, revision: int, connections: int, requests: int, lag_seconds: float) -> None:
        if commands.Heartbeat not in self._unanswered:
            self._say(commands.Heartbeat, revision=revision, connections=connections, requests=requests, lag_seconds=lag_seconds)

    def statistics(self, totals: Mapping[str, Any]) -> None:
        if commands.Statistics not in self._unanswered and self._is_open:
            self._say(commands.Statistics, transfer=self.send_value(totals))

    def failures(self, rows: Sequence[Sequence[Any]]) -> None:
        for pool, server, failures, requests in rows:
            sums = self._failures.setdefault((pool, server), [0, 0])
            sums[0] += failures
            sums[1] += requests
        if commands.Failures not in self._unanswered and self._is_open:
            sums_now, self._failures = self._failures, {}
            self._say(commands.Failures, transfer=self.send_value([[*key, *sums] for key, sums in sums_now.items()]))

    def _say(self, command: type[amp.Command], **arguments: Any) -> None:
        if not self._is_open:
            return
        self._unanswered.add(command)
        answer: Deferred[Any] = self.callRemote(command, **arguments)  # type: ignore[no-untyped-call]
        answer.addBoth(self._answered, command)

    def _answered(self, result: Any, command: type[amp.Command]) -> None:
        self._unanswered.discard(command)
        if isinstance(result, Failure) and self._is_open:
            _log.warn("the supervisor did not take {word}: {why}", word=command.__name__, why=result.getErrorMessage())
        if command is commands.Failures and self._failures:
            self.failures(())
