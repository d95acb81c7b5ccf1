"""Words between workers: heard once, in order, and never a reason to wait."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net import doorbell
from twistedproxy.net.doorbell import MOST_BYTES, Doorbell


class DoorbellTests(SynchronousTestCase):
    loop: Any

    def setUp(self) -> None:
        self.directory = self.enterContext(tempfile.TemporaryDirectory()) + "/" + "long" * 30
        self.words: dict[int, list[bytes]] = {}

    def bell(self, slot: int, directory: str = "") -> Doorbell:
        words = self.words[slot] = []
        bell = Doorbell(self.loop.reactor, directory or self.directory, slot, words.append)
        self.addCleanup(bell.stop)
        return bell

    def test_a_word_reaches_its_addressee_alone(self) -> None:
        """Also when the directory's path is longer than that of a unix socket may be; nobody else may enter it."""
        one = self.bell(1)
        self.bell(2)
        self.bell(3)
        self.assertTrue(one.ring(2, b"hello") and one.ring(2, b"\0" * MOST_BYTES))
        self.loop.until(lambda: len(self.words[2]) == 2, "two words")
        self.assertEqual((self.words[2], self.words[3]), ([b"hello", b"\0" * MOST_BYTES], []))
        self.assertEqual(os.stat(self.directory).st_mode & 0o777, 0o700)

    def test_nobody_there(self) -> None:
        """A slot that nobody has, or whose worker is gone, is told at once."""
        one, two = self.bell(1), self.bell(2)
        self.assertFalse(one.ring(3, b"hello"))
        two.stop()
        two.stop()
        self.assertFalse(one.ring(2, b"hello"))
        self.assertFalse(two.ring(1, b"hello"))

    def test_the_next_worker_of_a_slot(self) -> None:
        """It hears what is said from then on, whatever its predecessor left behind."""
        one = self.bell(1)
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close()
        self.bell(2).stop()
        self.bell(2)
        self.assertTrue(one.ring(2, b"hello"))
        self.loop.until(lambda: self.words[2] == [b"hello"], "the word")

    def test_many_words_at_once(self) -> None:
        """The kernel queues few; the others are said a little later, and of those about one thing only the last."""
        one = self.bell(1)
        self.bell(2)
        for n in range(300):
            self.assertTrue(one.ring(2, b"%d" % n))
        for n in range(100):
            self.assertTrue(one.ring(2, b"about %d" % n, about=b"it"))
        self.loop.until(lambda: b"about 99" in self.words[2] and b"299" in self.words[2], "all words")
        plain = [int(word) for word in self.words[2] if not word.startswith(b"about")]
        self.assertEqual(sorted(plain), list(range(300)))
        self.assertLess(len(self.words[2]), 400)

    def test_a_worker_that_does_not_listen(self) -> None:
        """Words for it are given up after some tries; meanwhile others hear theirs."""
        self.patch(doorbell, "TRIES", 3)
        one = self.bell(1)
        deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(deaf.close)
        here = os.open(self.directory, os.O_RDONLY)
        self.addCleanup(os.close, here)
        deaf.bind(f"/proc/self/fd/{here}/2")
        self.bell(3)
        for n in range(2000):
            one.ring(2, b"%d" % n)
        self.assertTrue(one._waiting)
        self.assertTrue(one.ring(3, b"hello"))
        self.loop.until(lambda: not one._waiting and self.words[3] == [b"hello"], "the words to be given up")

    def test_a_word_that_breaks_its_listener(self) -> None:
        """It is logged, and the next word is heard."""
        one = self.bell(1)
        heard = []

        def listen(word: bytes) -> None:
            heard.append(word)
            raise ValueError("what?")

        two = Doorbell(self.loop.reactor, self.directory, 2, listen)
        self.addCleanup(two.stop)
        one.ring(2, b"a")
        one.ring(2, b"b")
        self.loop.until(lambda: len(heard) == 2, "both words")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_a_directory_that_cannot_be_used(self) -> None:
        """The maker is told, and nothing stays open."""
        with open(self.directory[:-40], "w"):
            pass
        before = len(os.listdir("/proc/self/fd"))
        self.assertRaises(OSError, self.bell, 1, self.directory[:-40] + "/x")
        os.makedirs(self.directory + "/1")  # where the socket would be
        self.assertRaises(OSError, self.bell, 1)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
