"""``${client_ip}`` and the other variables of header values, redirects and bodies: text with holes, filled in for each request.

The list is fixed (`VARIABLES`). What comes from the client is already free of control characters (the codec refuses them), and they are
taken out once more here, so that nothing a client sends can add a line to a message (faults SM-19).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from twistedproxy.http.messages import RequestHead

if TYPE_CHECKING:
    from twistedproxy.tls.clients import ClientTls  # with it comes OpenSSL, which plain HTTP does not need


class Subject(Protocol):
    """The request that variables speak of: an exchange, or one that is only imagined (`explain`)."""

    @property
    def head(self) -> RequestHead: ...
    @property
    def client_ip(self) -> str: ...
    @property
    def client_port(self) -> int: ...
    @property
    def scheme(self) -> str: ...
    @property
    def local_port(self) -> int: ...
    @property
    def request_id(self) -> bytes: ...
    @property
    def site(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def server(self) -> str:
        """Address of the server that was picked; empty before, and for answers made here."""
        ...

    def tls(self, what: str) -> str:
        """``version``, ``sni``, ``cert_subject``, ``cert_san`` or ``cert_sha256`` of the client's connection; empty without TLS."""
        ...


_TLS_FACTS: dict[str, Callable[[ClientTls], str]] = {
    "version": lambda facts: facts.version,
    "sni": lambda facts: facts.name,
    "cert_subject": lambda facts: facts.subject,
    # A comma inside a name (of a URI) must not make two of it for whoever takes the list apart.
    "cert_san": lambda facts: ",".join(name.replace(",", "%2C") for name in facts.names)[:4096],
    "cert_sha256": lambda facts: facts.sha256,
}


def tls_fact(facts: ClientTls | None, what: str) -> str:
    """What `Subject.tls` says of a connection with these facts; None: it came without TLS."""
    return "" if facts is None else _TLS_FACTS[what](facts)


Getter = Callable[[Subject], bytes]

VARIABLES: dict[str, Getter] = {
    "client_ip": lambda s: s.client_ip.encode(),
    "client_port": lambda s: b"%d" % s.client_port,
    "scheme": lambda s: s.scheme.encode(),
    "host": lambda s: s.head.host,
    "port": lambda s: b"%d" % s.local_port,
    "method": lambda s: s.head.method,
    "path": lambda s: s.head.path,
    "query": lambda s: s.head.query,
    "request_id": lambda s: s.request_id,
    "site": lambda s: s.site.encode(),
    "pool": lambda s: s.pool.encode(),
    "server": lambda s: s.server.encode(),
    "tls_version": lambda s: s.tls("version").encode(),
    "tls_sni": lambda s: s.tls("sni").encode(),
    "client_cert_subject": lambda s: s.tls("cert_subject").encode(),
    "client_cert_san": lambda s: s.tls("cert_san").encode(),
    "client_cert_sha256": lambda s: s.tls("cert_sha256").encode(),
}
_VARIABLE = re.compile(r"\$\{(" + "|".join(VARIABLES) + r")\}")
CONTROLS = bytes((*range(9), *range(10, 32), 127))


class Template:
    """Text with variables in it."""

    __slots__ = ("_parts", "is_fixed", "names")

    def __init__(self, text: str, encode: Callable[[str], bytes] = str.encode, guard: Callable[[bytes], bytes] | None = None) -> None:
        """`encode` turns fixed text into bytes; `guard` makes a variable's value safe where it will stand."""
        pieces = _VARIABLE.split(text)
        self.names = frozenset(pieces[1::2])
        self.is_fixed = len(pieces) == 1
        self._parts: list[bytes | Getter] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                self._parts.append(VARIABLES[piece] if guard is None else _guarded(VARIABLES[piece], guard))
            elif piece:
                self._parts.append(encode(piece))

    def render(self, subject: Subject) -> bytes:
        return b"".join([part if isinstance(part, bytes) else part(subject).translate(None, CONTROLS) for part in self._parts])


def _guarded(getter: Getter, guard: Callable[[bytes], bytes]) -> Getter:
    return lambda subject: guard(getter(subject))


def url_template(text: str) -> Template:
    """For Location: whatever a URL cannot hold is percent-encoded."""
    return Template(text, lambda fixed: quote(fixed, safe="!#$%&'()*+,/:;=?@[]~-._").encode(), _url_safe)


def _url_safe(value: bytes) -> bytes:
    return quote(value, safe="!$%&'()*+,/:;=?@[]~-._").encode()


def body_template(text: str, content_type: str) -> Template:
    """For a body: in HTML, values are escaped, so that nothing a client sends becomes markup."""
    if "html" in content_type.lower() or "xml" in content_type.lower():
        return Template(text, guard=lambda value: escape(value.decode("latin-1")).encode())
    return Template(text)
