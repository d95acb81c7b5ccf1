"""Refusals of the admin API, as RFC 9457 problem bodies: what is wrong and what to do, never how we are built."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

CONTENT_TYPE = b"application/problem+json"


class Refuse(Exception):
    """A request that gets `status` and one sentence instead of what it asked for."""

    def __init__(
        self,
        status: int,
        detail: str = "",
        *,
        field: str = "",
        headers: Mapping[str, str] | None = None,
        problems: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})
        self.problems = list(problems)
        """Of a configuration: file, line, path, message."""

    @property
    def phrase(self) -> bytes:
        """The reason phrase; Twisted's own table ends before 429."""
        return HTTPStatus(self.status).phrase.encode()

    @property
    def body(self) -> bytes:
        problem: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        if self.detail:
            problem["detail"] = self.detail
        if self.field:
            problem["field"] = self.field
        if self.problems:
            problem["problems"] = self.problems
        return json.dumps(problem).encode() + b"\n"


def unauthorized() -> Refuse:
    """The one answer to every missing, short, foreign or wrong token."""
    return Refuse(401, "A valid token is needed: Authorization: Bearer TOKEN.", headers={"WWW-Authenticate": "Bearer"})


def forbidden() -> Refuse:
    return Refuse(403, "The role of this token does not allow it.")


def foreign_host() -> Refuse:
    return Refuse(403, "The Host is none of this proxy's names; admin.names in the configuration adds some.")


def too_many_guesses() -> Refuse:
    return Refuse(429, "Too many wrong tokens from this address; try again in a second.", headers={"Retry-After": "1"})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown `name`: the nearest known one, or all of them."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, 1)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; there are: {', '.join(choices)}" if choices else "; there are none here"
