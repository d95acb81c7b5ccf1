"""What an order leaves on disk and says when it fails; orders themselves are tested with a real authority (tests/system/test_tls.py)."""

from __future__ import annotations

import os

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Acme
from twistedproxy.supervisor.acme_client import NotIssued, new_key, order, write_secret


class Clients(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _tmp(self, tmp_path):
        self.tmp = tmp_path

    def test_secrets_are_written_at_once_and_for_nobody_else(self):
        file = self.tmp / "acme" / "a.pem"
        write_secret(str(file), b"one")
        inode = file.stat().st_ino
        write_secret(str(file), b"two")
        self.assertEqual((file.read_bytes(), file.stat().st_mode & 0o777), (b"two", 0o600))
        self.assertNotEqual(file.stat().st_ino, inode)
        self.assertEqual(os.listdir(file.parent), ["a.pem"])
        self.assertEqual(file.parent.stat().st_mode & 0o777, 0o700)

    def test_an_authority_out_of_reach_is_named(self):
        """And the account's key, made for the first order, is kept for the next one."""
        account = str(self.tmp / "account.key")
        told = []
        for _ in range(2):
            with self.assertRaises(NotIssued) as caught:
                order(Acme("https://127.0.0.1:1/dir"), account, ["a.example"], lambda *a: told.append(a))
            self.assertIn("https://127.0.0.1:1/dir", str(caught.exception))
        self.assertEqual(told, [])
        self.assertEqual(os.stat(account).st_mode & 0o777, 0o600)

    def test_every_key_is_a_new_one(self):
        self.assertNotEqual(new_key(), new_key())
        self.assertIn(b"PRIVATE KEY", new_key())
