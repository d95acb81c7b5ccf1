"""The soak in its short forms: some seconds with every test run, a minute with FULL=1; ``make soak`` takes ten minutes."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import soak


def test_faults_at_random_leave_nothing_behind() -> None:
    """Servers die and hang, clients vanish, admin changes things: no wrong answer, no leak, no traceback, the same workers."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    report = soak.run(60 if soak.bed.FULL else 7, seed)
    print(report)
    assert not report.wrong, f"replay with SEED={seed}\n{report}"
