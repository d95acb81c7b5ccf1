"""Many clients, one request to the server: who gets what, from a fill in each of its states."""

from __future__ import annotations

import errno
import gc
import os
from typing import Any

from cache_workers import FRESH, CachingCase
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Cache as CacheSpec
from twistedproxy.config.model import Route, Site
from twistedproxy.http.cache import disk
from twistedproxy.http.cache.fills import TRANSITIONS, Fill, FillState
from twistedproxy.http.cache.store import Store
from twistedproxy.http.destination import Destination
from twistedproxy.http.routes import Router
from twistedproxy.net.transport import HIGH_WATER

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + FRESH + b"\r\n\r\n"


class StateTests(SynchronousTestCase):
    def test_the_table(self) -> None:
        """Every state has its row, ends have no way out, and what is passed on is never kept again."""
        self.assertEqual(set(TRANSITIONS), set(FillState))
        self.assertEqual((TRANSITIONS[FillState.DONE], TRANSITIONS[FillState.FAILED]), (frozenset(), frozenset()))
        self.assertNotIn(FillState.KEEPING, TRANSITIONS[FillState.PASSING])


class HerdTests(CachingCase):
    def herd(self, worker: Any, count: int = 20, *lines: bytes, **how: Any) -> tuple[Any, Any]:
        """(clients that ask for one URL, the connection to the server that one of them caused)."""
        clients = [worker.client(self.get(*lines), **how) for _ in range(count)]
        server = worker.origin.accept()
        server.request()
        self.bed.loop.turns(5)
        self.assertEqual(worker.origin.count, len(worker.origin.taken))
        return clients, server

    def pour(self, server: Any, data: bytes, *clients: Any, least: int = 0) -> None:
        """The server sends it all, and the clients read on until each has `least` bytes."""
        view = memoryview(data)
        wanted = least or len(data) - 1000

        def is_through() -> bool:
            nonlocal view
            view = view[server.send_what_fits(view[:262144]) :]
            for client in clients:
                client.pump()
            return not view and all(len(client.received) >= wanted for client in clients)

        self.bed.until(is_through, "all to be read")

    def test_ca_08_one_request_for_a_herd(self) -> None:
        """CA-08: twenty who miss at once get the one answer; each is logged once, one of them as the miss."""
        worker = self.worker()
        clients, server = self.herd(worker)
        server.send(self.answer(b"0123456789"))
        self.assertEqual([client.response().body for client in clients], [b"0123456789"] * 20)
        self.bed.until(lambda: len(self.bed.log.lines) == 20, "the log")
        self.assertEqual(sum(line.server == worker.origin.address for line in self.bed.log.lines), 1)
        self.assertEqual(worker.counted(), {"miss": 1, "collapsed": 19})
        self.assertEqual((worker.origin.count, worker.ask().body, worker.cache.fills), (1, b"0123456789", {}))

    def test_followers_stream_as_it_arrives(self) -> None:
        """The first byte reaches everybody well before the last; who comes in the middle gets all of it; parts are cut from it."""
        worker = self.worker()
        clients, server = self.herd(worker, 3)
        server.send(CHUNKED + b"5\r\nhello\r\n")
        for client in clients:
            client.head()
            self.assertEqual(client.take(10), b"5\r\nhello\r\n")
        late = worker.client(self.get())
        late.head()
        self.assertEqual(late.take(10), b"5\r\nhello\r\n")
        server.send(b"3\r\n, w\r\n0\r\n\r\n")
        for client in (*clients, late):
            self.assertEqual(client.take(13), b"3\r\n, w\r\n0\r\n\r\n")
        self.assertEqual(worker.ask().body, b"hello, w")

    def test_a_part_of_what_is_on_its_way(self) -> None:
        """A client that wants the end of a growing answer gets it when it is there; one that wants several parts gets the whole."""
        worker = self.worker()
        body = os.urandom(1_500_000)
        clients, server = self.herd(worker, 1)
        server.send(self.answer(body)[:100_000])
        end = worker.client(self.get(b"Range: bytes=1400000-"))
        both = worker.client(self.get(b"Range: bytes=5-9,0-1"))
        self.assertEqual(end.head().status, 206)
        server.send(self.answer(body)[100_000:])
        self.assertEqual(end.take(100_000), body[1_400_000:])
        self.assertEqual(both.response().body, body)
        self.assertEqual(clients[0].response().body, body)

    def test_slow_readers_do_not_hold_the_others(self) -> None:
        """Everybody reads from the file at their own pace; memory holds next to nothing of it."""
        worker = self.worker()
        body = os.urandom(6_000_000)
        clients = [worker.client(self.get(), receive_buffer=4096 if n % 2 else 0) for n in range(8)]
        server = worker.origin.accept()
        server.request()
        server.send(self.answer(body)[:-1])
        (fill,) = worker.cache.fills.values()
        assert isinstance(fill, Fill)
        self.assertEqual((fill.state, len(fill._memory)), (FillState.KEEPING, 0))
        held = sum(connection.transport.buffered for connection in worker.front._connections)
        self.assertLess(held, 8 * (HIGH_WATER + 2 * 65536))
        server.send(body[-1:])
        self.assertEqual([client.response().body == body for client in clients], [True] * 8)

    def test_ca_08_an_answer_that_may_not_be_kept(self) -> None:
        """CA-08: it goes to who asked; the others ask for themselves, and for a while nobody waits for anybody."""
        worker = self.worker()
        clients, server = self.herd(worker, 4)
        server.send(self.answer(b"0", b"Cache-Control: private"))
        for n, other in enumerate((server, worker.origin.accept(), worker.origin.accept()), 1):
            other.request()
            other.send(self.answer(b"%d" % n, b"Cache-Control: private"))
        self.assertEqual(sorted(client.response().body for client in clients), [b"0", b"1", b"2", b"3"])
        more = [worker.client(self.get()) for _ in range(2)]
        self.bed.loop.turns(5)
        self.assertEqual(worker.leases, 2)
        for client in more:
            client.reset()

    def test_passed_on_at_the_pace_of_its_client(self) -> None:
        """Of an answer that is not kept only a window is held, and the server is not read while the client takes nothing."""
        worker = self.worker(spec=CacheSpec(self.directory, max_object=1_000_000))
        client = worker.client(self.get(), receive_buffer=4096)
        server = worker.origin.accept()
        server.request()
        body = os.urandom(20_000_000)
        sent = server.send_what_fits(self.answer(body))
        self.assertLess(sent, 15_000_000)
        (fill,) = worker.cache.fills.values()
        assert isinstance(fill, Fill)
        self.assertEqual(fill.state, FillState.PASSING)
        self.assertLess(len(fill._memory), HIGH_WATER + 4 * 65536)
        view = memoryview(self.answer(body))[sent:]
        client.head()
        while view:
            count = server.send_what_fits(view[:262144])
            view = view[count:]
            client.pump()
        self.assertTrue(client.take(20_000_000) == body)

    def test_too_large_as_it_turns_out(self) -> None:
        """An answer without a length that outgrows `max_object` goes on to all who follow, slow and fast, and is not kept."""
        worker = self.worker(spec=CacheSpec(self.directory, max_object=1_500_000))
        body = os.urandom(3_000_000)
        fast, slow = worker.client(self.get()), worker.client(self.get(), receive_buffer=4096)
        server = worker.origin.accept()
        server.request()
        data = CHUNKED + self.fakes.chunked(*(body[at : at + 100_000] for at in range(0, len(body), 100_000)))
        self.pour(server, data, fast, slow)
        self.assertTrue(fast.response().body == body)
        self.assertTrue(slow.response().body == body)
        self.assertIsNone(worker.cache.find(next(iter(worker.cache.passed_on.keys)), self.fakes.request_head(self.get()))[1])
        self.assertEqual(os.listdir(os.path.join(self.directory, "fills")), [])

    def test_the_disk_is_full(self) -> None:
        """Clients that follow get the whole although it cannot be kept; one that is far behind as well, and one that wants the end."""
        worker = self.worker()
        body = os.urandom(16_000_000)
        written = 0
        write = disk.Writer._write

        def limited(writer: Any, data: Any) -> None:
            nonlocal written
            written += len(data)
            if written > 12_000_000:
                raise OSError(errno.ENOSPC, "no space left on device")
            write(writer, data)

        self.patch(disk.Writer, "_write", limited)
        fast, slow = worker.client(self.get()), worker.client(self.get(), receive_buffer=4096)
        end = worker.client(self.get(b"Range: bytes=15900000-"))
        server = worker.origin.accept()
        server.request()
        data = self.answer(body)
        server.send(data[:1000])
        self.pour(server, data[1000:11_000_000], fast, least=10_000_000)
        (fill,) = worker.cache.fills.values()
        assert isinstance(fill, Fill)
        self.assertLess(min(follower.position for follower in fill.followers), 11_000_000)
        self.pour(server, data[11_000_000:], fast, slow, least=16_000_000)
        self.assertTrue(fast.response().body == body)
        self.assertTrue(slow.response().body == body)
        self.assertTrue(end.response().body == body[15_900_000:])
        self.assertEqual(fill.state, FillState.DONE)
        self.assertEqual(worker.store.statistics()["disk_write_failures"], 1)

    def test_the_disk_is_full_from_the_first_byte_on(self) -> None:
        """A file could be made, and nothing of the body fits into it: the client gets all of it, and the lease is given back."""
        worker = self.worker()
        body = os.urandom(300_000)
        write = disk.Writer._write
        count = 0

        def full(writer: Any, data: Any) -> None:
            nonlocal count
            count += len(data) > 0
            if count > 1:
                raise OSError(errno.ENOSPC, "no space left on device")
            write(writer, data)

        self.patch(disk.Writer, "_write", full)
        self.assertTrue(self.fill(worker, body).body == body)
        self.assertEqual((worker.leases, worker.cache.fills), (0, {}))

    def test_files_are_closed_with_the_last_who_reads_them(self) -> None:
        """Not by the collector, which may come late: what is evicted would take up the disk until then."""
        one, two = self.two()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for n in range(5):
            data = self.answer(os.urandom(300_000))
            path = b"/%d" % n
            clients = [worker.client(self.get(path=path)) for worker in (one, one, two)]
            server = one.origin.accept()
            server.request()
            server.send(data[:200_000])
            for client in clients:
                client.head()
            server.send(data[200_000:])
            for client in clients:
                client.take(300_000)
                client.close()
            server.close()
            self.bed.until(lambda: not (one.cache.fills or two.cache.fills), "the fills to be over")
        self.bed.travel(3)  # the wheel's last look at them
        self.assertEqual(self.open_files(), [])
        one.ask(path=b"/1")
        one.ask(path=b"/2")
        self.assertEqual(len(self.open_files()), 2, "held for the next who want them")
        os.unlink(os.path.realpath(self.open_files()[0]))
        one.store.let_go()
        self.assertEqual(len(self.open_files()), 1)

    def open_files(self) -> list[str]:
        """Of the store, as far as they are open in this process."""
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return [
            link
            for link in links
            if os.path.lexists(link) and os.readlink(link).startswith((f"{self.directory}/objects", f"{self.directory}/fills"))
        ]

    def test_the_disk_is_full_for_one_who_wants_the_end(self) -> None:
        """Its part is not there yet when the disk fails: it is the right one all the same."""
        worker = self.worker()
        body = os.urandom(4_000_000)
        end = worker.client(self.get(b"Range: bytes=3900000-"))
        server = worker.origin.accept()
        server.request()
        data = self.answer(body)
        server.send(data[:2_000_000])

        def full(writer: Any, data: Any) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        self.patch(disk.Writer, "_write", full)
        server.send(data[2_000_000:])
        self.assertTrue(end.response().body == body[3_900_000:])

    def test_a_reload_in_the_middle(self) -> None:
        """Other stores, or a route that keeps nothing any more: whoever follows gets the whole, and the next request the new way."""
        worker = self.worker()
        body = os.urandom(3_000_000)
        clients, server = self.herd(worker, 3)
        server.send(self.answer(body)[:1_000_000])
        for client in clients:
            client.head()
        worker.cache.spec = CacheSpec(self.directory, max_object=2_000_000)
        worker.cache.store = Store(None, None, lambda work: work())
        site = Site("site", ("*",), (Route("/", "web"),))
        worker.front.router = Router([site], lambda s, r: Destination(s, r, worker.pool, worker.metrics))
        worker.cache.follow_routes([site])
        server.send(self.answer(body)[1_000_000:])
        self.assertEqual([client.take(3_000_000) == body for client in clients], [True] * 3)
        plain = worker.client(self.get())
        server.request()
        server.send(self.answer(b"plain"))
        self.assertIsNone(plain.response().get(b"Cache-Status"))

    def test_no_disk_and_no_memory(self) -> None:
        """A cache that can keep nothing passes everything on."""
        worker = self.worker(memory=0, disk=False)
        clients, server = self.herd(worker, 3)
        server.send(self.answer(b"all of it"))
        self.assertEqual([client.response().body for client in clients], [b"all of it"] * 3)

    def test_clients_that_leave(self) -> None:
        """One that leaves changes nothing for the others; when all have left, a small rest is fetched and a large one is not."""
        worker = self.worker()
        clients, server = self.herd(worker, 3)
        clients[0].reset()  # the one whose request it is
        self.bed.loop.turns(5)
        server.send(self.answer(b"x" * 100)[:-50])
        clients[1].through(b"\r\n\r\n")
        clients[1].reset()
        clients[2].reset()
        self.bed.until(lambda: not worker.front.counts.open, "all clients to be gone")
        server.send(b"x" * 50)
        self.bed.until(lambda: not worker.cache.fills, "the rest")
        self.assertEqual(worker.ask().body, b"x" * 100)
        clients = [worker.client(self.get(path=b"/large")) for _ in range(2)]
        server.request()
        server.send(self.answer(b"x" * 9_000_000)[:1_000_000])
        for client in clients:
            client.through(b"\r\n\r\n")
            client.reset()
        server.breaks()
        self.assertEqual((worker.cache.fills, worker.leases), ({}, 0))
        self.assertEqual(os.listdir(os.path.join(self.directory, "fills")), [])

    def test_all_leave_before_a_large_answer_begins(self) -> None:
        """It is not fetched for nobody."""
        worker = self.worker()
        clients, server = self.herd(worker, 2)
        for client in clients:
            client.reset()
        self.bed.until(lambda: not worker.front.counts.open, "all clients to be gone")
        server.send(self.answer(b"x" * 9_000_000)[:100_000])
        server.breaks()
        self.assertEqual((worker.cache.fills, worker.leases), ({}, 0))

    def test_the_server_fails_them_all(self) -> None:
        """Without a copy everybody gets the error, at once."""
        worker = self.worker()
        clients, server = self.herd(worker, 3)
        server.close()
        self.assertEqual([client.response().status for client in clients], [502] * 3)
        self.assertEqual((worker.cache.fills, worker.leases), ({}, 0))

    def hang(self) -> tuple[Any, Any, Any, Any]:
        worker = self.worker()
        clients, server = self.herd(worker)
        self.bed.travel(5.5)
        second = worker.origin.accept()
        second.request()
        self.bed.loop.turns(5)
        self.assertEqual(worker.origin.count, 2)
        return worker, clients, server, second

    def test_ca_08_a_server_that_hangs(self) -> None:
        """CA-08: after five seconds one of the followers asks again for all of them: the server has two requests, not twenty."""
        _, clients, _, second = self.hang()
        second.send(self.answer(b"late"))
        self.assertEqual([client.response().body for client in clients[1:]], [b"late"] * 19)
        self.assertTrue(clients[0].is_silent())

    def test_ca_08_a_server_that_is_slow(self) -> None:
        """CA-08: when the first of the two answers first after all, it serves everybody, and the other is given up."""
        worker, clients, server, second = self.hang()
        server.send(self.answer(b"late"))
        self.assertEqual([client.response().body for client in clients], [b"late"] * 20)
        second.breaks()
        self.assertEqual((worker.cache.fills, worker.leases), ({}, 0))

    def test_variants_at_the_same_time(self) -> None:
        """Clients that choose another variant than the one that comes get their own; each is kept."""
        worker = self.worker()
        german, english = (worker.client(self.get(b"Accept-Language: " + name)) for name in (b"de", b"en"))
        server = worker.origin.accept()
        self.assertEqual(server.request().get(b"Accept-Language"), b"de")
        server.send(self.answer(b"Hallo", FRESH, b"Vary: Accept-Language"))
        self.assertEqual(german.response().body, b"Hallo")
        if not server.rest:
            self.bed.loop.turns(5)
        other = server if worker.origin.count == 1 else worker.origin.accept()
        self.assertEqual(other.request().get(b"Accept-Language"), b"en")
        other.send(self.answer(b"Hello", FRESH, b"Vary: Accept-Language"))
        self.assertEqual(english.response().body, b"Hello")
        self.assertEqual([worker.ask(b"Accept-Language: " + name).body for name in (b"de", b"en")], [b"Hallo", b"Hello"])

    def test_ca_05_many_variants(self) -> None:
        """CA-05: of one URL no more than 32 variants are kept, the last ones; `*` none."""
        worker = self.worker()
        for n in range(40):
            self.fill(worker, b"%d" % n, FRESH, b"Vary: X-Version", asks=(b"X-Version: %d" % n,))
        count = worker.origin.count
        self.assertEqual([worker.ask(b"X-Version: %d" % n).body for n in range(8, 40)], [b"%d" % n for n in range(8, 40)])
        self.assertEqual(worker.origin.count, count)
        self.fill(worker, b"first", FRESH, b"Vary: X-Version", asks=(b"X-Version: 0",))
        for _ in range(2):
            self.fill(worker, b"any", FRESH, b"Vary: *", path=b"/star")

    def test_a_304_about_something_else(self) -> None:
        """A server that renews what we do not have is asked again, for the whole."""
        worker = self.worker()
        self.fill(worker, b"one", FRESH, b'ETag: "1"')
        self.bed.travel(61)
        clients, server = self.herd(worker, 2)
        server.send(b'HTTP/1.1 304 Not Modified\r\nETag: "2"\r\n\r\n')
        other = server if worker.origin.count == 2 else worker.origin.accept()
        self.assertIsNone(other.request().get(b"If-None-Match"))
        other.send(self.answer(b"two", FRESH, b'ETag: "2"'))
        self.assertEqual([client.response().body for client in clients], [b"two"] * 2)
