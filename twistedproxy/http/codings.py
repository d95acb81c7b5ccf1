"""Content codings: which one a client wants, and the coders behind gzip, br and zstd, all with the same three words. No I/O.

How it works
    `choose` weighs an Accept-Encoding field against what is offered (RFC 9110 12.5.3); `encoder` and `decoder` make what does the work.
    Memory is bounded: windows are no larger than the answer is known to be and 256 KiB at most, so a coder holds 0.2 to 0.7 MiB, that
    of an event stream 0.02 to 0.2; a decoder gives out `STEP` bytes or a little more at a time (zstd: what 512 bytes can stand for) and
    refuses what grows beyond all measure.

Levels, measured on 100 KB of JSON, JavaScript and source text: at level 3 br and zstd give nearly the same size, gzip by isal 5 % more;
they take 0.4 (isal), 0.4 (zstd) and 1.7 ms (br). zlib at level 1, nginx's default, takes 1.2 ms for 5 % more than isal's 3. So 3 is the
default of all of them. gzip at 1 to 3 is done by isal when that is installed, else and above by zlib.

The libraries are imported when the first coder of their kind is asked for.
"""

from __future__ import annotations

import functools
import importlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twistedproxy.errors import BadResponse, CodingFailed

CODINGS = ("zstd", "br", "gzip")
"""In our order of preference."""
MODULES = {"zstd": "zstandard", "br": "brotli", "gzip": "zlib"}
DEFAULT_LEVEL = 3
LEVELS = {"zstd": (1, 19), "br": (0, 11), "gzip": (1, 9)}
"""Lowest and highest. zstd beyond 19 needs windows that browsers refuse (RFC 9659)."""
_EASED = ({"zstd": 2, "br": 1, "gzip": 2}, {"zstd": 1, "br": 0, "gzip": 1})
"""The highest level while a worker has much to do, and while it has too much."""
NO_MORE = 3
"""The step of `Effort.ease` from which nothing is compressed."""
MOST_OPEN = 500
"""Coders at work at once in one listener of one worker; answers beyond go out as they are."""
STEP = 256 * 1024
"""What a decoder gives out at a time, in bytes."""
FREE_OUTPUT = 4 * 1024 * 1024
MOST_TIMES = 250
"""A body may grow to `FREE_OUTPUT` bytes in any case, beyond that to this many times what came."""
_MAX_FIELD = 1024
_MAX_MEMBERS = 32
_MAX_WINDOW_LOG = 18
_STREAM_WINDOW_LOG = 14
_ZSTD_MAX_WINDOW = 8 * 1024 * 1024
_ZSTD_SLICE = 512
"""Bytes of zstd that are decoded at once: 4 of them can stand for 128 KiB."""
_MEMBER = re.compile(rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*)?")


# What the client wants


def choose(accept: bytes, offered: tuple[str, ...]) -> str:
    """The best coding among `offered`, which are in order of preference; "" for none. `accept` is all of Accept-Encoding, b"" if absent."""
    if not accept:
        return ""
    return _choose(accept, offered) if len(accept) <= 256 else _choose.__wrapped__(accept, offered)


@functools.lru_cache(maxsize=512)
def _choose(accept: bytes, offered: tuple[str, ...]) -> str:
    wanted = weights(accept)
    others = wanted.get("*", 0)
    best, most = "", 0
    for coding in offered:
        weight = wanted.get(coding, others)
        if weight > most:
            best, most = coding, weight
    return best if most >= wanted.get("identity", 0) else ""


def accepts(accept: bytes, coding: str) -> bool:
    """Can this client read `coding` at all? One that says nothing cannot, whatever the RFC allows us to hope."""
    wanted = weights(accept)
    return wanted.get(coding, wanted.get("*", 0)) > 0


def weights(accept: bytes) -> dict[str, int]:
    """Thousandths by lower-case name. What is not well-formed, or stands behind the first 32 members, is as if it were not there."""
    found: dict[str, int] = {}
    if len(accept) > _MAX_FIELD:
        return found
    for member in accept.split(b",", _MAX_MEMBERS)[:_MAX_MEMBERS]:
        match = _MEMBER.fullmatch(member)
        if match is not None:
            name = match[1].decode().lower()
            name = "gzip" if name == "x-gzip" else name
            weight = 1000 if match[2] is None else round(float(match[2]) * 1000)
            found[name] = min(weight, found.get(name, 1000))
    return found


@functools.cache
def is_installed(coding: str) -> bool:
    """Its library can be imported."""
    try:
        module = importlib.import_module(MODULES[coding])
    except ImportError:
        return False
    return coding != "br" or hasattr(module.Decompressor, "can_accept_more_data")  # which came with its bounded output, in 1.2


# How hard the worker tries


