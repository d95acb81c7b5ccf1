"""The smallest check: does the server take a connection?"""

from __future__ import annotations

from twistedproxy.probes.dialogue import Dialogue, Finding


class TcpCheck(Dialogue):
    """Up as soon as the connection stands."""

    def begin(self) -> Finding:
        return Finding(True, "connected")
