"""Pipes: few, reused when clean, and never the reason for a failure. What goes through them is tested in test_relay."""

import errno
import os
import sys
from fcntl import ioctl
from termios import TIOCOUTQ
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net import splice
from twistedproxy.net.sides import PeerSeen
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


class End(SynchronousTestCase):
    """What the owner does in `on_done` comes from inside the sink's `doWrite`, when its last bytes leave the pipe."""

    def splice_that_ends_late(self, on_done):
        """100 000 bytes of which the sink has not taken all, so that the end is met while it is written to."""
        source, sender = self.loop.transport()
        sink, receiver = self.loop.transport(small=True)
        told = self.fakes.Recorder()
        source.start(self.fakes.Recorder())
        sink.start(told)
        self.all_read(splice.Splice(source, sink, splice.PIPES.take(), 100_000, lambda n: None, lambda: on_done(sink)), sender, receiver)
        return sink, receiver, told

    def all_read(self, moved, sender, receiver, size=100_000):
        """Send what `moved` waits for and take as much as needed for the rest to be in the pipe."""
        self.loop.send_all(sender, b"x" * size)
        self.taken = 0

        def is_read():
            if moved.moved + moved.held < size and moved.held:
                self.taken += len(receiver.recv(1000))
            return moved.moved + moved.held == size and moved.held

        self.loop.until(is_read, "all is read and not all is written")

    def test_what_is_written_at_the_end_of_a_splice_is_sent_however_slow_the_reader(self):
        _, receiver, _ = self.splice_that_ends_late(lambda sink: sink.write(b"y" * 500_000))
        got = self.loop.read_all(receiver, 600_000 - self.taken)
        self.assertEqual((got.count(b"x") + self.taken, got.count(b"y")), (100_000, 500_000))

    def test_F6_what_is_written_at_the_end_of_a_splice_is_watched_for_a_reader_that_stalls(self):
        sink, receiver, told = self.splice_that_ends_late(lambda sink: sink.write(b"y" * 500_000))
        self.loop.read_all(receiver, 100_001 - self.taken)
        self.assertTrue(sink.buffered)
        self.loop.travel(35, 0.5)
        self.assertEqual(told.events, ["lost"])

    def test_DO_03_a_connection_that_lingers_from_the_end_of_a_splice_does_not_stay_for_ever(self):
        _, receiver, told = self.splice_that_ends_late(lambda sink: sink.linger())
        self.assertEqual(len(self.loop.read_all(receiver)) + self.taken, 100_000)
        self.loop.travel(5.5)
        self.assertEqual(told.events, ["lost"])

    def test_what_came_before_a_reset_of_the_source_reaches_a_slow_reader(self):
        """In the pipe alone, or more behind it in the source's socket."""
        for size in (100_000, 200_000):
            source, sender = self.loop.transport()
            sink, receiver = self.loop.transport(small=True)
            told, done = self.fakes.Recorder(), []
            source.start(told)
            sink.start(self.fakes.Recorder())
            moved = splice.Splice(source, sink, splice.PIPES.take(), size, lambda n: None, lambda done=done: done.append(1))
            self.all_read(moved, sender, receiver, 100_000)
            if size > 100_000:
                sender.sendall(b"x" * 100_000)
            self.loop.until(lambda sender=sender: not int.from_bytes(ioctl(sender, TIOCOUTQ, bytes(4)), sys.byteorder))
            self.loop.reset(sender)
            self.loop.turns()
            self.assertEqual((told.events, done), ([], []))
            self.assertEqual(len(self.loop.read_all(receiver, size - self.taken)), size - self.taken)
            self.loop.until(lambda told=told: told.events == ["lost"])
            self.assertEqual((done, told.reason.type), ([1], ConnectionResetError))

    def test_the_pipe_that_was_lost_with_its_sink_is_no_end_that_was_reached(self):
        """The sink breaks under the last piece: nobody may be told that all of it has arrived."""
        for waits in (False, True):
            source, sender = self.loop.transport()
            sink, receiver = self.loop.transport(small=True)
            for transport in (source, sink):
                transport.start(self.fakes.Recorder())
            done = []
            moved = splice.Splice(source, sink, splice.PIPES.take(), 100_000, lambda n: None, lambda done=done: done.append(1))
            if waits:
                self.all_read(moved, sender, receiver)
            self.loop.reset(receiver)
            if not waits:
                sender.sendall(b"x" * 100_000)
                self.loop.until(lambda source=source: source.peer_seen() is PeerSeen.HAS_SENT)
                while moved.is_active:
                    moved.source_readable()
            else:
                moved.sink_writable()
            self.assertEqual((moved.is_active, done), (False, []))
            self.loop.turns()
