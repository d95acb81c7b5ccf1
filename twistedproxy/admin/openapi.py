"""OpenAPI 3.1 description of the API, made from the table of operations."""

from __future__ import annotations

import re
from typing import Any

from twistedproxy import __version__
from twistedproxy.admin.operations import OPERATIONS, Operation

_INT: dict[str, Any] = {"type": "integer"}
_NUMBER: dict[str, Any] = {"type": "number"}
_TEXT: dict[str, Any] = {"type": "string"}
_FLAG: dict[str, Any] = {"type": "boolean"}
_ANY: dict[str, Any] = {"type": "object", "additionalProperties": True}
_COUNTS: dict[str, Any] = {"type": "object", "additionalProperties": _INT}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _some(schema: dict[str, Any], **optional: dict[str, Any]) -> dict[str, Any]:
    """The same with properties that may be absent."""
    return {**schema, "properties": {**schema["properties"], **optional}}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: dict[str, dict[str, Any]] = {
    "Sites": _ANY, "Explanation": _ANY, "Stories": _ANY, "Mirrors": _ANY, "Shifts": _ANY, "Shift": _ANY,
    "Probe": _object(status=_TEXT),
    "OpenApi": _ANY,
    "Config": _ANY,
    "Problem": {
        "type": "object",
        "properties": {
            "type": _TEXT, "title": _TEXT, "status": _INT, "detail": _TEXT, "field": _TEXT,
            "problems": _list(_object(file=_TEXT, line=_INT, path=_TEXT, message=_TEXT)),
        },
        "required": ["type", "title", "status"],
    },
    "Worker": _object(
        slot=_INT, pid=_INT, state={"type": "string", "enum": ["starting", "serving", "lagging", "stopping", "gone"]},
        revision=_INT, connections=_INT, requests=_INT, lag_seconds=_NUMBER,
    ),
    "Listener": _object(address=_TEXT, kind={"type": "string", "enum": ["http", "https", "tcp"]}, connections=_INT),
    "Status": _object(
        version=_TEXT, revision=_INT, uptime_seconds=_NUMBER, config_file=_TEXT,
        head_codec={"type": "string", "enum": ["native", "python", "starting"]},
        workers=_list(_ref("Worker")), listeners=_list(_ref("Listener")), certificates=_list(_ref("Certificate")),
        upgrade={"anyOf": [_ref("Upgrade"), {"type": "null"}]}, cache={"anyOf": [_ref("CacheTotals"), {"type": "null"}]},
    ),
    "Certificate": _object(
        used_by=_list(_TEXT), source=_TEXT, names=_list(_TEXT), not_after=_TEXT, issuer=_TEXT, placeholder=_FLAG,
    ),
    "Health": _object(status={"type": "string", "enum": ["up", "down", "unknown"]}, reason=_TEXT, since=_or_null(_TEXT)),
    "Server": _object(
        address=_TEXT, weight=_object(configured=_INT, set=_or_null(_INT), effective=_INT),
        state={"type": "string", "enum": ["ready", "drain", "maint"]}, backup=_FLAG, health=_ref("Health"), ejected=_FLAG,
        max_connections=_INT, connections=_INT, requests=_INT, failures=_INT, share=_NUMBER,
    ),
    "Pool": _object(name=_TEXT, balance=_TEXT, queue=_object(waiting=_INT, size=_INT), servers=_list(_ref("Server"))),
    "Pools": _object(pools=_list(_ref("Pool"))),
    "Change": _object(
        revision=_INT, at=_TEXT, by=_TEXT, reason=_TEXT, change=_ANY, undone_by=_or_null(_INT), confirm_by=_or_null(_TEXT),
        guard={"anyOf": [_ref("Guard"), {"type": "null"}]},
    ),
    "Guard": _object(abort_if=_TEXT, until=_TEXT, min_requests=_INT, baseline_requests=_INT),
    "Changes": _object(changes=_list(_ref("Change"))),
    "Applied": _some(
        _object(revision=_INT, workers=_object(total=_INT, acked=_INT, lagging=_list(_INT))),
        superseded=_list(_TEXT), notes=_list(_TEXT), confirm_by=_TEXT, guard=_ref("Guard"), preview=_ref("Preview"),
    ),
    "Preview": _object(
        changes=_list(_ANY), shares=_list(_object(pool=_TEXT, server=_TEXT, before=_NUMBER, after=_NUMBER)), closing=_INT,
        splits=_list(_object(site=_TEXT, path=_TEXT, pool=_TEXT, before=_NUMBER, after=_NUMBER)),
        replays=_list(_object(pool=_TEXT, requests=_INT, moved=_NUMBER)),
    ),
    "Confirmed": _object(revision=_INT),
    "Upgrade": _some(
        _object(state={"type": "string", "enum": ["none", "starting", "ready", "handed over", "draining", "done", "failed"]}),
        started_at=_TEXT, by=_TEXT, to=_TEXT, pid=_INT, old_pid=_INT, connections=_INT, reason=_TEXT, **{"from": _TEXT},
    ),
    "Rotation": _some(
        _object(state={"type": "string", "enum": ["none", "running", "draining", "done", "failed"]}, connections=_INT),
        started_at=_TEXT, by=_TEXT, replaced=_INT, total=_INT, reason=_TEXT,
    ),
    "CacheTier": _object(bytes=_INT, objects=_INT, limit=_INT, evicted=_INT, corrupt=_INT),
    "CacheTotals": _object(
        requests=_INT, results=_COUNTS, hit_ratio=_or_null(_NUMBER), memory=_ref("CacheTier"), disk=_ref("CacheTier"), errors=_INT,
        fills=_INT,
    ),
    "Cache": _object(
        totals={"anyOf": [_ref("CacheTotals"), {"type": "null"}]}, directory=_or_null(_TEXT), max_files=_or_null(_INT),
        max_object=_or_null(_INT), routes=_list(_object(site=_TEXT, path=_TEXT)),
        sites=_list(_object(site=_TEXT, requests=_INT, hit_ratio=_or_null(_NUMBER), results=_COUNTS)),
        purges=_object(total=_INT, latest=_list(_object(at=_TEXT, by=_TEXT, what=_TEXT, soft=_FLAG, who=_TEXT, reason=_TEXT))),
    ),
    "Purged": _some(
        _object(
            purged={
                "type": "object", "minProperties": 1, "maxProperties": 1,
                "properties": {"url": _TEXT, "prefix": _TEXT, "tag": _TEXT, "all": _FLAG},
            },
            soft=_FLAG, at=_TEXT, workers=_object(total=_INT, acked=_INT, lagging=_list(_INT)),
        ),
        notes=_list(_TEXT),
    ),
    "Checked": _object(problems=_list(_ANY)),
    "Differences": _object(differences=_list(_some(_object(path=_TEXT), file={}, running={}))),
    "Adopted": _some(_object(edit=_TEXT), applied=_ref("Applied")),
}  # fmt: skip

