"""What distinguishes one thing in the cache from another: the primary key, and the variants of one URL.

How it works
    The primary key is a digest of everything that names the thing: the scope (which route and pool answered: the same URL may be
    answered by another pool under a rule), scheme, authority, canonical path, raw query. The parts cannot run into one another: none may
    hold a NUL byte.

    Under it stands one `Variants`: the names of the request fields that chose between the answers of this URL, and the keys of the
    variants that are kept, most recently used last. A variant's key is a digest of the primary key and the request's normalised values
    of these names. When a server names further fields, all variants are forgotten: they were told apart by too little.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from hashlib import blake2b

from twistedproxy.http.messages import RequestHead, ResponseHead

DIGEST_SIZE = 16
MAX_VARIANTS = 32
"""Of one URL; a further one pushes out the one used longest ago (CA-05)."""
MAX_VARY_NAMES = 8
"""An answer that varies by more is not stored (CA-05)."""
MAX_SELECTING = 4096
"""Bytes of one selecting value; a request with a longer one does not use the cache for such an answer."""

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_SPACES = re.compile(rb"[ \t]+")
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


def primary(scheme: bytes, authority: bytes, path: bytes, query: bytes, scope: bytes = b"") -> bytes:
    """16 bytes that name a URL as one scope answers it. `path` is the canonical one, `query` the raw one (``?`` without anything
    after it is the same as none)."""
    return blake2b(b"\0".join((scope, scheme, canonical(scheme, authority), path, query)), digest_size=DIGEST_SIZE).digest()


def origin(scheme: bytes, authority: bytes) -> tuple[bytes, bytes]:
    """The same for two spellings of one origin."""
    return scheme, canonical(scheme, authority)


@lru_cache(maxsize=1024)
def canonical(scheme: bytes, authority: bytes) -> bytes:
    """An authority in lower case, without the scheme's own port and without a trailing dot."""
    authority = authority.lower()
    if authority.endswith(_DEFAULT_PORTS.get(scheme, b"\0")):
        authority = authority[: -len(_DEFAULT_PORTS[scheme])]
    host, colon, port = authority.rpartition(b":")
    if colon and b"]" not in port:
        return host.removesuffix(b".") + colon + port
    return authority.removesuffix(b".")


def variant(key: bytes, names: tuple[bytes, ...], values: tuple[bytes | None, ...]) -> bytes:
    """16 bytes that name one variant; the primary key itself when nothing chooses."""
    if not names:
        return key
    parts = [key]
    for name, value in zip(names, values, strict=True):
        parts.append(name)
        parts.append(b"-" if value is None else b"+" + value)
    return blake2b(b"\0".join(parts), digest_size=DIGEST_SIZE).digest()


