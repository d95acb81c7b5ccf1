"""The same probes against a whole proxy, supervisor and worker: same verdicts, same worker afterwards, nothing left open, a quiet log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import bed
import pytest
import script
from stage import Outside

PLAIN = [case for case in script.all_cases() if case.probes and (not case.only_inside or case.file.stem.startswith(("sm_18", "up_02_p")))]


@pytest.fixture(scope="module")
def outside() -> Iterator[tuple[Outside, bed.Proxy]]:
    def metrics() -> str:
        return str(proxy.ask("GET", "/metrics")[1].decode())

    stage = Outside(0, "server", metrics)
    (origin,) = stage.origins.values()
    proxy = bed.Proxy(f'[pools.web]\nservers = {json.dumps([origin.address])}\neject = false\n[sites."*"]\n"/" = "web"\n', start=False)
    try:
        proxy.start()
        stage.port = proxy.http_port
        yield stage, proxy
    finally:
        proxy.close()
        origin.close()


def test_every_probe_has_the_same_verdict_outside(outside: tuple[Outside, bed.Proxy]) -> None:
    """O1, O2, O5, O6, O7 on the real processes, and O3 by counting the worker's descriptors and open connections."""
    stage, proxy = outside
    stage.canary_now()
    pids = proxy.workers()
    (worker,) = pids.values()
    before = descriptors(worker)
    verdicts = script.Verdicts()
    for case in PLAIN:
        script.play_outside(stage, case, verdicts)
    assert verdicts.runs > 400, verdicts
    assert proxy.workers() == pids, "O6: the worker was replaced"
    stage.leave()
    bed.wait_until(lambda: open_connections(proxy) == 0, "O3: the gauge of open connections to be 0")
    bed.wait_until(lambda: descriptors(worker) <= before, f"O3: the worker's descriptors to be {before} again")
    assert "Traceback" not in proxy.log, proxy.log[-4000:]
    lag = [w["lag_seconds"] for w in proxy.get("/api/v1/status")["workers"]]
    assert max(lag) < 0.25, f"O4: {lag}"


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_connections(proxy: bed.Proxy) -> int:
    text = proxy.ask("GET", "/metrics")[1].decode()
    return sum(int(float(line.rpartition(" ")[2])) for line in text.splitlines() if line.startswith("revproxy_connections{"))
