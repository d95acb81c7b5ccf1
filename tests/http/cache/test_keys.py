"""Two things are one in the cache only if everything that tells them apart is the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache import keys
from twistedproxy.http.cache.freshen import FILL_REMOVES
from twistedproxy.http.cache.keys import MAX_VARIANTS, Variants, primary, selecting, vary_names

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]
ask, answer = heads.ask, heads.answer

PART = st.text(alphabet="ab:/?.=80", max_size=6).map(str.encode)


class PrimaryTests(SynchronousTestCase):
    def test_ca_02_everything_counts(self) -> None:
        """Scheme, host, port, path, query and scope each make another thing."""
        whole = (b"http", b"a.example:8080", b"/x", b"q=1", b"web")
        others = [(b"https", *whole[1:]), (b"http", b"b.example:8080", *whole[2:]), (b"http", b"a.example:8081", *whole[2:]),
                  (b"http", b"a.example", *whole[2:]), (*whole[:2], b"/X", *whole[3:]), (*whole[:2], b"/x/", *whole[3:]),
                  (*whole[:3], b"q=2", b"web"), (*whole[:3], b"", b"web"), (*whole[:4], b"api")]  # fmt: skip
        digests = {primary(*each) for each in (whole, *others)}
        self.assertEqual(len(digests), 10)
        self.assertEqual({len(each) for each in digests}, {16})

    def test_spellings_of_one_host(self) -> None:
        """Case, a trailing dot and the scheme's own port make no difference."""
        for scheme, port in ((b"http", b":80"), (b"https", b":443")):
            hosts = (b"a.example", b"A.Example", b"a.example.", b"a.example" + port, b"a.example." + port)
            self.assertEqual(len({primary(scheme, host, b"/", b"") for host in hosts}), 1)
        self.assertNotEqual(primary(b"http", b"a:443", b"/", b""), primary(b"http", b"a", b"/", b""))
        self.assertEqual(primary(b"http", b"[::1]:80", b"/", b""), primary(b"http", b"[::1]", b"/", b""))
        self.assertNotEqual(primary(b"http", b"[::1]:8080", b"/", b""), primary(b"http", b"[::1]", b"/", b""))

    @settings(deadline=None, derandomize=True)
    @given(st.tuples(PART, PART, PART, PART), st.tuples(PART, PART, PART, PART))
    def test_parts_do_not_run_into_one_another(self, one: Any, other: Any) -> None:
        """No path can be spelled so that it is taken for another one's query, host or scheme."""
        if keys.origin(b"http", one[0]) != keys.origin(b"http", other[0]) or one[1:] != other[1:]:
            self.assertNotEqual(primary(b"http", *one), primary(b"http", *other))

    def test_ca_01_what_is_not_in_the_key_is_not_sent(self) -> None:
        """Fields with which a stranger makes servers answer something else than the URL says are left out of filling requests."""
        self.assertLessEqual(
            {b"x-http-method-override", b"x-original-url", b"x-rewrite-url", b"range", b"if-none-match"}, set(FILL_REMOVES)
        )

    def test_the_url_as_the_client_of_a_trusted_proxy_wrote_it(self) -> None:
        """Purges name it so; what is no scheme at all is not believed."""
        own = ask([]).authority
        for fields, outside in (
            ([], (b"http", own)),
            (["X-Forwarded-Proto: HTTPS"], (b"https", own)),
            (["X-Forwarded-Proto: ftp", "X-Forwarded-Host: shop.example"], (b"http", b"shop.example")),
        ):
            self.assertEqual(keys.outside(ask(fields), b"http"), outside)

    def test_ca_01_what_a_trusted_proxy_says_tells_apart(self) -> None:
        """Pages with links to the host that the proxy in front was asked for are not given to visitors of another one."""
        said = [keys.claims(ask(fields)) for fields in ([], ["X-Forwarded-Host: a"], ["X-Forwarded-Host: b"], ["X-Forwarded-Proto: a"])]
        self.assertEqual((said[0], len(set(said))), (b"", 4))


