"""The admin API: one handler per row of `operations.OPERATIONS`, and the service that puts them on their sockets."""

# mypy: disable-error-code="no-untyped-call"
# (most of twisted.web has no annotations)

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from klein import Klein
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import CACHED, NOT_MODIFIED
from werkzeug.exceptions import HTTPException

from twistedproxy.admin import openapi, page, views
from twistedproxy.admin.auth import GuessBrake, Role, Tokens, token_from_file
from twistedproxy.admin.bodies import read_body, read_duration, read_if_match, read_query, read_revision
from twistedproxy.admin.caching import CacheApi
from twistedproxy.admin.events import EventStreams
from twistedproxy.admin.gate import LocalGate, Router, TcpGate
from twistedproxy.admin.operations import OPERATIONS, Operation
from twistedproxy.admin.problems import Refuse, forbidden
from twistedproxy.admin.processes import ProcessApi
from twistedproxy.admin.site import AdminRequest, AdminSite, LocalPort, internal_error
from twistedproxy.admin.traffic import TrafficApi
from twistedproxy.config import changes
from twistedproxy.config.changes import AddServer, Batch, Change, RemoveServer, SetMaxConnections, SetState, SetWeight
from twistedproxy.config.control import Control, Snapshot, Terms, check_revision
from twistedproxy.config.model import Address, AdminState, Model, Server, endpoint
from twistedproxy.errors import ChangeRefused, ConfigurationError, Problem

Exposition = Callable[[Snapshot, Mapping[str, Any]], bytes]

_log = Logger()


