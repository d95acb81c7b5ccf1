"""The page opens for everybody and can do no harm."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin.operations import OPERATIONS

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SERVER = "/api/v1/pools/web/servers/127.0.0.1:9001"


class Page(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def test_page_lists_operations_and_runs_no_script(self) -> None:
        """The page opens without a token, under a policy that lets no script run."""
        answer = self.admin.ask("GET", "/", role=None)
        self.assertEqual(answer.status, 200)
        for operation in OPERATIONS:
            self.assertIn(operation.path, answer.body.decode())
        self.assertIn("default-src 'none'", answer.headers["Content-Security-Policy"])
        self.assertNotIn("unsafe", answer.headers["Content-Security-Policy"])
        self.assertEqual(self.admin.ask("GET", "/assets/page.css", role=None).headers["Content-Type"], "text/css; charset=utf-8")
