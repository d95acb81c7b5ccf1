"""Short words between the workers of one machine: each has a datagram socket in a directory that only this user may enter.

How it works
    A word is one datagram to the socket that bears the slot of its addressee. Nothing is queued here: a word that cannot be delivered at
    once (nobody there, its queue full) is not delivered, and `ring` says so. Whoever relies on an answer has a deadline of its own.

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

_log = Logger(namespace="doorbell")


@implementer(IReadDescriptor)
class Doorbell:
    """This worker's own bell, and how to ring the others'. `heard` is called with each word."""

    def __init__(self, reactor: Any, directory: str, slot: int, heard: Callable[[bytes], None]) -> None:
        """Raises OSError when the directory cannot be used."""
        self._reactor = reactor
        self._heard = heard
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

    def ring(self, slot: int, word: bytes) -> bool:
        """Say `word` to the worker of `slot`; False when it was not delivered."""
        try:
            self._sock.sendto(word, self._path(slot))
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self._reactor.removeReader(self)
        self._close()

    def _close(self) -> None:
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
            self._heard(word)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives up on it: an exception came out of `heard`."""
        _log.failure("the doorbell failed and is not heard any more", reason)
        self._close()