class Api(TrafficApi, ProcessApi, CacheApi):
    """What each operation does. Handlers return the body; headers are set on the request."""

    def __init__(self, control: Control, exposition: Exposition, streams: EventStreams) -> None:
        self._control = control
        self._exposition = exposition
        self._streams = streams
        self._page = page.load()  # now: a chroot or an upgrade may put the files out of reach later

    # Without a token

    async def page(self, request: AdminRequest) -> bytes:
        shown = self._page
        request.setHeader(b"Content-Type", b"text/html; charset=utf-8")
        request.setHeader(b"Content-Security-Policy", page.CONTENT_SECURITY_POLICY)
        request.setHeader(b"Cache-Control", b"no-cache")
        return b"" if request.setETag(shown.etag) is CACHED else shown.document

    async def asset(self, request: AdminRequest, digest: str, file: str) -> bytes:
        shown = self._page
        found = shown.assets.get(file) if digest == shown.digest else None
        if found is None:
            raise Refuse(404, "The page has no such file; load the page anew.")
        request.setHeader(b"Content-Type", found.kind)
        request.setHeader(b"Cache-Control", page.FOR_EVER)
        return b"" if request.setETag(b'"%s"' % digest.encode()) is CACHED else found.body

    async def health_live(self, request: AdminRequest) -> bytes:
        return _json(request, {"status": "live"})

    async def health_ready(self, request: AdminRequest) -> bytes:
        if not self._control.snapshot().is_ready:
            raise Refuse(503, "No worker serves, or one lags behind the latest revision.", headers={"Retry-After": "1"})
        return _json(request, {"status": "ready"})

    async def openapi(self, request: AdminRequest) -> bytes:
        return _json(request, openapi.document())

    # Reading

    async def metrics(self, request: AdminRequest) -> bytes:
        statistics = await self._control.fresh_statistics()
        request.setHeader(b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8")
        return self._exposition(self._control.snapshot(), statistics)

    async def status(self, request: AdminRequest) -> bytes:
        snapshot = self._control.snapshot()
        return _json(request, views.status(snapshot, self._control.statistics()), snapshot.revision)

    async def pools(self, request: AdminRequest) -> bytes:
        snapshot, statistics = self._control.snapshot(), self._control.statistics()
        shown = [views.pool(pool, snapshot, statistics) for pool in snapshot.model.pools.values()]
        return _json(request, {"pools": shown}, snapshot.revision)

    async def pool(self, request: AdminRequest, pool: str) -> bytes:
        snapshot = self._control.snapshot()
        found = changes.find_pool(snapshot.model, pool)
        return _json(request, views.pool(found, snapshot, self._control.statistics()), snapshot.revision)

    async def changes(self, request: AdminRequest) -> bytes:
        entries = self._control.history(request.arguments.get("after", 0))
        return _json(request, {"changes": [views.entry(entry) for entry in entries]})

    async def config(self, request: AdminRequest) -> bytes:
        snapshot = self._control.snapshot()
        revision = request.arguments.get("revision", snapshot.revision)
        effective = snapshot.effective if revision == snapshot.revision else await self._control.configuration_at(revision)
        return _json(request, views.config(effective), revision)

    async def check(self, request: AdminRequest) -> bytes:
        self._control.check(request.arguments["toml"])
        return _json(request, {"problems": []})

    async def config_diff(self, request: AdminRequest) -> bytes:
        return _json(request, {"differences": list(await self._control.difference())}, self._control.snapshot().revision)

    async def events(self, request: AdminRequest) -> bytes:
        request.setHeader(b"Content-Type", b"text/event-stream; charset=utf-8")
        if request.method != b"HEAD":
            await self._streams.open(request)
        return b""

    # Changing

    async def change_server(self, request: AdminRequest, pool: str, address: str) -> bytes:
        body = request.arguments
        server = self._known_server(pool, address)
        parts: list[SetWeight | SetState | SetMaxConnections] = []
        if "weight" in body:
            parts.append(SetWeight(pool, server, body["weight"]))
        if "state" in body:
            parts.append(SetState(pool, server, None if body["state"] is None else AdminState(body["state"])))
        if "max_connections" in body:
            parts.append(SetMaxConnections(pool, server, body["max_connections"]))
        return await self._apply(request, parts[0] if len(parts) == 1 else Batch(tuple(parts)))

    async def add_server(self, request: AdminRequest, pool: str) -> bytes:
        body = request.arguments
        changes.find_pool(self._control.snapshot().model, pool)
        try:
            where = endpoint(body["address"])
        except ValueError as e:
            raise Refuse(400, str(e), field="address") from None
        self._check_target(where.host, where.port, str(where))
        server = Server(Address(str(where)), body.get("weight", 1), body.get("max_connections"), body.get("backup", False))
        return await self._apply(request, AddServer(pool, server))

    def _check_target(self, host: str, port: int, address: str) -> None:
        model = self._control.snapshot().model
        objection = views.why_not_a_server(host)
        if address.startswith("unix:") and not host.startswith("/"):
            objection = "the path of a unix socket must be absolute"
        elif views.is_ourselves(host, port, model.admin.listen or "") or os.path.dirname(host) == model.state_dir != "":
            objection = f"{address} is the proxy's own admin side"
        if objection:
            raise Refuse(400, objection, field="address")

    async def remove_server(self, request: AdminRequest, pool: str, address: str) -> bytes:
        server = self._known_server(pool, address)
        return await self._apply(request, RemoveServer(pool, server, now=request.arguments.get("now", False)))

    def _known_server(self, pool: str, address: str) -> Address:
        """The canonical address of a server there is; `ChangeRefused` 404 names those there are."""
        found = changes.find_pool(self._control.snapshot().model, pool)
        try:
            address = str(endpoint(address))
        except ValueError:
            pass  # then it is none of ours, which find_server says best
        return changes.find_server(found, address).address

    async def _apply(self, request: AdminRequest, change: Change) -> bytes:
        terms = self._terms(request)
        result = await self._control.apply(
            change, by=terms.by, reason=terms.reason, expected_revision=terms.expected_revision,
            confirm_within_s=terms.confirm_within_s, abort_if=terms.abort_if, preview=terms.is_preview,
        )  # fmt: skip
        return _json(request, views.applied(result), result.revision)

    def based_on(self, request: AdminRequest) -> int | None:
        now = self._control.snapshot().revision
        expected = read_if_match(request.requestHeaders.getRawHeaders(b"If-Match", []), now)
        check_revision(expected, now)
        return expected

    def _answer(self, request: AdminRequest, value: Any, revision: int | None = None) -> bytes:
        return _json(request, value, revision)

    def _terms(self, request: AdminRequest) -> Terms:
        """Who wants it, why, and on which conditions."""
        arguments = request.arguments
        return Terms(
            request.identity.name if request.identity else "",
            arguments.get("reason", ""),
            read_if_match(request.requestHeaders.getRawHeaders(b"If-Match", []), self._control.snapshot().revision),
            read_duration(arguments, "confirm_within"),
            arguments.get("abort_if"),
            arguments.get("preview", False),
        )

    # The file and the journal

    async def reload(self, request: AdminRequest) -> bytes:
        result = await self._control.reload(self._terms(request))
        return _json(request, views.applied(result), result.revision)

    async def undo(self, request: AdminRequest, revision: str) -> bytes:
        number = read_revision(revision)
        entry = next((entry for entry in self._control.history(number - 1) if entry.revision == number), None)
        if entry is not None and entry.change["kind"] == "replace_config" and request.identity and request.identity.role < Role.ADMIN:
            raise forbidden()  # whoever may not reload may not take a reload back
        result = await self._control.undo(number, self._terms(request))
        return _json(request, views.applied(result), result.revision)

    async def confirm(self, request: AdminRequest, revision: str) -> bytes:
        number = read_revision(revision)
        await self._control.confirm(number, request.identity.name if request.identity else "")
        return _json(request, {"revision": number})

    async def adopt(self, request: AdminRequest) -> bytes:
        edit, result = await self._control.adopt(self._terms(request))
        answer = {"edit": edit} | ({"applied": views.applied(result)} if result is not None else {})
        return _json(request, answer, self._control.snapshot().revision)


def _json(request: AdminRequest, value: Any, revision: int | None = None) -> bytes:
    request.setHeader(b"Content-Type", b"application/json")
    if revision is not None:
        request.setHeader(b"ETag", b'"%d"' % revision)
    return json.dumps(value).encode() + b"\n"


def make_app(api: Api) -> Klein:
    """Klein's routes, from the table of operations."""
    app = Klein()
    for operation in OPERATIONS:
        _add_route(app, operation, getattr(api, operation.name), api.based_on)
    on_error: Any = app.handle_errors(Exception)
    on_error(_answer_failure)
    return app


def _add_route(app: Klein, operation: Operation, handler: Callable[..., Any], based_on: Callable[[Any], int | None]) -> None:
    async def answer(request: AdminRequest, **parts: str) -> bytes | None:
        if request.operation is not operation:
            # The gate decided on another operation than Klein: never serve what was not decided on.
            raise forbidden()
        request.arguments = read_query(operation, request.args) | read_body(operation, request.content.read())
        if operation.is_mutation:
            based_on(request)
        body: bytes = await handler(request, **parts)
        if request.startedWriting:
            return None
        if request.code != NOT_MODIFIED:
            request.setHeader(b"Content-Length", b"%d" % len(body))
        return body

    answer.__name__ = operation.name
    # An address or a file is the last part of its path and may hold slashes once decoded.
    route = operation.path.replace("{address}", "<path:address>").replace("{file}", "<path:file>").replace("{", "<").replace("}", ">")
    app.route(route, methods=[operation.method], endpoint=operation.name)(answer)


def _answer_failure(request: AdminRequest, failure: Failure) -> bytes:
    """The one place where an error becomes an answer."""
    error = failure.value
    if isinstance(error, Refuse):
        refusal = error
    elif isinstance(error, ChangeRefused):
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
        refusal = Refuse(error.status, error.message, field=error.field, headers=headers)
    elif isinstance(error, ConfigurationError):
        found = views.problems(error)
        what = str(error.problems[0]) if len(found) == 1 else f"{len(found)} problems"
        detail = f"The configuration is refused, nothing was changed: {what}"
        refusal = Refuse(400, detail, problems=found)
    elif isinstance(error, HTTPException):
        refusal = Refuse(error.code or 500)
    else:
        _log.failure("admin request failed: {method} {operation}", failure, method=request.method, operation=request.operation)
        refusal = internal_error()
    body = request.set_problem(refusal)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body


def bind_local(path: str) -> socket.socket:
    """A listening unix socket at `path`, mode 0600 from its first instant; a stale one is replaced. Raises `ConfigurationError`."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode of the unbound socket, so that there is no moment in which others may open it.
        os.fchmod(listening.fileno(), 0o600)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # nothing stale
        listening.bind(path)
        listening.listen(64)
        listening.setblocking(False)
    except OSError as e:
        listening.close()
        message = f"the admin socket {path} cannot be made: {e.strerror or e}; choose another state_dir (the path may have 107 bytes)"
        raise ConfigurationError([Problem("state_dir", message)]) from None
    return listening


class AdminService(Service):
    """The admin side of one supervisor.

    The constructor reads or makes the token file and binds the unix socket, so that what is wrong is told before the daemon
    forks (`ConfigurationError`). `tcp_socket` listens already and stays the caller's; None: unix socket only. `local_socket` is the unix
    socket of the supervisor that we shall replace; then nothing is accepted before `listen`.
    """

    def __init__(
        self,
        control: Control,
        model: Model,
        reactor: Any,
        exposition: Exposition,
        tcp_socket: socket.socket | None,
        unix_path: str,
        local_socket: socket.socket | None = None,
    ) -> None:
        self._reactor = reactor
        self._tcp_socket = tcp_socket
        self._unix_path = unix_path
        self.token_file = model.admin.token_file or os.path.join(model.state_dir or os.path.dirname(unix_path), "admin.token")
        self._streams = EventStreams(reactor, control)
        app = make_app(Api(control, exposition, self._streams))
        router = Router(app.url_map)
        tokens = Tokens(token_from_file(self.token_file), lambda: control.snapshot().model.admin)
        self.operators = tokens.operators
        """Digests of the tokens that may ask for the trace of a live request."""
        gate = TcpGate(router, tokens, GuessBrake(reactor.seconds), lambda: control.snapshot().model.admin)
        self.tcp_site = AdminSite(reactor, app.resource(), gate)
        self.local_site = AdminSite(reactor, app.resource(), LocalGate(router))
        self.local_socket = local_socket or bind_local(unix_path)
        self._waits = local_socket is not None
        self._ports: list[IListeningPort] = []
        self.closed: Deferred[None] = Deferred()
        """Fires when nothing listens any more."""

    def startService(self) -> None:
        super().startService()
        if not self._waits:
            self.listen()

    def listen(self) -> None:
        local = LocalPort.over(self.local_socket, self._unix_path, self.local_site, self._reactor)
        self.local_site.port = local
        self._ports.append(local)
        if self._tcp_socket is not None:
            self._tcp_socket.setblocking(False)
            port = self._reactor.adoptStreamPort(self._tcp_socket.fileno(), self._tcp_socket.family, self.tcp_site)
            self.tcp_site.port = port
            self._ports.append(port)

    def disown(self) -> None:
        """A successor listens on the same sockets: the file of the unix socket stays, and whoever has just come here is still answered."""
        for port in self._ports:
            if isinstance(port, LocalPort):
                port.let_go()
        for site in (self.tcp_site, self.local_site):
            site.is_patient = True

    async def _stop(self) -> None:
        self._streams.close_all()
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)
        for site in (self.tcp_site, self.local_site):
            site.close_all()
        self.closed.callback(None)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())
