"""A worker's stores: made when they are asked for, tried again when they cannot be had, given up when the worker drains."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.changes import CachePurged
from twistedproxy.config.model import Cache as CacheSpec
from twistedproxy.config.model import Model, Pool, Route, RouteCache, Site
from twistedproxy.http.cache.geometry import MIN_BYTES
from twistedproxy.observability.metrics import Metrics
from twistedproxy.worker.caches import TRY_AGAIN_S, Caches

KEY = b"k" * 16


class CachesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory()) + "/cache"
        self.spec = CacheSpec(self.directory, memory=MIN_BYTES)
        self.reactor: Any = MemoryReactorClock()
        self.reactor.callInThread = lambda work: work()
        self.metrics = Metrics()
        self.caches = Caches(self.reactor, Wheel(self.reactor.seconds), self.metrics, None, lambda: 1_800_000_000.0)
        self.addCleanup(self.close)

    def close(self) -> None:
        if self.caches._arena is not None:
            self.caches._arena.close()

    def model(self, spec: CacheSpec | None = None, is_cached: bool = True) -> Model:
        site = Site("*", ("*",), (Route("/", "web", cache=RouteCache() if is_cached else None),))
        return Model(sites={"*": site}, pools={"web": Pool("web")}, cache=spec or self.spec)

    def cache(self) -> Any:
        assert self.caches.cache is not None
        return self.caches.cache

    def test_nothing_is_made_without_a_route(self) -> None:
        """No directory, no memory, before a route keeps answers; what there is stays when the last one does no more."""
        self.caches.configure(self.model(is_cached=False), 1)
        self.caches.each_second()
        self.caches.drain()
        self.assertFalse(os.path.exists(self.directory))
        self.assertIsNone(self.caches.cache)
        self.caches = Caches(self.reactor, Wheel(self.reactor.seconds), self.metrics, None)
        self.caches.configure(self.model(), 1)
        self.assertEqual(os.stat(self.directory).st_mode & 0o777, 0o700)
        made = self.cache()
        self.caches.configure(self.model(is_cached=False), 1)
        self.assertIs(self.cache(), made)

    def test_a_reload_of_the_sizes(self) -> None:
        """Another size of the memory is another store, which this worker may put into; other keys change under the one that is there."""
        self.caches.configure(self.model(), 1)
        cache, store, arena = self.cache(), self.cache().store, self.caches._arena
        self.assertIsNotNone(store.put(KEY, b"meta", b"body"))
        self.caches.configure(self.model(replace(self.spec, max_object=5000)), 1)
        self.assertIs(cache.store, store)
        self.assertEqual(cache.spec.max_object, 5000)
        self.caches.configure(self.model(replace(self.spec, memory=2 * MIN_BYTES)), 1)
        self.assertIsNot(cache.store, store)
        self.assertIsNotNone(cache.store.put(KEY, b"meta", b"body"))
        self.assertIsNone(store.put(b"o" * 16, b"meta", b"body"))  # what goes on with it can still read
        assert arena is not None
        arena.close()

    def test_no_disk(self) -> None:
        self.caches.configure(self.model(replace(self.spec, disk=0)), 1)
        self.assertIsNone(self.cache().store.disk)

    def test_a_directory_that_cannot_be_used(self) -> None:
        """It is said once, requests go on without, and it is tried again."""
        with open(self.directory, "w"):
            pass
        self.caches.configure(self.model(), 1)
        self.assertIsNone(self.cache().store.arena)
        self.assertIsNone(self.cache().store.put(KEY, b"meta", b"body"))
        self.assertIsNone(self.cache().store.find(KEY))
        for _ in range(3):
            self.reactor.advance(TRY_AGAIN_S + 1)
            self.caches.each_second()
        os.unlink(self.directory)
        self.reactor.advance(TRY_AGAIN_S + 1)
        self.caches.each_second()
        self.assertIsNotNone(self.cache().store.put(KEY, b"meta", b"body"))

    def test_a_worker_that_drains(self) -> None:
        """It still reads, and leaves its share of the memory to the others; it does not take it back."""
        self.caches.configure(self.model(), 1)
        store = self.cache().store
        store.put(KEY, b"meta", b"body")
        self.caches.drain()
        self.caches.each_second()
        self.assertIsNotNone(store.find(KEY))
        self.assertIsNone(store.put(b"o" * 16, b"meta", b"body"))

    def test_purges_and_counts(self) -> None:
        """What the supervisor tells reaches the cache; what the stores count reaches the metrics, over a change of stores too."""
        purge = CachePurged("url", "http://x/", 1_800_000_000.0, is_soft=False)
        self.caches.observe(purge)  # before there is a cache
        self.caches.configure(self.model(), 1)
        self.caches.observe(purge)
        self.assertEqual(len(self.cache().purges), 1)
        store = self.cache().store
        store.disk.corrupt = 3
        self.caches.each_second()
        self.caches.each_second()
        self.assertEqual(self.metrics.cache_store[("disk", "corrupt")], 3)
        arena = self.caches._arena
        self.caches.configure(self.model(replace(self.spec, memory=2 * MIN_BYTES)), 1)
        self.cache().store.disk.corrupt = 2
        self.caches.each_second()
        self.assertEqual(self.metrics.cache_store[("disk", "corrupt")], 5)
        assert arena is not None
        arena.close()

    def test_only_http_fronts(self) -> None:
        """A TCP front has nothing to do with it."""
        self.caches.configure(self.model(), 1)
        front = SimpleNamespace(act=None)
        self.caches.serve(front)
        self.assertIsNone(front.act)
