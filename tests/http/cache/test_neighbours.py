"""Two workers of one machine: one asks the server, the other's clients have the answer as well."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

from cache_workers import FRESH, CachingCase

from twistedproxy.http.cache import disk
from twistedproxy.http.cache.fills import FillState
from twistedproxy.http.cache.neighbours import GONE, SILENCE_S, RemoteFill
from twistedproxy.ipc.scoreboard import Scoreboard

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + FRESH + b"\r\n\r\n"


class FollowingTests(CachingCase):
    def both(self, *lines: bytes, **how: Any) -> tuple[Any, Any, Any, Any, Any]:
        """(worker, worker, client of the first, client of the second, the server's one connection)."""
        first, second = self.two(**how)
        leader = first.client(self.get(*lines))
        server = first.origin.accept()
        server.request()
        follower = second.client(self.get(*lines))
        self.bed.loop.turns(10)
        self.assertEqual(first.origin.count, 1)
        return first, second, leader, follower, server

    def test_ca_08_one_request_for_two_workers(self) -> None:
        """CA-08: a small answer is in the store when the other worker looks again; nothing is written to a file for it."""
        first, second, leader, follower, server = self.both()
        server.send(self.answer(b"small"))
        self.assertEqual((leader.response().body, follower.response().body), (b"small", b"small"))
        self.assertEqual((first.counted(), second.counted()), ({"miss": 1}, {"hit": 1}))
        self.assertEqual((first.origin.count, first.store.statistics()["disk_stored"]), (1, 0))
        self.assertEqual((first.cache.fills, second.cache.fills), ({}, {}))

    def test_a_trickle_is_seen_by_both(self) -> None:
        """The other worker's clients get the bytes as they come, also one that comes in the middle."""
        first, second, leader, follower, server = self.both()
        server.send(CHUNKED + b"5\r\nhello\r\n")
        for client in (leader, follower):
            client.head()
            self.assertEqual(client.take(10), b"5\r\nhello\r\n")
        late = second.client(self.get())
        late.head()
        self.assertEqual(late.take(10), b"5\r\nhello\r\n")
        server.send(b"3\r\n, w\r\n0\r\n\r\n")
        for client in (leader, follower, late):
            self.assertEqual(client.take(13), b"3\r\n, w\r\n0\r\n\r\n")
        self.assertEqual((first.ask().body, second.ask().body), (b"hello, w", b"hello, w"))
        self.assertEqual((first.origin.count, second.counted()), (1, {"collapsed": 2, "hit": 1}))

    def test_a_large_answer(self) -> None:
        """Five megabytes reach the slow client of the other worker whole."""
        first, second, leader, _, server = self.both()
        body = os.urandom(5_000_000)
        slow = second.client(self.get(), receive_buffer=4096)
        server.send(self.answer(body))
        self.assertTrue(leader.response().body == body)
        self.assertTrue(slow.response().body == body)
        self.assertEqual(first.origin.count, 1)

    def test_an_answer_that_may_not_be_kept(self) -> None:
        """The other worker asks for itself, and for a while does not wait for anybody."""
        first, second, leader, follower, server = self.both()
        server.send(self.answer(b"mine", b"Cache-Control: private"))
        self.assertEqual(leader.response().body, b"mine")
        other = first.origin.accept()
        other.request()
        other.send(self.answer(b"yours", b"Cache-Control: private"))
        self.assertEqual(follower.response().body, b"yours")
        self.assertEqual(len(second.cache.passed_on.keys), 1)

    def test_an_endless_answer_that_may_not_be_kept(self) -> None:
        """While one worker passes an event stream on, the other's clients do not wait for it."""
        first, second = self.two()
        leader = first.client(self.get())
        server = first.origin.accept()
        server.request()
        server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: no-store\r\n\r\n5\r\nhello\r\n")
        leader.through(b"hello\r\n")
        began = self.bed.loop.seconds()
        for _ in range(2):
            client = second.client(self.get())
            other = first.origin.accept()
            other.request()
            other.send(self.answer(b"mine", b"Cache-Control: private"))
            self.assertEqual(client.response().body, b"mine")
            other.close()
            self.bed.until(lambda: not any(one.idle for one in second.pool.servers), "the idle connection to be gone")
        self.assertEqual(len(second.cache.passed_on.keys), 1)
        self.assertLess(self.bed.loop.seconds() - began, SILENCE_S)
        leader.reset()

    def test_a_copy_is_renewed_for_both(self) -> None:
        """A 304 to one worker is the other's hit."""
        first, second = self.two()
        self.fill(first, b"body", FRESH, b'ETag: "1"')
        self.bed.travel(61)
        clients = [worker.client(self.get()) for worker in (first, second)]
        server = first.origin.accept()
        self.assertEqual(server.request().get(b"If-None-Match"), b'"1"')
        self.bed.loop.turns(10)
        server.send(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=100\r\n\r\n')
        self.assertEqual([client.response().body for client in clients], [b"body"] * 2)
        self.assertEqual(first.origin.count, 2)

    def test_no_disk(self) -> None:
        """Without files to read along the other worker waits until the answer is in memory."""
        _, second, leader, follower, server = self.both(disk=False)
        server.send(CHUNKED + b"5\r\nhello\r\n")
        leader.head()
        self.assertEqual(leader.take(10), b"5\r\nhello\r\n")
        self.assertTrue(follower.is_silent())
        server.send(b"0\r\n\r\n")
        self.assertEqual(follower.response().body, b"hello")
        self.assertEqual(second.counted(), {"hit": 1})

    def test_the_disk_fails_while_another_reads_along(self) -> None:
        """Its client sees that the answer breaks off; the worker's own clients get all of it."""
        _, _, leader, follower, server = self.both()
        server.send(self.answer(b"x" * 4_000_000)[:1_000_000])
        follower.through(b"\r\n\r\n")

        def full(writer: Any, data: Any) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        self.patch(disk.Writer, "_write", full)
        server.send(self.answer(b"x" * 4_000_000)[1_000_000:])
        self.assertEqual(len(leader.response().body), 4_000_000)
        follower.breaks()

    def test_the_other_worker_dies_before_it_answers(self) -> None:
        """Whoever waits for it asks for itself within a second of its end, not after five."""
        first, second, _, follower, _ = self.both()
        self.board.clear_slot(0)  # what the supervisor does for one that is dead
        first.bell.stop()
        self.bed.travel(1.5)
        other = first.origin.accept()
        other.request()
        other.send(self.answer(b"again"))
        self.assertEqual(follower.response().body, b"again")
        self.assertEqual(second.counted(), {"miss": 1})

    def test_the_other_worker_dies_in_the_middle(self) -> None:
        """Clients that read along see the answer break off within a second or two; the next one gets the whole."""
        first, second, _, follower, server = self.both()
        server.send(self.answer(b"x" * 4_000_000)[:1_000_000])
        follower.through(b"\r\n\r\n")
        (fill,) = first.cache.fills.values()
        os.close(fill._writer._fd)  # a dead process holds no lock, and says nothing
        fill._writer._fd = -1
        self.board.clear_slot(0)
        first.bell.stop()
        self.bed.travel(2)
        follower.breaks()
        again = second.client(self.get())
        other = first.origin.accept()
        other.request()
        other.send(self.answer(b"again"))
        self.assertEqual(again.response().body, b"again")

    def test_the_other_worker_hangs(self) -> None:
        """It has claimed the key and says nothing: after five seconds its claim counts no longer."""
        first, second, _, follower, _ = self.both()
        first.bell.stop()
        self.bed.travel(5.5)
        other = first.origin.accept()
        other.request()
        other.send(self.answer(b"again"))
        self.assertEqual(follower.response().body, b"again")
        self.assertEqual(second.counted(), {"miss": 1})

    def test_an_unsafe_request_elsewhere(self) -> None:
        """A POST through one worker makes untrue what the other is fetching just now."""
        first, second, leader, _, server = self.both()
        writing = second.client(self.fakes.post(b"data", path=b"/x"))
        other = first.origin.accept()
        other.request()
        other.send(self.fakes.answer(b""))
        writing.response()
        self.bed.loop.turns(10)
        server.send(self.answer(b"old"))
        self.assertEqual(leader.response().body, b"old")
        server.close()
        other.close()
        self.assertNotEqual(b"old", self.fill(first, b"new", path=b"/x").body)

    def test_many_keys_are_forgotten_at_once(self) -> None:
        """A site with many routes needs few words for an unsafe request."""
        first, second = self.two()
        self.fill(second)
        second.client(self.get()).response()
        (key,) = second.store._held
        forgotten: list[bytes] = []
        self.patch(second.cache, "forget", forgotten.append)
        keys = [b"%016d" % n for n in range(250)] + [key]
        assert first.cache.neighbours is not None
        first.cache.neighbours.forget(keys)
        self.bed.until(lambda: len(forgotten) == 251, "all keys")
        self.assertEqual(forgotten, keys)

    def test_ca_08_what_its_own_worker_has_given_up_nobody_else_waits_for(self) -> None:
        """A purge could not part others from it, for it is in no list any more."""
        first, second = self.two()
        first.client(self.get())
        hanging = first.origin.accept()
        hanging.request()
        waiting = first.client(self.get())
        self.bed.travel(5.5)
        again = first.origin.accept()
        again.request()
        began = second.wall()
        late = second.client(self.get())
        own = first.origin.accept()
        own.request()
        self.assertLess(second.wall() - began, 3.0, "a silent fill is followed for 5 s")
        for server in (own, again):
            server.send(self.answer(b"new", FRESH))
        self.assertEqual([client.response().body for client in (late, waiting)], [b"new"] * 2)
        hanging.reset()

    def test_ca_10_a_purge_parts_later_requests_from_a_fill_of_another_worker(self) -> None:
        """Whether its head is there or not; who came before the purge gets what was on its way."""
        first, second = self.two()
        for path, has_begun in ((b"/asking", False), (b"/streaming", True)):
            leader = first.client(self.get(path=path))
            server = first.origin.accept()
            server.request()
            old = self.answer(b"old" * 100, FRESH)
            if has_begun:
                server.send(old[:-200])
            before = second.client(self.get(path=path))
            self.bed.loop.turns(10)
            self.bed.travel(0.1)
            for worker in (first, second):
                worker.cache.purge("url", "http://example.com" + path.decode(), worker.wall(), is_soft=False)
            self.bed.travel(0.1)
            after = [worker.client(self.get(path=path)) for worker in (second, first)]
            anew = first.origin.accept()
            anew.request()
            server.send(old[-200:] if has_begun else old)
            self.assertEqual(leader.response().body, b"old" * 100)
            anew.send(self.answer(b"new", FRESH))
            self.assertEqual([client.response().body for client in after], [b"new"] * 2, path)
            self.assertEqual(before.response().body, b"old" * 100 if has_begun else b"new", path)
            self.assertEqual([worker.ask(path=path).body for worker in (first, second)], [b"new"] * 2)
            server.close()
            anew.close()
            self.bed.until(lambda: not any(s.idle for w in (first, second) for s in w.pool.servers), "the idle connections to be gone")

    def test_variants_of_two_workers(self) -> None:
        """A client that wants another variant than the one on its way in the other worker gets its own."""
        first, second = self.two()
        german = first.client(self.get(b"Accept-Language: de"))
        server = first.origin.accept()
        server.request()
        english = second.client(self.get(b"Accept-Language: en"))
        self.bed.loop.turns(10)
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nVary: Accept-Language\r\n" + FRESH + b"\r\n\r\nHal")
        german.through(b"Hal")
        other = first.origin.accept()
        self.assertEqual(other.request().get(b"Accept-Language"), b"en")
        other.send(self.answer(b"Hello", FRESH, b"Vary: Accept-Language"))
        self.assertEqual(english.response().body, b"Hello")
        server.send(b"lo")
        self.assertEqual(german.take(2), b"lo")
        for name, body in ((b"de", b"Hallo"), (b"en", b"Hello")):
            self.assertEqual([worker.ask(b"Accept-Language: " + name).body for worker in (first, second)], [body] * 2)


class ClaimTests(CachingCase):
    def test_of_two_who_claim_at_once_the_lower_slot_has_it(self) -> None:
        """The other one follows, and its cell is free again."""
        first, second = self.two()
        key = b"k" * 16
        ours, theirs = first.cache.neighbours, second.cache.neighbours
        assert ours is not None and theirs is not None
        row, mark = ours._place(key)
        ours._cells.set(row, mark)
        self.assertEqual(theirs.claim(key), 0)
        self.assertEqual(theirs._cells.get(row), 0)
        ours._cells.set(row, 0)
        theirs._cells.set(row, mark)
        self.assertEqual(ours.claim(key), 1)  # it was there before
        self.assertEqual((ours._cells.get(row), theirs.holder(key)), (0, -1))

    def test_two_keys_that_want_one_cell(self) -> None:
        """The second is filled without a claim, and gives nothing back that is not its own."""
        board = self.bed.loop.keep(Scoreboard.create(1, 2))
        worker = self.worker(board=board)
        neighbours = worker.cache.neighbours
        one, other = b"1" * 16, b"2" * 16
        self.assertEqual((neighbours.claim(one), neighbours.claim(other)), (-1, -1))
        row, mark = neighbours._place(one)
        self.assertEqual(neighbours._cells.get(row), mark)

    def test_words_that_make_no_sense(self) -> None:
        """They change nothing."""
        worker, _ = self.two()
        for word in (b"", b"\xff" * 10, b"\xff" * 26 + b"\xfe", bytes([GONE]) + b"\0" * 25):
            worker.cache.neighbours.heard(word)
        self.assertEqual(worker.cache.fills, {})

    def test_a_fill_of_another_worker_that_nobody_follows(self) -> None:
        """It ends by itself."""
        first, second = self.two()
        leader = SimpleNamespace(primary=b"k" * 16, url=b"http://example.com/x")
        fill = RemoteFill(second.cache, b"k" * 16, leader, second.cache.neighbours)
        second.cache.fills[fill.key] = fill
        self.bed.travel(2)
        self.assertEqual((fill.state, second.cache.fills), (FillState.FAILED, {}))
        self.assertEqual(first.cache.fills, {})
