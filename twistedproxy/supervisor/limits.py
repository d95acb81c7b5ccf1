"""How many files may be open: raised as far as the system allows, and compared with what the configuration promises.

Numbers that somebody chose are kept, all together, or refused; listeners at the default of ``max_connections`` share what is left.
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
LEAST = 16
"""Connections per worker for a listener at the default."""
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
    possible = int(max(0, limit - RESERVED) / PER_CONNECTION)
    numbers = [listener.max_connections for listener in (*model.http, *model.tcp)]  # type: ignore[attr-defined]
    chosen = sum(-(-number // workers) for number in numbers if number != DEFAULT)
    others = numbers.count(DEFAULT)
    if chosen + others * LEAST > possible or possible == 0:
        share = max(chosen + others * LEAST, 1)
        needed = int(share * PER_CONNECTION) + RESERVED + 1
        return Problem(
            "max_connections",
            f"a process may open {limit} files here, but {share} client connections per worker need {needed}: raise the limit "
            f"(`ulimit -n {needed}`, systemd: LimitNOFILE={needed}), or set max_connections of the listeners to at most "
            f"{max(possible - others * LEAST, 0) * workers} together",
        )
    left = (possible - chosen) // others * workers if others else 0

    def fitted(listeners: tuple[L, ...]) -> tuple[L, ...]:
        return tuple(replace(each, max_connections=min(DEFAULT, left)) if each.max_connections == DEFAULT else each for each in listeners)

    return replace(model, http=fitted(model.http), tcp=fitted(model.tcp))
