"""Cache-Control, dates and ages: what is read, and that what cannot be read is never taken for permission."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache import control
from twistedproxy.http.cache.control import Directives, parse

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]
ask, answer = heads.ask, heads.answer

ODD = st.text(alphabet='",=\\; \tmax-ge0no-storepivatcu', max_size=60).map(lambda text: text.encode())


class DirectiveTests(SynchronousTestCase):
    def test_words_and_numbers(self) -> None:
        """Everything a message may say, in one field and in several."""
        said = parse(
            b"no-cache, private, public, must-revalidate, proxy-revalidate, must-understand, no-transform, immutable, only-if-cached, "
            b"max-age=1, s-maxage=2, stale-while-revalidate=3, stale-if-error=4, min-fresh=5, max-stale=6, no-store"
        )
        for name in ("no_cache", "private", "public", "must_revalidate", "proxy_revalidate", "must_understand",
                     "only_if_cached", "no_store"):  # fmt: skip
            self.assertIs(getattr(said, name), True, name)
        numbers = (said.max_age, said.s_maxage, said.stale_while_revalidate, said.stale_if_error, said.min_fresh, said.max_stale)
        self.assertEqual(numbers, (1, 2, 3, 4, 5, 6))
        self.assertEqual(parse(b"max-stale").max_stale, control.MAX_DELTA)
        several = control.directives(answer(["Cache-Control: max-age=1", "Cache-Control: public"]))
        self.assertEqual((several.max_age, several.public), (1, True))
        self.assertIs(control.directives(answer()), control.NOTHING)

    def test_several_fields_are_not_mistaken_for_the_first(self) -> None:
        """Also when the first one alone has been seen before."""
        self.assertFalse(control.directives(answer(["Cache-Control: max-age=77"])).no_store)
        self.assertTrue(control.directives(answer(["Cache-Control: max-age=77", "Cache-Control: no-store"])).no_store)

    def test_fields_named(self) -> None:
        """no-cache and private with names are about these fields, with anything else about the whole answer."""
        said = parse(b'no-cache="Set-Cookie, X-a", private=X-B')
        self.assertEqual((said.no_cache, said.private, said.not_stored), (False, False, {b"set-cookie", b"x-a", b"x-b"}))
        for broken in (b'no-cache=""', b'no-cache=", "', b'no-cache="a b"', b"no-cache=", b"no-cache =a", b'no-cache="a"b'):
            self.assertTrue(parse(broken).no_cache, broken)

    def test_a_misspelt_prohibition_prohibits(self) -> None:
        """Whatever stands behind it."""
        for name, attribute in ((b"no-store", "no_store"), (b"private", "private"), (b"must-revalidate", "must_revalidate")):
            for rest in (b" x", b";", b'="', b'="a', b"@", b'"', b" = 1"):
                said = parse(b"max-age=5, " + name + rest)
                self.assertTrue(getattr(said, attribute) or said.no_store, name + rest)

    def test_limits(self) -> None:
        """A field of any size costs little and permits nothing."""
        self.assertIs(parse(b"max-age=1, " + b"x" * control.MAX_VALUE), control.UNREADABLE)
        self.assertIs(parse(b"a," * 65 + b"max-age=1"), control.UNREADABLE)
        self.assertEqual(parse(b"max-age=" + b"9" * 4000).max_age, control.MAX_DELTA)
        self.assertEqual(parse(b"max-age=" + b"0" * 3000 + b"7").max_age, 7)

    def test_what_is_remembered_is_bounded(self) -> None:
        """Ever new values do not fill the memory."""
        for number in range(3 * control.MAX_REMEMBERED):
            parse(b"max-age=%d" % number)
            control.http_date(b"nonsense %d" % number)
        self.assertLessEqual(len(control._directives), control.MAX_REMEMBERED)
        self.assertLessEqual(len(control._dates), control.MAX_REMEMBERED)
        parse(b"x=" + b"y" * 1000)
        self.assertNotIn(b"x=" + b"y" * 1000, control._directives)

    @settings(deadline=None, derandomize=True)
    @given(ODD)
    def test_anything_is_read(self, value: bytes) -> None:
        """No value raises anything, and none is read more leniently for having rubbish in front of a prohibition."""
        self.assertIsInstance(control._parse(value), Directives)
        self.assertTrue(control._parse(value.replace(b'"', b"") + b", no-store").no_store)

    @settings(deadline=None, derandomize=True)
    @given(ODD)
    def test_any_targeted_field_is_read(self, value: bytes) -> None:
        """It is valid as a whole, or not at all."""
        found = control._parse_targeted(value)
        self.assertIsInstance(found, (Directives, type(None)))


class TargetedTests(SynchronousTestCase):
    def said(self, *values: str) -> Directives | None:
        return control.targeted(answer([f"CDN-Cache-Control: {value}" for value in values]))

    def test_structured(self) -> None:
        """A dictionary of structured fields (RFC 9651), over several lines as well."""
        said = self.said("max-age=60, no-cache=?0", 'private="a, b", public;x=1, y=:YQ==:, z=1.5, s="\\""')
        assert said is not None
        self.assertEqual((said.max_age, said.public, said.no_cache, said.not_stored), (60, True, False, {b"a", b"b"}))
        self.assertEqual(getattr(self.said("max-age=-5"), "max_age", None), 0)
        self.assertEqual(getattr(self.said("max-age=999999999999999"), "max_age", None), control.MAX_DELTA)

    def test_not_structured(self) -> None:
        """Whatever breaks the grammar or has the wrong type is ignored as a whole."""
        for value in ("max-age=60,", "max-age=60 public", "max-age=", "max-age=+1", "max-age=1234567890123456", "Public", "max-age=x",
                      "max-age", "public=1", "no-store=x", "a=\"", "a=(1 2", "é", "max-age=?1", "max-age=60;", "private=1.5"):  # fmt: skip
            self.assertIsNone(self.said(value), value)
        self.assertIsNone(control.targeted(answer()))


class DateTests(SynchronousTestCase):
    def test_three_forms(self) -> None:
        """The form in use and the two obsolete ones (RFC 9110 5.6.7), whatever the case."""
        for value in (b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994",
                      b"sUN, 06 nOV 1994 08:49:37 gmt"):  # fmt: skip
            self.assertEqual(control.http_date(value), 784111777.0, value)
        self.assertEqual(control.http_date(b"Thu, 18 Aug 2050 02:01:18 GMT"), 2544400878.0)
        self.assertEqual(control.http_date(b"Fri, 31 Dec 9999 23:59:59 GMT"), 253402300799.0)

    def test_no_dates(self) -> None:
        """What is nearly a date is none."""
        for value in (b"0", b"", b"-1", b"Thu, 18 Aug 2050 02:01:18 UTC", b"Thu, 18 Aug 2050 02:01:18 AEST", b"Thu, 18 Aug 50 02:01:18 GMT",
                      b"Thu 18 Aug 2050 02:01:18 GMT", b"Thu,  18  Aug  2050  02:01:18  GMT", b"Thu, 18-Aug-2050 02:01:18 GMT",
                      b"Thu, 18 Aug 2050 02.01.18 GMT", b"Thu, 18 Aug 2050 2:01:18 GMT", b"Thu, 31 Feb 2050 02:01:18 GMT",
                      b"Thu, 18 Foo 2050 02:01:18 GMT", b"Thu, 18 Aug 2050 24:01:18 GMT",
                      b"Thu, 18 Aug 2050 02:01:18 GMT" * 2):  # fmt: skip
            self.assertIsNone(control.http_date(value), value)

    @settings(deadline=None, derandomize=True)
    @given(st.integers(min_value=0, max_value=253402300799))
    def test_round_trip(self, seconds: int) -> None:
        """What we write we read."""
        self.assertEqual(control.http_date(control.format_date(seconds)), seconds)

    def test_expires(self) -> None:
        """Absent, readable, and everything else, which is long ago."""
        self.assertIsNone(control.expires(answer()))
        self.assertEqual(control.expires(answer(["Expires: Sun, 06 Nov 1994 08:49:37 GMT"])), 784111777.0)
        self.assertEqual(control.expires(answer(["Expires: -1"])), 0.0)
