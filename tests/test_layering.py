"""The walls between the rooms: who may import whom (design.md 3), how big a room may get, and that each source file has its test."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "twistedproxy"

LEVELS = {
    "tap": 7, "cli": 7, "daemon": 7, "demo": 7, "top": 7, "traffic": 7, "renewal": 7, "purge": 7, "succession": 7,
    "admin": 6, "supervisor": 6,
    "worker": 5, "probes": 5,
    "http": 4, "stream": 4,
    "net": 3,
    "pool": 2, "tls": 2,
    "config": 1, "observability": 1, "ipc": 1,
    "errors": 0, "clock": 0,
    "": 0,  # the map: imports nothing
}  # fmt: skip

NEEDS_ONLY_THE_MODEL = {"pool", "tls", "net", "http", "stream"}
"""Of config, these see `config.model` only."""

MIDDLEWARE_MAY = {
    "twistedproxy.http.messages", "twistedproxy.http.middleware.chain", "twistedproxy.http.codings", "twistedproxy.errors",
}  # fmt: skip

GLOBAL_REACTOR_IN = {"twistedproxy.tap", "twistedproxy.worker.main"}

DATA_PATH = {"", "errors", "clock", "config", "observability", "ipc", "pool", "tls", "net", "http", "stream", "worker"}
NOT_IN_DATA_PATH = ("twisted.web", "twisted.protocols.portforward", "klein", "treq", "prometheus_client")

CONTROL_PLANE_CONFIG = {f"twistedproxy.config.{name}" for name in ("schema", "loader", "kinds", "checks", "build", "reference")}
"""These may use pydantic; nothing in a worker may come near."""

MAX_FILE_LINES = 500
MAX_CLASS_LINES = 300
EXCUSE = "500 lines"
CLASS_EXCUSE = "300 lines"
"""Among the first 15 lines of a file, with the reason; the former excuses the file's classes too."""

WITHOUT_TWIN = {"__init__.py", "__main__.py"}


@dataclass(frozen=True, eq=False)
class Module:
    name: str
    path: Path
    tree: ast.Module
    text: str

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


@functools.cache
def modules() -> list[Module]:
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        text = path.read_text()
        found.append(Module(".".join(parts), path, ast.parse(text, str(path)), text))
    return found


@functools.cache
def imports(module: Module) -> frozenset[str]:
    return frozenset(_imports(module))


