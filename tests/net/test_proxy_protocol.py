"""Who the client really is: strictly read, exactly written, and agreed upon with HAProxy and an independent library."""

import ipaddress
import os
import shutil
import socket
import struct
import subprocess
import unittest

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadProxyHeader, Cause, Phase
from twistedproxy.net.proxy_protocol import MAX_V2_PAYLOAD, SIGNATURE, TLV_CRC32C, ProxyHeaderReader, crc32c, encode, parse

try:
    from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
    from proxyprotocol.v1 import ProxyProtocolV1
    from proxyprotocol.v2 import ProxyProtocolV2
except ImportError:
    ProxyProtocolV1 = None

A4, B4 = ("192.0.2.1", 56324), ("192.0.2.2", 443)
A6, B6 = ("2001:db8::1", 56324), ("2001:db8::2", 443)


def v2(payload=b"", command=0x21, family=0x11, length=None):
    return SIGNATURE + struct.pack("!BBH", command, family, len(payload) if length is None else length) + payload


V4_BLOCK = bytes([192, 0, 2, 1, 192, 0, 2, 2]) + struct.pack("!HH", 56324, 443)
GOOD = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", A4, B4, False),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", A6, B6, False),
    "v1 longest": (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
        False,
    ),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None, None, False),
    "v1 UNKNOWN with whatever, 107 bytes": (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None, None, False),
    "v2 TCP4": (v2(V4_BLOCK), A4, B4, False),
    "v2 TCP6": (v2(ipaddress.ip_address(A6[0]).packed + ipaddress.ip_address(B6[0]).packed + V4_BLOCK[8:], family=0x21), A6, B6, False),
    "v2 LOCAL": (v2(command=0x20, family=0), None, None, True),
    "v2 LOCAL with a block, which is ignored": (v2(b"junk", command=0x20), None, None, True),
    "v2 AF_UNSPEC": (v2(family=0), None, None, False),
    "v2 AF_UNSPEC with a TLV": (v2(b"\x04\0\1x", family=0), None, None, False),
    "v2 unix": (v2(b"/run/a".ljust(108, b"\0") * 2, family=0x31), None, None, False),
    "v2 UDP says nothing about a stream": (v2(V4_BLOCK, family=0x12), None, None, False),
    "v2 with TLVs": (v2(V4_BLOCK + b"\x01\0\2h2" + b"\x04\0\0"), A4, B4, False),
}
BAD = {
    "something else": b"GET / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01\x02\x00",
    "v1 lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
    "v1 108 bytes": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "v1 without an end": b"PROXY UNKNOWN " + b"f" * 200,
    "v1 bare LF": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 56324 443\r\n",
    "v1 a word too many": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 x\r\n",
    "v1 a word too few": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
    "v1 UDP4": b"PROXY UDP4 192.0.2.1 192.0.2.2 56324 443\r\n",
    "v1 wrong family": b"PROXY TCP4 2001:db8::1 2001:db8::2 56324 443\r\n",
    "v1 port 65536": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
    "v1 port with a zero ahead": b"PROXY TCP4 192.0.2.1 192.0.2.2 0443 443\r\n",
    "v1 negative port": b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 443\r\n",
    "v1 octal address": b"PROXY TCP4 192.0.2.010 192.0.2.2 56324 443\r\n",
    "v1 short address": b"PROXY TCP4 192.2 192.0.2.2 56324 443\r\n",
    "v1 not ASCII": b"PROXY TCP4 192.0.2.\xb2 192.0.2.2 56324 443\r\n",
    "v1 NUL": b"PROXY TCP4 192.0.2.1\0 192.0.2.2 56324 443\r\n",
    "v2 broken signature": b"\r\n\r\n\0\r\nQUITx!!!!",
    "v2 version 1": v2(V4_BLOCK, command=0x11),
    "v2 command 2": v2(V4_BLOCK, command=0x22),
    "v2 family 4": v2(V4_BLOCK, family=0x41),
    "v2 protocol 3": v2(V4_BLOCK, family=0x13),
    "v2 addresses cut": v2(V4_BLOCK[:-1]),
    "v2 IPv6 addresses cut": v2(b"\0" * 35, family=0x21),
    "v2 unix addresses cut": v2(b"\0" * 215, family=0x31),
    "v2 declares 64 KiB": v2(V4_BLOCK, length=65535),
    "v2 TLV longer than the header": v2(V4_BLOCK + b"\x04\0\x05xx"),
    "v2 half a TLV": v2(V4_BLOCK + b"\x04\0"),
    "v2 CRC32C of the wrong length": v2(V4_BLOCK + b"\x03\0\3abc"),
    "v2 wrong CRC32C": v2(V4_BLOCK + b"\x03\0\4abcd"),
}


