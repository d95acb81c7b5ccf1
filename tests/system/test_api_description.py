"""The admin API is what its OpenAPI document says: schemathesis makes requests from the document and judges the answers."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import bed
import pytest

CONFIG = """\
color = false

[parameters]
"path.pool" = "web"
"path.address" = ["127.0.0.1:9", "127.0.0.1:10", "127.0.0.1:11"]
"path.revision" = [1, 2, 3, 100000]

[checks]
# Wrong tokens are braked, right ones too then: tests/admin/test_gate.py is about both.
ignored_auth.enabled = false
missing_required_header.enabled = false
# What the schema cannot say: a duration, an address, a file that is valid TOML and no proxy, a stale revision, a server that is gone.
positive_data_acceptance.expected-statuses = ["2xx", "400", "403", "404", "409", "412", "429"]
"""
EXAMPLES = 20


def test_the_api_is_as_described(proxy) -> None:
    """Hundreds of requests, valid and not, to every operation: no server error, every answer and every refusal as described."""
    tool = Path(sys.executable).with_name("schemathesis")
    if not tool.exists():
        pytest.skip("schemathesis is not installed: pip install schemathesis")
    servers = '["127.0.0.1:9", "127.0.0.1:10 backup", "127.0.0.1:11"]'
    made = proxy(f'[pools.web]\nservers = {servers}\n[sites."*"]\n"/" = "web"\n')
    config = made.directory / "schemathesis.toml"
    config.write_text(CONFIG)
    url = f"http://{bed.HOST}:{made.admin_port}/api/v1/openapi.json"
    options = [
        "-H",
        f"Authorization: Bearer {made.token}",
        "--exclude-operation-id",
        "events",
        "--exclude-operation-id",
        "start_upgrade",
        "--phases",
        "coverage,fuzzing",
    ]
    limits = ["-n", str(EXAMPLES * (10 if bed.FULL else 1)), "--seed", "1", "--generation-database", "none", "--continue-on-failure"]
    command = [str(tool), "--config-file", str(config), "run", url, *options, *limits]
    done = bed.run(command, within=600, cwd=made.directory, env=os.environ | {"COLUMNS": "160"})
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    made_up = re.search(r"(\d+) generated", done.stdout)
    assert made_up and int(made_up[1]) > 300, done.stdout[-2000:]
    assert made.is_ready()
