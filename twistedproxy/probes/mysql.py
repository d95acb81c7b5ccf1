"""Does a MySQL or MariaDB server take sessions? Reads its greeting and answers it politely; needs no account.

How it works
    The server speaks first: a greeting (protocol 10), or an error such as "Too many connections" or "Host is blocked", which is
    down. Leaving after the greeting would count as an interrupted handshake, and after ``max_connect_errors`` of them (default
    100) the server blocks this whole machine. So the handshake is finished with a user that need not exist: "access denied" is
    a complete answer and does not count towards that limit. The account can be created, without rights, to keep the server's log quiet.
"""

from __future__ import annotations

from twistedproxy.probes.dialogue import Dialogue, Finding
from twistedproxy.stream.mysql import NOBODY, packet

_QUIT = b"\1\0\0\0\1"
REFUSES_EVERYBODY = {1040, 1053, 1129, 1130, 1203}
"""Too many connections, shutting down, host blocked, host not allowed, too many connections of this user."""


class MysqlCheck(Dialogue):
    def __init__(self) -> None:
        super().__init__()
        self._is_greeted = False
        self._version = ""

    def read(self) -> Finding | None:
        while len(self.received) >= 4:
            length = int.from_bytes(self.received[:3], "little")
            sequence = self.received[3]
            if not 1 <= length <= self.max_bytes - 4:
                return Finding(False, "not a MySQL answer")
            if len(self.received) < 4 + length:
                return None
            payload = bytes(self.received[4 : 4 + length])
            del self.received[: 4 + length]
            finding = self._answered(payload, sequence) if self._is_greeted else self._greeted(payload, sequence)
            if finding is not None:
                return finding
        return None

    def _greeted(self, payload: bytes, sequence: int) -> Finding | None:
        if payload[0] == 0xFF:
            return Finding(False, _error(payload)[1])
        version, ended, rest = payload[1:].partition(b"\0")
        if payload[0] != 10 or not ended or len(rest) < 13:
            return Finding(False, "not a MySQL greeting (protocol 10)")
        self._is_greeted = True
        self._version = version.decode("latin-1")[:64]
        self.outgoing += packet(sequence + 1, NOBODY)
        return None

    def _answered(self, payload: bytes, sequence: int) -> Finding | None:
        if payload[0] == 0xFF:
            code, text = _error(payload)
            return Finding(False, text) if code in REFUSES_EVERYBODY else Finding(True, f"MySQL {self._version} answered")
        if payload[0] == 0xFE:  # AuthSwitchRequest: the empty password again, in the other plugin's form
            self.outgoing += packet(sequence + 1, b"")
            return None
        if payload[0] == 0:
            self.outgoing += _QUIT
        return Finding(True, f"MySQL {self._version} answered")

    def ended(self) -> Finding:
        return Finding(False, "closed the connection after its greeting") if self._is_greeted else super().ended()


def _error(payload: bytes) -> tuple[int, str]:
    code = int.from_bytes(payload[1:3], "little")
    text = payload[3:].decode("utf-8", "replace")
    if text.startswith("#"):
        text = text[6:]
    return code, f"{text[:200]} ({code})"
