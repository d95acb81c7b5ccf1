"""A purge is never lost on an entry, covers what its words say and nothing else, and their number is bounded (CA-01, item 5)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.entries import Entry, url_of
from twistedproxy.http.cache.purges import MAX_WHAT, MOST, Purge, Purges, Verdict, spelled
from twistedproxy.http.paths import read_target

URL = b"https://www.example.com/a/b?c=1"


def entry(asked_at: float = 100.0, url: bytes = URL, tags: tuple[bytes, ...] = (b"t",), stored_at: float | None = None) -> Entry:
    stored = SimpleNamespace(tags=tags, stored_at=asked_at if stored_at is None else stored_at)
    return Entry(b"k", cast(Any, stored), url, asked_at)


class PurgesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.purges = Purges()

    def verdict(self, by: str, what: str, of: Entry, at: float = 200.0, is_soft: bool = False) -> Verdict:
        purges = Purges()
        purges.add(Purge(by, what, at, is_soft))
        return purges.verdict(of)

    def test_each_kind_covers_what_it_names_and_nothing_else(self) -> None:
        covering = [("url", URL.decode()), ("prefix", "https://www.example.com/a"), ("tag", "t"), ("all", "")]
        others = [("url", "https://www.example.com/a/b"), ("prefix", "https://www.example.com/b"), ("tag", "T"), ("prefix", "http://")]
        for by, what in covering:
            self.assertIs(self.verdict(by, what, entry()), Verdict.GONE, (by, what))
            self.assertIs(self.verdict(by, what, entry(), is_soft=True), Verdict.STALE, (by, what))
            self.assertIs(self.verdict(by, what, entry(asked_at=201)), Verdict.GOOD, "asked for after it")
        for by, what in others:
            self.assertIs(self.verdict(by, what, entry()), Verdict.GOOD, (by, what))

    def test_an_answer_on_its_way_when_it_came_is_covered(self) -> None:
        self.assertIs(self.verdict("tag", "t", entry(asked_at=199, stored_at=205)), Verdict.GONE)

    def test_what_was_asked_for_after_a_soft_purge_is_good_again(self) -> None:
        """And what was only on its way then is not: the server may have answered before."""
        self.assertIs(self.verdict("tag", "t", entry(asked_at=201, stored_at=205), is_soft=True), Verdict.GOOD)
        self.assertIs(self.verdict("tag", "t", entry(asked_at=199, stored_at=205), is_soft=True), Verdict.STALE)

    def test_a_good_entry_is_held_against_later_purges_only_and_against_all_of_them(self) -> None:
        kept = entry(asked_at=100)
        for n in range(5):
            self.purges.add(Purge("tag", f"other {n}", 200 + n))
        self.assertIs(self.purges.verdict(kept), Verdict.GOOD)
        self.assertEqual(kept.purges_seen, self.purges.count)
        self.purges.add(Purge("tag", "other 1", 300))  # takes the place of an older one
        self.purges.add(Purge("tag", "t", 300))
        self.purges.add(Purge("tag", "other 3", 300))
        self.assertIs(self.purges.verdict(kept), Verdict.GONE)

    def test_being_told_again_is_no_news(self) -> None:
        told = [Purge("tag", f"{n}", 200 + n) for n in range(MOST - 1)]
        for _ in range(3):
            for purge in told:
                self.purges.add(purge)
        self.assertEqual((len(self.purges), self.purges.count), (MOST - 1, MOST - 1))

    def test_being_told_again_hides_nothing_new(self) -> None:
        kept = entry()
        self.purges.add(Purge("tag", "other", 200))
        self.assertIs(self.purges.verdict(kept), Verdict.GOOD)
        self.purges.add(Purge("tag", "t", 200))
        self.purges.add(Purge("tag", "other", 200))
        self.assertIs(self.purges.verdict(kept), Verdict.GONE)

    def test_the_same_thing_again_and_again_is_one_purge(self) -> None:
        for n in range(5 * MOST):
            self.purges.add(Purge("url", "https://a/", float(n)))
        self.assertEqual(list(self.purges), [Purge("url", "https://a/", 5.0 * MOST - 1)])

    def test_too_many_are_replaced_by_one_that_covers_as_much(self) -> None:
        for n in range(5 * MOST):
            self.purges.add(Purge("tag", f"{n}", float(n)))
            self.assertLessEqual(len(self.purges), MOST)
        self.assertIs(self.purges.verdict(entry(asked_at=0, tags=(b"0",))), Verdict.GONE)
        self.assertIs(self.purges.verdict(entry(asked_at=5.0 * MOST)), Verdict.GOOD)
        self.assertIs(self.purges.verdict(entry(asked_at=5.0 * MOST - 1, tags=(b"%d" % (5 * MOST - 1),))), Verdict.GONE)

    def test_everything_makes_older_ones_needless_and_not_younger_ones(self) -> None:
        self.purges.add(Purge("tag", "old", 100))
        self.purges.add(Purge("tag", "young", 300))
        self.purges.add(Purge("all", "", 200))
        self.assertEqual({purge.what for purge in self.purges}, {"young", ""})

    @given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 50), st.booleans(), st.booleans()), max_size=40))
    @settings(max_examples=100, deadline=None)
    def test_looking_early_and_often_finds_what_looking_once_finds(self, steps: list[tuple[str, int, bool, bool]]) -> None:
        """However purges and looks follow one another, an entry's verdict is that of all purges together."""
        purges = Purges()
        watched = entry(asked_at=25, tags=(b"a", b"b"))
        came: list[Purge] = []
        for tag, at, is_soft, looks in steps:
            came.append(Purge("tag", tag, float(at), is_soft))
            purges.add(came[-1])
            if looks and purges.verdict(watched) is Verdict.GONE:
                break
        covering = [purge for purge in came if purge.what in "ab" and purge.at >= 25]
        expected = Verdict.GOOD if not covering else Verdict.STALE if all(p.is_soft for p in covering) else Verdict.GONE
        self.assertIs(purges.verdict(watched), expected)

    def test_old_ones_are_forgotten(self) -> None:
        for n in range(10):
            self.purges.add(Purge("tag", f"{n}", float(n)))
        copied = self.purges.copy()
        self.purges.forget_before(4)
        self.assertEqual((len(self.purges), len(copied)), (6, 10))


