"""Lets the tests of this folder import the scenario language (`script`, `stage`) and the real servers of tests/system (`bed`)."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in (Path(__file__).parent, Path(__file__).parents[1] / "system"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
