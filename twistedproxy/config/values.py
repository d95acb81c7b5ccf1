"""The kinds of value the file knows, from text to Python: durations, sizes, rates, addresses, servers, hosts, paths.

Pure functions that raise `ValueError` with a sentence for the person who wrote the value: what is wrong, what is allowed.
No pydantic here, so that the command line and the admin API may use the same grammar cheaply.
"""

from __future__ import annotations

import datetime
import difflib
import ipaddress
import os
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from twistedproxy.config.model import Address, endpoint, is_host_name

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_DURATION = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")
_SIZE = re.compile(rf"({_NUMBER})(B|kB|MB|GB|KiB|MiB|GiB)")
_RATE = re.compile(rf"({_NUMBER})(B|kB|MB|GB|KiB|MiB|GiB)?/(s|m|h)(?: per ([a-z][a-z0-9_.-]*))?(?: burst ([0-9]{{1,9}}))?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME = re.compile(r"[A-Za-z0-9._-]+")

BALANCE = ("round_robin", "least_conn", "p2c", "random", "least_time", "source_ip")
HASHES = ("hash:path", "hash:header.NAME", "hash:cookie.NAME", "hash:query.NAME")
PROBES = ("tcp", "tls", "postgres", "mysql", "redis")

DURATION_ALLOWED = 'a duration: one number and ms, s, m, h or d, such as "250ms" or "1.5s"'
SIZE_ALLOWED = 'a size: one number and B, kB, MB, GB (powers of 1000) or KiB, MiB, GiB (powers of 1024), such as "100MiB"'
LISTEN_ALLOWED = 'an address to listen on: "IP:PORT", "localhost:PORT", "[IPv6]:PORT", ":PORT" (all addresses) or "unix:PATH"'
SERVER_ALLOWED = 'a server: "ADDRESS [weight=0..1000] [max_connections=N] [backup]" with HOST:PORT, [IPv6]:PORT or unix:PATH as ADDRESS'
NETWORK_ALLOWED = 'a network or an IP address, such as "10.0.0.0/8" or "fd00::/8"'
HOST_ALLOWED = 'a host: an exact name, "*.suffix" or "*", without a port'


def shown(value: object) -> str:
    """`value` as a message quotes it: never longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:60] + "…" + text[-8:]


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`` Did you mean 'x'?`` with a leading space, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, known, 1, 0.6) if len(word) <= 100 and len(known) <= 1000 else []
    return f" Did you mean {near[0]!r}?" if near else ""


def toml_kind(value: object) -> str:
    """What a TOML value is, in words."""
    words: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a table"}
    if isinstance(value, (datetime.date, datetime.time)):
        return "a date or time"
    return next((word for kind, word in words.items() if isinstance(value, kind)), type(value).__name__)


def parse_text(value: object, allowed: str, most: int = 4096) -> str:
    """`value` itself when it is text without control characters; else `allowed` says what should have been there."""
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, {allowed}; this is {toml_kind(value)}")
    if len(value) > most:
        raise ValueError(f"is longer than {most} characters; allowed is {allowed}")
    if any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"has a control character in it; allowed is {allowed}")
    return str(value)


# Numbers with units


def parse_duration(value: object) -> float:
    """Seconds."""
    text = parse_text(value, DURATION_ALLOWED)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not {DURATION_ALLOWED}")
    seconds = float(match[1]) * _SECONDS[match[2]]
    return round(seconds, 6) if match[2] == "ms" else seconds


def parse_size(value: object) -> int:
    """Bytes."""
    text = parse_text(value, SIZE_ALLOWED)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not {SIZE_ALLOWED}")
    return round(float(match[1]) * _BYTES[match[2]])


@dataclass(frozen=True, slots=True)
class Rate:
    """So many things or bytes a second, for each `key`, with room for `burst` at once."""

    per_second: float
    is_bytes: bool
    key: str | None
    burst: int


def parse_rate(value: object) -> Rate:
    """``100/s``, ``5/m per client_ip burst 20``, ``500B/s``; the default burst is the rate's own number."""
    allowed = 'a rate such as "100/s", "10/m per client_ip burst 20" or, in bytes, "500B/s"'
    text = parse_text(value, allowed)
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not {allowed}")
    amount = float(match[1]) * _BYTES[match[2] or "B"]
    return Rate(amount / _SECONDS[match[3]], match[2] is not None, match[4], int(match[5] or max(1, round(amount))))


def parse_byte_rate(value: object) -> float:
    """Bytes per second, without a key or a burst."""
    text = parse_text(value, 'a rate in bytes such as "500B/s"')
    match = _RATE.fullmatch(text)
    if match is None or match[2] is None or match[4] or match[5]:
        raise ValueError(f'{shown(text)} is not a rate in bytes: a size and /s, /m or /h, such as "500B/s"')
    return parse_rate(text).per_second


def parse_percent(value: object) -> float:
    """``"20%"`` as 0.2."""
    text = parse_text(value, 'a percentage such as "20%"')
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", text)
    if match is None or float(match[1]) > 100:
        raise ValueError(f'{shown(text)} is not a percentage from "0%" to "100%"')
    return float(match[1]) / 100


def parse_mode(value: object) -> int:
    """``"0660"`` as the file mode 0o660."""
    text = parse_text(value, 'an octal file mode such as "0660"')
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f'{shown(text)} is not an octal file mode such as "0660"')
    return int(text, 8)