_PARAMETERS = {
    "site": "Name of the site.", "id": "The id.",
    "digest": "Of all files of the page; the page itself names it.", "file": "A file of the page.",
    "pool": "Name of the pool.", "revision": "Of a change in the journal.",
    "address": "Address of the server, percent-encoded (unix:%2Frun%2Fapp.sock).",
}  # fmt: skip
_REVISION_HEADER = {"ETag": {"description": "The revision of the model, quoted.", "schema": _TEXT}}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "description": _PARAMETERS[name], "schema": _TEXT}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    found += [{"name": field.name, "in": "query", "description": field.help, "schema": field.schema()} for field in operation.query]
    if operation.is_mutation:
        help_text = "The revision this change is based on: quoted, bare or *. A stale one is 412."
        found.append({"name": "If-Match", "in": "header", "description": help_text, "schema": _TEXT})
    return found


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def _described(operation: Operation) -> dict[str, Any]:
    schema = _ref(operation.answer) if operation.answer else _TEXT
    answer: dict[str, Any] = {"description": operation.summary, "content": {operation.media_type: {"schema": schema}}}
    if operation.answer in ("Pool", "Pools", "Status", "Config", "Applied"):
        answer["headers"] = _REVISION_HEADER
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": {"200": answer, "default": _problem("A problem: what is wrong and what to do.")},
    }
    if operation.name == "health_ready":
        described["responses"]["503"] = _problem("No worker serves, or one lags.")
    if operation.role is None:
        described["security"] = []
    else:
        described["description"] = f"Role: {operation.role.name.lower()} or higher."
    if operation.body is not None:
        body: dict[str, Any] = {"type": "object", "properties": {f.name: f.schema() for f in operation.body}, "additionalProperties": False}
        required = [field.name for field in operation.body if field.required]
        if required:
            body["required"] = required
        if operation.at_least_one_of:
            body["anyOf"] = [{"required": [name]} for name in operation.at_least_one_of]
        described["requestBody"] = {"required": operation.needs_body, "content": {"application/json": {"schema": body}}}
    return described


def document() -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "revproxy admin API", "version": __version__, "description": "Roles: view < operate < admin."},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }
