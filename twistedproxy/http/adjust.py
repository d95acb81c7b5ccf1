"""What a server says of its own paths, put right for the client when the route took a prefix off or asked under another host.

With ``strip``, the server thinks its application begins at ``/``: a Location of ``/login`` becomes ``/api/login``, a cookie's
``Path=/`` becomes ``Path=/api``. Absolute URLs are touched only when they name the server itself, the Host it was sent, or the
client's own Host; a cookie's Domain is dropped when it is the host the server was asked under, which the client never heard of
(RFC 6265 4.1.2.3).
"""

from __future__ import annotations

from typing import Any

from twistedproxy.http.messages import ResponseHead
from twistedproxy.http.middleware.chain import ReplacedFields

_FIELDS = (b"location", b"content-location")


def adjusted(head: ResponseHead, prefix: bytes, inside: tuple[bytes, ...], outside: bytes, scheme: bytes) -> ResponseHead:
    """The head for the client. `prefix` has no slash at its end; `inside` are authorities the server may call itself by,
    `outside` is the one the client used."""
    lines: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for name in _FIELDS:
        values = head.get_all(name)
        if values:
            lines[name] = [(name.title(), location(value, prefix, inside, outside, scheme)) for value in values]
    cookies = head.get_all(b"set-cookie")
    if cookies:
        lines[b"set-cookie"] = [(b"Set-Cookie", set_cookie(value, prefix, inside)) for value in cookies]
    if not lines:
        return head
    replaced: Any = ReplacedFields(head, {name: tuple(values) for name, values in lines.items()})
    return replaced  # type: ignore[no-any-return]


def location(value: bytes, prefix: bytes, inside: tuple[bytes, ...], outside: bytes, scheme: bytes) -> bytes:
    """A URL as the client must see it."""
    if value.startswith(b"/") and not value.startswith(b"//"):
        return prefix + value
    given, mark, rest = value.partition(b"://")
    if value.startswith(b"//"):
        rest = value[2:]
    elif not mark or given.lower() not in (b"http", b"https"):
        return value
    end = min((at for at in (rest.find(stop) for stop in b"/?#") if at >= 0), default=len(rest))
    authority, path = rest[:end].lower(), rest[end:]
    if not path.startswith(b"/"):
        path = b"/" + path if prefix or path else path
    if authority == outside.lower():
        return value[: len(value) - len(rest)] + rest[:end] + prefix + path
    if authority in inside:
        return scheme + b"://" + outside + prefix + path
    return value


def set_cookie(value: bytes, prefix: bytes, inside: tuple[bytes, ...]) -> bytes:
    """A Set-Cookie value as the client must see it."""
    pair, *attributes = value.split(b";")
    kept = [pair]
    for given_attribute in attributes:
        attribute = given_attribute
        name, equals, given = attribute.partition(b"=")
        kind = name.strip().lower()
        given = given.strip()
        if kind == b"path" and equals and given.startswith(b"/") and prefix:
            attribute = b" Path=" + prefix + (b"" if given == b"/" else given)
        elif kind == b"domain" and given.lower().lstrip(b".") in {host.partition(b":")[0] for host in inside}:
            continue
        kept.append(attribute)
    return b";".join(kept)
