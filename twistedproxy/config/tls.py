"""The keys that have to do with TLS: certificates of sites and TCP listeners, TLS with the servers, where certificates come from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from twistedproxy.config import kinds, values
from twistedproxy.config.basics import LIVE, NEW
from twistedproxy.config.kinds import Section, ShortForm
from twistedproxy.config.kinds import key as declare  # "key" is a key here

SOURCES = ("auto", "files")
CHALLENGES = ("http-01", "tls-alpn-01")
_SITE_ALLOWED = '"auto", "files", { auto = "NAME" } or a table with cert and key'


class KeyPair(Section):
    """A certificate and its key, in files (PEM). They are looked at again every few seconds and used anew when they change."""

    cert: kinds.FileName = declare(..., "The certificate, those of its chain behind it.", reload=LIVE)
    key: kinds.FileName = declare(..., "Its private key, without a password.", reload=LIVE)


class ListenerTls(KeyPair):
    """TLS that ends here."""

    client_ca: kinds.FileName | None = declare(
        None, "Clients must show a certificate of one of these authorities (PEM). Absent: none is asked for.", reload=LIVE
    )
    min_version: Annotated[str, kinds.choice("1.2", "1.3")] = declare("1.2", "The least TLS version.", reload=LIVE)


class SiteTls(Section):
    """The certificate of a site, and what its clients must bring. A text stands for a table with this `from`."""

    from_: Annotated[str, kinds.choice(*SOURCES)] | None = declare(
        None,
        '`"auto"`: made by the authority of `certificates.acme` and renewed in time.'
        ' `"files"`: whichever of `certificates.files` has the name.',
        reload=LIVE,
        alias="from",
    )
    auto: kinds.Name | None = declare(
        None, "In place of `from`: made by the authority of `certificates.directories` with this name.", reload=LIVE
    )
    cert: kinds.FileName | None = declare(None, "The certificate, those of its chain behind it (PEM).", reload=LIVE)
    key: kinds.FileName | None = declare(None, "Its private key, without a password (PEM).", reload=LIVE)
    client_ca: kinds.FileName | None = declare(
        None, "Clients must show a certificate of one of these authorities (PEM). Absent: none is asked for.", reload=LIVE
    )
    min_version: Annotated[str, kinds.choice("1.2", "1.3")] = declare("1.2", "The least TLS version.", reload=LIVE)

    @model_validator(mode="after")
    def _has_one_source(self) -> SiteTls:
        if self.from_ is not None and self.auto is not None:
            raise ValueError("has from and auto; keep one of the two")
        if self.from_ is not None and (self.cert or self.key):
            raise ValueError(f"has cert or key and from = {self.from_!r}; keep one of the two")
        if self.auto is not None and (self.cert or self.key):
            raise ValueError(f"has cert or key and auto = {self.auto!r}; keep one of the two")
        if self.from_ is None and self.auto is None and not (self.cert and self.key):
            raise ValueError(f"needs both cert and key; allowed is {_SITE_ALLOWED}")
        return self


def _site_table(value: Any) -> Any:
    text = values.parse_text(value, _SITE_ALLOWED)
    if text not in SOURCES:
        raise ValueError(f"{values.shown(text)} is not known.{values.did_you_mean(text, SOURCES)} Allowed is {_SITE_ALLOWED}")
    return {"from": value}


SiteTlsOrText = Annotated[
    SiteTls | None, ShortForm("source or table", _SITE_ALLOWED, _site_table, {"type": "string", "pattern": r"^(auto|files)$|\$\{"})
]


class ServerTls(Section):
    """TLS with the servers of a pool. `true`: all defaults."""

    verify: kinds.Flag = declare(True, "Chain and name of the server's certificate must be right. `false`: anybody will do.", reload=NEW)
    ca: kinds.FileName | None = declare(None, "The authorities that are trusted (PEM). Default: the system's.", reload=NEW)
    name: kinds.Host | None = declare(
        None, "The name to ask for (SNI) and to look for in the certificate. Default: the server's host or IP address.", reload=NEW
    )
    cert: kinds.FileName | None = declare(None, "Our own certificate, for servers that ask for one (PEM).", reload=NEW)
    key: kinds.FileName | None = declare(None, "Its private key, without a password (PEM).", reload=NEW)
    starttls: Annotated[str, kinds.choice("postgres", "mysql")] | None = declare(
        None, "Servers begin in the clear and are asked for TLS in this protocol's own way. Absent: TLS from the first byte.", reload=NEW
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> ServerTls:
        if bool(self.cert) != bool(self.key):
            raise ValueError(f"has {'cert' if self.cert else 'key'} without {'key' if self.cert else 'cert'}; they go together")
        if self.name is not None and self.name.startswith("*"):
            raise ValueError("name is one host, without *")
        return self


def _server_table(value: Any) -> Any:
    return {} if kinds.read_flag(value) else None


ServerTlsOrFlag = Annotated[ServerTls | None, ShortForm("true or table", "true, false or a table", _server_table, {"type": "boolean"})]


class Acme(Section):
    """An authority that makes certificates for `tls = "auto"` (RFC 8555); needs the extra `acme`."""

    directory: kinds.Text = declare("https://acme-v02.api.letsencrypt.org/directory", "Its directory URL.", reload=LIVE)
    email: kinds.Text | None = declare(None, "Where it may write to, for instance before a certificate ends.", reload=LIVE)
    ca: kinds.FileName | None = declare(
        None, "Authorities that vouch for the directory's own HTTPS (PEM). Default: the system's.", reload=LIVE
    )
    challenge: Annotated[str, kinds.choice(*CHALLENGES)] = declare(
        "http-01",
        'How it checks that a host leads here. `"http-01"`: by a request over plain HTTP on port 80 (RFC 8555 8.3).'
        ' `"tls-alpn-01"`: by a TLS handshake on port 443 (RFC 8737).',
        reload=LIVE,
    )


class Certificates(Section):
    """What `tls = "auto"` and `tls = "files"` need."""

    acme: Acme = declare({}, "For `auto`.", reload=LIVE)
    directories: dict[kinds.Name, Acme] = declare(
        {}, 'More authorities, by name, for `tls = { auto = "NAME" }`: keys as in `certificates.acme`.', reload=LIVE, max_length=100
    )
    files: tuple[KeyPair, ...] = declare(
        (), "For `files`: certificates that are matched by the names inside.", reload=LIVE, max_length=10_000
    )
