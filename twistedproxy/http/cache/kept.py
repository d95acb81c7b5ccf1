"""A kept body that lies in a file, on its way to a client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twistedproxy.net.sendfile import FileSend
from twistedproxy.net.transport import Transport


class Kept:
    """A complete file that is sent: what is read of it was verified."""

    __slots__ = ("_reader",)

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def send(
        self, sink: Transport, first: int, length: int, on_progress: Callable[[int], None], on_done: Callable[[bool], None]
    ) -> FileSend:
        """A part of it goes to the client inside the kernel."""
        reader = self._reader
        return FileSend(
            sink, reader.fd, reader.body_offset + first, length, lambda at, n: reader.verify(first + at, n), on_progress, on_done
        )  # fmt: skip

    def read(self, position: int, most: int) -> bytes | None:
        """None: it is damaged."""
        if not self._reader.verify(position, most):
            return None
        data: bytes = self._reader.read(position, most)
        return data or None

    def progressed(self) -> None:
        """A file waits for nobody."""
