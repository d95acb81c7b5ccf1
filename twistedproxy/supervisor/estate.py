"""What a supervisor passes to its successor in an upgrade in place: descriptors, what they are, and the wire on which the two agree.

How it works
    The successor is spawned with one descriptor of a socket pair, whose number is in the environment variable ``REVPROXY_ESTATE``,
    and with a copy of every descriptor it shall have. The first line on the wire says what they are (`Estate`). The words that follow
    are JSON lines too:

    successor → old   ``ready`` its workers serve, on no socket yet · ``caught_up`` it has read the journal to its end ·
                      ``serving`` its workers accept · ``failed`` why not · ``cut`` end what is still open
    old → successor   ``take_over`` nothing more is journaled here, with all that is known of the servers · ``yours`` accept now ·
                      ``main`` the service manager knows you · ``draining`` how many connections are left, once a second

    Both sides may be different versions: a word that is not known is passed over, and what cannot be read is done without.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.errors import one_line

VARIABLE = "REVPROXY_ESTATE"
PATIENCE_S = 10.0
"""The first line is written before the successor is spawned, or right after."""
MAX_LINE_BYTES = 64 * 1024 * 1024
FORMAT = 1


@dataclass(frozen=True, slots=True)
class BoundListener:
    """One listen address with its sockets."""

    configured: str
    address: str
    """As bound."""
    descriptors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Estate:
    """What there is to take over. Numbers are descriptors, in the process that has them."""

    pid: int
    """Of the old supervisor."""
    version: str
    state_dir: str
    lock: int
    board: int
    rows: Mapping[str, int]
    """Rows of the scoreboard by name."""
    listeners: tuple[BoundListener, ...]
    handed: Mapping[str, int]
    """Sockets that the service manager had bound, by address."""
    admin_address: str
    admin: int
    """-1: no admin side on TCP."""
    local: int
    """The admin side's unix socket."""
    stderr: int
    """What the old one has as standard error: the successor's own is read by the old one until it serves."""
    pid_file: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    """Environment of the service manager: where to tell it how we are."""

    @property
    def descriptors(self) -> list[int]:
        found = [fd for each in self.listeners for fd in each.descriptors]
        found += [*self.handed.values(), self.lock, self.board, self.admin, self.local, self.stderr]
        return [fd for fd in found if fd >= 0]

    def renumbered(self, numbers: Mapping[int, int]) -> Estate:
        """The same with other descriptors; -1 stays."""
        new = {-1: -1, **numbers}
        return Estate(
            self.pid, self.version, self.state_dir, new[self.lock], new[self.board], self.rows,
            tuple(BoundListener(each.configured, each.address, tuple(new[fd] for fd in each.descriptors)) for each in self.listeners),
            {address: new[fd] for address, fd in self.handed.items()},
            self.admin_address, new[self.admin], new[self.local], new[self.stderr], self.pid_file, self.words,
        )  # fmt: skip

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        plain["listeners"] = [[each.configured, each.address, list(each.descriptors)] for each in self.listeners]
        return {"estate": FORMAT, **plain}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Estate:
        """`ValueError` for one that this version cannot read."""
        try:
            if plain["estate"] != FORMAT:
                raise ValueError(f"format {plain['estate']!r}; this version reads {FORMAT}")
            known = {name: plain[name] for name in cls.__slots__}
            known["listeners"] = tuple(BoundListener(configured, address, tuple(fds)) for configured, address, fds in plain["listeners"])
            return cls(**known)
        except (KeyError, TypeError) as e:
            raise ValueError(f"the old version passes something else: no {e}") from None


def inherited(environ: MutableMapping[str, str]) -> tuple[socket.socket, Estate] | None:
    """The wire to the old supervisor and what it leaves; None for an ordinary start. `ValueError` when it makes no sense.

    The word is taken out of the environment, so that no child believes that it is the heir.
    """
    number = environ.pop(VARIABLE, "")
    if not number:
        return None
    wire = socket.socket(fileno=int(number))
    os.set_inheritable(wire.fileno(), False)
    wire.settimeout(PATIENCE_S)
    line = bytearray()
    try:
        while not line.endswith(b"\n"):
            data = wire.recv(65536)
            if not data:
                raise ValueError("the old supervisor is gone")
            line += data
    except TimeoutError:
        raise ValueError(f"the old supervisor said nothing for {PATIENCE_S:g} s") from None
    estate = Estate.from_plain(json.loads(line))
    for fd in estate.descriptors:
        os.set_inheritable(fd, False)
    return wire, estate


def passed_socket(fd: int) -> socket.socket:
    """A listening socket that another process accepts on too: it must not block for a moment, and `dup` alone would make it."""
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def tell_failure(wire: socket.socket, why: str) -> None:
    """Before there is a reactor: say why there will be no successor."""
    with contextlib.suppress(OSError):  # then the exit code has to say it
        wire.sendall(json.dumps({"failed": one_line(why)}).encode() + b"\n")


@implementer(IPushProducer)
class Wire(LineOnlyReceiver):
    """One end of the wire; `on_word` gets each line, `on_lost` is called once when the other side is gone."""

    is_behind = False
    """The other side does not read what was said: what can wait should."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE_BYTES
    log = Logger()

    def __init__(self, on_word: Callable[[Mapping[str, Any]], None], on_lost: Callable[[], None]) -> None:
        self._on_word = on_word
        self._on_lost = on_lost

    def lineReceived(self, line: bytes) -> None:
        try:
            word = json.loads(line)
            self._on_word(word)
        except Exception:
            self.log.failure("a word of the other supervisor is passed over")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_lost()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]

    def pauseProducing(self) -> None:
        self.is_behind = True

    def resumeProducing(self) -> None:
        self.is_behind = False

    def stopProducing(self) -> None:
        """The connection is lost, which `connectionLost` is told as well."""

    def say(self, word: Mapping[str, Any]) -> None:
        if self.transport is not None:
            self.transport.write(json.dumps(word).encode() + b"\n")

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def attach(self, reactor: Any, sock: socket.socket) -> None:
        """Speak over `sock`, which is closed here."""
        with sock:
            sock.setblocking(False)
            reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, _One(self))


class _One(ServerFactory):
    noisy = False

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def buildProtocol(self, addr: Any) -> Wire:
        return self._wire
