"""A kept file on its way to a client: what is damaged is not sent."""

from __future__ import annotations

import os
import tempfile
import time

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.disk import Disk
from twistedproxy.http.cache.files import object_path
from twistedproxy.http.cache.kept import Kept

KEY = b"k" * 16


class KeptTests(SynchronousTestCase):
    def test_reading_verifies(self) -> None:
        """A part is read as it was stored; of a damaged block, however much is asked for, nothing."""
        directory = self.enterContext(tempfile.TemporaryDirectory())
        disk = Disk(directory, time.monotonic)
        body = os.urandom(2_500_000)
        disk.write(KEY, b"meta", body)
        with open(object_path(directory, KEY), "r+b") as file:
            file.seek(1_500_000)
            file.write(b"spoilt")
        reader = disk.open(KEY)
        assert reader is not None
        kept = Kept(reader)
        self.assertEqual(kept.read(1000, 10), body[1000:1010])
        self.assertEqual(kept.read(2_499_990, 100), body[-10:])
        self.assertIsNone(kept.read(1_100_000, 1))
        self.assertIsNone(kept.read(1000, 10))  # nor of the rest: the file is not to be trusted
        self.assertEqual(disk.corrupt, 1)
