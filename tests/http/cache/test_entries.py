"""What stores are given, and what they give back years later."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.entries import Entry, VariantList, decoded, url_of
from twistedproxy.http.cache.keys import Variants
from twistedproxy.http.cache.stored import CorruptEntry

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]

KEY = b"k" * 16
KEPT = heads.keep(["Cache-Control: max-age=60", 'ETag: "1"'])


class EntryTests(SynchronousTestCase):
    def test_there_and_back(self) -> None:
        """URL, moment and answer are what they were; the same for a list of variants."""
        entry = Entry(KEY, KEPT, b"http://example.com/x?y", 1234.5)
        found = decoded(KEY, entry.to_meta(), "copy")
        assert isinstance(found, Entry)
        self.assertEqual((found.url, found.asked_at, found.copy, found.purges_seen), (b"http://example.com/x?y", 1234.5, "copy", 0))
        self.assertEqual(found.stored.to_bytes(), KEPT.to_bytes())
        variants = Variants()
        variants.add((b"accept",), KEY)
        listed = decoded(KEY, VariantList(variants).to_meta(), None)
        assert isinstance(listed, VariantList)
        self.assertEqual(listed.variants.to_bytes(), variants.to_bytes())

    def test_two_spellings_of_an_origin_are_one(self) -> None:
        """A purge of a URL finds what came by another spelling of its host, and by no other path or query."""
        self.assertEqual(url_of(b"http", b"Example.COM:80", b"/x", b""), b"http://example.com/x")
        self.assertEqual(url_of(b"https", b"example.com:443", b"/x", b"a=1"), b"https://example.com/x?a=1")
        self.assertNotEqual(url_of(b"http", b"example.com:81", b"/x", b""), url_of(b"http", b"example.com", b"/x", b""))

    @settings(max_examples=300, derandomize=True, deadline=None)
    @given(st.integers(0, 400), st.integers(0, 255), st.booleans())
    def test_nonsense_is_told(self, at: int, value: int, is_cut: bool) -> None:
        """Whatever a disk makes of it, it is an entry or a CorruptEntry, never anything else."""
        meta = bytearray(Entry(KEY, KEPT, b"http://example.com/x", 1.0).to_meta())
        if is_cut:
            del meta[at:]
        else:
            meta[at % len(meta)] = value
        try:
            decoded(KEY, bytes(meta), None)
        except CorruptEntry:
            pass
