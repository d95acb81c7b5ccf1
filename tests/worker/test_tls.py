"""A worker's TLS parts: made of what the supervisor read, kept while nothing changes, never a way around TLS."""

from __future__ import annotations

from random import Random

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import Wheel
from twistedproxy.config.changes import CertificateRead, ChallengeSet, HandshakeChallengeSet
from twistedproxy.config.model import Address, KeyPair, Model, Pool, Server, ServerTls, Site, SiteTls
from twistedproxy.pool.pool import Pool as RunningPool
from twistedproxy.tls.client_hello import ClientHello
from twistedproxy.worker.tls import TlsParts


class Idle:
    def __init__(self):
        self.is_closed = False

    def close(self):
        self.is_closed = True


class Parts(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def setUp(self):
        self.parts = TlsParts(lambda: 0.0)

    def read(self, made, cert="a", key="a.key"):
        self.assertTrue(self.parts.take([CertificateRead(cert, key, made.chain_pem.decode(), made.key_pem.decode() if key else "")]))

    def pool(self, tls=None):
        spec = Pool("web", (Server(Address("127.0.0.1:1")),), tls=tls)
        return RunningPool(spec, seconds=lambda: 0.0, wheel=Wheel(lambda: 0.0), random=Random(1)), spec

    def test_a_site_has_its_certificate_as_soon_as_it_was_read(self):
        model = Model(sites={"a.example": Site("a.example", ("a.example",), tls=SiteTls("pair", KeyPair("a", "a.key")))})
        self.parts.configure(model, {}, [])
        self.assertIsNone(self.parts.sites.choose(ClientHello("a.example", ())))
        self.read(self.authority.make("a", ("a.example",)))
        self.parts.configure(model, {}, [])
        self.assertIsNotNone(self.parts.sites.choose(ClientHello("a.example", ())))

    def test_challenges_come_and_go(self):
        self.assertTrue(self.parts.take([ChallengeSet("t", "answer")]))
        self.assertEqual(self.parts.challenges, {"t": "answer"})
        self.assertTrue(self.parts.take([ChallengeSet("t", "")]))
        self.assertEqual(self.parts.challenges, {})
        self.assertFalse(self.parts.take([]))

    def test_what_an_authority_wants_to_see_in_a_handshake_comes_and_goes(self):
        """For that name and that protocol alone, also before there is any certificate."""
        made = self.authority.make("c", ("a.example",))
        self.assertTrue(self.parts.take([HandshakeChallengeSet("a.example", made.chain_pem.decode(), made.key_pem.decode())]))
        self.parts.configure(Model(), {}, [])
        asked = ClientHello("a.example", (b"acme-tls/1",))
        self.assertIsNotNone(self.parts.sites.challenge(asked))
        for other in (
            ClientHello("b.example", (b"acme-tls/1",)),
            ClientHello("a.example", (b"acme-tls/1", b"http/1.1")),
            ClientHello("", ()),
        ):
            self.assertIsNone(self.parts.sites.challenge(other), other)
        self.assertTrue(self.parts.take([HandshakeChallengeSet("a.example", "", "")]))
        self.parts.configure(Model(), {}, [])
        self.assertIsNone(self.parts.sites.challenge(asked))

    def test_TL_03_a_change_of_terms_never_reuses_a_connection(self):
        """Idle ones are closed, those in use go to a list nobody looks at; the same terms touch nothing."""
        pool, spec = self.pool()
        server = pool.server("127.0.0.1:1")
        lax = ServerTls(verify=False)
        for tls, is_kept in ((None, True), (lax, False), (lax, True), (ServerTls(), False), (None, False)):
            idle = Idle()
            server.idle.append(idle)
            before = server.idle
            _, spec = self.pool(tls)
            self.parts.fit(pool, spec)
            self.assertEqual((idle.is_closed, server.idle is before), (not is_kept, is_kept), tls)
            server.idle.clear()

    def test_without_its_files_a_pool_refuses_rather_than_go_in_the_clear(self):
        pool, spec = self.pool(ServerTls(ca="ca"))
        self.parts.fit(pool, spec)
        self.assertIsNotNone(pool.tls)
        self.assertIsNone(pool.tls.use)
        self.read(self.authority.root, "ca", "")
        self.parts.fit(pool, spec)
        self.assertIsNotNone(pool.tls.use)

    def test_a_listener_keeps_its_context_until_its_certificate_changes(self):
        tls = SiteTls("pair", KeyPair("a", "a.key"))
        self.assertIsNone(self.parts.listener(tls))
        self.read(self.authority.make("a", ("a.example",)))
        first = self.parts.listener(tls)
        self.assertIs(self.parts.listener(tls), first)
        self.read(self.authority.make("b", ("a.example",)))
        self.assertIsNot(self.parts.listener(tls), first)
