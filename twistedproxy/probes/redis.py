"""Does a Redis server serve? ``PING``; a server that wants a password first lives as well, one that is loading does not."""

from __future__ import annotations

from twistedproxy.probes.dialogue import Dialogue, Finding

PING = b"*1\r\n$4\r\nPING\r\n"
_LIVES = ("NOAUTH", "NOPERM")
"""Errors of a server that would serve somebody with the right credentials."""


class RedisCheck(Dialogue):
    max_bytes = 1024

    def begin(self) -> None:
        self.outgoing += PING

    def read(self) -> Finding | None:
        line, ended, _ = bytes(self.received).partition(b"\r\n")
        if line[:1] not in (b"+", b"-"):
            return Finding(False, "not a Redis answer")
        if not ended:
            return None
        text = line[1:].decode("utf-8", "replace")
        if line == b"+PONG":
            return Finding(True, "PONG")
        word = text.split(" ", 1)[0]
        if line[:1] == b"-" and word in _LIVES:
            return Finding(True, f"Redis answered {word}")
        return Finding(False, text[:200])
