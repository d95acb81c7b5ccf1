"""The access log: one safe line per request, and traffic that never waits for it."""

from __future__ import annotations

import calendar
import gc
import json
import os
import re
import socket
import tempfile
import time
import weakref
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import Cause, Phase
from twistedproxy.http import _pure
from twistedproxy.http import head as chosen
from twistedproxy.observability import access_log
from twistedproxy.observability.access_log import MAX_LINE_BYTES, AccessLog, pieces

WHEN = float(calendar.timegm((2026, 11, 21, 18, 0, 0))) + 0.25

COMBINED = re.compile(
    r'^\S+ - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "[^"]*" (\d{3}|-) \d+ "[^"]*" "[^"]*" '
    r"\S+ \S+ \S+ \d+\.\d+ \w+/[\w-]+ \S+( bytes_in=\d+)?$"
)


@dataclass
class Head:
    method: bytes = b"GET"
    target: bytes = b"/a?b=c"
    minor: int = 1
    headers: dict[bytes, bytes] = field(default_factory=dict)

    def get(self, name: bytes) -> bytes | None:
        return self.headers.get(name)

    def log_pieces(self) -> None:
        """Nothing here is plain: every field is looked at."""


SECRETS = {b"cookie": b"sid=S3CRET", b"authorization": b"S3CRET"}
BROWSER = Head(headers={b"referer": b"http://example.com/", b"user-agent": b"curl/8", **SECRETS})


def request(log: AccessLog, head: Head | None = BROWSER, **changed: Any) -> None:
    facts: dict[str, Any] = {
        "client_ip": "192.0.2.7", "status": 200, "bytes_sent": 512, "bytes_received": 80, "site": "www.example.com", "pool": "web",
        "server": "10.0.0.1:80", "duration": 0.0123, "attempts": 1, "cause": Cause.OK, "phase": None, "request_id": b"abc123",
        "listener": "0.0.0.0:80",
    }  # fmt: skip
    log.log_http(head=head, **(facts | changed))


def session(log: AccessLog, **changed: Any) -> None:
    facts: dict[str, Any] = {
        "client_ip": "192.0.2.7", "listener": "127.0.0.1:6432", "pool": "pg", "server": "127.0.0.1:5432", "bytes_in": 10,
        "bytes_out": 2000, "duration": 3.5, "cause": Cause.OK, "phase": None, "session_id": b"s1",
    }  # fmt: skip
    log.log_tcp(**(facts | changed))


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        root = tempfile.TemporaryDirectory()
        self.addCleanup(root.cleanup)
        self.path = os.path.join(root.name, "logs")
        os.mkdir(self.path)
        self.file = os.path.join(self.path, "access.log")
        self.now = 1000.0
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self._saw)
        self.addCleanup(globalLogPublisher.removeObserver, self._saw)

    def _saw(self, event: dict[str, Any]) -> None:
        if event.get("log_namespace") == "twistedproxy.observability.access_log":
            self.events.append(event)

    def open(self, format: str = "combined", file: str | None = None) -> AccessLog:
        log = AccessLog(file or self.file, format, seconds_wall=lambda: WHEN, seconds=lambda: self.now)
        self.addCleanup(log.close)
        return log

    def lines(self, file: str | None = None) -> list[str]:
        with open(file or self.file, encoding="ascii", newline="") as f:
            return f.read().splitlines()


