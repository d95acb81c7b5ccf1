"""The wheel: what is in it, that it installs, and that twistd finds the plugin; and the list of packages."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]


class Wheel(SynchronousTestCase):
    directory: Path
    wheel: Path

    @classmethod
    def setUpClass(cls) -> None:
        """Build a wheel from a copy, without the native codec, which needs a compiler and time."""
        cls.directory = Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        source = cls.directory / "source"
        source.mkdir()
        unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_head.c", "dropin.cache")
        for name in ("twistedproxy", "twisted"):
            shutil.copytree(ROOT / name, source / name, ignore=unwanted)
        for name in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "..", "."],
            source,
            TWISTEDPROXY_PURE="1",
        )
        (cls.wheel,) = cls.directory.glob("*.whl")

    def test_it_never_overwrites_twisted_itself(self) -> None:
        """Installing this package leaves Twisted's own __init__ files alone."""
        names = zipfile.ZipFile(self.wheel).namelist()
        self.assertEqual([n for n in names if n.startswith("twisted/")], ["twisted/plugins/revproxy_plugin.py"])

    def test_everything_is_in_it(self) -> None:
        """Every module and every file of the web page is installed."""
        names = set(zipfile.ZipFile(self.wheel).namelist())
        wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "twistedproxy").rglob("*.py")}
        dashboard = ROOT / "twistedproxy/admin/dashboard"
        wanted |= {str(p.relative_to(ROOT)) for p in dashboard.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        self.assertEqual(sorted(wanted - names), [])
        self.assertIn("twistedproxy/py.typed", names)

    def test_a_fresh_venv_gets_the_command_and_the_plugin(self) -> None:
        """`pip install` brings `revproxy`; `twistd --help` and `twist --help` list it."""
        venv = self.directory / "venv"
        run([sys.executable, "-m", "venv", "--without-pip", str(venv)], self.directory)
        python = venv / "bin/python"
        run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(self.wheel)], self.directory)
        site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], self.directory).strip())
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.assertIn(
            "--demo", run([str(python), "-c", "from twisted.scripts.twistd import run; run()", "revproxy", "--help"], self.directory)
        )
        shown = run([str(python), "-c", "from twisted.scripts.twistd import run; run()", "--help"], self.directory)
        self.assertRegex(shown, r"(?m)^ +revproxy +\S")
        twist = "from twisted.application.twist._twist import Twist; Twist.main(['twist', '--help'])"
        self.assertRegex(run([str(python), "-c", twist], self.directory), r"(?m)^ +revproxy +\S")
        self.assertIn("0.1.0", run([str(venv / "bin/revproxy"), "--version"], self.directory))


class Declarations(SynchronousTestCase):
    def test_every_folder_with_code_is_a_declared_package(self) -> None:
        """A new room is not forgotten in setup.cfg."""
        declared = configparser.ConfigParser()
        declared.read(ROOT / "setup.cfg")
        packages = set(declared["options"]["packages"].split())
        there = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "twistedproxy").rglob("__init__.py")}
        self.assertEqual(packages, there | {"twisted.plugins"})

    def test_nothing_shadows_twisted(self) -> None:
        """No `__init__.py` in twisted/ or twisted/plugins/, ever."""
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py*")), [])


def run(command: list[str], where: Path, **more: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | more
    done = subprocess.run(
        command, cwd=where, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
