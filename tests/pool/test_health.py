"""Verdicts: flapping servers are not believed at once, failing ones are ejected, never all of them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Eject, Health
from twistedproxy.pool.health import EjectionWindow, Ejector, RiseFall


class RiseFallTests(SynchronousTestCase):
    def verdicts(self, fall: int, rise: int, results: str) -> str:
        it = RiseFall(fall, rise)
        told = ""
        for result in results:
            changed = it.add(result == "+")
            told += {Health.UP: "U", Health.DOWN: "D"}[it.verdict] if changed else "."
        return told

    def test_table(self) -> None:
        """The first result decides; afterwards only a row of contrary ones does."""
        table = [
            (3, 2, "+", "U"),
            (3, 2, "-", "D"),
            (3, 2, "+---", "U..D"),
            (3, 2, "+--+--+--", "U........"),
            (3, 2, "+-+-+-+-+", "U........"),
            (3, 2, "-++", "D.U"),
            (3, 2, "-+-+-+-", "D......"),
            (3, 2, "+---++---", "U..D.U..D"),
            (1, 1, "+-+-", "UDUD"),
        ]
        for fall, rise, results, expected in table:
            self.assertEqual(self.verdicts(fall, rise, results), expected, results)

    def test_unknown_until_asked(self) -> None:
        self.assertIs(RiseFall(3, 2).verdict, Health.UNKNOWN)


class WindowTests(SynchronousTestCase):
    def test_old_counts_leave(self) -> None:
        window = EjectionWindow(10.0)
        window.add(1, 5, 0.0)
        window.add(2, 2, 9.0)
        self.assertEqual((window.failures, window.requests), (3, 7))
        window.forget(10.0)
        self.assertEqual((window.failures, window.requests), (2, 2))

    def test_bounded(self) -> None:
        """A flood of reports does not grow the window's memory."""
        window = EjectionWindow(10.0)
        for i in range(10_000):
            window.add(1, 1, i / 100)
        self.assertLessEqual(len(window._parts), EjectionWindow.PARTS + 1)
        self.assertApproximates(window.failures, 1000, 60)

    def test_failures_are_requests(self) -> None:
        window = EjectionWindow(10.0)
        window.add(3, 0, 0.0)
        self.assertEqual(window.requests, 3)


class EjectorTests(SynchronousTestCase):
    def test_errors_within_the_window(self) -> None:
        """Five failures in ten seconds eject for thirty; five in a minute do not."""
        ejector = Ejector(Eject(), "ab")
        self.assertEqual([ejector.add("a", 1, 1, float(t)) for t in range(5)], [None] * 4 + [34.0])
        self.assertEqual(ejector.ejected(33.9), {"a": 34.0})
        self.assertEqual(ejector.ejected(34.0), {})
        slow = Ejector(Eject(), "ab")
        self.assertEqual({slow.add("a", 1, 1, t * 12.0) for t in range(20)}, {None})

    def test_ratio(self) -> None:
        """A busy server with a few failures among many good answers stays."""
        ejector = Ejector(Eject(), "ab")
        ejector.add("a", 0, 100, 0.0)
        self.assertIsNone(ejector.add("a", 99, 99, 1.0))
        self.assertEqual(ejector.add("a", 1, 1, 1.0), 31.0)

    def test_only_server_stays(self) -> None:
        ejector = Ejector(Eject(), "a")
        self.assertIsNone(ejector.add("a", 100, 100, 0.0))

    def test_max_percent_rounds_down(self) -> None:
        """Of five servers with 50 %, two may be out at a time."""
        ejector = Ejector(Eject(), "abcde")
        self.assertEqual([ejector.add(s, 9, 9, 0.0) is not None for s in "abcde"], [True, True, False, False, False])
        self.assertIsNotNone(ejector.add("c", 9, 9, 31.0))

    def test_waits_for_its_turn(self) -> None:
        """Who could not be ejected because others were is so at its next failure after they are back."""
        ejector = Ejector(Eject(for_s=5.0), "ab")
        ejector.add("a", 5, 5, 0.0)
        self.assertIsNone(ejector.add("b", 5, 5, 4.0))
        self.assertEqual(ejector.add("b", 1, 1, 6.0), 11.0)

    def test_clean_slate_afterwards(self) -> None:
        """Back from an ejection, a server has its full allowance again; stragglers from before do not count."""
        ejector = Ejector(Eject(for_s=2.0), "ab")
        ejector.add("a", 5, 5, 0.0)
        self.assertIsNone(ejector.add("a", 50, 50, 1.0))
        self.assertIsNone(ejector.add("a", 4, 4, 2.0))
        self.assertEqual(ejector.add("a", 1, 1, 2.5), 4.5)

    def test_strangers_and_leavers(self) -> None:
        ejector = Ejector(Eject(), "ab")
        self.assertIsNone(ejector.add("z", 9, 9, 0.0))
        ejector.add("a", 9, 9, 0.0)
        ejector.update(Eject(), "bc")
        self.assertEqual(ejector.ejected(1.0), {})
        self.assertIsNotNone(ejector.add("b", 9, 9, 1.0))

    def test_successes_never_eject(self) -> None:
        """A report without failures ejects nobody, whatever the window holds."""
        ejector = Ejector(Eject(for_s=5.0), "ab")
        ejector.add("a", 5, 5, 0.0)
        ejector.add("b", 5, 5, 4.0)
        self.assertIsNone(ejector.add("b", 0, 1, 6.0))
