"""One connected stream socket with TLS on it: a `Transport` whose bytes are encrypted by OpenSSL on the socket itself.

How it works
    The handshake is over when a transport is made (`handshake.py`). A read is one `SSL_read`, which takes one record, so nothing
    ever stays inside OpenSSL unseen: epoll tells of everything that is left. A write is one `SSL_write` for each 16 KiB.

    *Ends.* The peer's close_notify is EOF, as FIN is without TLS. FIN without close_notify is an error: somebody on the way may have
    cut the connection off (RFC 8446 6.1; faults: TL-07). Our own close_notify goes before our FIN and before closing; as for any
    other output, the peer has 5 s to take it. Nobody waits for the peer's answer to it (faults: F2).

    *Half-close.* After our close_notify the peer may go on sending, and after the peer's we may (F3, F4 do not arise: OpenSSL allows both).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from OpenSSL import SSL

from twistedproxy.clock import Wheel
from twistedproxy.net.sides import ReadSide, Receiver, State, WriteSide
from twistedproxy.net.transport import Transport

RECORD_BYTES = 16384
"""The most plain bytes in a TLS record; `SSL_read` never returns more."""
RECORDS_PER_READ = 4

_FLOWING = ReadSide.FLOWING
_MAY_SEND = WriteSide.OPEN
_LINGERING = State.LINGERING
_WantRead = SSL.WantReadError
_WantWrite = SSL.WantWriteError

# pyOpenSSL's `recv` and `send` ask OpenSSL for an error after every success, and make a buffer for each read; together that costs
# as much as decrypting a small record. What they do when there is an error is theirs, and without these names all of it is.
_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)
_has_short_cut = _lib is not None and _ffi is not None and hasattr(SSL.Connection, "_raise_ssl_error")
_read_record: Any = _lib.SSL_read if _has_short_cut else None
_write_record: Any = _lib.SSL_write if _has_short_cut else None
_say_goodbye: Any = _lib.SSL_shutdown if _has_short_cut else None
shake: Any = _lib.SSL_do_handshake if _has_short_cut else None
"""One step of a handshake: 1 when it is complete, else `wants_read` tells whether that is all."""
_BUFFER: Any = _ffi.new("char[]", RECORD_BYTES) if _has_short_cut else None
_RECEIVED: Any = _ffi.buffer(_BUFFER) if _has_short_cut else None
"""What was read last; sliced before anything else runs."""


def wants_read(tls: SSL.Connection, result: int) -> bool:
    """After `shake`: the peer's next bytes are awaited. Any other result raises what pyOpenSSL makes of it."""
    if _lib.SSL_get_error(tls._ssl, result) == _lib.SSL_ERROR_WANT_READ:
        return True
    tls._raise_ssl_error(tls._ssl, result)
    return False


def reason_of(error: SSL.Error) -> str:
    """What went wrong, in OpenSSL's words."""
    if isinstance(error, SSL.SysCallError):
        code = error.args[0] if error.args else -1
        return "ended without close_notify" if code == -1 else os.strerror(code).lower()
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return queue[-1][-1] if queue else str(error) or "TLS protocol error"


def as_os_error(error: SSL.Error) -> OSError:
    """The same in the terms of sockets."""
    if isinstance(error, SSL.SysCallError) and error.args and error.args[0] > 0:
        return OSError(error.args[0], os.strerror(error.args[0]))
    if isinstance(error, SSL.SysCallError):
        return ConnectionResetError(errno.ECONNRESET, "TLS ended without close_notify: what came may not be all")
    return OSError(errno.EPROTO, f"TLS: {reason_of(error)}")


def _send_records(tls: SSL.Connection, data: bytes | bytearray | memoryview) -> int:
    """As `socket.send`: how much of `data` was taken, `BlockingIOError` for nothing.

    A record that was refused is pending inside OpenSSL and must be the beginning of what comes next: callers buffer and retry in order.
    """
    size = len(data)
    at = 0
    with memoryview(data) as view:
        while at < size:
            try:
                with view[at : at + RECORD_BYTES] as part:
                    at += tls.send(part)
            except _WantWrite:
                break
            except SSL.Error as e:
                raise as_os_error(e) from None
    if not at:
        raise BlockingIOError
    return at


