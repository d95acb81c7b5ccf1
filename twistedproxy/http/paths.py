"""One spelling for what a request asks for: canonical path and host, so that router, ACL, cache and server see the same thing.

How it works
    Paths (RFC 3986 6.2.2, faults RT-03): escapes of unreserved characters are decoded, other escapes upper-cased, characters that no
    URI may hold (such as ``|``) are escaped; then slashes are merged; then dot segments are resolved, never above the root.
    What cannot be given one meaning by every server is refused: encoded slashes, backslashes and control characters, overlong UTF-8,
    dot segments with path parameters (``/..;/``, which Java servers resolve and others do not). The result is a fixed point.
    Hosts: a name of letters, digits, ``-``, ``_`` and ``.``, or an IPv4 or bracketed IPv6 address, with an optional port 1–65535.

Both codecs call these functions when a quick test says that the text is not canonical already. They return what they found or the
name of the broken rule (see ``refusals``), because only the codec knows whose message it is.
"""

from __future__ import annotations

import re
import socket
from typing import Final

MAX_HOST = 255

_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_CANONICAL = re.compile(rb"(?:/(?![/.])[A-Za-z0-9_~!$&'()*+,;=:@.-]*+)++")
_ESCAPED: Final = {bytes((c,)): b"%%%02X" % c for c in b'"<>[]^`{|}'}
_TO_ESCAPE = re.compile(rb'["<>\[\]^`{|}]')
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
_OVERLONG = re.compile(rb"%C[01]|%E0%[89][0-9A-F]|%F0%8[0-9A-F]")
_DOTS_WITH_PARAMETERS = re.compile(rb"/\.\.?(?:;|%3B)")
_SLASHES = re.compile(rb"//++")

_AUTHORITY = re.compile(rb"(?:([A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)*+)\.?|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++")


class _Broken(Exception):
    """Carries the name of a rule out of a substitution."""


def _plain_escape(match: re.Match[bytes]) -> bytes:
    digits = match[1]
    if digits is None:
        raise _Broken("path_escape")
    code = int(digits, 16)
    if code in _UNRESERVED:
        return bytes((code,))
    if code < 0x20 or code in (0x2F, 0x5C, 0x7F):
        raise _Broken("path_encoded")
    return b"%" + digits.upper()


def canonical_path(path: bytes) -> bytes | str:
    """The one spelling of `path` (begins with ``/``; visible ASCII, no ``?``), or the name of the rule it breaks."""
    if _CANONICAL.fullmatch(path):
        return path
    if b"#" in path:
        return "target_fragment"
    if b"\\" in path:
        return "path_backslash"
    try:
        path = _ESCAPE.sub(_plain_escape, path)
    except _Broken as broken:
        return str(broken)
    if _OVERLONG.search(path):
        return "path_overlong"
    path = _TO_ESCAPE.sub(lambda match: _ESCAPED[match[0]], path)
    path = _SLASHES.sub(b"/", path)
    if b"/." not in path:
        return path
    if _DOTS_WITH_PARAMETERS.search(path):
        return "path_dots"
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def host_of(authority: bytes) -> bytes | None:
    """The host of ``host[:port]``: lower case, without trailing dot and port, IPv6 in brackets and compressed; None when malformed."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None or len(authority) > MAX_HOST:
        return None
    name, v6, port = match.groups()
    if port is not None and not 0 < int(port) <= 65535:
        return None
    if name is not None:
        return name.lower()
    try:
        packed = socket.inet_pton(socket.AF_INET6, v6.decode("ascii"))
    except OSError:
        return None
    return b"[" + socket.inet_ntop(socket.AF_INET6, packed).encode("ascii") + b"]"


def has_port(authority: bytes) -> bool:
    """True when a valid `authority` names its port."""
    return b":" in authority.rpartition(b"]")[2]


Target = tuple[bytes | None, bytes, bytes]
"""(authority when the target names it, canonical path, raw query)"""


def read_target(method: bytes, target: bytes) -> Target | str:
    """All four forms of RFC 9112 3.2, or the name of the rule that is broken.

    `target` is visible ASCII and not empty. The path of ``*`` is ``*``; that of CONNECT is empty.
    """
    if method == b"CONNECT":
        if host_of(target) is None or not has_port(target):
            return "target_connect"
        return target, b"", b""
    authority: bytes | None = None
    first = target[0]
    if first != 0x2F:
        if target == b"*":
            return (None, b"*", b"") if method == b"OPTIONS" else "target_star"
        scheme, mark, rest = target.partition(b"://")
        if not mark or scheme.lower() not in (b"http", b"https"):
            return "target_form"
        if b"#" in rest:
            return "target_fragment"
        end = len(rest)
        for stop in b"/?":
            found = rest.find(stop, 0, end)
            end = end if found < 0 else found
        authority = rest[:end]
        if host_of(authority) is None:
            return "host"
        target = rest[end:]
        if not target and method == b"OPTIONS":
            return authority, b"*", b""
        if not target.startswith(b"/"):
            target = b"/" + target
    elif b"#" in target:
        return "target_fragment"
    raw_path, _, query = target.partition(b"?")
    path = canonical_path(raw_path)
    return path if isinstance(path, str) else (authority, path, query)


def coding_rule(value: bytes) -> str:
    """Why a Transfer-Encoding value that is not exactly ``chunked`` is refused: ``coding_unknown`` (501) or ``coding`` (400)."""
    codings = [coding.strip(b" \t").lower() for coding in value.split(b",")]
    if not all(map(_TOKEN.fullmatch, codings)):
        return "coding"
    before, last = codings[:-1], codings[-1]
    if b"chunked" in before or (before and last != b"chunked"):
        return "coding"
    return "coding_unknown"
