"""Does a PostgreSQL server take sessions? Asks as any client does (protocol 3.0, section 55.2.1), and needs no password.

How it works
    A StartupMessage is answered by an authentication request ('R') or an error ('E'). Both show a living server, except
    SQLSTATE 57P03: it is starting, stopping or recovering and takes nobody. The user is ``postgres``, since leaving during a
    password prompt, unlike naming a user that does not exist, writes nothing into the server's log.
"""

from __future__ import annotations

import struct

from twistedproxy.probes.dialogue import Dialogue, Finding

_PARAMETERS = b"user\0postgres\0database\0postgres\0application_name\0revproxy-health\0\0"
STARTUP = struct.pack("!ii", 8 + len(_PARAMETERS), 0x0003_0000) + _PARAMETERS
TERMINATE = b"X\0\0\0\4"
CANNOT_CONNECT_NOW = "57P03"
MAX_MESSAGE = 16 * 1024


class PostgresCheck(Dialogue):
    def begin(self) -> None:
        self.outgoing += STARTUP

    def read(self) -> Finding | None:
        if len(self.received) < 5:
            return None if self.received[0] in b"REv" else Finding(False, "not a PostgreSQL answer")
        kind, length = struct.unpack_from("!cI", self.received)
        if kind not in b"REv" or not 8 <= length <= MAX_MESSAGE:
            return Finding(False, "not a PostgreSQL answer")
        if len(self.received) < 1 + length:
            return None
        body = bytes(self.received[5 : 1 + length])
        if kind == b"v":  # NegotiateProtocolVersion: the answer proper follows
            del self.received[: 1 + length]
            return self.read() if self.received else None
        if kind == b"R":
            if body[:4] == b"\0\0\0\0":
                self.outgoing += TERMINATE
            return Finding(True, "PostgreSQL answered")
        return _judge(_fields(body))


def _fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse by their one-letter type."""
    return {part[:1].decode("latin-1"): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}


def _judge(fields: dict[str, str]) -> Finding:
    code, message = fields.get("C", ""), fields.get("M", "")[:200]
    if not code:
        return Finding(False, "not a PostgreSQL answer")
    if code == CANNOT_CONNECT_NOW:
        return Finding(False, f"{message} ({code})")
    return Finding(True, f"PostgreSQL answered {code}")
