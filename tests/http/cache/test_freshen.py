"""Copies validated, renewed by a 304, and invalidated by what changes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache import keys
from twistedproxy.http.cache.freshen import conditional_fields, invalidates, refreshed
from twistedproxy.http.cache.policy import Settings, Use, usable
from twistedproxy.http.cache.stored import Flag, Stored

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]
ask, answer, keep, T0 = heads.ask, heads.answer, heads.keep, heads.T0

OLD = ["Cache-Control: max-age=60", 'ETag: "x"', "Test: old", "Other: old", "Content-Type: text/plain", "Content-Encoding: gzip", "Age: 5"]
LATER = T0 + 100
LATER_DATE = "Date: Thu, 01 Jan 2026 00:01:40 GMT"


class RenewalTests(SynchronousTestCase):
    def renewed(self, stored: Stored, *fields: str, request: Any = None, settings: Settings | None = None) -> Any:
        response = answer([LATER_DATE, *fields], 304, bare=True)
        return refreshed(stored, request or ask(), response, settings or Settings(), LATER, LATER)

    def test_conditions(self) -> None:
        """The server is asked by every validator there is."""
        modified = "Wed, 01 Jan 2025 00:00:00 GMT"
        self.assertEqual(
            conditional_fields(keep([*OLD, f"Last-Modified: {modified}"])),
            ((b"If-None-Match", b'"x"'), (b"If-Modified-Since", modified.encode())),
        )
        self.assertEqual(conditional_fields(keep(["Cache-Control: max-age=60", 'ETag: W/"y"'])), ((b"If-None-Match", b'W/"y"'),))
        self.assertEqual(conditional_fields(keep(["Cache-Control: max-age=60"])), ())

    def test_fresh_again(self) -> None:
        """Fields of the 304 replace those of the copy; those it does not have stay; its body stays as it is."""
        stored = self.renewed(
            keep(OLD), 'ETag: "x"', "Test: new", "Cache-Control: max-age=600", "Content-Encoding: br", "Content-Length: 99"
        )
        fields = {name.lower(): value for name, value in stored.fields()}
        self.assertEqual((fields[b"test"], fields[b"other"], fields[b"content-encoding"]), (b"new", b"old", b"gzip"))
        self.assertEqual(fields[b"date"], b"Thu, 01 Jan 2026 00:01:40 GMT")
        self.assertEqual((stored.body_length, stored.age(LATER), stored.fresh_until, stored.status), (5, 0, LATER + 600, 200))
        self.assertNotIn(b"content-length", fields)
        self.assertIs(usable(stored, ask(), LATER, Settings()), Use.FRESH)

    def test_old_lifetime_counts_again(self) -> None:
        """A 304 without Cache-Control makes the copy fresh for as long as it was, also where the operator's ttl says how long."""
        self.assertEqual(self.renewed(keep(OLD)).fresh_until, LATER + 60)
        ttl = Settings(ttl_s=7)
        self.assertEqual(self.renewed(keep(['ETag: "x"'], settings=ttl), settings=ttl).fresh_until, LATER + 7)

    def test_vary_stays(self) -> None:
        """It is still the variant it was, whoever asked for the renewal, and by HEAD too."""
        stored = keep([*OLD, "Vary: Foo"], request=ask(["Foo: 1"]))
        renewed = self.renewed(stored, request=ask(["Foo: 1"], method="HEAD"))
        self.assertEqual((renewed.vary, renewed.selecting, renewed.flags), (stored.vary, stored.selecting, 0))

    def test_of_something_else(self) -> None:
        """A 304 with another validator is about another answer: everything is fetched anew."""
        self.assertIsNone(self.renewed(keep(OLD), 'ETag: "y"'))
        self.assertIsNone(self.renewed(keep(["Cache-Control: max-age=60", "Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT"]), 'ETag: "y"'))
        modified = keep(["Cache-Control: max-age=60", "Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT"])
        self.assertIsNone(self.renewed(modified, "Last-Modified: Thu, 02 Jan 2025 00:00:00 GMT"))
        self.assertIsNotNone(self.renewed(modified, "Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT"))
        self.assertIsNotNone(self.renewed(keep(OLD), 'ETag: W/"x"'))

    def test_no_longer_to_be_kept(self) -> None:
        """A 304 that forbids keeping: the copy is sent this once and forgotten."""
        stored = self.renewed(keep(OLD), "Cache-Control: no-store")
        self.assertTrue(stored.flags & Flag.DROP)
        self.assertIs(usable(stored, ask(), LATER, Settings()), Use.REVALIDATE)
        self.assertIn(b"Test: old\r\n", stored.head(LATER))

    def test_without_a_date(self) -> None:
        """A 304 of a server without a clock counts from its arrival, not from the copy's first day."""
        stored = refreshed(keep(OLD), ask(), answer([], 304, bare=True), Settings(), LATER, LATER)
        assert stored is not None
        self.assertEqual((stored.age(LATER), stored.fresh_until), (0, LATER + 60))
        self.assertIn(b"Date: Thu, 01 Jan 2026 00:01:40 GMT\r\n", stored.block)

    def test_cookies_of_a_304(self) -> None:
        """A session begun by a renewal is not handed to the next visitor, and does not cost the copy."""
        stored = self.renewed(keep(OLD), "Set-Cookie: a=b")
        self.assertEqual((stored.flags, stored.fresh_until), (0, LATER + 60))
        self.assertNotIn(b"Set-Cookie", stored.block)

    def test_age_of_a_304(self) -> None:
        """A 304 from a cache in between is as old as it says."""
        self.assertEqual(self.renewed(keep(OLD), "Age: 20").fresh_until, LATER + 40)

    def test_too_many_fields(self) -> None:
        """A copy that would grow over what a head may have is fetched anew."""
        many = [f"X-{n}: 1" for n in range(150)]
        self.assertIsNone(self.renewed(keep([*OLD, *many]), *[f"Y-{n}: 1" for n in range(150)]))


