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


class GoneTests(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def test_SM_16_an_early_answer_with_a_reset_behind_it_reaches_the_client_and_its_connection_is_not_used_again(self) -> None:
        """The last piece of a large upload meets a server that has answered and is gone."""
        size = 400_000
        client, server = self.bed.start(self.fakes.post(bytes(size))[:-size])
        server.head()
        client.send(bytes(size // 2))
        self.bed.loop.turns(20)
        client.sock.send(bytes(size // 2))
        server.sock.send(self.fakes.answer(b"too large", status=b"413 Content Too Large"))
        server.close()  # with bytes unread: a reset
        self.bed.loop.turn()
        self.assertEqual(self.bed.idle, 0)
        response = client.response()
        self.assertEqual((response.status, response.get(b"Connection")), (413, b"close"))

    def leaves_unread(self, client: Any) -> None:
        """The client sends more than anybody takes for now, and goes."""
        client.send(b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n5f5e100\r\n")
        for _ in range(1000):
            if any(c._is_paused for c in self.bed.front._connections):
                break
            client.send_what_fits(bytes(16384))
            self.bed.loop.turns(2)
        else:
            self.fail("the test needs a client that is not read from")
        client.send_what_fits(bytes(1000))
        client.fin()

    def test_F5_a_client_that_closes_while_its_server_is_slow_is_noticed_at_once(self) -> None:
        """Its FIN lies behind bytes that nobody reads for now; without a look at it the server would work on for nobody."""
        origin = self.bed.proxy(self.bed.origin(receive_buffer=4096))
        client = self.bed.client()
        self.leaves_unread(client)
        server = origin.accept()
        self.bed.until(lambda: not self.bed.leases, "the lease to be released")
        server.breaks()
        self.assertEqual((self.bed.logged().cause.value, self.bed.pool.servers[0].failures), ("client", 0))

    def test_F5_a_client_that_closes_behind_a_body_that_stands_still_in_the_kernel_is_noticed_at_once(self) -> None:
        """The same where the body never visits Python; only the write-stall limit of the server's side would end it."""
        origin = self.bed.proxy(self.bed.origin(receive_buffer=4096))
        client = self.bed.client(b"POST / HTTP/1.1\r\nHost: e\r\nContent-Length: 100000000\r\n\r\n")
        server = origin.accept()
        upload = self.bed.connection._upload
        for _ in range(1000):
            if upload._splice is not None and upload._splice.is_blocked:
                break
            client.send_what_fits(bytes(16384))
            self.bed.loop.turns(2)
        else:
            self.fail("the test needs a splice whose sink takes nothing")
        self.bed.loop.turns(3)
        self.assertEqual(self.bed.leases, 1)
        client.send_what_fits(bytes(1000))
        client.fin()
        self.bed.until(lambda: not self.bed.leases, "the lease to be released")
        server.breaks()
        self.assertEqual((self.bed.logged().cause.value, self.bed.pool.servers[0].failures), ("client", 0))

    def test_F5_a_client_that_closes_while_it_waits_in_the_queue_leaves_it_at_once(self) -> None:
        first, server = self.bed.start(self.fakes.get(), pool={"max_connections": 1})
        server.request()
        self.leaves_unread(self.bed.client())
        self.bed.until(lambda: self.bed.log.lines, "the end of the request")
        self.assertEqual((self.bed.pool.waiting, self.bed.leases, self.bed.logged().cause.value), (0, 1, "client"))
        server.send(self.fakes.answer(b"ok"))
        self.assertEqual(first.response().body, b"ok")

    def test_F5_a_client_that_resets_while_its_server_is_slow_lets_go_of_the_server_at_once(self) -> None:
        origin = self.bed.proxy(self.bed.origin(receive_buffer=4096))
        client = self.bed.client(b"POST / HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n")
        server = origin.accept()
        client.send_what_fits((b"100000\r\n" + bytes(0x100000) + b"\r\n") * 20)
        self.assertTrue(self.bed.connection._is_paused, "the test needs a client that is not read from")
        client.reset()
        self.bed.until(lambda: not self.bed.leases, "the lease to be released")
        server.breaks()
        self.assertEqual((self.bed.logged().cause.value, self.bed.pool.servers[0].failures), ("client", 0))
