"""One spelling per path and host; the vectors (RT-01, RT-03) run through the codecs in test_head."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.paths import canonical_path, coding_rule, host_of
from twistedproxy.http.refusals import REFUSALS, refuse_request, refuse_response

SEGMENTS = st.sampled_from(
    [b"/", b"//", b"/.", b"/..", b"/a", b"b", b"%61", b"%2e", b"%2E%2e", b"%25", b"%c3%a9", b";", b"|", b"..;", b"%3b", b".",
     b"%7e", b"[", b"=", b"%2f"]
)  # fmt: skip


class PathTests(SynchronousTestCase):
    @settings(max_examples=500, deadline=None)
    @given(st.lists(SEGMENTS, max_size=8))
    def test_RT_03_canonical_is_a_fixed_point(self, parts: list[bytes]) -> None:
        """What is forwarded (RT-04) is read the same again, and holds nothing a server might resolve once more."""
        path = canonical_path(b"/" + b"".join(parts))
        if isinstance(path, bytes):
            self.assertEqual(canonical_path(path), path)
            self.assertTrue(path.startswith(b"/"))
            self.assertNotIn(b"//", path)
            self.assertFalse({b".", b".."} & set(path.split(b"/")), path)
        else:
            self.assertIn(path, REFUSALS)

    def test_RT_01_hosts(self) -> None:
        """Spellings of one host are one host; what is none is None."""
        self.assertEqual({host_of(h) for h in (b"A.b", b"a.B.", b"a.b:80")}, {b"a.b"})
        self.assertEqual({host_of(h) for h in (b"[::1]", b"[0:0::1]:9")}, {b"[::1]"})
        for bad in (b"", b"a:b", b"a:123456", b"[]", b"[::g]", b"a_b@c", b"-" * 256, b"a\n", b"[::1]x"):
            self.assertIsNone(host_of(bad), bad)

    def test_SM_04_unknown_and_broken_codings_differ(self) -> None:
        """A coding we do not have is a 501; one that breaks the rules of chunked is a 400."""
        self.assertEqual(REFUSALS[coding_rule(b"gzip")][0], 501)
        self.assertEqual(REFUSALS[coding_rule(b"chunked, gzip")][0], 400)


class RefusalTests(SynchronousTestCase):
    def test_each_rule_is_told_apart(self) -> None:
        """No two rules say the same, and each sentence reaches client and log."""
        self.assertEqual(len({detail for _, _, detail in REFUSALS.values()}), len(REFUSALS))
        for rule, (status, reason, detail) in REFUSALS.items():
            error = refuse_request(rule)
            self.assertEqual((error.status, error.reason, error.detail), (status, reason, detail))
            self.assertIn(detail, refuse_response(rule).detail)
