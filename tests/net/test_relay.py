"""Two connections joined: every byte, then FIN; a reset stays a reset; nobody waits for ever; and what it costs.

It has over 500 lines: one case for each way two connections may end.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import unittest
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy import errors
from twistedproxy.net import relay as relay_module
from twistedproxy.net import splice
from twistedproxy.net.relay import TRANSITIONS, DirectionState, Relay, relay_exactly
from twistedproxy.net.transport import HIGH_WATER

MIB = 1024 * 1024


class Joined(SynchronousTestCase):
    def join(self, start=True, idle_s=3600.0, half_closed_s=60.0, **how):
        self.a, self.client = self.loop.transport(**how)
        self.b, self.server = self.loop.transport(**how)
        self.done = []
        self.told = []
        self.relay = Relay(
            self.a,
            self.b,
            self.loop.wheel,
            idle_s=idle_s,
            half_closed_s=half_closed_s,
            on_done=self.done.append,
            on_bytes=lambda a, b: self.told.append((a, b)),
        )
        if start:
            self.relay.start()
        return self.client, self.server


class Bytes(Joined):
    def test_L4_04_the_side_that_speaks_first_is_heard(self):
        for first in (0, 1):
            ends = self.join()
            ends[first].sendall(b"hello")
            self.assertEqual(self.loop.read_all(ends[1 - first], 5), b"hello")
            ends[1 - first].sendall(b"welcome")
            self.assertEqual(self.loop.read_all(ends[first], 7), b"welcome")

    def test_what_was_read_before_comes_first(self):
        client, server = self.join(start=False)
        client.sendall(b" world")
        server.sendall(b"ner")
        self.relay.start(from_a=b"hello", from_b=b"ban")
        self.assertEqual(self.loop.read_all(server, 11), b"hello world")
        self.assertEqual(self.loop.read_all(client, 6), b"banner")
        self.assertEqual((self.relay.bytes_a_to_b, self.relay.bytes_b_to_a), (11, 6))

    def test_both_directions_at_once_byte_for_byte(self):
        client, server = self.join()
        up, down = os.urandom(3 * MIB), os.urandom(5 * MIB)
        for sock in (client, server):
            sock.setblocking(False)
        sent, got = {client: 0, server: 0}, {client: bytearray(), server: bytearray()}
        data = {client: up, server: down}

        def pump():
            for sock in (client, server):
                try:
                    size = random.choice((100, 5_000, 200_000))
                    sent[sock] += sock.send(data[sock][sent[sock] : sent[sock] + size]) if sent[sock] < len(data[sock]) else 0
                except BlockingIOError:
                    pass
                try:
                    got[sock] += sock.recv(random.choice((1000, 100_000, 1_000_000)))
                except BlockingIOError:
                    pass
            return len(got[client]) == len(down) and len(got[server]) == len(up)

        self.loop.until(pump, limit=10)
        self.assertTrue(got[server] == up and got[client] == down)
        self.assertEqual((self.relay.bytes_a_to_b, self.relay.bytes_b_to_a), (len(up), len(down)))

    def test_bytes_are_reported_while_a_session_lasts_and_at_its_end(self):
        client, server = self.join(idle_s=10)
        client.sendall(b"12345")
        self.loop.read_all(server, 5)
        self.loop.travel(1.2)
        self.assertEqual(self.told, [(5, 0)])
        server.sendall(b"123")
        self.loop.read_all(client, 3)
        self.relay.cut(errors.Drained())
        self.assertEqual(self.told, [(5, 0), (0, 3)])

    def test_it_works_between_tcp_and_unix_sockets(self):
        self.a, client = self.loop.transport()
        self.b, server = self.loop.transport(family=socket.AF_UNIX)
        done = []
        Relay(self.a, self.b, self.loop.wheel, idle_s=60, half_closed_s=60, on_done=done.append).start()
        data = os.urandom(2 * MIB)
        with self.sending(client, data):
            self.assertTrue(self.loop.read_all(server, len(data)) == data)
        with self.sending(server, data):
            self.assertTrue(self.loop.read_all(client, len(data)) == data)

    def sending(self, sock, data):
        """Send in a thread, so that the reader can be turned meanwhile."""
        sock.setblocking(True)
        thread = threading.Thread(target=sock.sendall, args=(data,))

        class Sending:
            def __enter__(self):
                thread.start()

            def __exit__(self, *exc):
                thread.join(5)

        return Sending()


class HalfClose(Joined):
    def test_L4_01_client_half_closes_and_the_server_streams_50_mb(self):
        client, server = self.join()
        client.sendall(b"SELECT everything")
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.loop.read_all(server), b"SELECT everything")
        piece = os.urandom(MIB)
        pid = os.fork()
        if pid == 0:
            try:
                server.setblocking(True)
                for _ in range(50):
                    server.sendall(piece)
            finally:
                os._exit(0)
        server.close()
        try:
            got = 0
            client.setblocking(False)

            def pump():
                nonlocal got
                try:
                    data = client.recv(4 * MIB)
                except BlockingIOError:
                    return False
                got += len(data)
                return not data

            self.loop.until(pump, "all of it and FIN", limit=20)
        finally:
            os.waitpid(pid, 0)
        self.assertEqual(got, 50 * MIB)
        self.loop.until(lambda: self.done == [None])
        self.assertEqual(self.relay.bytes_b_to_a, 50 * MIB)

    def test_L4_01_the_mirror_server_ends_first_and_the_client_goes_on(self):
        client, server = self.join()
        server.sendall(b"goodbye")
        server.shutdown(socket.SHUT_WR)
        self.assertEqual(self.loop.read_all(client), b"goodbye")
        data = os.urandom(3 * MIB)
        got = bytearray()
        view = memoryview(data)
        server.setblocking(False)

        def pump():
            nonlocal view
            try:
                view = view[client.send(view[:300_000]) :] if view else view
            except BlockingIOError:
                pass
            try:
                got.extend(server.recv(MIB))
            except BlockingIOError:
                pass
            return len(got) == len(data)

        client.setblocking(False)
        self.loop.until(pump)
        self.assertEqual(got, data)
        self.assertEqual(self.done, [])
        client.close()
        self.assertEqual(self.loop.read_all(server), b"")
        self.loop.until(lambda: self.done == [None])

    def test_L4_01_both_descriptors_are_free_when_it_is_done(self):
        client, server = self.join()
        client.close()
        self.assertEqual(self.loop.read_all(server), b"")
        server.close()
        self.loop.until(lambda: self.done == [None])
        self.assertEqual((self.a.sock.fileno(), self.b.sock.fileno()), (-1, -1))
        for direction in (self.relay._a_to_b, self.relay._b_to_a):
            self.assertIs(direction.state, DirectionState.FIN_SENT)
            self.assertIsNone(direction.relay, "nothing is left for the garbage collector")

    def test_fin_waits_for_what_the_slow_side_has_not_taken(self):
        client, server = self.join(small=True)
        self.loop.send_all(server, b"x" * 5000)
        server.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: self.relay._b_to_a.state is not DirectionState.OPEN)
        self.assertEqual(self.loop.read_all(client), b"x" * 5000)
        self.assertIs(self.relay._b_to_a.state, DirectionState.FIN_SENT)

    def test_a_fin_that_came_before_the_relay_is_passed_on(self):
        client, server = self.join(start=False)
        client.shutdown(socket.SHUT_WR)
        self.a.start(self.fakes.Recorder())
        self.loop.until(lambda: self.a.has_ended)
        self.relay.start()
        self.assertEqual(self.loop.read_all(server), b"")
        server.sendall(b"still here")
        self.assertEqual(self.loop.read_all(client, 10), b"still here")

    def test_after_one_fin_silence_is_allowed_for_half_closed_only(self):
        client, server = self.join(half_closed_s=60)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.loop.read_all(server), b"")
        self.loop.travel(55, 0.5)
        server.sendall(b"x")
        self.assertEqual(self.loop.read_all(client, 1), b"x")
        self.loop.travel(55, 0.5)
        self.assertEqual(self.done, [])
        self.loop.travel(9, 0.5)
        self.assertIsInstance(self.done[0], errors.IdleTimeout)


class Resets(Joined):
    def test_L4_03_a_reset_of_either_side_is_a_reset_of_the_other(self):
        for broken, error in ((0, errors.ClientGone), (1, errors.ServerClosed)):
            ends = self.join()
            ends[broken].sendall(b"some")
            self.loop.read_all(ends[1 - broken], 4)
            self.loop.reset(ends[broken])
            self.loop.until(lambda: self.done)
            self.assertIsInstance(self.done[0], error)
            self.assertIs(self.done[0].phase, errors.Phase.TUNNEL)
            self.assertTrue(self.loop.is_reset(ends[1 - broken]))

    def test_L4_03_nothing_waiting_for_a_slow_side_ends_in_a_clean_fin(self):
        """The client is slow, so its server is not read when it breaks; the client must learn that within a second."""
        client, server = self.join(small=True)
        server.setblocking(False)
        for _ in range(100):
            try:
                server.send(b"x" * 4000)
            except BlockingIOError:
                pass
            self.loop.turn()
        self.loop.reset(server)
        self.loop.until(lambda: self.done, limit=1)
        self.assertIsInstance(self.done[0], errors.ServerClosed)
        self.assertTrue(self.loop.is_reset(client))

    def test_a_reset_after_one_fin_is_no_clean_end(self):
        client, server = self.join()
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.loop.read_all(server), b"")
        self.loop.reset(server)
        self.loop.until(lambda: self.done)
        self.assertIsInstance(self.done[0], errors.ServerClosed)
        self.assertTrue(self.loop.is_reset(client))

    def test_done_is_told_once_whatever_happens_together(self):
        client, server = self.join()
        self.loop.reset(client)
        self.loop.reset(server)
        self.loop.turns(20)
        self.relay.cut(errors.Drained())
        self.assertEqual(len(self.done), 1)

    def test_being_cut_resets_both_sides_and_says_why(self):
        client, server = self.join()
        why = errors.Drained("maintenance")
        self.relay.cut(why)
        self.assertEqual(self.done, [why])
        self.assertTrue(self.loop.is_reset(client))
        self.assertTrue(self.loop.is_reset(server))

    def test_a_side_lost_before_the_relay_began_ends_it_at_once(self):
        for lost in ("a", "b"):
            self.join(start=False)
            getattr(self, lost).abortConnection()
            self.relay.start()
            self.assertEqual(len(self.done), 1)
            self.assertIsInstance(self.done[0], errors.ClientGone if lost == "a" else errors.ServerClosed)


class Waiting(Joined):
    def test_L4_05_a_slow_side_stops_the_fast_one(self):
        """What waits is bounded however much the other side would like to send."""
        for fast, slow in ((0, 1), (1, 0)):
            ends = self.join(small=True)
            ends[fast].setblocking(False)
            sent = 0
            for _ in range(3000):
                try:
                    sent += ends[fast].send(b"x" * 65536)
                except BlockingIOError:
                    pass
                self.loop.turn()
            sink = self.b if slow == 1 else self.a
            self.assertLessEqual(sink.buffered, HIGH_WATER + 65536)
            taken = self.relay.bytes_a_to_b if fast == 0 else self.relay.bytes_b_to_a
            self.assertLess(taken, 300_000)
            self.assertLess(taken, sent, "the rest waits in the fast side's kernel")
            self.assertEqual(len(self.loop.read_all(ends[slow], sent)), sent)
            self.relay.cut(errors.Drained())

    def test_a_side_that_takes_nothing_for_write_stall_is_named(self):
        for fast, error in ((0, errors.ServerStall), (1, errors.WriteStall)):
            ends = self.join(small=True, write_stall_s=5.0)
            ends[fast].setblocking(False)
            for _ in range(100):
                try:
                    ends[fast].send(b"x" * 65536)
                except BlockingIOError:
                    pass
                self.loop.turn()
            self.loop.travel(6, 0.1)
            self.assertEqual(len(self.done), 1)
            self.assertIs(type(self.done[0]), error)
            self.assertTrue(self.loop.is_reset(ends[1 - fast]))

    def test_L4_07_silence_both_ways_ends_at_the_idle_limit_and_not_before(self):
        client, server = self.join(idle_s=100.0)
        self.loop.travel(97, 0.5)
        client.sendall(b"x")
        self.loop.read_all(server, 1)
        self.loop.travel(99, 0.5)
        self.assertEqual(self.done, [])
        self.loop.travel(8, 0.5)
        self.assertIsInstance(self.done[0], errors.IdleTimeout)
        self.assertTrue(self.loop.is_reset(client))
        self.assertTrue(self.loop.is_reset(server))

    def test_one_way_traffic_is_not_idle(self):
        client, server = self.join(idle_s=10.0)
        for _ in range(5):
            self.loop.travel(8, 0.25)
            server.sendall(b"x")
            self.loop.read_all(client, 1)
        self.assertEqual(self.done, [])


class Bulk(Joined):
    def setUp(self):
        self.lent = splice.PIPES.lent

    def test_a_large_transfer_goes_through_a_pipe_and_comes_back_from_it(self):
        client, server = self.join()
        with mock.patch.object(splice.os, "splice", wraps=os.splice) as spliced:
            data = os.urandom(8 * MIB)
            got = self._stream(server, client, data)
            self.assertTrue(got == data)
            self.assertTrue(spliced.call_count)
            server.sendall(b"small")
            self.assertEqual(self.loop.read_all(client, 5), b"small")
            before = spliced.call_count
            server.sendall(b"small")
            self.assertEqual(self.loop.read_all(client, 5), b"small")
            self.assertEqual(spliced.call_count, before, "small reads need no pipe")
        self.assertEqual(splice.PIPES.lent, self.lent)
        self.assertEqual(self.relay.bytes_b_to_a, 8 * MIB + 10)

    def _stream(self, sender, receiver, data, most=1 << 20):
        sender.setblocking(False)
        receiver.setblocking(False)
        view, got = memoryview(data), bytearray()

        def pump():
            nonlocal view
            try:
                view = view[sender.send(view) :] if view else view
            except BlockingIOError:
                pass
            try:
                got.extend(receiver.recv(most))
            except BlockingIOError:
                pass
            return len(got) >= len(data)

        self.loop.until(pump, limit=20)
        return got

    def test_L4_05_a_slow_reader_in_the_middle_of_it_gets_every_byte(self):
        client, server = self.join(small=True)
        data = os.urandom(2 * MIB)
        self.a.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        self.assertTrue(self._stream(server, client, data, most=30_000) == data)
        self.assertEqual(splice.PIPES.lent - self.lent, 1 if self.a.splice_out else 0)

    def test_fin_behind_spliced_bytes_comes_after_them(self):
        client, server = self.join()
        data = os.urandom(4 * MIB)
        server.setblocking(False)
        view = memoryview(data)
        ended = False

        got = bytearray()
        client.setblocking(False)

        def pump():
            nonlocal view, ended
            if view:
                try:
                    view = view[server.send(view) :]
                except BlockingIOError:
                    pass
            elif not ended:
                ended = True
                server.shutdown(socket.SHUT_WR)
            try:
                piece = client.recv(100_000)
            except BlockingIOError:
                return False
            got.extend(piece)
            return not piece

        self.loop.until(pump, limit=10)
        self.assertTrue(got == data)
        self.assertEqual(splice.PIPES.lent, self.lent)

    def test_L4_03_a_reset_in_the_middle_of_it_stays_a_reset_and_frees_the_pipe(self):
        client, server = self.join()
        server.setblocking(False)
        for _ in range(50):
            try:
                server.send(b"x" * MIB)
            except BlockingIOError:
                pass
            self.loop.turn()
        self.assertIsNotNone(self.a.splice_out, "the test needs a splice under way")
        self.loop.reset(server)
        self.loop.until(lambda: self.done, limit=1)
        self.assertTrue(self.loop.is_reset(client))
        self.assertEqual(splice.PIPES.lent, self.lent)

    def test_without_pipes_it_still_works(self):
        with mock.patch.object(relay_module, "PIPES", splice.Pipes(most=0)):
            client, server = self.join()
            data = os.urandom(3 * MIB)
            self.assertTrue(self._stream(server, client, data) == data)


class Exactly(Joined):
    def setUp(self):
        self.lent = splice.PIPES.lent
        self.source, self.sender = self.loop.transport()
        self.sink, self.receiver = self.loop.transport()
        self.from_source, self.from_sink = self.fakes.Recorder(), self.fakes.Recorder()
        self.source.start(self.from_source)
        self.sink.start(self.from_sink)
        self.progress, self.finished = [], []

    def splice(self, count):
        return relay_exactly(self.source, self.sink, count, self.progress.append, lambda: self.finished.append(sum(self.progress)))

    def test_exactly_so_many_bytes_go_and_the_next_ones_are_the_protocols(self):
        for count in (1, 1000, MIB + 7):
            self.progress.clear()
            self.finished.clear()
            self.from_source.received.clear()
            data = os.urandom(count)
            moved = self.splice(count)
            self.assertEqual(self.finished, [], "never from inside the call")
            view = memoryview(data + b"NEXT HEAD")
            got = bytearray()
            self.sender.setblocking(False)
            self.receiver.setblocking(False)

            def pump(got=got):
                nonlocal view
                try:
                    view = view[self.sender.send(view) :] if view else view
                except BlockingIOError:
                    pass
                try:
                    got += self.receiver.recv(MIB)
                except BlockingIOError:
                    pass
                return self.finished and self.from_source.received == b"NEXT HEAD"

            self.loop.until(pump)
            got += self.loop.read_all(self.receiver, count - len(got))
            self.assertTrue(got == data)
            self.assertEqual((self.finished, moved.moved, moved.is_active), ([count], count, False))
        self.assertEqual(splice.PIPES.lent, self.lent)

    def test_what_the_sink_has_waiting_goes_first(self):
        written = self.loop.fill(self.sink)
        self.splice(5)
        self.sender.sendall(b"BODY!")
        self.loop.turns()
        self.assertEqual(self.finished, [])
        data = self.loop.read_all(self.receiver, written + 5)
        self.assertEqual(data[-6:], b"xBODY!")
        self.loop.until(lambda: self.finished == [5])

    def test_a_paused_source_is_read_again(self):
        self.source.pauseProducing()
        self.splice(3)
        self.sender.sendall(b"abc")
        self.assertEqual(self.loop.read_all(self.receiver, 3), b"abc")
        self.loop.until(lambda: self.finished)

    def test_its_owner_may_pause_the_source_meanwhile(self):
        self.splice(6)
        self.sender.sendall(b"abc")
        self.assertEqual(self.loop.read_all(self.receiver, 3), b"abc")
        self.source.pauseProducing()
        self.sender.sendall(b"def")
        self.loop.turns()
        self.assertEqual(self.finished, [])
        self.source.resumeProducing()
        self.assertEqual(self.loop.read_all(self.receiver, 3), b"def")

    def test_an_early_end_of_the_source_is_told_to_its_protocol_after_what_came(self):
        self.splice(100)
        self.sender.sendall(b"only this")
        self.sender.close()
        self.loop.until(lambda: self.from_source.events == ["eof"])
        self.assertEqual(self.loop.read_all(self.receiver, 9), b"only this")
        self.assertEqual((self.finished, sum(self.progress)), ([], 9))
        self.assertEqual(splice.PIPES.lent, self.lent)

    def test_a_reset_of_either_side_is_told_to_its_protocol(self):
        self.splice(100)
        self.loop.reset(self.sender)
        self.loop.until(lambda: self.from_source.events == ["lost"])
        self.setUp()
        self.splice(100)
        self.loop.reset(self.receiver)
        self.sender.sendall(b"x" * 50)
        self.loop.until(lambda: self.from_sink.events == ["lost"])
        self.assertEqual(self.finished, [])
        self.assertEqual(splice.PIPES.lent, self.lent)

    def test_a_stalled_sink_is_reset_after_write_stall_also_in_a_splice(self):
        self.splice(100 * MIB)
        self.sender.setblocking(False)

        def full():
            try:
                self.sender.send(b"x" * MIB)
            except BlockingIOError:
                pass
            return self.sink.splice_out is not None and self.sink.splice_out.held

        self.loop.until(full)
        self.loop.travel(25, 0.5)
        self.assertEqual(self.from_sink.events, [])
        self.loop.travel(8, 0.5)
        self.assertEqual(self.from_sink.events, ["lost"])
        self.assertIsInstance(self.from_sink.reason.value, errors.WriteStall)

    def test_cancelled_it_gives_the_source_back_and_says_nothing(self):
        moved = self.splice(100)
        self.sender.sendall(b"abc")
        self.assertEqual(self.loop.read_all(self.receiver, 3), b"abc")
        moved.cancel()
        moved.cancel()
        self.sender.sendall(b"def")
        self.loop.until(lambda: self.from_source.received == b"def")
        self.assertEqual((self.finished, moved.moved), ([], 3))
        self.assertEqual(splice.PIPES.lent, self.lent)

    def test_without_a_pipe_bytes_are_copied_to_the_same_effect(self):
        with mock.patch.object(relay_module, "PIPES", splice.Pipes(most=0)):
            self.test_exactly_so_many_bytes_go_and_the_next_ones_are_the_protocols()
            self.setUp()
            self.test_an_early_end_of_the_source_is_told_to_its_protocol_after_what_came()

    def test_nothing_to_move_or_something_encrypted_is_a_mistake(self):
        self.assertRaises(ValueError, self.splice, 0)
        with mock.patch.object(type(self.sink), "is_plain", False):
            self.assertRaises(ValueError, self.splice, 1)


class States(SynchronousTestCase):
    def test_a_direction_only_moves_forward(self):
        order = list(DirectionState)
        self.assertEqual(set(TRANSITIONS), set(order))
        for state, after in TRANSITIONS.items():
            for to in after:
                self.assertGreater(order.index(to), order.index(state))


RELAY = """
import socket, sys
from twistedproxy.net.reactor import install
reactor = install()
from twistedproxy.clock import TICK_S, Wheel
from twistedproxy.net.relay import Relay
from twistedproxy.net.transport import Transport
wheel = Wheel(reactor.seconds)
sides = []
for fd in map(int, sys.argv[1:]):
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    sides.append(Transport(reactor, wheel, sock, ""))
Relay(*sides, wheel, idle_s=60, half_closed_s=60, on_done=lambda e: reactor.stop()).start()
reactor.run()
"""


@unittest.skipUnless(shutil.which("strace"), "needs strace")
class Cost(SynchronousTestCase):
    def test_a_small_exchange_is_2_recv_2_send_and_no_epoll_ctl(self):
        """The promise of the hot path, counted by strace in a process of its own."""
        listening = self.loop.listen()
        theirs = []
        pairs = []
        for _ in range(2):
            end = self.loop.keep(socket.create_connection(listening.getsockname()))
            theirs.append(listening.accept()[0])
            pairs.append(end)
        client, server = pairs
        for sock in pairs:
            sock.settimeout(20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trace = self.mktemp()
        fds = [sock.fileno() for sock in theirs]
        process = subprocess.Popen(
            ["strace", "-f", "-o", trace, sys.executable, "-c", textwrap.dedent(RELAY), *map(str, fds)],
            pass_fds=fds,
            stderr=subprocess.PIPE,
        )
        try:
            self.exchange(client, server, b"WARM", b"warm")
            for n in range(50):
                self.exchange(client, server, b"Q%03d" % n, b"a%03d" % n)
            client.close()
            server.close()
            for sock in theirs:
                sock.close()
            process.wait(20)
        except TimeoutError:
            process.kill()
            problem = process.communicate()[1].decode()
            if "ptrace" in problem or "PTRACE" in problem:
                raise unittest.SkipTest(f"strace may not trace here: {problem.splitlines()[0]}") from None
            raise
        finally:
            process.kill()
            process.communicate()
        with open(trace) as f:
            calls = f.read().splitlines()
        first = next(i for i, line in enumerate(calls) if '"Q000"' in line)
        last = max(i for i, line in enumerate(calls) if '"a049"' in line)
        names = [re.match(r"\d+ +(\w+)\(", line).group(1) for line in calls[first : last + 1]]
        counts = {name: names.count(name) for name in set(names)}
        self.assertEqual((counts.pop("recvfrom"), counts.pop("sendto")), (100, 100))
        self.assertLessEqual(counts.pop("epoll_wait", 0) + counts.pop("epoll_pwait", 0), 110)
        self.assertEqual(counts, {})

    def exchange(self, client, server, question, answer):
        client.sendall(question)
        self.assertEqual(server.recv(100), question)
        server.sendall(answer)
        self.assertEqual(client.recv(100), answer)