def _imports(module: Module) -> Iterator[str]:
    """Every module that `module` imports, also in functions and under TYPE_CHECKING; of `from a import b` both a and a.b."""
    is_package = module.path.name == "__init__.py"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.name.split(".")
                keep = len(parents) - node.level + is_package
                base = ".".join([*parents[:keep], *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def wrong_edges(module: Module, wanted: str) -> str | None:
    """Why `module` may not import `wanted`; None when it may."""
    mine, parts = module.room, wanted.split(".")
    theirs = parts[1] if len(parts) > 1 else ""
    if theirs not in LEVELS:
        return None if not theirs or theirs.startswith("__") else f"{theirs!r} has no level; give it one in tests/test_layering.py"
    if mine == theirs:
        return None
    if not mine and theirs:
        return "the map imports nothing"
    if LEVELS[theirs] > LEVELS[mine]:
        return f"imports upward, from level {LEVELS[mine]} to level {LEVELS[theirs]}"
    if LEVELS[theirs] == LEVELS[mine] and theirs and LEVELS[mine] not in (0, 7):
        return f"{mine} and {theirs} are neighbours on level {LEVELS[mine]} and never import each other"
    return None


class ImportTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.modules = modules()
        self.known = {module.name for module in self.modules}

    def check(self, wrong: list[str]) -> None:
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    def edges(self) -> Iterator[tuple[Module, str]]:
        """Imports of our own modules."""
        for module in self.modules:
            for name in imports(module):
                if is_inside(name, PACKAGE) and (name in self.known or name.rpartition(".")[0] not in self.known):
                    yield module, name

    def test_rooms_import_downward(self) -> None:
        """A room knows only the rooms below it."""
        self.check(
            sorted(f"{module.name} -> {name}: {why}" for module, name in self.edges() if (why := wrong_edges(module, name)) is not None)
        )

    def test_config_model_only(self) -> None:
        """The data path takes values from the model and knows nothing else of the configuration."""
        allowed = {"twistedproxy.config", "twistedproxy.config.model"}
        self.check(
            sorted(
                f"{module.name} -> {name}: {module.room} may import config.model only"
                for module, name in self.edges()
                if module.room in NEEDS_ONLY_THE_MODEL and is_inside(name, "twistedproxy.config") and name not in allowed
            )
        )

    def test_middleware_stands_alone(self) -> None:
        """A middleware needs messages, chain and errors, never its neighbours or the proxy's insides."""
        self.check(
            sorted(
                f"{module.name} -> {name}: a middleware imports http.messages, chain, errors and libraries only"
                for module, name in self.edges()
                if is_inside(module.name, "twistedproxy.http.middleware")
                and module.path.name != "__init__.py"
                and name not in MIDDLEWARE_MAY | {"twistedproxy", "twistedproxy.http", "twistedproxy.http.middleware"}
            )
        )

    def test_global_reactor(self) -> None:
        """The reactor is a constructor argument everywhere but where a process begins."""
        self.check(
            sorted(
                f"{module.name} imports the global reactor; take `reactor` as a constructor argument"
                for module in self.modules
                if module.name not in GLOBAL_REACTOR_IN and "twisted.internet.reactor" in imports(module)
            )
        )

    def test_data_path_libraries(self) -> None:
        """Nothing heavy or unfit ever gets into a worker."""
        self.check(
            sorted(
                f"{module.name} -> {name}: not in the data path"
                for module in self.modules
                if module.room in DATA_PATH
                for name in imports(module)
                if any(is_inside(name, banned) for banned in NOT_IN_DATA_PATH)
            )
        )

    def test_pydantic_stays_in_the_control_plane(self) -> None:
        """No module that a worker can reach imports pydantic, directly or through others."""
        reach = {"twistedproxy.worker.main"}
        todo = ["twistedproxy.worker.main"]
        by_name = {module.name: module for module in self.modules}
        while todo:
            module = by_name.get(todo.pop())
            for name in imports(module) if module is not None else frozenset():
                parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
                for each in parents:
                    if each in by_name and each not in reach:
                        reach.add(each)
                        todo.append(each)
        self.assertIn("twistedproxy.worker.service", reach)
        self.check(
            sorted(
                f"{name} imports pydantic and is reached by a worker"
                for name in reach
                if any(is_inside(each, "pydantic") or is_inside(each, "klein") for each in imports(by_name[name]))
            )
            + sorted(f"{name} is reached by a worker" for name in reach & CONTROL_PLANE_CONFIG)
        )


class WallTests(SynchronousTestCase):
    def test_the_test_sees_wrong_edges(self) -> None:
        """Every way Python has to write an import is seen, and the level rule names the edge."""
        text = (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from twistedproxy.worker.service import Worker\n"
            "def f():\n    import twistedproxy.http.front\n"
            "from .. import admin\nfrom . import relay\n"
        )
        module = Module("twistedproxy.net.x", ROOT / PACKAGE / "net" / "x.py", ast.parse(text), text)
        seen = imports(module)
        for name in ("twistedproxy.worker.service", "twistedproxy.http.front", "twistedproxy.admin", "twistedproxy.net.relay"):
            self.assertIn(name, seen)
        self.assertIn("upward", wrong_edges(module, "twistedproxy.worker.service") or "")
        self.assertIsNone(wrong_edges(module, "twistedproxy.pool.pool"))
        for one, other in (("http.y", "stream.front"), ("admin.y", "supervisor.z"), ("worker.y", "probes.z"), ("config.y", "ipc.z")):
            neighbour = Module(f"twistedproxy.{one}", module.path, module.tree, "")
            self.assertIn("neighbours", wrong_edges(neighbour, f"twistedproxy.{other}") or "", one)

    def test_sizes(self) -> None:
        """A file over 500 lines or a class over 300 wants a wall, or says on top why not."""
        wrong = []
        for module in modules():
            top = "\n".join(module.text.splitlines()[:15])
            excused = EXCUSE in top
            lines = module.text.count("\n")
            if lines > MAX_FILE_LINES and not excused:
                wrong.append(f"{module.name} has {lines} lines: split it, or say in its docstring why it has over {EXCUSE}")
            for node in ast.walk(module.tree):
                size = (node.end_lineno or 0) - node.lineno + 1 if isinstance(node, ast.ClassDef) else 0
                if size > MAX_CLASS_LINES and not excused and CLASS_EXCUSE not in top:
                    wrong.append(f"{module.name}.{node.name} has {size} lines: split it, or say on top why it has over {CLASS_EXCUSE}")
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    def test_every_file_has_its_test(self) -> None:
        """`tests/` mirrors the package file for file."""
        missing = []
        for module in modules():
            relative = module.path.relative_to(ROOT / PACKAGE)
            if relative.name in WITHOUT_TWIN:
                continue
            twin = ROOT / "tests" / relative.parent / f"test_{relative.stem}.py"
            if not twin.exists():
                missing.append(f"{relative} has no {twin.relative_to(ROOT)}")
        self.assertEqual(missing, [], "\n" + "\n".join(missing))

    def test_every_room_has_a_level(self) -> None:
        """A new room says where it stands."""
        rooms = {module.room for module in modules()}
        self.assertEqual(rooms - LEVELS.keys(), set())

    def test_plugin_folder_is_no_package(self) -> None:
        """`twisted/plugins` belongs to Twisted: an __init__.py there would hide other projects' plugins."""
        self.assertEqual([str(p.relative_to(ROOT)) for p in (ROOT / "twisted").rglob("__init__.py")], [])
