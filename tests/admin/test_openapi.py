"""The description is true."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from openapi_spec_validator import validate
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin.operations import OPERATIONS

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SERVER = "/api/v1/pools/web/servers/127.0.0.1:9001"


class OpenApi(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def test_openapi_is_valid_and_complete(self) -> None:
        """The description is valid OpenAPI 3.1 and has exactly the operations that are served."""
        document = self.admin.ask("GET", "/api/v1/openapi.json", role=None).json
        validate(document)
        described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        self.assertEqual(described, {(operation.method, operation.path) for operation in OPERATIONS})
