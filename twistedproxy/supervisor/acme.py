"""Certificates for ``tls = "auto"``: made when there is none, renewed in time, kept in the state directory.

How it works
    Each such site has one file, ``acme/SITE.pem``: who made it, its key, then its chain, mode 0600, replaced at once. At start it is read;
    where it is missing or has ended, a self-signed placeholder is shown meanwhile, so that the port is never dead, and the log says so.

    A certificate is renewed at two thirds of its life, a little earlier by chance, or before that when the authority suggests it, which
    is asked as often as it wants to be (ARI). One thing at a time, in a thread, for the whole machine. After a failure the next try
    waits a minute, then twice as long each time, up to six hours. A site whose names or authority have changed is ordered anew; the old
    certificate serves until then.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID
from twisted.logger import Logger

from twistedproxy.config import pem
from twistedproxy.config.changes import CertificateRead, ChallengeSet, HandshakeChallengeSet
from twistedproxy.config.control import CertificateView
from twistedproxy.config.model import Acme, Model
from twistedproxy.supervisor.acme_client import Issued, NotIssued, Publish, Suggestion, new_key, order, suggestion, write_secret

FIRST_RETRY_S = 60.0
LAST_RETRY_S = 6 * 3600.0
SOON_S = 1.0
"""The first order waits until the listeners are there."""
LOOK_S = 3600.0
"""How often at least the clock is looked at: a suspended machine's timers run late."""
ASK_S = (600.0, 86400.0)
"""How soon and how late the authority is asked again, whatever it says."""
LEAST_AGE_S = 6 * 3600.0
"""Nothing younger is renewed on advice: an authority whose advice is always "now" does not make us order without end."""
PLACEHOLDER_DAYS = 7
_NEVER = float("inf")
_MADE_BY = b"Made by: "
"""Begins a file; PEM allows text before its first block (RFC 7468 2)."""
Order = Callable[[Acme, str, Sequence[str], Publish], Issued]
Ask = Callable[[Acme, bytes], Suggestion]


@dataclass(slots=True)
class _Site:
    name: str
    hosts: tuple[str, ...]
    settings: Acme
    due: float = 0.0
    """When to order; wall clock, as the next two."""
    planned: float = 0.0
    """When it would be due without the authority's advice."""
    ask_at: float = _NEVER
    """When to ask for that."""
    chain: bytes = b""
    retry_s: float = FIRST_RETRY_S
    view: CertificateView | None = None


