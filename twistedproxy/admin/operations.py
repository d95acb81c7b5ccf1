"""Every operation of the admin API, declared once: routes, roles, validation, OpenAPI and the page are made from this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twistedproxy.admin.auth import Role
from twistedproxy.config.changes import MAX_CONNECTIONS, MAX_WEIGHT

MAX_REASON = 500
MAX_WHAT = 8192
"""Characters of a URL or a prefix that is purged."""
MAX_TAG = 1024


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a body, or one parameter of a query."""

    name: str
    kind: type
    """`int`, `str` or `bool`."""
    help: str
    required: bool = False
    is_nullable: bool = False
    low: int | None = None
    high: int | None = None
    """Bounds of an `int`; the most characters of a `str`."""
    choices: tuple[str, ...] = ()
    is_list: bool = False
    """Several values: in a body a list, in a query the parameter several times."""

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        if self.is_list:
            item = {"type": "number"} if self.kind is float else {"type": "string"}
            return {"type": "array", "items": item, "description": self.help}
        name = {int: "integer", str: "string", bool: "boolean", dict: "object"}[self.kind]
        schema: dict[str, Any] = {"type": [name, "null"] if self.is_nullable else name, "description": self.help}
        if self.choices:
            schema["enum"] = [*self.choices, None] if self.is_nullable else list(self.choices)
        if self.kind is str and self.high is not None:
            schema["maxLength"] = self.high
        if self.kind is int:
            schema |= {key: bound for key, bound in (("minimum", self.low), ("maximum", self.high)) if bound is not None}
        return schema

    @property
    def allowed(self) -> str:
        """What may stand here, for the one who wrote something else."""
        if self.choices:
            what = ", ".join(f'"{c}"' for c in self.choices)
        elif self.kind is int:
            what = f"a whole number from {self.low} to {self.high}" if self.high is not None else f"a whole number from {self.low} up"
        elif self.kind is bool:
            what = "true, false"
        elif self.is_list:
            what = f"a list of {'numbers' if self.kind is float else 'texts'}"
        elif self.kind is dict:
            what = "an object"
        else:
            what = f"a text of at most {self.high} characters"
        return f"{what} or null" if self.is_nullable else what

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.is_nullable
        if self.is_list:
            kinds = (int, float) if self.kind is float else (str,)
            return isinstance(value, list) and len(value) <= 100 and all(type(item) in kinds for item in value)
        if self.kind is dict:
            return isinstance(value, dict)
        if self.kind is str:
            return isinstance(value, str) and (not self.choices or value in self.choices) and (self.high is None or len(value) <= self.high)
        if self.kind is bool:
            return isinstance(value, bool)
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path."""

    name: str
    """`operationId`; also the method of `api.Api` that answers."""
    method: str
    path: str
    """OpenAPI path template."""
    role: Role | None
    """The least role that may use it; None: everybody, without a token."""
    summary: str
    answer: str = ""
    """Name of the answer's schema in `openapi.SCHEMAS`; "" when it is not JSON."""
    media_type: str = "application/json"
    query: tuple[Field, ...] = ()
    body: tuple[Field, ...] | None = None
    """Keys of the body; None: no body is expected, an empty tuple is never used."""
    needs_body: bool = True
    at_least_one_of: tuple[str, ...] = ()

    @property
    def is_mutation(self) -> bool:
        return self.body is not None


REASON = Field("reason", str, "Why, for the journal.", high=MAX_REASON)
CONFIRM_WITHIN = Field("confirm_within", str, 'Undone by itself unless confirmed within this time, such as "10m".', high=20)
ABORT_IF = Field(
    "abort_if", str, 'Undone by itself when this comes true, such as "errors > 1% or p95 > +20%"; watched for confirm_within, or 2 min.',
    high=200,
)  # fmt: skip
TERMS = (REASON, CONFIRM_WITHIN, ABORT_IF)
PREVIEW = Field("preview", bool, "Change nothing, only say what would happen.")
MOST_TOML = 1024 * 1024

_ADDRESS = Field("address", str, "host:port, [v6]:port or unix:/path.", required=True, high=300)
_BACKUP = Field("backup", bool, "Serves only when no primary is available.")
_CONNECTIONS = Field(
    "max_connections", int, "Leases in flight, per machine; null: the file's value.", is_nullable=True, low=1, high=MAX_CONNECTIONS
)
_WEIGHT = Field("weight", int, "0: nothing new; null: the file's value.", is_nullable=True, low=0, high=MAX_WEIGHT)
_STATE = Field("state", str, "null: the file's value.", is_nullable=True, choices=("ready", "drain", "maint"))

