"""The control channel: values of any size, in order, and nothing broken is taken for something whole."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.protocol import ServerFactory
from twisted.internet.testing import StringTransport
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.test import iosim
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.ipc import commands
from twistedproxy.ipc.commands import CHUNK_BYTES, MAX_OPEN_TRANSFERS, MAX_TRANSFER_BYTES, Channel, NotDone


class WorkerEnd(Channel):
    """Answers what a worker answers, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Any] = []

    @commands.Configure.responder
    def configure(self, transfer: int) -> dict[str, Any]:
        self.values.append(self.take_value(transfer))
        return {"revision": 7}

    @commands.Apply.responder
    def apply(self, revision: int, transfer: int) -> dict[str, Any]:
        raise NotDone(f"revision {revision} is not for me")


class Locator(amp.CommandLocator):
    def __init__(self) -> None:
        self.heard: list[int] = []

    @commands.Statistics.responder
    def statistics(self, transfer: int) -> dict[str, Any]:
        self.heard.append(transfer)
        return {}


def joined(server: Channel, client: Channel) -> iosim.IOPump:
    return iosim.connect(server, iosim.FakeTransport(server, isServer=True), client, iosim.FakeTransport(client, isServer=False))


class TransferTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.worker = WorkerEnd()
        self.supervisor = Channel()
        self.pump = joined(self.supervisor, self.worker)

    def configure(self, value: Any) -> Any:
        answer = self.supervisor.callRemote(commands.Configure, transfer=self.supervisor.send_value(value))
        self.pump.flush()
        return self.successResultOf(answer)

    def test_any_size(self) -> None:
        """A model far over AMP's 65,535 bytes arrives whole, and so do tiny and exactly filling ones."""
        for value in ("", None, [], "x" * (CHUNK_BYTES - 2), "x" * (CHUNK_BYTES - 1), {"model": "é" * 500_000}, ["y"] * 1_000_000):
            self.assertEqual(self.configure(value), {"revision": 7})
            self.assertEqual(self.worker.values[-1], value)
        self.assertFalse(self.worker._partial)

    def test_missing_piece(self) -> None:
        """A value with a hole is refused, never decoded in part."""
        self.worker._chunk(transfer=1, index=0, count=3, data=b"[1,")
        self.worker._chunk(transfer=1, index=2, count=3, data=b"2]")
        self.assertRaises(ValueError, self.worker.take_value, 1)

    def test_once(self) -> None:
        """A value is taken once; one never sent is an error."""
        self.worker._chunk(transfer=1, index=0, count=1, data=b"1")
        self.assertEqual(self.worker.take_value(1), 1)
        self.assertRaises(ValueError, self.worker.take_value, 1)
        self.assertRaises(ValueError, self.worker.take_value, 2)

    def test_any_order(self) -> None:
        self.worker._chunk(transfer=5, index=1, count=2, data=b"2]")
        self.worker._chunk(transfer=5, index=0, count=2, data=b"[1,")
        self.assertEqual(self.worker.take_value(5), [1, 2])

    def test_hostile_counts(self) -> None:
        """Numbers that make no sense cost no memory."""
        chunk = self.worker._chunk
        for index, count in ((0, 0), (1, 1), (-1, 3), (3, 3), (0, 1 << 60), (0, MAX_TRANSFER_BYTES)):
            self.assertRaises(ValueError, chunk, transfer=1, index=index, count=count, data=b"")
        chunk(transfer=1, index=0, count=3, data=b"x")
        self.assertRaises(ValueError, chunk, transfer=1, index=4, count=5, data=b"x")
        self.assertRaises(ValueError, chunk, transfer=1, index=1, count=2, data=b"x")
        self.assertRaises(ValueError, chunk, transfer=1, index=0, count=3, data=b"y")

    def test_transfers_nobody_takes(self) -> None:
        """Transfers that are never taken do not pile up."""
        for n in range(MAX_OPEN_TRANSFERS):
            self.worker._chunk(transfer=n, index=0, count=2, data=b"x")
        self.assertRaises(ValueError, self.worker._chunk, transfer=99, index=0, count=2, data=b"x")

    def test_too_large(self) -> None:
        """A value over the limit is refused where it is made."""
        self.patch(commands, "MAX_TRANSFER_BYTES", 1000)
        self.assertRaises(ValueError, self.supervisor.send_value, "x" * 2000)


