"""Regular expressions that cannot hang the proxy: what `rewrite.match` may hold.

How it works
    Python's matcher goes back over what it tried, so that a careless pattern takes time exponential in the length of the path.
    A pattern is taken apart and allowed only when that cannot be: no repetition or choice inside a repetition, at most
    `MOST_REPEATS` repetitions, few optional parts and choices, no back references or look-around. One repetition is linear (square
    where it may begin anywhere); with two, which must begin with ``^``, the time grows with the square of the path's length.
    So the paths that such patterns are tried on are bounded (`longest_path`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MOST_REPEATS = 2
MOST_BRANCHES = 6
MOST_CHARACTERS = 512
LONG_PATH = 2048
"""The longest path a pattern with two repetitions is tried on; a longer one is answered 414."""

ALLOWED = 'a regular expression such as "^/app/(.*)$"'

_parser: Any = re._parser  # type: ignore[attr-defined]  # the only way to see a pattern's parts
_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"})
_HARMLESS = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "CATEGORY", "RANGE", "NEGATE"})


def parse_pattern(text: str) -> re.Pattern[bytes]:
    """The compiled pattern; `ValueError` says why it is refused."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"is longer than {MOST_CHARACTERS} characters")
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("has characters outside ASCII; paths have them percent-encoded (%C3%BC)") from None
    try:
        tree = _parser.parse(raw)
        parts = list(_parts(tree, False))
        compiled = re.compile(raw)
    except (re.error, RecursionError, OverflowError) as e:
        raise ValueError(f"is not a regular expression: {e}") from None
    repeats = parts.count("repeat")
    if repeats > MOST_REPEATS:
        raise ValueError(f"repeats {repeats} times (*, +, {{n,}}); allowed are {MOST_REPEATS}, so that no path can make it slow")
    if repeats == MOST_REPEATS and not text.startswith("^"):
        raise ValueError(f"repeats {repeats} times and may begin anywhere in the path; begin it with ^, so that no path can make it slow")
    if parts.count("branch") > MOST_BRANCHES:
        raise ValueError(f"has more than {MOST_BRANCHES} choices (|, ?); use several routes or rules")
    return compiled


def longest_path(pattern: re.Pattern[bytes]) -> int:
    """Bytes of a path that `pattern` may be tried on; 0: any that a request may have."""
    repeats = list(_parts(_parser.parse(pattern.pattern), False)).count("repeat")
    return LONG_PATH if repeats + (not pattern.pattern.startswith(b"^")) > 1 else 0


def _parts(tree: Any, is_repeated: bool) -> Iterator[str]:
    """``repeat`` and ``branch`` for each of the pattern; `ValueError` for what is never allowed."""
    for operator, argument in tree:
        name = str(operator)
        if name in _REPEATS:
            low, high, inside = argument
            is_optional = low == 0 and high == 1
            if is_repeated and low != high:
                raise ValueError("has a repetition inside a repetition, such as (a+)+; that can take for ever, write it without")
            if low == high and int(high) > 64:
                raise ValueError("repeats something more than 64 times")
            if low != high:
                yield "branch" if is_optional else "repeat"
            yield from _parts(inside, is_repeated or not is_optional)
        elif name == "BRANCH":
            if is_repeated:
                raise ValueError("has a choice inside a repetition, such as (a|b)*; write [ab]* or use several routes")
            yield "branch"
            for option in argument[1]:
                yield from _parts(option, is_repeated)
        elif name == "SUBPATTERN":
            yield from _parts(argument[-1], is_repeated)
        elif name not in _HARMLESS:
            raise ValueError("has a back reference, look-around, condition or atomic group; none of these is needed for a path")
