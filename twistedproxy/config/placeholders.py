"""``${env:NAME}``, ``${env:NAME:-default}`` and ``${file:path}`` inside the strings of a configuration.

What a placeholder stands for is often a secret. A resolved text is a `Resolved`: it knows how it was written, and whatever
complains about it must quote `written`, never itself.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twistedproxy.config.locate import Path, dotted

MOST_FILE_BYTES = 64 * 1024
VARIABLES = frozenset({
    "client_ip", "client_port", "scheme", "host", "port", "method", "path", "query", "request_id", "site", "pool", "server",
    "tls_version", "tls_sni", "client_cert_subject", "client_cert_san", "client_cert_sha256",
})  # fmt: skip
"""Filled in for each request, not when the file is read."""

_PLACEHOLDER = re.compile(r"\$\$\{|\$\{([^{}]*)(\}?)")
_ENVIRONMENT = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?", re.DOTALL)
_ALLOWED = "allowed are ${env:NAME}, ${env:NAME:-default} and ${file:path}; $${ is a literal ${"

_VARIABLES_ALLOWED = f"Header values, redirects and bodies may also have ${{{'}, ${'.join(sorted(VARIABLES))}}}"


class Resolved(str):
    """Text that placeholders were put into."""

    __slots__ = ("written",)
    written: str

    def __new__(cls, text: str, written: str) -> Resolved:
        self = super().__new__(cls, text)
        self.written = written
        return self

    def __repr__(self) -> str:
        return repr(self.written)


@dataclass
class Resolution:
    """A tree of TOML values with its placeholders replaced."""

    tree: Any = None
    written: dict[str, str] = field(default_factory=dict)
    """Dotted path to the text in the file, for every string that had a placeholder."""
    problems: list[tuple[Path, str]] = field(default_factory=list)


def resolve(tree: Any, base_dir: str | None, environ: Mapping[str, str], is_allowed: bool = True) -> Resolution:
    """Replace every placeholder below `tree`; `base_dir` is what the paths of files are relative to."""
    result = Resolution()

    def look_up(inside: str) -> str:
        if not is_allowed:
            raise ValueError(f"the placeholder ${{{inside}}} is not allowed here, only in the file itself")
        if inside.startswith("env:"):
            return _variable(inside, environ)
        if inside.startswith("file:"):
            return _content(inside, base_dir)
        raise ValueError(f"${{{inside}}} is not a placeholder; {_ALLOWED}. {_VARIABLES_ALLOWED}")

    def walk(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {k: walk(v, (*path, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, (*path, i)) for i, v in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        try:
            text, has_looked_up = _fill(value, look_up)
        except ValueError as e:
            result.problems.append((path, str(e)))
            return value
        if text != value:
            result.written[dotted(path)] = value
        return Resolved(text, value) if has_looked_up else text

    result.tree = walk(tree, ())
    return result


def _fill(text: str, look_up: Callable[[str], str]) -> tuple[str, bool]:
    has_looked_up = False

    def replace(match: re.Match[str]) -> str:
        nonlocal has_looked_up
        if match[0] == "$${":
            return "${"
        if not match[2]:
            raise ValueError(f"a placeholder begins with ${{ and has no }} after it; {_ALLOWED}")
        if match[1] in VARIABLES:
            return match[0]
        has_looked_up = True
        return look_up(match[1])

    return _PLACEHOLDER.sub(replace, text), has_looked_up


def _variable(inside: str, environ: Mapping[str, str]) -> str:
    match = _ENVIRONMENT.fullmatch(inside)
    if match is None:
        raise ValueError(f"${{{inside}}} does not name an environment variable; {_ALLOWED}")
    value = environ.get(match[1])
    if match[2] and not value:
        return match[3]
    if value is None:
        raise ValueError(f"the environment variable {match[1]} is not set; set it or write ${{env:{match[1]}:-default}}")
    return value


def _content(inside: str, base_dir: str | None) -> str:
    name = inside[5:]
    if not name or "\0" in name:
        raise ValueError(f"${{{inside}}} names no file; {_ALLOWED}")
    path = os.path.join(base_dir or "/", name)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"${{{inside}}}: {path} is not a regular file")
        with open(path, "rb") as file:
            content = file.read(MOST_FILE_BYTES + 1)
    except OSError as e:
        raise ValueError(f"${{{inside}}}: {path} cannot be read: {e.strerror}") from None
    if len(content) > MOST_FILE_BYTES:
        raise ValueError(f"${{{inside}}}: {path} has more than {MOST_FILE_BYTES} bytes")
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"${{{inside}}}: {path} is not UTF-8 text") from None
