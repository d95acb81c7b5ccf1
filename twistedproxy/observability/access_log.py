"""One line for every request and every TCP session, written without ever holding up traffic.

How it works
    `log_http` and `log_tcp` only append a tuple; every 64 of them become lines in one go. `flush`, called every 100 ms, appends them
    to the file in pieces of whole lines, so that several workers can share one file (`O_APPEND`; pipes get pieces that the kernel keeps
    whole). Nothing here blocks or raises: whatever cannot be written (disk full, directory gone, reader of a pipe too slow) is kept
    within a bound, then dropped and counted, with one event a minute.

    What a client sends is bytes from a stranger: in ``combined`` everything but printable ASCII, quotes and backslashes becomes
    ``\\xHH``; in ``json`` it is a JSON string in ASCII. Long fields are cut, so that no line is over 8 KiB. Only the request line,
    Referer and User-Agent are read from a head: credentials and cookies cannot get here.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring_ascii as json_string
from typing import Any, Protocol

from twisted.logger import Logger

from twistedproxy.errors import Cause, Phase

BATCH_LINES = 64
"""Requests whose heads are kept for their lines."""
MAX_QUEUED_LINES = 50_000
"""Lines between two flushes."""
MAX_PENDING_BYTES = 4 * 1024 * 1024
"""Formatted text that waits for a slow pipe."""
MAX_PIECE_BYTES = 64 * 1024
MAX_LINE_BYTES = 8 * 1024
PIPE_BYTES = 1024 * 1024
"""Buffer asked for when the log is a pipe; the kernel may refuse it."""
REOPEN_EVERY_S = 1.0
EVENT_EVERY_S = 60.0

METHOD_MAX = 64
TARGET_MAX = 4000
FIELD_MAX = 1024
WORD_MAX = 256
"""Longest forms in a line; together with the numbers they stay below `MAX_LINE_BYTES`."""

_log = Logger()


class LoggedHead(Protocol):
    """What is read from a request head (`http.messages.RequestHead` is one)."""

    @property
    def method(self) -> bytes: ...

    @property
    def target(self) -> bytes: ...

    @property
    def minor(self) -> int: ...

    def get(self, name: bytes) -> bytes | None: ...

    def log_pieces(self) -> tuple[str, str, str, str | None, str | None] | None:
        """(method, target, version, Referer, User-Agent) when they are short, printable ASCII without quotes and backslashes."""
        ...


# Escaping

_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\')
_ESCAPES = {c: f"\\x{c:02X}" for c in range(256) if c not in _PLAIN}
_WORD_ESCAPES = {**_ESCAPES, 0x20: "\\x20"}
_OK = Cause.OK
_OK_ENDING = "ok/-"
_DASHES = ("", "", "", None, None)
_STATUS_TEXT = ("-", *map(str, range(1, 1000)))


def _escaped(value: bytes | None, limit: int, escapes: dict[int, str] = _ESCAPES) -> str:
    """A field of a combined line; ``-`` when absent or empty."""
    if not value:
        return "-"
    escaped = value[:limit].decode("latin-1").translate(escapes)
    return escaped if len(escaped) <= limit else value[: limit // 4].decode("latin-1").translate(escapes)


@functools.lru_cache(maxsize=8192)
def _word(value: str) -> str:
    """A name or address for a place without quotes in a combined line."""
    return _escaped(value.encode("utf-8", "backslashreplace"), WORD_MAX, _WORD_ESCAPES)


def _json_bytes(value: bytes | None, limit: int) -> str:
    """A JSON string in ASCII; ``null`` when absent."""
    if value is None:
        return "null"
    written = json_string(value[:limit].decode("utf-8", "backslashreplace"))
    if len(written) > limit + 2:
        written = json_string(value[: limit // 6].decode("utf-8", "backslashreplace"))
    return written


@functools.lru_cache(maxsize=8192)
def _json_word(value: str) -> str:
    return _json_bytes(value.encode("utf-8", "backslashreplace") or None, WORD_MAX)


@functools.lru_cache(maxsize=8192)
def _place(site: str, pool: str, server: str) -> str:
    """Three names side by side in a combined line."""
    return f"{_word(site)} {_word(pool)} {_word(server)}"


class _Clock:
    """Time stamps for log lines, made anew only when the second changes."""

    __slots__ = ("second", "text", "_render")

    def __init__(self, render: Callable[[int], str]) -> None:
        self.second = -1.0
        self.text = ""
        """The stamp of `second`: nearly always the one that is wanted, and not worth a call then."""
        self._render = render

    def at(self, when: float) -> str:
        if not 0.0 <= when - self.second < 1.0:
            self.second = when // 1
            self.text = self._render(int(when))
        return self.text


# Lines: a queued entry is (formatter, when, …). What a client sent is nearly always plain, which the head itself says in one call.


class _Combined:
    """The lines of contract 5, which tools for nginx's and Apache's logs read."""

    def __init__(self) -> None:
        self._clock = _Clock(lambda second: time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(second)))

    def http(self, entry: tuple[Any, ...]) -> str:
        _, when, ip, head, status, sent, _received, site, pool, server, duration, _attempts, cause, phase, given_id, _ = entry
        pieces = _DASHES if head is None else head.log_pieces()
        if pieces is None:
            pieces = (
                _escaped(head.method, METHOD_MAX), _escaped(head.target, TARGET_MAX), f"HTTP/1.{head.minor:d}",
                _escaped(head.get(b"referer"), FIELD_MAX), _escaped(head.get(b"user-agent"), FIELD_MAX),
            )  # fmt: skip
        method, target, version, referer, agent = pieces
        request = f"{method} {target} {version}" if method else "-"
        # Ids made here are letters and digits.
        request_id = given_id.decode() if given_id.isalnum() and len(given_id) <= WORD_MAX else _escaped(given_id, WORD_MAX, _WORD_ESCAPES)
        clock = self._clock
        stamp = clock.text if 0.0 <= when - clock.second < 1.0 else clock.at(when)
        return (
            f'{_word(ip)} - - [{stamp}] "{request}" {_STATUS_TEXT[status]} {sent} "{referer or "-"}" "{agent or "-"}" '
            f"{_place(site, pool, server)} {duration:.4f} {_OK_ENDING if cause is _OK and phase is None else _ending(cause, phase)} "
            f"{request_id}\n"
        )

    def tcp(self, entry: tuple[Any, ...]) -> str:
        _, when, ip, listener, pool, server, bytes_in, bytes_out, duration, cause, phase, session_id = entry
        name = _word(listener)
        return (
            f'{_word(ip)} - - [{self._clock.at(when)}] "TCP {name}" - {bytes_out} "-" "-" {name} {_word(pool)} {_word(server)} '
            f"{duration:.4f} {_ending(cause, phase)} {_escaped(session_id, WORD_MAX, _WORD_ESCAPES)} bytes_in={bytes_in}\n"
        )


def _ending(cause: Cause, phase: Phase | None) -> str:
    return f"{cause.value}/{'-' if phase is None else phase.value}"


class _Json:
    """One JSON object a line, the keys in the order of contract 5; what is absent is null."""

    def __init__(self) -> None:
        self._clock = _Clock(lambda second: time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))

    def http(self, entry: tuple[Any, ...]) -> str:
        _, when, ip, head, status, sent, received, site, pool, server, duration, attempts, cause, phase, request_id, listener = entry
        if head is None:
            who = '"method":null,"target":null,"version":null'
            referer = agent = "null"
        else:
            pieces = head.log_pieces()
            if pieces is not None:
                method, target, version, referer, agent = pieces
                who = f'"method":"{method}","target":"{target}","version":"{version}"'
                referer = "null" if referer is None else f'"{referer}"'
                agent = "null" if agent is None else f'"{agent}"'
            else:
                method, target = _json_bytes(head.method, METHOD_MAX), _json_bytes(head.target, TARGET_MAX)
                who = f'"method":{method},"target":{target},"version":"HTTP/1.{head.minor:d}"'
                referer, agent = _json_bytes(head.get(b"referer"), FIELD_MAX), _json_bytes(head.get(b"user-agent"), FIELD_MAX)
        return (
            f'{{"ts":"{self._clock.at(when)}.{int(when % 1 * 1000):03d}Z","client_ip":{_json_word(ip)},{who},"status":{status or "null"},'
            f'"bytes_sent":{sent},"bytes_received":{received},"referer":{referer},"user_agent":{agent},'
            f'"site":{_json_word(site)},"pool":{_json_word(pool)},"server":{_json_word(server)},"duration":{duration:.4f},'
            f'"attempts":{attempts},"cause":"{cause.value}","phase":{_json_phase(phase)},'
            f'"id":{_json_bytes(request_id or None, WORD_MAX)},"listener":{_json_word(listener)}}}\n'
        )

    def tcp(self, entry: tuple[Any, ...]) -> str:
        _, when, ip, listener, pool, server, bytes_in, bytes_out, duration, cause, phase, session_id = entry
        name = _json_word(listener)
        return (
            f'{{"ts":"{self._clock.at(when)}.{int(when % 1 * 1000):03d}Z","client_ip":{_json_word(ip)},"method":"TCP","target":{name},'
            f'"version":null,"status":null,"bytes_sent":{bytes_out},"bytes_received":{bytes_in},"referer":null,"user_agent":null,'
            f'"site":null,"pool":{_json_word(pool)},"server":{_json_word(server)},"duration":{duration:.4f},"attempts":null,'
            f'"cause":"{cause.value}","phase":{_json_phase(phase)},"id":{_json_bytes(session_id or None, WORD_MAX)},"listener":{name}}}\n'
        )


def _json_phase(phase: Phase | None) -> str:
    return "null" if phase is None else f'"{phase.value}"'


# The file


def pieces(data: bytes, limit: int) -> Iterator[bytes]:
    """`data` cut after line ends into pieces of at most `limit` bytes; a longer line is a piece of its own."""
    start = 0
    while start < len(data):
        if len(data) - start <= limit:
            yield data[start:]
            return
        end = data.rfind(b"\n", start, start + limit) + 1 or data.index(b"\n", start) + 1
        yield data[start:end]
        start = end


class _Sink:
    """The open file, pipe or socket behind a log: writes never block."""

    def __init__(self, file: str) -> None:
        self._socket: socket.socket | None = None
        if file == "-":
            # A new open file description, since O_NONBLOCK on the inherited one would also strike whoever shares it.
            try:
                self._fd = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                self._fd = os.dup(1)
        else:
            self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
        mode = os.fstat(self._fd).st_mode
        self._is_regular = stat.S_ISREG(mode)
        self.piece_bytes = MAX_PIECE_BYTES if self._is_regular else select.PIPE_BUF
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=self._fd)
        elif stat.S_ISFIFO(mode):
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                pass  # over the user's quota for pipes: the default buffer serves too

    @property
    def is_deleted(self) -> bool:
        return self._is_regular and os.fstat(self._fd).st_nlink == 0

    def write(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._fd, data)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)


class AccessLog:
    """The access log of one worker.

    `file` is a path or ``-`` (standard output); `format` is ``combined`` or ``json``; `seconds_wall` stamps the lines.
    """

    def __init__(
        self,
        file: str,
        format: str = "combined",
        seconds_wall: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.file = file
        self.format = format
        self.dropped = 0
        """Lines lost so far; never runs backwards."""
        self._seconds_wall = seconds_wall
        self._seconds = seconds
        lines: _Combined | _Json = _Json() if format == "json" else _Combined()
        self._http = lines.http
        self._tcp = lines.tcp
        self._queue: list[tuple[Any, ...]] = []
        self._lines: list[str] = []
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._is_mid_line = False
        """The file ends with the beginning of the line that `_pending` goes on with."""
        self._sink: _Sink | None = None
        self._next_open = 0.0
        self._next_event = 0.0
        self._dropped_at_event = 0
        self._open()

    def log_http(
        self,
        client_ip: str,
        head: LoggedHead | None,
        status: int,
        bytes_sent: int,
        bytes_received: int,
        site: str,
        pool: str,
        server: str,
        duration: float,
        attempts: int,
        cause: Cause,
        phase: Phase | None,
        request_id: bytes,
        listener: str,
    ) -> None:
        """Queue one finished request; `head` is read and let go of soon."""
        self._queue.append(
            (
                self._http, self._seconds_wall(), client_ip, head, status, bytes_sent, bytes_received, site, pool, server,
                duration, attempts, cause, phase, request_id, listener,
            )
        )  # fmt: skip
        if len(self._queue) >= BATCH_LINES:
            self._format()

    def log_tcp(
        self,
        client_ip: str,
        listener: str,
        pool: str,
        server: str,
        bytes_in: int,
        bytes_out: int,
        duration: float,
        cause: Cause,
        phase: Phase | None,
        session_id: bytes,
    ) -> None:
        """Queue one finished session; `bytes_in` came from the client, `bytes_out` went to it."""
        self._queue.append(
            (
                self._tcp, self._seconds_wall(), client_ip, listener, pool, server, bytes_in, bytes_out, duration,
                cause, phase, session_id,
            )
        )  # fmt: skip
        if len(self._queue) >= BATCH_LINES:
            self._format()

    def flush(self) -> None:
        """Format what was queued and write what the file takes now."""
        if self._queue:
            self._format()
        if self._lines:
            self._take_lines()
        if self._pending:
            self._write()
        if self.dropped != self._dropped_at_event:
            self._tell(f"{self.dropped - self._dropped_at_event} lines were dropped: it takes no more right now")

    def reopen(self) -> None:
        """Close the file and open it anew by name, as after a rotation; what is pending goes to the new one."""
        self._close_sink()
        self._next_open = 0.0
        self._open()

    def close(self) -> None:
        """Write what can be written at once and let go of the file."""
        self.flush()
        self._close_sink()

    # Formatting

    def _format(self) -> None:
        """Make lines of the queue, so that the heads in it are let go of while they are still in the CPU's caches."""
        entries, self._queue = self._queue, []
        lines = self._lines
        if len(lines) >= MAX_QUEUED_LINES:
            self.dropped += len(entries)
            return
        for entry in entries:
            try:
                lines.append(entry[0](entry))
            except Exception as e:  # a line that cannot be written must not take the others with it
                self.dropped += 1
                self._tell(f"a line could not be formatted: {e!r}")

    def _take_lines(self) -> None:
        lines, self._lines = self._lines, []
        data = "".join(lines).encode("ascii")
        if self._pending_bytes + len(data) > MAX_PENDING_BYTES and self._pending:
            self.dropped += len(lines)
            return
        limit = MAX_PIECE_BYTES if self._sink is None else self._sink.piece_bytes
        self._pending.extend(pieces(data, limit))
        self._pending_bytes += len(data)

    # Writing

    def _open(self) -> None:
        now = self._seconds()
        if now < self._next_open:
            return
        self._next_open = now + REOPEN_EVERY_S
        try:
            self._sink = _Sink(self.file)
        except OSError as e:
            self._tell(f"cannot be opened: {e.strerror}")

    def _close_sink(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        if self._is_mid_line:
            rest, self._is_mid_line = self._pending[0], False
            end = rest.index(b"\n") + 1
            self._pending_bytes -= end
            self.dropped += 1
            if end == len(rest):
                self._pending.popleft()
            else:
                self._pending[0] = rest[end:]

    def _write(self) -> None:
        if self._sink is not None and self._sink.is_deleted:
            self._close_sink()
        if self._sink is None:
            self._open()
        if self._sink is None:
            self._drop_pending()
            return
        pending = self._pending
        try:
            while pending:
                piece = pending[0]
                written = self._sink.write(piece)
                self._pending_bytes -= written
                if written < len(piece):
                    self._is_mid_line = not piece.endswith(b"\n", 0, written)
                    pending[0] = piece[written:]
                else:
                    self._is_mid_line = False
                    pending.popleft()
        except BlockingIOError:
            return  # a slow reader: the bound on pending text decides
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self._close_sink()
            self._drop_pending()
            self._tell(f"cannot be written: {e.strerror}")

    def _drop_pending(self) -> None:
        """Forget whole lines; the end of a line that is half in the file stays, so that nothing is ever glued to it."""
        kept = b""
        if self._is_mid_line:
            rest = self._pending[0]
            kept = rest[: rest.index(b"\n") + 1]
        self.dropped += sum(piece.count(b"\n") for piece in self._pending) - bool(kept)
        self._pending.clear()
        self._pending_bytes = len(kept)
        if kept:
            self._pending.append(kept)

    def _tell(self, problem: str) -> None:
        """One event a minute about what is wrong; the counter tells the rest."""
        now = self._seconds()
        if now < self._next_event:
            return
        self._next_event = now + EVENT_EVERY_S
        self._dropped_at_event = self.dropped
        _log.warn("access log {file}: {problem} ({dropped} lines lost so far)", file=self.file, problem=problem, dropped=self.dropped)
