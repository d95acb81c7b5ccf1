"""A server of its own process, for what needs one that can be killed: ``python origin.py PORT``.

Every answer carries the `X-Id` of its request. The path says what it does: ``/echo`` (the body, or the id), ``/chunked``, ``/big/BYTES``,
``/slow/MILLISECONDS``, and the faults ``/reset``, ``/half`` (closes in the middle of the body), ``/hang``, ``/garbage``, ``/close``.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import sys

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
ID = re.compile(rb"\r\nx-id: *([^\r]*)", re.IGNORECASE)
BLOCK = b"0123456789abcdef" * 4096


class Server(asyncio.Protocol):
    """One connection, HTTP/1.1, one request at a time."""

    def __init__(self) -> None:
        self.buffer = b""
        self.is_writable = asyncio.Event()
        self.is_writable.set()
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.is_writable.clear()

    def resume_writing(self) -> None:
        self.is_writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.task is None:
            self.next_request()

    def next_request(self) -> None:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[: end + 2]
        found = LENGTH.search(head)
        size = end + 4 + (int(found[1]) if found else 0)
        if len(self.buffer) < size:
            return
        body, self.buffer = self.buffer[end + 4 : size], self.buffer[size:]
        name = ID.search(head)
        path = head.split(b" ", 2)[1]
        answer = self.at_once(path, name[1] if name else b"-", body, head.startswith(b"HEAD "))
        if answer is None:
            self.task = asyncio.get_running_loop().create_task(self.later(path, name[1] if name else b"-"))
        else:
            self.transport.write(answer)
            if self.buffer:
                self.next_request()

    def at_once(self, path: bytes, name: bytes, body: bytes, is_head: bool) -> bytes | None:
        what = path.split(b"/")[1]
        if what in (b"slow", b"big", b"hang"):
            return None
        if what == b"reset":
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
            return b""
        if what == b"garbage":
            return b"\x16\x03\x01 this is not HTTP\r\n\r\n"
        if what == b"half":
            self.transport.write(b"HTTP/1.1 200 OK\r\nX-Id: %b\r\nContent-Length: 1000\r\n\r\nhalf" % name)
            self.transport.close()
            return b""
        if what == b"close":
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nX-Id: %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (name, len(name), name)
            )
            self.transport.close()
            return b""
        text = body or name
        if what == b"chunked":
            return b"HTTP/1.1 200 OK\r\nX-Id: %b\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (name, len(text), text)
        return b"HTTP/1.1 200 OK\r\nX-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (name, len(text), b"" if is_head else text)

    async def later(self, path: bytes, name: bytes) -> None:
        _, what, number, *_ = [*path.split(b"/"), b"0"]
        if what == b"hang":
            await asyncio.sleep(3600)
        if what == b"slow":
            await asyncio.sleep(int(number) / 1000)
            self.transport.write(b"HTTP/1.1 200 OK\r\nX-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (name, len(name), name))
        else:
            left = int(number)
            self.transport.write(b"HTTP/1.1 200 OK\r\nX-Id: %b\r\nContent-Length: %d\r\n\r\n" % (name, left))
            while left:
                piece = BLOCK[:left]
                self.transport.write(piece)
                left -= len(piece)
                await self.is_writable.wait()
        self.task = None
        if self.buffer:
            self.next_request()


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
