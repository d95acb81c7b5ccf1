"""A part of a file on its way to a plain socket, inside the kernel.

How it works
    `os.sendfile` until the socket takes no more; then the transport tells when it is writable again. A piece is looked at by `check` before
    the first byte of it is sent. Nobody else may write to the sink meanwhile. The sink's write-stall deadline runs as for any output.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from socket import MSG_MORE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twistedproxy.net.transport import Transport

PIECE = 1024 * 1024
PIECES_PER_TURN = 2


class FileSend:
    """Sends `count` bytes of descriptor `fd` from `offset` on, after what the sink has waiting.

    `check(first, length)` is asked, with positions counted from `offset`, whether a piece may be sent; `on_progress(n)` is told of
    bytes that the sink took; `on_done(is_whole)` is called once: False when the file is shorter than it was, or a check failed.
    """

    __slots__ = ("_check", "_checked", "_fd", "_offset", "_on_done", "_on_progress", "_sent", "held", "is_active", "sink")

    is_blocked = False

    def __init__(
        self,
        sink: Transport,
        fd: int,
        offset: int,
        count: int,
        check: Callable[[int, int], bool],
        on_progress: Callable[[int], None],
        on_done: Callable[[bool], None],
    ) -> None:
        if not sink.is_plain or count <= 0:
            raise ValueError("at least one byte goes from a file to a plain transport")
        self.sink = sink
        self.held = count
        """Bytes still to be sent."""
        self.is_active = True
        self._fd = fd
        self._offset = offset
        self._sent = 0
        self._checked = 0
        self._check = check
        self._on_progress = on_progress
        self._on_done: Callable[[bool], None] | None = on_done
        sink.splice_out = self

    def begin(self) -> None:
        """Send what the socket takes at once, the rest later; what is called back may be called before this returns."""
        if not self.sink.buffered:
            self.sink_writable()
        if self.is_active:
            self.sink.await_writable()

    def __repr__(self) -> str:
        return f"<FileSend sent={self._sent} left={self.held} {'active' if self.is_active else 'over'}>"

    def sink_writable(self) -> None:
        """From the sink's `doWrite`, when its own buffer is empty."""
        for _ in range(PIECES_PER_TURN):
            if not self.is_active:
                return
            want = min(self.held, PIECE - self._sent % PIECE)
            if self._sent >= self._checked:
                if not self._check(self._sent, want):
                    self._finish(False)
                    return
                self._checked = self._sent + want
            try:
                count = os.sendfile(self.sink.fileno(), self._fd, self._offset + self._sent, want)
            except BlockingIOError:
                return
            except OSError as e:
                self.detach()
                self.sink.fail_write(e)
                return
            if not count:
                self._finish(False)
                return
            self._sent += count
            self.held -= count
            self.sink.made_progress()
            self._on_progress(count)
            if not self.held:
                self._finish(True)
            elif count < want:
                return

    def _finish(self, is_whole: bool) -> None:
        told, self._on_done = self._on_done, None
        self.detach()
        if told is not None:
            told(is_whole)

    def cancel(self) -> None:
        """Stop here; whoever asked for it ends the connection."""
        self._on_done = None
        self.detach()

    def detach(self) -> None:
        """Leave the sink as it was; called by it when it closes, too."""
        self.is_active = False
        self.held = 0
        if self.sink.splice_out is self:
            self.sink.splice_out = None


def send_at_once(sink: Transport, head: bytes, fd: int, offset: int, count: int) -> int:
    """Write `head`, and of `count` bytes of a file as many as the socket takes now; how many that was.

    The head waits in the kernel for the first bytes of the file, so that both travel in one packet. An error is not told here: whoever
    goes on with the rest meets it again.
    """
    if sink.buffered or sink.error is not None:
        sink.write(head)
        return 0
    sock = sink.sock
    try:
        taken = sock.send(head, MSG_MORE)
    except OSError:
        taken = 0
    if taken != len(head):
        sink.write(head[taken:])
        return 0
    try:
        return os.sendfile(sock.fileno(), fd, offset, count)
    except OSError:
        return 0
