import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("fakes_net", Path(__file__).parents[1] / "net" / "fakes_net.py")
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)


@pytest.fixture(autouse=True)
def _loop(request):
    """Every test case here has a reactor of its own, `self.loop`, and the fakes, `self.fakes`."""
    case = request.instance
    if case is None:
        yield
        return
    case.loop = fakes.Loop()
    case.fakes = fakes
    yield
    case.loop.close()
