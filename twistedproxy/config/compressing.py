"""Compression, key by key: the part of `schema` about ``[compress.NAME]`` and the built-in ``compress``."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from typing import Annotated, Any

from twistedproxy.config import kinds, values
from twistedproxy.config.basics import LIVE
from twistedproxy.config.kinds import Json, Kind, Origin, Section, key
from twistedproxy.config.model import Compression

CODINGS = {"zstd": "zstandard", "br": "brotli", "gzip": "zlib"}
"""In order of preference, with what they need."""
HINT = "pip install 'twistedproxy[compress]'"
_TYPE = re.compile(r"\*/\*|[a-z0-9!#$&^_.+-]+/(?:\*|[a-z0-9!#$&^_.+-]+)|\+[a-z0-9.-]+")
_ALLOWED_TYPE = 'a type such as "application/json", "text/*", "+json" (any that ends so) or "*/*"'
_MOST_TYPES = 200


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of {what}")
    return value


def _read_types(value: Any, origin: Origin) -> tuple[str, ...]:
    found = []
    for item in _list(value, "types"):
        text = values.parse_text(item, _ALLOWED_TYPE, 100).lower()
        if not _TYPE.fullmatch(text):
            raise ValueError(f"{values.shown(item)} is not {_ALLOWED_TYPE}")
        found.append(text)
    if len(found) > _MOST_TYPES:
        raise ValueError(f"has more than {_MOST_TYPES} types")
    return tuple(dict.fromkeys(found))


def _read_codings(value: Any, origin: Origin) -> tuple[str, ...]:
    found = [values.parse_text(item, "a coding", 20) for item in _list(value, 'codings such as ["zstd", "br", "gzip"]')]
    for name in found:
        if name not in CODINGS:
            raise ValueError(f"{values.shown(name)} is not known.{values.did_you_mean(name, CODINGS)} There are {', '.join(CODINGS)}")
    return tuple(name for name in CODINGS if name in found)


_STRINGS: Json = {"type": "array", "items": {"type": "string"}}


class Levels(Section):
    """How hard each coding tries. Under load less is done: see [compression.md](compression.md)."""

    zstd: Annotated[int, kinds.integer(1, 19)] = key(3, "1 is fastest, 19 smallest.", reload=LIVE)
    br: Annotated[int, kinds.integer(0, 11)] = key(
        3, "0 is fastest, 11 smallest; beyond 5 too slow for answers made on the spot.", reload=LIVE
    )
    gzip: Annotated[int, kinds.integer(1, 9)] = key(
        3, "1 is fastest, 9 smallest; up to 3 is done by `isal` where that is installed.", reload=LIVE
    )


class Compress(Section):
    """Answers are compressed for clients that ask for it. A bare `"compress"` in `use` is this table with all its defaults."""

    codings: Annotated[tuple[str, ...], Kind("list of: coding", "codings", _read_codings, _STRINGS)] | None = key(
        None,
        'Of `"zstd"`, `"br"`, `"gzip"`; the client\'s q-values decide, and in this order when they are equal. Default: those whose packages'
        " are installed (extra `compress`); gzip always is.",
        reload=LIVE,
    )
    types: Annotated[tuple[str, ...], Kind("list of: media type", "types", _read_types, _STRINGS)] = key(
        [
            "text/*", "application/json", "application/javascript", "application/x-javascript", "application/xml", "application/wasm",
            "application/x-ndjson", "+json", "+xml", "image/svg+xml", "image/x-icon", "image/vnd.microsoft.icon", "image/bmp", "font/ttf",
            "font/otf", "application/vnd.ms-fontobject",
        ],
        'Content types that are compressed: whole, `"text/*"`, or the end, `"+json"`.',
        reload=LIVE,
    )  # fmt: skip
    min_size: Annotated[int, kinds.size("0B", "1GiB")] = key(
        "1kB", "Bodies known to be smaller stay as they are; those of unknown length never count as small.", reload=LIVE
    )
    level: Levels = key({}, "The level of each coding.", reload=LIVE)
    decompress: kinds.Flag = key(
        False, "Undo the server's compression for clients that do not accept it (and compress anew for what they do).", reload=LIVE
    )


@functools.cache
def is_installed(coding: str) -> bool:
    """Its package can be imported, and is new enough: bounded output came with brotli 1.2."""
    try:
        module = importlib.import_module(CODINGS[coding])
    except ImportError:
        return False
    return coding != "br" or hasattr(module.Decompressor, "can_accept_more_data")


def faults(declared: Compress) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) where packages are missing."""
    missing = [name for name in declared.codings or () if not is_installed(name)]
    if missing:
        yield "codings", f"{' and '.join(missing)} needs packages that are not installed: {HINT}"


def compression(declared: Compress) -> Compression:
    """For the model: what this machine can do."""
    level = declared.level
    return Compression(
        codings=declared.codings or tuple(filter(is_installed, CODINGS)),
        types=declared.types,
        min_size=declared.min_size,
        levels=(("zstd", level.zstd), ("br", level.br), ("gzip", level.gzip)),
        decompress=declared.decompress,
    )
