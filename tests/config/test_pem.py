"""Every bad certificate file is named for what is wrong with it."""

from __future__ import annotations

import time

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import pem


class Pems(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def said(self, judge, *arguments):
        with self.assertRaises(pem.BadPem) as caught:
            judge(*arguments)
        return str(caught.exception)

    def judge(self, chain: bytes):
        pem.judge_chain(pem.certificates(chain), time.time())

    def test_a_good_pair_is_good(self):
        made = self.authority.make("a", ("a.example", "10.0.0.1"))
        chain = pem.certificates(pem.read(str(made.cert)))
        pem.judge_chain(chain, time.time())
        pem.judge_pair(chain, made.key_pem)
        self.assertEqual(pem.facts(chain[0]).names, ("a.example", "10.0.0.1"))
        self.assertTrue(abs(pem.facts(chain[0]).not_after - time.time() - 60 * 86400) < 60)

    def test_missing_half_written_and_foreign_files(self):
        made = self.authority.make("a", ("a.example",))
        self.assertIn("no such file", self.said(pem.read, "/nowhere"))
        self.assertIn("is a directory", self.said(pem.read, "/tmp"))
        self.assertIn("is cut off", self.said(pem.certificates, made.chain_pem[:200]))
        self.assertIn("is cut off", self.said(pem.private_key, made.key_pem[:60]))
        self.assertIn("damaged", self.said(pem.certificates, made.chain_pem.replace(made.chain_pem[100:140], b"A" * 40)))
        self.assertIn("it is empty", self.said(pem.certificates, b""))
        self.assertIn("it has PRIVATE KEY", self.said(pem.certificates, made.key_pem))
        self.assertIn("it is not PEM", self.said(pem.certificates, b"\x30\x82"))
        self.assertIn("no private key", self.said(pem.private_key, made.chain_pem))

    def test_time_and_order_of_the_chain(self):
        self.assertIn("has expired on 20", self.said(self.judge, self.authority.make("o", ("a.example",), begins=-9, ends=-1).chain_pem))
        self.assertIn("not valid before", self.said(self.judge, self.authority.make("f", ("a.example",), begins=2).chain_pem))
        between = self.authority.make("between", (), is_ca=True)
        leaf = self.authority.make("leaf", ("a.example",), issuer=between)
        self.judge(leaf.chain_pem)
        parts = leaf.chain_pem.split(b"-----END CERTIFICATE-----\n")
        turned = parts[1] + b"-----END CERTIFICATE-----\n" + parts[0] + b"-----END CERTIFICATE-----\n"
        said = self.said(self.judge, turned)
        self.assertIn("wrong order", said)
        self.assertIn("CN=a.example", said)
        self.assertIn("which must come first", self.said(pem.judge_pair, pem.certificates(turned), leaf.key_pem))

    def test_keys(self):
        one, other = self.authority.make("one", ("a.example",)), self.authority.make("other", ("b.example",))
        self.assertIn("is not the key of the certificate (CN=a.example)", self.said(pem.judge_pair, [one.certificate], other.key_pem))
        locked = self.authority.make("locked", ("a.example",), password=b"secret")
        said = self.said(pem.private_key, locked.key_pem)
        self.assertIn("protected by a password", said)
        self.assertIn("openssl pkey", said)

    def test_names(self):
        self.assertTrue(pem.covers(("*.a.example",), "x.a.example"))
        self.assertTrue(pem.covers(("*.a.example",), "*.a.example"))
        self.assertFalse(pem.covers(("*.a.example",), "a.example"))
        self.assertEqual(pem.names_of(self.authority.make("plain", ()).certificate), ("plain",))
