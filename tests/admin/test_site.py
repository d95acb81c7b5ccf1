"""The admin server stands in the open: slow, large, broken and hostile clients."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin.site import HEADERS, TRANSITIONS, State

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SERVER = "/api/v1/pools/web/servers/127.0.0.1:9001"


class Site(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def head(self, method: str = "PATCH", path: str = SERVER, token: str = "", extra: str = "") -> bytes:
        token = token or fakes.TOKENS["admin"]
        return (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n{extra}\r\n"
        ).encode()

    def test_AD_04_refusals_come_before_the_body(self) -> None:
        """AD-04: a bad token or a length over 1 MiB is answered at the end of the head, and the rest is thrown away."""
        form = "Content-Length: 5000000000\r\n"
        for head, status in ((self.head(extra=form), b" 413 "), (self.head(token="bad", extra=form), b" 401 ")):
            channel, wire = self.admin.connect()
            channel.dataReceived(head)
            self.assertIn(status, wire.value())
            self.assertIn(b"Connection: close", wire.value())
            self.assertTrue(wire.is_half_closed)
            size = len(wire.value())
            for _ in range(100):
                channel.dataReceived(b"x" * 65536)
            self.assertEqual((len(wire.value()), wire.producerState, channel.requests), (size, "paused", []))
            self.admin.clock.advance(2.1)
            self.assertTrue(wire.disconnected)

    def test_AD_04_endless_chunks_end_at_the_limit(self) -> None:
        """AD-04: a chunked body is cut off at 1 MiB, in memory, without temporary files."""
        channel, wire = self.admin.connect()
        channel.dataReceived(self.head(extra="Transfer-Encoding: chunked\r\n"))
        self.assertEqual(wire.value(), b"")
        request = channel.requests[0]
        for _ in range(16):
            channel.dataReceived(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        self.assertIsInstance(request.content, BytesIO)
        self.assertEqual(wire.value(), b"")
        channel.dataReceived(b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n")
        self.assertEqual(wire.value().count(b"HTTP/1.1"), 1)
        self.assertIn(b" 413 ", wire.value())

    def test_AD_04_what_comes_in_one_piece_with_the_limit_is_refused_cleanly(self) -> None:
        """AD-04: many chunks in one piece go on arriving after the refusal, be it for the size or for the token."""
        chunks = (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 300 + b"0\r\n\r\n"
        for token, status in (("", b" 413 "), ("bad", b" 401 ")):
            channel, wire = self.admin.connect()
            head = self.head(token=token, extra="Transfer-Encoding: chunked\r\n")
            channel.dataReceived(head + chunks)
            channel.dataReceived(chunks)
            self.assertEqual(wire.value().count(b"HTTP/1.1"), 1)
            self.assertIn(status, wire.value())

    def test_chunked_bodies_work(self) -> None:
        """A small chunked body is as good as one with a length, byte by byte too."""
        data = self.head(extra="Transfer-Encoding: chunked\r\n") + b"d\r\n" + b'{"weight": 5}' + b"\r\n0\r\n\r\n"
        channel, wire = self.admin.connect()
        for i in range(len(data)):
            channel.dataReceived(data[i : i + 1])
        self.assertIn(b" 200 OK", wire.value())

    def test_AD_04_continue_is_not_said_to_those_who_may_not(self) -> None:
        """A client that waits for 100 Continue is refused without sending its body."""
        expect = "Content-Length: 13\r\nExpect: 100-continue\r\n"
        self.assertNotIn(b" 100 ", self.admin.send(self.head(token="bad", extra=expect)).value())
        self.assertTrue(self.admin.send(self.head(extra=expect)).value().startswith(b"HTTP/1.1 100 Continue\r\n\r\n"))

    def test_AD_05_a_slow_head_has_ten_seconds_however_it_trickles(self) -> None:
        """AD-05: one byte a second does not hold a connection for ever: 408 after 10 s."""
        channel, wire = self.admin.connect()
        for byte in b"GET / HTT":
            self.admin.clock.advance(1)
            channel.dataReceived(bytes([byte]))
        self.assertEqual(wire.value(), b"")
        self.admin.clock.pump([1] * 3)
        self.assertIn(b" 408 ", wire.value())

    def test_AD_05_silent_connections_and_slow_bodies_end(self) -> None:
        """AD-05: who says nothing is gone after 10 s; who does not finish the body gets 408."""
        _, silent = self.admin.connect()
        slow = self.admin.send(self.head(extra="Content-Length: 10\r\n"))
        self.admin.clock.advance(10.1)
        self.assertTrue(silent.disconnected)
        self.admin.clock.advance(10.1)
        self.assertIn(b" 408 ", slow.value())

    def test_AD_05_at_most_64_connections_and_room_is_made(self) -> None:
        """AD-05: the 64th connection pauses accepting, one more gets 503, idlers make room within 3 s."""
        port = self.admin.site.port = FakePort()
        connections = [self.admin.connect() for _ in range(64)]
        self.assertFalse(port.is_reading)
        _, extra = self.admin.connect()
        self.assertIn(b" 503 ", extra.value())
        self.assertTrue(extra.disconnecting)
        self.admin.clock.pump([1.1] * 3)
        self.assertTrue(all(wire.disconnected for _, wire in connections))
        for channel, _ in connections:
            channel.connectionLost()
        self.assertTrue(port.is_reading)
        self.assertEqual(self.admin.clock.getDelayedCalls(), [])

    def test_a_client_that_takes_nothing_is_dropped(self) -> None:
        """A reader whose window is closed for 30 s loses its connection."""
        channel, wire = self.admin.connect()
        channel.pauseProducing()
        self.admin.clock.advance(5)
        channel.resumeProducing()
        channel.dataReceived(self.head("GET", "/api/v1/events"))
        self.admin.clock.advance(31)
        self.assertFalse(wire.disconnected)
        channel.pauseProducing()
        self.admin.clock.advance(31)
        self.assertTrue(wire.disconnected)

    def test_AD_09_errors_show_nothing_of_the_inside(self) -> None:
        """AD-09: an exception in the supervisor is one sentence; no traceback, path, version or server name."""
        self.admin.control.raises = RuntimeError("secret detail in /home/revproxy")
        answer = self.admin.ask("PATCH", SERVER, {"weight": 1})
        self.assertEqual((answer.status, answer.headers["Content-Type"]), (500, "application/problem+json"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        for word in (b"secret", b"home", b"Traceback", b"twisted", b"Twisted", b".py"):
            self.assertNotIn(word, answer.body)
        self.assertIsNone(answer.headers["Server"])

    def test_AD_09_broken_heads_are_problems(self) -> None:
        """AD-09: what is no HTTP gets 400 as problem+json, and the connection ends."""
        for data in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
                     b"x" * 20000,
                     b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"):  # fmt: skip
            with self.subTest(data[:40]):
                wire = self.admin.send(data)
                self.assertTrue(wire.value().startswith(b"HTTP/1.1 400 "))
                self.assertEqual(wire.value().count(b"HTTP/1.1 "), 1)
                self.assertIn(b"application/problem+json", wire.value())
                self.assertTrue(wire.is_half_closed)

    def test_every_answer_has_the_security_headers(self) -> None:
        """Answers, refusals and broken heads alike."""
        for path in ("/", "/metrics", "/nothing", "/health/live"):
            answer = self.admin.ask("GET", path, role=None)
            for name, value in HEADERS:
                if path != "/" or name not in (b"Content-Security-Policy", b"Cache-Control"):
                    self.assertEqual(answer.headers[name.decode()], value.decode())

    def test_states_follow_the_table(self) -> None:
        """Every state but the last has a way out, and no connection moves otherwise."""
        self.assertEqual(set(TRANSITIONS), set(State))
        for state, following in TRANSITIONS.items():
            self.assertEqual(following == set(), state is State.GONE)
        channel, _ = self.admin.connect()
        with self.assertRaises(RuntimeError):
            channel._move(State.IDLE)


class FakePort:
    """Knows whether it accepts."""

    is_reading = True
    disconnecting = False

    def stopReading(self) -> None:
        self.is_reading = False

    def startReading(self) -> None:
        self.is_reading = True
