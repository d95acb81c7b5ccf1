"""TLS on loopback sockets, against Python's own ssl module: bytes arrive, ends are told apart, nothing hangs."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.trial.unittest import TestCase

from twistedproxy.errors import BadHello, TlsFailed
from twistedproxy.net.handshake import ServerHandshake
from twistedproxy.net.tls_transport import TlsTransport
from twistedproxy.tls.contexts import Pair, server_context


def make_pair(name="a.example") -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, SHA256())
    )  # fmt: skip
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(certificate.public_bytes(Encoding.PEM), pem)


PAIR = make_pair()


class Peer:
    """A blocking TLS client in a thread."""

    def __init__(self, address, talk, **options):
        self.result = None
        self.error = None
        self._thread = threading.Thread(target=self._run, args=(address, talk, options), daemon=True)
        self._thread.start()

    def _run(self, address, talk, options):
        context = ssl.create_default_context(cadata=PAIR.chain.decode())
        context.minimum_version = options.get("least", ssl.TLSVersion.TLSv1_2)
        context.maximum_version = options.get("most", ssl.TLSVersion.TLSv1_3)
        try:
            with (
                socket.create_connection(address, timeout=5) as raw,
                context.wrap_socket(raw, server_hostname="a.example", suppress_ragged_eofs=False) as tls,
            ):
                self.result = talk(tls)
        except Exception as e:
            self.error = e

    @property
    def is_over(self):
        return not self._thread.is_alive()


class TlsTransports(TestCase):
    def setUp(self):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listening.close)
        self.address = self.listening.getsockname()
        self.context = server_context(PAIR, (b"http/1.1",))
        self.transport = None
        self.failed = None

    def accept(self, prefaces=(), timeout_s=5.0):
        sock, _ = self.listening.accept()
        sock.setblocking(False)
        self.recorder = self.fakes.Recorder()

        def done(transport):
            self.transport = transport
            transport.start(self.recorder)

        def failed(error, sock):
            self.failed = error
            sock.close()

        handshake = ServerHandshake(
            self.loop.reactor, self.loop.wheel, sock, "127.0.0.1", 1, 30.0, done, failed, choose=lambda hello: self.context,
            prefaces=prefaces, timeout_s=timeout_s,
        )  # fmt: skip
        handshake.begin()
        return handshake

    def serve(self, talk, **options):
        self.peer = Peer(self.address, talk, **options)
        self.accept()
        self.loop.until(lambda: self.transport or self.failed)
        self.assertIsInstance(self.transport, TlsTransport, self.failed)
        return self.transport

    def test_bytes_go_both_ways_in_both_versions(self):
        """What a client writes arrives, and what we write arrives there, also when it is many records."""
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            self.transport = None
            up, down = os.urandom(300_000), os.urandom(300_000)

            def talk(tls, up=up, down=down):
                tls.sendall(up)
                got = b""
                while len(got) < len(down):
                    got += tls.recv(65536)
                return got == down

            transport = self.serve(talk, most=version, least=version)
            transport.write(down[:10])
            for at in range(10, len(down), 70_000):
                transport.write(down[at : at + 70_000])
            self.loop.until(lambda up=up: len(self.recorder.received) == len(up) and self.peer.is_over)
            self.assertEqual(bytes(self.recorder.received), up)
            self.assertTrue(self.peer.result, self.peer.error)
            transport.abortConnection()

    def test_TL_07_closing_says_goodbye_and_truncation_is_an_error(self):
        """A client sees an orderly end when we close; when the client cuts the connection without one, that is no EOF."""
        transport = self.serve(lambda tls: (tls.recv(10), tls.recv(10)))
        transport.write(b"bye")
        transport.loseConnection()
        self.loop.until(lambda: self.peer.is_over)
        self.assertEqual(self.peer.result, (b"bye", b""), self.peer.error)  # b"": close_notify; a bare FIN would raise

        self.transport = None
        self.serve(lambda tls: (tls.send(b"x"), tls.recv(1)) and socket.socket(fileno=tls.detach()).close())
        self.transport.write(b"y")
        self.loop.until(lambda: "lost" in self.recorder.events)
        self.assertNotIn("eof", self.recorder.events)
        self.assertIn("close_notify", str(self.recorder.reason.value))

    def test_the_peers_goodbye_is_eof_and_we_may_still_answer(self):
        def talk(tls):
            tls.send(b"question")
            raw = tls.unwrap()  # sends close_notify, waits for ours
            raw.close()
            return True

        transport = self.serve(talk)
        self.loop.until(lambda: "eof" in self.recorder.events)
        self.assertEqual(bytes(self.recorder.received), b"question")
        transport.loseConnection()
        self.loop.until(lambda: self.peer.is_over)
        self.assertTrue(self.peer.result, self.peer.error)

    def test_TL_07_a_client_that_reads_nothing_holds_neither_close_nor_descriptor(self):
        """Close with megabytes waiting and a client that takes none of it: over within the 5 s of closing (faults F2)."""
        gate = threading.Event()
        self.addCleanup(gate.set)
        transport = self.serve(lambda tls: gate.wait(20))
        while not transport.buffered:
            transport.write(bytes(65536))
        transport.loseConnection()
        self.assertFalse(transport.is_closed)
        self.loop.travel(5.5)
        self.loop.until(lambda: transport.is_closed)
        gate.set()

    def test_reading_pauses_and_goes_on(self):
        gate = threading.Event()
        transport = self.serve(lambda tls: (tls.sendall(bytes(400_000)), gate.wait(5)))
        transport.pauseProducing()
        before = len(self.recorder.received)
        self.loop.turns()
        self.assertEqual(len(self.recorder.received), before)
        transport.resumeProducing()
        self.loop.until(lambda: len(self.recorder.received) == 400_000)
        gate.set()

    def test_plain_http_is_known_for_what_it_is(self):
        with socket.create_connection(self.address) as client:
            self.accept()
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            self.loop.until(lambda: self.failed)
        self.assertIsInstance(self.failed, BadHello)
        self.assertEqual(self.failed.seen[:5], b"GET /")

    def test_TL_02_the_deadline_is_absolute(self):
        """A client that sends its hello byte by byte is cut at the limit."""
        with socket.create_connection(self.address) as client:
            self.accept(timeout_s=10.0)
            for byte in b"\x16\x03\x01\x02\x00\x01":
                client.sendall(bytes((byte,)))
                self.loop.travel(1.9)
                self.loop.turns()
            self.loop.until(lambda: self.failed)
        self.assertIsInstance(self.failed, TlsFailed)
        self.assertIn("10 s", str(self.failed))

    def test_a_preface_is_taken_off_to_the_byte(self):
        """A PROXY header or SSLRequest in front of TLS is read without touching what follows."""

        def preface(data, sock):
            return (4, True) if len(data) >= 4 else None

        def run():
            with socket.create_connection(self.address, timeout=5) as raw:
                raw.sendall(b"PR")
                raw.sendall(b"OX")
                context = ssl.create_default_context(cadata=PAIR.chain.decode())
                with context.wrap_socket(raw, server_hostname="a.example") as tls:
                    tls.send(b"hello")
                    tls.recv(1)

        thread = threading.Thread(target=run)
        thread.start()
        self.accept(prefaces=(preface,))
        self.loop.until(lambda: self.transport and self.recorder.received == b"hello")
        self.transport.write(b"x")
        thread.join(5)

    def test_TL_01_renegotiation_is_refused(self):
        """A TLS 1.2 client may ask for a new handshake as often as it likes; nothing comes of it."""

        def run():
            with socket.create_connection(self.address, timeout=5) as raw:
                raw.settimeout(None)
                context = SSL.Context(SSL.TLS_METHOD)
                context.set_max_proto_version(SSL.TLS1_2_VERSION)
                tls = SSL.Connection(context, raw)
                tls.set_connect_state()
                tls.do_handshake()
                keys = tls.master_key()
                for _ in range(20):
                    try:
                        tls.renegotiate()
                        tls.do_handshake()
                    except SSL.Error as e:
                        refusals.append(e)
                done.append(tls.master_key() == keys)

        refusals, done = [], []
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.accept()
        self.loop.until(lambda: done)
        thread.join(5)
        self.assertEqual(len(refusals), 20)
        self.loop.until(lambda: "lost" in self.recorder.events)
        self.assertEqual((done, bytes(self.recorder.received)), ([True], b""))

    def test_TL_01_a_flood_of_key_updates_costs_little_and_stops_nothing(self):
        """TLS 1.3: openssl s_client asks us for new keys 300 times; the bytes that follow still arrive and are answered."""
        program = shutil.which("openssl")
        if program is None:
            self.skipTest("openssl is not installed")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # s_client takes one command from each read
        for end in (ours, theirs):
            self.addCleanup(end.close)
        host, port = self.address
        client = subprocess.Popen(
            [program, "s_client", "-connect", f"{host}:{port}", "-tls1_3", "-servername", "a.example"],
            stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.addCleanup(client.wait)
        self.addCleanup(client.kill)
        self.accept()
        self.loop.until(lambda: self.transport or self.failed)
        began = time.process_time()

        def flood():
            for _ in range(300):
                ours.send(b"K\n")
            ours.send(b"hello\n")

        threading.Thread(target=flood, daemon=True).start()
        self.loop.until(lambda: b"hello" in self.recorder.received)
        self.assertLess(time.process_time() - began, 2.0)
        self.assertFalse(self.transport.is_closed)
        self.transport.abortConnection()

    def test_TL_07_nobody_waits_for_the_peers_goodbye(self):
        """50 clients that never answer our close_notify: their connections are closed at once, none of their descriptors is left."""
        before = len(os.listdir("/proc/self/fd"))
        sides = []
        for _ in range(50):
            gate = threading.Event()
            transport = self.serve(lambda tls, gate=gate: gate.wait(20))
            sides.append((transport, gate))
            self.transport = None
        for transport, _ in sides:
            transport.loseConnection()
        self.loop.until(lambda: all(transport.is_closed for transport, _ in sides))
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before + 50)  # what is left are the clients' own
        for _, gate in sides:
            gate.set()
