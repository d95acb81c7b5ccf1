"""The door between admin and supervisor: values that stay as they were given."""

from __future__ import annotations

import dataclasses
import inspect

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import control
from twistedproxy.config.control import Applied, Control, Snapshot
from twistedproxy.config.model import Model


class ControlTests(SynchronousTestCase):
    def test_what_is_handed_over_cannot_be_changed(self):
        for _, cls in inspect.getmembers(control, dataclasses.is_dataclass):
            self.assertTrue(cls.__dataclass_params__.frozen, cls)

    def test_a_snapshot_of_a_start_is_not_ready(self):
        snapshot = Snapshot(Model(), 0, 0.0, "python")
        self.assertFalse(snapshot.is_ready)
        self.assertEqual((snapshot.workers, dict(snapshot.health), snapshot.ejected), ((), {}, frozenset()))

    def test_an_applied_change_names_no_laggards_unless_there_are_some(self):
        self.assertEqual(Applied(42, 2, 2).lagging, ())

    def test_the_supervisor_can_be_asked_for_all_that_the_admin_api_shows(self):
        asked = {name for name, value in vars(Control).items() if callable(value) and not name.startswith("_")}
        self.assertLessEqual({"apply", "snapshot", "statistics", "fresh_statistics", "history", "subscribe"}, asked)
