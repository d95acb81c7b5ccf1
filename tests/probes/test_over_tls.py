"""Health checks of pools with `tls`: they see what real connections would see."""

from __future__ import annotations

import os
import shutil

import pytest
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import ContextFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy.config.model import KeyPair, ServerTls, endpoint
from twistedproxy.config.pem import BadPem
from twistedproxy.probes.dialogue import Finding, ask
from twistedproxy.probes.mysql import MysqlCheck
from twistedproxy.probes.over_tls import AskMysql, AskPostgres, OverTls, PoolTls, Unwilling
from twistedproxy.probes.redis import RedisCheck
from twistedproxy.probes.tcp import TcpCheck
from twistedproxy.stream.mysql import NOBODY, packet, request_of
from twistedproxy.stream.postgres import SSL_REQUEST
from twistedproxy.tls.contexts import Pair, server_context

GREETING = b"\x0a8.0\0" + b"\x01\0\0\0" + b"12345678\0" + bytes((0xFE, 0xF7, 45, 2, 0, 0xFF, 0xDF, 21)) + bytes(10) + b"123456789012\0p\0"
OFFER = GREETING[:19] + b"\xff" + GREETING[20:]


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
        use._problems[outer.clientConnectionForTLS(None)] = "its certificate (CN=x) has expired"
        self.assertEqual(outer.broken(SSL.Error()), Finding(False, "its certificate (CN=x) has expired"))
        plain = OverTls(RedisCheck(), use, "127.0.0.1:1")
        self.assertIn("TLS", plain.broken(SSL.Error([("x", "", "wrong version number")])).reason)

    def test_databases_are_asked_for_tls_in_their_own_way(self):
        """MySQL's greeting is kept for the check inside TLS, whose answer then has the number that is due; what says no is down."""
        pg = AskPostgres()
        self.assertEqual((pg.first, pg.heard(b"S")), (SSL_REQUEST, b""))
        for said, word in ((b"N", "answered N"), (b"Sx", "oddly")):
            with self.assertRaisesRegex(Unwilling, word):
                pg.heard(said)
        use = PoolTls(ServerTls(verify=False, starttls="mysql")).use()
        outer = OverTls(MysqlCheck(), use, "127.0.0.1:1")
        asked = outer._ask
        self.assertIsNone(asked.heard(packet(0, OFFER)[:20]))
        self.assertEqual(asked.heard(packet(0, OFFER)), packet(1, request_of(NOBODY)))
        outer.clientConnectionForTLS(None)
        self.assertIsNone(outer.begin())
        self.assertEqual(bytes(outer.outgoing), packet(2, NOBODY))
        for said, word in (
            (packet(0, OFFER) + b"x", "spoke on"),
            (packet(0, b"\xff\x10\x04no"), "refuses: no"),
            (packet(0, GREETING), "no TLS"),
        ):
            with self.assertRaisesRegex(Unwilling, word):
                AskMysql().heard(said)
        outer.unwilling = "speaks no TLS"
        self.assertEqual((outer.ended().reason, outer.broken(OSError()).reason), ("speaks no TLS", "speaks no TLS"))

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


class OnTheWireTests(TestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    async def test_a_server_of_a_stranger_is_down_with_the_reason_that_requests_get(self):
        """Over a real connection, where Twisted has a hand in the handshake; and one that we trust is up."""
        use = PoolTls(ServerTls(ca=str(self.authority.ca), name="a.example")).use()
        for made, ok, word in (
            (self.authority.make("self", ("a.example",), issuer=None), False, "its certificate (CN=a.example) is self-signed"),
            (self.authority.make("old", ("a.example",), begins=-9, ends=-1), False, "has expired on 20"),
            (self.authority.make("good", ("a.example",)), True, ""),
        ):
            found = await self.finding(made, use)
            self.assertEqual((found.ok, word in found.reason), (ok, True), found)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def finding(self, made, use):
        class Context(ContextFactory):
            def getContext(self):
                return server_context(Pair(made.chain_pem, made.key_pem), ())

        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        port = reactor.listenSSL(0, factory, Context(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        address = f"127.0.0.1:{port.getHost().port}"
        asked = Deferred.fromCoroutine(ask(reactor, endpoint(address), OverTls(TcpCheck(), use, address)))
        return await asked.addTimeout(10, reactor)