class Parsing(SynchronousTestCase):
    def test_ID_02_good_headers(self):
        for name, (data, source, destination, is_local) in GOOD.items():
            parsed = parse(data + b"client's bytes")
            self.assertEqual(
                (parsed.source, parsed.destination, parsed.size, parsed.is_local), (source, destination, len(data), is_local), name
            )

    def test_ID_02_bad_headers_are_refused_and_the_message_says_how_they_are_bad(self):
        for name, data in BAD.items():
            with self.assertRaises(BadProxyHeader, msg=name) as caught:
                parse(data)
            self.assertGreater(len(caught.exception.detail), 20)

    def test_ID_02_byte_by_byte_a_good_header_is_incomplete_until_its_last_byte(self):
        for name, (data, *_) in GOOD.items():
            for end in range(len(data)):
                self.assertIsNone(parse(data[:end]), f"{name} at {end}")

    def test_a_bad_beginning_is_refused_before_more_is_awaited(self):
        for data in (b"G", b"PROXX", b"\r\n\r\nX", b"\x16"):
            self.assertRaises(BadProxyHeader, parse, data)

    def test_tlvs_come_in_order_and_a_second_header_is_payload(self):
        parsed = parse(v2(V4_BLOCK + b"\x01\0\2h2" + b"\x04\0\0") + GOOD["v1 TCP4"][0])
        self.assertEqual(parsed.tlvs, ((1, b"h2"), (4, b"")))
        self.assertEqual(parsed.size, 16 + 12 + 5 + 3)

    def test_the_crc_is_castagnolis(self):
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)

    @given(st.binary(max_size=300))
    @settings(max_examples=300, deadline=None)
    def test_noise_is_a_header_incomplete_or_refused_and_nothing_else(self, noise):
        for data in (noise, b"PROXY " + noise, SIGNATURE + noise):
            try:
                parsed = parse(data)
            except BadProxyHeader:
                continue
            self.assertTrue(parsed is None or 0 < parsed.size <= len(data))


IPS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None)).map(str)
PORTS = st.integers(0, 65535)
ENDS = st.tuples(IPS, PORTS)
TLVS = st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=50)), max_size=4)


class Encoding(SynchronousTestCase):
    def test_known_headers(self):
        self.assertEqual(encode(1, A4, B4), GOOD["v1 TCP4"][0])
        self.assertEqual(encode(1, A6, B6), GOOD["v1 TCP6"][0])
        self.assertEqual(encode(2, A4, B4), GOOD["v2 TCP4"][0])
        self.assertEqual(encode(2, A6, B6), GOOD["v2 TCP6"][0])

    def test_a_client_without_an_ip_is_unknown(self):
        for source in (None, ("", 0)):
            self.assertEqual(encode(1, source, B4), b"PROXY UNKNOWN\r\n")
            self.assertEqual(encode(2, source, B4), v2(family=0))

    def test_mixed_families_go_out_as_ipv6(self):
        parsed = parse(encode(2, A4, B6))
        self.assertEqual(parsed.source, ("::ffff:192.0.2.1", 56324))

    def test_an_interface_in_an_address_is_left_out(self):
        self.assertEqual(parse(encode(1, ("fe80::1%eth0", 1), ("fe80::2%eth0", 2))).source, ("fe80::1", 1))

    def test_ID_03_the_length_written_is_the_length_declared_or_it_is_refused(self):
        data = encode(2, A4, B4, [(0xE0, b"x" * 60_000)])
        self.assertEqual(struct.unpack_from("!H", data, 14)[0] + 16, len(data))
        self.assertRaises(ValueError, encode, 2, A4, B4, [(0xE0, b"x" * 65_535)])
        self.assertRaises(ValueError, encode, 2, A4, B4, [(0xE0, b"x" * 70_000)])
        self.assertRaises(ValueError, encode, 3, A4, B4)

    @given(ENDS, ENDS, st.sampled_from((1, 2)), TLVS, st.booleans())
    @settings(max_examples=200, deadline=None)
    def test_what_is_written_is_read_back(self, source, destination, version, tlvs, with_crc):
        extra = [*tlvs, (TLV_CRC32C, b"")] if with_crc else tlvs
        data = encode(version, source, destination, extra)
        parsed = parse(data + b"x")
        self.assertEqual(parsed.size, len(data))
        if (":" in source[0]) == (":" in destination[0]):
            self.assertEqual((parsed.source, parsed.destination), (source, destination))
        if version == 2:
            self.assertEqual([t for t in parsed.tlvs if t[0] != TLV_CRC32C], tlvs)
            if with_crc:
                broken = bytearray(data)
                broken[16] ^= 1
                self.assertRaises(BadProxyHeader, parse, bytes(broken))


@unittest.skipIf(ProxyProtocolV1 is None, "needs proxy-protocol from PyPI")
class Oracle(SynchronousTestCase):
    """An implementation we did not write says the same."""

    @given(ENDS, ENDS, st.booleans())
    @settings(max_examples=200, deadline=None)
    def test_it_reads_what_we_write_and_we_read_what_it_writes(self, source, destination, second_version):
        if (":" in source[0]) != (":" in destination[0]):
            destination = (source[0], destination[1])
        theirs = ProxyProtocolV2() if second_version else ProxyProtocolV1()
        kind = ProxyResultIPv6 if ":" in source[0] else ProxyResultIPv4
        pair = [(ipaddress.ip_address(ip), port) for ip, port in (source, destination)]
        ours = encode(2 if second_version else 1, source, destination, [(TLV_CRC32C, b"")] if second_version else ())
        result = theirs.unpack(ours)
        self.assertEqual([result.source, result.dest], pair)
        packed = theirs.pack(kind(*pair, protocol=socket.SOCK_STREAM))
        parsed = parse(packed)
        self.assertEqual((parsed.source, parsed.destination, parsed.size), (source, destination, len(packed)))


