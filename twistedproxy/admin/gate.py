"""What is decided before a body is read: is the Host ours, who asks, may they, is the body one we would take."""

# mypy: disable-error-code="no-untyped-call"
# (most of twisted.web has no annotations)

from __future__ import annotations

import pwd
import socket
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.logger import Logger
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Map

from twistedproxy.admin.auth import GuessBrake, Identity, Role, Tokens, bearer, host_of, is_our_name
from twistedproxy.admin.operations import OPERATIONS, Operation
from twistedproxy.admin.problems import Refuse, forbidden, foreign_host, too_many_guesses, unauthorized
from twistedproxy.admin.site import AdminRequest
from twistedproxy.config.model import Admin

_BY_NAME = {operation.name: operation for operation in OPERATIONS}
_log = Logger()


class Router:
    """Finds the operation of a request, by the very map Klein routes by, so that role and handler cannot disagree."""

    def __init__(self, url_map: Map) -> None:
        self._adapter = url_map.bind("admin")

    def find(self, method: bytes, target: bytes) -> Operation:
        """Raises `Refuse` 400, 404 or 405."""
        if method != method.upper():
            raise Refuse(405, "Methods are written in capital letters.")
        path = "/".join(map(_text, target.partition(b"?")[0].split(b"/")))
        try:
            name, _ = self._adapter.match(path, method=method.decode("latin-1"))
        except MethodNotAllowed as e:
            allowed = ", ".join(sorted(e.valid_methods or ()))
            raise Refuse(405, f"This path takes {allowed}.", headers={"Allow": allowed}) from None
        except HTTPException:
            raise Refuse(404, "There is nothing at this path; GET /api/v1/openapi.json lists what there is.") from None
        return _BY_NAME[str(name)]


def _text(segment: bytes) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Refuse(400, "The path is not UTF-8.") from None
    if not text.isprintable():
        raise Refuse(400, "The path has control characters.")
    return text


class _AnyGate:
    """What both gates ask of a request once its sender is known."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def _check_body(self, request: AdminRequest, operation: Operation, length: int | None) -> None:
        headers = request.requestHeaders
        if headers.getRawHeaders(b"Content-Encoding", [b"identity"]) != [b"identity"]:
            raise Refuse(415, "Send the body without a Content-Encoding.")
        if operation.is_mutation and (operation.needs_body or length != 0):
            kinds = headers.getRawHeaders(b"Content-Type", [])
            if len(kinds) != 1 or kinds[0].partition(b";")[0].strip().lower() != b"application/json":
                raise Refuse(415, "Send the body with Content-Type: application/json.")


class LocalGate(_AnyGate):
    """For the unix socket: whoever can open it is admin; the journal gets the name of the user."""

    def admit(self, request: AdminRequest, method: bytes, target: bytes, length: int | None) -> None:
        if not target.startswith(b"/"):
            raise Refuse(400, "The request target must be a path.")
        request.identity = Identity(user_at_the_other_end(request.unix_socket_peer), Role.ADMIN)
        operation = self._router.find(method, target)
        self._check_body(request, operation, length)
        request.operation = operation


class TcpGate(_AnyGate):
    """For everything that comes over TCP."""

    def __init__(self, router: Router, tokens: Tokens, brake: GuessBrake, admin: Callable[[], Admin]) -> None:
        super().__init__(router)
        self._tokens = tokens
        self._brake = brake
        self._admin = admin

    def admit(self, request: AdminRequest, method: bytes, target: bytes, length: int | None) -> None:
        hosts = request.requestHeaders.getRawHeaders(b"Host", [])
        arrived_at = str(getattr(request.getHost(), "host", ""))
        if len(hosts) != 1 or not is_our_name(host_of(hosts[0].decode("latin-1")), self._admin(), arrived_at):
            raise foreign_host()
        operation, miss = self._find(method, target)
        if operation is None or operation.role is not None:
            identity = self._authenticate(request)
            if operation is not None and operation.role is not None and identity.role < operation.role:
                raise forbidden()
            request.identity = identity
        if operation is None:
            # Only said to those who hold a token: the paths are no secret, but neither are they free to be probed.
            raise miss or Refuse(404)
        self._check_body(request, operation, length)
        request.operation = operation

    def _find(self, method: bytes, target: bytes) -> tuple[Operation | None, Refuse | None]:
        if not target.startswith(b"/"):
            return None, Refuse(400, "The request target must be a path.")
        try:
            return self._router.find(method, target), None
        except Refuse as miss:
            return None, miss

    def _authenticate(self, request: AdminRequest) -> Identity:
        values = request.requestHeaders.getRawHeaders(b"Authorization", [])
        token = bearer(values)
        identity = self._tokens.identify(token) if token is not None else None
        if identity is None:
            if not values:
                raise unauthorized()
            peer = str(getattr(request.client, "host", ""))
            if self._brake.is_blocked(peer):
                raise too_many_guesses()
            if self._brake.failed(peer) == GuessBrake.FAILURES:
                _log.warn("admin: {count} refused tokens within a second from {peer}", count=GuessBrake.FAILURES, peer=peer)
            raise unauthorized()
        return identity


_UCRED = struct.Struct("iII")


def user_at_the_other_end(peer: Any) -> str:
    """``local:NAME`` of the user who opened this unix socket, by the kernel's word."""
    _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        return f"local:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"local:{uid}"
