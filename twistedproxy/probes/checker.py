"""Asks every server of every pool with a health check how it is, again and again, and tells when the verdict changes.

How it works
    One `_Watch` per (pool, server). A check starts every ``every_s`` ± 20 %, the first within 250 ms; never two at once for one
    server. `RiseFall` turns findings into verdicts: the first one counts at once, then ``fall`` failures or ``rise`` successes
    in a row. A watch whose check did not change survives `Checker.update` with all it knows.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as Timeout
from twisted.internet.error import ConnectingCancelledError
from twisted.logger import Logger

from twistedproxy.config.changes import HealthSeen
from twistedproxy.config.model import Address, Endpoint, Health, HealthCheck, Model, ServerTls, endpoint
from twistedproxy.config.pem import BadPem
from twistedproxy.pool.health import RiseFall
from twistedproxy.probes.dialogue import Dialogue, Finding, ask
from twistedproxy.probes.http import HttpCheck
from twistedproxy.probes.mysql import MysqlCheck
from twistedproxy.probes.over_tls import OverTls, PoolTls
from twistedproxy.probes.postgres import PostgresCheck
from twistedproxy.probes.redis import RedisCheck
from twistedproxy.probes.tcp import TcpCheck
from twistedproxy.probes.tls import TlsCheck

SPREAD_S = 0.25
"""The first check of a server starts within this time."""
JITTER = 0.2
UNRESOLVED_GRACE_S = 5.0
"""A host name without an answer for this long counts as a failed check."""

_log = Logger()


def dialogue_for(check: HealthCheck, address: str) -> Dialogue:
    """What to say to the server at `address`."""
    if check.kind == "http":
        return HttpCheck(check, "localhost" if address.startswith("unix:") else address)
    return {"tcp": TcpCheck, "tls": TlsCheck, "postgres": PostgresCheck, "mysql": MysqlCheck, "redis": RedisCheck}[check.kind]()


def _ignore(pool: str, server: str, result: str) -> None: ...


class Checker:
    """All active checks of the machine.

    `on_verdict` hears of every change of verdict, `on_result` of every single check: (pool, server, ``ok``, ``failed`` or ``timeout``).
    """

    def __init__(
        self,
        reactor: Any,
        on_verdict: Callable[[HealthSeen], None],
        on_result: Callable[[str, str, str], None] = _ignore,
        *,
        draw: Callable[[], float] = random.random,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.reactor = reactor
        self.on_verdict = on_verdict
        self.on_result = on_result
        self.draw = draw
        self.wall_clock = wall_clock
        self._watches: dict[tuple[str, Address], _Watch] = {}

    def update(self, model: Model, resolved: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """Watch exactly the servers of `model`; `resolved` gives IP addresses by the address of servers with a host name."""
        resolved = resolved or {}
        present = {(pool.name, s.address): pool.health for pool in model.pools.values() for s in pool.servers}
        tls = {pool.name: pool.tls for pool in model.pools.values()}
        for key, watch in list(self._watches.items()):
            check = present.get(key)
            if check == watch.check and tls.get(key[0]) == watch.tls:
                continue
            watch.stop()
            del self._watches[key]
            if check is None and key in present and watch.verdict is not Health.UNKNOWN:
                self.on_verdict(HealthSeen(*key, Health.UNKNOWN, "no health check", self.wall_clock()))
        for key, check in present.items():
            if check is None:
                continue
            if key not in self._watches:
                self._watches[key] = _Watch(self, *key, check, tls[key[0]])
            self._watches[key].addresses = tuple(resolved.get(key[1], ()))

    def stop(self) -> None:
        """End all checks; nothing is called any more."""
        for watch in self._watches.values():
            watch.stop()
        self._watches.clear()


class _Watch:
    """The checks of one server."""

    def __init__(self, checker: Checker, pool: str, server: Address, check: HealthCheck, tls: ServerTls | None = None) -> None:
        self.check = check
        self.tls = tls
        self._pool_tls = PoolTls(tls) if tls is not None else None
        self.addresses: tuple[str, ...] = ()
        """What the host name means; unused for IP addresses and unix sockets."""
        self._checker = checker
        self._pool = pool
        self._server = server
        self._endpoint = endpoint(server)
        self._rise_fall = RiseFall(check.fall, check.rise)
        self._is_stopped = False
        self._running: Deferred[Finding] | None = None
        self._born = checker.reactor.seconds()
        self._next = checker.reactor.callLater(checker.draw() * min(SPREAD_S, check.every_s), self._start)

    @property
    def verdict(self) -> Health:
        return self._rise_fall.verdict

    def stop(self) -> None:
        self._is_stopped = True
        if self._next.active():
            self._next.cancel()
        if self._running is not None:
            self._running.cancel()

    def _start(self) -> None:
        started = self._checker.reactor.seconds()
        targets = self._targets()
        if not targets:
            if started - self._born < UNRESOLVED_GRACE_S:
                self._next = self._checker.reactor.callLater(SPREAD_S, self._start)
                return
            self._judge(Finding(False, f"host name {self._endpoint.host} does not resolve"), "failed")
            self._schedule(started)
            return
        self._running = asking = Deferred.fromCoroutine(self._ask(targets))
        asking.addTimeout(self.check.timeout_s, self._checker.reactor)
        asking.addCallbacks(self._found, self._not_found, callbackArgs=(started,))
        asking.addErrback(lambda failure: _log.failure("health check of {server} broke", failure, server=self._server))
        asking.addBoth(lambda _: self._schedule(started))

    def _targets(self) -> list[Endpoint]:
        own = self._endpoint
        port = own.port if self.check.port is None else self.check.port
        if own.family != socket.AF_UNSPEC:
            return [replace(own, port=port)]
        return [endpoint(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") for host in self.addresses]

    async def _ask(self, targets: list[Endpoint]) -> Finding:
        """The first good finding among the addresses of a name, else the last bad one."""
        finding = Finding(False, "no address")
        for target in targets:
            try:
                dialogue = self._dialogue()
            except (BadPem, OSError) as e:
                return Finding(False, f"a file of the pool's tls {e}", answered=False)
            finding = await ask(self._checker.reactor, target, dialogue)
            if finding.ok:
                break
        return finding

    def _dialogue(self) -> Dialogue:
        dialogue = dialogue_for(self.check, self._server)
        return dialogue if self._pool_tls is None else OverTls(dialogue, self._pool_tls.use(), self._server)

    def _schedule(self, started: float) -> None:
        self._running = None
        if self._is_stopped:
            return
        due = started + self.check.every_s * (1 + JITTER * (2 * self._checker.draw() - 1))
        self._next = self._checker.reactor.callLater(max(0.0, due - self._checker.reactor.seconds()), self._start)

    def _found(self, finding: Finding, started: float) -> None:
        if finding.answered:
            took = (self._checker.reactor.seconds() - started) * 1000
            finding = replace(finding, reason=f"{finding.reason} in {took:.1f} ms")
        self._judge(finding, "ok" if finding.ok else "failed")

    def _not_found(self, failure: Any) -> None:
        failure.trap(Timeout, CancelledError, ConnectingCancelledError)
        self._judge(Finding(False, f"timed out after {self.check.timeout_s:g} s"), "timeout")

    def _judge(self, finding: Finding, result: str) -> None:
        if self._is_stopped:
            return
        self._checker.on_result(self._pool, self._server, result)
        if self._rise_fall.add(finding.ok):
            self._checker.on_verdict(HealthSeen(self._pool, self._server, self.verdict, finding.reason, self._checker.wall_clock()))
