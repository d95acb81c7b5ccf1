"""Live changes over a configuration file that people edit too: which of them still applies?

An *override* is one value somebody set live, with what the file said at that moment (its base). It applies as long as the
file still says the same; a file that changed that very value since has overtaken it. An override for a server that is not
there just waits: it outlives an absence. Pure: no file is touched here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from twistedproxy.config import changes, plain, site_changes
from twistedproxy.config.changes import AddServer, Batch, Change, RemoveServer, ReplaceConfig, SetMaxConnections, SetState, SetWeight
from twistedproxy.config.model import Address, AdminState, Model, Server
from twistedproxy.config.site_changes import SetMaintenance, SetSplit
from twistedproxy.config.words import value_in_words
from twistedproxy.errors import ChangeRefused

FIELDS = ("presence", "weight", "state", "max_connections", *site_changes.FIELDS)
"""In the order in which they are laid over a server; the last ones are laid over a site, which stands as `pool`, with the path as
`server`. ``presence`` is the server itself, None when it is not there."""


@dataclass(frozen=True, slots=True)
class Override:
    pool: str
    server: Address
    field: str
    base: Any
    """What the file said when the change was made; None also where it said nothing."""
    value: Any
    """What was set; None: back to the file's value (``presence``: removed)."""

    def to_plain(self) -> dict[str, Any]:
        return {"pool": self.pool, "server": self.server, "field": self.field, "base": self.base, "value": self.value}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Override:
        """`ValueError` for what `to_plain` did not write."""
        override = plain.decode(cls, dict(data))
        if override.field not in FIELDS:
            raise ValueError(f"unknown field {override.field!r}")
        if override.value is not None:
            _change(override)
        return override


@dataclass(frozen=True, slots=True)
class Superseded:
    """An override that does not apply any more, and why."""

    override: Override
    file_says: Any

    @property
    def is_agreement(self) -> bool:
        """Does the file now say what had been set?"""
        if self.override.field != "presence":
            return bool(self.file_says == self.override.value)
        says, value = self.file_says or {}, self.override.value or {}
        return all(value.get(key) == wanted for key, wanted in says.items())

    def __str__(self) -> str:
        o = self.override
        if o.field in site_changes.FIELDS:
            where = f"{o.field} of site {o.pool} {o.server}".rstrip()
        elif o.field == "presence":
            where = f"server {o.server} of pool {o.pool}"
        else:
            where = f"{o.field} of {o.server} in pool {o.pool}"
        value, base, says = map(value_in_words, (o.value, o.base, self.file_says))
        return f"{where}: was set live to {value} over {base}, the file now says {says}"


def overrides_of(configured: Model, change: Change) -> tuple[Override, ...]:
    """What `change` sets, value by value, over the file's model."""
    if isinstance(change, Batch):
        return tuple(o for part in change.changes for o in overrides_of(configured, part))
    if isinstance(change, ReplaceConfig):
        return ()
    if isinstance(change, SetMaintenance | SetSplit):
        path, field, wanted = site_changes.value_of(change)
        return (Override(change.site, Address(path), field, file_says(configured, change.site, path, field), wanted),)
    value: Any
    if isinstance(change, AddServer):
        address, name, value = change.server.address, "presence", plain.encode(change.server)
    elif isinstance(change, RemoveServer):
        address, name, value = change.server, "presence", None
    elif isinstance(change, SetWeight):
        address, name, value = change.server, "weight", change.weight
    elif isinstance(change, SetState):
        address, name, value = change.server, "state", change.state.value if change.state else None
    else:
        address, name, value = change.server, "max_connections", change.max_connections
    return (Override(change.pool, address, name, file_says(configured, change.pool, address, name), value),)


def file_says(configured: Model, pool: str, address: str, name: str) -> Any:
    """The file's own value of one field of one server."""
    if name in site_changes.FIELDS:
        return site_changes.file_says(configured, pool, address, name)
    known = configured.pools.get(pool)
    server = known.server(address) if known else None
    if server is None or name == "state":
        return None
    if name == "weight":
        return server.weight
    if name == "max_connections":
        return server.max_connections
    return {"weight": server.weight, "max_connections": server.max_connections, "backup": server.backup}


class Overrides:
    """The last override of each value, in the order in which servers came."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str, str], Override] = {}

    def __len__(self) -> int:
        return len(self._last)

    def copy(self) -> Overrides:
        other = Overrides()
        other._last = dict(self._last)
        return other

    def all(self) -> tuple[Override, ...]:
        return tuple(self._last.values())

    def drop(self, overrides: Iterable[Override]) -> None:
        """Forget these, unless the value was set again since."""
        for override in overrides:
            key = (override.pool, override.server, override.field)
            if self._last.get(key) == override:
                del self._last[key]

    def add(self, overrides: Iterable[Override]) -> None:
        for override in overrides:
            key = (override.pool, override.server, override.field)
            self._last.pop(key, None)
            if override.field == "presence":
                # A server that is removed or made anew starts without what was set on the old one.
                for field in FIELDS:
                    self._last.pop((override.pool, override.server, field), None)
            if override.value is not None or (override.field == "presence" and override.base is not None):
                self._last[key] = override

    def over(self, configured: Model) -> tuple[Model, tuple[Superseded, ...]]:
        """The running model, and what the file has overtaken."""
        model = configured
        superseded = []
        for field in FIELDS:
            for override in self._last.values():
                if override.field != field:
                    continue
                says = file_says(configured, override.pool, override.server, field)
                is_overtaken = says != override.base
                in_file = is_in_file(configured, override)
                if is_overtaken and (in_file or field == "presence"):
                    if says is not None or field == "max_connections":
                        superseded.append(Superseded(override, says))
                    continue
                try:
                    model = _lay(model, override)
                except ChangeRefused:
                    continue  # its server or pool is absent: it waits
        return model, tuple(superseded)


def is_in_file(configured: Model, override: Override) -> bool:
    """Is the server or site itself there?"""
    if override.field in site_changes.FIELDS:
        return override.pool in configured.sites
    return file_says(configured, override.pool, override.server, "presence") is not None


def _lay(model: Model, override: Override) -> Model:
    change = _change(override)
    if isinstance(change, AddServer) and (pool := model.pools.get(override.pool)) and pool.server(override.server):
        model = changes.apply(model, RemoveServer(override.pool, override.server))
    return changes.apply(model, change)


def _change(override: Override) -> Change:
    pool, server, value = override.pool, override.server, override.value
    if override.field == "weight":
        return SetWeight(pool, server, plain.decode(int, value))
    if override.field == "state":
        return SetState(pool, server, AdminState(value))
    if override.field in site_changes.FIELDS:
        return site_changes.change_from(pool, server, override.field, value)
    if override.field == "max_connections":
        return SetMaxConnections(pool, server, plain.decode(int, value))
    return RemoveServer(pool, server) if value is None else AddServer(pool, plain.decode(Server, value))
