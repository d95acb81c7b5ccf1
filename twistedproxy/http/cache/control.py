"""What the fields of a message say about keeping it: Cache-Control, CDN-Cache-Control, Pragma, Expires, Age and dates, as values.

How it works
    A directive that cannot be read is never taken for permission: a broken lifetime counts as stale (RFC 9111 4.2.1), a broken
    ``private`` or ``no-store`` counts as said, a field too long to read counts as ``no-store``. A lifetime said twice with different
    values counts as stale; of directives that contradict each other the most restrictive one wins, which is up to those who read them.

    The same few values come again and again, so parsed ones are remembered in tables of bounded size that are emptied when full.
"""

from __future__ import annotations

import re
from calendar import timegm
from dataclasses import dataclass
from time import gmtime

from twistedproxy.http.messages import Head

MAX_VALUE = 4096
"""Bytes of all Cache-Control fields of a message together; more count as no-store."""
MAX_DIRECTIVES = 64
MAX_DELTA = 2**31
"""Larger numbers of seconds mean this one (RFC 9111 1.2.2)."""
MAX_REMEMBERED = 1024
_MAX_REMEMBERED_SIZE = 256

STALE = 0
"""What a lifetime that cannot be read comes to."""

_DIRECTIVE = re.compile(
    rb'[ \t]*+([!#$%&\'*+.^_`|~0-9A-Za-z-]++)(?:=(?:"((?:[^"\\]|\\.)*+)"|([!#$%&\'*+.^_`|~0-9A-Za-z-]*+)))?[ \t]*+(,|\Z)', re.S
)
_REST = re.compile(rb'(?:"(?:[^"\\]|\\.)*+"|[^,"])*+', re.S)
"""What cannot be read, up to the next comma outside of quotes, or to a quote that never ends."""
_LEADING_NAME = re.compile(rb"[ \t]*+([!#$%&'*+.^_`|~0-9A-Za-z-]*+)")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++")


@dataclass(frozen=True, slots=True)
class Directives:
    """What Cache-Control says. Seconds are whole numbers; None: not said; what is said and unreadable is `STALE`."""

    no_store: bool = False
    no_cache: bool = False
    private: bool = False
    public: bool = False
    must_revalidate: bool = False
    proxy_revalidate: bool = False
    must_understand: bool = False
    only_if_cached: bool = False
    max_age: int | None = None
    s_maxage: int | None = None
    stale_while_revalidate: int | None = None
    stale_if_error: int | None = None
    min_fresh: int | None = None
    max_stale: int | None = None
    """Of a request; without a value `MAX_DELTA`."""
    not_stored: frozenset[bytes] = frozenset()
    """Lower-case names of fields in ``no-cache="…"`` and ``private="…"``: these are not kept, the rest is."""


NOTHING = Directives()
UNREADABLE = Directives(no_store=True)

_WORDS = {
    b"no-store": "no_store", b"public": "public", b"must-revalidate": "must_revalidate", b"proxy-revalidate": "proxy_revalidate",
    b"must-understand": "must_understand", b"only-if-cached": "only_if_cached",
}  # fmt: skip
_SECONDS = {
    b"max-age": "max_age", b"s-maxage": "s_maxage", b"stale-while-revalidate": "stale_while_revalidate",
    b"stale-if-error": "stale_if_error", b"min-fresh": "min_fresh", b"max-stale": "max_stale",
}  # fmt: skip
_WITH_FIELDS = {b"no-cache": "no_cache", b"private": "private"}
_RESTRICTING = {b"no-store", b"must-revalidate", b"proxy-revalidate"}

_directives: dict[bytes, Directives] = {}


def directives(head: Head) -> Directives:
    """What the Cache-Control fields of a message say."""
    value = head.get(b"cache-control")
    if value is None:
        return NOTHING
    found = _directives.get(value)
    if found is not None and len(several := head.get_all(b"cache-control")) == 1:
        return found
    several = head.get_all(b"cache-control")
    return parse(several[0] if len(several) == 1 else b",".join(several))


def parse(value: bytes) -> Directives:
    """What one Cache-Control value says."""
    found = _directives.get(value)
    if found is None:
        found = _parse(value)
        if len(value) <= _MAX_REMEMBERED_SIZE:
            if len(_directives) >= MAX_REMEMBERED:
                _directives.clear()
            _directives[value] = found
    return found


