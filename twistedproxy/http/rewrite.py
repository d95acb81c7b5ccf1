"""A new path by a regular expression that was found harmless when the configuration was read (`config.patterns`)."""

from __future__ import annotations

import re

from twistedproxy.config.model import Rewrite
from twistedproxy.errors import BadHead
from twistedproxy.http.paths import canonical_path

LONG_PATH = 2048
"""The longest path a pattern is tried on that looks for more than one repetition, or for one anywhere: its time grows with the square."""
_GROUP = re.compile(r"\$([1-9$])")
_REPEAT = re.compile(rb"(?<!\\)(?:[*+]|\{\d*,\d*\})")


class Rewriting:
    """One `rewrite` of a route."""

    __slots__ = ("_is_square", "_parts", "_pattern")

    def __init__(self, spec: Rewrite) -> None:
        self._pattern = re.compile(spec.match.encode())
        pattern = self._pattern.pattern
        self._is_square = len(_REPEAT.findall(pattern)) + (not pattern.startswith(b"^")) > 1
        self._parts: list[bytes | int] = []
        for index, piece in enumerate(_GROUP.split(spec.to)):
            if index % 2:
                self._parts.append(b"$" if piece == "$" else int(piece))
            elif piece:
                self._parts.append(piece.encode())

    def apply(self, path: bytes, query: bytes) -> tuple[bytes, bytes] | None:
        """(path, query) for the server; None when the pattern is not found. `BadHead` for what cannot be rewritten safely."""
        if self._is_square and len(path) > LONG_PATH:
            raise BadHead(f"the path is longer than the {LONG_PATH} bytes that can be rewritten here", 414)
        match = self._pattern.search(path)
        if match is None:
            return None
        made = b"".join([part if isinstance(part, bytes) else match[part] or b"" for part in self._parts])
        new, mark, more = made.partition(b"?")
        if new[:1] != b"/":
            new = b"/" + new
        canonical = canonical_path(new)
        if isinstance(canonical, str):
            raise BadHead("the path cannot be rewritten: what comes out is not a path")
        return canonical, b"&".join(filter(None, (more, query))) if mark else query