class WordsTests(SynchronousTestCase):
    def test_not_done_keeps_the_channel(self) -> None:
        """A change that a worker cannot apply is an answer, not the end of the worker."""
        worker, supervisor = WorkerEnd(), Channel()
        pump = joined(supervisor, worker)
        answer = supervisor.callRemote(commands.Apply, revision=3, transfer=supervisor.send_value({}))
        refused: list[Failure] = []
        answer.addErrback(refused.append)  # before the answer comes: what nobody awaits then would close the channel
        pump.flush()
        self.assertIn("revision 3", refused[0].getErrorMessage())
        self.assertIsNotNone(refused[0].check(NotDone))
        again = supervisor.callRemote(commands.Configure, transfer=supervisor.send_value(1))
        pump.flush()
        self.assertEqual(self.successResultOf(again), {"revision": 7})

    def test_locator(self) -> None:
        """Responders may live in an object of their own; chunks still find their way."""
        locator = Locator()
        supervisor, worker = Channel(locator), Channel()
        pump = joined(supervisor, worker)
        answer = worker.callRemote(commands.Statistics, transfer=worker.send_value({"a": 1}))
        pump.flush()
        self.successResultOf(answer)
        self.assertEqual(supervisor.take_value(locator.heard[0]), {"a": 1})

    def test_broken_chunk_ends_the_channel(self) -> None:
        """A broken chunk closes the channel: the worker behind it is replaced rather than believed."""
        worker = WorkerEnd()
        transport = StringTransport()
        worker.makeConnection(transport)
        box = amp.AmpBox(_command=b"Chunk", transfer=b"1", index=b"9", count=b"3", data=b"")
        worker.dataReceived(box.serialize())
        self.assertTrue(transport.disconnecting)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_names(self) -> None:
        """The words of the channel, in one place: renaming one breaks an upgrade in place."""
        words = {c.commandName for c in vars(commands).values() if isinstance(c, type) and issubclass(c, amp.Command)}
        self.assertEqual(
            words - {b"Command"},
            {
                b"Chunk", b"Configure", b"AdoptSocket", b"ReturnSocket", b"Apply", b"Observe", b"Collect", b"ReopenLogs", b"Drain",
                b"Ask", b"Hello", b"Heartbeat", b"Statistics", b"Failures",
            },
        )  # fmt: skip


class _One(ServerFactory):
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: Any) -> Channel:
        return self._channel


class Adopting(Channel):
    @commands.AdoptSocket.responder
    def adopt(self, listener: str, index: int, descriptor: int) -> dict[str, Any]:
        self.adopted = (listener, index, descriptor)
        return {}


class DescriptorTests(SynchronousTestCase):
    def test_a_listening_socket_travels(self) -> None:
        """A listening socket handed to a worker is the same socket there, between words of any size."""
        from twisted.internet.epollreactor import EPollReactor  # noqa: PLC0415  (a reactor of this test's own)

        reactor = EPollReactor()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        supervisor, worker = Channel(), Adopting()
        for sock, channel in ((ours, supervisor), (theirs, worker)):
            sock.setblocking(False)
            reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, _One(channel))
            sock.close()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            results: list[Any] = []
            supervisor.send_value("x" * 300_000)
            answer = supervisor.callRemote(commands.AdoptSocket, listener="127.0.0.1:0", index=2, descriptor=listening.fileno())
            answer.addBoth(results.append)
            deadline = reactor.seconds() + 5
            while not results and reactor.seconds() < deadline:
                reactor.runUntilCurrent()
                reactor.doIteration(0.05)
            self.assertEqual(results, [{}])
            listener, index, descriptor = worker.adopted
            with socket.socket(fileno=descriptor) as copy:
                self.assertEqual((listener, index), ("127.0.0.1:0", 2))
                self.assertEqual(copy.getsockname(), listening.getsockname())
                self.assertNotEqual(descriptor, listening.fileno())
        for each in reactor.removeAll():
            if hasattr(each, "socket"):
                each.socket.close()
