"""The PostgreSQL check, with answers as real servers write them."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.probes.dialogue import Finding
from twistedproxy.probes.postgres import STARTUP, TERMINATE, PostgresCheck


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def error(code: str, text: str) -> bytes:
    return message(b"E", b"SFATAL\0VFATAL\0C" + code.encode() + b"\0M" + text.encode() + b"\0Fpostmaster.c\0\0")


NOT = Finding(False, "not a PostgreSQL answer")
UP = Finding(True, "PostgreSQL answered")
CASES = [
    ("scram", message(b"R", b"\0\0\0\x0aSCRAM-SHA-256\0\0"), UP),
    ("md5", message(b"R", b"\0\0\0\x05salt"), UP),
    ("trust", message(b"R", b"\0\0\0\0"), UP),
    ("negotiated version first", message(b"v", struct.pack("!II", 0x30000, 0)) + message(b"R", b"\0\0\0\0"), UP),
    ("no such role", error("28000", "role does not exist"), Finding(True, "PostgreSQL answered 28000")),
    ("full", error("53300", "sorry, too many clients already"), Finding(True, "PostgreSQL answered 53300")),
    ("starting", error("57P03", "the database system is starting up"), Finding(False, "the database system is starting up (57P03)")),
    ("an error without a code", message(b"E", b"Moh\0\0\0\0"), NOT),
    ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n", NOT),
    ("a huge message", b"R\x7f\0\0\0", NOT),
    ("closed in the middle", message(b"R", b"\0\0\0\x05salt")[:-2], Finding(False, "closed the connection in the middle of its answer")),
]


class PostgresCheckTest(SynchronousTestCase):
    def test_what_answers_mean(self) -> None:
        """A server that asks for a password is up, one that is starting is down, something else on the port is down."""
        for name, answer, expected in CASES:
            for step in (len(answer), 1):
                check = PostgresCheck()
                check.begin()
                found = None
                for start in range(0, len(answer), step):
                    check.received += answer[start : start + step]
                    found = found or check.read()
                self.assertEqual(found or check.ended(), expected, f"{name}, {step} bytes at a time")

    def test_says_goodbye_where_it_was_let_in(self) -> None:
        """A server that trusts us sees a session end properly, not a lost connection."""
        check = PostgresCheck()
        check.begin()
        self.assertEqual(bytes(check.outgoing), STARTUP)
        check.received += message(b"R", b"\0\0\0\0")
        check.read()
        self.assertEqual(bytes(check.outgoing), STARTUP + TERMINATE)
        self.assertEqual(struct.unpack_from("!ii", STARTUP), (len(STARTUP), 196608))
