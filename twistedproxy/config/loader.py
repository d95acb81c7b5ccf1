"""TOML text to model, or every problem with its line.

How it works
    tomllib reads the text, `placeholders` fills in, pydantic checks each key by its declaration in `schema`. What it refuses is
    reported and taken out of the tree, and the rest is checked again, so that `checks` can look at everything that is sound and
    one run reports all problems. `build` makes the model when there are none; `locate` finds the lines when there are.

    pydantic takes longer to import than a command takes to run, so it is imported when the first text is read.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twistedproxy.config import placeholders, values
from twistedproxy.config.locate import Lines, Path, dotted
from twistedproxy.config.model import Model
from twistedproxy.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from pydantic import ValidationError

    from twistedproxy.config import schema
    from twistedproxy.config.kinds import Origin, Section

DEFAULT_FILES = ("revproxy.toml", "/etc/revproxy/revproxy.toml")
MOST_BYTES = 1024 * 1024
MOST_PROBLEMS = 200
_DEEPEST = 16
_LONGEST_KEY = 100
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]{0,200}+"|'[^'\n]{0,200}+')[ \t]{0,9}+\.[ \t]{0,9}+"""
_ENDLESS_KEY = re.compile(rf"(?<![A-Za-z0-9_.\"'-])(?:{_PART}){{{_LONGEST_KEY}}}")
"""tomllib takes time with the square of a dotted key's parts."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that is in order."""

    model: Model
    text: str
    written: Mapping[str, str]
    """Dotted path to text as written, for every value with placeholders: outputs show this in place of the value."""
    effective: Mapping[str, Any]
    """All keys in the form of the file, defaults filled in, placeholders as written: what may be shown to anybody."""
    warnings: tuple[Problem, ...] = ()
    """What is allowed and has no effect."""


def find_file() -> str:
    """The first default file that exists."""
    for path in DEFAULT_FILES:
        if os.path.exists(path):
            return os.path.abspath(path)
    raise ConfigurationError(
        [Problem("", f"no configuration: neither ./{' nor '.join(DEFAULT_FILES)} exists; name one with --config FILE")]
    )


def load(path: str) -> Model:
    """The model in the file at `path`; `ConfigurationError` holds all that is wrong with it."""
    return read_file(path).model


def parse(
    text: str,
    *,
    file: str = "",
    base_dir: str | None = None,
    state_dir_default: str | None = None,
    allow_placeholders: bool = True,
    environ: Mapping[str, str] | None = None,
    has_ipv6: bool | None = None,
) -> Model:
    """The model in `text`. Relative paths are relative to `base_dir`, or to the folder of `file`."""
    return read(
        text,
        file=file,
        base_dir=base_dir,
        state_dir_default=state_dir_default,
        allow_placeholders=allow_placeholders,
        environ=environ,
        has_ipv6=has_ipv6,
    ).model


def read_file(path: str) -> Loaded:
    """`load`, with the text and what may be shown of it."""
    return read(_text_of(path), file=path)


def read(
    text: str,
    *,
    file: str = "",
    base_dir: str | None = None,
    state_dir_default: str | None = None,
    allow_placeholders: bool = True,
    environ: Mapping[str, str] | None = None,
    has_ipv6: bool | None = None,
) -> Loaded:
    """`parse`, with what may be shown of the text."""
    from twistedproxy.config import checks  # noqa: PLC0415 - pydantic
    from twistedproxy.config.build import build  # noqa: PLC0415 - pydantic
    from twistedproxy.config.kinds import Origin  # noqa: PLC0415 - pydantic

    environ = os.environ if environ is None else environ
    base_dir = os.path.abspath(os.path.dirname(file) if base_dir is None else base_dir)
    origin = Origin(base_dir, has_ipv6_addresses() if has_ipv6 is None else has_ipv6, reads_files=allow_placeholders)
    tree = _toml(text, file)
    resolution = placeholders.resolve(tree, base_dir, environ, allow_placeholders)
    document, findings = _validate(resolution, origin)
    if document is None or findings:
        raise ConfigurationError(_problems(findings, text, file))
    state_dir = os.path.join(base_dir, state_dir_default or _default_state_dir(environ))
    model = build(document, origin, os.path.abspath(file) if file else "", state_dir)
    warnings = tuple(_problems(checks.warnings(document), text, file))
    return Loaded(model, text, resolution.written, _effective(document, tree), warnings)


def state_dir_of(path: str) -> str:
    """Where the daemon started with the file at `path` keeps its state; cheap, and checks nothing else."""
    base_dir = os.path.dirname(os.path.abspath(path))
    tree = _toml(_text_of(path), path)
    resolution = placeholders.resolve({"state_dir": tree.get("state_dir")}, base_dir, os.environ)
    written = resolution.tree["state_dir"]
    if resolution.problems or not isinstance(written, (str, type(None))):
        raise ConfigurationError([Problem("state_dir", "is not the name of a directory", file=path)])
    return os.path.normpath(os.path.join(base_dir, written or _default_state_dir(os.environ)))


