"""MySQL's login as bytes: greetings, the request for TLS, and the numbers of packets."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import BadHello
from twistedproxy.stream import mysql
from twistedproxy.stream.mysql import BadPacket, Preface, Renumbering, packet, read_greeting, take_packet, with_tls_flag

SCRAMBLE = bytes(range(1, 21))


def greeting(flags=0xF7FE, plugin=b"caching_sha2_password"):
    """As MySQL 8 and MariaDB send it; 0xF7FE has everything but CLIENT_SSL."""
    low, high = flags & 0xFF, flags >> 8
    rest = bytes((low, high, 45, 2, 0, 0xFF, 0xDF, 21)) + bytes(10) + SCRAMBLE[8:] + b"\0" + plugin + b"\0"
    return b"\x0a8.0.36\0" + b"\x01\0\0\0" + SCRAMBLE[:8] + b"\0" + rest


RESPONSE = b"\x05\xa2\x0f\x00" + bytes(28) + b"user\0" + b"\0" + b"caching_sha2_password\0"
REQUEST = b"\x05\xaa\x0f\x00" + bytes(28)


class Greetings(SynchronousTestCase):
    def test_an_offer_of_tls_is_added_and_taken_away_and_nothing_else_changes(self):
        plain, secure = greeting(), greeting(0xFFFE)
        self.assertEqual((read_greeting(plain).offers_tls, read_greeting(secure).offers_tls), (False, True))
        self.assertEqual(read_greeting(plain).offering(True), secure)
        self.assertEqual(read_greeting(secure).offering(False), plain)
        self.assertEqual(read_greeting(plain).scramble, SCRAMBLE)

    def test_a_refusal_comes_with_the_server_s_words(self):
        with self.assertRaisesRegex(BadPacket, r"Too many connections \(1040\)"):
            read_greeting(b"\xff\x10\x04#08004Too many connections")
        for rubbish in (b"\x0a", b"\x0a8.0\0short", b"HTTP/1.1 400", b"\x09old\0" + bytes(60)):
            with self.assertRaises(BadPacket, msg=rubbish):
                read_greeting(rubbish)

    @given(st.binary(min_size=1, max_size=120))
    def test_no_greeting_breaks_the_reader(self, data):
        try:
            read_greeting(b"\x0a" + data)
        except BadPacket:
            pass

    def test_packets_are_bounded(self):
        self.assertIsNone(take_packet(bytearray(b"\x01\0\0")))
        for size in (b"\0\0\0", b"\xff\xff\xff"):
            with self.assertRaises(BadPacket):
                take_packet(bytearray(size + b"\0xxx"))


class Prefaces(SynchronousTestCase):
    def setUp(self):
        self.sock, self.preface = self.fakes.Sink(), Preface()

    def test_the_request_is_taken_to_the_byte(self):
        whole = packet(1, REQUEST)
        for end in range(len(whole)):
            self.assertIsNone(self.preface(whole[:end], self.sock))
        self.assertEqual(self.preface(whole + b"\x16\x03", self.sock), (36, True))
        self.assertEqual((self.preface.request, self.sock.sent), (REQUEST, b""))

    def test_a_client_in_the_clear_is_told_in_its_own_words(self):
        with self.assertRaises(BadHello):
            self.preface(packet(1, RESPONSE), self.sock)
        self.assertEqual(take_packet(bytearray(self.sock.sent))[0], 2)
        self.assertIn(b"connect with --ssl", self.sock.sent)

    def test_rubbish_is_no_answer(self):
        for data in (b"GET / HTTP/1.1\r\n", packet(0, REQUEST), packet(1, b"\x05\xa8" + bytes(30)), b"\x16\x03\x01\0\x05hello"):
            with self.assertRaises(BadHello, msg=data):
                Preface()(data, self.sock)


class Numbers(SynchronousTestCase):
    def talk(self, secure=True, plugin=b"caching_sha2_password"):
        return Renumbering(read_greeting(greeting(plugin=plugin)), client_is_secure=secure)

    def given(self, out):
        found, data = [], bytearray(out)
        out.clear()
        while data:
            found.append(take_packet(data))
        return found

    def test_each_side_sees_the_numbers_it_expects_whatever_the_split(self):
        """A login with a switch of the plugin, byte by byte, from both ends."""
        switch = b"\xfemysql_native_password\0" + SCRAMBLE + b"\0"
        for secure, first_of_client, first_of_server in ((True, 2, 1), (False, 1, 2)):
            login = self.talk(secure)
            steps = [(True, RESPONSE), (False, switch), (True, b"hash"), (False, b"\0\0\0\2\0\0\0")]
            numbers = {True: first_of_client, False: first_of_server}
            for is_client, payload in steps:
                feed = login.from_client if is_client else login.from_server
                for byte in packet(numbers[is_client], payload):
                    feed(bytes((byte,)))
                ((number, passed),) = self.given(login.to_server if is_client else login.to_client)
                self.assertEqual(number, numbers[not is_client])
                if payload is not RESPONSE:
                    self.assertEqual(passed, payload)
                else:
                    self.assertEqual(passed, with_tls_flag(RESPONSE, not secure))
                numbers = {side: number + 1 for side, number in numbers.items()}
            self.assertTrue(login.is_over)

    def test_what_comes_behind_the_last_packet_goes_on_untouched(self):
        login = self.talk()
        login.from_client(packet(2, RESPONSE))
        login.from_server(packet(2 - 1 + 1, b"\xff\x15\x04#28000Access denied") + b"rest")
        self.assertTrue(login.is_over)
        self.assertEqual(bytes(login.rest_of_server), b"rest")
        login.from_client(b"\1\0\0\0\1")
        self.assertEqual(bytes(login.rest_of_client), b"\1\0\0\0\1")

    def test_a_packet_out_of_order_ends_it(self):
        with self.assertRaisesRegex(BadPacket, "packet 0 where 2 was due"):
            self.talk().from_client(packet(0, b"\x03select 1"))

    def test_a_client_that_talks_out_of_turn_is_the_one_to_blame(self):
        """Passed on, its second packet would take the number of the server's answer, and the server would seem to be wrong."""
        for payload in (RESPONSE, b"hash"):
            login = self.talk()
            login.from_client(packet(2, RESPONSE))
            number = 3
            if payload is not RESPONSE:
                login.from_server(packet(2, b"\xfemysql_native_password\0" + SCRAMBLE + b"\0"))
                login.from_client(packet(4, payload))
                number = 5
            passed = bytes(login.to_server)
            with self.assertRaisesRegex(BadPacket, "before the server had answered"):
                login.from_client(packet(number, payload))
            self.assertEqual(bytes(login.to_server), passed)

    def test_no_password_goes_on_in_the_clear_where_the_account_has_another_plugin_than_the_server(self):
        """The client named caching_sha2_password by itself, so the server has nothing to switch to."""
        login = self.talk(plugin=b"mysql_native_password")
        login.from_client(packet(2, RESPONSE))
        login.from_server(packet(2, b"\x01\x04"))
        self.given(login.to_server)
        login.from_client(packet(4, b"pass word\0"))
        self.assertEqual(self.given(login.to_server), [(3, b"\x02")])

    def test_the_password_of_caching_sha2_goes_on_encrypted(self):
        """A client inside TLS sends it as it is; a server in the clear gets it as from a client in the clear."""
        secret = rsa.generate_private_key(65537, 2048)
        login = self.talk()
        login.from_client(packet(2, RESPONSE))
        login.from_server(packet(2, b"\x01\x04"))
        self.assertEqual(self.given(login.to_client), [(3, b"\x01\x04")])
        self.given(login.to_server)
        login.from_client(packet(4, b"pass word\0"))
        self.assertEqual(self.given(login.to_server), [(3, b"\x02")])
        pem = secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        login.from_server(packet(4, b"\x01" + pem))
        ((number, sealed),) = self.given(login.to_server)
        mixed = secret.decrypt(sealed, OAEP(MGF1(SHA1()), SHA1(), None))
        self.assertEqual((number, bytes(a ^ b for a, b in zip(mixed, SCRAMBLE, strict=False))), (5, b"pass word\0"))
        self.assertEqual(bytes(login.to_client), b"")
        login.from_server(packet(6, b"\0\0\0\2\0\0\0"))
        self.assertEqual(self.given(login.to_client), [(5, b"\0\0\0\2\0\0\0")])

    def test_no_key_no_password(self):
        for pem in (b"\x01rubbish", b"\x01"):
            login = self.talk()
            login.from_client(packet(2, RESPONSE))
            login.from_server(packet(2, b"\x01\x04"))
            login.from_client(packet(4, b"secret\0"))
            with self.assertRaises(BadPacket):
                login.from_server(packet(4, pem))
            self.assertNotIn(b"secret", login.to_server)

    def test_the_probe_s_answer_is_one(self):
        self.assertEqual(len(mysql.request_of(mysql.NOBODY)), 32)
        with self.assertRaises(BadPacket):
            mysql.request_of(b"\x05\x00" + bytes(40))