class FormatTests(Base):
    def test_combined_request(self) -> None:
        """A tool for nginx's logs finds everything where it expects it, our own facts follow."""
        log = self.open()
        request(log)
        log.flush()
        stamp = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(WHEN))
        self.assertEqual(
            self.lines(),
            [
                f'192.0.2.7 - - [{stamp}] "GET /a?b=c HTTP/1.1" 200 512 "http://example.com/" "curl/8" '
                "www.example.com web 10.0.0.1:80 0.0123 ok/- abc123"
            ],
        )

    def test_combined_absent(self) -> None:
        """What was never known is a dash: here a head that could not be read."""
        log = self.open()
        request(log, None, status=400, site="", pool="", server="", cause=Cause.CLIENT, phase=Phase.HEAD, request_id=b"")
        log.flush()
        (line,) = self.lines()
        self.assertRegex(line, COMBINED)
        self.assertTrue(line.endswith('"-" 400 512 "-" "-" - - - 0.0123 client/head -'), line)

    def test_combined_session(self) -> None:
        """A TCP session has the same columns."""
        log = self.open()
        session(log, cause=Cause.TIMEOUT, phase=Phase.TUNNEL)
        log.flush()
        (line,) = self.lines()
        self.assertTrue(
            line.endswith('"TCP 127.0.0.1:6432" - 2000 "-" "-" 127.0.0.1:6432 pg 127.0.0.1:5432 3.5000 timeout/tunnel s1 bytes_in=10'),
            line,
        )
        self.assertRegex(line, COMBINED)

    def test_json(self) -> None:
        """JSON lines have the promised keys in the promised order, null for what is absent."""
        log = self.open("json")
        request(log)
        session(log)
        request(log, None, status=0, site="", request_id=b"")
        log.flush()
        http, tcp, nothing = map(json.loads, self.lines())
        keys = [
            "ts", "client_ip", "method", "target", "version", "status", "bytes_sent", "bytes_received", "referer", "user_agent",
            "site", "pool", "server", "duration", "attempts", "cause", "phase", "id", "listener",
        ]  # fmt: skip
        for each in (http, tcp, nothing):
            self.assertEqual(list(each), keys)
        self.assertEqual(http["ts"], "2026-11-21T18:00:00.250Z")
        self.assertEqual((http["method"], http["target"], http["version"], http["status"]), ("GET", "/a?b=c", "HTTP/1.1", 200))
        self.assertEqual((http["duration"], http["cause"], http["phase"], http["id"]), (0.0123, "ok", None, "abc123"))
        self.assertEqual((tcp["method"], tcp["target"], tcp["bytes_sent"], tcp["bytes_received"]), ("TCP", "127.0.0.1:6432", 2000, 10))
        self.assertEqual((nothing["method"], nothing["status"], nothing["site"], nothing["id"]), (None, None, None, None))

    def test_order_is_kept(self) -> None:
        log = self.open()
        for n in range(50):
            request(log, request_id=b"%d" % n)
            session(log, session_id=b"t%d" % n)
        log.flush()
        self.assertEqual(len(self.lines()), 100)
        self.assertEqual([line.split()[-1] for line in self.lines()[::2]], [str(n) for n in range(50)])


VALUES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40).map(lambda t: t.encode("latin-1")),
    st.sampled_from([b"", b"curl/8", b"x" * 999, b"x" * 1100, b'say "x"', b"back\\slash", b"\xe9"]),
)
"""Field values that a head may hold."""

HOSTILE = [
    b'"; rm -rf / "',
    b"\\",
    b"a\r\nGET /forged HTTP/1.1",
    b"\x1b[31mred\x1b]0;title\x07",
    b"\x00\x7f\x9b",
    "\u2028\u2029\u202e".encode(),
    b"\xff\xfe\xc3\x28",
    b"A" * 100_000,
    b'"' * 100_000,
    b"\x00" * 100_000,
    "é".encode() * 50_000,
]