# Names, hosts, networks


def parse_name(value: object) -> str:
    text = parse_text(value, "a name of letters, digits, '.', '_' and '-'")
    if not _NAME.fullmatch(text) or len(text) > 128:
        raise ValueError(f"{shown(text)} is not a name: allowed are up to 128 letters, digits, '.', '_' and '-'")
    return text


def parse_token(value: object) -> str:
    """An HTTP token (RFC 9110 5.6.2), such as the pseudonym in Via."""
    text = parse_text(value, "one word without spaces")
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{shown(text)} is not one word of letters, digits and !#$%&'*+.^_`|~-")
    return text


def parse_host(value: object) -> str:
    """A host pattern in canonical form: lower case, no trailing dot, IPv6 in brackets."""
    text = parse_text(value, HOST_ALLOWED)
    host = text.lower()
    if host == "*":
        return host
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        pass
    else:
        return f"[{ip}]" if ip.version == 6 else str(ip)
    name = host.removeprefix("*.")
    if not name.isascii():
        raise ValueError(f"{shown(text)} is not {HOST_ALLOWED}; write an international name in its ASCII form (xn--…)")
    if not is_host_name(name):
        raise ValueError(f"{shown(text)} is not {HOST_ALLOWED}")
    return host.rstrip(".")


def parse_network(value: object) -> str:
    text = parse_text(value, NETWORK_ALLOWED)
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        wider = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{shown(text)} is not {NETWORK_ALLOWED}") from None
    raise ValueError(f"{shown(text)} names a host and a network at once; write '{wider}' or '{text.partition('/')[0]}'")


def parse_balance(value: object) -> str:
    allowed = f"allowed are {', '.join(BALANCE)}, {', '.join(HASHES)}"
    text = parse_text(value, allowed)
    if text in BALANCE or text == "hash:path":
        return text
    match = re.fullmatch(r"hash:(header|cookie|query)\.(.+)", text)
    if match and _TOKEN.fullmatch(match[2]):
        return text
    raise ValueError(f"{shown(text)} is not a way to balance.{did_you_mean(text, (*BALANCE, *HASHES))} {allowed[0].upper() + allowed[1:]}")


# Addresses and files


def absolute(path: str, base_dir: str | None) -> str:
    """`path` relative to `base_dir`, without ``..``; where nothing is known to be relative to, it must be absolute."""
    if not path or "\0" in path:
        raise ValueError("is empty; a path is needed")
    if base_dir is None and not os.path.isabs(path):
        raise ValueError(f"{shown(path)} must be an absolute path here")
    return os.path.normpath(os.path.join(base_dir or "/", path))


def _absolute_unix(text: str, base_dir: str | None) -> str:
    if text.startswith("unix:") and text != "unix:":
        return "unix:" + absolute(text[5:], base_dir)
    return text


def parse_listen(value: object, base_dir: str | None, has_ipv6: bool) -> Address:
    """The canonical address to bind; ``:port`` is the dual-stack wildcard, or IPv4's on a machine without IPv6."""
    text = parse_text(value, LISTEN_ALLOWED, 300)
    if text.startswith("*:"):
        raise ValueError(f"{shown(text)} is not {LISTEN_ALLOWED}; write {text[1:]!r} for all addresses")
    if text.startswith(":"):
        text = ("[::]" if has_ipv6 else "0.0.0.0") + text
    try:
        place = endpoint(_absolute_unix(text, base_dir))
    except ValueError as e:
        raise ValueError(f"{e}; allowed is {LISTEN_ALLOWED}") from None
    if place.family == socket.AF_UNSPEC:
        if place.host != "localhost":
            raise ValueError(f"{shown(text)}: a listener needs an IP address, not a host name; allowed is {LISTEN_ALLOWED}")
        return Address(f"127.0.0.1:{place.port}")
    return Address(str(place))


def parse_server_address(value: object, base_dir: str | None) -> Address:
    text = parse_text(value, SERVER_ALLOWED, 300)
    if "://" in text:
        raise ValueError(f"{shown(text)} is a URL; write HOST:PORT, [IPv6]:PORT or unix:PATH, without scheme and path")
    place = endpoint(_absolute_unix(text, base_dir))
    if place.family != socket.AF_UNIX and place.port == 0:
        raise ValueError(f"{shown(text)}: a server's port is 1 to 65535")
    return Address(str(place))


