"""What may be kept and used: the vectors of tests/vectors/cache.toml, then whom a copy may be sent to and when."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache import keys
from twistedproxy.http.cache.policy import (
    Bypass,
    Freshness,
    Refused,
    Settings,
    Use,
    matches,
    may_serve_on_error,
    may_use,
    only_if_cached,
    storable,
    store,
    usable,
)
from twistedproxy.http.cache.stored import Flag

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]
ask, answer, keep, T0 = heads.ask, heads.answer, heads.keep, heads.T0

VECTORS = tomllib.loads((Path(__file__).parents[2] / "vectors" / "cache.toml").read_text("utf-8"))["vector"]


def settings_of(said: dict[str, Any]) -> Settings:
    negative = {int(status): ttl for status, ttl in said.get("negative", {}).items()}
    return Settings(**{**said, "negative": negative})


class VectorTests(SynchronousTestCase):
    """One method per vector, added below."""

    def check(self, vector: dict[str, Any]) -> None:
        request = ask(vector.get("request", ()), vector.get("method", "GET"))
        response = answer(vector["response"], vector.get("status", 200), vector.get("bare", False))
        verdict = storable(request, response, settings_of(vector.get("settings", {})), T0 + vector.get("asked", 0), T0)
        if "refused" in vector:
            self.assertEqual(verdict, Refused(vector["refused"]))
            return
        assert isinstance(verdict, Freshness), verdict
        self.assertEqual(verdict.fresh_s, vector["fresh"])
        if "source" in vector:
            self.assertEqual(verdict.source, vector["source"])
        self.assertEqual(verdict.stale_while_revalidate_s, vector.get("stale", 0))
        self.assertEqual(verdict.stale_if_error_s, vector.get("error", 0))
        varying = {name.decode(): (value or b"").decode() for name, value in zip(verdict.vary, verdict.selecting, strict=True)}
        self.assertEqual(varying, vector.get("vary", {}))
        self.assertEqual(verdict.tags, tuple(tag.encode() for tag in vector.get("tags", ())))
        stored = store(request, response, verdict, T0)
        assert stored is not None
        names = {name.lower().decode() for name, _ in stored.fields()}
        self.assertEqual(names & set(vector.get("without", ())), set())
        self.assertLessEqual(set(vector.get("with", ())), names)
        self.assertIn("date", names)
        self.assertEqual(usable(stored, ask(), T0 + 0.5, Settings()) is Use.FRESH, vector["fresh"] >= 1)


for _number, _vector in enumerate(VECTORS):

    def _run(self: VectorTests, vector: dict[str, Any] = _vector) -> None:
        self.check(vector)

    _run.__doc__ = _vector["id"]
    setattr(VectorTests, f"test_{_number:03d}_{''.join(c if c.isalnum() else '_' for c in _vector['id'])}", _run)


class RequestTests(SynchronousTestCase):
    """Which requests go past the cache."""

    def why(self, *fields: str, method: str = "GET") -> Bypass | None:
        return may_use(ask(fields, method), Settings())

    def test_reading_uses_the_cache(self) -> None:
        """GET and HEAD, also with conditions, ranges, cookies and a wish for something fresher."""
        self.assertIsNone(self.why())
        self.assertIsNone(self.why(method="HEAD"))
        for field in ("Range: bytes=0-1", 'If-None-Match: "x"', "Cookie: a=b", "Cache-Control: no-cache", "Authorization: Basic eDp5"):
            self.assertIsNone(self.why(field), field)

    def test_ca_06_other_methods_go_past_it(self) -> None:
        """Whatever they are called, and whatever case they are spelled in."""
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "M-SEARCH", "get"):
            self.assertIs(self.why(method=method), Bypass.METHOD, method)

    def test_fat_get_goes_past_it(self) -> None:
        """A GET with a body may be answered by the body: it is not in the key."""
        self.assertIs(self.why("Content-Length: 3"), Bypass.BODY)
        self.assertIs(self.why("Transfer-Encoding: chunked"), Bypass.BODY)
        self.assertIsNone(self.why("Content-Length: 0"))

    def test_upgrades_go_past_it(self) -> None:
        """A WebSocket is no page."""
        self.assertIs(self.why("Connection: Upgrade", "Upgrade: websocket"), Bypass.UPGRADE)

    def test_no_store_goes_past_it(self) -> None:
        """The standard says that nothing of such a request may be kept."""
        self.assertIs(self.why("Cache-Control: max-age=0, no-store"), Bypass.NO_STORE)


class UseTests(SynchronousTestCase):
    """When a copy may be sent."""

    def use(self, stored: Any, after: float, *fields: str, settings: Settings | None = None) -> Use:
        return usable(stored, ask(fields), T0 + after, settings or Settings())

    def test_fresh_until_the_second(self) -> None:
        """Fresh before its lifetime is over, stale from then on."""
        stored = keep(["Cache-Control: max-age=60", 'ETag: "x"'])
        self.assertIs(self.use(stored, 0), Use.FRESH)
        self.assertIs(self.use(stored, 59.9), Use.FRESH)
        self.assertIs(self.use(stored, 60), Use.REVALIDATE)

    def test_without_validator(self) -> None:
        """What cannot be validated is fetched."""
        self.assertIs(self.use(keep(["Cache-Control: max-age=60"]), 60), Use.FETCH)

    def test_windows(self) -> None:
        """CA-09: stale answers within their windows and not a second longer."""
        stored = keep(["Cache-Control: max-age=60, stale-while-revalidate=10, stale-if-error=100", 'ETag: "x"'])
        self.assertIs(self.use(stored, 69), Use.STALE_WHILE_REVALIDATE)
        self.assertIs(self.use(stored, 70), Use.REVALIDATE)
        self.assertTrue(may_serve_on_error(stored, ask(), T0 + 159))
        self.assertFalse(may_serve_on_error(stored, ask(), T0 + 160))

    def test_no_windows_for_no_cache(self) -> None:
        """no-cache: validated before every use, and never sent when that fails."""
        stored = keep(["Cache-Control: no-cache, max-age=60, stale-if-error=60", 'ETag: "x"'], settings=Settings(stale_if_error_s=60))
        self.assertIs(self.use(stored, 0), Use.REVALIDATE)
        self.assertIs(self.use(stored, -3600), Use.REVALIDATE)  # the clock has stepped back
        self.assertFalse(may_serve_on_error(stored, ask(), T0))
        self.assertTrue(stored.flags & Flag.NO_CACHE and stored.flags & Flag.MUST_REVALIDATE)

    def test_ca_04_authorization_gets_shared_copies_only(self) -> None:
        """Who authenticates may be meant to see something else: only what is public, or has s-maxage, is sent."""
        anonymous, public = keep(["Cache-Control: max-age=60, stale-if-error=9"]), keep(["Cache-Control: public, max-age=60"])
        self.assertIs(self.use(anonymous, 0, "Authorization: Basic eDp5"), Use.PASS)
        self.assertIs(self.use(public, 0, "Authorization: Basic eDp5"), Use.FRESH)
        self.assertFalse(may_serve_on_error(anonymous, ask(["Authorization: Basic eDp5"]), T0))

    def test_clients_cannot_command_the_cache(self) -> None:
        """A reload costs the server nothing, unless the operator lets clients ask for it."""
        stored = keep(["Cache-Control: max-age=60", "Age: 10", 'ETag: "x"'])
        wishes = ("Cache-Control: no-cache", "Cache-Control: max-age=5", "Cache-Control: min-fresh=55", "Pragma: no-cache")
        for wish in wishes:
            self.assertIs(self.use(stored, 0, wish), Use.FRESH, wish)
            self.assertIs(self.use(stored, 0, wish, settings=Settings(honour_request_directives=True)), Use.REVALIDATE, wish)
        for wish in ("Cache-Control: max-age=10", "Cache-Control: min-fresh=50", "Cache-Control: max-stale", "Pragma: foo"):
            self.assertIs(self.use(stored, 0, wish, settings=Settings(honour_request_directives=True)), Use.FRESH, wish)
        self.assertFalse(only_if_cached(ask(["Cache-Control: only-if-cached"]), Settings()))
        self.assertTrue(only_if_cached(ask(["Cache-Control: only-if-cached"]), Settings(honour_request_directives=True)))

    def test_ca_09_clock_steps(self) -> None:
        """A clock that steps back makes nobody younger than he was; one that steps forward makes copies stale."""
        stored = keep(["Cache-Control: max-age=60", "Age: 10", 'ETag: "x"'])
        self.assertEqual([stored.age(T0 + step) for step in (-86400, 0, 5, 3600)], [10, 10, 15, 3610])
        self.assertIs(self.use(stored, -3600), Use.FRESH)
        self.assertIs(self.use(stored, 3600), Use.REVALIDATE)

    def test_vary(self) -> None:
        """A copy is for those who ask with the same values, or without the field like the first one did."""
        stored = keep(["Cache-Control: max-age=60", "Vary: Foo, Bar"], request=ask(["Foo: 1"]))
        self.assertTrue(matches(stored, ask(["Foo: 1", "Baz: 7"])))
        for other in (["Foo: 2"], [], ["Foo: 1", "Bar: 1"], ["Foo: 1", "Foo: 1"]):
            self.assertFalse(matches(stored, ask(other)), other)

    def test_wider_vary(self) -> None:
        """Where a URL was seen to vary by more, the copy is chosen by all of it."""
        request, response = ask(["Foo: 1", "Bar: 2"]), answer(["Cache-Control: max-age=60", "Vary: Foo"])
        verdict = storable(request, response, Settings(), T0, T0)
        assert isinstance(verdict, Freshness)
        stored = store(request, response, verdict, T0, keys.Variants((b"bar",)).widened(verdict.vary))
        assert stored is not None
        self.assertEqual((stored.vary, stored.selecting), ((b"bar", b"foo"), (b"2", b"1")))


class LimitTests(SynchronousTestCase):
    def test_tags_are_bounded(self) -> None:
        """An answer with more tags than can be kept is not kept at all: a purge would miss it."""
        self.assertIs(self.judged([f"Surrogate-Key: {' '.join(map(str, range(129)))}"]), Refused.TAGS)
        self.assertIs(self.judged([f"Cache-Tag: {'x' * 1025}"]), Refused.TAGS)
        self.assertIsInstance(self.judged([f"Surrogate-Key: {' '.join(map(str, range(128)))}"]), Freshness)

    def test_selecting_values_are_bounded(self) -> None:
        """A request cannot fill the cache with one huge value after another, and spoils nothing for the next one."""
        refused = self.judged(["Vary: foo"], ask(["Foo: " + "x" * 5000]))
        self.assertIs(refused, Refused.SELECTING)
        assert isinstance(refused, Refused)
        self.assertTrue(refused.is_of_request)
        self.assertFalse(Refused.PRIVATE.is_of_request)

    def test_date_is_added(self) -> None:
        """A server without a clock: the moment of arrival is what clients see (RFC 9110 6.6.1)."""
        stored = keep(["Content-Length: 5", "Cache-Control: max-age=60"], bare=True)
        self.assertIn((b"Date", b"Thu, 01 Jan 2026 00:00:00 GMT"), list(stored.fields()))

    def judged(self, fields: list[str], request: Any = None) -> Freshness | Refused:
        return storable(request or ask(), answer(["Cache-Control: max-age=60", *fields]), Settings(), T0, T0)
