"""One server in one worker: may it be used, with which weight, and what has become of it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, AdminState, Endpoint, Health
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.errors import Drained, ProxyError
from twistedproxy.pool.server import Outcome, Server


def server(address: str = "10.0.0.1:80", slow_start_s: float = 0.0, **spec: object) -> Server:
    return Server(ServerSpec(Address(address), **spec), 10, slow_start_s)  # type: ignore[arg-type]


class AvailabilityTests(SynchronousTestCase):
    def test_table(self) -> None:
        """available = ready and not down and not ejected and weight above 0; sticky clients also get to a draining one."""
        drain, maint = AdminState.DRAIN, AdminState.MAINT
        table = [
            ({}, Health.UNKNOWN, 0.0, True, True, ""),
            ({}, Health.UP, 0.0, True, True, ""),
            ({}, Health.DOWN, 0.0, False, False, "down"),
            ({}, Health.UP, 100.1, False, False, "ejected"),
            ({}, Health.UP, 100.0, True, True, ""),
            ({"weight": 0}, Health.UP, 0.0, False, False, "of weight 0"),
            ({"weight_set": 0}, Health.UP, 0.0, False, False, "of weight 0"),
            ({"state_set": drain}, Health.UP, 0.0, False, True, "draining"),
            ({"state_set": drain}, Health.DOWN, 0.0, False, False, "draining"),
            ({"state_set": maint}, Health.UP, 0.0, False, False, "in maintenance"),
        ]
        for spec, health, until, new, sticky, why in table:
            one = server(**spec)
            one.health = health
            one.ejected_until = until
            self.assertEqual((one.is_available(100.0), one.is_available_sticky(100.0), one.why_not(100.0)), (new, sticky, why), spec)

    def test_host_name_waits_for_its_addresses(self) -> None:
        """A server whose name is not resolved yet gets nothing that could only fail."""
        one = server("db.example:5432")
        self.assertEqual((one.is_available(0.0), one.why_not(0.0)), (False, "unresolved"))
        one.endpoints = (Endpoint(2, "10.0.0.1", 5432),)  # type: ignore[arg-type]
        self.assertTrue(one.is_available(0.0))

    def test_literal_addresses_are_there_at_once(self) -> None:
        for address in ("10.0.0.1:80", "[::1]:80", "unix:/run/app.sock"):
            self.assertEqual(str(server(address).endpoints[0]), address)


class WeightTests(SynchronousTestCase):
    def test_slow_start(self) -> None:
        """A server that comes back is loaded step by step, from a twentieth to its whole weight."""
        one = server(weight=100, slow_start_s=10.0)
        self.assertEqual(one.effective_weight(50.0), 100)
        one.ramp_from = 50.0
        self.assertEqual([round(one.effective_weight(t)) for t in (50.0, 51.0, 55.0, 59.9, 60.0, 99.0)], [5, 10, 50, 99, 100, 100])
        self.assertEqual([one.is_ramping(t) for t in (50.0, 59.9, 60.0)], [True, True, False])

    def test_operators_weight_wins(self) -> None:
        self.assertEqual(server(weight=3, weight_set=7).effective_weight(0.0), 7)


class LatencyTests(SynchronousTestCase):
    def test_peak_counts_at_once_and_fades(self) -> None:
        """One slow answer makes a server look slow now; ten seconds of fast ones make up for it."""
        one = server()
        one.see_latency(0.01, Outcome.OK, 0.0)
        one.see_latency(1.0, Outcome.OK, 1.0)
        self.assertEqual(one.latency, 1.0)
        for second in range(2, 42):
            one.see_latency(0.01, Outcome.OK, float(second))
        self.assertLess(one.latency, 0.05)

    def test_quick_failure_is_not_fast(self) -> None:
        """A server that refuses in a millisecond does not become everybody's favourite."""
        one = server()
        one.see_latency(0.05, Outcome.OK, 0.0)
        one.see_latency(0.001, Outcome.FAILED, 0.1)
        self.assertGreaterEqual(one.latency, 1.0)

    def test_clients_fault_says_nothing(self) -> None:
        one = server()
        one.see_latency(5.0, Outcome.NEUTRAL, 0.0)
        self.assertEqual(one.latency, 0.0)

    def test_not_asked_is_forgiven(self) -> None:
        one = server()
        one.see_latency(1.0, Outcome.OK, 0.0)
        self.assertLess(one.expected_latency(30.0), 0.06)


class CutTests(SynchronousTestCase):
    def test_one_broken_callback_spares_nobody(self) -> None:
        """Cutting a server reaches every session, even when one of them fails at it; the failure is logged."""
        one = server()
        told: list[ProxyError] = []

        def broken(error: ProxyError) -> None:
            raise RuntimeError("broken session")

        one.sessions = {1: told.append, 2: broken, 3: told.append}
        error = Drained()
        one.cut(error)
        self.assertEqual((told, one.sessions), ([error, error], {}))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
