"""TLS in a configuration: every bad file and every part that does not fit is reported at its line."""

from __future__ import annotations

import unittest.mock

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import loader
from twistedproxy.errors import ConfigurationError

TOP = '[pools.web]\nservers = ["127.0.0.1:1"]\n'


class Checks(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority
        authority.make("a", ("a.example",))
        authority.make("b", ("b.example",))

    def problems(self, text, **how):
        try:
            loader.parse(TOP + text, base_dir=str(self.authority.directory), **how)
        except ConfigurationError as e:
            return [(p.path, p.message, p.line) for p in e.problems]
        return []

    def site(self, tls, more=""):
        return self.problems(f'[sites."a.example"]\ntls = {tls}\n"/" = "web"\n{more}')

    def test_good_ones_are_silent(self):
        self.assertEqual(self.site('{ cert = "a.pem", key = "a.key", client_ca = "root.pem", min_version = "1.3" }'), [])
        self.assertEqual(self.site('"files"', '[certificates]\nfiles = [{ cert = "a.pem", key = "a.key" }]\n'), [])
        self.assertEqual(self.problems('[tcp."127.0.0.1:2"]\nsni = { "a.example" = "web", "*" = "web" }\n'), [])

    def test_bad_files_are_named_where_they_are_configured(self):
        self.authority.make("old", ("a.example",), begins=-9, ends=-1)
        self.authority.make("locked", ("a.example",), password=b"x")
        (self.authority.directory / "half.pem").write_bytes((self.authority.directory / "a.pem").read_bytes()[:100])
        for tls, key, word in (
            ('{ cert = "no.pem", key = "a.key" }', "cert", "no such file"),
            ('{ cert = "a.pem", key = "b.key" }', "key", "is not the key of the certificate"),
            ('{ cert = "half.pem", key = "a.key" }', "cert", "is cut off"),
            ('{ cert = "old.pem", key = "old.key" }', "cert", "has expired"),
            ('{ cert = "locked.pem", key = "locked.key" }', "key", "protected by a password"),
            ('{ cert = "a.pem", key = "a.key", client_ca = "a.key" }', "client_ca", "holds no certificate"),
        ):
            found = self.site(tls)
            self.assertEqual([(path, line) for path, _, line in found], [(f'sites."a.example".tls.{key}', 4)], found)
            self.assertIn(word, found[0][1])

    def test_a_text_from_somebody_else_tells_nothing_of_the_disk(self):
        """`config/check` over the API opens no file, so it cannot be used to find out what is there."""
        text = '[sites."a.example"]\ntls = { cert = "/etc/passwd", key = "/nowhere" }\n"/" = "web"\n'
        self.assertEqual(self.problems(text, allow_placeholders=False), [])

    def test_files_must_have_the_names(self):
        found = self.site('"files"', '[certificates]\nfiles = [{ cert = "b.pem", key = "b.key" }]\n')
        self.assertIn("they have b.example", found[0][1])
        self.assertIn("needs certificates.files", self.site('"files"')[0][1])

    def test_auto_needs_single_hosts_and_its_packages(self):
        found = self.problems('[sites."*.a.example"]\ntls = "auto"\n"/" = "web"\n')
        self.assertIn("cannot make a certificate for '*.a.example'", found[0][1])
        with unittest.mock.patch("importlib.util.find_spec", return_value=None):
            self.assertIn("pip install 'twistedproxy[acme]'", self.site('"auto"')[0][1])

    def test_parts_that_do_not_fit(self):
        for text, path, word in (
            ('[tcp."127.0.0.1:2"]\npool = "web"\nsni = { a = "web" }', 'tcp."127.0.0.1:2".sni', "in place of pool"),
            ('[tcp."127.0.0.1:2"]\ntls = { cert = "a.pem", key = "a.key" }\nsni = { a = "web" }', 'tcp."127.0.0.1:2".sni', "keep one"),
            ('[certificates]\nacme = { directory = "http://x/" }\n[sites.x]\n"/" = "web"', "certificates.acme.directory", "https://"),
            ('[pools.u]\nservers = ["unix:/x"]\ntls = true\n[sites.x]\n"/" = "u"', "pools.u.tls", "no host name"),
            ('[pools.t]\nservers = ["x:1"]\ntls = true\n[tcp."127.0.0.1:2"]\nsni = { a = "t" }', 'tcp."127.0.0.1:2".sni.a', "TLS already"),
        ):
            found = self.problems(text + "\n")
            self.assertEqual([p for p, _, _ in found], [path], found)
            self.assertIn(word, found[0][1])
