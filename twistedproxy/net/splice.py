"""Bytes from socket to socket through a pipe in the kernel, never through Python.

How it works
    `os.splice(source, pipe)` when the source is readable, `os.splice(pipe, sink)` at once. The pipe is filled only while it is
    empty, so "would block" on the source always means that the source has nothing. When the sink takes only part, the source is
    not read until the rest is gone; the sink's write-stall deadline runs meanwhile. A sink that refuses shrinks the reads to
    64 KiB, one that takes everything lets them grow to 1 MiB: a slow reader holds little kernel memory, a fast one costs few calls.

    Pipes are kept for reuse, since making one and growing it costs as much as moving 1 MB. There are at most `MAX_PIPES` in a
    worker; without one, a splice with a known count reads and writes instead.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twistedproxy.net.transport import Transport

PIPE_BYTES = 1024 * 1024
FIRST_READ = 256 * 1024
SLOW_READ = 64 * 1024
READS_TO_GROW = 32
"""After a refusal: so many full reads in a row, about as much as a socket's send buffer holds, before they become larger."""
SMALL_READ = 8 * 1024
"""Without a known end: a read below this ends the splice."""
MAX_PIPES = 256
MAX_IDLE_PIPES = 16

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """A non-blocking pipe of 1 MiB."""

    __slots__ = ("reader", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # pipe-user-pages-soft of this user is used up
            self.close()
            raise

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Pipes:
    """The pipes of one worker."""

    def __init__(self, most: int = MAX_PIPES, most_idle: int = MAX_IDLE_PIPES) -> None:
        self._most = most
        self._most_idle = most_idle
        self._idle: list[Pipe] = []
        self.lent = 0

    def take(self) -> Pipe | None:
        """An empty pipe, or None when there are enough or the kernel gives no more."""
        if self._idle:
            self.lent += 1
            return self._idle.pop()
        if self.lent >= self._most:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe, is_empty: bool) -> None:
        self.lent -= 1
        if is_empty and len(self._idle) < self._most_idle:
            self._idle.append(pipe)
        else:
            pipe.close()

    def close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


PIPES = Pipes()


class Splice:
    """One direction between two plain transports, for exactly `count` bytes or, without a count, until it no longer pays.

    `on_progress(n)` is called for bytes that the sink took. `on_done()` is called once after `count` bytes or, without a count, when
    reads have become small; the source is its protocol's again by then. EOF and errors end the splice and go to the protocols as
    usual. Nobody else may write to the sink meanwhile.
    """

    __slots__ = (
        "source",
        "sink",
        "held",
        "moved",
        "is_blocked",
        "is_active",
        "_left",
        "_pipe",
        "_quantum",
        "_until_growth",
        "_on_progress",
        "_on_done",
    )

    def __init__(
        self,
        source: Transport,
        sink: Transport,
        pipe: Pipe | None,
        count: int | None,
        on_progress: Callable[[int], None],
        on_done: Callable[[], None] | None,
    ) -> None:
        self.source = source
        self.sink = sink
        self.held = 0
        """Bytes in the pipe."""
        self.moved = 0
        """Bytes that went to the sink."""
        self.is_blocked = False
        """The source is not read, since the sink still has to take something."""
        self.is_active = True
        self._left = count
        """Bytes still to be read; None: no end is known."""
        self._pipe = pipe
        self._quantum = FIRST_READ
        self._until_growth = 0
        self._on_progress = on_progress
        self._on_done = on_done
        source.splice_in = self
        sink.splice_out = self

    def __repr__(self) -> str:
        return f"<Splice moved={self.moved} held={self.held} left={self._left} {'active' if self.is_active else 'over'}>"

    def cancel(self) -> None:
        """Stop; the source is its protocol's again. What is in the pipe is lost, so one of the two must be aborted then."""
        self._on_done = None
        self.detach()

    def source_readable(self) -> None:
        """The source's `doRead`."""
        if self.sink.buffered:  # what was written before comes first; `sink_writable` is called after it
            self._block()
            return
        want = self._quantum
        left = self._left
        if left is not None and left < want:
            want = left
        pipe = self._pipe
        if pipe is None:
            self._copy(want)
            return
        source = self.source
        try:
            count = os.splice(source.fileno(), pipe.writer, want, flags=_FLAGS)
        except BlockingIOError:
            return
        except OSError as e:
            source.lose(e)
            return
        if not count:
            self.detach()
            source.end_of_input()
            return
        self.held = count
        if left is not None:
            self._left = left - count
        self._push(pipe)
        if not self.is_active:
            return
        if self.held:
            self._quantum = SLOW_READ
            self._until_growth = READS_TO_GROW
            self._block()
            self.sink.await_writable()
        elif self._left == 0 or (left is None and count < SMALL_READ):
            self._finish()
        elif count == want < PIPE_BYTES:
            if self._until_growth:
                self._until_growth -= 1
            else:
                self._quantum = want * 2

    def _copy(self, want: int) -> None:
        """No pipe was to be had: one read, one write."""
        source = self.source
        try:
            data = source.receive(want)
        except BlockingIOError:
            return
        except OSError as e:
            source.lose(e)
            return
        if not data:
            self.detach()
            source.end_of_input()
            return
        count = len(data)
        if self._left is not None:
            self._left -= count
        self.moved += count
        self.sink.write(data)
        self._on_progress(count)
        if not self.is_active:
            return
        if self._left == 0:
            self._finish()
        elif self.sink.buffered:
            self._block()

    def sink_writable(self) -> None:
        """From the sink's `doWrite`, when its own buffer is empty."""
        if self.held and self._pipe is not None:
            self._push(self._pipe)
            if self.held:
                return
        if not self.is_active:
            return
        if self._left == 0:
            self._finish()
        elif self.is_blocked:
            self.is_blocked = False
            self.source.release_reading()

    def _push(self, pipe: Pipe) -> None:
        """Give the sink what is in the pipe, as far as it takes it."""
        sink = self.sink
        try:
            count = os.splice(pipe.reader, sink.fileno(), self.held, flags=_FLAGS)
        except BlockingIOError:
            return
        except OSError as e:
            self.detach()
            sink.fail_write(e)
            return
        self.held -= count
        self.moved += count
        sink.made_progress()
        self._on_progress(count)

    def _block(self) -> None:
        self.is_blocked = True
        self.source.hold_reading()

    def _finish(self) -> None:
        self.detach()
        if self._on_done is not None:
            told, self._on_done = self._on_done, None
            told()

    def detach(self) -> None:
        """Leave both transports as they were; called by them when they close, too."""
        if not self.is_active:
            return
        self.is_active = False
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            PIPES.give_back(pipe, is_empty=not self.held)
            self.held = 0
        if self.source.splice_in is self:
            self.source.splice_in = None
        if self.sink.splice_out is self:
            self.sink.splice_out = None
        if self.is_blocked:
            self.is_blocked = False
            self.source.release_reading()
