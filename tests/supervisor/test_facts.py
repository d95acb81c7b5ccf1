"""What is known of the moment, and the scoreboard rows of servers."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import ChallengeSet, Ejected, HandshakeChallengeSet, HealthSeen, RowAssigned
from twistedproxy.config.model import Address, Health, Model, Pool, Server
from twistedproxy.supervisor.facts import Facts, Rows, server_keys

A, B = Address("10.0.0.1:1"), Address("10.0.0.2:1")


def model(*servers: Address) -> Model:
    return Model(pools={"web": Pool("web", tuple(map(Server, servers)))})


class FactsTests(SynchronousTestCase):
    def test_a_worker_that_starts_hears_only_the_last_word(self) -> None:
        facts = Facts()
        up, down = (HealthSeen("web", A, health, "", 0.0) for health in (Health.UP, Health.DOWN))
        self.assertIsNone(facts.put(up))
        self.assertEqual(facts.put(down), up)
        self.assertEqual([f["health"] for f in facts.plain()], ["down"])
        self.assertEqual(facts.health, {("web", A): down})

    def test_challenges_are_known_until_they_are_taken_back(self) -> None:
        """A worker that starts in the middle of an order answers the authority like the others."""
        facts = Facts()
        for put, take_back in (
            (ChallengeSet("t", "answer"), ChallengeSet("t", "")),
            (HandshakeChallengeSet("a.example", "PEM", "KEY"), HandshakeChallengeSet("a.example", "", "")),
        ):
            facts.put(put)
            self.assertEqual(len(facts.plain()), 1)
            facts.keep_only(())
            self.assertEqual(len(facts.plain()), 1)
            facts.put(take_back)
            self.assertEqual(facts.plain(), [])

    def test_ejections_end_by_themselves(self) -> None:
        facts = Facts()
        facts.put(Ejected("web", A, 30.0))
        self.assertEqual(facts.ejected(29.9), {("web", A)})
        self.assertEqual(facts.ejected(30.0), frozenset())

    def test_a_removed_server_is_forgotten_its_pool_is_not(self) -> None:
        facts = Facts()
        for row in (RowAssigned("web", A, 1), RowAssigned("web", Address(""), 0)):
            facts.put(row)
        facts.keep_only(server_keys(model(B)))
        self.assertEqual([f["row"] for f in facts.plain()], [0])


class RowsTests(SynchronousTestCase):
    def test_each_server_and_pool_has_one_row_while_it_is_there(self) -> None:
        names: list[str] = []
        freed: list[str] = []

        def allocate(name: str) -> int:
            names.append(name)
            return len(names) - 1

        rows = Rows(allocate, freed.append)
        self.assertEqual(rows.update(model(A)), [RowAssigned("web", Address(""), 0), RowAssigned("web", A, 1)])
        self.assertEqual(rows.update(model(A, B)), [RowAssigned("web", B, 2)])
        self.assertEqual(rows.update(model(B)), [])
        self.assertEqual(freed, [f"web {A}"])
