"""Fixtures of the whole-proxy tests; the parts themselves are in bed.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import bed
import pytest


@pytest.fixture
def proxy() -> Iterator[Callable[..., bed.Proxy]]:
    """Starts proxies; at the end they stop, leave no process behind and no traceback in their logs."""
    running: list[bed.Proxy] = []

    def start(*args: Any, **kwargs: Any) -> bed.Proxy:
        made = bed.Proxy(*args, **kwargs | {"start": False})
        running.append(made)
        if kwargs.get("start", True):
            made.start()
        return made

    yield start
    logs = []
    try:
        for made in running:
            made.stop()
            logs.append(made.log if made.log_file.exists() else "")
    finally:
        for made in running:
            made.close()
    for log in logs:
        assert "Traceback" not in log, log[-6000:]
        assert "Unhandled" not in log, log[-6000:]


@pytest.fixture
def part() -> Iterator[Callable[..., Any]]:
    """Makes parts of the bed (`part(bed.Nginx, "a")`) and ends them after the test."""
    made: list[Any] = []

    def make(kind: Callable[..., Any], *args: Any) -> Any:
        made.append(kind(*args))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _whole_session(kind: Callable[..., Any], *args: Any) -> Iterator[Any]:
    made = kind(*args)
    yield made
    made.close()


@pytest.fixture(scope="session")
def nginx_a() -> Iterator[bed.Nginx]:
    yield from _whole_session(bed.Nginx, "a")


@pytest.fixture(scope="session")
def nginx_b() -> Iterator[bed.Nginx]:
    yield from _whole_session(bed.Nginx, "b")


@pytest.fixture(scope="session")
def postgres_a() -> Iterator[bed.Postgres]:
    yield from _whole_session(bed.Postgres)


@pytest.fixture(scope="session")
def postgres_b() -> Iterator[bed.Postgres]:
    yield from _whole_session(bed.Postgres)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[bed.MariaDb]:
    yield from _whole_session(bed.MariaDb)


@pytest.fixture(scope="session")
def redis() -> Iterator[bed.Redis]:
    yield from _whole_session(bed.Redis)


@pytest.fixture
def inspector() -> Iterator[bed.Inspector]:
    yield from _whole_session(bed.Inspector)
