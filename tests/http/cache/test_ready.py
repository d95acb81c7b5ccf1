"""The short way to a kept answer gives what the long way gives, to those who may have it, and to nobody else."""

from __future__ import annotations

import gc
import os
from types import SimpleNamespace
from typing import Any

from cache_workers import FRESH, CachingCase, Worker

from twistedproxy.config.model import Compression, Use
from twistedproxy.http.cache import cache, keys, ready, store
from twistedproxy.http.cache.entries import Entry
from twistedproxy.http.cache.files import BLOCK
from twistedproxy.http.cache.stored import Stored

ETAG = b'ETag: "1"'
VARY = b"Vary: Accept-Encoding"


class ReadyTests(CachingCase):
    def setUp(self) -> None:
        super().setUp()
        self.took: list[bool] = []
        """Whether each request went the short way, in order."""
        self.is_open = True
        self.exchange: Any = None

        def watched(cache: Any, exchange: Any, table: Any) -> bool:
            self.exchange, self.table = exchange, table
            self.took.append(self.is_open and ready.is_given_at_once(cache, exchange, table))
            return self.took[-1]

        self.patch(cache, "is_given_at_once", watched)

    def ask(self, worker: Worker, *lines: bytes, short: bool, **how: Any) -> Any:
        """An answer from the cache, by the one way or the other."""
        self.is_open = short
        answer = worker.ask(*lines, **how)
        self.assertEqual(self.took[-1], short, lines)
        return answer

    def test_the_short_way_says_what_the_long_way_says(self) -> None:
        """Plain hits, hits of one variant of several, and 304s: the same bytes, short or long, and each is counted as a hit."""
        worker = self.worker()
        for path, lines in ((b"/plain", (FRESH, ETAG)), (b"/varied", (FRESH, ETAG, VARY))):
            self.fill(worker, b"0123456789", *lines, path=path, asks=(b"Accept-Encoding: gzip",))
            self.ask(worker, b"Accept-Encoding: gzip", path=path, short=False)
            for conditions in ((), (b'If-None-Match: "1"',), (b"Cache-Control: max-age=0",), (b'If-None-Match: "2"',)):
                asked = (b"Accept-Encoding: x-gzip", *conditions)
                long, short = (self.ask(worker, *asked, path=path, short=each) for each in (False, True))
                self.assertEqual((short.start, short.fields, short.body), (long.start, long.fields, long.body), (path, conditions))
        self.assertEqual(worker.origin.count, 2)
        self.assertEqual(worker.counted(), {"miss": 2, "hit": 18})

    def test_large_answers(self) -> None:
        """From a file too: the same bytes, short or long, whether one block or several, one variant of several, or a 304."""
        worker = self.worker()
        for path, size, lines in ((b"/large", 300_000, (FRESH, ETAG)), (b"/varied", 2 * BLOCK + 5, (FRESH, ETAG, VARY))):
            body = os.urandom(size)
            self.fill(worker, body, *lines, path=path, asks=(b"Accept-Encoding: gzip",))
            self.ask(worker, b"Accept-Encoding: gzip", path=path, short=False)
            for conditions, is_whole in (((), True), ((b'If-None-Match: "1"',), False), ((b'If-None-Match: "2"',), True)):
                asked = (b"Accept-Encoding: gzip", *conditions)
                long, short = (self.ask(worker, *asked, path=path, short=each) for each in (False, True))
                self.assertEqual((short.start, short.fields), (long.start, long.fields), (path, conditions))
                self.assertTrue(short.body == long.body == (body if is_whole else b""))
            self.assertEqual(self.bed.logged(len(self.took)).bytes_sent, size)
            for line, method, status in ((b"Range: bytes=1-2", b"GET", 206), (b"X-Nothing: x", b"HEAD", 200)):
                got = worker.ask(b"Accept-Encoding: gzip", line, path=path, method=method)
                self.assertEqual((got.status, self.took[-1]), (status, False))
        self.assertEqual(worker.origin.count, 2)

    def test_files_that_are_not_what_they_were(self) -> None:
        """Removed by another worker, cut off, damaged, renewed by another worker, not held open any more: never the old bytes or fields."""
        self.patch(store, "MOST_OPEN", 1)
        worker, other = self.two()
        body = os.urandom(300_000)

        def filled(path: bytes) -> str:
            before = set(self.files())
            self.fill(worker, body, FRESH, ETAG, path=path)
            for short in (False, True):
                self.assertTrue(self.ask(worker, path=path, short=short).body == body)
            (file,) = set(self.files()) - before
            return file

        os.unlink(filled(b"/removed"))
        os.truncate(filled(b"/cut"), 100_000)
        for path in (b"/removed", b"/cut"):
            self.assertEqual(self.fill(worker, b"new", FRESH, path=path).body, b"new")
        entry = other.cache.get(bytes.fromhex(os.path.basename(filled(b"/renewed"))))
        assert isinstance(entry, Entry)
        for tag in (b'"2"', b'"3"'):
            entry = other.cache.renewed(entry, Stored.from_bytes(entry.stored.to_bytes().replace(entry.stored.etag, tag)), worker.wall())
            for short in (False, True):
                got = worker.ask(path=b"/renewed")
                self.assertEqual((got.get(b"ETag"), got.body == body, self.took[-1]), (tag, True, short))
        filled(b"/replaced")
        (name,) = (name for name in self.table if name[1] == b"/replaced")
        lying = self.table[name]
        worker.cache.forget(lying.file)
        self.assertEqual(self.fill(worker, b"!" * 300_000, FRESH, path=b"/replaced").body[:1], b"!")
        worker.ask(path=b"/replaced", method=b"HEAD")  # opens the new one
        self.table[name] = lying
        for short in (False, True):
            got = worker.ask(path=b"/replaced")
            self.assertEqual((got.get(b"ETag"), got.body[:1], self.took[-1]), (None, b"!", short))
        filled(b"/closed")
        filled(b"/other")
        for short in (False, True):
            self.assertTrue(self.ask(worker, path=b"/closed", short=short).body == body)
        with open(filled(b"/damaged"), "r+b") as file:
            file.seek(200_000)
            file.write(b"spoilt")
        self.assertEqual(len(worker.store._open), 1)
        self.ask(worker, path=b"/other", short=False)
        worker.store.disk._verified.clear()  # a process that never looked at it
        self.assertEqual(self.fill(worker, b"new", FRESH, path=b"/damaged").body, b"new")

    def files(self) -> list[str]:
        return [os.path.join(where, name) for where, _, names in os.walk(f"{self.directory}/objects") for name in names]

    def test_descriptors_are_given_back_at_once(self) -> None:
        """Many large answers asked for in turn hold no more files open than the store wants, without the collector's doing."""
        worker = self.worker()
        self.patch(store, "MOST_OPEN", 4)
        for n in range(12):
            self.fill(worker, b"x" * 300_000, FRESH, path=b"/%d" % n)
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        client = worker.client()
        for n in (*range(12), *range(12), 11):
            worker.ask(path=b"/%d" % n, client=client)
        self.assertTrue(self.took[-1])
        files = self.files()
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        self.assertEqual(sum(os.path.lexists(link) and os.readlink(link) in files for link in links), 4)

    def test_each_variant_goes_to_those_who_choose_it(self) -> None:
        """What lies ready for clients with gzip is not for one without, nor for one that says it in a second field."""
        worker = self.worker()
        for body, asks in (
            (b"packed", (b"Accept-Encoding: gzip",)),
            (b"plain", ()),
            (b"both", (b"Accept-Encoding: br", b"Accept-Encoding: gzip")),
        ):
            self.assertEqual(self.fill(worker, body, FRESH, VARY, asks=asks).body, body)
            self.assertEqual(self.ask(worker, *asks, short=False).body, body)
        for _ in range(2):
            self.assertEqual(self.ask(worker, b"Accept-Encoding: gzip, nonsense", short=True).body, b"packed")
            self.assertEqual(self.ask(worker, short=True).body, b"plain")
            self.assertEqual(self.ask(worker, b"Accept-Encoding: br", b"Accept-Encoding: gzip", short=True).body, b"both")
        self.fill(worker, b"for one language", FRESH, b"Vary: Accept-Encoding, Accept-Language", asks=(b"Accept-Encoding: zstd",))
        self.assertEqual(self.fill(worker, b"new", FRESH, VARY).body, b"new")  # all were told apart by too little

    def test_compressed_here(self) -> None:
        """On a route that compresses: each client gets the coding its weights ask for, short as long; what has no gain, or whose original
        was removed, is not given from the table; types that are never compressed are."""
        use = Use("compress", compression=Compression(("zstd", "br", "gzip"), ("text/*",), 100, ()))
        worker = self.worker(route={"use": (use,)})
        text, html = b"many words " * 200, b"Content-Type: text/html"
        self.fill(worker, text, FRESH, ETAG, html)
        for accepted, coding in ((b"gzip, br;q=0.1", b"gzip"), (b"gzip;q=0.1, br", b"br"), (b"zstd", b"zstd")):
            asked = b"Accept-Encoding: " + accepted
            long, short = (self.ask(worker, asked, short=each) for each in (False, True))
            self.assertEqual((short.start, short.fields, short.body), (long.start, long.fields, long.body), accepted)
            self.assertEqual(
                (short.get(b"Content-Encoding"), short.get(b"ETag"), short.get(b"Vary")), (coding, b'W/"1"', b"Accept-Encoding")
            )
        for asks, status in (
            ((b"Accept-Encoding: br", b'If-None-Match: W/"1"'), 304),
            ((), 200),
            ((b"Accept-Encoding: " + b"br," * 99,), 200),
        ):
            for _ in range(2):
                self.assertEqual((worker.ask(*asks).status, self.took[-1]), (status, False), asks)
        worker.cache.forget(next(key for key, copy in worker.store._held.items() if copy.value.stored.etag == b'"1"'))
        self.assertEqual(self.fill(worker, b"new", FRESH, html, asks=(b"Accept-Encoding: zstd",)).body, b"new")
        self.fill(worker, b"picture" * 100, FRESH, b"Content-Type: image/png", path=b"/png")
        for short in (False, True):
            self.assertEqual(self.ask(worker, b"Accept-Encoding: br", path=b"/png", short=short).body, b"picture" * 100)

    def test_many_variants_are_bounded(self) -> None:
        """A visitor that makes up values does not fill the memory with choices."""
        worker = self.worker()
        for n in range(keys.MAX_VARIANTS + 8):
            asks = (b"X-Kind: %d" % n,)
            self.fill(worker, b"%d" % n, FRESH, b"Vary: X-Kind", asks=asks)
            self.assertEqual(worker.ask(*asks).body, b"%d" % n)
        (choice,) = self.table.values()
        self.assertLessEqual(len(choice.found), keys.MAX_VARIANTS)

    def test_who_asks_for_more_goes_the_long_way(self) -> None:
        """Parts, other conditions, no-store, credentials, methods: none of them is answered from the table."""
        worker = self.worker()
        self.fill(worker, b"0123456789", FRESH, ETAG)
        worker.ask()
        for line, status in (
            (b"Range: bytes=1-2", 206),
            (b'If-Match: "2"', 412),
            (b"If-Unmodified-Since: Fri, 01 Jan 2100 00:00:00 GMT", 200),
        ):
            self.assertEqual((worker.ask(line).status, self.took[-1]), (status, status == 200), line)
        for line in (b"Cache-Control: no-store", b"Authorization: Basic eA=="):
            self.assertEqual(self.fill(worker, b"own", b"Cache-Control: no-store", asks=(line,)).body, b"own")
            self.assertFalse(self.took[-1])
        self.assertEqual(worker.ask(method=b"HEAD").status, 200)
        self.assertFalse(self.took[-1])
        self.assertEqual((worker.ask().body, self.took[-1]), (b"0123456789", True))

    def test_other_listeners_and_trusted_proxies(self) -> None:
        """An answer that came without TLS is not for a visitor with it, and one made for a trusted proxy's claims is for nobody else."""
        worker = self.worker()
        self.fill(worker, b"without")
        worker.ask()
        worker.ask()
        self.assertTrue(self.took[-1])
        exchange = self.exchange
        for client in (SimpleNamespace(tls=object(), is_trusted=False), SimpleNamespace(tls=None, is_trusted=True)):
            other = SimpleNamespace(
                head=exchange.head, method=b"GET", keep_alive=True, front=exchange.front, connection=SimpleNamespace(client=client)
            )
            self.assertFalse(ready.is_given_at_once(worker.cache, other, self.table))  # type: ignore[arg-type]
        table: dict[Any, Any] = {}
        _, entry = worker.cache.find(next(iter(worker.store._held)), exchange.head)
        actions = SimpleNamespace(kept=table, compression=None)
        for client, count in ((SimpleNamespace(tls=None, is_trusted=True), 0), (SimpleNamespace(tls=None, is_trusted=False), 1)):
            given = SimpleNamespace(
                actions=actions, head=exchange.head, connection=SimpleNamespace(client=client), settings=None, site="site"
            )
            ready.make_ready(worker.cache, given, entry)
            self.assertEqual(len(table), count)
        self.fill(worker, b"x" * 300_000, path=b"/large")
        worker.ask(path=b"/large")
        (copy,) = worker.store._open.values()
        for tls, count in ((object(), 1), (None, 2)):  # what is encrypted is sent piece by piece
            head = SimpleNamespace(authority=b"example.com", target=b"/large")
            client = SimpleNamespace(tls=tls, is_trusted=False)
            given = SimpleNamespace(actions=actions, head=head, connection=SimpleNamespace(client=client), settings=None, site="site")
            ready.make_ready(worker.cache, given, copy.value)
            self.assertEqual(len(table), count)

    def test_a_purge_an_end_of_freshness_and_a_removal_count_at_once(self) -> None:
        """What lies ready is given as long as the cache would give it, not longer."""
        worker = self.worker()
        self.fill(worker, b"first", FRESH, VARY)
        worker.ask()
        worker.ask()
        self.assertTrue(self.took[-1])
        self.bed.travel(61)
        self.assertEqual(self.fill(worker, b"second", FRESH, VARY).body, b"second")
        self.assertEqual([worker.ask().body, worker.ask().body], [b"second", b"second"])
        self.assertTrue(self.took[-1])
        worker.cache.purge("test", "http://example.com/x", worker.wall() + 1, False)
        self.assertEqual(self.fill(worker, b"third", FRESH, VARY).body, b"third")
