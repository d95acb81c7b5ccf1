"""What happened, for people and for machines: observers that write `twisted.logger` events as text or JSON lines.

A worker has no log file of its own: its events go to standard error, a pipe to the supervisor, as JSON lines (one event is one line
whatever it holds), and `publish_line` gives them back to the logger there, so that they appear in the one configured log and format.

Text is ``TIME LEVEL source: message``, a traceback indented below it; JSON has ``ts level source message`` and, when there is one,
``traceback``. What an event quotes may come from a stranger: control characters never reach the log as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent
from zope.interface import implementer

MAX_MESSAGE = 8 * 1024
MAX_TRACEBACK = 16 * 1024

_UNSAFE = {c: f"\\x{c:02x}" for c in (*range(0x20), 0x7F, *range(0x80, 0xA0))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}
_UNSAFE_BUT_LINES = {c: text for c, text in _UNSAFE.items() if c != 0x0A}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _traceback(event: LogEvent) -> str:
    if "worker_traceback" in event:
        return _cut(event["worker_traceback"], MAX_TRACEBACK)
    failure = event.get("log_failure")
    if failure is None:
        return ""
    try:
        return _cut(failure.getTraceback().rstrip(), MAX_TRACEBACK)
    except Exception as e:  # an exception whose repr raises must not cost the event
        return f"(unreadable traceback: {e!r})"


def _message(event: LogEvent) -> str:
    return _cut(event.get("worker_message") or formatEvent(event) or "", MAX_MESSAGE)


_WORDS = {
    "service": "supervisor", "processes": "workers", "fleet": "workers", "nursery": "workers", "observed": "health", "checker": "health",
    "operations": "changes", "probation": "changes", "discovery": "names", "sockets": "listeners", "api": "admin", "gate": "admin",
    "site": "admin", "configuration": "file", "_twistd_unix": "twistd", "rotation": "workers", "handover": "upgrade", "heir": "upgrade",
    "estate": "upgrade", "succession": "upgrade", "caching": "cache", "cache_keeper": "cache", "purging": "cache", "disk": "cache",
    "doorbell": "cache",
}  # fmt: skip
"""What an operator calls that which a file of ours is about, where the file's own name does not say it."""


def _source(event: LogEvent) -> str:
    """Who says it, in an operator's words: a worker's name, or what the module that logs is about."""
    named = str(event.get("log_source_name") or event.get("log_namespace") or "")
    worker, space, name = named.rpartition(" ")
    *folders, last = name.split(".")
    if folders and folders[0] in ("twistedproxy", "twisted"):
        if last[:1].isupper() and len(folders) > 1:
            last = folders.pop()  # the class goes without saying
        last = _WORDS.get(last, last) if folders[0] == "twistedproxy" or last in _WORDS else "twisted"
    last = "twisted" if last in ("-", "log_legacy") else last
    return f"{worker}{space}{last}" or "-"


def _level(event: LogEvent) -> str:
    level = event.get("log_level")
    return level.name if level is not None else "info"


def _ts(event: LogEvent) -> str:
    when = float(event.get("log_time") or time.time())
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(when))}.{int(when % 1 * 1000):03d}Z"


def text_line(event: LogEvent) -> str:
    """The event for a person, with its line end."""
    message = _message(event).translate(_UNSAFE)
    trace = _traceback(event)
    if trace:
        trace = "\n    " + trace.translate(_UNSAFE_BUT_LINES).replace("\n", "\n    ")
    return f"{_ts(event)} {_level(event):<8} {_source(event)}: {message}{trace}\n"


def json_line(event: LogEvent) -> str:
    """The event for a machine: one line of ASCII."""
    facts = {"ts": _ts(event), "level": _level(event), "source": _source(event), "message": _message(event)}
    trace = _traceback(event)
    if trace:
        facts["traceback"] = trace
    return json.dumps(facts, separators=(",", ":")) + "\n"


@implementer(ILogObserver)
class EventLines:
    """Write every event at or above `level` with `write`, in `format` (``text`` or ``json``)."""

    def __init__(self, write: Callable[[str], Any], format: str = "text", level: Any = LogLevel.info) -> None:
        self._write = write
        self._line = json_line if format == "json" else text_line
        self._level = level

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level")
        if level is not None and level < self._level:
            return
        try:
            self._write(self._line(event))
        except OSError:
            pass  # the log itself cannot be written: there is nowhere left to say so


def publish_line(line: bytes, source: str) -> None:
    """Give a line from a worker's standard error to the logger here; what is no event (a crash's last words) becomes a warning."""
    log = Logger(namespace=source)
    try:
        facts = json.loads(line)
        level = LogLevel.levelWithName(facts["level"])
        message = str(facts["message"])
    except Exception:  # whatever it is, it is shown
        text = line.decode("utf-8", "backslashreplace").rstrip()
        if text:
            log.warn("{worker_message}", worker_message=text)
        return
    name = f"{source} {facts.get('source', '')}".rstrip()
    if facts.get("traceback"):
        trace = str(facts["traceback"])
        log.emit(level, "{worker_message}\n{worker_traceback}", worker_message=message, worker_traceback=trace, log_source_name=name)
    else:
        log.emit(level, "{worker_message}", worker_message=message, log_source_name=name)