def has_ipv6_addresses() -> bool:
    """Does this machine have IPv6 at all? Without, the wildcard is IPv4's."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            return bool(file.readline())
    except OSError:
        return False


def _default_state_dir(environ: Mapping[str, str]) -> str:
    """systemd may list several directories; the first is ours."""
    return environ.get("STATE_DIRECTORY", "").split(":")[0] or ".revproxy"


# Reading


def _text_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise ConfigurationError([Problem("", f"cannot be read: {reason}", file=path)]) from None
    _refuse_large(len(content), path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise ConfigurationError([Problem("", f"is not UTF-8 text (byte {content[e.start]:#04x})", line, path)]) from None


def _refuse_large(size: int, file: str) -> None:
    if size > MOST_BYTES:
        raise ConfigurationError([Problem("", f"is larger than {MOST_BYTES // 1024} KiB, the most a configuration may have", file=file)])


def _toml(text: str, file: str) -> dict[str, Any]:
    _refuse_large(len(text), file)
    endless = _ENDLESS_KEY.search(text)
    if endless:
        line = text.count("\n", 0, endless.start()) + 1
        raise ConfigurationError([Problem("", f"a key has more than {_LONGEST_KEY} parts", line, file)])
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError([Problem("", f"is nested more than {_DEEPEST} levels deep", 1, file)]) from None
    except ValueError as e:
        raise ConfigurationError([_syntax_problem(e, text, file)]) from None
    if _is_deeper(tree, _DEEPEST):
        raise ConfigurationError([Problem("", f"is nested more than {_DEEPEST} levels deep", 1, file)])
    return tree


def _syntax_problem(error: ValueError, text: str, file: str) -> Problem:
    message = str(error)
    place = re.search(r" \((?:at line (\d+), column (\d+)|at end of document)\)$", message)
    line = text.rstrip("\n").count("\n") + 1
    if place is None:
        return Problem("", f"is not TOML: {message}", 1, file)
    column = ""
    if place[1]:
        line, column = int(place[1]), f" at column {place[2]}"
    what = message[: place.start()]
    what = {"Cannot overwrite a value": "this key is set already", "Cannot declare": "this table is there already"}.get(what, what)
    return Problem("", f"is not TOML: {what}{column}", line, file)


def _is_deeper(tree: Any, levels: int) -> bool:
    level = [tree]
    for _ in range(levels):
        children = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [item for items in children for item in items]
    return any(isinstance(v, (dict, list)) for v in level)


# Checking


Finding = tuple[Path, str]


def _validate(resolution: placeholders.Resolution, origin: Origin) -> tuple[schema.File | None, list[Finding]]:
    """What is sound of the document, or None, and all findings."""
    from pydantic import ValidationError  # noqa: PLC0415 - pydantic

    from twistedproxy.config import checks, schema  # noqa: PLC0415 - pydantic

    findings: dict[Finding, None] = dict.fromkeys(resolution.problems)
    unresolved = {path for path, _ in findings}
    around = {path[:n] for path in unresolved for n in range(len(path))}

    def is_unresolved(path: Path) -> bool:
        """Is this only because a placeholder stands for nothing?"""
        return any(path[:n] in unresolved for n in range(len(path) + 1))

    # First with placeholders that stand for nothing, so that the other items of their lists are looked at too.
    tree = whole = resolution.tree
    document = None
    while document is None:
        taken_out = unresolved if tree is whole else set()
        try:
            document = schema.File.model_validate(tree, context=origin)
            if taken_out:
                document, tree = None, _without(tree, taken_out)
        except ValidationError as e:
            wrong, missing = _findings(e, schema.File)
            # What is missing the second time was taken out by us.
            new = wrong if tree is not whole else wrong + missing
            findings |= dict.fromkeys(f for f in new if not is_unresolved(f[0]) and f[0] not in around)
            smaller = _without(tree, {path for path, _ in wrong + missing} | taken_out)
            if smaller == tree:
                return None, list(findings)
            tree = smaller

    def quote(path: Path, value: str) -> str:
        return values.shown(resolution.written.get(dotted(path), value))

    checked = checks.check(document, resolution.tree, origin, quote)
    return document, [*findings, *(f for f in checked if not is_unresolved(f[0]))]


def _without(tree: Mapping[str, Any], paths: Collection[Path]) -> dict[str, Any]:
    """A copy of `tree` without what is at `paths`; a whole list goes when one of its items must, so that no index moves."""

    def copy(value: Any) -> Any:
        return {k: copy(v) for k, v in value.items()} if isinstance(value, dict) else value

    smaller: dict[str, Any] = copy(tree)
    removed: set[Path] = set()
    for path in paths:
        if not path:
            return {}
        table = smaller
        for depth, (step, following) in enumerate(zip(path, (*path[1:], None), strict=True), 1):
            if step not in table:
                break
            below = table[step]
            if not isinstance(below, dict) or (following not in below and path[: depth + 1] not in removed):
                del table[step]
                removed.add(path[:depth])
                break
            table = below
    return smaller


def _findings(error: ValidationError, root: type[Section]) -> tuple[list[Finding], list[Finding]]:
    """pydantic's errors in our words, with the paths of the file: what is wrong, and what is missing."""
    errors = error.errors(include_url=False, include_input=False)
    wrong: list[Finding] = []
    missing: list[Finding] = []
    hints: dict[Path, list[str]] = {}
    for item in errors:
        if item["type"] == "extra_forbidden":
            *table, key = item["loc"]
            message = _unknown_key(str(key), _section_at(root, tuple(table)), len(wrong) < MOST_PROBLEMS)
            path = _file_path(item["loc"], root)
            hints.setdefault(path[:-1], []).append(message)
            wrong.append((path, message))
    for item in errors:
        path = _file_path(item["loc"], root)
        if item["type"] == "missing":
            # The key is probably there, misspelt or as something that is to come.
            if not any(f"mean {path[-1]!r}" in hint or hint.endswith("not supported yet") for hint in hints.get(path[:-1], ())):
                missing.append((path[:-1], f"needs the key {path[-1]!r}"))
        elif item["type"] != "extra_forbidden":
            wrong.append((path, _words(item)))
    return wrong, missing


