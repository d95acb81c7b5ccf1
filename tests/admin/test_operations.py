"""The table of operations is consistent with itself."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin.api import Api
from twistedproxy.admin.operations import OPERATIONS, Field


class Table(SynchronousTestCase):
    def test_each_operation_is_named_once_and_has_its_handler(self) -> None:
        """Adding a row without a handler is noticed."""
        names = [operation.name for operation in OPERATIONS]
        self.assertEqual(len(set(names)), len(names))
        for name in names:
            self.assertTrue(callable(getattr(Api, name)))

    def test_only_reading_methods_come_without_a_body(self) -> None:
        """Whatever changes something takes a reason and needs a role."""
        for operation in OPERATIONS:
            self.assertEqual(operation.is_mutation, operation.method != "GET")
            if operation.body is not None:
                if operation.name != "check":
                    self.assertIn("reason", [field.name for field in operation.body])
                self.assertIsNotNone(operation.role)

    def test_fields_accept_what_their_schema_says(self) -> None:
        """true is no number, null only where it means something."""
        weight = Field("weight", int, "", is_nullable=True, low=0, high=10)
        self.assertEqual([weight.accepts(v) for v in (0, 10, None, 11, -1, True, 1.0, "1")], [True] * 3 + [False] * 5)
        self.assertEqual(weight.schema(), {"type": ["integer", "null"], "description": "", "minimum": 0, "maximum": 10})
        flag = Field("flag", bool, "")
        self.assertEqual([flag.accepts(v) for v in (True, None, 1)], [True, False, False])
        self.assertEqual(Field("s", str, "", choices=("a",), is_nullable=True).schema()["enum"], ["a", None])
