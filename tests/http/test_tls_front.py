"""The HTTPS listener as its users see it: handshakes are counted, timed and cut; plain HTTP gets a hint; 421 where terms differ."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Certificates, KeyPair, Site, SiteTls
from twistedproxy.http.tls_front import HttpsFront
from twistedproxy.tls.certificates import SiteCertificates
from twistedproxy.tls.contexts import Pair


class TlsFronts(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def serve(self, hosts=("a.example",), demands=None, **proxy):
        """The bed's proxy, with its front replaced by one that speaks TLS."""
        origin = self.bed.proxy(**proxy)
        made = self.authority.make("a", hosts)
        pair = KeyPair("a", "a.key")
        vault = {pair.key_names: Pair(made.chain_pem, made.key_pem), ("ca", ""): Pair(self.authority.ca.read_bytes(), b"")}
        sites = [Site(host, (host,), tls=SiteTls("pair", pair, **(demands or {}).get(host, {}))) for host in hosts]
        certificates = SiteCertificates(sites, Certificates(), vault)
        plain = self.bed.front
        plain.__class__ = HttpsFront
        plain.certificates, plain._arrivals = certificates, set()
        self.bed.listeners[0]._on_connection = plain.accept
        self.front = plain
        return origin

    def talk(self, data, name="a.example", certificate=None, count=1):
        """A TLS client in a thread; the list gets what it read until the end, or the error."""
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        if certificate is not None:
            context.load_cert_chain(certificate.cert, certificate.key)
        raw, got = self.bed.client().sock, []
        raw.setblocking(True)
        raw.settimeout(5)

        def run():
            try:
                with context.wrap_socket(raw, server_hostname=name) as tls:
                    tls.sendall(data)
                    text = b""
                    while piece := tls.recv(65536):
                        text += piece
                    got.append(text)
            except OSError as e:
                got.append(e)

        threading.Thread(target=run, daemon=True).start()
        return got

    def answered(self, origin, got):
        server = origin.accept()
        request = server.request()
        server.send(self.fakes.answer(b"ok"))
        self.bed.until(lambda: got)
        return request, got[0]

    def test_a_request_over_tls_is_told_so_to_the_server(self):
        origin = self.serve()
        got = self.talk(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
        request, text = self.answered(origin, got)
        self.assertEqual(request.get(b"X-Forwarded-Proto"), b"https")
        self.assertTrue(text.startswith(b"HTTP/1.1 200"), text)  # and the end was an orderly one: close_notify

    def test_plain_http_gets_a_hint_and_rubbish_nothing(self):
        """TL-06."""
        self.serve()
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertIn(b"https://", client.response().body)
        client.close()
        rubbish = self.bed.client(b"\x00\x01\x02\x03\x04\x05")
        rubbish.breaks()
        self.bed.until(lambda: self.front.open == 0)
        self.assertEqual(self.bed.rejected(), {"bad_client_hello": 2})

    def test_handshakes_count_and_are_cut_at_their_deadline(self):
        """TL-02: 10 s from accept, whatever trickles in."""
        self.serve()
        slow = self.bed.client(b"\x16\x03\x01")
        self.bed.until(lambda: self.front.open == 1)
        self.assertEqual(self.front.counts.open, 1)
        self.bed.travel(9)
        slow.send(b"\x02")
        self.bed.travel(1.5)
        self.assertEqual((self.front.open, self.front.counts.open), (0, 0))
        self.assertEqual(self.bed.rejected(), {"tls_timeout": 1})

    def test_cut_ends_handshakes_too(self):
        self.serve()
        self.bed.client()
        self.bed.until(lambda: self.front.open == 1)
        self.front.cut()
        self.assertEqual(self.front.open, 0)

    def test_no_common_protocol_is_an_alert(self):
        """A client that speaks HTTP/2 only is told so in the handshake, not by rubbish afterwards."""
        self.serve()
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        context.set_alpn_protocols(["h2"])
        out = ssl.MemoryBIO()
        with self.assertRaises(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.example").do_handshake()
        client = self.bed.client(out.read())
        self.assertEqual(client.take(7), b"\x15\x03\x03\x00\x02\x02\x78")

    def test_a_site_with_other_terms_is_not_asked_for_over_this_handshake(self):
        """421: nothing reaches a server; the same host by its own name, with a certificate, is served."""
        origin = self.serve(("a.example", "m.example"), {"m.example": {"client_ca": "ca"}})
        got = self.talk(b"GET / HTTP/1.1\r\nHost: m.example\r\n\r\n")
        self.bed.until(lambda: got)
        self.assertTrue(got[0].startswith(b"HTTP/1.1 421"), got)
        self.assertEqual(origin.count, 0)
        friend = self.authority.make("friend", ("c.example",))
        got = self.talk(b"GET / HTTP/1.1\r\nHost: m.example\r\nConnection: close\r\n\r\n", "m.example", friend)
        self.assertIn(b"200", self.answered(origin, got)[1])
        stranger = self.authority.make("stranger", ("c.example",), issuer=None)
        got = self.talk(b"GET / HTTP/1.1\r\nHost: m.example\r\n\r\n", "m.example", stranger)
        self.bed.until(lambda: got)
        self.assertIsInstance(got[0], OSError)

    def test_the_client_behind_another_proxy_is_who_the_header_says(self):
        """ID-02: the PROXY header stands before TLS and is taken off to the byte."""
        origin = self.serve(accept_proxy=("127.0.0.0/8",))
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        client, got = self.bed.client(b"PROXY TCP4 192.0.2.7 10.0.0.1 5555 8443\r\n"), []
        client.sock.setblocking(True)
        client.sock.settimeout(5)

        def run():
            with context.wrap_socket(client.sock, server_hostname="a.example") as tls:
                tls.sendall(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
                got.append(tls.recv(1000))

        threading.Thread(target=run, daemon=True).start()
        request, _ = self.answered(origin, got)
        self.assertEqual(request.get(b"X-Forwarded-For"), b"192.0.2.7")
        self.assertEqual(request.get(b"X-Forwarded-Port"), b"8443")