def server_table(value: object) -> dict[str, Any]:
    """The short form of a server as its table: ``"10.0.0.1:80 weight=3 backup"``. Ranges are checked with the table's keys."""
    words = parse_text(value, SERVER_ALLOWED).split(" ")
    while "" in words:
        words.remove("")
    if not words:
        raise ValueError(f"is empty; allowed is {SERVER_ALLOWED}")
    table: dict[str, Any] = {"address": words[0]}
    for word in words[1:]:
        key, equals, number = word.partition("=")
        if key in table:
            raise ValueError(f"says {shown(key)} twice; allowed is {SERVER_ALLOWED}")
        if word == "backup":
            table["backup"] = True
        elif equals and key in ("weight", "max_connections"):
            if not re.fullmatch(r"[0-9]{1,9}", number):
                raise ValueError(f"{shown(word)}: {key} needs a whole number after '='; allowed is {SERVER_ALLOWED}")
            table[key] = int(number)
        else:
            near = did_you_mean(key, ("weight", "max_connections", "backup"))
            raise ValueError(f"{shown(word)} is not known here.{near} Allowed is {SERVER_ALLOWED}")
    return table


# HTTP


def parse_route_path(value: object) -> str:
    """A route's key in canonical form (RFC 3986 6.2.2: what needs no percent-encoding has none, hex digits are upper case)."""
    allowed = '"/x/" for everything below, "/x" for itself and below, "=/x" for exactly this path'
    text = parse_text(value, allowed)
    exact, path = ("=", text[1:]) if text.startswith("=") else ("", text)
    if not path.startswith("/"):
        raise ValueError(f"{shown(text)} is not a path; allowed are {allowed}")
    if "*" in path:
        raise ValueError(f"{shown(text)}: '*' is no wildcard in a path; allowed are {allowed}")
    if not re.fullmatch(r"(?:[!$&'()+,;=:@/A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+", path):
        raise ValueError(f"{shown(text)}: a path has no query, fragment, space or unencoded special character; allowed are {allowed}")
    path = re.sub(r"%[0-9A-Fa-f]{2}", _canonical_escape, path)
    if "//" in path or any(part in (".", "..") for part in path.split("/")):
        raise ValueError(f"{shown(text)}: '//', '/./' and '/../' never occur in the path that routes are compared with")
    return exact + path


def _canonical_escape(match: re.Match[str]) -> str:
    character = chr(int(match[0][1:], 16))
    return character if re.fullmatch(r"[A-Za-z0-9._~-]", character) else match[0].upper()


def parse_get(value: object) -> str:
    """The path of ``"GET /path"``."""
    text = parse_text(value, '"GET /path"', 2048)
    if not re.fullmatch(r"GET /[!-~]*", text) or "#" in text:
        raise ValueError(f'{shown(text)} is not "GET /path" (one space, a path that begins with / and has neither spaces nor #)')
    return text[4:]


def health_table(value: object) -> dict[str, Any]:
    """The short form of a health check as its table."""
    allowed = f'allowed are {", ".join(map(repr, PROBES))}, "GET /path" or a table such as {{ http = "GET /path", every = "2s" }}'
    text = parse_text(value, allowed)
    if text in PROBES:
        return {text: True}
    if text.startswith("GET"):
        return {"http": text}
    raise ValueError(f"{shown(text)} is not a health check.{did_you_mean(text, PROBES)} {allowed[0].upper() + allowed[1:]}")


def parse_status_ranges(value: object) -> tuple[tuple[int, int], ...]:
    """``"200-299"``, ``"200,204,300-399"`` or the number 200, as inclusive ranges."""
    allowed = 'good HTTP statuses such as "200-299" or "200,204"'
    text = str(value) if type(value) is int else parse_text(value, allowed)
    ranges = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", part)
        if match is None or int(match[1]) > int(match[2] or match[1]):
            raise ValueError(f"{shown(text)} does not name {allowed}, each from 100 to 599")
        ranges.append((int(match[1]), int(match[2] or match[1])))
    return tuple(ranges)


def parse_health_host(value: object) -> str:
    """The Host field of a health check: a name or an IP, with an optional port."""
    text = parse_text(value, 'a host name such as "app.internal"')
    try:
        endpoint(text if re.search(r":[0-9]+$", text) and not text.endswith("]") else f"{text}:80")
    except ValueError:
        raise ValueError(f'{shown(text)} is not a host such as "app.internal" or "app.internal:8080"') from None
    return text


def parse_sha256(value: object) -> str:
    text = parse_text(value, "64 hexadecimal digits").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("is not a SHA-256 digest: 64 hexadecimal digits, as `printf %s TOKEN | sha256sum` prints them")
    return text
