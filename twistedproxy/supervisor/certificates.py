"""The certificate files, read by the supervisor alone, looked at again every few seconds, and handed to the workers when they are right.

How it works
    `update` reads what a model names; the configuration was checked before, so a file that is wrong now became so since. After
    that every file's mtime, size and inode are compared every `POLL_S`. A pair that changed is read whole and judged as at start
    (`config.pem`): right, it goes to the workers and new handshakes use it; wrong (half written, the key not replaced yet), the
    old one stays in use, the log says why, and the next change of a file is the next chance (faults: TL-05).

    Nothing of a key is logged, journaled or shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twistedproxy.config.changes import CertificateRead
from twistedproxy.config.control import CertificateView
from twistedproxy.config.model import KeyPair, Model

POLL_S = 3.0
WARN_S = 21 * 86400.0
"""So long before its end a certificate is complained about, once a day."""
Stamp = tuple[int, int, int] | None


@dataclass(slots=True)
class _File:
    """A pair, or authorities alone (`key` is "")."""

    cert: str
    key: str
    used_by: tuple[str, ...]
    """Names of sites; other users by their dotted path."""
    stamps: tuple[Stamp, ...] = ()
    view: CertificateView | None = None
    warned_at: float = 0.0


def users(model: Model) -> dict[tuple[str, str], list[str]]:
    """Every pair and every file of authorities in a model, with who uses it."""
    found: dict[tuple[str, str], list[str]] = {}
    for names, user in _users(model):
        found.setdefault(names, []).append(user)
    return found


def _users(model: Model) -> Iterator[tuple[tuple[str, str], str]]:
    for pair in model.certificates.files:
        yield pair.key_names, "files"
    for site in model.sites.values():
        if site.tls is not None:
            yield from _pair_and_ca(site.tls.pair, site.tls.client_ca, site.name)
    for listener in model.tcp:
        if listener.tls is not None:
            yield from _pair_and_ca(listener.tls.pair, listener.tls.client_ca, f"tcp {listener.address}")
    for pool in model.pools.values():
        if pool.tls is not None:
            yield from _pair_and_ca(pool.tls.pair, pool.tls.ca, f"pool {pool.name}")


def _pair_and_ca(pair: KeyPair | None, ca: str, user: str) -> Iterator[tuple[tuple[str, str], str]]:
    if pair is not None:
        yield pair.key_names, user
    if ca:
        yield (ca, ""), user


class CertificateFiles:
    """`on_read` hears of everything that the workers shall use from now on, `on_change` of it for people."""

    log = Logger(namespace="twistedproxy.supervisor.certificates")

    def __init__(
        self,
        reactor: Any,
        on_read: Callable[[CertificateRead], object],
        on_change: Callable[[CertificateView], None] = lambda view: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._on_read = on_read
        self._on_change = on_change
        self._wall = wall
        self._files: dict[tuple[str, str], _File] = {}
        self._loop = LoopingCall(self.look)
        self._loop.clock = reactor

    @property
    def views(self) -> tuple[CertificateView, ...]:
        """What is in use; authorities are not certificates of ours."""
        return tuple(file.view for file in self._files.values() if file.view is not None and file.key)

    def update(self, model: Model) -> list[tuple[str, str]]:
        """Follow `model`; what is new is read before this returns. Returns what nobody uses any more."""
        wanted = users(model)
        gone = [names for names in self._files if names not in wanted]
        for names in gone:
            del self._files[names]
        for names, used_by in wanted.items():
            file = self._files.get(names)
            if file is None:
                file = self._files[names] = _File(*names, tuple(used_by))
            file.used_by = tuple(used_by)
            self._read_if_changed(file)
        if self._files and not self._loop.running:
            self._loop.start(POLL_S, now=False)
        return gone

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def look(self) -> None:
        """Read what has changed, and complain of what ends soon."""
        for file in self._files.values():
            try:
                self._read_if_changed(file)
                self._warn(file)
            except Exception:
                self.log.failure("the certificate {cert} could not be looked at", cert=file.cert)

    def _read_if_changed(self, file: _File) -> None:
        stamps = tuple(_stamp(path) for path in (file.cert, file.key) if path)
        if stamps == file.stamps:
            return
        is_first = not file.stamps
        file.stamps = stamps
        from twistedproxy.config import pem  # noqa: PLC0415 - cryptography, which nobody needs without certificates

        where = file.cert
        try:
            content, key = pem.read(file.cert), b""
            chain = pem.certificates(content)
            if file.key:
                pem.judge_chain(chain, self._wall())
                where = file.key
                key = pem.read(file.key)
                pem.judge_pair(chain, key)
        except pem.BadPem as e:
            what = "cannot be used" if is_first else "is not taken over, what was there before stays in use"
            used_by = ", ".join(file.used_by)
            self.log.error("{used_by}: a certificate {what}: {file} {why}", used_by=used_by, what=what, file=where, why=str(e))
            return
        facts = pem.facts(chain[0])
        file.view = CertificateView(file.used_by, file.cert, facts.names, facts.not_before, facts.not_after, facts.issuer)
        self._on_read(CertificateRead(file.cert, file.key, content.decode("ascii", "replace"), key.decode("ascii", "replace")))
        if file.key and not is_first:
            self.log.info(
                "{used_by}: new certificate from {file} for {names}, good until {until}",
                used_by=", ".join(file.used_by), file=file.cert, names=", ".join(facts.names[:5]), until=_day(facts.not_after),
            )  # fmt: skip
            self._on_change(file.view)
        self._warn(file)

    def _warn(self, file: _File) -> None:
        now = self._wall()
        if file.view is None or not file.key or file.view.not_after - now > WARN_S or now - file.warned_at < 86400:
            return
        file.warned_at = now
        days = (file.view.not_after - now) / 86400
        when = f"ends in {days:.0f} days, on {_day(file.view.not_after)}" if days > 0 else f"has ended on {_day(file.view.not_after)}"
        self.log.warn("{used_by}: the certificate {file} {when}; renew it", used_by=", ".join(file.used_by), file=file.cert, when=when)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
