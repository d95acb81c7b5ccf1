"""What is remembered of failed and slow requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadHead, ClientGone, ConnectFailed, QueueFull
from twistedproxy.http.stories import KEPT, MANY_PER_S, SLOW_S, Stories


def exchange(**facts: Any) -> Any:
    base = {
        "error": None,
        "decision": None,
        "head_at": 0.0,
        "started": 0.0,
        "status": 200,
        "request_id": b"id",
        "client_ip": "c",
        "method": b"GET",
        "head": SimpleNamespace(path=b"/p" * 1000, authority=b"h:81"),
        "attempt_log": lambda server: [{"server": server}],
        "front": SimpleNamespace(seconds=lambda: 0.0),
    }
    return SimpleNamespace(**(base | facts))


class StoryTests(SynchronousTestCase):
    def test_failures_are_kept_and_found_by_id(self) -> None:
        """With cause, phase and detail, and the host with its port; paths are cut short."""
        stories = Stories(lambda: 5.0)
        stories.keep(exchange(error=ConnectFailed("refused"), status=502, head_at=-1.0), "a:1", 0.5)
        (story,) = stories.find("id")
        self.assertEqual((story["at"], story["phase"], story["detail"], story["server"]), (5.0, "connect", "refused", "a:1"))
        self.assertEqual(story["attempts"], [{"server": "a:1", "failed_after_seconds": 0.5}])
        self.assertEqual((len(story["path"]), story["host"]), (300, "h:81"))
        self.assertEqual(stories.find("other"), [])

    def test_slow_heads_are_kept_long_bodies_are_not(self) -> None:
        """A download or WebSocket that lasts is not slow."""
        stories = Stories()
        stories.keep(exchange(head_at=SLOW_S + 1, request_id=b"slow"), "a:1", 9.0)
        stories.keep(exchange(head_at=0.1, request_id=b"long"), "a:1", 900.0)
        stories.keep(exchange(head_at=SLOW_S + 1, status=101, request_id=b"ws"), "a:1", 900.0)
        self.assertEqual([story["id"] for story in stories.latest()], ["slow"])

    def test_P1_a_flood_of_refusals_does_not_drive_out_everything_else(self) -> None:
        """Some of each second are remembered, the rest costs nothing."""
        stories = Stories()
        stories.keep(exchange(error=ConnectFailed("refused"), status=502, request_id=b"rare"), "a:1", 0.5)
        for second, error in enumerate((QueueFull("x"), ClientGone("x"))):
            front = SimpleNamespace(seconds=lambda now=5.0 + second: now)
            for _ in range(KEPT):
                stories.keep(exchange(error=error, status=503, request_id=b"%d" % second, front=front), "", 0.0)
        self.assertEqual([len(stories.find(name)) for name in ("rare", "0", "1")], [1, MANY_PER_S, MANY_PER_S])

    def test_memory_is_bounded(self) -> None:
        """The oldest make room."""
        stories = Stories()
        for i in range(KEPT + 10):
            stories.refused(b"%d" % i, BadHead("x"), "c")
        self.assertEqual((len(stories.find("5")), len(stories.find("10"))), (0, 1))
        self.assertEqual(stories.latest()[0]["id"], str(KEPT + 9))
