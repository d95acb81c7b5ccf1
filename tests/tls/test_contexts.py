"""What every handshake has in common, looked at from both ends in memory."""

from __future__ import annotations

import ssl

import pytest
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.tls.contexts import Pair, client_context, server_context


def shake(server: SSL.Context, client: ssl.SSLContext, name: str = "a.example", session=None):
    """Both ends after the handshake; raises what the client saw."""
    ours = SSL.Connection(server, None)
    ours.set_accept_state()
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    for _ in range(6):
        for step in (theirs.do_handshake, ours.do_handshake):
            try:
                step()
            except (ssl.SSLWantReadError, SSL.WantReadError):
                pass
            sent = to_server.read()
            if sent:
                ours.bio_write(sent)
            try:
                to_client.write(ours.bio_read(65536))
            except SSL.WantReadError:
                pass
    ours.send(b"x")
    to_client.write(ours.bio_read(65536))
    theirs.read(1)  # tickets come before it
    return ours, theirs


class Contexts(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority
        made = authority.make("a", ("a.example",))
        self.pair = Pair(made.chain_pem, made.key_pem)

    def client(self, least=ssl.TLSVersion.TLSv1_2, most=ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        context.minimum_version, context.maximum_version = least, most
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def test_modern_versions_only_and_http_1_1(self):
        _, theirs = shake(server_context(self.pair, (b"http/1.1",)), self.client())
        self.assertEqual((theirs.version(), theirs.selected_alpn_protocol()), ("TLSv1.3", "http/1.1"))
        _, theirs = shake(server_context(self.pair, ()), self.client(most=ssl.TLSVersion.TLSv1_2))
        self.assertEqual(theirs.version(), "TLSv1.2")
        self.assertRegex(theirs.cipher()[0], "^ECDHE-.*(GCM|CHACHA20)")
        with self.assertRaises((ssl.SSLError, SSL.Error)):
            shake(server_context(self.pair, (), min_version="1.3"), self.client(most=ssl.TLSVersion.TLSv1_2))

    def test_old_ciphers_are_refused(self):
        for cipher in ("AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256"):
            client = self.client(most=ssl.TLSVersion.TLSv1_2)
            client.set_ciphers(cipher)
            with self.assertRaises((ssl.SSLError, SSL.Error), msg=cipher):
                shake(server_context(self.pair, ()), client)

    def test_a_session_of_one_site_is_not_resumed_on_another(self):
        """RT-06: resumption works, but only where the session was made."""
        one, other = server_context(self.pair, ()), server_context(self.pair, ())
        client = self.client()
        _, theirs = shake(one, client)
        session = theirs.session
        self.assertTrue(shake(one, client, session=session)[1].session_reused)
        self.assertFalse(shake(other, client, session=session)[1].session_reused)

    def test_the_chain_that_clients_get_is_what_the_file_holds(self):
        """Nothing is added to it, not even an authority that happens to be known here as that of the clients."""
        for chain in (self.pair.chain, self.pair.chain + self.authority.ca.read_bytes()):
            server = SSL.Connection(server_context(Pair(chain, self.pair.key), (), client_ca=self.authority.ca.read_bytes()), None)
            server.set_accept_state()
            client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
            client.set_connect_state()
            for one, other in ((client, server), (server, client)):
                with self.assertRaises(SSL.WantReadError):
                    one.do_handshake()
                other.bio_write(one.bio_read(65536))
            client.do_handshake()
            self.assertEqual(len(client.get_peer_cert_chain()), chain.count(b"BEGIN CERTIFICATE"))

    def test_clients_without_the_right_certificate_do_not_get_in(self):
        context = server_context(self.pair, (), client_ca=self.authority.ca.read_bytes())
        with self.assertRaises((ssl.SSLError, SSL.Error)):
            shake(context, self.client())
        stranger = self.authority.make("stranger", ("c.example",), issuer=None)
        client = self.client()
        client.load_cert_chain(stranger.cert, stranger.key)
        with self.assertRaises((ssl.SSLError, SSL.Error)):
            shake(context, client)
        friend = self.authority.make("friend", ("c.example",))
        client = self.client()
        client.load_cert_chain(friend.cert, friend.key)
        ours, _ = shake(context, client)
        self.assertEqual(ours.get_peer_certificate(as_cryptography=True), friend.certificate)

    def test_TL_01_no_renegotiation_and_no_compression(self):
        """Neither with clients nor with servers."""
        options = server_context(self.pair, ()).set_options(0)
        self.assertTrue(options & SSL.OP_NO_RENEGOTIATION)
        self.assertTrue(options & SSL.OP_NO_COMPRESSION)
        self.assertTrue(client_context(None, None, ()).set_options(0) & SSL.OP_NO_RENEGOTIATION)

    def test_a_pair_does_not_show_its_key(self):
        self.assertNotIn("PRIVATE", repr(self.pair))
