"""Raw ends of connections, and servers that do what they are told: what a scenario is made of besides the proxy."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage import Stage

HOST = "127.0.0.1"
LIMIT_S = 10.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_OURS = re.compile(
    rb"X-Forwarded-For: 127\.0\.0\.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: \d+\r\nX-Forwarded-Host: ([^\r\n]*)\r\n"
)
_REQUEST_ID = re.compile(rb"X-Request-Id: [0-9a-f]{20}\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked\r\n", re.IGNORECASE)


class Broken(AssertionError):
    """Something did not hold; the message says which oracle (faults 2) or which step."""


class Peer:
    """One end of one connection, the client's or the server's: sends what it is told, writes down what it gets."""

    def __init__(self, stage: Stage, sock: socket.socket) -> None:
        self.stage = stage
        self.sock = sock
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.at = 0
        """Up to here it was looked at."""
        self.is_ended = self.is_reset = self.is_ours_closed = False
        self.reads = True
        self.taken = 0
        """Bytes received in all, kept or not."""
        self.keeps = True

    def pump(self) -> None:
        while self.reads and not self.is_over:
            try:
                data = self.sock.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:
                self.is_reset = True
                return
            if not data:
                self.is_ended = True
                return
            self.taken += len(data)
            if self.keeps:
                self.received += data

    @property
    def is_over(self) -> bool:
        return self.is_ended or self.is_reset or self.is_ours_closed

    @property
    def rest(self) -> bytes:
        return bytes(self.received[self.at :])

    def until(self, condition: Callable[[], Any], what: str) -> None:
        def check() -> Any:
            self.pump()
            return condition()

        try:
            self.stage.until(check, what)
        except Broken as e:
            state = "closed" if self.is_ended else "reset" if self.is_reset else "open"
            raise Broken(f"{e}; the connection is {state}, unread: {self.rest[:600]!r}") from None

    def gets(self, expected: bytes) -> None:
        """Exactly these bytes come next."""
        self.until(lambda: len(self.rest) >= len(expected) or not expected.startswith(self.rest) or self.is_over, f"{expected[:200]!r}")
        got = self.rest[: len(expected)]
        if got != expected:
            raise Broken(f"O1: expected {expected!r}, got {self.rest[: len(expected) + 200]!r}")
        self.at += len(expected)

    def through(self, mark: bytes) -> bytes:
        self.until(lambda: mark in self.rest or self.is_over, f"something that ends with {mark!r}")
        end = self.rest.find(mark)
        if end < 0:
            raise Broken(f"the connection ended before {mark!r}; unread: {self.rest[:600]!r}")
        data = self.rest[: end + len(mark)]
        self.at += len(data)
        return data

    def take(self, count: int) -> bytes:
        self.until(lambda: len(self.rest) >= count or self.is_over, f"{count} bytes")
        data = self.rest[:count]
        if len(data) < count:
            raise Broken(f"the connection ended after {len(data)} of {count} bytes")
        self.at += count
        return data

    def message(self, has_body: bool = True) -> tuple[bytes, bytes]:
        """The next request or response, as (head, decoded body)."""
        head = self.through(b"\r\n\r\n")
        status = head[9:12] if head.startswith(b"HTTP/") else b""
        if not has_body or status in (b"204", b"304") or status.startswith(b"1"):
            return head, b""
        if _CHUNKED.search(head):
            body = b""
            while size := int(self.through(b"\r\n"), 16):
                body += self.take(size)
                if self.take(2) != b"\r\n":
                    raise Broken("a chunk does not end where its size says")
            while self.through(b"\r\n") != b"\r\n":
                pass
            return head, body
        length = _LENGTH.search(head)
        if length:
            return head, self.take(int(length[1]))
        if not status:
            return head, b""
        self.until(lambda: self.is_over, "the end of the answer")
        if self.is_reset:
            raise Broken("the answer was broken off")
        body = self.rest
        self.at += len(body)
        return head, body

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        end = time.monotonic() + LIMIT_S
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Broken(f"{len(view)} bytes could not be sent") from None
                self.stage.turn(0.002)
                self.pump()
            except OSError:
                self.is_reset = True
                return

    def pour(self, count: int) -> int:
        """Send up to `count` bytes until nothing more is taken for a while; how many were."""
        sent = idle = 0
        block = b"x" * 65536
        while sent < count and idle < 20:
            try:
                sent += self.sock.send(block[: count - sent])
                idle = 0
            except BlockingIOError:
                idle += 1
            except OSError:
                self.is_reset = True
                break
            self.stage.turn(0.001)
        return sent

    def fin(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.is_ours_closed = True
        self.sock.close()

    def reset(self) -> None:
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # it is closed already
        self.close()


class Origin:
    """A server: a listening socket and its connections, in order of arrival."""

    def __init__(self, stage: Stage, name: str, receive_buffer: int = 0) -> None:
        self.stage = stage
        self.name = name
        self.connections: list[Peer] = []
        self.current: Peer | None = None
        self.answer: bytes | None = None
        """What every request is answered with, in which ECHO stands for the request's path; None: it is asked for each."""
        self.answer_pieces: list[bytes] | None = None
        """The answer to requests that are not the canary's, sent piece by piece."""
        self.seen: list[bytes] = []
        """Raw requests, while it answers by itself."""
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.bind((HOST, 0))
        self.port: int = self.sock.getsockname()[1]
        self.is_listening = False
        self.listen()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def listen(self) -> None:
        """Accept connections (again)."""
        if not self.is_listening:
            if self.sock.fileno() < 0:
                self.sock = socket.socket()
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.sock.bind((HOST, self.port))
            self.sock.listen(512)
            self.sock.setblocking(False)
            self.is_listening = True

    def refuse(self) -> None:
        """From now on connections are refused."""
        self.sock.close()
        self.is_listening = False

    def pump(self) -> None:
        while self.is_listening:
            try:
                sock, _ = self.sock.accept()
            except BlockingIOError:
                break
            self.connections.append(Peer(self.stage, sock))
        if self.answer is not None:
            for peer in self.connections:
                if not peer.is_ours_closed:
                    self._serve(peer, self.answer)

    def _serve(self, peer: Peer, answer: bytes) -> None:
        peer.pump()
        while (size := request_size(peer.rest)) is not None:
            request = peer.rest[:size]
            peer.at += size
            self.seen.append(request)
            path = request.partition(b" ")[2].partition(b" ")[0]
            if self.answer_pieces is not None and not path.startswith(b"/canary"):
                for piece in self.answer_pieces:
                    peer.send(piece)
                    self.stage.turn()
                continue
            body = path if answer is OK and path.startswith(b"/canary") else None
            peer.send(answer if body is None else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def accept(self) -> Peer:
        """The next connection, which becomes the current one."""
        count = 0 if self.current is None else self.connections.index(self.current) + 1
        self.stage.until(lambda: self.pump() or len(self.connections) > count, f"a new connection to server {self.name}")
        self.current = self.connections[count]
        return self.current

    def forget_ended(self) -> None:
        for peer in self.connections:
            if peer.is_over:
                peer.close()
        self.connections = [peer for peer in self.connections if not peer.is_over]

    def leftovers(self) -> bytes:
        """What arrived and nobody expected."""
        self.pump()
        for peer in self.connections:
            peer.pump()
        return b" | ".join(peer.rest for peer in self.connections if peer.rest)

    def close(self) -> None:
        for peer in self.connections:
            peer.close()
        self.sock.close()
        self.is_listening = False


def request_size(data: bytes) -> int | None:
    """Bytes of the first complete request in `data`, framed as the strictest reader would; None when there is none yet."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[: end + 4]
    at = end + 4
    if _CHUNKED.search(head):
        while True:
            line = data.find(b"\r\n", at)
            if line < 0:
                return None
            size = int(data[at:line], 16)
            at = line + 2 + size + 2
            if not size:
                at -= 2
                while True:
                    line = data.find(b"\r\n", at)
                    if line < 0:
                        return None
                    is_last = line == at
                    at = line + 2
                    if is_last:
                        return at
            if at > len(data):
                return None
    length = _LENGTH.search(head)
    at += int(length[1]) if length else 0
    return at if at <= len(data) else None


def without_ours(request: bytes, host: bytes | None = None) -> bytes:
    """A request as a server saw it, less the five fields every forwarded request has; they must be there, once and in order."""
    head, _, body = request.partition(b"\r\n\r\n")
    head += b"\r\n"
    found = _OURS.findall(head)
    if len(found) != 1 or len(_REQUEST_ID.findall(head)) != 1 or (host is not None and found[0] != host):
        raise Broken(f"O1: X-Forwarded-* and X-Request-Id are not there exactly once: {request[:600]!r}")
    return _REQUEST_ID.sub(b"", _OURS.sub(b"", head)) + b"\r\n" + body
