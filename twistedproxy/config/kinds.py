"""The value kinds of ``values`` as pydantic sees them: what a key's annotation is made of.

A `Kind` reads one value, a `ShortForm` lets a word stand for a table. Both take what placeholders were put into, convert it to
the key's own type, and say nothing of what it is when it does not fit.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from twistedproxy.config import values
from twistedproxy.config.placeholders import Resolved

Json = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where a text comes from, as far as its values mean something else elsewhere."""

    base_dir: str | None
    """What relative paths are relative to; None: they are refused."""
    has_ipv6: bool = True
    reads_files: bool = True
    """Files that are named may be opened to see whether they are right."""


class Section(BaseModel):
    """One table of the file. `later` are the keys that are promised and not built yet."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, populate_by_name=False)
    later: ClassVar[tuple[str, ...]] = ()


def key(default: Any, text: str, *, reload: str, unit: str = "", alias: str | None = None, **limits: Any) -> Any:
    """Declare one key: its default as it would be written in the file (`...`: none), what it is for, what a reload does with it."""
    extra: Json = {"x-reload": reload} | ({"x-unit": unit} if unit else {})
    return Field(default, description=text, json_schema_extra=extra, alias=alias, **limits)


def inner_section(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section declared inside an annotation, and whether a list or table of them is."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    origin = typing.get_origin(annotation)
    is_container = origin in (tuple, dict)
    if origin in (tuple, dict, typing.Annotated, typing.Union, types.UnionType):
        for part in typing.get_args(annotation)[:1] if origin is typing.Annotated else typing.get_args(annotation):
            section, is_inside = inner_section(part)
            if section is not None:
                return section, is_container or is_inside
    return None, is_container


def _hide(value: object, allowed: str) -> ValueError | None:
    """What to say of a text with placeholders that does not fit; None when `value` is as written."""
    if isinstance(value, Resolved):
        return ValueError(f"what {values.shown(value.written)} stands for does not fit here; needed is {allowed}")
    return None


class Kind:
    """How one sort of value is read; `name` is what the reference calls it."""

    def __init__(self, name: str, allowed: str, parse: Callable[[Any, Origin], Any], json: Json | None = None) -> None:
        self.name = name
        self.allowed = allowed
        self._parse = parse
        self._json = json or {"type": "string"}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        if self._json.get("type") == "string":
            return dict(self._json)
        return {"anyOf": [self._json, {"type": "string", "pattern": r"\$\{(env|file):"}]}

    def _read(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        origin = info.context if isinstance(info.context, Origin) else Origin(None)
        try:
            return self._parse(value, origin)
        except ValueError as e:
            raise _hide(value, self.allowed) or e from None


class ShortForm:
    """A word (or ``true``, ``false``) in place of a table; `expand` turns it into the table, or into None for "off"."""

    def __init__(self, name: str, allowed: str, expand: Callable[[Any], Any], json: Json) -> None:
        self.name = name
        self.allowed = allowed
        self._expand = expand
        self._json = json

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        table = handler(schema)
        tables = [t for t in table.get("anyOf", [table]) if t != {"type": "null"}]
        return {"anyOf": [self._json, *tables]}

    def _read(self, value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
        if value is None or isinstance(value, dict):
            return inner(value)
        try:
            return inner(self._expand(value))
        except ValidationError as e:
            raise _hide(value, self.allowed) or e from None
        except ValueError as e:
            raise _hide(value, self.allowed) or e from None


# Plain kinds


def _text(name: str, allowed: str, parse: Callable[[Any], Any], **json: Any) -> Kind:
    return Kind(name, allowed, lambda value, origin: parse(value), {"type": "string", **json})


def _in_range(name: str, low: str, high: str, parse: Callable[[Any], Any], allowed: str) -> Kind:
    def read(value: Any, origin: Origin) -> Any:
        amount = parse(value)
        if not parse(low) <= amount <= parse(high):
            raise ValueError(f"{values.shown(value)} is out of range; allowed is {low} to {high}")
        return amount

    return Kind(name, f"{allowed}, from {low} to {high}", read)


def duration(low: str = "1ms", high: str = "30d") -> Kind:
    return _in_range("duration", low, high, values.parse_duration, values.DURATION_ALLOWED)


def size(low: str, high: str) -> Kind:
    return _in_range("size", low, high, values.parse_size, values.SIZE_ALLOWED)


def byte_rate(low: str, high: str) -> Kind:
    return _in_range("rate in bytes", low, high, values.parse_byte_rate, 'a rate such as "500B/s"')


def integer(low: int, high: int) -> Kind:
    allowed = f"a whole number from {low} to {high}"

    def read(value: Any, origin: Origin) -> int:
        if isinstance(value, Resolved) and value.isascii() and value.isdigit() and len(value) < 12:
            value = int(value)
        if type(value) is not int:
            raise ValueError(f"must be {allowed}; this is {values.toml_kind(value)}")
        if not low <= value <= high:
            raise ValueError(f"{values.shown(value)} is out of range; allowed is {allowed}")
        return value

    return Kind(f"{low}…{high}", allowed, read, {"type": "integer", "minimum": low, "maximum": high})


def fraction(low: float, high: float) -> Kind:
    allowed = f"a number from {low:g} to {high:g}"

    def read(value: Any, origin: Origin) -> float:
        number = float(value) if isinstance(value, (Resolved, int, float)) and not isinstance(value, bool) else None
        if number is None:
            raise ValueError(f"must be {allowed}; this is {values.toml_kind(value)}")
        if not low <= number <= high:  # NaN too
            raise ValueError(f"{values.shown(value)} is out of range; allowed is {allowed}")
        return number

    return Kind(f"{low:g}…{high:g}", allowed, read, {"type": "number", "minimum": low, "maximum": high})


def read_flag(value: Any, origin: Origin | None = None) -> bool:
    if isinstance(value, Resolved) and value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, without quotes; this is {values.toml_kind(value)}")
    return value


def choice(*words: str) -> Kind:
    allowed = "one of " + ", ".join(map(repr, words))

    def read(value: Any, origin: Origin) -> str:
        text = values.parse_text(value, allowed)
        if text not in words:
            raise ValueError(f"{values.shown(text)} is not known.{values.did_you_mean(text, words)} Allowed is {allowed}")
        return str(text)

    return Kind(" | ".join(f'"{w}"' for w in words), allowed, read, {"type": "string", "enum": [*words]})


def _or_off(kind: Kind) -> Kind:
    """The same kind, or ``false``, which becomes None."""

    def read(value: Any, origin: Origin) -> Any:
        if value is False or (isinstance(value, Resolved) and value == "false"):
            return None
        if value is True:
            raise ValueError(f"is true; allowed is false or {kind.allowed}")
        return kind._parse(value, origin)

    return Kind(f"{kind.name} or false", f"false or {kind.allowed}", read, {"anyOf": [{"const": False}, {"type": "string"}]})


def _read_file(value: Any, origin: Origin) -> str:
    return values.absolute(values.parse_text(value, "a file name"), origin.base_dir)


def _read_log_file(value: Any, origin: Origin) -> str:
    return "-" if value == "-" else _read_file(value, origin)


_LISTEN = Kind("listen address", values.LISTEN_ALLOWED, lambda v, origin: values.parse_listen(v, origin.base_dir, origin.has_ipv6))

Flag = Annotated[bool, Kind("true or false", "true or false", read_flag, {"type": "boolean"})]
Listen = Annotated[str, _LISTEN]
ListenOrOff = Annotated[str | None, _or_off(_LISTEN)]
ServerAddress = Annotated[
    str,
    Kind(
        "server address",
        "a server's address: HOST:PORT, [IPv6]:PORT or unix:PATH",
        lambda v, origin: values.parse_server_address(v, origin.base_dir),
    ),
]
FileName = Annotated[str, Kind("file name", "a file name", _read_file)]
LogFile = Annotated[str, Kind('file name or "-"', 'a file name or "-"', _read_log_file)]
Name = Annotated[str, _text("name", "a name of letters, digits, '.', '_' and '-'", values.parse_name)]
Host = Annotated[str, _text("host", values.HOST_ALLOWED, values.parse_host)]
HealthHost = Annotated[str, _text("host", 'a host such as "app.internal"', values.parse_health_host)]
Network = Annotated[str, _text("network", values.NETWORK_ALLOWED, values.parse_network)]
Mode = Annotated[int, _text("file mode", 'an octal file mode such as "0660"', values.parse_mode)]
Percent = Annotated[float, _text("percentage", 'a percentage such as "20%"', values.parse_percent)]
Balance = Annotated[str, _text("balance", "a way to balance", values.parse_balance)]
Get = Annotated[str, _text('"GET /path"', '"GET /path"', values.parse_get, pattern="^GET /")]
Statuses = Annotated[
    tuple[tuple[int, int], ...],
    Kind(
        "status ranges",
        'good HTTP statuses such as "200-299"',
        lambda v, origin: values.parse_status_ranges(v),
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    ),
]
Sha256 = Annotated[str, _text("SHA-256", "64 hexadecimal digits", values.parse_sha256)]
Via = Annotated[str | None, _or_off(_text("name", "one word without spaces", values.parse_token))]
Text = Annotated[str, _text("text", "text of up to 1024 characters", lambda v: values.parse_text(v, "text", 1024))]
