"""Paths rewritten by regular expressions."""

from __future__ import annotations

import time

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Rewrite
from twistedproxy.errors import BadHead
from twistedproxy.http.rewrite import LONG_PATH, Rewriting

TABLE = [
    ("^/app/(.*)$", "/$1", b"/app/x/y", b"a=1", (b"/x/y", b"a=1")),
    ("^/app/(.*)$", "/$1", b"/other", b"", None),
    ("^/app(/.*)?$", "/new$1", b"/app", b"", (b"/new", b"")),
    ("^/u/([0-9]+)$", "/user?id=$1", b"/u/42", b"a=1", (b"/user", b"id=42&a=1")),
    ("^/p$", "/q$$r", b"/p", b"", (b"/q$r", b"")),
    ("^/d(.*)$", "/x$1", b"/d/a", b"", (b"/x/a", b"")),
    ("^/d(/.*)$", "/x/$1", b"/d/a", b"", (b"/x/a", b"")),  # the slashes are merged: "//" begins a host elsewhere
]


class RewriteTests(SynchronousTestCase):
    def test_what_comes_out(self) -> None:
        """Groups, query, literal dollars; what does not match is left alone."""
        for match, to, path, query, wanted in TABLE:
            with self.subTest(match, to=to):
                self.assertEqual(Rewriting(Rewrite(match, to)).apply(path, query), wanted)

    def test_the_worst_allowed_pattern_is_quick_on_the_longest_path(self) -> None:
        """Two repetitions take the square of a length that is bounded; longer paths are 414."""
        rewriting = Rewriting(Rewrite("^(.*)/b/(.*)/c$", "/$1$2"))
        began = time.process_time()
        self.assertIsNone(rewriting.apply(b"/b" * (LONG_PATH // 2), b""))
        self.assertLess(time.process_time() - began, 0.5)
        with self.assertRaises(BadHead) as caught:
            rewriting.apply(b"/b" * LONG_PATH, b"")
        self.assertEqual(caught.exception.status, 414)
