"""Reading what a client sent: JSON bodies and query parameters, checked against the operation's own declaration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from twistedproxy.admin.operations import Operation
from twistedproxy.admin.problems import Refuse, did_you_mean
from twistedproxy.config.values import parse_duration

LONGEST_WAIT_S = 7 * 86400.0


def read_body(operation: Operation, data: bytes) -> dict[str, Any]:
    """The keys of a mutation's body; `Refuse` 400 names the first wrong one."""
    if operation.body is None:
        return {}
    if not data and not operation.needs_body:
        return {}
    body = _json_object(data)
    fields = {field.name: field for field in operation.body}
    for name, value in body.items():
        if name not in fields:
            raise Refuse(400, f"unknown key {_shown(name)}{did_you_mean(name, fields)}", field=name[:100])
        if not fields[name].accepts(value):
            raise Refuse(400, f"{name} is {_shown(value)}; allowed: {fields[name].allowed}", field=name)
    for field in operation.body:
        if field.required and field.name not in body:
            raise Refuse(400, f"{field.name} is missing; it is {field.allowed}", field=field.name)
    if operation.at_least_one_of and not any(name in body for name in operation.at_least_one_of):
        names = ", ".join(operation.at_least_one_of)
        raise Refuse(400, f"nothing to change: give one of {names}", field=operation.at_least_one_of[0])
    return body


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except Refuse:
        raise
    except (ValueError, RecursionError):
        raise Refuse(400, 'The body is not valid JSON; it must be an object such as {"reason": "…"}.') from None
    if not isinstance(body, dict):
        raise Refuse(400, 'The body must be a JSON object such as {"reason": "…"}.')
    return body


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:i]))
        raise Refuse(400, f"{_shown(twice)} is given twice", field=twice[:100])
    return keys


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


_TRUTH = {"1": True, "true": True, "0": False, "false": False}


def read_query(operation: Operation, arguments: Mapping[bytes, Sequence[bytes]]) -> dict[str, Any]:
    """The parameters of a query; those left out are absent."""
    fields = {field.name: field for field in operation.query}
    found: dict[str, Any] = {}
    for raw, values in arguments.items():
        name = raw.decode("utf-8", "replace")
        if name not in fields:
            raise Refuse(400, f"unknown parameter {_shown(name)}{did_you_mean(name, fields)}", field=name[:100])
        if fields[name].is_list:
            texts = [value.decode("utf-8", "replace") for value in values]
            if not fields[name].accepts(texts) or any(len(text) > (fields[name].high or 0) for text in texts):
                raise Refuse(400, f"{name} is too long, or given too often", field=name)
            found[name] = texts
            continue
        field, text = fields[name], values[-1].decode("utf-8", "replace")
        value: object = text
        if field.kind is bool:
            value = _TRUTH.get(text.lower())
        elif field.kind is int:
            value = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
        if value is None or len(values) > 1 or not field.accepts(value):
            raise Refuse(400, f"{name} is {_shown(text)}; allowed: {field.allowed}, once", field=name)
        found[name] = value
    return found


def read_if_match(values: Sequence[bytes], revision: int) -> int | None:
    """The revision the caller expects, for `Control.apply`; None: any.

    Quoted, bare or ``*``; of several, the current one when it is among them. A weak tag never matches (RFC 9110, 13.1.1).
    """
    tags = [tag.strip() for tag in b",".join(values).decode("latin-1").split(",") if tag.strip()]
    if not tags or "*" in tags:
        return None
    revisions = []
    for tag in tags:
        digits = tag[1:-1] if len(tag) > 1 and tag[0] == tag[-1] == '"' else tag
        # What is no revision of ours is simply not the current one.
        revisions.append(int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else -1)
    return revision if revision in revisions else revisions[0]


def read_duration(arguments: Mapping[str, Any], name: str) -> float | None:
    """Seconds of a text such as ``10m``; None when it is absent."""
    if name not in arguments:
        return None
    try:
        seconds = parse_duration(arguments[name])
    except ValueError as e:
        raise Refuse(400, f"{name}: {e}", field=name) from None
    if not 1 <= seconds <= LONGEST_WAIT_S:
        raise Refuse(400, f"{name} is {_shown(arguments[name])}; allowed are 1s to 7d", field=name)
    return seconds


def read_revision(text: str) -> int:
    """A revision that stands in the path."""
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Refuse(404, f"{_shown(text)} is not a revision; GET /api/v1/changes lists them", field="revision")
    return int(text)
