"""Changes, journal, shifts and deadlines while one supervisor takes over from another: nothing is lost, nothing happens twice."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from twistedproxy.config.changes import HealthSeen, SetWeight
from twistedproxy.config.model import Health
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.configuration import Configuration
from twistedproxy.supervisor.journal import Journal

_spec = importlib.util.spec_from_file_location("test_service_base", Path(__file__).parent / "test_service.py")
base: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(base)  # type: ignore[union-attr]
A, B = base.A, base.B


@pytest.mark.usefixtures("bench")
class HandOverTests(base.SupervisorTestCase):  # type: ignore[name-defined, misc]
    async def test_frozen_it_refuses_and_thawed_it_goes_on_where_it_was(self) -> None:
        """The journal is closed meanwhile; who asks for a change is told to ask again."""
        await self.apply(SetWeight("web", A, 7))
        one = self.supervisor.hand_over
        await one.freeze()
        refusal = await self.refused(SetWeight("web", A, 8))
        self.assertEqual((refusal.status, refusal.retry_after_s), (503, 1))
        with self.assertRaises(ChangeRefused):
            await self.supervisor.confirm(1, "eve")
        self.assertTrue(one.is_still)
        self.assertTrue(self.supervisor._observed._are_orders_held, "certificates are the other one's to order")
        one.thaw()
        self.assertFalse(self.supervisor._observed._are_orders_held)
        self.assertEqual((await self.apply(SetWeight("web", A, 9))).revision, 2)
        self.assertEqual([e.change["after"] for e in self.supervisor.history()], [7, 9])
        self.assertFalse(one.is_still)

    async def test_what_a_successor_journaled_before_it_failed_is_in_force(self) -> None:
        """It served for a moment and took something back: the journal is what counts, not what we remember."""
        one = self.supervisor.hand_over
        await one.freeze()
        other = Journal(self.path, self.in_thread, lambda: 0.0)
        other.replay(self.file)
        await other.append(self.file, SetWeight("web", A, 7), by="revproxy", reason="")
        other.close()
        self.supervisor.operations.current = Configuration(self.file, "", {})
        one.thaw()
        server = self.supervisor.model.pools["web"].servers[0]
        self.assertEqual((self.supervisor.revision, server.address, server.weight_now), (1, A, 7))
        self.supervisor.operations.current = None

    async def test_purges_a_successor_took_before_it_failed_are_told_to_our_workers(self) -> None:
        """They are in no journal, so its revision says nothing of them."""
        one = self.supervisor.hand_over
        await one.freeze()
        told: list[bool] = []
        self.patch(one._purging, "read_again", lambda: told.append(True))
        one.thaw()
        self.assertEqual(told, [True])

    async def test_a_change_in_work_is_through_before_the_journal_is_closed(self) -> None:
        self.is_held = True
        applying = self.bench.run(self.apply(SetWeight("web", A, 7)))
        await self.bench.until(lambda: self.pending)
        freezing = self.bench.run(self.supervisor.hand_over.freeze())
        self.assertFalse(freezing.called)
        self.is_held = False
        self.pending[0].callback(None)
        self.assertEqual((await applying).revision, 1)
        await freezing
        reader = Journal(self.path, self.in_thread, lambda: 0.0, is_ours=False)
        self.assertEqual(reader.revision, 1)
        self.supervisor.hand_over.thaw()

    async def test_the_new_one_reads_without_touching_and_catches_up(self) -> None:
        """What the old one journals while the new one starts is in the new one before it serves, with what was seen of the servers."""
        reader = Journal(self.path, self.in_thread, lambda: 0.0, is_ours=False)
        before = open(self.path, "rb").read()  # noqa: SIM115
        reader.replay(self.file, "another text")
        self.assertEqual(open(self.path, "rb").read(), before)  # noqa: SIM115
        await self.apply(SetWeight("web", A, 7))
        self.checker.tell(HealthSeen("web", B, Health.DOWN, "refused", 0.0))
        legacy = self.supervisor.hand_over.legacy()
        self.assertEqual({each["kind"] for each in legacy["observations"]}, {"health_seen"})
        reader.read_again(is_ours=False)
        replayed = reader.replay(self.file)
        self.assertEqual((replayed.revision, replayed.model.pools["web"].servers[0].weight_now), (1, 7))
        await self.supervisor.hand_over.catch_up(replayed, legacy | {"observations": [*legacy["observations"], {"kind": "unheard of"}]})
        self.assertEqual(self.supervisor.revision, 1)

    async def test_waiting_its_workers_accept_nothing(self) -> None:
        """They are ready all the same, and accept once it begins."""
        await self.tearDown()
        start = self.supervisor.__class__.startService
        self.patch(self.supervisor.__class__, "startService", lambda supervisor: (supervisor.hand_over.wait(), start(supervisor)))
        await self.start()
        one = self.supervisor.hand_over
        self.assertTrue(one.is_ready)
        self.assertEqual(self.supervisor._fleet._lent, {})
        self.assertTrue(self.supervisor._observed._are_orders_held)
        one.begin()
        self.assertFalse(self.supervisor._observed._are_orders_held)
        self.assertEqual((await self.bench.talk(self.sockets))[0], self.supervisor.snapshot().workers[0].slot)
        self.assertFalse(one.is_still)
