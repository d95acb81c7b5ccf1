"""What the host names of servers mean now: asks the system's resolver, keeps the last known good answer when it fails.

How it works
    Every name is looked up every 10 s with ``getaddrinfo``, at most eight at once, each in a daemon thread of its own: never in
    the reactor's pool, where a silent DNS server would starve everything else, and never able to hold up the end of the process.
    A name has one look-up in flight. A failed, empty or overdue look-up changes nothing but a warning, at most one per minute.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.config.changes import Resolved
from twistedproxy.config.model import Address, Model, endpoint

EVERY_S = 10.0
WARN_EVERY_S = 60.0
AT_ONCE = 8

_log = Logger()


def look_up(host: str) -> tuple[str, ...]:
    """The IP addresses of `host` in the system's order of preference; blocks; raises `OSError`."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(sockaddr[0]).partition("%")[0] for *_, sockaddr in found))


class Resolver:
    """Resolves the servers of the model that have host names and tells `on_resolved` of every new answer."""

    def __init__(
        self,
        reactor: Any,
        on_resolved: Callable[[Resolved], None],
        *,
        look_up: Callable[[str], tuple[str, ...]] = look_up,
        log: Logger = _log,
    ) -> None:
        self._reactor = reactor
        self._on_resolved = on_resolved
        self._look_up = look_up
        self._log = log
        self._servers: dict[str, set[tuple[str, Address]]] = {}
        self._known: dict[str, tuple[str, ...]] = {}
        self._asking: set[str] = set()
        self._failing: dict[str, str] = {}
        self._warned: float | None = None
        self._slots = DeferredSemaphore(AT_ONCE)
        self._loop = LoopingCall(self._ask_all)
        self._loop.clock = reactor

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Last known good IP addresses by server address, for `Checker.update`."""
        return {a: self._known[host] for host, servers in self._servers.items() if host in self._known for _, a in servers}

    def update(self, model: Model) -> None:
        """Resolve exactly the host names of `model`; new servers of a known name hear of it at once."""
        before, self._servers = self._servers, _named_servers(model)
        for gone in before.keys() - self._servers.keys():
            self._known.pop(gone, None)
            self._failing.pop(gone, None)
        for host, servers in self._servers.items():
            if host in self._known:
                self._tell(host, servers - before.get(host, set()))
            elif host not in before and self._loop.running:
                self._ask(host)
        if self._servers and not self._loop.running:
            self._loop.start(EVERY_S)
        elif not self._servers and self._loop.running:
            self._loop.stop()

    def stop(self) -> None:
        """Ask no more; answers still on their way are dropped."""
        if self._loop.running:
            self._loop.stop()
        self._servers = {}

    def _ask_all(self) -> None:
        for host in list(self._servers):
            if host in self._asking:
                self._failed(host, f"no answer for {EVERY_S:g} s")
            else:
                self._ask(host)
        self._warn()

    def _ask(self, host: str) -> None:
        self._asking.add(host)
        answer = self._slots.run(self._in_thread, host)
        answer.addBoth(self._answered, host)
        answer.addErrback(lambda failure: self._log.failure("resolving {host} broke", failure, host=host))

    def _in_thread(self, host: str) -> Deferred[tuple[str, ...]]:
        answer: Deferred[tuple[str, ...]] = Deferred()

        def work() -> None:
            try:
                found: Any = self._look_up(host)
            except Exception:
                found = Failure()
            self._reactor.callFromThread(answer.callback, found)

        threading.Thread(target=work, name=f"resolve {host}", daemon=True).start()
        return answer

    def _answered(self, answer: Any, host: str) -> None:
        self._asking.discard(host)
        if host not in self._servers:
            return
        if isinstance(answer, Failure):
            self._failed(host, answer.getErrorMessage())
            self._warn()
        elif not answer:
            self._failed(host, "the answer is empty")
            self._warn()
        else:
            self._failing.pop(host, None)
            known = self._known.get(host)
            if known is None or set(known) != set(answer):
                self._known[host] = answer
                self._tell(host, self._servers[host])

    def _tell(self, host: str, servers: Iterable[tuple[str, Address]]) -> None:
        for pool, server in sorted(servers):
            self._on_resolved(Resolved(pool, server, self._known[host]))

    def _failed(self, host: str, why: str) -> None:
        self._failing[host] = why

    def _warn(self) -> None:
        now = self._reactor.seconds()
        if not self._failing or (self._warned is not None and now - self._warned < WARN_EVERY_S):
            return
        self._warned = now
        names = "; ".join(
            f"{host} ({why}; {'last known addresses stay in use' if host in self._known else 'never resolved'})"
            for host, why in sorted(self._failing.items())
        )
        self._log.warn("cannot resolve {names}", names=names)


def _named_servers(model: Model) -> dict[str, set[tuple[str, Address]]]:
    """(pool, server) by host name."""
    named: dict[str, set[tuple[str, Address]]] = {}
    for pool in model.pools.values():
        for server in pool.servers:
            where = endpoint(server.address)
            if where.family == socket.AF_UNSPEC:
                named.setdefault(where.host, set()).add((pool.name, server.address))
    return named