class Reading(SynchronousTestCase):
    def setUp(self):
        self.transport, self.peer = self.loop.transport()
        self.headers, self.errors = [], []
        self.reader = ProxyHeaderReader(
            self.transport, self.loop.wheel, 3.0, lambda parsed, leftover: self.headers.append((parsed, leftover)), self.errors.append
        )

    def test_ID_02_a_trickled_header_is_read_and_what_follows_is_handed_over(self):
        for byte in GOOD["v1 TCP4"][0][:-1]:
            self.peer.send(bytes([byte]))
            self.loop.turn(0.01)
        self.assertEqual(self.headers, [])
        self.peer.send(b"\nhello")
        self.loop.until(lambda: self.headers)
        parsed, leftover = self.headers[0]
        self.assertEqual((parsed.source, leftover), (A4, b"hello"))
        recorder = self.fakes.Recorder()
        self.transport.start(recorder)
        self.peer.send(b"more")
        self.loop.until(lambda: recorder.received == b"more")
        self.loop.travel(5, 0.5)
        self.assertEqual((self.errors, recorder.events), ([], []))

    def test_ID_02_it_must_come_within_3_s(self):
        self.peer.send(b"PROXY TCP4 ")
        self.loop.travel(2.8)
        self.assertEqual(self.errors, [])
        self.loop.travel(0.4)
        self.assertIn("within 3 s", self.errors[0].detail)
        self.assertTrue(self.loop.is_reset(self.peer))

    def test_a_broken_header_resets_the_connection_and_is_told_once(self):
        self.peer.send(b"GET / HTTP/1.1\r\n\r\n")
        self.loop.until(lambda: self.errors)
        self.assertTrue(self.loop.is_reset(self.peer))
        self.loop.travel(5, 0.5)
        self.assertEqual((len(self.errors), self.headers), (1, []))
        self.assertEqual((self.errors[0].cause, self.errors[0].phase), (Cause.CLIENT, Phase.ACCEPT))

    def test_a_client_that_leaves_before_it_is_told_as_such(self):
        self.peer.close()
        self.loop.until(lambda: self.errors)
        self.setUp()
        self.loop.reset(self.peer)
        self.loop.until(lambda: self.errors)

    def test_a_listener_that_closes_ends_it(self):
        self.reader.abort()
        self.reader.abort()
        self.assertEqual(len(self.errors), 1)

    def test_a_header_with_large_tlvs_is_bounded(self):
        self.peer.send(v2(V4_BLOCK, length=MAX_V2_PAYLOAD + 1))
        self.loop.until(lambda: self.errors)
        self.assertIn(str(MAX_V2_PAYLOAD), self.errors[0].detail)


@unittest.skipUnless(shutil.which("haproxy"), "needs haproxy")
class HaproxyInFront(SynchronousTestCase):
    def test_headers_of_a_real_haproxy_are_understood(self):
        """``send-proxy`` and ``send-proxy-v2`` with options, over loopback."""
        for option in ("send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"):
            listening = self.loop.listen()
            probe = socket.socket()
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            config = os.path.abspath(self.mktemp())
            with open(config, "w") as f:
                f.write(
                    "defaults\n mode tcp\n timeout connect 3s\n timeout client 9s\n timeout server 9s\n"
                    f"listen x\n bind 127.0.0.1:{port}\n unique-id-format %pid\n"
                    f" server s 127.0.0.1:{listening.getsockname()[1]} {option}\n"
                )
            process = subprocess.Popen(["haproxy", "-db", "-f", config], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            try:
                client = self.connect(port)
                client.sendall(b"hello")
                listening.settimeout(5)
                accepted = listening.accept()[0]
                accepted.settimeout(5)
                self.loop.keep(accepted)
                data = b""
                parsed = None
                while parsed is None or len(data) < parsed.size + 5:
                    data += accepted.recv(1000)
                    parsed = parse(data)
                self.assertEqual((parsed.source, parsed.destination), (client.getsockname(), ("127.0.0.1", port)), option)
                self.assertEqual(data[parsed.size :], b"hello")
                self.assertEqual(TLV_CRC32C in dict(parsed.tlvs), "crc32c" in option)
            finally:
                process.terminate()
                process.wait(5)

    def connect(self, port):
        result = []

        def connects():
            try:
                result.append(socket.create_connection(("127.0.0.1", port)))
            except ConnectionRefusedError:
                return False
            return True

        self.loop.until(connects, "haproxy listens")
        return self.loop.keep(result[0])