class Effort:
    """What one listener of one worker spends on codings."""

    __slots__ = ("counts", "ease", "eased", "open")

    def __init__(self, counts: Counter[tuple[str, str, str]] | None = None, eased: Counter[str] | None = None) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter() if counts is None else counts
        """Bytes by ("compress" or "decompress", coding, "in" or "out")."""
        self.eased: Counter[str] = Counter() if eased is None else eased
        """Answers compressed less than they should be, or not at all: by "lower", "load", "many" and "failed"."""
        self.ease = 0
        """0: as configured; 1 and 2: lower levels; 3: nothing is compressed."""
        self.open = 0

    def may_begin(self) -> bool:
        """Is another coder within bounds now? Counts the refusals."""
        if self.open >= MOST_OPEN:
            self.eased["many"] += 1
        elif self.ease >= NO_MORE:
            self.eased["load"] += 1
        else:
            return True
        return False

    def level(self, coding: str, level: int) -> int:
        """The level to work at now."""
        if not self.ease or level <= (most := _EASED[min(self.ease, 2) - 1][coding]):
            return level
        self.eased["lower"] += 1
        return most

    def count(self, what: str, coding: str, size_in: int, size_out: int) -> None:
        self.counts[(what, coding, "in")] += size_in
        self.counts[(what, coding, "out")] += size_out


# Encoders


class Encoder(Protocol):
    """One body on its way. An error is `CodingFailed`; after it, or after `finish`, the object is spent."""

    def compress(self, data: bytes) -> bytes:
        """What can be sent now; much may be held back."""
        ...

    def flush(self) -> bytes:
        """What lets the other side see all that was given so far."""
        ...

    def finish(self) -> bytes:
        """The rest."""
        ...


def encoder(coding: str, level: int, size: int = -1, is_stream: bool = False) -> Encoder:
    """For a body of `size` bytes, -1 when that is not known; `is_stream`: one that lasts, and wants little memory."""
    window = _STREAM_WINDOW_LOG if is_stream else min(max(size.bit_length(), 10), _MAX_WINDOW_LOG) if size >= 0 else _MAX_WINDOW_LOG
    if is_stream:
        level = min(level, _EASED[1][coding])
    try:
        return _ENCODERS[coding](level, window)
    except Exception as error:
        raise CodingFailed(f"{coding} cannot begin: {error!r}") from error


class _Coder:
    """Calls into a library whose errors have many names."""

    __slots__ = ("_compress", "_finish", "_flush", "_spent")

    def __init__(
        self,
        compress: Callable[[bytes], bytes],
        flush: Callable[[], bytes],
        finish: Callable[[], bytes],
        spent: Callable[[], None] | None = None,
    ) -> None:
        self._compress = compress
        self._flush = flush
        self._finish = finish
        self._spent = spent

    def compress(self, data: bytes) -> bytes:
        try:
            return self._compress(data)
        except Exception as error:
            raise CodingFailed(f"the answer could not be compressed: {error!r}") from error

    def flush(self) -> bytes:
        try:
            return self._flush()
        except Exception as error:
            raise CodingFailed(f"the answer could not be compressed: {error!r}") from error

    def finish(self) -> bytes:
        try:
            data = self._finish()
        except Exception as error:
            raise CodingFailed(f"the answer could not be compressed: {error!r}") from error
        if self._spent is not None:
            self._spent()
        return data


def _gzip(level: int, window: int) -> Encoder:
    make = _isal_compressor() if level <= 3 else None
    if make is not None:
        coder = make(level, zlib.DEFLATED, 31)
    else:
        coder = zlib.compressobj(level, zlib.DEFLATED, 16 + max(min(window, 15), 9), 8 if window > 14 else 7)
    return _Coder(coder.compress, lambda: coder.flush(zlib.Z_SYNC_FLUSH), coder.flush)


@functools.cache
def _isal_compressor() -> Any:
    try:
        return importlib.import_module("isal.isal_zlib").compressobj
    except ImportError:
        return None


def _br(level: int, window: int) -> Encoder:
    coder = importlib.import_module("brotli").Compressor(quality=level, lgwin=window)
    return _Coder(coder.process, coder.flush, coder.finish)


_free: dict[tuple[int, int], list[Any]] = {}
"""zstd's working memory by level and window, from bodies that are done: making it anew costs as much as 100 KB of text."""
_MOST_FREE = 8