class TlsTransport(Transport):
    """One connected, non-blocking stream socket with a finished handshake."""

    __slots__ = ("tls", "on_closing", "_ssl", "_reads_when_writable", "_goodbye_waits", "_has_said_goodbye")

    is_plain: ClassVar[bool] = False

    def __init__(self, reactor: Any, wheel: Wheel, sock: Any, tls: SSL.Connection, peer: str, peer_port: int, write_stall_s: float) -> None:
        super().__init__(reactor, wheel, sock, peer, peer_port, write_stall_s)
        self.tls: SSL.Connection | None = tls
        self._ssl: Any = tls._ssl if _has_short_cut else None
        self.on_closing: Callable[[SSL.Connection], None] | None = None
        """Called once before an orderly close, to keep the session for the next connection."""
        self._send = partial(_send_records, tls)  # holds no reference to us
        self._reads_when_writable = False
        self._goodbye_waits = False
        """close_notify could not be sent yet."""
        self._has_said_goodbye = False

    # Reading

    def doRead(self) -> None:
        if self.state is _LINGERING:
            super().doRead()  # what comes is dropped: no need to decrypt it
            return
        for _ in range(RECORDS_PER_READ):
            ssl = self._ssl
            if ssl is not None:
                count = _read_record(ssl, _BUFFER, RECORD_BYTES)
                if count <= 0:
                    self._not_read(count)
                    return
                data = _RECEIVED[:count]
            else:
                if self.tls is None:
                    return
                try:
                    data = self.tls.recv(RECORD_BYTES)
                except SSL.Error as e:
                    self._not_read(e)
                    return
            self.protocol.dataReceived(data)  # type: ignore[union-attr]
            if len(data) != RECORD_BYTES or self._read is not _FLOWING:
                return

    def _not_read(self, error: SSL.Error | int) -> None:
        if isinstance(error, int):
            try:
                self.tls._raise_ssl_error(self._ssl, error)  # type: ignore[union-attr]
            except SSL.Error as e:
                error = e
            else:
                return
        if isinstance(error, _WantRead):
            return
        if isinstance(error, SSL.ZeroReturnError):
            self.end_of_input()
        elif isinstance(error, _WantWrite):  # an answer to the peer's KeyUpdate must go out first
            self._reads_when_writable = True
            self.reactor.addWriter(self)
        else:
            self.lose(as_os_error(error))

    # Writing

    def write(self, data: bytes) -> None:
        if self.buffered or self._write is not _MAY_SEND:
            if self._write is _MAY_SEND and data:
                self._buffer(data)
            return
        size = len(data)
        if not size:
            return
        try:
            if size > RECORD_BYTES or type(data) is not bytes:
                sent = self._send(data)
            elif self._ssl is not None:
                sent = _write_record(self._ssl, data, size)
                if sent <= 0:
                    self.tls._raise_ssl_error(self._ssl, sent)  # type: ignore[union-attr]
            else:
                sent = self.tls.send(data)  # type: ignore[union-attr]
        except (_WantWrite, BlockingIOError):
            sent = 0
        except SSL.Error as e:
            self.fail_write(as_os_error(e))
            return
        except OSError as e:
            self.fail_write(e)
            return
        if sent != size:
            self._buffer(memoryview(data)[sent:] if sent else data)

    def doWrite(self) -> None:
        if self._reads_when_writable:
            self._reads_when_writable = False
            if not self._has_output():
                self.reactor.removeWriter(self)
            self.doRead()
            return
        super().doWrite()

    # Ending

    def _goodbye(self) -> bool:
        """Send close_notify; False when the kernel has no room for it now."""
        if not self._has_said_goodbye and self.tls is not None:
            try:
                if self._ssl is None:
                    self.tls.shutdown()
                elif (result := _say_goodbye(self._ssl)) < 0:
                    self.tls._raise_ssl_error(self._ssl, result)
            except _WantWrite:
                self._goodbye_waits = True
                return False
            except SSL.Error:
                pass  # the connection is broken already, which whoever reads it is told
            self._has_said_goodbye = True
            self._goodbye_waits = False
        return True

    def _has_output(self) -> bool:
        return self._goodbye_waits or super()._has_output()

    def loseConnection(self) -> None:
        if self.state is State.OPEN and not self.buffered and self._write is _MAY_SEND and not self._goodbye():
            self.reactor.addWriter(self)
        super().loseConnection()

    def _flushed(self) -> None:
        if self.state is State.CLOSING and self._write is _MAY_SEND and not self._goodbye():
            return
        super()._flushed()

    def _send_fin(self) -> tuple[bool, Exception | None]:
        if not self._goodbye():
            self.reactor.addWriter(self)
            self.watch_for_stall()
            return False, None
        return super()._send_fin()

    def _close(self, reset: bool) -> Receiver | None:
        tls = self.tls
        if tls is not None and not reset:
            if not self._has_said_goodbye and self._write is _MAY_SEND and not self.buffered:
                self._goodbye()
            if self.on_closing is not None:
                self.on_closing(tls)
        protocol = super()._close(reset)
        # OpenSSL knows the descriptor by its number, which may be somebody else's from now on.
        self.tls = self.on_closing = self._ssl = None
        self._send = self.sock.send
        return protocol
