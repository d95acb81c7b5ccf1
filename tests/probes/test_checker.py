"""The checking loops: hysteresis, spread, one at a time, and surviving a reload."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import HealthSeen
from twistedproxy.config.model import Address, Health, HealthCheck, Model, Pool, Server
from twistedproxy.probes.checker import Checker

A, B = Address("10.0.0.1:6379"), Address("10.0.0.2:6379")
CHECK = HealthCheck("redis", every_s=2.0, timeout_s=1.0, fall=3, rise=2)


def model(*servers: str, check: HealthCheck | None = CHECK) -> Model:
    return Model(pools={"p": Pool("p", tuple(Server(Address(s)) for s in servers), health=check)})


class Line(StringTransport):
    """A transport that closes when asked to."""

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.disconnecting = True


class CheckerTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.verdicts: list[HealthSeen] = []
        self.results: list[tuple[str, str, str]] = []
        self.checker = Checker(
            self.reactor,
            self.verdicts.append,
            lambda pool, server, result: self.results.append((pool, server, result)),
            draw=lambda: 0.5,
            wall_clock=lambda: 1000.0,
        )
        self.seen = 0

    def attempts(self) -> list[tuple[str, int]]:
        """Connection attempts since the last look."""
        new = self.reactor.tcpClients[self.seen :]
        return [(host, port) for host, port, *_ in new]

    def answer(self, data: bytes | None, after: float = 0.0) -> None:
        """Let the oldest open attempt be answered with `data`, or be refused for None."""
        factory: Any = self.reactor.tcpClients[self.seen][2]
        self.seen += 1
        self.reactor.advance(after)
        if data is None:
            factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
            return
        protocol = factory.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1))
        protocol.makeConnection(Line())
        protocol.dataReceived(data)
        protocol.connectionLost(Failure(ConnectionDone()))

    def rounds(self, *answers: bytes | None) -> None:
        for data in answers:
            self.reactor.advance(2.0)
            self.answer(data)

    def states(self) -> list[Health]:
        return [v.health for v in self.verdicts]

    def test_the_first_verdict_is_immediate(self) -> None:
        """A server that is down at start is known within a second, not after three checks."""
        self.checker.update(model(A))
        self.reactor.advance(0.25)
        self.answer(None)
        self.assertEqual(self.verdicts, [HealthSeen("p", A, Health.DOWN, "connection refused", 1000.0)])
        self.assertEqual(self.results, [("p", A, "failed")])

    def test_the_reason_tells_the_time_an_answer_took(self) -> None:
        """The status page says how long the server took to answer."""
        self.checker.update(model(A))
        self.reactor.advance(0.25)
        self.answer(b"+PONG\r\n", after=0.0012)
        self.assertEqual((self.verdicts[0].health, self.verdicts[0].reason), (Health.UP, "PONG in 1.2 ms"))

    def test_bf08_flapping_does_not_flap_the_verdict(self) -> None:
        """BF-08: every second check failing changes nothing; three in a row take the server out, two bring it back."""
        self.checker.update(model(A))
        self.reactor.advance(0.25)
        good = b"+PONG\r\n"
        self.answer(good)
        self.rounds(None, good, None, good, None, None)
        self.assertEqual(self.states(), [Health.UP])
        self.rounds(None)
        self.assertEqual(self.states(), [Health.UP, Health.DOWN])
        self.rounds(good, None, good)
        self.assertEqual(self.states(), [Health.UP, Health.DOWN])
        self.rounds(good)
        self.assertEqual(self.states(), [Health.UP, Health.DOWN, Health.UP])

    def test_bf08_a_silent_server_times_out_and_is_asked_once_at_a_time(self) -> None:
        """BF-08: a check that never returns is ended after its time-out; there is never a second one in flight."""
        self.checker.update(model(A, check=replace(CHECK, every_s=0.5)))
        self.reactor.advance(0.25)
        for _ in range(9):
            self.reactor.advance(0.1)
        self.assertEqual(len(self.attempts()), 1)
        self.reactor.advance(0.2)
        self.assertEqual(self.verdicts[0].reason, "timed out after 1 s")
        self.assertEqual(self.results, [("p", A, "timeout")])
        self.reactor.advance(0.1)
        self.assertEqual(len(self.attempts()), 2)

    def test_checks_keep_their_period(self) -> None:
        """The time a check takes does not add to its period."""
        self.checker.update(model(A))
        self.reactor.advance(0.25)
        self.answer(b"+PONG\r\n", after=0.9)
        self.reactor.advance(1.0)
        self.assertEqual(len(self.attempts()), 0)
        self.reactor.advance(0.11)
        self.assertEqual(len(self.attempts()), 1)

    def test_the_period_is_jittered(self) -> None:
        """A hundred proxies do not ask a server in step: the period varies by 20 % either way."""
        for draw, due in ((0.0, 1.6), (1.0, 2.4)):
            self.checker.draw = lambda draw=draw: draw
            self.checker.update(model(A))
            self.reactor.advance(0.25)
            self.answer(b"+PONG\r\n")
            self.reactor.advance(due - 0.01)
            self.assertEqual(len(self.attempts()), 0)
            self.reactor.advance(0.02)
            self.assertEqual(len(self.attempts()), 1)
            self.answer(b"+PONG\r\n")
            self.checker.stop()

    def test_an_unchanged_server_keeps_its_history_over_a_reload(self) -> None:
        """A reload that adds a server neither restarts the checks of the others nor forgets their failures."""
        self.checker.update(model(A))
        self.reactor.advance(0.25)
        self.answer(b"+PONG\r\n")
        self.rounds(None, None)
        self.checker.update(model(A, B))
        self.reactor.advance(0.25)
        self.assertEqual(self.attempts(), [("10.0.0.2", 6379)])
        self.answer(b"+PONG\r\n")
        self.reactor.advance(1.75)
        self.assertEqual(self.attempts(), [("10.0.0.1", 6379)])
        self.answer(None)
        self.assertEqual(self.verdicts[-1].health, Health.DOWN)

    def test_a_removed_server_is_asked_no_more(self) -> None:
        """What left the configuration gets no more checks, and a check in flight says nothing."""
        self.checker.update(model(A))
        self.reactor.advance(0.25)
        self.checker.update(model())
        self.reactor.advance(10)
        self.assertEqual((self.verdicts, self.results, len(self.attempts())), ([], [], 1))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_check_taken_away_leaves_no_server_down_for_ever(self) -> None:
        """Removing `health` from a pool whose server is down makes its health unknown again."""
        self.checker.update(model(A))
        self.reactor.advance(0.25)
        self.answer(None)
        self.checker.update(model(A, check=None))
        self.assertEqual(self.states(), [Health.DOWN, Health.UNKNOWN])

    def test_another_port_can_be_asked(self) -> None:
        """`port` in a health check asks the side port of each server."""
        self.checker.update(model(A, "[::1]:1", check=replace(CHECK, port=8081)))
        self.reactor.advance(0.25)
        self.assertEqual(sorted(self.attempts()), [("10.0.0.1", 8081), ("::1", 8081)])

    def test_a_host_name_is_asked_at_its_addresses(self) -> None:
        """A name with two addresses is up when one of them answers."""
        name = Address("db.example:5432")
        self.checker.update(model(name), {name: ("10.0.0.8", "10.0.0.9")})
        self.reactor.advance(0.25)
        self.assertEqual(self.attempts(), [("10.0.0.8", 5432)])
        self.answer(None)
        self.assertEqual(self.attempts(), [("10.0.0.9", 5432)])
        self.answer(b"+PONG\r\n")
        self.assertEqual(self.states(), [Health.UP])

    def test_a_name_that_does_not_resolve_is_down_after_a_grace(self) -> None:
        """At start the resolver gets five seconds before a name without addresses counts as down."""
        self.checker.update(model("db.example:5432"))
        for _ in range(19):
            self.reactor.advance(0.25)
        self.assertEqual(self.verdicts, [])
        self.reactor.advance(0.5)
        self.assertEqual(self.verdicts[0].reason, "host name db.example does not resolve")

    def test_stop_leaves_no_timers(self) -> None:
        """The supervisor can end at any time."""
        self.checker.update(model(A, B))
        self.reactor.advance(0.25)
        self.checker.stop()
        self.reactor.advance(10)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.results, [])
