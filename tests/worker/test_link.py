"""The worker's side of the control channel: what it hears is done or honestly refused, what it says never piles up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.test import iosim
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes, plain
from twistedproxy.config.changes import HealthSeen, SetWeight
from twistedproxy.config.model import Address, Health, Model, Pool, Server
from twistedproxy.errors import ChangeRefused
from twistedproxy.ipc import commands
from twistedproxy.ipc.commands import Channel, NotDone
from twistedproxy.worker.link import SupervisorLink
from twistedproxy.worker.service import ORPHAN_LIMIT_S

A = Address("127.0.0.1:9001")
MODEL = Model(pools={"web": Pool("web", (Server(A),))})
CONFIGURE = {"model": plain.encode(MODEL), "revision": 5, "observations": [], "slot": 0, "slots": 2, "listeners": []}


class Answers:
    """Knows one answer."""

    digests: frozenset[str] = frozenset()

    def answer(self, asked: Any) -> Any:
        if asked["ask"] != "why":
            raise ValueError(f"{asked['ask']} is no question")
        return [asked]


class Worker:
    """Remembers what it was told; raises what it is given to raise."""

    def __init__(self) -> None:
        self.revision = -1
        self.told: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.answers = Answers()

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        if self.error is not None:
            raise self.error

    def configure(self, model: Model, revision: int, observations: Sequence[Any], slots: int) -> None:
        self._tell("configure", model, observations, slots)
        self.revision = revision

    def apply(self, change: Any, revision: int) -> None:
        self._tell("apply", change)
        self.revision = revision

    def observe(self, observations: Sequence[Any]) -> None:
        self._tell("observe", observations)

    def adopt_socket(self, *what: Any) -> None:
        self._tell("adopt", *what)

    def return_socket(self, *what: Any) -> None:
        self._tell("return", *what)

    def collect(self) -> None:
        self._tell("collect")

    def reopen_logs(self) -> None:
        self._tell("reopen")

    def drain(self, limit_s: float | None = None) -> None:
        self._tell("drain", limit_s)


class Supervisor(Channel):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Any, ...]] = []
        self.answers: list[Deferred[Any]] = []
        self.is_slow = False

    def _hear(self, *what: Any) -> Any:
        self.heard.append(what)
        if not self.is_slow:
            return {}
        self.answers.append(Deferred())
        return self.answers[-1]

    @commands.Hello.responder
    def hello(self, pid: int, head_codec: str) -> Any:
        return self._hear("hello", pid > 1, head_codec)

    @commands.Heartbeat.responder
    def heartbeat(self, **facts: Any) -> Any:
        return self._hear("heartbeat", facts)

    @commands.Statistics.responder
    def statistics(self, transfer: int) -> Any:
        return self._hear("statistics", self.take_value(transfer))

    @commands.Failures.responder
    def failures(self, transfer: int) -> Any:
        return self._hear("failures", self.take_value(transfer))


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.worker = Worker()
        self.settled = 0
        self.link = SupervisorLink(lambda _: self.worker, "native", self._settle)  # type: ignore[arg-type, return-value]
        self.supervisor = Supervisor()
        self.client = iosim.FakeTransport(self.link, isServer=False)
        server = iosim.FakeTransport(self.supervisor, isServer=True)
        self.pump = iosim.connect(self.supervisor, server, self.link, self.client)
        self.pump.flush()

    def _settle(self) -> None:
        self.settled += 1

    def ask(self, command: Any, **arguments: Any) -> Any:
        answers: list[Any] = []
        self.supervisor.callRemote(command, **arguments).addBoth(answers.append)
        self.pump.flush()
        return answers[0]

    def send(self, command: Any, value: Any, **arguments: Any) -> Any:
        return self.ask(command, transfer=self.supervisor.send_value(value), **arguments)


class HearingTests(Base):
    def test_hello(self) -> None:
        """The first word says who we are and how fast heads are parsed."""
        self.assertEqual(self.supervisor.heard, [("hello", True, "native")])

    def test_configure(self) -> None:
        """The whole model arrives as it was sent; the answer is the revision."""
        seen = HealthSeen("web", A, Health.DOWN, "refused", 1.0)
        answer = self.send(commands.Configure, CONFIGURE | {"observations": [changes.to_plain(seen)]})
        self.assertEqual(answer, {"revision": 5})
        self.assertEqual(self.worker.told, [("configure", MODEL, [seen], 2)])

    def test_settles_once(self) -> None:
        """Start-up is over after the first configuration, once."""
        self.send(commands.Configure, CONFIGURE)
        self.send(commands.Configure, CONFIGURE)
        self.assertEqual(self.settled, 1)

    def test_apply(self) -> None:
        answer = self.send(commands.Apply, changes.to_plain(SetWeight("web", A, 3)), revision=6)
        self.assertEqual(answer, {"revision": 6})
        self.assertEqual(self.worker.told, [("apply", SetWeight("web", A, 3))])

    def test_what_cannot_be_done(self) -> None:
        """Whatever goes wrong is told to the supervisor with its reason, and the channel lives on."""
        self.worker.error = ChangeRefused(404, "no such pool")
        answer = self.send(commands.Apply, changes.to_plain(SetWeight("web", A, 3)), revision=6)
        self.assertIn("no such pool", answer.getErrorMessage())
        self.worker.error = LookupError("no listener")
        for refused in (
            answer,
            self.send(commands.Apply, {"kind": "from the future"}, revision=6),
            self.send(commands.Configure, {"model": {"no": "model"}, "revision": 1}),
            self.ask(commands.Configure, transfer=999),
            self.ask(commands.Observe, transfer=999),
            self.send(commands.Observe, [{"kind": "health_seen"}]),
        ):
            assert isinstance(refused, Failure)
            self.assertIsNotNone(refused.check(NotDone), refused)
        self.flushLoggedErrors()
        self.worker.error = None
        self.assertEqual(self.send(commands.Configure, CONFIGURE), {"revision": 5})

    def test_small_words(self) -> None:
        for command, arguments, told in (
            (commands.ReturnSocket, {"listener": "l", "index": 1}, ("return", "l", 1)),
            (commands.Collect, {}, ("collect",)),
            (commands.ReopenLogs, {}, ("reopen",)),
            (commands.Drain, {}, ("drain", None)),
        ):
            self.assertEqual(self.ask(command, **arguments), {})
            self.assertEqual(self.worker.told[-1], told)

    def test_lc_04_supervisor_gone(self) -> None:
        """LC-04: without a supervisor a worker stops accepting at once and finishes within 5 s; reports go nowhere, quietly."""
        self.client.disconnectReason = None
        self.link.connectionLost(Failure(ConnectionError()))
        self.assertEqual(self.worker.told, [("drain", ORPHAN_LIMIT_S)])
        self.assertLessEqual(ORPHAN_LIMIT_S, 5)
        self.link.heartbeat(1, 1, 1, 0.0)
        self.link.statistics({})
        self.link.failures([["web", A, 1, 1]])


class SayingTests(Base):
    def said(self, word: str) -> list[Any]:
        self.pump.flush()
        return [heard[1] for heard in self.supervisor.heard if heard[0] == word]

    def test_reports(self) -> None:
        self.link.heartbeat(3, 17, 1042, 0.0004)
        self.link.statistics({"requests": ["x" * 200_000]})
        self.link.failures([["web", A, 1, 2]])
        self.assertEqual(self.said("heartbeat"), [{"revision": 3, "connections": 17, "requests": 1042, "lag_seconds": 0.0004}])
        self.assertEqual(len(self.said("statistics")[0]["requests"][0]), 200_000)
        self.assertEqual(self.said("failures"), [[["web", A, 1, 2]]])

    def test_a_supervisor_that_does_not_read(self) -> None:
        """Reports wait for the answer to the one before: failures are added up, nothing piles up in memory."""
        self.supervisor.is_slow = True
        for n in range(100):
            self.link.heartbeat(n, 0, 0, 0.0)
            self.link.statistics({"n": n})
            self.link.failures([["web", A, 1, 2], ["web", "other", 0, 1]])
        self.assertEqual((len(self.said("heartbeat")), len(self.said("statistics"))), (1, 1))
        self.assertEqual(self.said("failures"), [[["web", A, 1, 2], ["web", "other", 0, 1]]])
        self.supervisor.is_slow = False
        for answer in self.supervisor.answers:
            answer.callback({})
        self.assertEqual(self.said("failures")[1:], [[["web", A, 99, 198], ["web", "other", 0, 99]]])
        self.link.heartbeat(100, 0, 0, 0.0)
        self.assertEqual(self.said("heartbeat")[-1]["revision"], 100)
