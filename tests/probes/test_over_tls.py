"""Health checks of pools with `tls`: they see what real connections would see."""

from __future__ import annotations

import os
import shutil

import pytest
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import KeyPair, ServerTls
from twistedproxy.config.pem import BadPem
from twistedproxy.probes.dialogue import Finding
from twistedproxy.probes.over_tls import OverTls, PoolTls
from twistedproxy.probes.redis import RedisCheck


class OverTlsTests(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def test_the_inner_dialogue_goes_on_as_without_tls(self):
        use = PoolTls(ServerTls(verify=False)).use()
        inner = RedisCheck()
        outer = OverTls(inner, use, "127.0.0.1:1")
        outer.clientConnectionForTLS(None)
        self.assertIsNone(outer.begin())
        self.assertIn(b"PING", bytes(outer.outgoing))
        outer.received += b"+PONG\r\n"
        self.assertTrue(outer.read().ok)

    def test_a_refused_certificate_is_the_reason(self):
        """Not just "handshake failed"."""
        use = PoolTls(ServerTls(ca=str(self.authority.ca))).use()
        outer = OverTls(RedisCheck(), use, "127.0.0.1:1")
        outer.clientConnectionForTLS(None).get_app_data().append("its certificate (CN=x) has expired")
        self.assertEqual(outer.broken(SSL.Error()), Finding(False, "its certificate (CN=x) has expired"))
        plain = OverTls(RedisCheck(), use, "127.0.0.1:1")
        self.assertIn("TLS", plain.broken(SSL.Error([("x", "", "wrong version number")])).reason)

    def test_files_are_read_anew_when_they_change(self):
        made = self.authority.make("c", ("client.example",))
        tls = PoolTls(ServerTls(ca=str(self.authority.ca), pair=KeyPair(str(made.cert), str(made.key))))
        first = tls.use()
        self.assertIs(tls.use(), first)
        other = self.authority.make("d", ("client.example",))
        shutil.copy(other.cert, made.cert)
        shutil.copy(other.key, made.key)
        os.utime(made.cert, (1, 1))
        self.assertIsNot(tls.use(), first)
        os.unlink(made.cert)
        with self.assertRaises((OSError, BadPem)):
            tls.use()
