"""The server's end of a TLS connection, made of what OpenSSL needs and nothing else.

How it works
    pyOpenSSL enters each connection in a table of weak references, where its callbacks look it up, and sets a dozen attributes; together
    that costs as much as OpenSSL's own part. Contexts for clients need one callback only, the choice of a protocol, and that has no use
    for the connection. So `accept` leaves the table out, and the attributes that are the same for all connections stand in the class.
    All methods are pyOpenSSL's.

    This leans on names that pyOpenSSL does not promise. Where one is missing, or its connections have an attribute that is not known
    here, its own constructor and its own callback do the work.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Sequence
from typing import Any

from OpenSSL import SSL

_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)
_NEEDED = (
    "SSL_new", "SSL_free", "SSL_set_fd", "SSL_set_accept_state", "SSL_CTX_set_alpn_select_cb", "SSL_MODE_AUTO_RETRY",
    "SSL_TLSEXT_ERR_OK", "SSL_TLSEXT_ERR_NOACK", "SSL_TLSEXT_ERR_ALERT_FATAL",
)  # fmt: skip
_ALPN_SELECT = "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)"


class ServerContext(SSL.Context):
    """For connections that clients make. It takes none of pyOpenSSL's callbacks: they would not find the connection."""

    is_lean = False
    """Connections are made without pyOpenSSL's constructor."""

    def speak(self, protocols: Sequence[bytes]) -> None:
        """What we speak, the best first (ALPN, RFC 7301); a client that offers none of it is not told of any."""
        self.is_lean = knows_pyopenssl()
        if self.is_lean:
            self.set_mode(_lib.SSL_MODE_AUTO_RETRY)  # as pyOpenSSL does for each connection
            if protocols:
                self._choose = _ffi.callback(_ALPN_SELECT, _chooser(protocols), error=_lib.SSL_TLSEXT_ERR_ALERT_FATAL)
                _lib.SSL_CTX_set_alpn_select_cb(self._context, self._choose, _ffi.NULL)
        elif protocols:
            self.set_alpn_select_callback(functools.partial(_select, tuple(protocols)))


def _select(ours: Sequence[bytes], _: SSL.Connection, theirs: Sequence[bytes]) -> bytes | SSL._NoOverlappingProtocols:
    return next((protocol for protocol in ours if protocol in theirs), SSL.NO_OVERLAPPING_PROTOCOLS)


def _chooser(protocols: Sequence[bytes]) -> Callable[..., int]:
    """The same as OpenSSL asks it. It has checked that the list is well formed; what is answered must outlive the call."""
    ours = [(protocol, _ffi.new("unsigned char[]", protocol), len(protocol)) for protocol in protocols]
    chosen, none = int(_lib.SSL_TLSEXT_ERR_OK), int(_lib.SSL_TLSEXT_ERR_NOACK)

    def choose(ssl: Any, out: Any, out_size: Any, offered: Any, size: int, argument: Any) -> int:
        offer = _ffi.buffer(offered, size)[:]
        theirs = []
        at = 0
        while at < size:
            end = at + 1 + offer[at]
            theirs.append(offer[at + 1 : end])
            at = end
        for protocol, pointer, length in ours:
            if protocol in theirs:
                out[0] = pointer
                out_size[0] = length
                return chosen
        return none

    return choose


class _Accepted(SSL.Connection):
    """A connection of a `ServerContext`, on a socket."""

    _app_data: Any = None
    _alpn_select_callback_args: Any = None
    _verify_helper: Any = None
    _verify_callback: Any = None
    _cookie_generate_helper: Any = None
    _cookie_verify_helper: Any = None
    _into_ssl: Any = None
    _from_ssl: Any = None

    def __init__(self, context: ServerContext, sock: socket.socket) -> None:  # instead of pyOpenSSL's
        ssl = _lib.SSL_new(context._context)
        if not ssl:
            raise MemoryError("OpenSSL has no memory for another connection")
        self._ssl = ssl = _ffi.gc(ssl, _lib.SSL_free)
        self._context = context
        self._socket = sock
        if _lib.SSL_set_fd(ssl, sock.fileno()) != 1:
            raise MemoryError("OpenSSL has no memory for another connection")
        _lib.SSL_set_accept_state(ssl)


@functools.cache
def knows_pyopenssl() -> bool:
    """Is all there that is leant on, and nothing new in a connection?"""
    if _ffi is None or not all(hasattr(_lib, name) for name in _NEEDED):
        return False
    known = {"_ssl", "_context", "_socket"} | {name for name, value in vars(_Accepted).items() if value is None}
    return vars(SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)).keys() <= known


def accept(context: SSL.Context, sock: socket.socket) -> SSL.Connection:
    """The beginning of a handshake with the client at the other end of `sock`."""
    if type(context) is ServerContext and context.is_lean:
        return _Accepted(context, sock)
    connection = SSL.Connection(context, sock)
    connection.set_accept_state()
    return connection
