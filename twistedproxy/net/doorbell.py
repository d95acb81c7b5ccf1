"""Short words between the workers of one machine: each has a datagram socket in a directory that only this user may enter.

How it works
    A word is one datagram to the socket that bears the slot of its addressee. The kernel queues only a few for each: a word that finds the
    queue full is tried again a little later, for some seconds, and makes way for a later word about the same thing. Whoever relies on
    an answer has a deadline of its own.

    The sockets are named through a descriptor of the directory, since the path of a unix socket has at most 107 bytes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

MOST_BYTES = 2048
WORDS_PER_TURN = 64
AGAIN_S = 0.01
MOST_WAITING = 4096
TRIES = 500

_log = Logger(namespace="doorbell")


@implementer(IReadDescriptor)
class Doorbell:
    """This worker's own bell, and how to ring the others'. `heard` is called with each word."""

    def __init__(self, reactor: Any, directory: str, slot: int, heard: Callable[[bytes], None]) -> None:
        """Raises OSError when the directory cannot be used."""
        self._reactor = reactor
        self._heard = heard
        self._waiting: dict[tuple[int, bytes], tuple[bytes, int]] = {}
        """Words that were not taken yet, by whom and what they are for, with how often they may be tried."""
        self._again: Any = None
        self._is_open = True
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            try:
                os.unlink(str(slot), dir_fd=self._directory)  # of the worker that had this slot before
            except FileNotFoundError:
                pass
            self._sock.bind(self._path(slot))
        except OSError:
            self._close()
            raise
        reactor.addReader(self)

    def _path(self, slot: int) -> str:
        return f"/proc/self/fd/{self._directory}/{slot}"

    def ring(self, slot: int, word: bytes, about: bytes = b"") -> bool:
        """Say `word` to the worker of `slot`; False when there is no such worker."""
        if not self._is_open:
            return False
        place = (slot, about or word)
        if place not in self._waiting:
            said = self._say(slot, word)
            if said is not None:
                return said
            if len(self._waiting) >= MOST_WAITING:
                return False
        self._waiting[place] = (word, TRIES)
        if self._again is None:
            self._again = self._reactor.callLater(AGAIN_S, self._try_again)
        return True

    def _say(self, slot: int, word: bytes) -> bool | None:
        """None: not now."""
        try:
            self._sock.sendto(word, self._path(slot))
        except BlockingIOError:
            return None
        except OSError:
            return False
        return True

    def _try_again(self) -> None:
        self._again = None
        waiting, full = self._waiting, set()
        for place, (word, tries) in list(waiting.items()):
            if tries <= 1 or (place[0] not in full and self._say(place[0], word) is not None):
                del waiting[place]
            else:
                waiting[place] = (word, tries - 1)
                full.add(place[0])
        if waiting:
            self._again = self._reactor.callLater(AGAIN_S, self._try_again)

    def stop(self) -> None:
        if self._is_open:
            self._reactor.removeReader(self)
            self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            if self._again is not None:
                self._again.cancel()
            self._sock.close()
            os.close(self._directory)

    # What the reactor calls

    def fileno(self) -> int:
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return "doorbell"

    def doRead(self) -> None:
        for _ in range(WORDS_PER_TURN):
            try:
                word = self._sock.recv(MOST_BYTES)
            except OSError:  # nothing more
                return
            try:
                self._heard(word)
            except Exception:  # the next word may be understood
                _log.failure("a word from another worker led to an error")

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives up on it."""
        _log.failure("the doorbell failed and is not heard any more", reason)
        self._close()
