"""Which regular expressions may stand in the file."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.patterns import LONG_PATH, longest_path, parse_pattern

GOOD = ["^/app/(.*)$", "^/u/([0-9]{1,5})$", "^/(a|b)/x$", "/x?y?", "^/a/([^/]+)/b/(.*)$", "^/[a-z]{8}$", "(?:abc){2}", "\\.php$"]
BAD = {
    "(a+)+$": "inside a repetition",
    "(a|bc)*": "choice inside",
    "^(.*)(.*)(.*)": "repeats 3 times",
    "(.*)/(.*)": "begin it with ^",
    "(a)\\1": "back reference",
    "(?=a)b": "look-around",
    "(": "is not a regular expression",
    "a?b?c?d?e?f?g?": "more than 6 choices",
    "a{100}": "more than 64",
    "ü": "ASCII",
    "x" * 600: "longer than 512",
}


class PatternTests(SynchronousTestCase):
    def test_what_a_path_needs_is_allowed(self) -> None:
        """Everyday patterns pass."""
        for text in GOOD:
            with self.subTest(text):
                parse_pattern(text)

    def test_what_could_hang_is_refused_with_a_reason(self) -> None:
        """Exponential and cubic patterns never get into a running proxy."""
        for text, why in BAD.items():
            with self.subTest(text):
                error = self.assertRaises(ValueError, parse_pattern, text)
                self.assertIn(why, str(error))

    def test_only_square_patterns_bound_the_path(self) -> None:
        """One repetition is linear and may see any path."""
        self.assertEqual((longest_path(parse_pattern("^/a(.*)")), longest_path(parse_pattern("^(.*)/(.*)"))), (0, LONG_PATH))
