"""Compressed forms of kept answers: made once, for the first client that gets one from the cache, and kept beside it.

A form belongs to one very answer: a later answer under the same key has forms of its own, and those of the earlier are found no more.
A small body is compressed at once; a large one as it goes out, and what went out is recorded.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from twistedproxy.http.cache import keys
from twistedproxy.http.cache.entries import Entry
from twistedproxy.http.cache.ready import parse_kept
from twistedproxy.http.codings import Effort
from twistedproxy.http.messages import Kind, RequestHead
from twistedproxy.http.middleware.compression import Compression, Plan, as_planned

if TYPE_CHECKING:
    from twistedproxy.http.cache.cache import Cache

_OF_A_MOMENT = (b"age", b"cache-status")


class Form(NamedTuple):
    """What a client is to get an answer in."""

    entry: Entry
    """The answer as the server gave it."""
    coding: str
    key: bytes

    def kept_as(self, body_length: int) -> Entry:
        """The entry to keep it as; -1 while its length is not known."""
        stored = self.entry.stored
        head = as_planned(Plan("", self.coding), parse_kept(stored.head(stored.stored_at)))
        form = stored.in_form(head.write_h1(b"", Kind.CONTENT_LENGTH, _OF_A_MOMENT, b""), head.get(b"etag"), body_length)
        return Entry(self.key, form, self.entry.url, self.entry.asked_at)


def form_for(entry: Entry, request: RequestHead, compression: Compression) -> Form | None:
    """None: this client gets the answer as it is."""
    stored = entry.stored
    coding = compression.coding_for(request, parse_kept(stored.head(stored.stored_at)), stored.body_length)
    if not coding:
        return None
    name = b"%b %b %.6f" % (entry.key, coding.encode(), stored.stored_at)
    return Form(entry, coding, blake2b(name, digest_size=keys.DIGEST_SIZE).digest())


def find(cache: Cache, form: Form) -> Entry | None:
    """The form, if it was made before."""
    found = cache.get(form.key)
    return found if isinstance(found, Entry) else None


def make(cache: Cache, form: Form, body: bytes, compression: Compression, effort: Effort) -> tuple[Entry, bytes] | None:
    """The form of an answer whose whole `body` is at hand, with its own; None when there is no time for that now."""
    out = compression.coded(form.coding, body, effort)
    if out is None:
        return None
    entry = form.kept_as(len(out))
    entry.copy = cache.store.put(entry.key, entry.to_meta(), out)
    if entry.copy is not None:
        entry.copy.value = entry
    return entry, out


class Recorder:
    """A `chain.Transform` that changes nothing, behind one that compresses: what goes out is kept as well, if all of it does."""

    is_behind = False

    def __init__(self, cache: Cache, form: Form) -> None:
        self.coding = form.coding.encode()
        self._writer: Any = cache.store.writer(form.key, form.kept_as(-1).to_meta())

    def data(self, data: bytes) -> bytes:
        if data and self._writer is not None and not self._writer.write(data):
            self._writer = None
        return data

    def end(self) -> bytes:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish()
        return b""

    def close(self) -> None:
        if self._writer is not None:
            self._writer.abort()
