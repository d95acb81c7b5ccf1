"""Purges: which kept answers are not to be given any more, although they are still there.

How it works
    Nothing is searched and nothing deleted: a purge is a fact with a time, and an answer that was asked for before that time and is covered
    by it is a miss (or, after a soft purge, stale). So a purge takes effect everywhere as soon as each worker knows of it, on whatever
    tier an answer lies, and for answers that are still on their way. An entry remembers how many purges it was held against: with none
    since, a hit pays one comparison. This is what Varnish calls a ban.

    `spelled` writes down what somebody wants to purge as `entries.url_of` writes down what was asked for.

    Their number is bounded. When there are too many, the oldest are replaced by one that covers everything asked for until then: more
    misses than needed, never an answer too many.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from twistedproxy.http.cache.entries import Entry, url_of
from twistedproxy.http.cache.policy import MAX_TAG
from twistedproxy.http.paths import read_target
from twistedproxy.http.refusals import REFUSALS

MOST = 1000
MAX_WHAT = 8192
"""Characters of a URL or a prefix."""
KEPT_S = 30 * 86400.0
"""A purge is forgotten after so long; what it covered is useless by then, since nothing is kept unvalidated for longer."""


class Purge(NamedTuple):
    """One purge: of a URL, of all that begin with a prefix, of all with a tag, or ``all``."""

    by: str
    what: str
    at: float
    """Wall-clock seconds."""
    is_soft: bool = False


class Verdict(enum.IntEnum):
    """What purges say of an entry."""

    GOOD = 0
    STALE = 1
    GONE = 2


class Purges:
    """All purges that count, in the order in which they came. Of two for the same thing the later one is enough."""

    def __init__(self) -> None:
        self._purges: dict[tuple[str, str, bool], Purge] = {}
        self.count = 0
        """Of all there ever were; entries remember it."""
        self.latest = 0.0
        """When the latest was: what was asked for after that is covered by none."""

    def __len__(self) -> int:
        return len(self._purges)

    def __iter__(self) -> Iterator[Purge]:
        return iter(self._purges.values())

    def copy(self) -> Purges:
        copied = Purges()
        copied._purges = dict(self._purges)
        copied.count = self.count
        copied.latest = self.latest
        return copied

    def add(self, purge: Purge) -> None:
        """Nothing happens when it is known: whoever is told everything anew has not been told of new purges."""
        purges = self._purges
        key = (purge.by, purge.what, purge.is_soft)
        before = purges.get(key)
        if before is not None:
            if before.at >= purge.at:
                return
            del purges[key]  # it goes to the end, among those that came last
        if purge.by == "all" and not purge.is_soft:
            purges = self._purges = {key: other for key, other in purges.items() if other.at > purge.at}
        purges[key] = purge
        self.count += 1
        self.latest = max(self.latest, purge.at)
        if len(purges) > MOST:
            old = list(islice(purges, len(purges) // 2))
            latest = max(purges.pop(key).at for key in old)
            self.add(Purge("all", "", latest))

    def forget_before(self, moment: float) -> None:
        """Drop those from before `moment`."""
        if any(purge.at < moment for purge in self):
            self._purges = {key: purge for key, purge in self._purges.items() if purge.at >= moment}

    def verdict(self, entry: Entry) -> Verdict:
        """What is to be thought of `entry`; remembers that it was looked at."""
        worst = Verdict.GOOD
        # The latest ones: as many as have come since, or more where one took the place of another.
        for purge in islice(reversed(self._purges.values()), self.count - entry.purges_seen):
            if entry.asked_at <= purge.at and covers(purge, entry.url, entry.stored.tags):
                if not purge.is_soft:
                    return Verdict.GONE
                worst = Verdict.STALE
        if worst is Verdict.GOOD:
            entry.purges_seen = self.count
        return worst


def covers(purge: Purge, url: bytes, tags: tuple[bytes, ...] | None) -> bool:
    """Whether it is a purge of this; without `tags` nobody knows yet, and any may be among them."""
    if purge.by == "url":
        return url == purge.what.encode()
    if purge.by == "prefix":
        return url.startswith(purge.what.encode())
    if purge.by == "tag":
        return tags is None or purge.what.encode() in tags
    return True


_NO_TAG = re.compile(r"[\x00-\x1f\x7f,]|^ | $")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_BLANK = re.compile(rb"[\x00-\x20\x7f]")


def spelled(by: str, what: str) -> str:
    """`what` in the one spelling that entries have, so that it is found however it is written. ValueError says what is allowed."""
    if by == "tag":
        if not what or _NO_TAG.search(what) or len(what.encode("utf-8", "replace")) > MAX_TAG:
            raise ValueError(f"a tag has 1 to {MAX_TAG} bytes, without commas, control characters and spaces around it")
        return what
    if by == "all":
        return ""
    return _spelled_url(what, is_prefix=by == "prefix")


def _spelled_url(text: str, is_prefix: bool) -> str:
    example = "https://www.example.com/images/" if is_prefix else "https://www.example.com/images/a.png?size=2"
    if len(text) > MAX_WHAT:
        raise ValueError(f"it has {len(text)} characters; at most {MAX_WHAT} are allowed")
    data = _NOT_ASCII.sub(lambda found: b"%%%02X" % found[0][0], text.encode("utf-8", "surrogatepass"))
    scheme, mark, rest = data.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https") or _BLANK.search(data):
        raise ValueError(f"it must be a whole URL without spaces, such as {example}")
    before, asks, _ = rest.partition(b"?")
    if is_prefix and not asks:
        # The path may end in the middle of a segment, where . and .. may be the beginning of a name.
        data += b"x" if b"/" in before else b"/x"
    target = read_target(b"GET", data)
    if isinstance(target, str):
        raise ValueError(f"no kept answer has such a URL: {REFUSALS[target][2]}; write it as in {example}")
    authority, path, query = target
    assert authority is not None
    if is_prefix:
        url = url_of(scheme.lower(), authority, path, b"")
        url = url + b"?" + query if asks else url[:-1]
    else:
        url = url_of(scheme.lower(), authority, path, query)
    return url.decode("ascii")
