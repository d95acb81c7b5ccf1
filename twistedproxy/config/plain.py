"""Frozen dataclasses to JSON-able values and back, driven by their annotations.

Used for everything that crosses a process or lands in the journal: models, changes, observations. `decode` is strict about
shape and raises `ValueError`, so that a corrupt journal or a foreign version is noticed, not guessed at.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def encode(value: object) -> Any:
    """Dataclasses become dicts, enums their values, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [encode(v) for v in value]
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def decode(kind: type[T], plain: Any) -> T:
    """The value of type `kind` that `encode` made `plain` from; `ValueError` when it cannot be one."""
    return typing.cast(T, _decode(kind, plain))


def _decode(kind: Any, plain: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        members = typing.get_args(kind)
        if plain is None and type(None) in members:
            return None
        for member in members:
            if member is not type(None):
                try:
                    return _decode(member, plain)
                except ValueError as e:
                    last = e
        raise last
    if origin is tuple:
        members = typing.get_args(kind)
        if not isinstance(plain, list):
            raise ValueError(f"expected a list, got {plain!r}")
        if len(members) == 2 and members[1] is Ellipsis:
            return tuple(_decode(members[0], v) for v in plain)
        if len(members) != len(plain):
            raise ValueError(f"expected {len(members)} items, got {plain!r}")
        return tuple(map(_decode, members, plain))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(plain, dict):
            raise ValueError(f"expected a table, got {plain!r}")
        return {k: _decode(typing.get_args(kind)[1], v) for k, v in plain.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(plain, list):
            raise ValueError(f"expected a list, got {plain!r}")
        return tuple(_decode(typing.get_args(kind)[0], v) for v in plain)
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    if dataclasses.is_dataclass(kind):
        if not isinstance(plain, dict):
            raise ValueError(f"expected a table for {kind.__name__}, got {plain!r}")  # type: ignore[union-attr]
        hints = _hints(kind)  # type: ignore[arg-type]
        unknown = plain.keys() - hints.keys()
        if unknown:
            raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")  # type: ignore[union-attr]
        try:
            return kind(**{k: _decode(hints[k], v) for k, v in plain.items()})  # type: ignore[operator]
        except TypeError as e:
            raise ValueError(str(e)) from None
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(plain)
    if kind is float and type(plain) is int:
        try:
            return float(plain)
        except OverflowError:
            raise ValueError("expected float, got a number too large for one") from None
    if kind is not Any and type(plain) is not kind:
        raise ValueError(f"expected {kind.__name__}, got {plain!r}")
    return plain