def _zstd(level: int, window: int) -> Encoder:
    zstandard = importlib.import_module("zstandard")
    window = 14 if window <= 14 else 16 if window <= 16 else _MAX_WINDOW_LOG  # few sorts, so that one serves the next
    free = _free.setdefault((level, window), [])
    if free:
        maker = free.pop()
    else:
        spec = zstandard.ZstdCompressionParameters.from_level(level, source_size=1 << window, window_log=window)
        maker = zstandard.ZstdCompressor(compression_params=spec)
    coder = maker.compressobj()

    def spent() -> None:
        if sum(map(len, _free.values())) < _MOST_FREE:
            free.append(maker)

    return _Coder(coder.compress, functools.partial(coder.flush, zstandard.COMPRESSOBJ_FLUSH_BLOCK), coder.flush, spent)


_ENCODERS: dict[str, Callable[[int, int], Encoder]] = {"gzip": _gzip, "br": _br, "zstd": _zstd}


# Decoders


class Decoder:
    """Undoes one coding of one body, `STEP` bytes at a time. What does not fit the coding, or grows like a bomb, is a `BadResponse`."""

    __slots__ = ("_decode", "_in", "_out", "_waiting", "coding", "is_behind")

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self._decode: _Step = _DECODERS[coding]()
        self._waiting = b""
        self._in = self._out = 0
        self.is_behind = False
        """There is more in what was given: ask again, with b""."""

    def decompress(self, data: bytes) -> bytes:
        """What comes next of all that was given."""
        if not data and not self.is_behind:
            return b""
        self._in += len(data)
        waiting = self._waiting + data if self._waiting else data
        pieces: list[bytes] = []
        size = 0
        decode = self._decode
        try:
            while size < STEP:
                piece, waiting = decode.step(waiting, STEP - size)
                size += len(piece)
                self._out += len(piece)
                if self._out > FREE_OUTPUT and self._out > MOST_TIMES * self._in:
                    raise BadResponse(f"the body grows to more than {MOST_TIMES} times its size when its {self.coding} is undone")
                pieces.append(piece)
                if not waiting and not decode.has_more():
                    break
        except BadResponse:
            raise
        except Exception as error:
            raise BadResponse(f"the body is not the {self.coding} that its Content-Encoding says it is: {error}") from error
        self._waiting = waiting
        self.is_behind = bool(waiting) or decode.has_more()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> bytes:
        """The body has ended: is it whole?"""
        if not self._decode.is_whole() and self._in:
            raise BadResponse(f"the body ends in the middle of its {self.coding}")
        return b""


class _Step(Protocol):
    def step(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        """(output, what of `data` is left); `most` bytes or a little more."""
        ...

    def has_more(self) -> bool:
        """There is output left that needs no input."""
        ...

    def is_whole(self) -> bool: ...


class _Gunzip:
    """Several members one after the other are one body (RFC 1952 2.2)."""

    def __init__(self) -> None:
        self._inside = zlib.decompressobj(31)
        self._is_full = False

    def step(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        if self._inside.eof and data:
            self._inside = zlib.decompressobj(31)
        out = self._inside.decompress(data, most)
        self._is_full = len(out) >= most and not self._inside.eof
        return out, self._inside.unused_data if self._inside.eof else self._inside.unconsumed_tail

    def has_more(self) -> bool:
        return self._is_full

    def is_whole(self) -> bool:
        return self._inside.eof


class _Unbr:
    def __init__(self) -> None:
        self._inside = importlib.import_module("brotli").Decompressor()
        self._may_have_more = False

    def step(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        takes = self._inside.can_accept_more_data()
        out: bytes = self._inside.process(data if takes else b"", output_buffer_limit=most)
        self._may_have_more = bool(out) and not self._inside.is_finished()  # it may stop short of `most`; only b"" means that this is all
        return out, b"" if takes else data

    def has_more(self) -> bool:
        return self._may_have_more or not self._inside.can_accept_more_data()

    def is_whole(self) -> bool:
        return bool(self._inside.is_finished())


class _Unzstd:
    """Several frames one after the other are one body (RFC 8878 3)."""

    def __init__(self) -> None:
        zstandard = importlib.import_module("zstandard")
        self._maker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW)
        self._inside = self._maker.decompressobj(write_size=16384)

    def step(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        if self._inside.eof and data:
            self._inside = self._maker.decompressobj(write_size=16384)
        out = self._inside.decompress(data[:_ZSTD_SLICE])
        left = data[_ZSTD_SLICE:]
        return out, self._inside.unused_data + left if self._inside.eof else left

    def has_more(self) -> bool:
        return False

    def is_whole(self) -> bool:
        return bool(self._inside.eof)


_DECODERS: dict[str, Callable[[], _Step]] = {"gzip": _Gunzip, "br": _Unbr, "zstd": _Unzstd}


def decoder(coding: str) -> Decoder:
    return Decoder(coding)


def known(codings: Sequence[str]) -> tuple[str, ...]:
    """Those of `codings` whose library is here, in our order of preference."""
    return tuple(coding for coding in CODINGS if coding in codings and is_installed(coding))
