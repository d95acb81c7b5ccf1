"""Events: readable for people, one line for machines, and nothing a stranger says gets through unescaped."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.observability.events import EventLines, publish_line, text_line


def events_of(format: str, level: Any = LogLevel.info) -> tuple[list[str], Logger]:
    lines: list[str] = []
    return lines, Logger(namespace="room", observer=EventLines(lines.append, format, level))


def a_failure() -> Failure:
    try:
        raise ValueError("what\nwent wrong")
    except ValueError:
        return Failure()


class LinesTests(SynchronousTestCase):
    def test_text(self) -> None:
        """A person reads time, level, source and message."""
        lines, log = events_of("text")
        log.warn("server {name} is down", name="a:1")
        self.assertRegex(lines[0], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warn     room: server a:1 is down\n$")

    def test_sources_are_an_operator_s_words(self) -> None:
        """Not the names of our modules and classes, nor Twisted's."""
        for namespace, source in (
            ("twistedproxy.supervisor.service.Supervisor", "supervisor"),
            ("twistedproxy.supervisor.observed.Observed", "health"),
            ("twistedproxy.supervisor.operations.Operations", "changes"),
            ("twistedproxy.supervisor.journal.Journal", "journal"),
            ("twistedproxy.observability.access_log", "access_log"),
            ("twisted.internet.base", "twisted"),
            ("twisted.scripts._twistd_unix.UnixAppLogger", "twistd"),
            ("log_legacy", "twisted"),
            ("worker", "worker"),
        ):
            self.assertIn(f" info     {source}: ", text_line({"log_namespace": namespace, "log_format": "x", "log_level": LogLevel.info}))
        self.assertIn(" worker 3 cache: ", text_line({"log_source_name": "worker 3 cache", "log_format": "x"}))

    def test_json(self) -> None:
        """A machine reads one object a line."""
        lines, log = events_of("json")
        log.error("no {what}", what="disk")
        facts = json.loads(lines[0])
        self.assertEqual((facts["level"], facts["source"], facts["message"]), ("error", "room", "no disk"))
        self.assertNotIn("traceback", facts)

    def test_traceback(self) -> None:
        """A crash shows where: indented below the text line, inside the JSON line."""
        lines, log = events_of("text")
        log.failure("it broke", failure=a_failure())
        first, *rest = lines[0].splitlines()
        self.assertTrue(first.endswith("critical room: it broke"))
        self.assertTrue(rest)
        self.assertTrue(all(line.startswith("    ") for line in rest))
        lines, log = events_of("json")
        log.failure("it broke", failure=a_failure())
        self.assertEqual(lines[0].count("\n"), 1)
        self.assertIn("ValueError", json.loads(lines[0])["traceback"])

    def test_id_05_injection(self) -> None:
        """ID-05: an event that quotes a stranger is still one line without terminal sequences."""
        nasty = "a\r\nforged\x1b[31m\x9b\u2028\x00"
        for format in ("text", "json"):
            lines, log = events_of(format)
            log.info("client sent {it}", it=nasty)
            self.assertEqual(len(lines[0].splitlines()), 1, lines)
            self.assertFalse(set(lines[0].rstrip("\n")) & set("\r\n\x1b\x9b\u2028\x00"), lines)

    def test_long_messages_are_cut(self) -> None:
        lines, log = events_of("text")
        log.info("{it}", it="x" * 100_000)
        self.assertLess(len(lines[0]), 9000)

    def test_level(self) -> None:
        """Debugging noise is left out."""
        lines, log = events_of("text")
        log.debug("noise")
        self.assertEqual(lines, [])

    def test_unwritable(self) -> None:
        """A log on a full disk does not fell the process."""

        def full(line: str) -> None:
            raise OSError(28, "No space left on device")

        Logger(observer=EventLines(full)).warn("lost")


class PublishTests(SynchronousTestCase):
    def published(self, line: bytes, format: str = "json") -> list[str]:
        lines: list[str] = []
        observer = EventLines(lines.append, format)
        globalLogPublisher.addObserver(observer)
        try:
            publish_line(line, "worker 3")
        finally:
            globalLogPublisher.removeObserver(observer)
        return lines

    def test_round_trip(self) -> None:
        """What a worker says appears in the supervisor's log as if said there, with the worker's name."""
        said, log = events_of("json")
        log.warn("server {name} is down", name="{a}")
        facts = json.loads(self.published(said[0].encode())[0])
        self.assertEqual((facts["level"], facts["source"], facts["message"]), ("warn", "worker 3 room", "server {a} is down"))

    def test_traceback_travels(self) -> None:
        """A worker's traceback arrives whole and is readable as text."""
        said, log = events_of("json")
        log.failure("it broke", failure=a_failure())
        facts = json.loads(self.published(said[0].encode())[0])
        self.assertEqual(facts["message"], "it broke")
        self.assertIn("ValueError", facts["traceback"])
        (text,) = self.published(said[0].encode(), "text")
        self.assertIn("\n    ", text)
        self.assertNotIn("\\x0a", text.splitlines()[0])

    def test_last_words(self) -> None:
        """What is no event (an interpreter's last words, a C library's complaint) is shown as a warning."""
        for line in (b"Fatal Python error: Segmentation fault", b'{"level": 3}', b"[1]", b"\xff{x}"):
            (published,) = self.published(line)
            facts = json.loads(published)
            self.assertEqual(facts["level"], "warn")
            self.assertEqual(facts["message"], line.decode("utf-8", "backslashreplace"))
        self.assertEqual(self.published(b"\n"), [])