class EscapeTests(Base):
    def check_line(self, format: str, line: str) -> None:
        self.assertLessEqual(len(line), MAX_LINE_BYTES)
        self.assertTrue(all(" " <= c <= "~" for c in line), line[:200])
        if format == "json":
            json.loads(line)
        else:
            self.assertRegex(line, COMBINED)

    def test_id_05_hostile_fields(self) -> None:
        """ID-05: whatever a client sends, a request is one line of printable ASCII, at most 8 KiB, that a tool can take apart."""
        for format in ("combined", "json"):
            log = self.open(format)
            for nasty in HOSTILE:
                if os.path.exists(self.file):
                    os.truncate(self.file, 0)
                head = Head(nasty[:32], nasty, 1, {b"referer": nasty, b"user-agent": nasty})
                request(log, head, request_id=nasty, client_ip=nasty.decode("latin-1"), site=nasty.decode("latin-1"))
                log.flush()
                (line,) = self.lines()
                self.check_line(format, line)

    def test_id_05_combined_form(self) -> None:
        """Quotes, backslashes, control and non-ASCII bytes are \\xHH in combined, so that the original can be had back."""
        log = self.open()
        request(log, Head(headers={b"user-agent": b'a"b\\c\x1bd\xc3\xa9'}))
        log.flush()
        self.assertIn('"a\\x22b\\x5Cc\\x1Bd\\xC3\\xA9"', self.lines()[0])

    def test_id_05_json_text(self) -> None:
        """JSON gives UTF-8 back as text and shows broken bytes."""
        log = self.open("json")
        request(log, Head(headers={b"user-agent": "é\u2028".encode() + b"\xff\n"}))
        log.flush()
        self.assertEqual(json.loads(self.lines()[0])["user_agent"], "é\u2028\\xff\n")

    def test_id_05_no_secrets(self) -> None:
        """Credentials and cookies never reach the log."""
        for format in ("combined", "json"):
            log = self.open(format)
            request(log)
            log.flush()
            with open(self.file) as f:
                self.assertNotIn("S3CRET", f.read())

    def test_spaces_in_names(self) -> None:
        """A unix socket with a space in its path does not shift the columns."""
        log = self.open()
        request(log, server="unix:/tmp/my app.sock", request_id=b"a b")
        log.flush()
        self.assertRegex(self.lines()[0], COMBINED)
        self.assertIn("unix:/tmp/my\\x20app.sock", self.lines()[0])

    @settings(max_examples=300, deadline=None)
    @given(
        st.text("aZ09/-_.~%&=+", max_size=40),
        st.none() | VALUES,
        st.none() | VALUES,
        st.sampled_from([b"ab12", b"a b", b"", b"\xff", b"x" * 300]),
    )
    def test_quick_lines_are_the_careful_ones(self, query: str, referer: bytes | None, agent: bytes | None, request_id: bytes) -> None:
        """A line made from what either codec says is plain is, byte for byte, the line made by looking at every field."""
        fields = b"".join(b"%b: %b\r\n" % (n, v) for n, v in ((b"Referer", referer), (b"User-Agent", agent)) if v is not None)
        data = b"GET /?%b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (query.encode(), fields)
        for format in ("combined", "json"):
            lines = set()
            for codec in (_pure, chosen):
                head: Any = codec.parse_request(data, codec.Limits())
                careful = Head(head.method, head.target, head.minor, {n.lower(): v for n, v in head.fields()})
                for each in (head, careful):
                    log = AccessLog("/dev/null", format, seconds_wall=lambda: WHEN)
                    request(log, each, request_id=request_id)
                    lines.add(log._queue[0][0](log._queue[0]))
                    log.close()
            self.assertEqual(len(lines), 1, lines)

    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from(["combined", "json"]))
    def test_any_bytes(self, target: bytes, agent: bytes, format: str) -> None:
        """No bytes at all break a line."""
        log = AccessLog("/dev/null", format, seconds_wall=lambda: WHEN)
        request(log, Head(target=target, headers={b"user-agent": agent}), request_id=agent)
        line = log._queue[0][0](log._queue[0]).encode("ascii")
        line = line.decode("ascii")
        self.assertTrue(line.endswith("\n"))
        self.check_line(format, line[:-1])
        if format == "json":
            self.assertEqual(json.loads(line)["target"], target.decode("utf-8", "backslashreplace"))
        log.close()