_SERVER = "/api/v1/pools/{pool}/servers/{address}"

OPERATIONS: tuple[Operation, ...] = (
    Operation("page", "GET", "/", None, "The page.", media_type="text/html"),
    Operation("asset", "GET", "/assets/{digest}/{file}", None, "What the page is made of.", media_type="*/*"),
    Operation("health_live", "GET", "/health/live", None, "This process answers.", "Probe"),
    Operation("health_ready", "GET", "/health/ready", None, "A worker serves and none lags behind the latest revision; else 503.", "Probe"),
    Operation("openapi", "GET", "/api/v1/openapi.json", None, "This description.", "OpenApi"),
    Operation("metrics", "GET", "/metrics", Role.VIEW, "Prometheus text format.", media_type="text/plain"),
    Operation("status", "GET", "/api/v1/status", Role.VIEW, "Version, revision, workers and listeners.", "Status"),
    Operation("pools", "GET", "/api/v1/pools", Role.VIEW, "All pools with their servers.", "Pools"),
    Operation("pool", "GET", "/api/v1/pools/{pool}", Role.VIEW, "One pool with its servers.", "Pool"),
    Operation(
        "change_server", "PATCH", _SERVER, Role.OPERATE, "Set weight, state or limit of a server; several keys make one revision.",
        "Applied", query=(PREVIEW,), body=(_WEIGHT, _STATE, _CONNECTIONS, *TERMS), at_least_one_of=("weight", "state", "max_connections"),
    ),
    Operation(
        "add_server", "POST", "/api/v1/pools/{pool}/servers", Role.OPERATE, "Add a server to the pool.",
        "Applied", query=(PREVIEW,),
        body=(
            _ADDRESS,
            Field("weight", int, "Default 1.", low=0, high=MAX_WEIGHT),
            Field("max_connections", int, "Default: the pool's.", is_nullable=True, low=1, high=MAX_CONNECTIONS),
            _BACKUP, *TERMS,
        ),
    ),
    Operation(
        "remove_server", "DELETE", _SERVER, Role.OPERATE, "Drain the server, then remove it; answers when draining has begun.",
        "Applied", query=(Field("now", bool, "Cut what is open at once."), PREVIEW), body=TERMS, needs_body=False,
    ),
    Operation(
        "changes", "GET", "/api/v1/changes", Role.VIEW, "The journal, oldest first.", "Changes",
        query=(Field("after", int, "Only revisions above this one.", low=0),),
    ),
    Operation(
        "undo", "POST", "/api/v1/changes/{revision}/undo", Role.OPERATE, "Take a change back; 409 when a later one touched its values.",
        "Applied", query=(PREVIEW,), body=TERMS, needs_body=False,
    ),
    Operation(
        "confirm", "POST", "/api/v1/changes/{revision}/confirm", Role.OPERATE, "Keep a change that would be undone by itself.",
        "Confirmed", body=(REASON,), needs_body=False,
    ),
    Operation(
        "events", "GET", "/api/v1/events", Role.VIEW,
        "Server-sent events: stats (once a second), change, health, worker, certificate, shift, purge, upgrade, rotation.",
        media_type="text/event-stream",
    ),
    Operation(
        "config", "GET", "/api/v1/config", Role.VIEW,
        "The effective configuration in the form of the file: live values included, placeholders as written, digests of tokens left out.",
        "Config", query=(Field("revision", int, "As it was at this revision.", low=0),),
    ),
    Operation(
        "reload", "POST", "/api/v1/config/reload", Role.ADMIN, "Read the file again; a broken one is refused with every problem.",
        "Applied", query=(PREVIEW,), body=TERMS, needs_body=False,
    ),
    Operation(
        "check", "POST", "/api/v1/config/check", Role.VIEW, "Validate a configuration; placeholders are refused.", "Checked",
        body=(Field("toml", str, "The text of the file.", required=True, high=MOST_TOML),),
    ),
    Operation(
        "sites", "GET", "/api/v1/sites", Role.VIEW, "All sites with their routes, splits and how often each side was taken.", "Sites",
    ),
    Operation(
        "change_site", "PATCH", "/api/v1/sites/{site}", Role.OPERATE, "Set maintenance or the weights of a split.",
        "Applied", query=(PREVIEW,),
        body=(
            Field("maintenance", bool, "null: the file's value.", is_nullable=True),
            Field("split", dict, 'Such as {"path": "/", "weights": {"web": 80, "web-canary": 20}}; weights null: the file\'s.'),
            *TERMS,
        ),
        at_least_one_of=("maintenance", "split"),
    ),
    Operation(
        "explain", "GET", "/api/v1/explain", Role.VIEW, "What would become of this request, rule by rule, down to the server.",
        "Explanation",
        query=(
            Field("method", str, "Default GET.", high=50),
            Field("url", str, "The whole URL.", high=8192),
            Field("header", str, "A header field, 'Name: value'; may be given several times.", high=8192, is_list=True),
            Field("client", str, "The client's IP address; default 127.0.0.1.", high=45),
            Field("client_cert_subject", str, "The subject of the certificate that the client shows (RFC 4514).", high=1024),
            Field("client_cert_san", str, "One of its names, such as DNS:a.example; may be given several times.", high=1024, is_list=True),
            Field("client_cert_sha256", str, "Its fingerprint, hexadecimal.", high=95),
        ),
    ),
    Operation("why_latest", "GET", "/api/v1/why", Role.VIEW, "The newest failed and slow requests, with their ids.", "Stories"),
    Operation(
        "why", "GET", "/api/v1/why/{id}", Role.VIEW,
        "The story of one failed or slow request: attempts, health and changes around it.", "Stories",
    ),
    Operation("mirrors", "GET", "/api/v1/mirrors", Role.VIEW, "What became of mirrored requests, and the differences seen.", "Mirrors"),
    Operation("shifts", "GET", "/api/v1/shifts", Role.VIEW, "Guarded shifts, those that are over included.", "Shifts"),
    Operation(
        "start_shift", "POST", "/api/v1/shifts", Role.OPERATE, "Move the traffic of a split step by step, and back when it gets worse.",
        "Shift",
        body=(
            Field("from", str, "The side that gives.", required=True, high=128),
            Field("to", str, "The side that takes.", required=True, high=128),
            Field("steps", float, "Shares of the taking side in per cent, such as [5, 25, 50, 100].", required=True, is_list=True),
            Field("every", str, "Time between two steps, such as 5m.", required=True, high=20),
            Field("site", str, "Where several splits have these sides.", high=300),
            Field("path", str, "The same, the route's path or rules[N].", high=1000),
            Field("abort_if", str, 'Back to where it began when this comes true, such as "errors > 1% or p95 > +20%".', high=200),
            REASON,
        ),
        query=(PREVIEW,),
    ),
    Operation(
        "stop_shift", "DELETE", "/api/v1/shifts/{id}", Role.OPERATE, "Stop a shift and go back to where it began.", "Shift",
        query=(Field("back", bool, "0: stay where it is."),), body=(REASON,), needs_body=False,
    ),
    Operation("upgrade", "GET", "/api/v1/upgrade", Role.VIEW, "How the latest upgrade in place goes, or went.", "Upgrade"),
    Operation(
        "start_upgrade", "POST", "/api/v1/upgrade", Role.ADMIN,
        "Replace the supervisor and its workers by the version that is installed now; answers when it has begun.", "Upgrade",
        body=(REASON,), needs_body=False,
    ),
    Operation("rotation", "GET", "/api/v1/workers/restart", Role.VIEW, "How the latest replacement of workers goes, or went.", "Rotation"),
    Operation(
        "restart_workers", "POST", "/api/v1/workers/restart", Role.ADMIN,
        "Replace all workers one by one, each by a new one that serves already; answers when it has begun.", "Rotation",
        body=(REASON,), needs_body=False,
    ),
    Operation("cache", "GET", "/api/v1/cache", Role.VIEW, "The cache: how much it answers, what it holds, the latest purges.", "Cache"),
    Operation(
        "purge", "POST", "/api/v1/cache/purge", Role.OPERATE,
        "Take back kept answers: exactly one of url, prefix, tag, all. Every worker knows it before this is answered.", "Purged",
        body=(
            Field("url", str, "The whole URL, query included.", high=MAX_WHAT),
            Field("prefix", str, "All URLs that begin so, such as https://www.example.com/images/.", high=MAX_WHAT),
            Field("tag", str, "All answers with this tag in Surrogate-Key or Cache-Tag.", high=MAX_TAG),
            Field("all", bool, "true: everything."),
            Field("soft", bool, "They become stale instead of gone: given while the server is asked, or when it fails."),
            REASON,
        ),
        at_least_one_of=("url", "prefix", "tag", "all"),
    ),
    Operation("config_diff", "GET", "/api/v1/config/diff", Role.VIEW, "Live values that the file does not have.", "Differences"),
    Operation(
        "adopt", "POST", "/api/v1/config/adopt", Role.ADMIN, "Write the live values into the file, comments kept, and reload it.",
        "Adopted", query=(PREVIEW,), body=TERMS, needs_body=False,
    ),
)  # fmt: skip
