"""Compressed answers are kept as well: who comes second costs no compression, and nobody gets a form of another answer."""

from __future__ import annotations

import gzip
import os
from typing import Any

from cache_workers import FRESH, CachingCase

from twistedproxy.config.model import Compression, Use

ASKS = b"Accept-Encoding: gzip"
TEXT = b"Content-Type: text/plain"
USE = Use("compress", compression=Compression(("gzip",), ("text/*",), 500, (("gzip", 1),)))


class FormTests(CachingCase):
    def compressing(self) -> Any:
        return self.worker(route={"use": (USE,)})

    def compressed_bytes(self, worker: Any) -> int:
        """How much went into compressors."""
        return int(worker.front.effort.counts["compress", "gzip", "in"])

    def coded(self, worker: Any, *asks: bytes) -> bytes:
        found = worker.ask(*(asks or (ASKS,)))
        self.assertEqual((found.status, found.get(b"Content-Encoding")), (200, b"gzip"))
        self.assertIn(b"Accept-Encoding", found.get(b"Vary"))
        return gzip.decompress(found.body)

    def test_a_small_answer_is_compressed_once(self) -> None:
        """The first hit makes the form; those after it, and no others, get what was made. A client without gzip gets the answer itself."""
        worker = self.compressing()
        body = b"text " * 1000
        self.fill(worker, body, FRESH, TEXT, b'ETag: "1"')
        for _ in range(4):
            self.assertEqual(self.coded(worker), body)
        self.assertEqual(self.compressed_bytes(worker), len(body))
        plain = worker.ask()
        self.assertEqual((plain.body, plain.get(b"Content-Encoding"), plain.get(b"ETag")), (body, None, b'"1"'))
        self.assertEqual(worker.ask(ASKS).get(b"ETag"), b'W/"1"', "other bytes: no strong validator")
        self.assertEqual(worker.ask(ASKS, b'If-None-Match: W/"1"').status, 304)
        self.assertEqual(worker.ask(ASKS, b"Range: bytes=5-8").body, b"text", "parts are parts of the answer itself")
        self.assertEqual(worker.origin.count, 1)

    def test_a_large_answer_is_recorded_as_it_goes_out(self) -> None:
        """Too large for memory: the first client gets it in chunks while it is compressed, the next from a file with its length."""
        worker = self.compressing()
        body = os.urandom(200_000).hex().encode() * 3
        self.fill(worker, body, FRESH, TEXT)
        first = worker.ask(ASKS)
        self.assertEqual((gzip.decompress(first.body), first.get(b"Content-Length")), (body, None))
        second = worker.ask(ASKS)
        self.assertEqual((gzip.decompress(second.body), second.get(b"Content-Length")), (body, b"%d" % len(second.body)))
        self.assertEqual(self.compressed_bytes(worker), len(body))

    def test_a_client_that_leaves_leaves_no_half_form(self) -> None:
        worker = self.compressing()
        body = os.urandom(2_000_000).hex().encode()
        self.fill(worker, body, FRESH, TEXT)
        leaving = worker.client(self.get(ASKS))
        leaving.through(b"gzip")
        leaving.close()
        self.bed.until(lambda: worker.front.effort.open == 0, "the exchange to be over")
        self.assertEqual(self.coded(worker), body)
        self.assertEqual(self.coded(worker), body)

    def test_a_later_answer_has_forms_of_its_own(self) -> None:
        """CA-12: after a purge or an unsafe request, nobody gets the old answer in another coding."""
        worker = self.compressing()
        self.fill(worker, b"old " * 1000, FRESH, TEXT)
        self.assertEqual(self.coded(worker), b"old " * 1000)
        worker.cache.purge("url", "http://example.com/x", worker.wall() + 0.001, False)
        self.bed.loop.travel(0.1)
        self.fill(worker, b"new " * 1000, FRESH, TEXT, asks=(ASKS,))
        self.assertEqual(self.coded(worker), b"new " * 1000)
