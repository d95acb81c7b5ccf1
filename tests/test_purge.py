"""`revproxy purge`: exactly what was named is purged, and who knows of it is said; the cache in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.purge import cache_line

_spec = importlib.util.spec_from_file_location("test_daemon_fakes", Path(__file__).parent / "test_daemon.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

WORKERS = {"total": 2, "acked": 2, "lagging": []}


class PurgeTests(fakes.CommandCase):
    def purge(self, *arguments: str, purged: dict[str, Any] | None = None, soft: bool = False, **more: Any) -> Any:
        self.daemon.answers = [(200, {"purged": purged, "soft": soft, "workers": WORKERS, **more})]
        return self.revproxy("purge", *arguments)

    def test_each_way_to_name_something(self) -> None:
        for arguments, body, words in (
            (["http://a/"], {"url": "http://a/"}, "purged: url http://a/;"),
            (["--prefix", "http://a/b"], {"prefix": "http://a/b"}, "purged: prefix http://a/b;"),
            (["--tag", "t"], {"tag": "t"}, "purged: tag t;"),
            (["--all"], {"all": True}, "purged: everything;"),
        ):
            result = self.purge(*arguments, purged=body)
            self.assertEqual(result.exit_code, 0, result.output)
            self.assertEqual(result.output, f"{words} in force in 2 of 2 workers\n")
            self.assertEqual(self.daemon.asked[-1], ("POST", "/api/v1/cache/purge", body))

    def test_softly_and_with_a_reason(self) -> None:
        result = self.purge("--tag", "t", "--soft", "--reason", "prices", purged={"tag": "t"}, soft=True)
        self.assertEqual(result.output, "purged (soft): tag t; in force in 2 of 2 workers\n")
        self.assertEqual(self.daemon.asked[-1][2], {"tag": "t", "soft": True, "reason": "prices"})

    def test_a_note_of_the_daemon_is_shown(self) -> None:
        result = self.purge("--all", purged={"all": True}, notes=["no route has a cache now"])
        self.assertIn("\nnote: no route has a cache now\n", result.output)

    def test_the_latest_with_who_and_why(self) -> None:
        latest = [{"at": "now", "by": "all", "what": "", "soft": True, "who": "eve", "reason": "new prices"}]
        result = self.purge("--list", purges={"total": 1, "latest": latest})
        self.assertEqual(result.output.splitlines()[1].split("  "), ["now", "eve", "everything (soft)", "new prices"])
        self.assertEqual(self.daemon.asked, [("GET", "/api/v1/cache", None)])

    def test_never_more_than_was_named(self) -> None:
        for arguments in ([], ["http://a/", "--all"], ["--tag", "t", "--prefix", "http://a/"]):
            result = self.purge(*arguments)
            self.assertEqual((result.exit_code, self.daemon.asked), (2, []), arguments)
        self.assertEqual(self.purge("--preview", "--all").exit_code, 2)


class LineTests(SynchronousTestCase):
    def test_the_cache_in_one_line(self) -> None:
        tier = {"bytes": 1536, "objects": 1, "limit": 64 << 20, "evicted": 2, "corrupt": 0}
        totals = {"requests": 4, "hit_ratio": 0.75, "memory": tier, "disk": {**tier, "limit": 0}, "errors": 0}
        line = "cache: 75.0% of 4 requests answered; memory 1.5 KiB of 64 MiB in 1 object; 4 evicted"
        self.assertEqual(cache_line(totals), line)
        self.assertEqual(cache_line(totals | {"errors": 1}), f"{line}, 1 error")
        self.assertIn("no requests yet", cache_line(totals | {"hit_ratio": None}))
