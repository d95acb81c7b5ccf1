"""Pipes: few, reused when clean, and never the reason for a failure. What goes through them is tested in test_relay."""

import errno
import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net import splice
from twistedproxy.net.splice import PIPE_BYTES, Pipe, Pipes


class Keeping(SynchronousTestCase):
    def open_files(self):
        return len(os.listdir("/proc/self/fd"))

    def test_an_empty_pipe_is_used_again_and_a_dirty_one_closed(self):
        pipes = Pipes()
        before = self.open_files()
        first = pipes.take()
        pipes.give_back(first, is_empty=True)
        self.assertIs(pipes.take(), first)
        os.write(first.writer, b"somebody's bytes")
        pipes.give_back(first, is_empty=False)
        self.assertEqual(self.open_files(), before)
        second = pipes.take()
        self.assertRaises(BlockingIOError, os.read, second.reader, 1)
        pipes.give_back(second, is_empty=True)
        pipes.close_idle()
        self.assertEqual((self.open_files(), pipes.lent), (before, 0))

    def test_there_are_never_more_than_allowed(self):
        pipes = Pipes(most=2, most_idle=1)
        taken = [pipes.take(), pipes.take()]
        self.assertIsNone(pipes.take())
        before = self.open_files()
        for pipe in taken:
            pipes.give_back(pipe, is_empty=True)
        self.assertEqual(self.open_files(), before - 2, "one of the two is kept")
        self.assertIsNotNone(pipes.take())

    def test_without_descriptors_there_is_no_pipe_and_no_error(self):
        with mock.patch.object(splice.os, "pipe2", side_effect=OSError(errno.EMFILE, "too many")):
            self.assertIsNone(Pipes().take())

    def test_a_user_at_his_limit_of_pipe_memory_gets_none(self):
        before = self.open_files()
        with mock.patch.object(splice.fcntl, "fcntl", side_effect=PermissionError(errno.EPERM, "pipe-user-pages-soft")):
            pipes = Pipes()
            self.assertIsNone(pipes.take())
        self.assertEqual((self.open_files(), pipes.lent), (before, 0))

    def test_a_pipe_holds_a_mebibyte(self):
        pipe = Pipe()
        self.addCleanup(pipe.close)
        self.assertEqual(os.write(pipe.writer, b"x" * (2 * PIPE_BYTES)), PIPE_BYTES)


class SlowSink(SynchronousTestCase):
    def test_P4_a_slow_reader_holds_little_in_the_pipe(self):
        """After its first refusal the next read is 64 KiB, whatever the source has."""
        source, sender = self.loop.transport()
        sink, receiver = self.loop.transport()
        for transport in (source, sink):
            transport.start(self.fakes.Recorder())
        moved = splice.Splice(source, sink, splice.PIPES.take(), 100 * PIPE_BYTES, lambda n: None, None)
        sender.setblocking(False)

        def send():
            try:
                sender.send(b"x" * PIPE_BYTES)
            except BlockingIOError:
                pass

        self.loop.until(lambda: send() or moved.held, "the sink refuses")
        held = []
        receiver.setblocking(False)
        for _ in range(2000):
            send()
            self.loop.turn()
            was_held = moved.held
            try:
                receiver.recv(20_000)
            except BlockingIOError:
                pass
            self.loop.turn()
            if moved.held > was_held:
                held.append(moved.held)
        self.assertTrue(held)
        self.assertLessEqual(max(held), splice.SLOW_READ)
        moved.cancel()