class AutomaticCertificates:
    """`on_read` and `on_challenge` hear of what workers must know, `on_change` of new certificates for people."""

    log = Logger(namespace="twistedproxy.supervisor.acme")

    def __init__(
        self,
        reactor: Any,
        on_read: Callable[[CertificateRead], object],
        on_challenge: Callable[[ChallengeSet | HandshakeChallengeSet], object],
        on_change: Callable[[CertificateView], None] = lambda view: None,
        wall: Callable[[], float] = time.time,
        order: Order = order,
        draw: Callable[[], float] = random.random,
        ask: Ask = suggestion,
    ) -> None:
        self._reactor = reactor
        self._on_read = on_read
        self._on_challenge = on_challenge
        self._on_change = on_change
        self._wall = wall
        self._order = order
        self._draw = draw
        self._ask = ask
        self._sites: dict[str, _Site] = {}
        self._directory = ""
        self._timer: Any = None
        self._in_hand: str | None = None
        self._is_held = False
        self._is_stopped = False

    @property
    def views(self) -> tuple[CertificateView, ...]:
        return tuple(site.view for site in self._sites.values() if site.view is not None)

    def update(self, model: Model) -> list[tuple[str, str]]:
        """Follow `model`; returns, as the workers know them, the certificates that nobody uses any more."""
        self._directory = os.path.join(model.state_dir, "acme")
        wanted = {
            site.name: (site.hosts, model.certificates.authority(site.tls.directory))
            for site in model.sites.values()
            if site.tls is not None and site.tls.source == "auto"
        }
        gone = [name for name in self._sites if name not in wanted]
        for name in gone:
            del self._sites[name]
        for name, (hosts, settings) in wanted.items():
            site = self._sites.get(name)
            if site is None or (site.hosts, site.settings.directory) != (hosts, settings.directory):
                self._sites[name] = self._known(name, hosts, settings)
            else:
                site.settings = settings
        self._schedule()
        return [("auto", name) for name in gone]

    def hold(self) -> None:
        """Begin no order until `go_on`: those are another supervisor's, to whose workers the authority comes."""
        self._is_held = True
        self._schedule()

    def go_on(self, model: Model) -> None:
        """With what the other one has got meanwhile."""
        self._is_held = False
        if self._in_hand is None:
            self._sites.clear()
        self.update(model)

    def stop(self) -> None:
        """Nothing is ordered any more; an order in hand ends with the process."""
        self._is_stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _file(self, name: str) -> str:
        return os.path.join(self._directory, f"{name}.pem")

    def _account_file(self, settings: Acme) -> str:
        """Each authority knows us by another key."""
        return os.path.join(self._directory, f"account-{hashlib.sha256(settings.directory.encode()).hexdigest()[:16]}.key")

    def _known(self, name: str, hosts: tuple[str, ...], settings: Acme) -> _Site:
        """A site with what the state directory has for it, or a placeholder."""
        site = _Site(name, hosts, settings)
        now = self._wall()
        try:
            content = pem.read(self._file(name))
            chain = pem.certificates(content)
            pem.judge_chain(chain, now)
            pem.judge_pair(chain, content)
        except pem.BadPem as e:
            is_new = not os.path.exists(self._file(name))
            self.log.warn(
                "site {site}: {why}; a self-signed placeholder is shown until {directory} has made one for {hosts}",
                site=name, why="no certificate yet" if is_new else f"the certificate in the state directory {e}",
                directory=settings.directory, hosts=", ".join(hosts),
            )  # fmt: skip
            chain_pem, key = _placeholder(hosts, now)
            self._use(site, chain_pem, key, is_placeholder=True)
            return site
        covered = all(pem.covers(pem.names_of(chain[0]), host) for host in hosts)
        self._use(site, content, content)
        made_by, _, _ = content.removeprefix(_MADE_BY).partition(b"\n") if content.startswith(_MADE_BY) else (b"", b"", b"")
        if covered and made_by in (b"", settings.directory.encode()):
            site.due = site.planned
            site.ask_at = 0.0
        return site

    def _use(self, site: _Site, chain: bytes, key: bytes, is_placeholder: bool = False) -> None:
        facts = pem.facts(pem.certificates(chain)[0])
        site.view = CertificateView((site.name,), "auto", facts.names, facts.not_before, facts.not_after, facts.issuer, is_placeholder)
        site.chain = b"".join(c.public_bytes(Encoding.PEM) for c in pem.certificates(chain))
        # Two thirds of its life, up to a thirtieth earlier, so that many do not come at once.
        site.planned = facts.not_before + (facts.not_after - facts.not_before) * (2 / 3 - self._draw() / 30)
        self._on_read(CertificateRead("auto", site.name, site.chain.decode(), key.decode()))

    # Ordering

    def _schedule(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._is_stopped or self._is_held or self._in_hand is not None or not self._sites:
            return
        wait = min(min(site.due, site.ask_at) for site in self._sites.values()) - self._wall()
        self._timer = self._reactor.callLater(min(max(wait, SOON_S), LOOK_S), self._next)

    def _next(self) -> None:
        now = self._wall()
        due = min(self._sites.values(), key=lambda site: site.due, default=None)
        asked = min(self._sites.values(), key=lambda site: site.ask_at, default=None)
        if self._is_stopped or due is None or asked is None or (due.due > now and asked.ask_at > now):
            self._schedule()
        elif due.due <= now:
            self._in_hand = due.name
            self._in_thread(self._work, due, due.settings, self._account_file(due.settings), due.hosts)
        else:
            self._in_hand = asked.name
            self._in_thread(self._inquire, asked, asked.settings, asked.chain)

    def _in_thread(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, name="acme", daemon=True).start()

    def _work(self, site: _Site, settings: Acme, account_file: str, hosts: tuple[str, ...]) -> None:
        """In the thread."""

        def publish(challenge: ChallengeSet | HandshakeChallengeSet) -> None:
            self._reactor.callFromThread(self._on_challenge, challenge)

        try:
            issued: Issued | Exception = self._order(settings, account_file, hosts, publish)
        except Exception as e:
            issued = e
        self._reactor.callFromThread(self._ordered, site, issued)

    def _inquire(self, site: _Site, settings: Acme, chain: bytes) -> None:
        """In the thread."""
        try:
            suggested = self._ask(settings, chain)
        except Exception as e:
            self.log.warn("site {site}: when to renew it cannot be asked: {why}", site=site.name, why=f"{type(e).__name__}: {e}")
            suggested = Suggestion(None, _NEVER)
        self._reactor.callFromThread(self._advised, site, suggested)

    def _advised(self, site: _Site, suggested: Suggestion) -> None:
        self._in_hand = None
        if self._sites.get(site.name) is site:
            now = self._wall()
            soonest, latest = ASK_S
            site.ask_at = now + min(max(suggested.ask_at - now, soonest), latest)
            due = site.planned
            if suggested.renew_at is not None and site.view is not None:
                life = site.view.not_after - site.view.not_before
                due = min(due, max(suggested.renew_at, site.view.not_before + min(LEAST_AGE_S, life / 3)))
            if due < site.planned:
                self.log.info("site {site}: the authority suggests to renew its certificate on {due}", site=site.name, due=_day(due))
            site.due = due
        self._schedule()

    def _ordered(self, site: _Site, issued: Issued | Exception) -> None:
        self._in_hand = None
        if isinstance(issued, Issued) and self._sites.get(site.name) is site:
            try:
                write_secret(self._file(site.name), _MADE_BY + site.settings.directory.encode() + b"\n" + issued.key + issued.chain)
            except OSError as e:
                self.log.error("site {site}: its new certificate cannot be stored: {why}", site=site.name, why=e.strerror)
            self._use(site, issued.chain, issued.key)
            site.retry_s = FIRST_RETRY_S
            site.due = site.planned
            site.ask_at = 0.0
            assert site.view is not None
            self.log.info(
                "site {site}: new certificate for {hosts}, good until {until}, renewed on {due}",
                site=site.name, hosts=", ".join(site.hosts), until=_day(site.view.not_after), due=_day(site.due),
            )  # fmt: skip
            self._on_change(site.view)
        elif isinstance(issued, Exception):
            why = str(issued) if isinstance(issued, NotIssued) else f"{type(issued).__name__}: {issued}"
            wait = site.retry_s * (0.9 + 0.2 * self._draw())
            site.retry_s = min(site.retry_s * 2, LAST_RETRY_S)
            site.due = self._wall() + wait
            site.ask_at = _NEVER
            self.log.error("site {site}: no certificate: {why}. Next try in {wait:.0f} s", site=site.name, why=why, wait=wait)
        self._schedule()


def _placeholder(hosts: Sequence[str], now: float) -> tuple[bytes, bytes]:
    """A self-signed pair that nobody trusts, so that nobody mistakes it."""
    key_pem = new_key()
    key: Any = load_pem_private_key(key_pem, None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "placeholder until the authority has answered")])
    begin = datetime.fromtimestamp(now, UTC) - timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(begin + timedelta(days=PLACEHOLDER_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False).sign(key, SHA256())
    )  # fmt: skip
    return certificate.public_bytes(Encoding.PEM), key_pem


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
