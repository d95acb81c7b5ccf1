"""The lines of the journal: what they hold and how they are read; pure, no file is touched here.

{"journal": 1, "revision": 40, "node": …}                the header: the revision the file starts after; after compaction it
                                                         also holds the overrides then in force
{"config": "…", "revision": 40, "at": …}                 the configuration file's text at that revision, as written
{"revision": 41, "at", "by", "reason", "node",           one change: what it replaced (`change`), the change itself (`apply`),
 "change", "apply", "inverse", "overrides", …}           what takes it back (`inverse`), and the values it set over the file
{"confirm": 41, "at": …, "by": …}                        a change that waited for confirmation has it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from twistedproxy.config import changes
from twistedproxy.config.control import Entry
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.guard import Watch
from twistedproxy.supervisor.overrides import Override

FORMAT = 1


class Corrupt(Exception):
    """The journal holds something this program did not write."""


@dataclass(frozen=True, slots=True)
class Record:
    """One change, as far as it is kept in memory."""

    entry: Entry
    apply: Mapping[str, Any]
    """`changes.to_plain`; without the text of a configuration, which stays in the file."""
    inverse: Mapping[str, Any] | None
    """What takes it back; None: not recorded, or the text before it (`replace_config`)."""
    overrides: tuple[Override, ...]
    superseded: tuple[Override, ...] = ()
    """Of a reload: live values that the file has overtaken."""
    undoes: int | None = None
    """The revision it takes back."""
    guard: Watch | None = None
    """What would make it be taken back by itself; None also once it is confirmed or undone."""


@dataclass(slots=True)
class Parsed:
    """All that a journal's text says."""

    first: int = 0
    """Revision of the header."""
    revision: int = 0
    node: str = ""
    overrides: tuple[Override, ...] = ()
    """Of the header."""
    records: list[Record] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    """The configuration from each revision on."""
    confirmed: set[int] = field(default_factory=set)
    keep: int = 0
    """Bytes that are whole lines."""


def parse(data: bytes) -> Parsed:
    """Read a journal; `Corrupt` for anything but a torn last line."""
    parsed = Parsed()
    position = 0
    while position < len(data):
        end = data.find(b"\n", position)
        try:
            record = json.loads(data[position : end if end >= 0 else len(data)])
            if not isinstance(record, dict):
                raise ValueError(f"expected a table, got {record!r:.60}")
            _take(parsed, record, is_first=position == 0)
        except (ValueError, KeyError, TypeError, RecursionError, ChangeRefused) as e:
            if end < 0:
                break
            number = data.count(b"\n", 0, position) + 1
            missing = f"no {e}" if isinstance(e, KeyError) else str(e)
            raise Corrupt(f"line {number}: {missing}") from None
        position = parsed.keep = end + 1 if end >= 0 else len(data)
    return parsed


def _take(parsed: Parsed, line: Mapping[str, Any], is_first: bool) -> None:
    if is_first:
        if line["journal"] != FORMAT:
            raise ValueError(f"format {line['journal']!r}; this version reads {FORMAT}")
        parsed.first = parsed.revision = _integer(line["revision"])
        parsed.overrides = tuple(Override.from_plain(o) for o in line.get("overrides", ()))
    elif "config" in line:
        if not isinstance(line["config"], str):
            raise ValueError("config is not a text")
        parsed.texts[_integer(line["revision"])] = line["config"]
    elif "confirm" in line:
        parsed.confirmed.add(_integer(line["confirm"]))
        settle(parsed.records, line["confirm"])
    else:
        record, text = _record(line, parsed.revision)
        parsed.revision = record.entry.revision
        if text is not None:
            parsed.texts[parsed.revision] = text
        if record.undoes is not None:
            settle(parsed.records, record.undoes, parsed.revision)
        parsed.records.append(record)


def settle(records: Any, revision: int, undone_by: int | None = None) -> None:
    """Note in the record of `revision` that it is confirmed, or undone: either way it does not wait any more."""
    for index, record in enumerate(records):
        if record.entry.revision == revision:
            watched = None if undone_by is None else record.entry.guard
            entry = replace(record.entry, undone_by=undone_by, confirm_by=None, guard=watched)
            records[index] = replace(record, entry=entry, guard=None)


def _integer(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a revision")
    return value


def _record(line: Mapping[str, Any], after: int) -> tuple[Record, str | None]:
    revision = _integer(line["revision"])
    if revision <= after:
        raise ValueError(f"revision {revision} after {after}")
    made = changes.from_plain(line["apply"])
    for key in ("at", "by", "reason"):
        if not isinstance(line[key], str):
            raise ValueError(f"{key} is {line[key]!r}")
    if not isinstance(line["change"], dict):
        raise ValueError("change is not a table")
    inverse = line.get("inverse")
    if inverse is not None:
        changes.from_plain(inverse)
    text = made.text if isinstance(made, changes.ReplaceConfig) else None
    guard = Watch.from_plain(line["guard"]) if "guard" in line else None
    shown = None if guard is None else guard.shown
    entry = Entry(revision, line["at"], line["by"], line["reason"], line["change"], confirm_by=line.get("confirm_by"), guard=shown)
    record = Record(
        entry,
        {"kind": "replace_config"} if text is not None else line["apply"],
        inverse,
        tuple(Override.from_plain(o) for o in line["overrides"]),
        tuple(Override.from_plain(o) for o in line.get("superseded", ())),
        line.get("undoes"),
        guard,
    )
    return record, text


def dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def header(revision: int, node: str, overrides: tuple[Override, ...] = ()) -> bytes:
    words: dict[str, Any] = {"journal": FORMAT, "revision": revision, "node": node}
    return dump(words | ({"overrides": [o.to_plain() for o in overrides]} if overrides else {}))


def change_line(record: Record, change: changes.Change, node: str) -> bytes:
    entry = record.entry
    words: dict[str, Any] = {
        "revision": entry.revision,
        "at": entry.at,
        "by": entry.by,
        "reason": entry.reason,
        "node": node,
        "change": entry.change,
        "apply": changes.to_plain(change),
        "inverse": record.inverse,
        "overrides": [override.to_plain() for override in record.overrides],
    }
    if record.superseded:
        words["superseded"] = [override.to_plain() for override in record.superseded]
    if record.undoes is not None:
        words["undoes"] = record.undoes
    if record.guard is not None:
        words["guard"] = record.guard.to_plain()
    if entry.confirm_by is not None:
        words["confirm_by"] = entry.confirm_by
    return dump(words)
