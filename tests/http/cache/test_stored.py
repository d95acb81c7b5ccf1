"""A copy as a store keeps it, and the heads made of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.policy import Settings, Use, usable
from twistedproxy.http.cache.stored import CorruptEntry, Stored
from twistedproxy.http.head import parse_response

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]
ask, answer, keep, T0 = heads.ask, heads.answer, heads.keep, heads.T0

FIELDS = [
    "Cache-Control: max-age=60, stale-while-revalidate=10", 'ETag: "x"', "Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT",
    "Vary: Foo, Bar", "Content-Type: text/plain", "Surrogate-Key: a b", "Content-Location: /y",
]  # fmt: skip
TEXT = st.binary(max_size=20)


class BytesTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        """What a store keeps is what it was given."""
        stored = keep(FIELDS, request=ask(["Foo: 1"]))
        again = Stored.from_bytes(memoryview(stored.to_bytes()))
        for name in Stored.__slots__:
            self.assertEqual(getattr(again, name), getattr(stored, name), name)
        self.assertEqual(again, stored)
        self.assertEqual(again.selecting, (None, b"1"))

    @settings(deadline=None, derandomize=True)
    @given(
        st.integers(200, 599), st.lists(TEXT), st.lists(st.none() | TEXT, max_size=8), st.floats(0, 4e9), st.integers(-1, 2**62),
        st.none() | TEXT,
    )  # fmt: skip
    def test_any_round_trip(self, status: int, tags: Any, selecting: Any, moment: float, length: int, etag: Any) -> None:
        """Whatever is in it."""
        stored = Stored(
            status, b"A: b\r\n" * len(tags), born=moment - 1, stored_at=moment, fresh_until=moment + 1, etag=etag, tags=tuple(tags),
            vary=tuple(b"v%d" % n for n in range(len(selecting))), selecting=tuple(selecting), body_length=length,
        )  # fmt: skip
        again = Stored.from_bytes(stored.to_bytes())
        self.assertEqual([getattr(again, name) for name in Stored.__slots__], [getattr(stored, name) for name in Stored.__slots__])

    def test_cut_short(self) -> None:
        """A copy cut anywhere, or with something behind it, is a miss and nothing else."""
        data = keep(FIELDS).to_bytes()
        for size in range(len(data)):
            self.assertRaises(CorruptEntry, Stored.from_bytes, data[:size])
        self.assertRaises(CorruptEntry, Stored.from_bytes, data + b"x")

    @settings(deadline=None, derandomize=True)
    @given(st.binary(max_size=300), st.integers(0, 90), st.integers(0, 255))
    def test_rubbish(self, junk: bytes, at: int, byte: int) -> None:
        """Random bytes, and a copy with one byte changed, raise nothing but CorruptEntry."""
        data = keep(FIELDS).to_bytes()
        for each in (junk, data[:at] + bytes((byte,)) + data[at + 1 :]):
            try:
                self.assertIsInstance(Stored.from_bytes(each), Stored)
            except CorruptEntry:
                pass


class HeadTests(SynchronousTestCase):
    def test_answer(self) -> None:
        """An answer from the cache: fields as received, its age now, its length; ours at the end. Any codec can read it."""
        data = keep([*FIELDS, "Age: 3"]).head(T0 + 7.9, extra=b"X-Cache: hit\r\n")
        head = parse_response(data)
        assert head is not None
        self.assertEqual((head.status, head.content_length, head.size), (200, 5, len(data)))
        self.assertEqual(head.get_all(b"age"), [b"10"])
        self.assertEqual((head.get(b"x-cache"), head.get(b"date")), (b"hit", b"Thu, 01 Jan 2026 00:00:00 GMT"))

    def test_length(self) -> None:
        """The length is left out on demand, where it is unknown, and where a status has no body."""
        stored = keep(FIELDS)
        self.assertNotIn(b"Content-Length", stored.head(T0, with_length=False))
        chunked = keep(["Cache-Control: max-age=60", heads.DATE, "Transfer-Encoding: chunked"], bare=True)
        self.assertEqual(chunked.body_length, -1)
        self.assertNotIn(b"Content-Length", chunked.head(T0))
        self.assertIn(b"Content-Length: 7\r\n", chunked.with_length(7).head(T0))
        empty = keep(["Cache-Control: max-age=60", heads.DATE], status=204, bare=True)
        self.assertEqual(empty.body_length, 0)
        self.assertNotIn(b"Content-Length", empty.head(T0))

    def test_ca_07_truncated(self) -> None:
        """A body that is shorter or longer than announced makes no copy."""
        stored = keep(FIELDS)
        self.assertEqual(stored.with_length(5), stored)
        self.assertRaises(ValueError, stored.with_length, 4)
        self.assertRaises(ValueError, stored.with_length, 6)

    def test_not_modified(self) -> None:
        """A 304 has what caches need, and says nothing of a body it does not have."""
        stored = keep(FIELDS)
        for _ in range(2):
            head = parse_response(stored.not_modified_head(T0 + 1))
            assert head is not None
            self.assertEqual(head.status, 304)
            for name in (b"etag", b"date", b"cache-control", b"vary", b"content-location", b"age"):
                self.assertIsNotNone(head.get(name), name)
            self.assertEqual((head.get(b"content-type"), head.get(b"content-length")), (None, None))


class LifeTests(SynchronousTestCase):
    def test_soft_purge(self) -> None:
        """Purged softly, it is renewed at its next use, yet there while that lasts."""
        stored = keep(FIELDS).soft_purged(T0 + 5)
        self.assertIs(usable(stored, ask(), T0 + 5, Settings()), Use.STALE_WHILE_REVALIDATE)
        self.assertEqual(stored.soft_purged(T0 + 50).fresh_until, T0 + 5)
