"""What happens is seen at once, by readers fast and slow."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin.events import MAX_STREAMS, MAX_WAITING, RECENT_ROWS

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SERVER = "/api/v1/pools/web/servers/127.0.0.1:9001"


class Events(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def listen(self) -> tuple[Any, Any]:
        channel, wire = self.admin.connect()
        head = f"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {fakes.TOKENS['view']}\r\n\r\n"
        channel.dataReceived(head.encode())
        wire.clear()
        return channel, wire

    def test_events_arrive_as_server_sent_events(self) -> None:
        """stats, change, health and worker reach the reader as they happen; a change has its revision as id."""
        _, wire = self.listen()
        for kind in ("health", "worker"):
            self.admin.control.tell(kind, {"x": 1})
            self.assertIn(f'event: {kind}\ndata: {{"x":1}}\n\n'.encode(), wire.value())
        self.admin.control.tell("stats", {"requests": 7})
        self.assertIn(b'event: stats\ndata: {"requests":7,"errors":0,', wire.value())
        self.admin.ask("PATCH", SERVER, {"weight": 1})
        self.assertIn(b"event: change\nid: 2\ndata: ", wire.value())

    def test_a_new_reader_learns_what_just_happened(self) -> None:
        """The last five minutes come first, one row a second, no more."""
        for n in range(RECENT_ROWS + 5):
            self.admin.control.tell("stats", {"uptime_seconds": n, "requests": n})
        channel, wire = self.admin.connect()
        head = f"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {fakes.TOKENS['view']}\r\n\r\n"
        channel.dataReceived(head.encode())
        line = next(line for line in wire.value().splitlines() if line.startswith(b'data: {"bounds"'))
        recent = json.loads(line.removeprefix(b"data: "))
        self.assertEqual(recent["columns"][:2], ["uptime_seconds", "requests"])
        self.assertEqual((len(recent["rows"]), recent["rows"][0][:2]), (RECENT_ROWS, [5, 5]))

    def test_heartbeat(self) -> None:
        """A quiet stream says every 15 s that it lives, so that nothing between closes it."""
        _, wire = self.listen()
        self.admin.clock.advance(15)
        self.assertIn(b": still here\n\n", wire.value())

    def test_slow_reader_keeps_changes_and_loses_statistics(self) -> None:
        """A reader that pauses gets the changes it missed, not the stale statistics."""
        channel, wire = self.listen()
        channel.pauseProducing()
        self.admin.control.tell("stats", {"old": 1})
        self.admin.control.tell("health", {"n": 1})
        self.assertEqual(wire.value(), b"")
        channel.resumeProducing()
        self.assertIn(b'{"n":1}', wire.value())
        self.assertNotIn(b"old", wire.value())

    def test_reader_that_never_reads_is_dropped(self) -> None:
        """Memory for one reader is bounded: at 256 waiting events it is dropped."""
        channel, wire = self.listen()
        channel.pauseProducing()
        for n in range(MAX_WAITING):
            self.admin.control.tell("health", {"n": n})
        self.assertFalse(wire.disconnected)
        self.admin.control.tell("health", {})
        self.assertTrue(wire.disconnected)

    def test_reader_that_leaves_is_forgotten(self) -> None:
        """Nothing of a closed stream stays: no observer, no timer."""
        channel, _ = self.listen()
        self.assertEqual(len(self.admin.streams._open), 1)
        channel.connectionLost()
        self.assertEqual((self.admin.streams._open, self.admin.clock.getDelayedCalls()), ({}, []))
        self.admin.streams.close_all()
        self.assertEqual(self.admin.control.observers, [])

    def test_streams_are_bounded(self) -> None:
        """Streams cannot fill all 64 places."""
        for _ in range(MAX_STREAMS):
            self.listen()
        answer = self.admin.ask("GET", "/api/v1/events")
        self.assertEqual((answer.status, answer.headers["Content-Type"]), (503, "application/problem+json"))
