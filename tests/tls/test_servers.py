"""TLS with servers: what is trusted, which name counts, and what is said when it is not the right one."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import ServerTls
from twistedproxy.tls.contexts import Pair, server_context
from twistedproxy.tls.servers import MissingMaterial, ServerTlsUse


class Servers(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority
        self.vault = {("ca", ""): Pair(authority.ca.read_bytes(), b"")}

    def shake(self, made, use, address):
        """The client's connection and what was wrong, "" for nothing."""
        server = SSL.Connection(self.context if made is None else server_context(Pair(made.chain_pem, made.key_pem), ()), None)
        if made is not None:
            self.context = server.get_context()
        server.set_accept_state()
        client = use.connection(None, address)
        for _ in range(6):
            for one, other in ((client, server), (server, client)):
                try:
                    one.do_handshake()
                except SSL.WantReadError:
                    pass
                except SSL.Error:
                    return client, use.why(client) or "broken"
                try:
                    other.bio_write(one.bio_read(65536))
                except SSL.WantReadError:
                    pass
        server.send(b"x")
        client.bio_write(server.bio_read(65536))
        client.recv(1)
        self.seen = server
        return client, use.mismatch(client, address)

    def wrong(self, made, address, **spec):
        return self.shake(made, ServerTlsUse(ServerTls(**{"ca": "ca"} | spec), self.vault), address)[1]

    def test_TL_03_names_and_addresses_are_verified(self):
        """DNS name, IP address, and a name of the operator's own; the common name counts for nothing."""
        made = self.authority.make("s", ("app.internal", "10.0.0.1"))
        self.assertEqual(self.wrong(made, "app.internal:443"), "")
        self.assertEqual(self.wrong(made, "10.0.0.1:443"), "")
        self.assertEqual(self.wrong(made, "10.9.9.9:443", name="app.internal"), "")
        self.assertEqual(self.wrong(made, "unix:/run/x", name="app.internal"), "")
        for address in ("other.internal:443", "10.0.0.2:443"):
            said = self.wrong(made, address)
            self.assertIn("for app.internal, 10.0.0.1, not for " + address.split(":")[0], said)
        self.assertIn("no name at all", self.wrong(self.authority.make("app.internal", ()), "app.internal:443"))

    def test_TL_03_every_refusal_says_why(self):
        for made, word in (
            (self.authority.make("self", ("a.example",), issuer=None), "self-signed"),
            (self.authority.make("old", ("a.example",), begins=-9, ends=-1), "has expired on 20"),
            (self.authority.make("soon", ("a.example",), begins=1), "not valid yet"),
        ):
            self.assertIn(word, self.wrong(made, "a.example:443"))
        for name in ("a.example\0.evil.example", "*.example\0"):  # what is behind the NUL, and what is before it, count for nothing
            self.assertNotEqual(self.wrong(self.authority.make("nul", (name,)), "a.example:443"), "")
        stranger = self.authority.make("stranger", (), issuer=None, is_ca=True)
        self.assertIn("do not trust", self.wrong(self.authority.make("s", ("a.example",), issuer=stranger), "a.example:443"))

    def test_anybody_will_do_only_when_asked_for(self):
        made = self.authority.make("self", ("x.example",), issuer=None)
        self.assertEqual(self.wrong(made, "a.example:443", verify=False), "")

    def test_sni_is_the_name_and_never_an_ip(self):
        made = self.authority.make("s", ("app.internal", "10.0.0.1"))
        self.wrong(made, "app.internal:443")
        self.assertEqual(self.seen.get_servername(), b"app.internal")
        self.wrong(made, "10.0.0.1:443")
        self.assertIsNone(self.seen.get_servername())

    def test_sessions_are_resumed_and_forgotten_with_the_terms(self):
        made = self.authority.make("s", ("app.internal",))
        use = ServerTlsUse(ServerTls(ca="ca"), self.vault)
        client, _ = self.shake(made, use, "app.internal:443")
        use.remember("app.internal:443", client)
        again, wrong = self.shake(None, use, "app.internal:443")
        self.assertEqual(wrong, "")
        self.assertEqual(again.master_key(), again.get_session() and again.master_key())
        self.assertIn("app.internal:443", use._sessions)
        self.assertEqual(ServerTlsUse(ServerTls(ca="ca"), self.vault)._sessions, {})

    def test_files_that_are_not_there_yet_are_said_so(self):
        with self.assertRaises(MissingMaterial):
            ServerTlsUse(ServerTls(ca="elsewhere"), self.vault)
