"""The figures that the page and `revproxy top` show are the proxy's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin import live
from twistedproxy.observability.metrics import Metrics

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]


class Figures(SynchronousTestCase):
    def setUp(self) -> None:
        self.snapshot = fakes.FakeControl(fakes.sample_model()).snapshot()

    def test_errors_are_answers_of_500_and_above_of_all_sites(self) -> None:
        """A 404 is the client's doing; a 502 and a 503 are errors, in the sum and in their pool."""
        metrics = Metrics()
        for site, pool, code in (("a", "web", 200), ("a", "web", 404), ("b", "web", 502), ("b", "odd", 503), ("b", "", 500)):
            metrics.http(site, pool).record("", code, 0.002)
        seen = live.figures(self.snapshot, metrics.to_plain())
        pools = {pool["name"]: (pool["requests"], pool["errors"]) for pool in seen["pools"]}
        self.assertEqual((seen["errors"], pools), (3, {"web": (3, 1), "odd": (1, 1)}))
        self.assertEqual((sum(seen["durations"]), seen["durations"][1]), (5, 5))

    def test_listeners_sessions_queues_and_bytes(self) -> None:
        """A listener is shown where it was bound; waiting requests and TCP sessions belong to their pool."""
        seen = live.figures(self.snapshot, fakes.sample_statistics())
        self.assertEqual(seen["listeners"], [{"address": "127.0.0.1:8080", "connections": 17, "total": 40}])
        self.assertEqual(seen["bytes"], {"in": 1000, "out": 2000})
        pools = {pool["name"]: pool for pool in seen["pools"]}
        self.assertEqual((pools["web"]["waiting"], pools["odd"]["sessions"], seen["sessions"]), (5, 4, 4))

    def test_a_row_has_what_its_columns_say(self) -> None:
        """Rows are read by the names sent beside them."""
        stats = {"uptime_seconds": 2.5, "requests": 7, "connections": 3} | live.figures(self.snapshot, fakes.sample_statistics())
        row = dict(zip(live.COLUMNS, live.row(stats), strict=True))
        self.assertEqual((row["uptime_seconds"], row["requests"], row["errors"], row["connections"]), (2.5, 7, 0, 3))
        self.assertEqual(len(row["durations"]), len(live.BOUNDS_S) + 1)