def _parse(value: bytes) -> Directives:
    if len(value) > MAX_VALUE:
        return UNREADABLE
    words: dict[str, bool] = {}
    numbers: dict[str, int] = {}
    not_stored: set[bytes] = set()
    at, count = 0, 0
    while at < len(value):
        count += 1
        if count > MAX_DIRECTIVES:
            return UNREADABLE
        match = _DIRECTIVE.match(value, at)
        if match is None:
            at = _read_broken(value, at, words, numbers)
            if value[at - 1 : at] == b'"':  # nobody knows where it was meant to end, and what it hides
                return UNREADABLE
            continue
        at = match.end()
        name = match[1].lower()
        quoted = match[2]
        argument = match[3] if quoted is None else quoted
        word, number = _WORDS.get(name), _SECONDS.get(name)
        if word is not None:
            if argument is None or name in _RESTRICTING:  # public=x permits nothing, no-store=x forbids all the same
                words[word] = True
        elif number is not None:
            seconds = _seconds(argument) if argument is not None or number != "max_stale" else MAX_DELTA
            numbers[number] = seconds if numbers.get(number, seconds) == seconds else STALE
        elif name in _WITH_FIELDS:
            names = _field_names(argument)
            if names:
                not_stored |= names
            else:
                words[_WITH_FIELDS[name]] = True
    return Directives(**words, **numbers, not_stored=frozenset(not_stored))  # type: ignore[arg-type]


def _read_broken(value: bytes, at: int, words: dict[str, bool], numbers: dict[str, int]) -> int:
    """Takes a directive that cannot be read for the strictest thing it may have meant. Returns where the next one begins."""
    leading = _LEADING_NAME.match(value, at)
    name = leading[1].lower() if leading is not None else b""
    if name in _RESTRICTING:
        words[_WORDS[name]] = True
    elif name in _WITH_FIELDS:
        words[_WITH_FIELDS[name]] = True
    elif name in _SECONDS:
        numbers[_SECONDS[name]] = STALE
    rest = _REST.match(value, at)
    return (at if rest is None else rest.end()) + 1


def _seconds(argument: bytes | None) -> int:
    if not argument or not argument.isdigit():
        return STALE
    return MAX_DELTA if len(argument) > 10 and argument.lstrip(b"0")[10:] else min(int(argument[-20:]), MAX_DELTA)


def _field_names(argument: bytes | None) -> set[bytes] | None:
    """Lower-case names in the argument of no-cache or private; None: there is none, or it is not a list of names."""
    if argument is None:
        return None
    names = {part.strip(b" \t") for part in argument.lower().split(b",")} - {b""}
    return names if all(_TOKEN.fullmatch(name) for name in names) else None


_TARGETED = re.compile(
    rb"([a-z*][a-z0-9_.*-]*+)"  # key
    rb'(?:=(?:(-?[0-9]{1,12}\.[0-9]{1,3})|(-?[0-9]{1,15})|("(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+")|([A-Za-z*][!#$%&\'*+.^_`|~0-9A-Za-z:/-]*+)|\?([01])'
    rb"|:([A-Za-z0-9+/=]*+):))?"
    rb'(?:;[ ]*+[a-z*][a-z0-9_.*-]*+(?:=(?:-?[0-9]{1,12}(?:\.[0-9]{1,3})?|"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+"'
    rb"|[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*+|\?[01]|:[A-Za-z0-9+/=]*+:))?)*+"
)
"""A member of a structured fields dictionary (RFC 9651 3.2, 4.2.2) but for inner lists, which no directive takes."""
_BETWEEN = re.compile(rb"[ \t]*+,[ \t]*+")

_OTHER = object()
"""A value of a type that no directive takes."""

_targeted: dict[bytes, Directives | None] = {}


def targeted(head: Head) -> Directives | None:
    """What CDN-Cache-Control says (RFC 9213); None: absent, empty or not a valid structured dictionary, so that Cache-Control counts."""
    value = head.get(b"cdn-cache-control")
    if value is None:
        return None
    several = head.get_all(b"cdn-cache-control")
    if len(several) > 1:
        value = b", ".join(several)
    if value in _targeted:
        return _targeted[value]
    found = _parse_targeted(value)
    if len(value) <= _MAX_REMEMBERED_SIZE:
        if len(_targeted) >= MAX_REMEMBERED:
            _targeted.clear()
        _targeted[value] = found
    return found


def _parse_targeted(value: bytes) -> Directives | None:
    value = value.strip(b" ")
    if not value or len(value) > MAX_VALUE:
        return None
    members: dict[bytes, object] = {}
    at = 0
    while True:
        match = _TARGETED.match(value, at)
        if match is None or len(members) >= MAX_DIRECTIVES:
            return None
        decimal, integer, quoted, token, boolean, binary = match.group(2, 3, 4, 5, 6, 7)
        if integer is not None:
            members[match[1]] = int(integer)
        elif boolean is not None:
            members[match[1]] = boolean == b"1"
        else:
            text = token if quoted is None else quoted
            members[match[1]] = text if text is not None else _OTHER if decimal is not None or binary is not None else True
        at = match.end()
        if at == len(value):
            break
        between = _BETWEEN.match(value, at)
        if between is None or between.end() == len(value):
            return None
        at = between.end()
    return _of_members(members)


