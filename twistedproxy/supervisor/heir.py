"""Upgrade in place, seen from the successor: get ready on no socket, take over, and tell how the old one finishes.

The other side, with the order of things, is `upgrade`; the words are listed in `estate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy import __version__
from twistedproxy.errors import one_line
from twistedproxy.supervisor.estate import Wire

ORPHANS_S = 6.0
"""Workers without supervisor end within 5 s."""


class House(Protocol):
    """What is moved into."""

    async def catch_up(self, legacy: Mapping[str, Any]) -> None:
        """The old one has closed the journal: read it to its end, bring the workers there."""
        ...

    def move_in(self) -> None:
        """All is ours now: pid file, lock, admin side; the workers accept."""
        ...

    def settled(self) -> None:
        """The service manager knows us."""
        ...

    def give_up(self) -> None:
        """We are not wanted: end, and touch nothing that is the old one's."""
        ...

    def elder(self, connections: int, statistics: Mapping[str, Any] | None) -> None:
        """How many connections the old one still has, and what it counted; None: it has left."""
        ...

    def orphaned(self) -> None:
        """The old one ended without farewell, and its workers have by now."""
        ...


class Heir:
    """The successor's end of the wire."""

    log = Logger()

    def __init__(self, reactor: Any, house: House) -> None:
        self._reactor = reactor
        self._house = house
        self.wire = Wire(self._heard, self._lost)
        self.has_moved_in = False
        self._is_settled = False
        self._last: Mapping[str, Any] = {}
        self.left: Deferred[None] = Deferred()
        """Fires when the old supervisor is no more."""

    def ready(self) -> None:
        """Our workers are there."""
        self.wire.say({"ready": __version__})

    def failed(self, why: str) -> None:
        self.wire.say({"failed": one_line(why)})

    def cut(self) -> None:
        """What the old one still has shall end at once."""
        self.wire.say({"cut": True})

    def _heard(self, word: Mapping[str, Any]) -> None:
        if "take_over" in word:
            Deferred.fromCoroutine(self._house.catch_up(word["take_over"])).addCallbacks(self._caught_up, self._cannot)
        elif "yours" in word:
            self._move_in()
        elif "main" in word:
            self._settle()
        elif "draining" in word:
            self._last = word
            self._house.elder(int(word["draining"]), word["statistics"])

    def _caught_up(self, _: None) -> None:
        self.wire.say({"caught_up": True})

    def _cannot(self, failure: Failure) -> None:
        self.log.failure("this version cannot take over", failure)
        self.failed(failure.getErrorMessage())

    def _move_in(self) -> None:
        self.has_moved_in = True
        try:
            self._house.move_in()
        except Exception as e:
            self.has_moved_in = False
            self.log.failure("this version cannot take over")
            self.failed(str(e))
            return
        self.wire.say({"serving": True})

    def _settle(self) -> None:
        if not self._is_settled:
            self._is_settled = True
            self._house.settled()

    def _lost(self) -> None:
        if not self.has_moved_in:
            self._house.give_up()
        else:
            self._settle()  # if it was killed before it could say that
            if self._last.get("draining", 1):
                # It ended before its connections did: killed. What its workers counted is cleared when they are gone.
                self._reactor.callLater(ORPHANS_S, self._house.orphaned)
        self._house.elder(0, None)
        self.left.callback(None)
