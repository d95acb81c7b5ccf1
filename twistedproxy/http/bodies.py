"""Reading a body of known length, with the same words as `h1.ChunkedReader`."""

from __future__ import annotations


class LengthReader:
    """A Content-Length body: hands on what belongs to it and keeps what comes after."""

    __slots__ = ("left", "leftover")

    trailers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, length: int) -> None:
        self.left = length
        """Bytes still to come."""
        self.leftover = b""

    @property
    def is_done(self) -> bool:
        return self.left == 0

    def feed(self, data: bytes) -> bytes:
        """The part of `data` that is body."""
        over = len(data) - self.left
        if over > 0:
            self.leftover = data[-over:]
            data = data[:-over]
        self.left -= len(data)
        return data