_CLAIMS = (b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-prefix")


def claims(request: RequestHead) -> bytes:
    """What a trusted proxy in front says of the URL that the client asked for (CA-01): servers reflect it, so it belongs into the scope
    of the key wherever it is forwarded. b"" when it says nothing."""
    said = [b",".join(request.get_all(name)) for name in _CLAIMS]
    return b"\0".join(said) if any(said) else b""


def outside(request: RequestHead, scheme: bytes) -> tuple[bytes, bytes]:
    """(scheme, authority) of the URL as the client of a trusted proxy wrote it, which is how purges name it."""
    said, host = request.get(b"x-forwarded-proto"), request.get(b"x-forwarded-host")
    return (said.lower() if said is not None and said.lower() in _DEFAULT_PORTS else scheme), host or request.authority


_names: dict[bytes, tuple[bytes, ...] | None] = {}
_MAX_REMEMBERED = 512
_PLAIN: tuple[bytes, ...] = ()
_CODED = (b"accept-encoding",)


def vary_names(response: ResponseHead) -> tuple[bytes, ...] | None:
    """Lower-case names of the request fields that chose this answer, sorted; None: nobody can tell (``*``, nonsense, or too many).

    An answer with a Content-Encoding varies by Accept-Encoding even if the server forgot to say so."""
    value = response.get(b"vary")
    coded = response.get(b"content-encoding") is not None
    if value is None:
        return _CODED if coded else _PLAIN
    several = response.get_all(b"vary")
    if len(several) > 1:
        value = b",".join(several)
    found = _names[value] if value in _names else _read_names(value)
    if coded and found is not None and b"accept-encoding" not in found:
        return tuple(sorted((*found, b"accept-encoding"))) if len(found) < MAX_VARY_NAMES else None
    return found


def _read_names(value: bytes) -> tuple[bytes, ...] | None:
    if len(value) > 1024:
        return None
    found: set[bytes] = set()
    names: tuple[bytes, ...] | None = None
    for part in value.lower().split(b","):
        name = part.strip(b" \t")
        if not name:
            continue
        if name == b"*" or _TOKEN.fullmatch(name) is None or (len(found) >= MAX_VARY_NAMES and name not in found):
            break
        found.add(name)
    else:
        names = tuple(sorted(found))
    if len(_names) >= _MAX_REMEMBERED:
        _names.clear()
    _names[value] = names
    return names


_SECRET = (b"authorization", b"cookie")
"""Of these only a digest is kept: a store's files hold nobody's session."""
_CODINGS = (b"zstd", b"br", b"gzip", b"deflate")


def selecting(names: tuple[bytes, ...], request: RequestHead) -> tuple[bytes | None, ...] | None:
    """The request's normalised values of these fields; None: one is too long to choose by."""
    values: list[bytes | None] = []
    for name in names:
        several = request.get_all(name)
        if not several:
            values.append(None)
            continue
        value = b",".join(several)
        if len(value) > MAX_SELECTING:
            return None
        if name == b"accept-encoding":
            value = _coding_class(value)
        elif name in _SECRET:
            value = blake2b(value, digest_size=DIGEST_SIZE).digest()
        elif name in (b"accept", b"accept-language", b"accept-charset"):
            value = _SPACES.sub(b"", value.lower())
        else:
            value = b",".join([_SPACES.sub(b" ", part).strip() for part in value.split(b",")]) if b"," in value else value
        values.append(value)
    return tuple(values)


_codings: dict[bytes, bytes] = {}


def _coding_class(value: bytes) -> bytes:
    """Which of the codings in use a client takes: ``gzip, deflate, br`` and ``br;q=1.0, gzip;q=0.8, deflate`` choose alike."""
    found = _codings.get(value)
    if found is not None:
        return found
    taken: set[bytes] = set()
    refused: set[bytes] = set()
    for part in value.lower().split(b",")[:64]:
        name, _, parameter = part.partition(b";")
        name = name.strip()
        if name == b"x-gzip":
            name = b"gzip"
        weight = parameter.strip().removeprefix(b"q=").strip()
        if parameter and weight.startswith(b"0") and not weight.strip(b"0."):
            refused.add(name)
        elif name:
            taken.add(name)
    if b"*" in taken:
        taken.update(_CODINGS)
    chosen = [coding for coding in _CODINGS if coding in taken and coding not in refused]
    if b"identity" in refused or (b"*" in refused and b"identity" not in taken):
        chosen.append(b"!identity")
    found = b",".join(chosen)
    if len(_codings) >= _MAX_REMEMBERED:
        _codings.clear()
    _codings[value] = found
    return found


class Variants:
    """The variants of one URL that are kept, at most `MAX_VARIANTS`."""

    __slots__ = ("keys", "names")

    def __init__(self, names: tuple[bytes, ...] = (), keys: list[bytes] | None = None) -> None:
        self.names = names
        self.keys: list[bytes] = [] if keys is None else keys
        """Most recently stored or used last."""

    def key_for(self, primary_key: bytes, request: RequestHead) -> bytes | None:
        """Key of the variant this request chooses, kept or not; None: it cannot be chosen by this request's fields."""
        if not self.names:
            return primary_key
        values = selecting(self.names, request)
        return None if values is None else variant(primary_key, self.names, values)

    def widened(self, names: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
        """The names after an answer that varies by `names`; None: too many, it cannot be stored."""
        if set(names) <= set(self.names):
            return self.names
        union = tuple(sorted({*self.names, *names}))
        return union if len(union) <= MAX_VARY_NAMES else None

    def add(self, names: tuple[bytes, ...], key: bytes) -> list[bytes]:
        """Notes a variant stored under `key`, chosen by `names` (of `widened`). Returns the keys of variants to forget."""
        forgotten: list[bytes] = []
        if names != self.names:
            forgotten = [each for each in self.keys if each != key]
            self.names, self.keys = names, []
        self.use(key)
        while len(self.keys) > MAX_VARIANTS:
            forgotten.append(self.keys.pop(0))
        return forgotten

    def use(self, key: bytes) -> None:
        """Makes this variant the last to be pushed out."""
        if key in self.keys:
            self.keys.remove(key)
        self.keys.append(key)

    def to_bytes(self) -> bytes:
        names = b",".join(self.names)
        return struct.pack("<HB", len(names), len(self.keys)) + names + b"".join(self.keys)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Variants:
        """Raises ValueError for anything `to_bytes` did not write."""
        data = bytes(data)
        if len(data) < 3:
            raise ValueError("too short")
        size, count = struct.unpack_from("<HB", data)
        if len(data) != 3 + size + count * DIGEST_SIZE or count > MAX_VARIANTS:
            raise ValueError("lengths do not add up")
        names = tuple(data[3 : 3 + size].split(b",")) if size else ()
        start = 3 + size
        return cls(names, [data[at : at + DIGEST_SIZE] for at in range(start, len(data), DIGEST_SIZE)])
