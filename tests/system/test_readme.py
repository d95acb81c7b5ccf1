"""The README's commands, run as they stand; a block without a mark is not run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import bed
import pytest

BLOCK = re.compile(r"<!-- test: (?P<kind>[\w-]+)(?: expects (?P<expects>.+?))? -->\n+```\w*\n(?P<text>.*?)```", re.DOTALL)
README = (bed.ROOT / "README.md").read_text()
BLOCKS = list(BLOCK.finditer(README))
PORTS = (8080, 8432, 9901, 9001, 9002, 9003)
OWN_PORTS = (8080, 6432, 9901)


class Demo(bed.Part):
    """The demo as ``make run`` starts it, on its own fixed ports."""

    def __init__(self) -> None:
        super().__init__()
        taken = [port for port in PORTS if bed.accepts(port)]
        if taken:
            pytest.skip(f"the demo's ports {taken} are taken by something else")
        self.launch([*bed.TWISTD, "-n", "--pidfile=", "revproxy", "--demo"], env=bed.proxy_env() | {"PYTHONUNBUFFERED": "1"})
        self.wait_for(lambda: "export REVPROXY_STATE=" in self.log, "the demo to say what to try")
        self.state = re.search(r"export REVPROXY_STATE='(.*)'", self.log)[1]  # type: ignore[index]
        self.wait_for(
            lambda: bed.run([*bed.REVPROXY, "status"], env=bed.proxy_env() | {"REVPROXY_STATE": self.state}).returncode == 0, "status"
        )


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    running = Demo()
    yield running
    running.close()


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment where `revproxy` and `twistd` are this checkout's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("revproxy", "twistedproxy.cli import main"), ("twistd", "twisted.scripts.twistd import run as main")):
        script = programs / name
        script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c 'from {module}; main()' \"$@\"\n")
        script.chmod(0o755)
    return bed.proxy_env() | {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def blocks(kind: str) -> list[object]:
    return [pytest.param(b["text"], b["expects"], id=b["text"].strip().splitlines()[-1][:60]) for b in BLOCKS if b["kind"] == kind]


@pytest.mark.parametrize(("text", "expects"), blocks("start"))
def test_starting_with_the_configuration_of_the_readme(shell: dict[str, str], part, text: str, expects: str) -> None:
    """The file of the README is checked and served by the commands below it, as printed; before the demo takes the ports."""
    taken = [port for port in OWN_PORTS if bed.accepts(port)]
    if taken:
        pytest.skip(f"the ports {taken} are taken by something else")
    started = part(bed.Part)
    (started.directory / "revproxy.toml").write_text(next(b["text"] for b in BLOCKS if b["kind"] == "config"))
    *before, last = text.strip().splitlines()
    for command in before:
        done = bed.run(["bash", "-euc", command], cwd=started.directory, env=shell)
        assert done.returncode == 0, done.stdout + done.stderr
    started.launch(["bash", "-euc", f"exec {last}"], env=shell)
    started.wait_for(lambda: re.search(expects, started.log), f"{last} to be ready")
    assert started.stop() == 0, started.log


@pytest.mark.parametrize(("text", "expects"), blocks("demo"))
def test_a_command_of_the_tour(demo: Demo, shell: dict[str, str], tmp_path: Path, text: str, expects: str | None) -> None:
    """Every command of the five-minute tour works as printed, in the printed order, and shows what the README says."""
    done = bed.run(["bash", "-euc", text], cwd=tmp_path, env=shell | {"REVPROXY_STATE": demo.state}, within=60)
    assert done.returncode == 0, done.stdout + done.stderr
    if expects:
        assert re.search(expects, done.stdout), f"expected {expects!r} in:\n{done.stdout}"


@pytest.mark.parametrize(("text", "expects"), blocks("config"))
def test_a_configuration_of_the_readme(shell: dict[str, str], tmp_path: Path, text: str, expects: str | None) -> None:
    """Every configuration in the README passes `revproxy check`."""
    (tmp_path / "revproxy.toml").write_text(text)
    done = bed.run(["revproxy", "check", "revproxy.toml"], cwd=tmp_path, env=shell)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_configuration(shell: dict[str, str], tmp_path: Path) -> None:
    """etc/revproxy.toml passes `revproxy check`, once there is the directory for logs that the systemd unit makes."""
    text = (bed.ROOT / "etc/revproxy.toml").read_text().replace("/var/log/revproxy/", f"{tmp_path}/")
    (tmp_path / "revproxy.toml").write_text(text)
    done = bed.run(["revproxy", "check", "revproxy.toml"], cwd=tmp_path, env=shell)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_targets_of_the_readme_exist() -> None:
    """`make run` and `make test` are what the README says they are."""
    for target in re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        done = bed.run(["make", "-n", target], cwd=bed.ROOT)
        assert done.returncode == 0, done.stderr
    assert {b["kind"] for b in BLOCKS} == {"demo", "config", "start"}, "the README lost its marked blocks"
