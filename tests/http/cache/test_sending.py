"""Bodies from files and fills, at the pace of each client."""

from __future__ import annotations

import os
from typing import Any

from cache_workers import FRESH, CachingCase

from twistedproxy.clock import NEVER
from twistedproxy.http.cache import ready
from twistedproxy.http.cache.fills import PIECE
from twistedproxy.http.cache.sending import PIECES_PER_TURN, give_file
from twistedproxy.net.transport import HIGH_WATER


class SendingTests(CachingCase):
    def test_a_slow_client_of_a_kept_file(self) -> None:
        """Next to nothing of a large file is in memory while its client takes nothing; then it gets all of it, and asks again."""
        worker = self.worker()
        body = os.urandom(8_000_000)
        self.fill(worker, body, FRESH)
        for lines in ((), (b"Range: bytes=1-7999999",), (b"Range: bytes=4000000-7999999,0-1999999",)):
            client = worker.client(self.get(*lines), receive_buffer=4096)
            self.bed.loop.turns(50)
            (connection,) = worker.front._connections
            self.assertLess(connection.transport.buffered, HIGH_WATER + 3 * 65536)
            got = client.response()
            if not lines:
                self.assertTrue(got.body == body)
            elif b"," not in lines[0]:
                self.assertTrue(got.body == body[1:])
            else:
                self.assertTrue(body[4_000_000:] in got.body and body[:2_000_000] in got.body)
            self.assertEqual(worker.ask(b"Range: bytes=0-1", client=client).body, body[:2])
            client.close()
            self.bed.until(lambda: not worker.front.counts.open, "the client to be gone")
        line = self.bed.log.lines[1]
        self.assertEqual((line.bytes_sent, line.status, line.cause.value), (8_000_000, 200, "ok"))

    def test_hits_that_their_clients_take_slowly(self) -> None:
        """A file asked for often goes out at the pace of whoever reads, and is counted by what went out; also to one that leaves."""
        worker = self.worker()
        body = os.urandom(8_000_000)
        self.fill(worker, body, FRESH)
        given: list[Any] = []

        def noted(*arguments: Any) -> None:
            given.append(arguments)
            give_file(*arguments)

        self.patch(ready, "give_file", noted)
        worker.ask()
        client = worker.client(self.get() + self.get(), receive_buffer=4096)
        self.bed.loop.turns(50)
        (connection,) = (each for each in worker.front._connections if each.exchange is not None)
        self.assertLess(connection.transport.buffered, HIGH_WATER)
        self.assertEqual(connection.deadline, NEVER)
        for _ in range(2):
            self.assertTrue(client.response().body == body)
        self.assertEqual(len(given), 2)
        client.send(self.get()).through(b"\r\n\r\n")
        client.close()
        self.bed.until(lambda: len(self.bed.log.lines) == 5, "the log line")
        line = self.bed.log.lines[4]
        self.assertEqual((line.status, line.cause.value), (200, "client"))
        self.assertTrue(0 < line.bytes_sent < 8_000_000)
        self.assertEqual(len(given), 3)

    def test_a_file_that_turns_out_to_be_damaged_in_the_middle(self) -> None:
        """The answer breaks off visibly, is counted as the proxy's failure, and the next client gets a good one."""
        worker = self.worker()
        body = os.urandom(8_000_000)
        self.fill(worker, body, FRESH)
        (path,) = (os.path.join(where, name) for where, _, names in os.walk(f"{self.directory}/objects") for name in names)
        with open(path, "r+b") as file:
            file.seek(6_500_000)
            file.write(b"spoilt")
        client = worker.client(self.get())
        client.head()
        client.breaks()
        self.assertLess(len(client.rest), 6_500_000)
        self.assertEqual(self.bed.logged(2).cause.value, "proxy")
        self.assertEqual(self.fill(worker, b"new").body, b"new")

    def test_a_file_that_is_removed_while_it_is_sent(self) -> None:
        """Whoever has begun to get it gets all of it."""
        worker = self.worker()
        body = os.urandom(8_000_000)
        self.fill(worker, body, FRESH)
        client = worker.client(self.get(), receive_buffer=4096)
        client.through(b"\r\n\r\n")
        for fill in list(worker.store._held):
            worker.cache.forget(fill)
        self.assertTrue(client.take(8_000_000) == body)
        self.assertEqual(self.fill(worker, b"new").body, b"new")

    def test_nobody_gets_more_than_a_few_pieces_at_a_time(self) -> None:
        """However much a client's socket takes of what is on its way already, other clients have their turn in between."""
        worker = self.worker()
        body = os.urandom(4_000_000)
        first = worker.client(self.get())
        server = worker.origin.accept()
        server.request()
        server.send(self.answer(body)[:-1])
        (fill,) = worker.cache.fills.values()
        self.bed.until(lambda: fill.size == len(body) - 1, "all but the last byte")
        late = worker.client(self.get())
        before = most = 0
        for _ in range(200):
            self.bed.loop.turn(0.001)
            late.pump()
            position = sum(follower.position for follower in fill.followers if not follower._leads)
            most, before = max(most, position - before), position
        self.assertEqual(before, len(body) - 1)
        self.assertLessEqual(most, (2 * PIECES_PER_TURN + 1) * PIECE)
        server.send(body[-1:])
        self.assertTrue(late.response().body == first.response().body == body)

    def test_pipelined_requests(self) -> None:
        """Answers come in the order of the requests, whatever each of them is."""
        worker = self.worker()
        body = os.urandom(2_000_000)
        self.fill(worker, body, FRESH, path=b"/large")
        self.fill(worker, b"small", FRESH, path=b"/small")
        client = worker.client(self.get(path=b"/large") + self.get(path=b"/small") + self.get(path=b"/large", version=b"1.1"))
        self.assertTrue(client.response().body == body)
        self.assertEqual(client.response().body, b"small")
        self.assertTrue(client.response().body == body)
