"""Host names of servers: resolved beside the reactor, last known good kept."""

from __future__ import annotations

import threading
from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import Resolved
from twistedproxy.config.model import Address, Model, Pool, Server
from twistedproxy.probes.discovery import Resolver, look_up

DB = Address("db.example:5432")


def model(*servers: str) -> Model:
    return Model(pools={"pg": Pool("pg", tuple(Server(Address(s)) for s in servers))})


class ThreadClock(Clock):
    """A clock whose `callFromThread` runs what threads hand over when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._handed: list[Callable[[], object]] = []
        self._arrived = threading.Semaphore(0)

    def callFromThread(self, function: Callable[..., object], *args: object) -> None:
        self._handed.append(lambda: function(*args))
        self._arrived.release()

    def settle(self, answers: int) -> None:
        """Wait for that many answers of threads and deliver them."""
        for _ in range(answers):
            assert self._arrived.acquire(timeout=10), "a look-up never came back"
            self._handed.pop(0)()


class ResolverTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ThreadClock()
        self.told: list[Resolved] = []
        self.answers: dict[str, tuple[str, ...] | OSError] = {"db.example": ("10.0.0.1",)}
        self.warnings: list[str] = []
        log = Logger(observer=lambda event: self.warnings.append(event["log_format"].format(**event)))
        self.resolver = Resolver(self.clock, self.told.append, look_up=self.look_up, log=log)
        self.addCleanup(self.resolver.stop)

    def look_up(self, host: str) -> tuple[str, ...]:
        answer = self.answers[host]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def test_names_are_resolved_at_once_and_every_ten_seconds(self) -> None:
        """A server that moves is followed within ten seconds; an answer that did not change is not told again."""
        self.resolver.update(model(DB, "10.9.9.9:1"))
        self.clock.settle(1)
        self.assertEqual(self.told, [Resolved("pg", DB, ("10.0.0.1",))])
        self.assertEqual(self.resolver.addresses, {DB: ("10.0.0.1",)})
        self.clock.advance(10)
        self.clock.settle(1)
        self.assertEqual(len(self.told), 1)
        self.answers["db.example"] = ("10.0.0.2", "10.0.0.1")
        self.clock.advance(10)
        self.clock.settle(1)
        self.assertEqual(self.told[1:], [Resolved("pg", DB, ("10.0.0.2", "10.0.0.1"))])

    def test_p10_last_known_good_stays_and_one_warning_a_minute(self) -> None:
        """P10: with the resolver dead for ten minutes the servers keep their addresses, and the log is not flooded."""
        self.resolver.update(model(DB))
        self.clock.settle(1)
        self.answers["db.example"] = OSError("Name or service not known")
        for _ in range(60):
            self.clock.advance(10)
            self.clock.settle(1)
        self.assertEqual(len(self.told), 1)
        self.assertEqual(self.resolver.addresses, {DB: ("10.0.0.1",)})
        self.assertEqual(len(self.warnings), 10)
        self.assertIn("db.example (Name or service not known; last known addresses stay in use)", self.warnings[0])

    def test_p10_an_empty_answer_empties_nothing(self) -> None:
        """P10: NXDOMAIN or an empty answer never takes a server's addresses away, and is logged."""
        self.resolver.update(model(DB))
        self.clock.settle(1)
        self.answers["db.example"] = ()
        self.clock.advance(10)
        self.clock.settle(1)
        self.assertEqual(self.resolver.addresses, {DB: ("10.0.0.1",)})
        self.assertIn("the answer is empty", self.warnings[0])

    def test_a_server_added_later_hears_of_a_known_name_at_once(self) -> None:
        """A second port on the same host needs no second look-up."""
        self.resolver.update(model(DB))
        self.clock.settle(1)
        self.resolver.update(model(DB, "db.example:5433"))
        self.assertEqual(self.told[1:], [Resolved("pg", Address("db.example:5433"), ("10.0.0.1",))])

    def test_a_hanging_resolver_is_asked_once_and_reported(self) -> None:
        """A DNS server that swallows questions costs one thread per name and is told of."""
        hang = threading.Event()
        self.addCleanup(hang.set)
        asked: list[str] = []

        def silent(host: str) -> tuple[str, ...]:
            asked.append(host)
            hang.wait(30)
            return ("10.0.0.1",)

        self.resolver._look_up = silent
        self.resolver.update(model(DB))
        self.clock.advance(10)
        self.clock.advance(10)
        self.assertEqual(asked, ["db.example"])
        self.assertIn("db.example (no answer for 10 s; never resolved)", self.warnings[0])

    def test_names_that_left_are_forgotten(self) -> None:
        """An answer for a name that left the configuration meanwhile is dropped, and nobody is asked any more."""
        self.resolver.update(model(DB))
        self.resolver.update(model())
        self.clock.settle(1)
        self.assertEqual((self.told, self.resolver.addresses, self.clock.getDelayedCalls()), ([], {}, []))

    def test_the_system_resolver_is_asked(self) -> None:
        """`localhost` means loopback, each address once."""
        found = look_up("localhost")
        self.assertIn(found[0], ("127.0.0.1", "::1"))
        self.assertEqual(len(found), len(set(found)))
