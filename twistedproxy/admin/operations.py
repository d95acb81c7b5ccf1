"""Every operation of the admin API, declared once: routes, roles, validation, OpenAPI and the page are made from this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twistedproxy.admin.auth import Role
from twistedproxy.config.changes import MAX_CONNECTIONS, MAX_WEIGHT

MAX_REASON = 500


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

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        name = {int: "integer", str: "string", bool: "boolean"}[self.kind]
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
        else:
            what = f"a text of at most {self.high} characters"
        return f"{what} or null" if self.is_nullable else what

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.is_nullable
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
NOT_YET_IN_BODY = ("confirm_within", "abort_if")
NOT_YET_IN_QUERY = ("preview",)

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
    Operation("asset", "GET", "/assets/{digest}/{file}", None, "What the page is made of.", media_type="application/octet-stream"),
    Operation("health_live", "GET", "/health/live", None, "This process answers.", "Probe"),
    Operation("health_ready", "GET", "/health/ready", None, "A worker serves and none lags behind the latest revision; else 503.", "Probe"),
    Operation("openapi", "GET", "/api/v1/openapi.json", None, "This description.", "OpenApi"),
    Operation("metrics", "GET", "/metrics", Role.VIEW, "Prometheus text format.", media_type="text/plain"),
    Operation("status", "GET", "/api/v1/status", Role.VIEW, "Version, revision, workers and listeners.", "Status"),
    Operation("pools", "GET", "/api/v1/pools", Role.VIEW, "All pools with their servers.", "Pools"),
    Operation("pool", "GET", "/api/v1/pools/{pool}", Role.VIEW, "One pool with its servers.", "Pool"),
    Operation(
        "change_server", "PATCH", _SERVER, Role.OPERATE, "Set weight, state or limit of a server; several keys make one revision.",
        "Applied", body=(_WEIGHT, _STATE, _CONNECTIONS, REASON), at_least_one_of=("weight", "state", "max_connections"),
    ),
    Operation(
        "add_server", "POST", "/api/v1/pools/{pool}/servers", Role.OPERATE, "Add a server to the pool.",
        "Applied",
        body=(
            _ADDRESS,
            Field("weight", int, "Default 1.", low=0, high=MAX_WEIGHT),
            Field("max_connections", int, "Default: the pool's.", is_nullable=True, low=1, high=MAX_CONNECTIONS),
            _BACKUP, REASON,
        ),
    ),
    Operation(
        "remove_server", "DELETE", _SERVER, Role.OPERATE, "Drain the server, then remove it; answers when draining has begun.",
        "Applied", query=(Field("now", bool, "Cut what is open at once."),), body=(REASON,), needs_body=False,
    ),
    Operation(
        "changes", "GET", "/api/v1/changes", Role.VIEW, "The journal, oldest first.", "Changes",
        query=(Field("after", int, "Only revisions above this one.", low=0),),
    ),
    Operation(
        "events", "GET", "/api/v1/events", Role.VIEW, "Server-sent events: stats (once a second), change, health, worker.",
        media_type="text/event-stream",
    ),
    Operation("config", "GET", "/api/v1/config", Role.VIEW, "The effective configuration, secrets left out.", "Config"),
)  # fmt: skip
