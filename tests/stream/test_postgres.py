"""PostgreSQL's request for TLS, from both sides, and what must not get past it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadHello
from twistedproxy.stream.postgres import GSS_REQUEST, SSL_REQUEST, Declining, Preface, SslRequest


class Prefaces(SynchronousTestCase):
    def setUp(self):
        self.sock, self.preface = self.fakes.Sink(), Preface()

    def test_tls_at_once_is_let_through_untouched(self):
        """Clients of anything else, and PostgreSQL's with sslnegotiation=direct."""
        self.assertEqual(self.preface(b"\x16\x03\x01", self.sock), (0, True))
        self.assertEqual((self.sock.sent, self.preface.was_postgres), (b"", False))

    def test_the_request_is_answered_when_it_is_complete(self):
        for end in range(1, 8):
            self.assertIsNone(self.preface(SSL_REQUEST[:end], self.sock))
        self.assertEqual(self.preface(SSL_REQUEST, self.sock), (8, True))
        self.assertEqual((self.sock.sent, self.preface.was_postgres), (b"S", True))

    def test_encryption_by_gssapi_is_declined_and_tls_asked_for_next(self):
        self.assertEqual(self.preface(GSS_REQUEST, self.sock), (8, False))
        self.assertEqual(self.preface(SSL_REQUEST, self.sock), (8, True))
        self.assertEqual(self.sock.sent, b"NS")

    def test_nothing_is_smuggled_in_and_nobody_comes_in_without_tls(self):
        """CVE-2021-23214: bytes behind the request; a start-up message in the clear; rubbish."""
        for data in (SSL_REQUEST + b"x", b"\0\0\0\x29\0\3\0\0user\0me\0", b"\0rubbish", b"\0\0\0\x10\x04\xd2\x16\x2e" + bytes(8)):
            with self.assertRaises(BadHello, msg=data):
                Preface()(data, self.sock)
        self.assertIn(b"sslmode=require", self.sock.sent)


class Declined(SynchronousTestCase):
    """Where only the servers have TLS, `sslmode=prefer` must find its way in the clear."""

    def begin(self, seen=b""):
        self.transport, self.peer = self.loop.transport()
        self.clear, self.failed = [], []
        reader = Declining(self.transport, self.loop.wheel, 3.0, self.clear.append, self.failed.append)
        reader.begin(seen)
        return reader

    def test_both_requests_are_declined_and_what_follows_is_the_servers(self):
        """In pieces, or behind a PROXY header that came in the same packet."""
        start_up = b"\0\0\0\x29\0\3\0\0user\0me\0"
        self.begin(GSS_REQUEST[:3])
        self.peer.sendall(GSS_REQUEST[3:])
        self.assertEqual(self.loop.read_all(self.peer, 1), b"N")
        self.peer.setblocking(True)
        self.peer.sendall(SSL_REQUEST[:7])
        self.loop.turns(3)
        self.peer.sendall(SSL_REQUEST[7:])
        self.assertEqual(self.loop.read_all(self.peer, 1), b"N")
        self.peer.setblocking(True)
        self.assertEqual(self.clear, [])
        self.peer.sendall(start_up)
        self.loop.until(lambda: self.clear)
        self.assertEqual(self.clear, [start_up])
        for said in (start_up, SSL_REQUEST + start_up, b"Q"):
            self.begin(said)
            self.assertEqual(self.clear, [said.removeprefix(SSL_REQUEST)])

    def test_nobody_is_waited_for_for_ever_and_no_request_answered_twice(self):
        self.begin(SSL_REQUEST * 2)
        self.assertEqual(self.clear, [SSL_REQUEST], "the server says what it thinks of that")
        self.begin(SSL_REQUEST)
        self.loop.travel(3.2)
        self.assertIn("within 3 s", str(self.failed[0]))
        self.begin()
        self.peer.close()
        self.loop.until(lambda: self.failed)
        self.begin().abort()
        self.assertEqual((len(self.failed), self.clear), (1, []))


class Requests(SynchronousTestCase):
    def ask(self):
        self.transport, self.peer = self.loop.transport()
        self.done, self.failed = [], []
        request = SslRequest(self.transport, self.loop.wheel, 3.0, self.done.append, self.failed.append)
        self.assertEqual(self.loop.read_all(self.peer, 8), SSL_REQUEST)
        self.peer.setblocking(True)
        return request

    def test_a_willing_server_is_handed_over_unread(self):
        self.ask()
        self.peer.sendall(b"S")
        self.loop.until(lambda: self.done)
        self.assertEqual(self.failed, [])

    def test_everything_else_fails_with_its_reason(self):
        """CVE-2021-23222: what a server says behind its S is refused, not taken for the answer to TLS."""
        for said, word in ((b"N", "ssl = on"), (b"Sx", "something else"), (b"E", "something else"), (b"", "closed the connection")):
            self.ask()
            if said:
                self.peer.sendall(said)
            else:
                self.peer.close()
            self.loop.until(lambda: self.failed)
            self.assertIn(word, str(self.failed[0]))
            self.assertEqual(self.done, [])

    def test_silence_ends(self):
        self.ask()
        self.loop.travel(3.2)
        self.assertIn("within 3 s", str(self.failed[0]))

    def test_cancelled_it_tells_nobody(self):
        request = self.ask()
        request.cancel()
        self.loop.turns()
        self.assertEqual((self.done, self.failed, request.is_over), ([], [], True))
