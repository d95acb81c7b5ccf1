"""What is kept under a key, as bytes for a store and decoded for use: an answer with its URL, or the list of a URL's variants.

The meta of an answer is ``O``, the moment it was asked for, its URL, then its `Stored`; that of a list ``V`` and its `Variants`. The moment
and the URL are what purges look at: an answer that was asked for before a purge is covered by it, whenever it came.
"""

from __future__ import annotations

import struct
from typing import Any

from twistedproxy.http.cache.keys import Variants, canonical
from twistedproxy.http.cache.stored import CorruptEntry, Stored

_HEAD = struct.Struct("<cdH")
MAX_URL = 16 * 1024


def url_of(scheme: bytes, authority: bytes, path: bytes, query: bytes) -> bytes:
    """The URL as purges name it: two spellings of one origin are one."""
    authority = canonical(scheme, authority)
    return b"%b://%b%b?%b" % (scheme, authority, path, query) if query else b"%b://%b%b" % (scheme, authority, path)


class Entry:
    """One kept answer, decoded; `copy` is the store's own word for where its bytes are."""

    __slots__ = ("asked_at", "copy", "key", "purges_seen", "stored", "url")

    def __init__(self, key: bytes, stored: Stored, url: bytes, asked_at: float, copy: Any = None) -> None:
        self.key = key
        self.stored = stored
        self.url = url
        """``scheme://authority/path?query``, canonical."""
        self.asked_at = asked_at
        """Wall-clock seconds: when the server was asked for it."""
        self.copy = copy
        self.purges_seen = 0
        """So many purges were looked at; none of them covers this entry."""

    def __repr__(self) -> str:
        return f"<Entry {self.url.decode('latin-1')} {self.stored!r}>"

    def to_meta(self) -> bytes:
        return _HEAD.pack(b"O", self.asked_at, len(self.url)) + self.url + self.stored.to_bytes()


class VariantList:
    """The variants of one URL that are kept."""

    __slots__ = ("copy", "variants")

    def __init__(self, variants: Variants, copy: Any = None) -> None:
        self.variants = variants
        self.copy = copy

    def to_meta(self) -> bytes:
        return b"V" + self.variants.to_bytes()


def decoded(key: bytes, meta: bytes, copy: Any) -> Entry | VariantList:
    """What `to_meta` wrote. Raises CorruptEntry."""
    kind = meta[:1]
    if kind == b"V":
        try:
            return VariantList(Variants.from_bytes(meta[1:]), copy)
        except ValueError as error:
            raise CorruptEntry(f"list of variants: {error}") from None
    if kind != b"O" or len(meta) < _HEAD.size:
        raise CorruptEntry("neither an answer nor a list of variants")
    _, asked_at, size = _HEAD.unpack_from(meta)
    url = meta[_HEAD.size : _HEAD.size + size]
    if len(url) != size:
        raise CorruptEntry("the URL is cut off")
    return Entry(key, Stored.from_bytes(meta[_HEAD.size + size :]), url, asked_at, copy)
