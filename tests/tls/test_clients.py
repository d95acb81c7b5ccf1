"""What the proxy knows of a client that showed a certificate."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.tls.certificates import Choice
from twistedproxy.tls.clients import MOST_TOLD, client_tls


class Connection:
    def __init__(self, certificate):
        self._certificate = certificate

    def get_protocol_version(self):
        return 0x304

    def get_protocol_version_name(self):
        return "TLSv1.3"

    def get_peer_certificate(self, as_cryptography):
        assert as_cryptography
        return self._certificate


class Clients(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def test_subject_names_and_fingerprint(self):
        made = self.authority.make("c", ("client.example", "10.0.0.1"))
        tls = client_tls(Connection(made.certificate), "a.example", Choice(None, ("ca", "1.2"), True))
        self.assertEqual((tls.version, tls.name, tls.subject), ("TLSv1.3", "a.example", "CN=client.example"))
        self.assertEqual(tls.names, ("DNS:client.example", "IP:10.0.0.1"))
        self.assertEqual(tls.sha256, hashlib.sha256(made.certificate.public_bytes(Encoding.DER)).hexdigest())

    def test_nothing_is_claimed_of_who_was_not_asked(self):
        tls = client_tls(Connection(None), "", Choice(None, ("", "1.2"), False))
        self.assertEqual((tls.subject, tls.names, tls.sha256), ("", (), ""))

    def test_clients_without_a_certificate_are_told_apart_by_version_and_name_only(self):
        choice = Choice(None, ("", "1.2"), False)
        first, again, other = (client_tls(Connection(None), name, choice) for name in ("a.example", "a.example", "b.example"))
        self.assertIs(first, again)
        self.assertEqual((first.version, first.name, other.name), ("TLSv1.3", "a.example", "b.example"))
        old = Connection(None)
        old.get_protocol_version, old.get_protocol_version_name = lambda: 0x303, lambda: "TLSv1.2"
        self.assertEqual(client_tls(old, "a.example", choice).version, "TLSv1.2")

    def test_clients_that_make_names_up_fill_no_memory(self):
        choice = Choice(None, ("", "1.2"), False)
        for n in range(2000):
            self.assertEqual(client_tls(Connection(None), f"{n}.example", choice).name, f"{n}.example")
        self.assertLessEqual(len(choice.told), MOST_TOLD)

    def test_a_subject_cannot_add_lines_to_a_request(self):
        """Whoever signs certificates may not be whoever runs the proxy."""
        made = self.authority.make("c", ("x\r\nX-Admin: 1",))
        tls = client_tls(Connection(made.certificate), "", Choice(None, ("ca", "1.2"), True))
        self.assertNotIn("\n", tls.subject + "".join(tls.names))
