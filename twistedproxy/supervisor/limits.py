"""How many files may be open: raised as far as the system allows, and compared with what the configuration promises."""

from __future__ import annotations

import resource

from twistedproxy.config.model import Model
from twistedproxy.errors import Problem

RESERVED = 200
"""Descriptors for everything that is not a client's connection: logs, listeners, idle connections to servers."""
PER_CONNECTION = 2.2
"""The client's, the server's, and now and then a pipe."""


def descriptor_problem(model: Model) -> Problem | None:
    """Raise the soft limit to the hard one; a problem when a worker could not hold its share of a listener's connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return judge(model, hard)


def judge(model: Model, limit: int) -> Problem | None:
    """Whether `limit` descriptors per process are enough for `model`."""
    workers = max(model.workers, 1)
    limits = [listener.max_connections for listener in model.http] + [listener.max_connections for listener in model.tcp]
    share = -(-max(limits, default=0) // workers)
    needed = int(share * PER_CONNECTION) + RESERVED
    if limit in (resource.RLIM_INFINITY, -1) or limit >= needed:
        return None
    possible = max(0, int((limit - RESERVED) / PER_CONNECTION)) * workers
    return Problem(
        "max_connections",
        f"a process may open {limit} files here, but {share} client connections per worker need {needed}: raise the limit "
        f"(`ulimit -n {needed}`, systemd: LimitNOFILE={needed}), or set max_connections of the listeners to at most {possible}",
    )
