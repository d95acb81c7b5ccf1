"""What is wrong with one line of a head, whole or half received: the only place that says no to the bytes of a line.

How it works
    The codecs recognise what is valid and complete; a line that is not comes here. For a line that is complete: the limits first, then its
    end (CR LF), then its grammar. For the last, incomplete line: the limits, then whether what is there can still become a valid line. So a
    head is refused at the first byte that breaks a rule. Rules are named as in ``refusals``.
"""

from __future__ import annotations

import re
from typing import Protocol

MAX_METHOD = 32

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TARGET = re.compile(rb"[\x21-\x7e]*+")
_VERSION = b"HTTP/\0.\0"
_STATUS_FORM = b"HTTP/1.\0 \1\2\2 "


class Limits(Protocol):
    """The limits of either codec."""

    @property
    def max_head(self) -> int: ...

    @property
    def max_request_line(self) -> int: ...

    @property
    def max_field(self) -> int: ...

    @property
    def max_fields(self) -> int: ...


def _matches_form(text: bytes, form: bytes) -> bool:
    """Whether `text` can be the beginning of `form`, in which NUL is any digit but see ``_STATUS_FORM`` for 1 (1–9) and 2 (digit)."""
    for have, want in zip(text, form, strict=False):
        if want > 2:
            if have != want:
                return False
        elif not (0x31 if want == 1 else 0x30) <= have <= 0x39:
            return False
    return True


def request_line_fault(line: bytes, is_complete: bool) -> str | None:
    """The rule broken by a request line without its CR LF; None when it may still become a valid one."""
    end = len(line)
    name = _NAME.match(line)
    at = name.end() if name else 0
    if at > MAX_METHOD:
        return "method"
    if at == end:
        return None if not is_complete else "no_version" if at else "method"
    if not at or line[at] != 0x20:
        return "method"
    at += 1
    target = _TARGET.match(line, at)
    stop = target.end() if target else at
    if stop == end:
        return None if not is_complete else "no_version" if stop > at else "target_bytes"
    if stop == at or line[stop] != 0x20:
        return "target_bytes"
    version = line[stop + 1 :]
    if not version and is_complete:
        return "version_form"
    if not _matches_form(version, _VERSION):
        return "version_form"
    if len(version) >= 8 and version[:8] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return "version"
    return "version_form" if len(version) > 8 or (is_complete and len(version) != 8) else None


def status_line_fault(line: bytes, is_complete: bool) -> str | None:
    """The same for a status line; the space after the status may be absent with the reason."""
    if not _matches_form(line, _STATUS_FORM) or (len(line) > 7 and line[7] not in b"01") or (is_complete and len(line) < 12):
        return "status_line"
    return "status_line" if _BAD_VALUE.search(line) else None


def field_fault(line: bytes, is_complete: bool) -> str | None:
    """The same for a field line that is not empty."""
    if line[0] in b" \t":
        return "field_fold"
    name = _NAME.match(line)
    at = name.end() if name else 0
    if at == len(line):
        return "field_name" if is_complete else None
    if not at or line[at] != 0x3A:
        return "field_name"
    bad = _BAD_VALUE.search(line, at)
    if bad is None:
        return None
    return "bare_cr" if bad[0] == b"\r" else "field_value"


def first_line(data: bytes, start: int, limits: Limits, is_request: bool) -> tuple[int, str | None]:
    """(offset after the first line, or 0 when it is incomplete; the rule it breaks)."""
    found = data.find(b"\n", start, start + limits.max_request_line + 2)
    stop = found if found >= 0 else len(data)
    end = stop - 1 if stop > start and data[stop - 1] == 0x0D else stop
    if end - start > limits.max_request_line:
        return 0, "request_line_long" if is_request else "status_line_long"
    if (found + 1 if found >= 0 else len(data)) > limits.max_head:
        return 0, "head_long"
    if found >= 0 and end == found:
        return 0, "bare_lf"
    fault = request_line_fault if is_request else status_line_fault
    return (found + 1 if found >= 0 else 0), fault(data[start:end], found >= 0)


def odd_line(data: bytes, at: int, limits: Limits, count: int) -> str | None:
    """Judges a line that is no complete valid field: None when it is the empty line, "" when incomplete, else the rule it breaks."""
    found = data.find(b"\n", at, at + limits.max_field + 2)
    stop = found if found >= 0 else len(data)
    end = stop - 1 if stop > at and data[stop - 1] == 0x0D else stop
    if end - at > limits.max_field:
        return "field_long"
    if (found + 1 if found >= 0 else len(data)) > limits.max_head:
        return "head_long"
    if found >= 0 and end == found:
        return "bare_lf"
    if end == at:
        return None if found >= 0 else ""
    if count >= limits.max_fields:
        return "fields_many"
    return field_fault(data[at:end], found >= 0) or ("" if found < 0 else "field_name")
