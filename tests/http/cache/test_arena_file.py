"""The arena's file: private, whole, and made anew when it is something else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.arena import Arena
from twistedproxy.http.cache.geometry import MIN_BYTES, Geometry


def key(n: int) -> bytes:
    return hashlib.md5(str(n).encode()).digest()


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory())

    def test_the_file_is_private_and_has_all_its_room(self) -> None:
        """Never sparse: a disk that fills up later cannot kill a worker."""
        self.addCleanup(Arena.open(self.directory, MIN_BYTES).close)
        status = os.stat(os.path.join(self.directory, f"memory-{MIN_BYTES}.arena"))
        self.assertEqual(status.st_mode & 0o777, 0o600)
        self.assertGreaterEqual(status.st_blocks * 512, status.st_size)

    def test_a_file_that_is_something_else_is_made_anew(self) -> None:
        """Foreign content, another version, cut short, or with holes: said in `note`, and the cache works."""
        path = Path(self.directory, f"memory-{MIN_BYTES}.arena")
        good = Geometry.of(MIN_BYTES)
        version = bytearray(good.header())
        version[8] ^= 1
        for content, size in ((b"hello", 5), (bytes(version), good.file_bytes), (good.header(), 8192), (good.header(), good.file_bytes)):
            path.write_bytes(content)
            os.truncate(path, size)
            arena = Arena.open(self.directory, MIN_BYTES)
            self.assertIn("made anew", arena.note)
            arena.own(1)
            self.assertIsNotNone(arena.put(key(1), b"m", b"x"))
            arena.close()
            again = Arena.open(self.directory, MIN_BYTES)
            self.assertEqual(again.note, "")
            again.close()

    def test_a_full_disk_is_an_error_at_the_start_and_leaves_nothing(self) -> None:
        """RLIMIT_FSIZE stands for the full disk."""
        code = (
            "import resource, signal, sys\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
            "from twistedproxy.http.cache.arena import Arena\n"
            "try:\n    Arena.open(sys.argv[1], 4 << 20)\n"
            "except OSError as e:\n    print('refused', e.errno)\n"
        )
        done = run(["-c", code, self.directory])
        self.assertEqual(done.stdout.split()[:1], ["refused"], done.stderr)
        self.assertEqual(os.listdir(self.directory), ["memory.lock"])


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        timeout=60,
        check=False,
    )