class InvalidationTests(SynchronousTestCase):
    def gone(self, method: str, status: int, *fields: str) -> list[bytes]:
        """Of some URLs of a site, those that are no longer true after this answer to a request for /x?q=1."""
        urls = {keys.primary(b"https", b"a.example", *place.partition(b"?")[::2]): place for place in
                (b"/x?q=1", b"/x", b"/y", b"/y?z", b"/x/y", b"/")}  # fmt: skip
        found = invalidates(method.encode(), answer(list(fields), status), b"https", b"a.example", b"/x", b"q=1")
        return [urls.get(key, b"?") for key in found]

    def test_unsafe_methods(self) -> None:
        """After a change the URL is fetched anew, whatever the method is called; reading and failing change nothing."""
        for method in ("POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "FOO"):
            self.assertEqual(self.gone(method, 200), [b"/x?q=1"], method)
            self.assertEqual(self.gone(method, 303), [b"/x?q=1"], method)
            self.assertEqual(self.gone(method, 404), [], method)
            self.assertEqual(self.gone(method, 500), [], method)
        for method in ("GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND"):
            self.assertEqual(self.gone(method, 200), [], method)

    def test_what_the_answer_names(self) -> None:
        """Location and Content-Location too, however they are written."""
        self.assertEqual(self.gone("POST", 201, "Location: /y", "Content-Location: /x"), [b"/x?q=1", b"/y", b"/x"])
        for place in ("https://a.example/y?z", "https://A.example:443/y?z#top", "//a.example/y?z", "y?z", "./a/../y?z", "/%79?z"):
            self.assertEqual(self.gone("POST", 201, f"Location: {place}"), [b"/x?q=1", b"/y?z"], place)

    def test_other_origins_are_not_ours_to_forget(self) -> None:
        """Nobody can have another site's pages forgotten (4.4)."""
        for place in ("https://b.example/y", "http://a.example/y", "https://a.example:8443/y", "https://a.example@b.example/y",
                      "https://[/", "/%00", "mailto:x@y", "https://a.example.evil/y"):  # fmt: skip
            self.assertEqual(self.gone("POST", 201, f"Location: {place}"), [b"/x?q=1"], place)
