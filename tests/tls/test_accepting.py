"""Connections with clients that are made by a short way behave as pyOpenSSL's own do."""

from __future__ import annotations

import gc
import socket
import ssl
import threading
import weakref

import pytest
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.tls import accepting
from twistedproxy.tls.accepting import accept
from twistedproxy.tls.contexts import Pair, server_context

OURS = (b"http/1.1", b"odd")


class Accepting(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority
        self.made = authority.make("a", ("a.example",))

    def context(self, protocols=OURS, **how):
        return server_context(Pair(self.made.chain_pem, self.made.key_pem), protocols, **how)

    def talk(self, context, offered=(), pair=None):
        """One whole visit; gives our connection and what the client says was chosen."""
        sock, far = socket.socketpair()
        self.addCleanup(sock.close)
        client = ssl.create_default_context(cafile=str(self.authority.ca))
        if offered:
            client.set_alpn_protocols(offered)
        if pair is not None:
            client.load_cert_chain(pair.cert, pair.key)
        seen = []

        def visit():
            with client.wrap_socket(far, server_hostname="a.example") as tls:
                seen.append(tls.selected_alpn_protocol())
                tls.sendall(b"ping")
                seen.append(tls.recv(10))
                seen.append(tls.recv(10))

        visitor = threading.Thread(target=visit, daemon=True)
        visitor.start()
        connection = accept(context, sock)
        connection.do_handshake()
        self.assertEqual(connection.recv(10), b"ping")
        connection.send(b"pong")
        connection.shutdown()
        visitor.join(5)
        self.assertEqual(seen[1:], [b"pong", b""])
        return connection, seen[0]

    def test_this_pyopenssl_is_known(self):
        """When a new one is not, handshakes still work and cost more; somebody should look at it."""
        self.assertTrue(accepting.knows_pyopenssl())
        self.assertIs(type(self.talk(self.context())[0]), accepting._Accepted)

    def test_the_best_protocol_that_both_speak_is_chosen_either_way(self):
        offers = ([], ["h2"], ["http/1.1"], ["h2", "http/1.1"], ["odd", "http/1.1"], ["http/1.1x", "odd"], ["http/1.0", "http/1.11"])
        for is_known in (True, False):
            self.patch(accepting, "knows_pyopenssl", lambda is_known=is_known: is_known)
            context = self.context()
            chosen = [self.talk(context, offer)[1] for offer in offers]
            self.assertEqual(chosen, [None, None, "http/1.1", "http/1.1", "http/1.1", "odd", None], is_known)
            self.assertIsNone(self.talk(self.context(()), ["http/1.1"])[1])

    def test_what_is_asked_of_a_connection_later_is_answered(self):
        friend = self.authority.make("friend", ("c.example",))
        connection, _ = self.talk(self.context(client_ca=self.authority.ca.read_bytes()), pair=friend)
        self.assertEqual(connection.get_peer_certificate(as_cryptography=True), friend.certificate)
        self.assertEqual(connection.get_protocol_version_name(), "TLSv1.3")
        self.assertEqual(connection.get_alpn_proto_negotiated(), b"")
        self.assertIsNone(connection.get_app_data())

    def test_an_unknown_pyopenssl_does_the_work_itself(self):
        self.patch(accepting, "knows_pyopenssl", lambda: False)
        self.assertIs(type(self.talk(self.context())[0]), SSL.Connection)

    def test_a_connection_that_is_dropped_is_freed_at_once(self):
        """Its memory in OpenSSL too, and without the collector."""
        gc.disable()
        self.addCleanup(gc.enable)
        connection, _ = self.talk(self.context())
        inner = weakref.ref(connection._ssl)
        outer = weakref.ref(connection)
        del connection
        self.assertEqual((outer(), inner()), (None, None))
