"""Who is available now, and who takes over when nobody is."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, Health
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.pool.server import Server
from twistedproxy.pool.view import Nobody, View, no_server

NONE: frozenset[Server] = frozenset()


def server(number: int, backup: bool = False, slow_start_s: float = 0.0) -> Server:
    return Server(ServerSpec(Address(f"10.0.0.{number}:80"), backup=backup), 10, slow_start_s)


class ViewTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.view = View("round_robin", Random(1))
        self.full: set[Server] = set()

    def choose(self, tried: frozenset[Server] = NONE) -> Server | Nobody:
        return self.view.choose(0, 0.0, tried, self.full.__contains__)

    def test_full_ones_are_passed_over(self) -> None:
        """However many servers are full, the one with room is found; when all are, that is what is said."""
        many = [server(i) for i in range(12)]
        self.view.look(many, 0.0)
        self.full = set(many[:11])
        self.assertEqual({self.choose() for _ in range(30)}, {many[11]})
        self.assertIs(self.choose(frozenset({many[11]})), Nobody.FULL)
        self.full = set(many)
        self.assertIs(self.choose(), Nobody.FULL)

    def test_full_primaries_do_not_wake_backups(self) -> None:
        """Backups are for primaries that are gone; busy ones make clients wait."""
        primary, backup = server(1), server(2, backup=True)
        self.view.look([primary, backup], 0.0)
        self.full = {primary}
        self.assertIs(self.choose(), Nobody.FULL)

    def test_backups_take_over(self) -> None:
        """... when every primary is out, and for a request that has tried them all."""
        primary, backup = server(1), server(2, backup=True)
        self.view.look([primary, backup], 0.0)
        self.assertEqual({self.choose() for _ in range(5)}, {primary})
        self.assertIs(self.choose(frozenset({primary})), backup)
        self.assertIs(self.choose(frozenset({primary, backup})), Nobody.NONE)
        primary.health = Health.DOWN
        self.view.look([primary, backup], 0.0)
        self.assertEqual({self.choose() for _ in range(5)}, {backup})
        self.assertEqual(self.view.available, {backup})

    def test_looks_again_in_time(self) -> None:
        """The end of an ejection and the steps of slow start are seen without anybody saying so."""
        one, two = server(1), server(2, slow_start_s=10.0)
        self.view.look([one, two], 0.0)
        self.assertEqual(self.view.until, float("inf"))
        two.ejected_until = 30.0
        self.view.look([one, two], 5.0)
        self.assertEqual((self.view.until, self.view.available), (30.0, {one}))
        self.view.look([one, two], 30.0)
        self.assertEqual(self.view.available, {one, two})
        self.assertTrue(two.is_ramping(31.0))
        self.assertLess(self.view.until, 31.0)
        self.view.look([one, two], 41.0)
        self.assertEqual(self.view.until, float("inf"))

    def test_repeated_news_change_nothing(self) -> None:
        """An observation that repeats what is known does not reset whose turn it is."""
        many = [server(1), server(2)]
        self.view.look(many, 0.0)
        pick = self.view.pick
        self.view.look(many, 1.0)
        self.assertEqual(self.view.pick, pick)

    def test_refusal_says_why(self) -> None:
        """The person who reads the error learns how many servers are out for which reason, and when to come again."""
        down, ejected, tried = server(1), server(2), server(3)
        down.health = Health.DOWN
        ejected.ejected_until = 17.5
        refusal = no_server("web", [down, ejected, tried], frozenset({tried}), 10.0)
        self.assertEqual(str(refusal), "no server of pool 'web' is available: 1 down, 1 ejected, 1 tried")
        self.assertEqual((refusal.retry_after_s, refusal.status), (8, 503))
        self.assertIn("empty", str(no_server("web", [], NONE, 10.0)))
