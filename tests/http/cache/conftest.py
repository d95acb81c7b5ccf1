import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("cache_workers", Path(__file__).with_name("workers.py"))
workers = importlib.util.module_from_spec(_spec)
sys.modules["cache_workers"] = workers  # test modules say ``from cache_workers import …``
_spec.loader.exec_module(workers)
