"""The words between supervisor and worker: AMP over a unix socketpair that also carries file descriptors.

AMP values end at 65,535 bytes, so whatever may grow (models, statistics) is sent ahead as numbered `Chunk`s of one
*transfer* and then named by its number: `Channel.send_value` and `Channel.take_value`.

    supervisor ─▶ worker    Configure · AdoptSocket · ReturnSocket · Apply · Observe · Collect · Ask · ReopenLogs · Drain
    worker ─▶ supervisor    Hello · Heartbeat · Statistics · Failures

Revisions: `Configure` and `Apply` answer with the revision the worker is at when it is done. What cannot be done is answered with
`NotDone`, so that the channel lives on; any other exception in a responder closes it, which is AMP's way and the end of the worker.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure

CHUNK_BYTES = 60_000
MAX_TRANSFER_BYTES = 64 * 1024 * 1024
MAX_OPEN_TRANSFERS = 16
"""A transfer is followed by its command at once, so there is seldom more than one."""


class NotDone(Exception):
    """The other side could not do what a command asks; says why. A supervisor answers it with the whole model."""


NOT_DONE: dict[type[Exception], bytes] = {NotDone: b"NOT_DONE"}


class Chunk(amp.Command):
    requiresAnswer = False
    arguments = [(b"transfer", amp.Integer()), (b"index", amp.Integer()), (b"count", amp.Integer()), (b"data", amp.String())]


class Configure(amp.Command):
    """The whole truth for a worker: ``{"model", "revision", "observations", "slot", "slots", "listeners"}`` in the transfer."""

    arguments = [(b"transfer", amp.Integer())]
    response = [(b"revision", amp.Integer())]
    errors = NOT_DONE


class AdoptSocket(amp.Command):
    """Accept on this listening socket: number `index` of the listener whose configured address is `listener`."""

    arguments = [(b"listener", amp.Unicode()), (b"index", amp.Integer()), (b"descriptor", amp.Descriptor())]
    errors = NOT_DONE


class ReturnSocket(amp.Command):
    """Stop accepting on it: its own worker is back. The socket itself lives on in the supervisor."""

    arguments = [(b"listener", amp.Unicode()), (b"index", amp.Integer())]


class Apply(amp.Command):
    """Apply one change (JSON of `config.changes`, in the transfer) and be at `revision`."""

    arguments = [(b"revision", amp.Integer()), (b"transfer", amp.Integer())]
    response = [(b"revision", amp.Integer())]
    errors = NOT_DONE


class Observe(amp.Command):
    """Facts of the moment: a JSON list of observations in the transfer."""

    arguments = [(b"transfer", amp.Integer())]
    errors = NOT_DONE


class Collect(amp.Command):
    """Send `Statistics` now; answered after they were sent."""


class Ask(amp.Command):
    """A question that only the worker can answer: JSON in the transfer, the answer in the one that comes back."""

    arguments = [(b"transfer", amp.Integer())]
    response = [(b"transfer", amp.Integer())]
    errors = NOT_DONE


class ReopenLogs(amp.Command):
    pass


class Drain(amp.Command):
    """Stop accepting, finish what is open within `drain_http` and `drain_tcp`, then exit 0."""


class Hello(amp.Command):
    """First word of a worker."""

    arguments = [(b"pid", amp.Integer()), (b"head_codec", amp.Unicode())]


class Heartbeat(amp.Command):
    """Once a second; a worker silent for 5 s is killed and replaced."""

    arguments = [
        (b"revision", amp.Integer()),
        (b"connections", amp.Integer()),
        (b"requests", amp.Integer()),
        (b"lag_seconds", amp.Float()),
    ]


class Statistics(amp.Command):
    """`observability.metrics.Metrics.to_plain` as JSON in the transfer; running totals, once a second and at `Collect`."""

    arguments = [(b"transfer", amp.Integer())]


class Failures(amp.Command):
    """Passive failures since the last word, within 100 ms: a JSON list of [pool, server, failures, requests] in the transfer."""

    arguments = [(b"transfer", amp.Integer())]


class Channel(amp.AMP):
    """Either end of the control channel.

    Responders are methods of a subclass, or of `locator`; a command with a descriptor needs the former, since AMP asks the
    object that has the responder for it.
    """

    def __init__(self, locator: amp.CommandLocator | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._locator = locator
        self._next_transfer = 0
        self._partial: dict[int, list[bytes | None]] = {}

    def makeConnection(self, transport: Any) -> None:
        """Without AMP's line in the log for every channel; who owns it says what an operator needs to know."""
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None

    def locateResponder(self, name: bytes) -> Any:
        own = super().locateResponder(name)  # type: ignore[no-untyped-call]
        return self._locator.locateResponder(name) if own is None and self._locator is not None else own

    def send_value(self, value: Any) -> int:
        """Send a JSON-able value ahead; returns the transfer's number for the command that follows at once."""
        data = json.dumps(value, separators=(",", ":")).encode()
        if len(data) > MAX_TRANSFER_BYTES:
            raise ValueError(f"a value of {len(data)} bytes is over the channel's limit of {MAX_TRANSFER_BYTES}")
        self._next_transfer += 1
        pieces = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
        for index, piece in enumerate(pieces):
            self.callRemote(Chunk, transfer=self._next_transfer, index=index, count=len(pieces), data=piece)  # type: ignore[no-untyped-call]
        return self._next_transfer

    def take_value(self, transfer: int) -> Any:
        """The value the other side sent as `transfer`, once; `ValueError` when a piece is missing."""
        pieces = self._partial.pop(transfer, None)
        if pieces is None or None in pieces:
            raise ValueError(f"transfer {transfer} is incomplete")
        return json.loads(b"".join(p for p in pieces if p is not None))

    @Chunk.responder
    def _chunk(self, transfer: int, index: int, count: int, data: bytes) -> dict[str, Any]:
        if not 0 <= index < count <= MAX_TRANSFER_BYTES // CHUNK_BYTES + 1:
            raise ValueError(f"chunk {index} of {count}")
        pieces = self._partial.get(transfer)
        if pieces is None:
            if len(self._partial) >= MAX_OPEN_TRANSFERS:
                raise ValueError(f"{MAX_OPEN_TRANSFERS} transfers are open and none was taken")
            pieces = self._partial[transfer] = [None] * count
        if len(pieces) != count or pieces[index] is not None:
            raise ValueError(f"chunk {index} of {count} contradicts what came before")
        pieces[index] = data
        return {}
