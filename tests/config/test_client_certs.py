"""Certificates of clients, in rules."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import loader
from twistedproxy.errors import ConfigurationError

TOP = '[pools.web]\nservers = ["127.0.0.1:1"]\n[sites."a.example"]\n"/" = "web"\n'


class Rules(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority
        authority.make("a", ("a.example",))

    def site(self, tls, more):
        try:
            self.model = loader.parse(f"{TOP}tls = {tls}\n{more}", base_dir=str(self.authority.directory))
        except ConfigurationError as e:
            return [(p.path, p.message) for p in e.problems]
        return []

    def test_a_rule_about_certificates_needs_some(self):
        rule = '[[sites."a.example".rules]]\nwhen = { client_cert = WHAT }\npool = "web"\n'
        right = '{ subject = "*", san = ["DNS:*.x", "URI:spiffe://*"], sha256 = "' + "Ab:" * 31 + 'ab" }'
        tls = '{ cert = "a.pem", key = "a.key", client_ca = "root.pem" }'
        self.assertEqual(self.site(tls, rule.replace("WHAT", right)), [])
        said = dict(self.model.sites["a.example"].rules[0].when.client_cert)
        self.assertEqual(said["sha256"], ("ab" * 32,))
        found = self.site('{ cert = "a.pem", key = "a.key" }', rule.replace("WHAT", right))
        self.assertEqual([p for p, _ in found], ['sites."a.example".rules[0].when.client_cert'])
        for wrong, word in (("{}", "asks for nothing"), ('{ san = "*.x" }', ""), ('{ san = "x" }', "DNS:"), ('{ sha256 = "ab" }', "64")):
            found = self.site(tls, rule.replace("WHAT", wrong))
            self.assertEqual(bool(found), bool(word), wrong)
            self.assertIn(word, str(found))
