import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("fakes_http", Path(__file__).with_name("fakes_http.py"))
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)


@pytest.fixture(autouse=True)
def _bed(request):
    """Every test case has the fakes as `self.fakes`; one that says `uses_bed = True` a `Bed` of its own, which is checked for leaks."""
    case = request.instance
    if case is None:
        return
    case.fakes = fakes
    if getattr(request.cls, "uses_bed", False):
        case.bed = fakes.Bed()
        case.addCleanup(case.bed.finish)
