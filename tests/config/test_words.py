"""What operators read of a change is a sentence, never a dump of our own values."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.words import change_in_words, value_in_words

WEIGHT = {"kind": "set_weight", "pool": "web", "server": "a:1", "before": 1, "after": 5}


class WordsTests(SynchronousTestCase):
    def test_changes(self) -> None:
        """Kind, place, from what to what; a server that comes or goes is named, not taken apart."""
        server = {"address": "a:1", "weight": 1, "max_connections": None}
        for change, words in (
            (WEIGHT, "set_weight web a:1: 1 → 5"),
            ({"kind": "add_server", "pool": "web", "server": "a:1", "before": None, "after": server}, "add_server web a:1"),
            ({"kind": "remove_server", "pool": "web", "server": "a:1", "before": server, "after": None}, "remove_server web a:1"),
            ({"kind": "batch", "changes": [WEIGHT, WEIGHT]}, "set_weight web a:1: 1 → 5; set_weight web a:1: 1 → 5"),
            ({"kind": "replace_config", "changes": ["x: 1 → 2"]}, "file: x: 1 → 2"),
            ({"kind": "replace_config"}, "file: no value changed"),
            (
                {"kind": "set_split", "site": "s", "path": "/", "before": {"a": 9, "b": 1}, "after": {"a": 8, "b": 0}},
                "set_split s /: a=9 b=1 → a=8 b=0",
            ),
        ):
            self.assertEqual(change_in_words(change), words)

    def test_values(self) -> None:
        for value, words in (
            ({"weight": 3, "max_connections": None, "backup": True, "slow": False}, "weight=3 backup"),
            (None, "nothing"), (7, "7"), ("drain", "drain"), ({}, "nothing"),
        ):  # fmt: skip
            self.assertEqual(value_in_words(value), words)
