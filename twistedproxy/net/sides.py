"""The words a transport is described in: its states, the two halves of it, and those it talks to."""

from __future__ import annotations

import enum
from typing import Protocol

from twisted.python.failure import Failure


class Plain(enum.Enum):
    """An Enum whose members are hashed by identity, in C: looking one up in a transition table is on the path of each connection."""

    __hash__ = object.__hash__


class Receiver(Protocol):
    """What a transport tells its owner."""

    def dataReceived(self, data: bytes) -> None: ...
    def readConnectionLost(self) -> None: ...
    def connectionLost(self, reason: Failure) -> None: ...


class Producer(Protocol):
    """Whoever writes to a transport and can be asked to wait."""

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...


class State(Plain):
    """The life of the connection."""

    OPEN = "open"
    CLOSING = "closing"
    """Sending what is left, then closed."""
    LINGERING = "lingering"
    """Sending what is left and FIN, then reading and discarding, then closed."""
    CLOSED = "closed"


class ReadSide(Plain):
    FLOWING = "flowing"
    PAUSED = "paused"
    ENDED = "ended"
    """EOF was read, or nothing that comes is wanted any more."""


class WriteSide(Plain):
    OPEN = "open"
    FINISHING = "finishing"
    """FIN is sent once the buffer is empty."""
    FINISHED = "finished"
    FAILED = "failed"
    """A send failed: what is written is dropped."""


class PeerSeen(Plain):
    """What a look at the socket, without reading, says about the peer."""

    HAS_SENT = "has sent"
    """Bytes are waiting; an EOF may be behind them."""
    SILENT = "silent"
    ENDED = "ended"
    """EOF and not a byte before it."""
    RESET = "reset"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.OPEN: frozenset((State.CLOSING, State.LINGERING, State.CLOSED)),
    State.CLOSING: frozenset((State.CLOSED,)),
    State.LINGERING: frozenset((State.CLOSED,)),
    State.CLOSED: frozenset(),
}