class SpelledTests(SynchronousTestCase):
    def test_one_spelling_for_all_ways_to_write_a_url(self) -> None:
        for written, kept in (
            ("HTTPS://WWW.Example.com.:443", "https://www.example.com/"),
            ("http://a.x:80/%7euser//b/../c?x=%7e", "http://a.x/~user/c?x=%7e"),
            ("http://a.x:8080/é", "http://a.x:8080/%C3%A9"),
            ("http://a.x/b?", "http://a.x/b"),
            ("http://a.x?b", "http://a.x/?b"),
        ):
            self.assertEqual(spelled("url", written), kept)

    def test_a_prefix_never_covers_more_than_was_written(self) -> None:
        for written, kept in (
            ("https://a.x", "https://a.x/"),
            ("https://a.x/im", "https://a.x/im"),
            ("https://a.x/%69m", "https://a.x/im"),
            ("https://a.x/a/.", "https://a.x/a/."),
            ("https://a.x/a/..", "https://a.x/a/.."),
            ("https://a.x/a/../b", "https://a.x/b"),
            ("https://a.x/q?", "https://a.x/q?"),
            ("https://a.x/q?a=1", "https://a.x/q?a=1"),
        ):
            self.assertEqual(spelled("prefix", written), kept)

    def test_what_nobody_can_mean_is_refused_with_what_is_allowed(self) -> None:
        for by, what, word in (
            ("url", "/x", "whole URL"), ("url", "ftp://a.x/", "whole URL"), ("url", "http://a.x/ b", "spaces"),
            ("url", "http://a.x/#f", "#"), ("url", "http://u@a.x/", "host"), ("prefix", "https://", "host"),
            ("prefix", "https://a.x/a%2", "hexadecimal"), ("url", "http://a.x/" + MAX_WHAT * "x", "8192"),
            ("tag", "", "1 to 1024"), ("tag", "a,b", "commas"), ("tag", " a", "spaces"),
            ("tag", "a\nb", "control"), ("tag", "é" * 513, "1024"),
        ):  # fmt: skip
            with self.assertRaisesRegex(ValueError, word):
                spelled(by, what)

    @given(st.text("aB%27eE./~;é|?=-", max_size=24))
    @settings(max_examples=300, deadline=None)
    def test_both_sides_write_a_url_alike(self, rest: str) -> None:
        """A purge of what a client asked for covers what was kept for it, and its own spelling is a fixed point."""
        asked = "".join(c if c < "\x80" else "".join(f"%{b:02X}" for b in c.encode()) for c in f"/{rest}").encode()
        target = read_target(b"GET", asked)
        written = f"http://Www.Example.com:80/{rest}"
        if isinstance(target, str):
            with self.assertRaises(ValueError):
                spelled("url", written)
            return
        _, path, query = target
        url = url_of(b"http", b"www.example.com", path, query)
        self.assertEqual(spelled("url", written), url.decode())
        self.assertEqual(spelled("url", url.decode()), url.decode())
        if not query:
            self.assertTrue(url.startswith(spelled("prefix", url.decode()).encode()))
