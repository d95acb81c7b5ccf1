"""The MySQL check, with packets as MySQL and MariaDB write them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.probes.dialogue import Finding
from twistedproxy.probes.mysql import MysqlCheck
from twistedproxy.stream.mysql import USER, packet

GREETING = packet(
    0, b"\x0a5.5.5-10.11\0" + b"\1\0\0\0" + b"saltsalt\0" + b"\xff\xf7" + b"\x08" + b"\2\0" + b"\xff\x81" + b"\x15" + b"\0" * 10
)


def error(sequence: int, code: int, text: str) -> bytes:
    return packet(sequence, b"\xff" + code.to_bytes(2, "little") + text.encode())


UP = Finding(True, "MySQL 5.5.5-10.11 answered")
CASES = [
    ("access denied", GREETING + error(2, 1045, "#28000Access denied for user"), UP),
    ("let in", GREETING + packet(2, b"\0\0\0\2\0\0\0"), UP),
    ("other plugin, then denied", GREETING + packet(2, b"\xfemysql_native_password\0salt\0") + error(4, 1045, "#28000no"), UP),
    ("more authentication wanted", GREETING + packet(2, b"\1\4"), UP),
    ("full", error(0, 1040, "Too many connections"), Finding(False, "Too many connections (1040)")),
    ("blocked", error(0, 1129, "#HY000Host '10.0.0.1' is blocked"), Finding(False, "Host '10.0.0.1' is blocked (1129)")),
    ("full at login", GREETING + error(2, 1040, "#08004Too many connections"), Finding(False, "Too many connections (1040)")),
    ("stopping", GREETING + error(2, 1053, "#08S01Server shutdown in progress"), Finding(False, "Server shutdown in progress (1053)")),
    ("old protocol", packet(0, b"\x093.23\0" + b"x" * 20), Finding(False, "not a MySQL greeting (protocol 10)")),
    ("something else", b"SSH-2.0-OpenSSH_9\r\n", Finding(False, "not a MySQL answer")),
    ("closed after the greeting", GREETING, Finding(False, "closed the connection after its greeting")),
    ("closed at once", b"", Finding(False, "closed the connection without an answer")),
]


class MysqlCheckTest(SynchronousTestCase):
    def test_what_answers_mean(self) -> None:
        """A server that refuses our made-up user is up; one that is full, blocked or stopping is down with its own words."""
        for name, answer, expected in CASES:
            for step in (len(answer) or 1, 1):
                check = MysqlCheck()
                check.begin()
                found = None
                for start in range(0, len(answer), step):
                    check.received += answer[start : start + step]
                    found = found or check.read()
                self.assertEqual(found or check.ended(), expected, f"{name}, {step} bytes at a time")

    def test_the_handshake_is_finished(self) -> None:
        """The server does not block this machine for interrupted handshakes: its greeting is answered with a complete packet."""
        check = MysqlCheck()
        check.received += GREETING
        self.assertIsNone(check.read())
        self.assertEqual(int.from_bytes(check.outgoing[:3], "little"), len(check.outgoing) - 4)
        self.assertEqual(check.outgoing[3], 1)
        self.assertIn(USER + b"\0\0mysql_native_password\0", bytes(check.outgoing))