class TroubleTests(Base):
    def test_p11_disk_full(self) -> None:
        """P11: a full disk costs lines, never a request; it is counted and told once a minute."""
        log = self.open(file="/dev/full")
        for _ in range(3):
            request(log)
            log.flush()
            self.now += 1
        self.assertEqual(log.dropped, 3)
        self.assertEqual(len(self.events), 1)
        self.now += 60
        request(log)
        log.flush()
        self.assertEqual(len(self.events), 2)
        self.assertIn("No space left", str(self.events[0]))

    def test_lc_10_directory_gone(self) -> None:
        """LC-10: the log's directory vanishes: lines are dropped, and the file is there again once the directory is."""
        log = self.open()
        os.unlink(self.file)
        os.rmdir(self.path)
        request(log)
        log.flush()
        self.assertEqual(log.dropped, 1)
        self.assertEqual(len(self.events), 1)
        os.mkdir(self.path)
        self.now += 2
        request(log, request_id=b"back")
        log.flush()
        self.assertEqual([line.split()[-1] for line in self.lines()], ["back"])

    def test_cannot_be_opened(self) -> None:
        """A log that cannot be opened at start does not stop the worker."""
        log = self.open(file=os.path.join(self.path, "no", "such", "dir"))
        request(log)
        log.flush()
        self.assertEqual(log.dropped, 1)
        self.assertEqual(len(self.events), 1)

    def test_lc_10_rotation(self) -> None:
        """LC-10: after logrotate has moved the file, SIGUSR1 goes on in a new one; the old one loses nothing."""
        log = self.open()
        request(log, request_id=b"1")
        log.flush()
        os.rename(self.file, self.file + ".1")
        request(log, request_id=b"2")
        log.flush()
        log.reopen()
        request(log, request_id=b"3")
        log.flush()
        self.assertEqual([line.split()[-1] for line in self.lines(self.file + ".1")], ["1", "2"])
        self.assertEqual([line.split()[-1] for line in self.lines()], ["3"])
        self.assertEqual(log.dropped, 0)

    def test_lc_10_fifo_without_reader(self) -> None:
        """LC-10: a fifo nobody reads neither blocks the start nor the traffic."""
        os.mkfifo(self.file)
        log = self.open()
        request(log)
        log.flush()
        self.assertEqual(log.dropped, 1)

    def test_lc_10_slow_fifo(self) -> None:
        """LC-10: a reader that stalls costs lines beyond a bound; no line it gets is broken, and it catches up."""
        self.patch(access_log, "MAX_PENDING_BYTES", 100_000)
        self.patch(access_log, "PIPE_BYTES", 65536)
        os.mkfifo(self.file)
        reader = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        log = self.open("json")
        sent = 0
        started = time.monotonic()
        for _ in range(100):
            for _ in range(100):
                request(log, request_id=b"%d" % sent)
                sent += 1
            log.flush()
        self.assertLess(time.monotonic() - started, 5.0)
        self.assertGreater(log.dropped, 1000)
        self.assertLess(log._pending_bytes, 200_000)
        received = b""
        while True:
            log.flush()
            try:
                data = os.read(reader, 1 << 20)
            except BlockingIOError:
                break
            received += data
        request(log, request_id=b"last")
        log.flush()
        received += os.read(reader, 1 << 20)
        ids = [json.loads(line)["id"] for line in received.splitlines()]
        self.assertEqual(len(ids), sent + 1 - log.dropped)
        self.assertEqual(ids[-1], "last")

    def test_queue_is_bounded(self) -> None:
        """A worker that is not flushed keeps a bounded number of lines."""
        self.patch(access_log, "MAX_QUEUED_LINES", 10)
        self.patch(access_log, "BATCH_LINES", 2)
        log = self.open()
        for _ in range(12):
            request(log)
            session(log)
        self.assertEqual(log.dropped, 14)
        log.flush()
        self.assertEqual(len(self.lines()), 10)

    def test_broken_entry(self) -> None:
        """A line that cannot be formatted takes no other with it."""
        log = self.open()
        request(log)
        request(log, Head(minor="%"), duration="not a number")
        request(log)
        log.flush()
        self.assertEqual(len(self.lines()), 2)
        self.assertEqual(log.dropped, 1)

    def test_half_a_line_is_finished_first(self) -> None:
        """When the disk fills up in the middle of a line, the next line is not glued to the half one."""
        log = self.open()
        sink = log._sink
        assert sink is not None
        room = [320]
        write = sink.write

        def limited(data: bytes) -> int:
            if not room[0]:
                raise OSError(28, "No space left on device")
            n = write(data[: room[0]])
            room[0] -= n
            return n

        self.patch(access_log._Sink, "write", lambda _, data: limited(data))
        for n in range(5):
            request(log, request_id=b"%d" % n)
        log.flush()
        room[0] = 10_000
        request(log, request_id=b"after")
        log.flush()
        for line in self.lines():
            self.assertRegex(line, COMBINED)
        self.assertEqual([line.split()[-1] for line in self.lines()], ["0", "1", "2", "after"])
        self.assertEqual(log.dropped, 2)

    def test_heads_are_let_go(self) -> None:
        """A flushed line holds no request head back, also when it waits for a slow reader."""
        os.mkfifo(self.file)
        log = self.open()
        head = Head()
        request(log, head)
        gone = weakref.ref(head)
        del head
        log.flush()
        gc.collect()
        self.assertIsNone(gone())


class SinkTests(Base):
    def test_workers_share_a_file(self) -> None:
        """Several workers append to one file without tearing a line."""
        logs = [self.open() for _ in range(3)]
        for _ in range(5):
            for log in logs:
                for _ in range(200):
                    request(log)
                log.flush()
        self.assertEqual(len(self.lines()), 3000)
        for line in self.lines():
            self.assertRegex(line, COMBINED)

    def test_standard_output_is_a_socket(self) -> None:
        """Under systemd standard output may be a socket: lines arrive and a stalled journal does not block."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        saved = os.dup(1)
        try:
            os.dup2(theirs.fileno(), 1)
            log = self.open(file="-")
        finally:
            os.dup2(saved, 1)
            os.close(saved)
            theirs.close()
        request(log)
        log.flush()
        self.assertRegex(ours.recv(65536).decode().rstrip("\n"), COMBINED)
        for _ in range(20):
            for _ in range(500):
                request(log)
            log.flush()
        self.assertTrue(log._pending)

    def test_pieces(self) -> None:
        """Pieces are whole lines; together they are what was written."""
        data = b"".join(b"x" * n + b"\n" for n in (10, 50, 300, 5, 5, 99))
        for limit in (1, 12, 64, 100, 1000):
            cut = list(pieces(data, limit))
            self.assertEqual(b"".join(cut), data)
            self.assertTrue(all(piece.endswith(b"\n") for piece in cut))
            self.assertTrue(all(len(piece) <= limit or piece.count(b"\n") == 1 for piece in cut))
