"""The TLS keys by themselves: short forms and what excludes what."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import tls
from twistedproxy.config.kinds import Origin

ORIGIN = Origin("/base")


def read(kind, value):
    return TypeAdapter(kind).validate_python(value, context=ORIGIN)


class Keys(SynchronousTestCase):
    def test_a_word_stands_for_a_source(self):
        for word in ("auto", "files"):
            self.assertEqual(read(tls.SiteTlsOrText, word), read(tls.SiteTlsOrText, {"from": word}))
        with self.assertRaisesRegex(ValidationError, "mean 'auto'"):
            read(tls.SiteTlsOrText, "autp")

    def test_a_directory_may_be_named_and_asked_for_either_challenge(self):
        self.assertEqual(read(tls.SiteTlsOrText, {"auto": "staging"}).auto, "staging")
        self.assertEqual(read(tls.Acme, {}).challenge, "http-01")
        made = read(tls.Certificates, {"directories": {"staging": {"directory": "https://x/", "challenge": "tls-alpn-01"}}})
        self.assertEqual(made.directories["staging"].challenge, "tls-alpn-01")
        with self.assertRaisesRegex(ValidationError, "mean 'tls-alpn-01'"):
            read(tls.Acme, {"challenge": "tls-alpn"})

    def test_one_source_only_and_both_files(self):
        both = {"cert": "a", "key": "b"}
        two = ({"from": "auto"} | both, {"auto": "x"} | both, {"auto": "x", "from": "auto"})
        for value in ({}, {"cert": "a"}, {"key": "a"}, *two, {"min_version": "1.1"} | both):
            with self.assertRaises(ValidationError, msg=value):
                read(tls.SiteTlsOrText, value)
        self.assertEqual(read(tls.SiteTlsOrText, {"cert": "a", "key": "b"}).cert, "/base/a")

    def test_to_the_servers_true_is_all_defaults_and_verifies(self):
        self.assertTrue(read(tls.ServerTlsOrFlag, True).verify)
        self.assertIsNone(read(tls.ServerTlsOrFlag, False))
        for value in ({"cert": "a"}, {"name": "*.x"}, {"verify": "no"}):
            with self.assertRaises(ValidationError, msg=value):
                read(tls.ServerTlsOrFlag, value)
