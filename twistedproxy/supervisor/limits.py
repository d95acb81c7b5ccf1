"""How many files may be open: raised as far as the system allows, and compared with what the configuration promises.

A listener at the default of ``max_connections`` gets what the limit allows; a number that somebody chose is kept or refused.
"""

from __future__ import annotations

import resource
from dataclasses import replace
from typing import TypeVar

from twistedproxy.config.model import HttpListener, Model, TcpListener
from twistedproxy.errors import Problem

RESERVED = 200
"""Descriptors for everything that is not a client's connection: logs, listeners, idle connections to servers."""
PER_CONNECTION = 2.2
"""The client's, the server's, and now and then a pipe."""
DEFAULT = HttpListener.__dataclass_fields__["max_connections"].default

L = TypeVar("L", HttpListener, TcpListener)


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one, for us and the workers; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def fit(model: Model, limit: int) -> Model | Problem:
    """`model` with defaults that `limit` descriptors per process can hold; a problem when a chosen number is too high."""
    if limit == resource.RLIM_INFINITY:
        return model
    workers = max(model.workers, 1)
    possible = int(max(0, limit - RESERVED) / PER_CONNECTION) * workers
    chosen = [listener.max_connections for listener in (*model.http, *model.tcp) if listener.max_connections != DEFAULT]  # type: ignore[attr-defined]
    highest = max(chosen, default=0)
    if highest > possible or possible == 0:
        share = -(-max(highest, workers) // workers)
        needed = int(share * PER_CONNECTION) + RESERVED + 1
        return Problem(
            "max_connections",
            f"a process may open {limit} files here, but {share} client connections per worker need {needed}: raise the limit "
            f"(`ulimit -n {needed}`, systemd: LimitNOFILE={needed}), or set max_connections of the listeners to at most {possible}",
        )

    def fitted(listeners: tuple[L, ...]) -> tuple[L, ...]:
        return tuple(replace(each, max_connections=min(each.max_connections, possible)) for each in listeners)

    return replace(model, http=fitted(model.http), tcp=fitted(model.tcp))
