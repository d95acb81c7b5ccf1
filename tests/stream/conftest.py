"""Test cases here have what those of `tests/net` have."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("conftest_net", Path(__file__).parents[1] / "net" / "conftest.py")
net = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(net)
_loop = net._loop
