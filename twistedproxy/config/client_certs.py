"""What a rule asks of a client's certificate, and what a test in the file says that a client shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import model_validator

from twistedproxy.config import values
from twistedproxy.config.basics import LIVE
from twistedproxy.config.kinds import Json, Kind, Origin, Section, key

_NAME_KINDS = ("DNS:", "email:", "URI:", "IP:", "*")


def _subjects(value: Any) -> tuple[str, ...]:
    return tuple(_printable(text) for text in (value if isinstance(value, list) else [value]))


def _printable(value: Any) -> str:
    text = values.parse_text(value, "a certificate's text", 1024)
    if not text.isascii():
        raise ValueError(f"{values.shown(text)}: what is not ASCII in a certificate is seen as ?, so write ? or *")
    return text


def _alternative_names(value: Any) -> tuple[str, ...]:
    for text in (found := _subjects(value)):
        if not text.startswith(_NAME_KINDS):
            raise ValueError(f'{values.shown(text)} does not begin with DNS:, email:, URI: or IP:, such as "DNS:*.example.com"')
    return found


def _fingerprints(value: Any) -> tuple[str, ...]:
    found = tuple(
        values.parse_text(text, "a fingerprint", 200).replace(":", "").lower() for text in (value if isinstance(value, list) else [value])
    )
    for text in found:
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise ValueError(f"{values.shown(text)} is not a SHA-256 fingerprint: 64 hexadecimal digits, with or without colons")
    return found


def _kind(name: str, allowed: str, parse: Callable[[Any], tuple[str, ...]]) -> Kind:
    def read(value: Any, origin: Origin) -> Any:
        return parse(value)

    return Kind(name, allowed, read, _ARRAY)


_ARRAY: Json = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Subjects = Annotated[tuple[str, ...], _kind("text or list of texts", "subjects", _subjects)]
AlternativeNames = Annotated[tuple[str, ...], _kind("name or list of names", "names", _alternative_names)]
Fingerprints = Annotated[tuple[str, ...], _kind("fingerprint or list of them", "fingerprints", _fingerprints)]


class ClientCertificate(Section):
    """A certificate that a client shows, where the site's `tls` has `client_ca`. All keys must match; of a list any may."""

    subject: Subjects = key([], "Its whole subject as RFC 4514 writes it, such as `CN=alice,OU=staff,O=Example`.", reload=LIVE)
    san: AlternativeNames = key(
        [], "One of its names, with their kind: `DNS:*.staff.example`, `email:…`, `URI:spiffe://…`, `IP:…`.", reload=LIVE
    )
    sha256: Fingerprints = key([], "Its fingerprint, 64 hexadecimal digits.", reload=LIVE)

    @model_validator(mode="after")
    def _says_something(self) -> ClientCertificate:
        if not self.parts:
            raise ValueError("asks for nothing; say subject, san or sha256")
        return self

    @property
    def parts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What is said, by key."""
        said = (("sha256", self.sha256), ("subject", self.subject), ("san", self.san))
        return tuple((name, found) for name, found in said if found)
