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

    def test_TL_05_bad_files_are_named_where_they_are_configured(self):
        """Half-written, of another pair, expired, upside down, with a password, missing: each at its line, with what to do."""
        for what, cert, key, blamed, words in self.authority.bad_pairs():
            found = self.site(f'{{ cert = "{cert}", key = "{key}" }}')
            ours = [item for item in found if item[0].endswith(blamed)]
            self.assertEqual([(path, line) for path, _, line in ours], [(f'sites."a.example".tls.{blamed}', 4)], (what, found))
            self.assertIn(words, ours[0][1], what)
            self.assertIn((cert if blamed == "cert" else key).name, ours[0][1], what)
            self.assertEqual(len(found), 2 if what in {"files swapped", "chain upside down"} else 1, (what, found))
        found = self.site('{ cert = "a.pem", key = "a.key", client_ca = "a.key" }')
        self.assertIn("holds no certificate", found[0][1])
        for of in ('[tcp."127.0.0.1:2"]\npool = "web"\ntls', "[pools.s]\nservers = ['x:1']\ntls", "[certificates]\nfiles"):
            pair = '{ cert = "a.pem", key = "b.key" }'
            found = self.problems(f'{of} = {f"[{pair}]" if of.endswith("files") else pair}\n[sites.x]\n"/" = "web"\n')
            self.assertEqual(["is not the key" in message for _, message, _ in found], [True], (of, found))

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

    def test_a_directory_that_is_named_must_be_there(self):
        directories = '[certificates.directories.staging]\ndirectory = "https://x/"\n'
        self.assertEqual(self.site('{ auto = "staging" }', directories), [])
        ((path, message, line),) = self.site('{ auto = "stagin" }', directories)
        self.assertEqual((path, line), ('sites."a.example".tls.auto', 4))
        self.assertIn("Did you mean 'staging'?", message)
        self.assertIn('write tls = "auto"', self.site('{ auto = "staging" }')[0][1])
        found = self.site('{ auto = "staging" }', '[certificates.directories.staging]\ndirectory = "http://x/"\nca = "no.pem"\n')
        self.assertEqual({p for p, _, _ in found}, {"certificates.directories.staging.directory", "certificates.directories.staging.ca"})

    def test_an_authority_must_find_a_listener_for_its_challenge(self):
        closed = '[listen]\nhttp = []\nhttps = ["127.0.0.1:8443"]\n'
        self.assertIn("listen.http is empty", self.site('"auto"', closed)[0][1])
        self.assertEqual(self.site('"auto"', closed + '[certificates]\nacme = { challenge = "tls-alpn-01" }\n'), [])
        self.assertEqual(self.site('"auto"'), [])

    def test_parts_that_do_not_fit(self):
        for text, path, word in (
            ('[tcp."127.0.0.1:2"]\npool = "web"\nsni = { a = "web" }', 'tcp."127.0.0.1:2".sni', "in place of pool"),
            ('[tcp."127.0.0.1:2"]\ntls = { cert = "a.pem", key = "a.key" }\nsni = { a = "web" }', 'tcp."127.0.0.1:2".sni', "keep one"),
            ('[certificates]\nacme = { directory = "http://x/" }\n[sites.x]\n"/" = "web"', "certificates.acme.directory", "https://"),
            ('[pools.u]\nservers = ["unix:/x"]\ntls = true\n[sites.x]\n"/" = "u"', "pools.u.tls", "no host name"),
            ('[pools.t]\nservers = ["x:1"]\ntls = true\n[tcp."127.0.0.1:2"]\nsni = { a = "t" }', 'tcp."127.0.0.1:2".sni.a', "TLS already"),
            ('[tcp."127.0.0.1:2"]\nprotocol = "mysql"\nsni = { a = "web" }', 'tcp."127.0.0.1:2".sni', "the server speaks before"),
            ('[tcp."127.0.0.1:2"]\nprotocol = "mysql"\npool = "web"', 'tcp."127.0.0.1:2".protocol', "only with TLS"),
        ):
            found = self.problems(text + "\n")
            self.assertEqual([p for p, _, _ in found], [path], found)
            self.assertIn(word, found[0][1])

    def test_databases_that_are_asked_for_tls(self):
        """What would fail only when the first client comes, or speak TLS to a server that does not, is refused here."""
        pool = '[pools.db]\nservers = ["127.0.0.1:2"]\n'
        mysql = pool + 'tls = { starttls = "mysql" }\n'
        tcp = '[tcp."127.0.0.1:3"]\npool = "db"\n'
        for text, path, word in (
            (pool + 'tls = true\nhealth = "postgres"\n' + tcp, "pools.db.tls", 'add starttls = "postgres"'),
            (pool + 'tls = { starttls = "mysql" }\nhealth = "redis"\n[sites.x]\n"/" = "web"\n', "pools.db.tls.starttls", "speaks redis"),
            (mysql + tcp, 'tcp."127.0.0.1:3".pool', 'add protocol = "mysql"'),
            (
                pool + "tls = true\n" + tcp + 'protocol = "mysql"\ntls = { cert = "a.pem", key = "a.key" }\n',
                'tcp."127.0.0.1:3".pool',
                "without",
            ),
            (mysql + '[sites.x]\n"/" = "db"\n', 'sites.x."/"', "speak mysql"),
        ):
            found = self.problems(text)
            self.assertEqual([p for p, _, _ in found], [path], found)
            self.assertIn(word, found[0][1])
        self.assertEqual(self.problems(mysql + 'health = "mysql"\n' + tcp + 'protocol = "mysql"\n'), [])
        self.assertEqual(self.problems(pool + 'health = "postgres"\ntls = { starttls = "postgres" }\n' + tcp), [])