def _words(item: Mapping[str, Any]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "must be a table"
    if kind == "tuple_type":
        return "must be a list in [ ]"
    if kind == "too_long":
        return f"has more than {context['max_length']} items"
    return str(item["msg"])


def _unknown_key(key: str, section: type[Section] | None, has_hint: bool) -> str:
    from twistedproxy.config import schema  # noqa: PLC0415 - pydantic

    if section is None:
        return f"{values.shown(key)} is not known here"
    if key in section.later:
        return f"{key} is not supported yet"
    known = [field.alias or name for name, field in section.model_fields.items()]
    names = [name for name in known if name != schema.ROUTES]
    hint = values.did_you_mean(key, names) if has_hint else ""
    routes = ' and routes such as "/" or "=/exact"' if schema.ROUTES in known else ""
    return f"there is no key {values.shown(key)} here.{hint} Allowed are {', '.join(names)}{routes}"


def _section_at(root: type[Section], loc: tuple[str | int, ...]) -> type[Section] | None:
    """The declaration of the table at pydantic's `loc`."""
    from twistedproxy.config.kinds import inner_section  # noqa: PLC0415 - pydantic

    section: type[Section] | None = root
    is_field = True
    for step in loc:
        if section is None:
            return None
        if is_field:
            field = next((f for name, f in section.model_fields.items() if (f.alias or name) == step), None)
            if field is None:
                return None
            section, is_container = inner_section(field.annotation)
            is_field = not is_container
        else:
            is_field = True
    return section


def _file_path(loc: tuple[str | int, ...], root: type[Section]) -> Path:
    """pydantic's `loc` without what is not in the file."""
    from twistedproxy.config import schema  # noqa: PLC0415 - pydantic

    path = loc[:-1] if loc and loc[-1] == "[key]" else loc
    if len(path) > 2 and path[0] == "sites" and path[2] == schema.ROUTES and root is schema.File:
        path = path[:2] + path[3:]
    return path


def _problems(findings: list[Finding], text: str, file: str) -> list[Problem]:
    lines = Lines(text)
    problems = {Problem(dotted(path), message, lines.of(path), file): None for path, message in findings}
    ordered = sorted(problems, key=lambda p: (p.line, p.path))
    if len(ordered) > MOST_PROBLEMS:
        more = Problem("", f"and {len(ordered) - MOST_PROBLEMS} more problems", ordered[MOST_PROBLEMS].line, file)
        ordered = [*ordered[:MOST_PROBLEMS], more]
    return ordered


# Showing


def _effective(section: Section, tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree`, which still has its placeholders, with the declared defaults of `section` filled in."""
    from twistedproxy.config.kinds import Section  # noqa: PLC0415 - pydantic
    from twistedproxy.config.schema import ROUTES, Timeouts  # noqa: PLC0415 - pydantic

    def merge(value: Any, written: Any) -> Any:
        if isinstance(value, Section) and isinstance(written, dict):
            return _effective(value, written)
        if isinstance(value, dict) and isinstance(written, dict) and value.keys() == written.keys():
            return {k: merge(v, written[k]) for k, v in value.items()}
        if isinstance(value, tuple) and isinstance(written, list) and len(value) == len(written):
            return [merge(v, w) for v, w in zip(value, written, strict=True)]
        return written

    shown: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        key = field.alias or name
        value = getattr(section, name)
        if key == ROUTES:
            shown |= {k: merge(v, tree[k]) for k, v in value.items()}
        elif key in tree and isinstance(value, Timeouts) and field.default is None:
            shown[key] = tree[key]  # what is not said here is inherited
        elif key in tree:
            shown[key] = merge(value, tree[key])
        elif isinstance(value, Section):
            shown[key] = _effective(value, {})
        elif field.default is not None and not field.is_required():
            shown[key] = list(field.default) if isinstance(field.default, tuple) else field.default
    return shown
