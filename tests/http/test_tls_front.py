"""The HTTPS listener as its users see it: handshakes are counted, timed and cut; plain HTTP gets a hint; 421 where terms differ."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Certificates, KeyPair, ServerTls, Site, SiteTls
from twistedproxy.http.tls_front import HttpsFront
from twistedproxy.net.tls_connector import TlsConnector
from twistedproxy.tls.certificates import ACME_TLS, SiteCertificates
from twistedproxy.tls.contexts import Pair, server_context
from twistedproxy.tls.servers import ServerTlsUse


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

    def test_TL_06_plain_http_gets_a_hint_and_rubbish_nothing(self):
        """And who speaks TLS to the port of plain HTTP is answered 400, which no TLS client takes for anything."""
        self.serve()
        client = self.bed.client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertIn(b"https://", client.response().body)
        client.close()
        rubbish = self.bed.client(b"\x00\x01\x02\x03\x04\x05")
        rubbish.breaks()
        self.bed.until(lambda: self.front.open == 0)
        self.assertEqual(self.bed.rejected(), {"bad_client_hello": 2})

    def test_TL_06_tls_on_the_plain_port_is_refused(self):
        self.bed.proxy()
        client = self.bed.client(self.greeting())
        self.assertEqual(client.response().status, 400)
        client.breaks()

    def greeting(self, name="a.example", protocols=()):
        """A ClientHello."""
        context = ssl.create_default_context()
        if name is None:
            context.check_hostname = False
        if protocols:
            context.set_alpn_protocols(protocols)
        out = ssl.MemoryBIO()
        with self.assertRaises(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
        return out.read()

    def test_TL_06_names_of_every_sort_end_in_a_certificate_or_an_alert(self):
        """No name, an IP address and the name of no site get the default certificate; a NUL in it, or 254 bytes, an alert."""
        self.serve()
        for name in (None, "192.0.2.1", "nobody.knows"):
            client = self.bed.client(self.greeting(name))
            self.assertEqual(client.take(3), b"\x16\x03\x03", name)  # a ServerHello
            client.reset()
        long = ".".join(["x" * 50] * 5)
        for greeting in (self.greeting().replace(b"a.example", b"a\0example"), self.greeting(long).replace(b"x.x", b"xxx")):
            client = self.bed.client(greeting)
            self.assertEqual(client.take(5), b"\x15\x03\x03\x00\x02")
            client.close()
        self.bed.until(lambda: self.front.open == 0)

    def test_TL_02_handshakes_count_and_are_cut_at_their_deadline(self):
        """10 s from accept, whatever trickles in, however many there are; others are served meanwhile."""
        origin = self.serve()
        slow = [self.bed.client(b"\x16\x03\x01") for _ in range(100)]
        self.bed.until(lambda: self.front.open == 100)
        self.assertEqual(self.front.counts.open, 100)
        self.bed.travel(9)
        for client in slow:
            client.send(b"\x02")
        got = self.talk(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
        self.assertIn(b"200 OK", self.answered(origin, got)[1])
        self.assertEqual(self.front.open, 100)
        self.bed.travel(1.5)
        self.assertEqual((self.front.open, self.front.counts.open), (0, 0))
        self.assertEqual(self.bed.rejected(), {"tls_timeout": 100})

    def test_cut_ends_handshakes_too(self):
        self.serve()
        self.bed.client()
        self.bed.until(lambda: self.front.open == 1)
        self.front.cut()
        self.assertEqual(self.front.open, 0)

    def test_TL_06_no_common_protocol_is_an_alert(self):
        """A client that speaks HTTP/2 only is told so in the handshake, not by rubbish afterwards."""
        self.serve()
        client = self.bed.client(self.greeting(protocols=["h2"]))
        self.assertEqual(client.take(7), b"\x15\x03\x03\x00\x02\x02\x78")

    def test_an_authority_sees_its_certificate_and_then_the_end(self):
        """tls-alpn-01 (RFC 8737): while it is awaited, for that name, with that protocol alone; it is no connection and asks nothing."""
        self.serve()
        challenge = self.authority.make("challenge", ("a.example",))
        context = server_context(Pair(challenge.chain_pem, challenge.key_pem), (ACME_TLS,))
        self.front.certificates._challenges = {"a.example": context}

        def look(*protocols):
            theirs = ssl.create_default_context(cafile=str(self.authority.ca))
            theirs.set_alpn_protocols(protocols)
            raw, got = self.bed.client().sock, []
            raw.setblocking(True)
            raw.settimeout(5)

            def run():
                try:
                    with theirs.wrap_socket(raw, server_hostname="a.example", suppress_ragged_eofs=False) as tls:
                        serial = int(tls.getpeercert()["serialNumber"], 16)
                        is_challenge = serial == challenge.certificate.serial_number
                        got.append((is_challenge, tls.selected_alpn_protocol(), tls.recv(1) if is_challenge else None))
                except OSError as e:
                    got.append(e)

            threading.Thread(target=run, daemon=True).start()
            self.bed.until(lambda: got)
            return got[0]

        self.assertEqual(look("acme-tls/1"), (True, "acme-tls/1", b""))
        self.assertEqual(look("acme-tls/1", "http/1.1"), (False, "http/1.1", None))
        self.bed.until(lambda: self.front.open == 0)
        self.assertEqual((self.front.counts.open, self.bed.rejected()), (0, {}))
        self.front.certificates._challenges = {}
        self.assertIsInstance(look("acme-tls/1"), ssl.SSLError)
        self.assertEqual(self.bed.rejected(), {"bad_client_hello": 1})

    def test_TL_07_a_body_that_a_server_cuts_off_is_no_whole_one(self):
        """FIN without close_notify in a body that only the end delimits: the client must see that something is missing."""
        made = self.authority.make("server", ("127.0.0.1",))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.cert, made.key)
        origin = self.bed.proxy()
        self.bed.pool.tls = TlsConnector("web", ServerTlsUse(ServerTls(verify=False), {}), self.bed.loop.reactor.seconds)
        for says_goodbye in (True, False):
            client = self.bed.client(self.fakes.get())
            raw = origin.accept().sock.dup()
            raw.setblocking(True)

            def serve(raw=raw, says_goodbye=says_goodbye):
                tls = context.wrap_socket(raw, server_side=True)
                tls.recv(65536)
                tls.sendall(b"HTTP/1.1 200 OK\r\n\r\npart")
                if says_goodbye:
                    with contextlib.suppress(OSError):
                        tls.unwrap()
                    tls.close()
                else:
                    plain = socket.socket(fileno=tls.detach())
                    with contextlib.suppress(OSError):  # ENOTCONN when the test has given up meanwhile: what it says is worth more
                        plain.shutdown(socket.SHUT_WR)
                    plain.close()

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            client.through(b"part\r\n")
            self.bed.until(lambda thread=thread: not thread.is_alive())
            origin.connections[-1].close()
            if says_goodbye:
                self.assertEqual(client.through(b"0\r\n\r\n"), b"0\r\n\r\n")
                client.close()
            else:
                client.breaks()
                self.assertEqual(client.rest, b"")

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