class VaryTests(SynchronousTestCase):
    def values(self, name: str, *fields: str) -> Any:
        return selecting((name.encode(),), ask([f"{name}: {field}" for field in fields]))

    def test_names(self) -> None:
        """Lower case, sorted, each once."""
        self.assertEqual(vary_names(answer()), ())
        self.assertEqual(vary_names(answer(["Vary: Foo, bar", "Vary: FOO,,"])), (b"bar", b"foo"))
        self.assertEqual(vary_names(answer(["Vary: Foo", "Content-Encoding: br"])), (b"accept-encoding", b"foo"))
        self.assertIsNone(vary_names(answer(["Vary: " + ",".join(f"x{n}" for n in range(8)), "Content-Encoding: br"])))
        self.assertIsNone(vary_names(answer(["Vary: " + "x" * 2000])))

    def test_accept_encoding_classes(self) -> None:
        """Browsers spell the same codings in many ways: they share one variant."""
        spellings = ("gzip, deflate, br", "br;q=1.0, gzip;q=0.8, deflate", "br,GZIP , deflate;q=0.1, x")
        same = {self.values("accept-encoding", value) for value in spellings}
        self.assertEqual(same, {(b"br,gzip,deflate",)})
        self.assertEqual(self.values("accept-encoding", "gzip;q=0, br;q=0.000, identity"), (b"",))
        self.assertEqual(self.values("accept-encoding", "*"), (b"zstd,br,gzip,deflate",))
        self.assertEqual(self.values("accept-encoding", "gzip, *;q=0"), (b"gzip,!identity",))
        self.assertEqual(self.values("accept-encoding", "x-gzip"), (b"gzip",))
        self.assertEqual(self.values("accept-encoding"), (None,))

    def test_others(self) -> None:
        """Several lines are one list; spaces around commas do not count; letters' case does not count where the field says so."""
        self.assertEqual(self.values("foo", "1", "2"), self.values("foo", "1,2"))
        self.assertEqual(self.values("foo", "1 ,  2"), self.values("foo", "1, 2"))
        self.assertNotEqual(self.values("foo", "a"), self.values("foo", "A"))
        self.assertEqual(self.values("accept-language", "en, de-AT"), self.values("accept-language", "EN,de-at"))
        self.assertEqual(self.values("foo", ""), (b"",))
        self.assertNotEqual(self.values("foo", ""), self.values("foo"))
        self.assertIsNone(self.values("foo", "x" * 5000))

    def test_no_credentials_are_kept(self) -> None:
        """An answer that varies by Cookie does not write anybody's cookie to disk."""
        for name in ("cookie", "authorization"):
            one, other = self.values(name, "session=secret"), self.values(name, "session=other")
            self.assertNotEqual(one, other)
            self.assertNotIn(b"secret", one[0])

    def test_what_is_remembered_is_bounded(self) -> None:
        """Ever new values do not fill the memory."""
        for number in range(2000):
            self.values("accept-encoding", f"x{number}")
            vary_names(answer([f"Vary: x{number}"]))
        self.assertLessEqual(max(len(keys._names), len(keys._codings)), keys._MAX_REMEMBERED)


class VariantsTests(SynchronousTestCase):
    def key(self, names: tuple[bytes, ...], *fields: str) -> Any:
        return Variants(names).key_for(b"k" * 16, ask(fields))

    def test_keys(self) -> None:
        """Same values, same key; absent is another value than empty; without names the URL itself is the key."""
        self.assertEqual(self.key(()), b"k" * 16)
        different = [self.key((b"a", b"b"), *fields) for fields in ([], ["A: 1"], ["B: 1"], ["A: 1", "B: 1"], ["A:"], ["A: -"], ["A: 11"])]
        self.assertEqual(len(set(different)), len(different))
        self.assertEqual(self.key((b"a",), "A: 1", "C: 5"), self.key((b"a",), "a: 1"))
        self.assertIsNone(self.key((b"a",), "A: " + "x" * 5000))

    def test_ca_05_bounded(self) -> None:
        """Ten thousand variants of one URL: 32 are kept, those used last."""
        variants = Variants((b"a",))
        added = [b"%016d" % number for number in range(10_000)]
        forgotten = []
        for key in added:
            forgotten += variants.add((b"a",), key)
            variants.use(added[0])
        self.assertEqual(len(variants.keys), MAX_VARIANTS)
        self.assertIn(added[0], variants.keys)
        self.assertEqual(set(forgotten) | set(variants.keys), set(added))
        self.assertLess(len(variants.to_bytes()), 600)

    def test_wider(self) -> None:
        """A server that names a further field: all are chosen anew by both. One that names fewer changes nothing."""
        variants = Variants((b"a",), [b"1" * 16])
        self.assertEqual(variants.widened(()), (b"a",))
        names = variants.widened((b"b",))
        assert names is not None
        self.assertEqual(variants.add(names, b"2" * 16), [b"1" * 16])
        self.assertEqual((variants.names, variants.keys), ((b"a", b"b"), [b"2" * 16]))
        self.assertIsNone(variants.widened(tuple(b"x%d" % n for n in range(8))))

    def test_bytes(self) -> None:
        """What a store keeps is read back; anything else is refused."""
        variants = Variants((b"a", b"b"), [b"1" * 16, b"2" * 16])
        data = variants.to_bytes()
        again = Variants.from_bytes(memoryview(data))
        self.assertEqual((again.names, again.keys), (variants.names, variants.keys))
        self.assertEqual(Variants.from_bytes(Variants().to_bytes()).names, ())
        for broken in (b"", data[:-1], data + b"x", b"\xff" * 40):
            self.assertRaises(ValueError, Variants.from_bytes, broken)
