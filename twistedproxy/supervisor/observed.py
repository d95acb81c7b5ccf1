"""What is seen of the world: verdicts of probes, addresses, passive failures, certificates. Remembered, told, and sent to every worker.

Nobody wants these facts, they just are: no journal, no revision. Those of one turn of the reactor are sent together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.logger import Logger, LogLevel

from twistedproxy.config import changes, plain
from twistedproxy.config.changes import CachePurged, Ejected, HealthSeen, Observation, Resolved
from twistedproxy.config.control import CertificateView
from twistedproxy.config.model import Health, Model
from twistedproxy.supervisor.certificates import CertificateFiles
from twistedproxy.supervisor.facts import Facts, Rows, named_keys, server_keys
from twistedproxy.supervisor.passive import PassiveFailures


class Checks(Protocol):
    """`probes.checker.Checker`."""

    def update(self, model: Model, resolved: Mapping[str, tuple[str, ...]] | None = None) -> None: ...

    def stop(self) -> None: ...


class Names(Protocol):
    """`probes.discovery.Resolver`."""

    @property
    def addresses(self) -> Mapping[str, tuple[str, ...]]: ...

    def update(self, model: Model) -> None: ...

    def stop(self) -> None: ...


MakeChecks = Callable[[Any, Callable[[HealthSeen], None], Callable[[str, str, str], None]], Checks]
MakeNames = Callable[[Any, Callable[[Resolved], None]], Names]


class Observed:
    """`broadcast` sends observations to the workers, `publish` tells the event stream, `rows` are the servers' places in the scoreboard."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        model: Model,
        rows: Rows,
        checks: MakeChecks,
        names: MakeNames,
        wall: Callable[[], float],
        *,
        broadcast: Callable[[list[dict[str, Any]]], Any],
        publish: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._reactor = reactor
        self._model = model
        self._rows = rows
        self._wall = wall
        self._send = broadcast
        self._publish = publish
        self._facts = Facts()
        self._named = named_keys(model)
        self._to_broadcast: list[dict[str, Any]] = []
        self._flush: Any = None
        self._passive = PassiveFailures(reactor.seconds)
        self._passive.update(model)
        self._checks_made: Counter[tuple[str, str, str]] = Counter()
        self._checks = checks(reactor, self.saw_health, self._saw_check)
        self._names = names(reactor, self._saw_addresses)
        for row in rows.update(model):
            self._facts.put(row)
        self._certificates = CertificateFiles(reactor, self.put, self._certificate_changed, wall)
        self._certificates.update(model)
        self._automatic: Any = None
        self._are_orders_held = False
        self._follow_automatic()

    def start(self) -> None:
        self._names.update(self._model)
        self._checks.update(self._model, self._names.addresses)

    def stop(self) -> None:
        self._checks.stop()
        self._names.stop()
        self._certificates.stop()
        if self._automatic is not None:
            self._automatic.stop()

    def stopped(self) -> None:
        """There is nobody left to tell."""
        if self._flush is not None and self._flush.active():
            self._flush.cancel()

    def before_commit(self, model: Model) -> None:
        """Certificates must be with the workers before the sites that need them."""
        self._model = model
        for names in self._certificates.update(model):
            self._facts.forget_certificate(*names)
        self._follow_automatic()

    def after_commit(self) -> None:
        """Forget servers that are gone, watch those that came."""
        present = server_keys(self._model)
        self._facts.keep_only(present)
        self._named = named_keys(self._model)
        self._checks_made = Counter({key: made for key, made in self._checks_made.items() if key[:2] in present})
        self._passive.update(self._model)
        for row in self._rows.update(self._model):
            self.put(row)
        self.start()

    def hold_orders(self) -> None:
        """Order no certificates: another supervisor does."""
        self._are_orders_held = True
        if self._automatic is not None:
            self._automatic.hold()

    def go_on_ordering(self) -> None:
        self._are_orders_held = False
        if self._automatic is not None:
            self._automatic.go_on(self._model)

    def look_at_certificates(self) -> None:
        """A reload means their files too, whether or not the configuration names others."""
        self._certificates.look()

    @property
    def health(self) -> Mapping[tuple[str, str], HealthSeen]:
        return self._facts.health

    @property
    def health_checks(self) -> list[tuple[str, str, str, int]]:
        """How many were made: (pool, server, ``ok``, ``failed`` or ``timeout``, number)."""
        return [(*key, made) for key, made in self._checks_made.items()]

    @property
    def ejected(self) -> frozenset[tuple[str, str]]:
        return self._facts.ejected(self._reactor.seconds())

    @property
    def unresolved(self) -> frozenset[tuple[str, str]]:
        """Servers whose host name has never had an address."""
        return self._named - self._facts.resolved if self._named else frozenset()

    @property
    def certificates(self) -> tuple[CertificateView, ...]:
        return self._certificates.views + (tuple(self._automatic.views) if self._automatic is not None else ())

    def take_over(self, seen: Iterable[Mapping[str, Any]]) -> None:
        """What the supervisor before us saw; our own probes have had little time. What this version does not know is passed over."""
        own = self._facts.health
        for each in seen:
            try:
                observation = changes.from_plain(each)
            except (LookupError, TypeError, ValueError):
                continue
            if isinstance(observation, Ejected):
                self.put(observation)
            elif isinstance(observation, HealthSeen):
                key = (observation.pool, observation.server)
                if key in server_keys(self._model) and self._model.pools[key[0]].health is not None and key not in own:
                    self.put(observation)
            elif isinstance(observation, Resolved) and (observation.pool, observation.server) not in self._facts.resolved:
                self.put(observation)

    def plain(self) -> list[dict[str, Any]]:
        """All of it, for a worker that starts."""
        return self._facts.plain()

    # What happens

    def put(self, observation: Observation) -> Observation | None:
        """Remember and broadcast; returns what was known before."""
        before = self._facts.put(observation)
        self._to_broadcast.append(changes.to_plain(observation))
        if self._flush is None:
            self._flush = self._reactor.callLater(0, self._broadcast)
        return before

    def _broadcast(self) -> Any:
        self._flush = None
        observations, self._to_broadcast = self._to_broadcast, []
        return self._send(observations)

    def broadcast_now(self) -> Any:
        """Returns what `broadcast` returns, also when there is nothing new: who answers knows all that was sent before."""
        if self._flush is not None:
            self._flush.cancel()
        return self._broadcast()

    def keep_purges(self, purges: Sequence[CachePurged]) -> None:
        """These are all that count: those that are new are broadcast, and of others new workers need not know."""
        wanted, known = set(purges), set(self._facts.purges)
        for purge in known - wanted:
            self._facts.forget_purge(purge)
        for purge in purges:
            if purge not in known:
                self.put(purge)

    def _saw_check(self, pool: str, server: str, result: str) -> None:
        self._checks_made[pool, server, result] += 1

    def saw_health(self, seen: HealthSeen) -> None:
        """A probe's verdict changed."""
        if (seen.pool, seen.server) not in server_keys(self._model):
            return
        before = self.put(seen)
        if isinstance(before, HealthSeen) and before.health is seen.health:
            return
        level = LogLevel.warn if seen.health is Health.DOWN else LogLevel.info
        self.log.emit(
            level, "pool {pool}: server {server} is {health}: {reason}",
            pool=seen.pool, server=seen.server, health=seen.health.value, reason=seen.reason,
        )  # fmt: skip
        self._publish("health", {**plain.encode(seen), "ejected": (seen.pool, seen.server) in self.ejected})

    def _follow_automatic(self) -> None:
        if self._automatic is None and any(site.tls and site.tls.source == "auto" for site in self._model.sites.values()):
            from twistedproxy.supervisor.acme import AutomaticCertificates  # noqa: PLC0415 - cryptography

            self._automatic = AutomaticCertificates(self._reactor, self.put, self.put, self._certificate_changed, self._wall)
            if self._are_orders_held:
                self._automatic.hold()
        if self._automatic is not None:
            for names in self._automatic.update(self._model):
                self._facts.forget_certificate(*names)

    def _certificate_changed(self, view: CertificateView) -> None:
        self._publish("certificate", plain.encode(view))

    def _saw_addresses(self, resolved: Resolved) -> None:
        self.put(resolved)
        self.log.info(
            "pool {pool}: {server} is {addresses}", pool=resolved.pool, server=resolved.server, addresses=", ".join(resolved.addresses)
        )
        self._checks.update(self._model, self._names.addresses)

    def saw_failures(self, rows: list[list[Any]]) -> None:
        """What the workers counted."""
        for ejected in self._passive.add(rows):
            self._ejected(ejected)

    def _ejected(self, ejected: Ejected) -> None:
        self.put(ejected)
        for_s = ejected.until - self._reactor.seconds()
        self.log.warn(
            "pool {pool}: server {server} is ejected for {for_s:.0f} s: too many of its requests failed",
            pool=ejected.pool, server=ejected.server, for_s=for_s,
        )  # fmt: skip
        self._publish("health", {"pool": ejected.pool, "server": ejected.server, "ejected": True, "for_seconds": round(for_s, 1)})
