"""A described change in words, one and the same for the listing of changes, the log and every answer; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def change_in_words(change: Mapping[str, Any]) -> str:
    """What `changes.describe` gave, for people."""
    if change.get("kind") == "batch":
        return "; ".join(change_in_words(part) for part in change["changes"])
    if change.get("kind") == "replace_config":
        return "file: " + ("; ".join(change.get("changes", ())) or "no value changed")
    where = " ".join(str(change[key]) for key in ("pool", "server", "site", "path") if change.get(key))
    text = f"{change.get('kind', '?')} {where}".strip()
    before, after = change.get("before"), change.get("after")
    is_split = change.get("kind") == "set_split"
    if not is_split and (isinstance(before, dict) or isinstance(after, dict)):
        return text  # a whole server that came or went
    return f"{text}: {value_in_words(before)} → {value_in_words(after)}"


def value_in_words(value: object) -> str:
    """One value that was set; of a split or of a server each part that says something."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        said = [(key, each) for key, each in value.items() if each is not None and each is not False]
        return " ".join(str(key) if each is True else f"{key}={each}" for key, each in said) or "nothing"
    return str(value)
