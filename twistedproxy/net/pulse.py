"""How long a descriptor that is ready waits for its turn: the one figure that tells that an event loop has too much to do.

How it works
    On every tick of the owner an eventfd becomes readable and takes its place in the kernel's line of ready descriptors, behind all
    that are ready already. The time until it is read is what a request waits before anybody looks at it. The lateness of timers would
    say less: they are looked at between two batches of events, however many batches are waiting.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(IReadDescriptor)
class Pulse:
    """One of these per event loop."""

    __slots__ = ("_reactor", "_fd", "_sent", "_longest")

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._sent = -1.0
        """When the beat that is on its way was given; negative when none is."""
        self._longest = 0.0
        reactor.addReader(self)

    def beat(self) -> None:
        """Let the next one be on its way, unless one still is."""
        if self._sent < 0.0 and self._fd >= 0:
            self._sent = self._reactor.seconds()
            os.eventfd_write(self._fd, 1)

    def doRead(self) -> None:
        os.eventfd_read(self._fd)
        self._longest = max(self._longest, self._reactor.seconds() - self._sent)
        self._sent = -1.0

    def take_longest(self) -> float:
        """The longest wait since the last call, one that lasts still included; seconds."""
        longest, self._longest = self._longest, 0.0
        return longest if self._sent < 0.0 else max(longest, self._reactor.seconds() - self._sent)

    def stop(self) -> None:
        if self._fd >= 0:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "pulse"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends."""
