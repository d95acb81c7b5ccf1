"""The JSON shapes are the contract's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Health

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SERVER = "/api/v1/pools/web/servers/127.0.0.1:9001"


class Views(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def test_status_has_the_contract_s_shape(self) -> None:
        """A script that reads the sample in the contract can read the real answer."""
        answer = self.admin.ask("GET", "/api/v1/status", role="view")
        self.assertEqual(answer.status, 200)
        self.assertEqual(
            answer.json,
            {
                "version": "0.1.0", "revision": 1, "uptime_seconds": 12.5, "config_file": "revproxy.toml", "head_codec": "native",
                "workers": [
                    {"slot": 0, "pid": 4711, "state": "serving", "revision": 1, "connections": 17, "requests": 1042, "lag_seconds": 0.0004},
                    {"slot": 1, "pid": 4712, "state": "starting", "revision": 0, "connections": 0, "requests": 0, "lag_seconds": 0.0},
                ],
                "listeners": [
                    {"address": "127.0.0.1:8080", "kind": "http", "connections": 17},
                    {"address": "127.0.0.1:6432", "kind": "tcp", "connections": 0},
                ],
                "certificates": [],
                "upgrade": None,
                "cache": None,
            },
        )  # fmt: skip
        self.assertEqual(answer.headers["ETag"], '"1"')

    def test_pool_has_the_contract_s_shape(self) -> None:
        """The whole truth about a server: weights, state, health, counters and share."""
        self.admin.set_health("127.0.0.1:9001", Health.UP, "200 in 1.2 ms")
        answer = self.admin.ask("GET", "/api/v1/pools/web", role="view").json
        self.assertEqual((answer["name"], answer["balance"], answer["queue"]), ("web", "round_robin", {"waiting": 5, "size": 128}))
        self.assertEqual(
            answer["servers"][0],
            {
                "address": "127.0.0.1:9001", "weight": {"configured": 3, "set": None, "effective": 3}, "state": "ready", "backup": False,
                "health": {"status": "up", "reason": "200 in 1.2 ms", "since": "2026-11-21T18:00:00Z"}, "ejected": False,
                "max_connections": 256, "connections": 2, "requests": 1042, "failures": 3, "share": 0.75,
            },
        )  # fmt: skip
        self.assertEqual(answer["servers"][1]["health"], {"status": "unknown", "reason": "not checked yet", "since": None})

    def test_shares_follow_availability(self) -> None:
        """Down, drained, ejected and unresolved servers have no share, and backups have one only when no primary is left."""

        def shares() -> list[float]:
            return [server["share"] for server in self.admin.ask("GET", "/api/v1/pools/web").json["servers"]]

        self.assertEqual(shares(), [0.75, 0.25, 0.0])
        self.admin.set_health("127.0.0.1:9001", Health.DOWN, "refused")
        self.assertEqual(shares(), [0.0, 1.0, 0.0])
        self.admin.control.ejected = frozenset({("web", "127.0.0.1:9002")})
        self.assertEqual(shares(), [0.0, 0.0, 1.0])
        self.admin.control.unresolved = frozenset({("web", "127.0.0.1:9009")})
        self.assertEqual(shares(), [0.0, 0.0, 0.0])
        self.admin.control.unresolved = frozenset()
        self.admin.ask("PATCH", "/api/v1/pools/web/servers/127.0.0.1:9009", {"state": "drain"})
        self.assertEqual(shares(), [0.0, 0.0, 0.0])

    def test_config_shows_no_secret(self) -> None:
        """The effective configuration can be shown around: no token, no digest of one."""
        answer = self.admin.ask("GET", "/api/v1/config", role="view")
        self.assertEqual(answer.json["admin"]["tokens"], {"grafana": {"role": "view"}})
        self.assertEqual(answer.json["pools"]["web"]["health"], "GET ${env:SECRET_PATH}")
