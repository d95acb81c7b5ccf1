"""Files go to sockets inside the kernel, byte for byte, at the pace of whoever reads, and never a piece that was found to be damaged."""

import os
import socket
import struct
import tempfile
import time

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import WriteStall
from twistedproxy.net import sendfile
from twistedproxy.net.sendfile import FileSend, send_at_once

SIZE = 3 * sendfile.PIECE + 12_345


class SendTests(SynchronousTestCase):
    def setUp(self):
        self.data = os.urandom(SIZE)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed after the test
        self.addCleanup(self.file.close)
        self.file.write(b"head" + self.data)
        self.file.flush()
        self.checked = []
        self.progress = 0
        self.ends = []

    def send(self, sink, first=0, count=SIZE, check=lambda at, n: True):
        def checked(at, n):
            self.checked.append((at, n))
            return check(at, n)

        def took(n):
            self.progress += n

        sending = FileSend(sink, self.file.fileno(), 4 + first, count, checked, took, self.ends.append)
        sending.begin()
        return sending

    def sink(self, small=False):
        sink, peer = self.loop.transport(small=small)
        self.owner = self.fakes.Recorder()
        sink.start(self.owner)
        sink.registerProducer(self.owner)
        peer.setblocking(False)
        return sink, peer

    def read(self, peer, count):
        got = bytearray()

        def more():
            try:
                while len(got) < count:
                    got.extend(peer.recv(1 << 20))
            except BlockingIOError:
                pass
            return len(got) >= count

        self.loop.until(more, f"{count} bytes", limit=20.0)
        return bytes(got)

    def drain(self, peer):
        """What the kernel has, without a turn of the loop."""
        got = bytearray()
        deadline = time.monotonic() + 5
        while not got and time.monotonic() < deadline:
            try:
                while True:
                    got.extend(peer.recv(1 << 20))
            except BlockingIOError:
                pass
        return bytes(got)

    def test_all_of_it_arrives_behind_what_was_written_before(self):
        """A head that the kernel has not taken yet stays in front of the file."""
        sink, peer = self.sink(small=True)
        head = b"h" * 100_000
        sink.write(head)
        self.send(sink)
        self.assertEqual(self.read(peer, len(head) + SIZE), head + self.data)
        self.assertEqual((self.ends, self.progress), ([True], SIZE))
        sink.write(b"next")
        self.assertEqual(self.read(peer, 4), b"next", "the sink is its owner's again")

    def test_a_part_of_it(self):
        sink, peer = self.sink()
        self.send(sink, 1000, 77)
        self.assertEqual(self.read(peer, 77), self.data[1000:1077])
        self.assertEqual(self.ends, [True])

    def test_each_piece_is_looked_at_before_its_first_byte(self):
        """CA-07: a damaged piece is never sent; the client sees that the answer breaks off."""
        sink, peer = self.sink()
        self.send(sink, check=lambda at, n: at < 2 * sendfile.PIECE)
        self.assertEqual(self.read(peer, 2 * sendfile.PIECE), self.data[: 2 * sendfile.PIECE])
        self.loop.until(lambda: self.ends, "the end")
        self.assertEqual((self.ends, self.progress), ([False], 2 * sendfile.PIECE))
        self.assertEqual(self.checked, [(n * sendfile.PIECE, sendfile.PIECE) for n in range(3)])

    def test_a_file_that_became_shorter_is_no_whole_answer(self):
        sink, peer = self.sink()
        os.ftruncate(self.file.fileno(), 4 + 500)
        self.send(sink)
        self.assertEqual(self.read(peer, 500), self.data[:500])
        self.loop.until(lambda: self.ends, "the end")
        self.assertEqual(self.ends, [False])

    def test_a_client_that_reads_nothing_is_given_up(self):
        """P4: nothing is held for it but the kernel's own buffer, and the write-stall deadline runs."""
        sink, _ = self.sink(small=True)
        self.send(sink)
        self.loop.turns()
        self.assertEqual((sink.buffered, self.ends), (0, []))
        self.loop.travel(sink.write_stall_s + 2)
        self.assertIsInstance(self.owner.reason.value, WriteStall)
        self.assertEqual(self.ends, [], "a connection that is gone tells its owner, and nobody else")

    def test_a_client_that_leaves_ends_it(self):
        sink, peer = self.sink(small=True)
        self.send(sink)
        self.loop.turns(2)
        peer.close()
        self.loop.until(lambda: "lost" in self.owner.events, "the loss")
        self.assertEqual((self.ends, sink.splice_out), ([], None))

    def test_cancelled_means_silent(self):
        sink, _ = self.sink(small=True)
        sending = self.send(sink)
        self.loop.turns(2)
        sending.cancel()
        self.loop.turns(3)
        self.assertEqual((self.ends, sink.splice_out, sending.is_active), ([], None, False))

    def test_all_at_once(self):
        """What a socket takes at once needs nothing more; head and file are in one segment."""
        sink, peer = self.sink()
        self.assertEqual(send_at_once(sink, b"head", self.file.fileno(), 4, 1000), 1000)
        self.assertEqual(self.read(peer, 1004), b"head" + self.data[:1000])
        self.assertEqual(sink.buffered, 0)
        (segments,) = struct.unpack_from("I", sink.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 156)
        self.assertEqual(segments, 1, "of those with data, see linux/tcp.h")

    def test_as_much_as_it_takes(self):
        """A slow reader, one with output waiting, one that is gone: how much went out is said, the rest is left to whoever goes on."""
        sink, peer = self.sink(small=True)
        sent = send_at_once(sink, b"head", self.file.fileno(), 4, SIZE)
        self.assertTrue(0 < sent < SIZE)
        FileSend(sink, self.file.fileno(), 4 + sent, SIZE - sent, lambda at, n: True, lambda n: None, self.ends.append).begin()
        self.assertEqual(self.read(peer, 4 + SIZE), b"head" + self.data)
        sink.write(b"w" * 500_000)
        first = self.drain(peer)  # the kernel has room again before the sink knows
        self.assertTrue(sink.buffered and first)
        self.assertEqual(send_at_once(sink, b"head", self.file.fileno(), 4, 1000), 0)
        self.assertEqual(first + self.read(peer, 500_004 - len(first)), b"w" * 500_000 + b"head")
        self.assertEqual(send_at_once(sink, b"head", -1, 4, 1000), 0)
        self.assertEqual(self.read(peer, 4), b"head")
        sink.fail_write(WriteStall("x"), is_fatal=True)
        self.assertEqual(send_at_once(sink, b"head", self.file.fileno(), 4, 1000), 0)

    def test_nothing_to_send_is_a_mistake(self):
        sink, _ = self.sink()
        self.assertRaises(ValueError, self.send, sink, 0, 0)