def _of_members(members: dict[bytes, object]) -> Directives | None:
    """The directives of a valid dictionary; None when one of those we know has a value of the wrong type (RFC 9213 2.1)."""
    words: dict[str, bool] = {}
    numbers: dict[str, int] = {}
    not_stored: set[bytes] = set()
    for name, value in members.items():
        word, number = _WORDS.get(name), _SECONDS.get(name)
        if word is not None:
            if not isinstance(value, bool):
                return None
            words[word] = value
        elif number is not None:
            if type(value) is not int:
                return None
            numbers[number] = min(value, MAX_DELTA) if value >= 0 else STALE
        elif name in _WITH_FIELDS:
            if isinstance(value, bool):
                words[_WITH_FIELDS[name]] = value
            else:
                names = _field_names(value.strip(b'"')) if isinstance(value, bytes) else None
                if not names:
                    return None
                not_stored |= names
    return Directives(**words, **numbers, not_stored=frozenset(not_stored))  # type: ignore[arg-type]


def age(head: Head) -> int:
    """Seconds the Age field says: its first member when it is a whole number, else 0 (RFC 9111 5.1)."""
    value = head.get(b"age")
    if value is None:
        return 0
    first = value.partition(b",")[0].strip(b" \t")
    return _seconds(first)


_MONTHS = {
    month: number
    for number, month in enumerate((b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"), 1)
}
_DATE = re.compile(
    rb"(?:(?:mon|tue|wed|thu|fri|sat|sun), ([0-9]{2}) ([a-z]{3}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) gmt"
    rb"|(?:mon|tues|wednes|thurs|fri|satur|sun)day, ([0-9]{2})-([a-z]{3})-([0-9]{2}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) gmt"
    rb"|(?:mon|tue|wed|thu|fri|sat|sun) ([a-z]{3}) ([ 0-9][0-9]) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([0-9]{4}))"
)
_DAYS = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_LATE_CENTURY = 70

_dates: dict[bytes, float | None] = {}


def http_date(value: bytes) -> float | None:
    """Seconds since the epoch of a date in one of the three forms of RFC 9110 5.6.7; None: it is none."""
    if value in _dates:
        return _dates[value]
    if len(value) > 40:
        return None
    found = _parse_date(value.lower())
    if len(_dates) >= MAX_REMEMBERED:
        _dates.clear()
    _dates[value] = found
    return found


def _parse_date(value: bytes) -> float | None:
    match = _DATE.fullmatch(value)
    if match is None:
        return None
    parts = match.groups()
    if parts[0] is not None:
        day, month, year, hour, minute, second = parts[:6]
    elif parts[6] is not None:
        day, month, year, hour, minute, second = parts[6:12]
    else:
        month, day, hour, minute, second, year = parts[12:]
    number = _MONTHS.get(month)
    if number is None:
        return None
    years = int(year)
    if len(year) == 2:
        years += 1900 if years >= _LATE_CENTURY else 2000
    days, hours, minutes, seconds = int(day), int(hour), int(minute), int(second)
    if not 1 <= days <= _DAYS[number] or hours > 23 or minutes > 59 or seconds > 60 or years < 1601:
        return None
    return float(timegm((years, number, days, hours, minutes, seconds)))


_WEEKDAYS = (b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed")
_MONTH_NAMES = (b"", b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")


def format_date(seconds: float) -> bytes:
    """The IMF-fixdate of a moment: what a missing Date becomes."""
    when = gmtime(seconds)
    return b"%b, %02d %b %04d %02d:%02d:%02d GMT" % (
        _WEEKDAYS[int(seconds // 86_400) % 7], when.tm_mday, _MONTH_NAMES[when.tm_mon], when.tm_year, when.tm_hour, when.tm_min,
        when.tm_sec,
    )  # fmt: skip


def expires(head: Head) -> float | None:
    """When Expires says it ends; 0.0 when the field is there and cannot be read, or says different things; None: absent."""
    value = head.get(b"expires")
    if value is None:
        return None
    several = head.get_all(b"expires")
    if len(several) > 1 and len(set(several)) > 1:
        return 0.0
    found = http_date(value)
    return 0.0 if found is None else found
