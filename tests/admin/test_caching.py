"""What the API says of the cache is the sum of what each worker counts, and what all of them share is counted once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin.caching import figures, ratio, sites
from twistedproxy.observability.metrics import Metrics, merge

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SHARED = {
    "memory": {"bytes": 10, "objects": 1, "limit": 100}, "disk": {"bytes": 20, "objects": 2, "limit": 200}, "evicted": 4, "failures": 5,
    "leftovers": 0, "is_counted": True, "purges": {"url": 1},
}  # fmt: skip


def counted() -> dict[str, Any]:
    """Two workers."""
    parts = []
    for n in (1, 10):
        metrics = Metrics()
        metrics.cache["a", "hit"] = 6 * n
        metrics.cache["a", "miss"] = 2 * n
        metrics.cache["b", "bypass"] = 50 * n
        metrics.cache_store["memory", "evicted"] = n
        metrics.cache_store["disk", "corrupt"] = 2 * n
        metrics.cache_store["disk", "write_error"] = 3 * n
        metrics.cache_fills = n
        parts.append(metrics.to_plain())
    return merge(parts) | {"cache_totals": SHARED}


class CacheApiTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def test_totals_add_up_over_workers_and_what_they_share_is_counted_once(self) -> None:
        self.assertEqual(
            figures(counted()),
            {
                "requests": 638, "results": {"hit": 66, "miss": 22, "bypass": 550}, "hit_ratio": 0.75, "errors": 38, "fills": 11,
                "memory": {"bytes": 10, "objects": 1, "limit": 100, "evicted": 11, "corrupt": 0},
                "disk": {"bytes": 20, "objects": 2, "limit": 200, "evicted": 4, "corrupt": 22},
            },
        )  # fmt: skip
        self.assertEqual([(site["site"], site["hit_ratio"]) for site in sites(counted())], [("a", 0.75), ("b", None)])

    def test_the_ratio_counts_answers_that_the_server_did_not_make_for_this_request(self) -> None:
        self.assertEqual(ratio({"hit": 1, "stale": 1, "revalidated": 1, "collapsed": 1, "miss": 4, "bypass": 100}), 0.5)
        self.assertIsNone(ratio({"bypass": 3}))

    def test_without_a_cache_there_is_none(self) -> None:
        self.assertIsNone(self.admin.ask("GET", "/api/v1/status").json["cache"])

    def test_a_purge_is_passed_on_with_who_wants_it(self) -> None:
        answer = self.admin.ask("POST", "/api/v1/cache/purge", {"tag": "t", "soft": True, "reason": "x"}, role="operate")
        self.assertEqual(answer.status, 200)
        self.assertEqual(self.admin.control.asked, ("purge", {"tag": "t", "soft": True, "reason": "x", "by": "the-operate"}))

    def test_who_may_only_look_may_not_purge(self) -> None:
        self.assertEqual(self.admin.ask("POST", "/api/v1/cache/purge", {"tag": "t"}, role="view").status, 403)
        self.assertEqual(self.admin.ask("GET", "/api/v1/cache", role="view").status, 200)

    def test_nonsense_is_refused_with_what_is_allowed(self) -> None:
        for body, word in (({}, "url, prefix, tag, all"), ({"url": 3}, "8192"), ({"tags": "t"}, "tag"), ({"all": "yes"}, "true, false")):
            answer = self.admin.ask("POST", "/api/v1/cache/purge", body)
            self.assertEqual(answer.status, 400, body)
            self.assertIn(word, answer.json["detail"])
