"""The HTTP check, fed whole and byte by byte."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import HealthCheck
from twistedproxy.probes.dialogue import Finding
from twistedproxy.probes.http import HttpCheck

ANY = HealthCheck("http", path="/health")
NO_ANSWER = "closed the connection without an answer"
CUT = "closed the connection in the middle of its answer"
CASES: list[tuple[str, HealthCheck, bytes, Finding]] = [
    ("a good status", ANY, b"HTTP/1.1 200 OK\r\n\r\n", Finding(True, "200")),
    ("redirects are good by default and not followed", ANY, b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n", Finding(True, "302")),
    ("no reason phrase", ANY, b"HTTP/1.0 204\r\n\r\n", Finding(True, "204")),
    ("interim answers are skipped", ANY, b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Finding(True, "200")),
    ("a bad status says what was wanted", ANY, b"HTTP/1.1 503 No\r\n\r\n", Finding(False, "503 (wanted 200-399)")),
    (
        "a narrow range",
        HealthCheck("http", status=((200, 200), (204, 206))),
        b"HTTP/1.1 302 F\r\n\r\n",
        Finding(False, "302 (wanted 200, 204-206)"),
    ),
    ("not HTTP", ANY, b"SSH-2.0-OpenSSH\r\n\r\n", Finding(False, "not an HTTP/1 answer")),
    ("HTTP/0.9", ANY, b"<html>\r\n\r\n", Finding(False, "not an HTTP/1 answer")),
    ("a broken field", ANY, b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", Finding(False, "200 with a broken response head")),
    ("a broken length", ANY, b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", Finding(False, "200 with a broken Content-Length")),
    ("an endless head", ANY, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20000, Finding(False, "response head longer than 16 KiB")),
    ("closed in the head", ANY, b"HTTP/1.1 200 OK\r\n", Finding(False, CUT)),
    ("closed at once", ANY, b"", Finding(False, NO_ANSWER)),
]
TEXT = HealthCheck("http", body="all good")
LACKS = "200, but the body lacks 'all good'"
HEAD = b"HTTP/1.1 200 OK\r\n"
BODIES: list[tuple[str, bytes, Finding]] = [
    ("by length", HEAD + b"Content-Length: 8\r\n\r\nall good", Finding(True, "200")),
    ("beyond the length does not count", HEAD + b"Content-Length: 3\r\n\r\nall good", Finding(False, LACKS)),
    ("until the end", HEAD + b"\r\nwell, all good then", Finding(True, "200")),
    ("missing until the end", HEAD + b"\r\nall bad", Finding(False, LACKS)),
    ("split over chunks", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nall g\r\n3;x=y\r\nood\r\n0\r\n\r\n", Finding(True, "200")),
    ("missing in chunks", HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nall\r\n0\r\n\r\n", Finding(False, LACKS)),
    ("broken chunks", HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nall good\r\n", Finding(False, LACKS)),
    ("at most 64 KiB", HEAD + b"\r\n" + b"x" * 65536 + b"all good", Finding(False, LACKS)),
    ("a bad status wins", b"HTTP/1.1 500 Oh\r\n\r\nall good", Finding(False, "500 (wanted 200-399)")),
]


def feed(check: HealthCheck, answer: bytes, step: int) -> Finding:
    dialogue = HttpCheck(check, "10.0.0.1:80")
    assert dialogue.begin() is None  # type: ignore[func-returns-value]
    for start in range(0, len(answer), step):
        dialogue.received += answer[start : start + step]
        finding = dialogue.read()
        if finding is not None:
            return finding
    return dialogue.ended()


class HttpCheckTest(SynchronousTestCase):
    def test_what_answers_mean(self) -> None:
        """The verdict depends on the answer alone, not on how the network cuts it."""
        for name, check, answer, expected in CASES + [(n, TEXT, a, f) for n, a, f in BODIES]:
            for step in (len(answer) or 1, 1) if len(answer) < 1000 else (len(answer), 1000):
                self.assertEqual(feed(check, answer, step), expected, f"{name}, {step} bytes at a time")

    def test_the_request(self) -> None:
        """The server sees a proper request with its own address, or the configured name, as Host."""
        check = HttpCheck(ANY, "10.0.0.1:80")
        check.begin()
        self.assertTrue(check.outgoing.startswith(b"GET /health HTTP/1.1\r\nHost: 10.0.0.1:80\r\n"))
        self.assertTrue(check.outgoing.endswith(b"Connection: close\r\n\r\n"))
        named = HttpCheck(HealthCheck("http", host="app"), "10.0.0.1:80")
        named.begin()
        self.assertIn(b"\r\nHost: app\r\n", named.outgoing)

    def test_a_servers_answer_without_newlines_is_not_waited_for(self) -> None:
        """A server that is not HTTP at all is known at its first bytes."""
        self.assertEqual(feed(ANY, b"\x00\x01\x02", 1), Finding(False, "not an HTTP/1 answer"))
