"""The TCP check."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.probes.dialogue import Finding
from twistedproxy.probes.tcp import TcpCheck


class TcpCheckTest(SynchronousTestCase):
    def test_a_connection_is_enough(self) -> None:
        """A server that accepts is up; nothing is said to it."""
        check = TcpCheck()
        self.assertEqual(check.begin(), Finding(True, "connected"))
        self.assertEqual(check.outgoing, b"")
