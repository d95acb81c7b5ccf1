"""A request body: its pace is held against the client only while the client is the slow one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Timed, Wheel
from twistedproxy.errors import BodyTimeout
from twistedproxy.http.messages import CHUNKED
from twistedproxy.http.upload import MIN_RATE_AFTER_S, SPLICE_FROM, Upload


class Connection(Timed):
    def __init__(self, case: UploadTests) -> None:
        super().__init__()
        self.front = SimpleNamespace(
            seconds=lambda: case.now,
            wheel=case.wheel,
            min_body_rate=500.0,
            timeouts=SimpleNamespace(body_idle_s=30.0),
            counts=SimpleNamespace(bytes_in=0),
        )
        self.transport = SimpleNamespace(is_plain=False)
        self.exchange: Any = None
        self.ended: list[bytes] = []

    def body_ended(self, leftover: bytes) -> None:
        self.ended.append(leftover)


class Exchange:
    def __init__(self) -> None:
        self.data = b""
        self.error: Any = None
        self.trailers: Any = None

    def request_data(self, data: bytes) -> None:
        self.data += data

    def request_complete(self, trailers: Any) -> None:
        self.trailers = trailers

    def bad_body(self, error: Any) -> None:
        self.error = error


class UploadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 100.0
        self.wheel = Wheel(lambda: self.now)
        self.connection = Connection(self)
        self.exchange = self.connection.exchange = Exchange()

    def upload(self, length: int) -> Upload:
        made = Upload(self.connection, self.exchange, length)  # type: ignore[arg-type]
        made.await_more()
        return made

    def test_what_follows_the_body_is_kept_for_the_next_request(self) -> None:
        self.upload(5).receive(b"helloGET /")
        self.assertEqual((self.exchange.data, self.exchange.trailers, self.connection.ended), (b"hello", (), [b"GET /"]))

    def test_trailers_come_with_the_end(self) -> None:
        self.upload(CHUNKED).receive(b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")
        self.assertEqual((self.exchange.data, self.exchange.trailers), (b"hi", ((b"X-Sum", b"1"),)))

    def test_DO_02_a_body_slower_than_the_minimum_is_cut_off(self) -> None:
        upload = self.upload(10_000)
        while self.now < 100 + MIN_RATE_AFTER_S + 2 and self.exchange.error is None:
            upload.receive(b"x" * 400)
            self.now += 1
        self.assertIsInstance(self.exchange.error, BodyTimeout)

    def test_DO_02_a_body_at_the_minimum_goes_on(self) -> None:
        upload = self.upload(100_000)
        for _ in range(60):
            upload.receive(b"x" * 600)
            self.now += 1
        self.assertIsNone(self.exchange.error)

    def test_a_pause_of_ours_starts_the_measure_anew(self) -> None:
        upload = self.upload(100_000)
        upload.receive(b"x" * 400)
        self.now += 300
        upload.await_more()
        upload.receive(b"x" * 400)
        self.assertIsNone(self.exchange.error)

    def test_every_piece_moves_the_deadline(self) -> None:
        upload = self.upload(100)
        self.now += 20
        upload.receive(b"x")
        self.assertEqual(self.connection.deadline, 150.0)

    def test_silence_is_the_clients_fault(self) -> None:
        self.upload(100).deadline_passed()
        self.assertIsInstance(self.exchange.error, BodyTimeout)

    def test_encrypted_bodies_never_take_the_short_cut(self) -> None:
        upload = self.upload(SPLICE_FROM * 2)
        upload.splice_to(SimpleNamespace(is_plain=True))  # type: ignore[arg-type]
        upload.receive(b"x")
        self.assertEqual(self.exchange.data, b"x")
