"""The first message of a TLS client, as real clients and as attackers write it."""

from __future__ import annotations

import socket
import ssl
import struct
import time

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadHello
from twistedproxy.tls.client_hello import MAX_BYTES, ClientHello, Incomplete, _collect, _said, read


def real_hello(name: str | None, protocols: list[str]) -> bytes:
    """What Python's own TLS sends."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!HH", kind, len(content)) + content


def sni(name: bytes) -> bytes:
    entry = b"\0" + struct.pack("!H", len(name)) + name
    return extension(0, struct.pack("!H", len(entry)) + entry)


def hello(extensions: bytes | None, record: int = 16384) -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    if extensions is not None:
        body += struct.pack("!H", len(extensions)) + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    parts = [message[at : at + record] for at in range(0, len(message), record)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(part)) + part for part in parts)


REAL = real_hello("a.example", ["h2"])


class Hellos(SynchronousTestCase):
    def test_real_clients_are_understood(self):
        self.assertEqual(read(real_hello("WWW.Example.com", ["h2", "http/1.1"])), ClientHello("www.example.com", (b"h2", b"http/1.1")))
        self.assertEqual(read(real_hello(None, [])), ClientHello("", ()))

    def test_any_split_says_how_much_is_wanted_and_never_too_much(self):
        """However the bytes are cut, and into however many TLS records, the name is found as soon as all is there, and not before."""
        for data in (real_hello("a.example", ["http/1.1"]), hello(sni(b"a.example"), record=7)):
            for end in range(len(data)):
                found = read(data[:end])
                self.assertIsInstance(found, Incomplete)
                self.assertTrue(end < found.needed <= len(data), (end, found, len(data)))
            self.assertEqual(read(data + b"\x14more").name, "a.example")
        for record in range(1, 70):
            self.assertEqual(read(hello(sni(b"a.example"), record)).name, "a.example", record)

    def test_TL_06_names_that_are_none(self):
        """An IP address counts as no name; NUL, spaces, 300 bytes and two names end the connection."""
        self.assertEqual(read(hello(sni(b"192.0.2.1"))).name, "")
        self.assertEqual(read(hello(sni(b"a.example."))).name, "a.example")
        self.assertEqual(read(hello(None)).name, "")
        for name in (b"", b"a\0.example", b"a b", b"x" * 300, b"a..b", b"-a.example", b"../../etc", "ü.example".encode()):
            with self.assertRaises(BadHello, msg=name):
                read(hello(sni(name)))
        for twice in (sni(b"a.example") + sni(b"b.example"), extension(21, b"") + sni(b"a.example") + extension(21, b"")):
            with self.assertRaisesRegex(BadHello, "two extensions of type"):
                read(hello(twice))

    def test_thousands_of_extensions_cost_no_more_than_reading_them(self):
        """One packet of a stranger must not keep everybody else waiting."""
        many = b"".join(extension(kind, b"") for kind in range(100, 4100))
        began = time.process_time()
        for _ in range(20):
            with self.assertRaisesRegex(BadHello, "two extensions of type 4099"):
                read(hello(many + extension(4099, b"")))
        self.assertLess(time.process_time() - began, 1.0)  # 0.04 s, and 3 s when each is compared with each

    def test_what_is_not_tls(self):
        records = (
            b"\x16\x02\x00\x00\x05hello", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\x00\x05\x02\x00\x00\x00\x00",
        )  # fmt: skip
        for data in (b"GET / HTTP/1.1\r\n", b"\x00\x00\x00\x08", b"SSH-2.0-", *records):
            with self.assertRaises(BadHello, msg=data):
                read(data)

    def test_size_is_bounded(self):
        """A greeting that claims megabytes is refused at once, not collected."""
        with self.assertRaises(BadHello):
            read(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16380))
        data = hello(extension(21, bytes(60_000)))
        with self.assertRaises(BadHello):
            for end in range(0, len(data), 1000):
                read(data[:end])
        self.assertLess(MAX_BYTES, 20_000)

    @given(st.binary(max_size=300))
    def test_rubbish_is_refused_or_waited_for_but_never_crashes(self, noise):
        for data in (noise, hello(noise), hello(sni(noise)), b"\x16\x03\x01\x00\x40" + noise):
            try:
                self.assertIsInstance(read(data), ClientHello | Incomplete)
            except BadHello:
                pass

    def test_what_is_remembered_is_small(self):
        """Clients may say what they like and as long as they like: of that nothing is kept."""
        read(hello(sni(b"kept.example")))
        kept = _said.cache_info().currsize
        for n in range(5):
            many = b"".join(b"\x02%02d" % (n * 10 + at % 10) for at in range(1000))
            offered = extension(16, struct.pack("!H", len(many)) + many)
            self.assertEqual(len(read(hello(sni(b"kept.example") + offered)).protocols), 1000)
            self.assertEqual(read(hello(sni(b"1" * (5000 + n)))).name, "")
        self.assertEqual(_said.cache_info().currsize, kept)

    @settings(deadline=None)
    @given(st.data())
    def test_the_short_way_and_the_long_one_agree(self, draw):
        """One record with all in it is read without being collected first; what is damaged in it is no reason to answer otherwise."""
        whole = hello(sni(b"a.example"))
        split = hello(sni(b"a.example"), record=len(whole) - 5 - draw.draw(st.integers(1, 6)))
        data = bytearray(draw.draw(st.sampled_from((REAL, whole, split, hello(None)))))
        for _ in range(draw.draw(st.integers(0, 3))):
            data[draw.draw(st.integers(0, min(len(data) - 1, 60)))] = draw.draw(st.integers(0, 255))
        data = bytes(data[: draw.draw(st.integers(0, len(data)))] + draw.draw(st.binary(max_size=5)))
        found = []
        for way in (read, _collect):
            try:
                found.append(way(data))
            except BadHello as e:
                found.append((str(e), e.seen))
        self.assertEqual(*found)

    def test_it_is_what_openssl_sees_too(self):
        """The name we choose the certificate by is the one OpenSSL would."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(real_hello("b.example", []))
            seen = []
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.sni_callback = lambda tls, name, ctx: seen.append(name)
            data = theirs.recv(16384)
            incoming = ssl.MemoryBIO()
            incoming.write(data)
            server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
            try:
                server.do_handshake()
            except ssl.SSLError:
                pass
            self.assertEqual(seen, [read(data).name])
