"""One connected socket: what an exchange costs, who is told what, and what may never hang."""

import os
import socket
import sys
from unittest import mock

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import WriteStall
from twistedproxy.net import sides
from twistedproxy.net.transport import HARD_CAP, HIGH_WATER, LOW_WATER, Transport, tune


class Exchange(SynchronousTestCase):
    def test_what_the_peer_sends_arrives_and_what_is_written_reaches_it(self):
        transport, peer, recorder = self.loop.started()
        peer.sendall(b"question")
        self.loop.until(lambda: recorder.received == b"question")
        transport.write(b"ans")
        transport.writeSequence([b"w", b"er"])
        self.assertEqual(self.loop.read_all(peer, 6), b"answer")

    def test_a_keep_alive_exchange_is_one_recv_and_one_send_and_no_epoll_call(self):
        """The hot path's budget, counted at the calls themselves (strace counts the whole relay in test_relay)."""
        transport, peer, recorder = self.loop.started()
        calls = []
        receive, send = transport._recv, transport._send
        transport._recv = lambda n: calls.append("recv") or receive(n)
        transport._send = lambda data: calls.append("send") or send(data)
        epoll = self.loop.reactor._poller
        self.loop.reactor._poller = mock.Mock(
            poll=epoll.poll, register=lambda *a: calls.append("ctl"), modify=lambda *a: calls.append("ctl"), close=epoll.close
        )
        recorder.dataReceived = transport.write
        for _ in range(3):
            peer.sendall(b"ping")
            self.loop.turn(1.0)
            self.assertEqual(peer.recv(100), b"ping")
        self.loop.reactor._poller = epoll
        self.assertEqual(calls, ["recv", "send"] * 3)

    def test_an_idle_connection_stays_below_a_kilobyte(self):
        transport, _, _ = self.loop.started()
        sock = transport.sock
        size = sys.getsizeof
        total = size(transport) + size(sock) + size(transport._recv) + size(transport._send) + size("255.255.255.255")
        self.assertLess(total + 200, 1024)  # 200: the reactor's entries
        self.assertFalse(hasattr(transport, "__dict__"))

    def test_the_peer_and_our_own_address_are_known(self):
        transport, peer, _ = self.loop.started()
        self.assertEqual(transport.local, peer.getpeername())
        self.assertEqual((transport.peer, transport.peer_port), ("127.0.0.1", 1))
        transport.abortConnection()
        self.assertEqual(transport.local, ("", 0))

    def test_it_works_on_unix_sockets_and_on_twisteds_own_reactor(self):
        loop = self.fakes.Loop(EPollReactor)
        self.addCleanup(loop.close)
        transport, peer, recorder = loop.started(family=socket.AF_UNIX)
        peer.sendall(b"hello")
        loop.until(lambda: recorder.received == b"hello")
        transport.write(b"bye")
        transport.loseConnection()
        self.assertEqual(loop.read_all(peer), b"bye")
        loop.until(lambda: recorder.events == ["lost"])

    def test_a_paused_connection_reads_nothing_until_it_is_resumed(self):
        transport, peer, recorder = self.loop.started()
        transport.pauseProducing()
        peer.sendall(b"later")
        self.loop.turns()
        self.assertEqual(recorder.received, b"")
        transport.resumeProducing()
        self.loop.until(lambda: recorder.received == b"later")

    def test_started_without_reading_it_waits_for_resume(self):
        transport, peer = self.loop.transport()
        recorder = self.fakes.Recorder()
        transport.start(recorder, reading=False)
        peer.sendall(b"early")
        self.loop.turns()
        self.assertEqual(recorder.received, b"")
        transport.resumeProducing()
        self.loop.until(lambda: recorder.received == b"early")


class Buffering(SynchronousTestCase):
    def test_what_the_kernel_refuses_is_sent_later_in_order(self):
        transport, peer, _ = self.loop.started()
        data = os.urandom(HIGH_WATER * 8)
        for at in range(0, len(data), 10_000):
            transport.write(data[at : at + 10_000])
        self.assertEqual(self.loop.read_all(peer, len(data)), data)
        self.assertEqual(transport.buffered, 0)

    def test_the_producer_is_paused_above_the_high_mark_and_resumed_at_the_low_one(self):
        transport, peer, recorder = self.loop.started(small=True)
        transport.registerProducer(recorder)
        while transport.buffered <= HIGH_WATER:
            self.assertEqual(recorder.events, [])
            transport.write(b"x" * 5000)
        transport.write(b"x" * 5000)
        self.assertEqual(recorder.events, ["pause"])
        self.assertTrue(transport.is_full)
        seen = []
        recorder.resumeProducing = lambda: seen.append(transport.buffered)
        peer.setblocking(False)
        self.loop.until(lambda: self._drain(peer) or seen)
        self.assertLessEqual(seen[0], LOW_WATER)
        self.assertGreater(seen[0], 0, "resumed only when empty: the sink would run dry")

    @staticmethod
    def _drain(peer):
        try:
            peer.recv(4096)
        except BlockingIOError:
            pass

    def test_a_producer_registered_on_a_full_connection_is_told_at_once(self):
        transport, _, recorder = self.loop.started(small=True)
        transport.write(b"x" * (HIGH_WATER * 3))
        transport.registerProducer(recorder)
        self.assertEqual(recorder.events, ["pause"])

    def test_pull_producers_are_refused(self):
        transport, _, recorder = self.loop.started()
        self.assertRaises(ValueError, transport.registerProducer, recorder, False)

    def test_an_owner_that_ignores_backpressure_costs_one_connection_and_not_the_memory(self):
        transport, _, recorder = self.loop.started(small=True)
        for _ in range(40):
            transport.write(b"x" * 65536)
        self.assertLessEqual(transport.buffered, HARD_CAP)
        self.loop.until(lambda: recorder.events == ["lost"])
        self.assertIn("1048576", str(recorder.reason.value))

    def test_writing_after_the_end_does_nothing(self):
        transport, _, recorder = self.loop.started()
        transport.abortConnection()
        transport.write(b"too late")
        transport.writeSequence([b"too", b"late"])
        transport.loseWriteConnection()
        transport.loseConnection()
        transport.linger()
        transport.resumeProducing()
        transport.pauseProducing()
        self.loop.until(lambda: recorder.events == ["lost"])
        self.loop.turns()
        self.assertEqual(recorder.events, ["lost"])


class Ends(SynchronousTestCase):
    def test_the_peers_fin_is_eof_once_and_our_side_may_still_send(self):
        transport, peer, recorder = self.loop.started()
        peer.sendall(b"last words")
        peer.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: recorder.events == ["eof"])
        self.assertEqual(recorder.received, b"last words")
        transport.write(b"answer")
        self.assertEqual(peer.recv(100), b"answer")

    def test_F6_resuming_after_eof_does_not_deliver_it_again(self):
        transport, peer, recorder = self.loop.started()
        peer.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: recorder.events == ["eof"])
        transport.pauseProducing()
        transport.resumeProducing()
        self.loop.turns()
        self.assertEqual(recorder.events, ["eof"])

    def test_with_fin_both_ways_the_connection_is_over_in_either_order(self):
        for fin_first in (True, False):
            transport, peer, recorder = self.loop.started()
            if fin_first:
                transport.loseWriteConnection()
                self.assertEqual(peer.recv(1), b"")
                peer.shutdown(socket.SHUT_WR)
            else:
                peer.shutdown(socket.SHUT_WR)
                self.loop.until(lambda r=recorder: r.events == ["eof"])
                transport.loseWriteConnection()
                self.assertEqual(recorder.events, ["eof"], "told from inside the owner's call")
            self.loop.until(lambda r=recorder: r.events == ["eof", "lost"])
            self.assertTrue(recorder.reason.check(ConnectionDone))
            self.assertTrue(transport.is_closed)

    def test_half_closing_flushes_first_and_says_when_fin_is_out(self):
        transport, peer, recorder = self.loop.started()
        said = []
        transport.loseWriteConnection(lambda: said.append("at once"))
        self.assertEqual(said, ["at once"])
        transport, peer, recorder = self.loop.started()
        written = self.loop.fill(transport)
        transport.loseWriteConnection(lambda: said.append("later"))
        self.assertEqual(said, ["at once"])
        transport.write(b"after FIN: dropped")
        self.assertEqual(len(self.loop.read_all(peer)), written)
        self.assertEqual(said, ["at once", "later"])
        peer.send(b"still reading")
        self.loop.until(lambda: recorder.received == b"still reading")

    def test_closing_flushes_what_is_left(self):
        transport, peer, recorder = self.loop.started()
        written = self.loop.fill(transport)
        transport.loseConnection()
        self.assertEqual(len(self.loop.read_all(peer)), written)
        self.loop.until(lambda: recorder.events == ["lost"])
        self.assertTrue(recorder.reason.check(ConnectionDone))

    def test_closing_with_nothing_left_tells_the_owner_next_turn_and_not_from_inside(self):
        for end in ("loseConnection", "abortConnection"):
            transport, _, recorder = self.loop.started()
            getattr(transport, end)()
            self.assertEqual(recorder.events, [])
            self.assertEqual(transport.sock.fileno(), -1, "the descriptor is free at once")
            self.loop.until(lambda r=recorder: r.events == ["lost"])

    def test_L4_03_abort_is_a_reset_on_the_wire(self):
        transport, peer, _ = self.loop.started()
        transport.write(b"x")
        transport.abortConnection()
        self.assertTrue(self.loop.is_reset(peer))

    def test_L4_03_the_peers_reset_is_never_an_eof(self):
        _transport, peer, recorder = self.loop.started()
        self.loop.reset(peer)
        self.loop.until(lambda: recorder.events)
        self.assertEqual(recorder.events, ["lost"])
        self.assertIsInstance(recorder.reason.value, ConnectionResetError)

    def test_L4_03_a_reset_met_while_writing_is_told_after_what_had_come_and_never_as_eof(self):
        """The kernel reports a reset once; when `send` has taken it, `recv` would say EOF."""
        transport, peer, recorder = self.loop.started()
        peer.sendall(b"the answer")
        self.loop.reset(peer)
        transport.write(b"a")
        transport.write(b"b")
        self.assertEqual(recorder.events, [])
        self.loop.until(lambda: recorder.events)
        self.assertEqual((recorder.received, recorder.events), (b"the answer", ["lost"]))
        self.assertIsInstance(recorder.reason.value, OSError)

    def test_a_failed_write_on_a_paused_connection_is_told_next_turn(self):
        transport, peer, recorder = self.loop.started()
        transport.pauseProducing()
        self.loop.reset(peer)
        transport.write(b"a")
        transport.write(b"b")
        self.assertEqual(recorder.events, [])
        self.loop.until(lambda: recorder.events == ["lost"])

    def test_an_error_in_the_owner_costs_this_connection_only_and_is_logged(self):
        _transport, peer, recorder = self.loop.started()
        _, other_peer, other = self.loop.started()

        def fail(data):
            raise ZeroDivisionError("bug")

        recorder.dataReceived = fail
        peer.sendall(b"boom")
        other_peer.sendall(b"fine")
        self.loop.until(lambda: recorder.events == ["lost"])
        self.loop.until(lambda: other.received == b"fine")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(self.loop.is_reset(peer))

    def test_an_error_after_closing_does_not_hurt_who_has_the_descriptor_next(self):
        first, peer, recorder = self.loop.started()
        number = first.fileno()
        found = []

        def close_and_fail(data):
            first.abortConnection()
            ours, _ = os.dup2(peer.fileno(), number), peer
            new = socket.socket(fileno=ours)
            new.setblocking(False)
            transport = Transport(self.loop.reactor, self.loop.wheel, new, "")
            found.append((transport, self.fakes.Recorder()))
            transport.start(found[0][1])
            raise ZeroDivisionError

        recorder.dataReceived = close_and_fail
        other = self.loop.keep(socket.socket())
        other.bind(("127.0.0.1", 0))
        peer.send(b"x")
        self.loop.until(lambda: found)
        self.flushLoggedErrors(ZeroDivisionError)
        self.assertIn(number, self.loop.reactor._reads)
        self.assertIs(self.loop.reactor._selectables[number], found[0][0])


class Lingering(SynchronousTestCase):
    def test_the_last_answer_reaches_a_client_that_is_still_sending(self):
        """A plain close with unread input makes the kernel reset the connection and the answer is lost."""
        transport, peer, recorder = self.loop.started()
        peer.sendall(b"x" * 10_000)
        transport.write(b"413 Too Large")
        transport.linger()
        peer.sendall(b"x" * 10_000)
        self.loop.turns()
        self.assertEqual(self.loop.read_all(peer), b"413 Too Large")
        self.assertEqual(recorder.received, b"", "nothing is delivered any more")
        peer.close()
        self.loop.until(lambda: recorder.events == ["lost"])
        self.assertTrue(recorder.reason.check(ConnectionDone))

    def test_it_reads_no_more_than_64_kib(self):
        transport, peer, recorder = self.loop.started()
        transport.linger()
        with self.assertRaises(OSError):
            for _ in range(100):
                peer.send(b"x" * 10_000)
                self.loop.turn(0.001)
        self.loop.until(lambda: recorder.events == ["lost"])

    def test_it_lasts_no_longer_than_5_s(self):
        transport, _peer, recorder = self.loop.started()
        transport.linger()
        self.loop.travel(4.8)
        self.assertEqual(recorder.events, [])
        self.loop.travel(0.5)
        self.assertEqual(recorder.events, ["lost"])

    def test_after_eof_or_half_close_it_is_a_plain_close(self):
        transport, peer, recorder = self.loop.started()
        peer.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: recorder.events == ["eof"])
        transport.linger()
        self.loop.until(lambda: recorder.events == ["eof", "lost"])
        transport, peer, recorder = self.loop.started()
        transport.loseWriteConnection()
        transport.linger()
        peer.close()
        self.loop.until(lambda: recorder.events == ["lost"])

    def test_output_that_waits_is_sent_before_fin(self):
        transport, peer, recorder = self.loop.started()
        written = self.loop.fill(transport)
        transport.linger()
        self.assertEqual(len(self.loop.read_all(peer)), written)
        peer.close()
        self.loop.until(lambda: recorder.events == ["lost"])


class Stalls(SynchronousTestCase):
    def test_F5_F6_a_peer_that_takes_nothing_is_reset_after_write_stall(self):
        transport, peer, recorder = self.loop.started(small=True)
        transport.pauseProducing()
        self.loop.fill(transport)
        self.loop.travel(29.0, 0.5)
        self.assertEqual(recorder.events, [])
        self.loop.travel(3.5, 0.5)
        self.assertEqual(recorder.events, ["lost"])
        self.assertIsInstance(recorder.reason.value, WriteStall)
        self.assertTrue(self.loop.is_reset(peer))

    def test_a_slow_reader_is_not_a_stalled_one(self):
        """It acknowledges little, far too little for epoll to call the socket writable, but it does."""
        ours, peer = self.loop.socket_pair()
        transport, recorder = Transport(self.loop.reactor, self.loop.wheel, ours, "", 0, 30.0), self.fakes.Recorder()
        transport.start(recorder)
        self.loop.fill(transport)
        writable_at = transport.buffered
        for _ in range(6):
            peer.recv(400_000)
            self.loop.travel(20.0, 0.5)
            self.assertEqual(recorder.events, [])
        self.assertLessEqual(transport.buffered, writable_at)

    def test_F6_closing_does_not_wait_for_a_peer_that_takes_nothing(self):
        for end in ("loseConnection", "linger"):
            transport, _, recorder = self.loop.started(small=True)
            self.loop.fill(transport)
            getattr(transport, end)()
            self.loop.travel(4.5, 0.25)
            self.assertEqual(recorder.events, [])
            self.loop.travel(1.2, 0.25)
            self.assertEqual(recorder.events, ["lost"])
            self.assertIsInstance(recorder.reason.value, WriteStall)

    def test_no_deadline_is_left_once_everything_was_sent(self):
        transport, peer, recorder = self.loop.started()
        self.loop.read_all(peer, self.loop.fill(transport))
        self.loop.travel(60, 1.0)
        self.assertEqual(recorder.events, [])


class Paused(SynchronousTestCase):
    def test_F5_a_reset_is_noticed_although_nothing_is_read_or_written(self):
        transport, peer, recorder = self.loop.started()
        transport.pauseProducing()
        self.loop.turns()
        self.loop.reset(peer)
        self.loop.until(lambda: recorder.events == ["lost"])
        self.assertIsInstance(recorder.reason.value, ConnectionResetError)

    def test_what_came_before_the_reset_can_still_be_read(self):
        transport, peer, recorder = self.loop.started()
        transport.pauseProducing()
        peer.sendall(b"the whole answer")
        self.loop.turns()
        self.loop.reset(peer)
        self.loop.turns()
        self.assertEqual(recorder.events, [])
        transport.resumeProducing()
        self.loop.until(lambda: recorder.events == ["lost"])
        self.assertEqual(recorder.received, b"the whole answer")
        self.assertIsInstance(recorder.reason.value, ConnectionResetError)

    def test_a_connection_ended_both_ways_with_input_left_does_not_spin(self):
        transport, peer, recorder = self.loop.started()
        transport.pauseProducing()
        peer.sendall(b"unread")
        peer.shutdown(socket.SHUT_WR)
        transport.loseWriteConnection()
        self.loop.turns()
        with mock.patch.object(Transport, "hung_up", side_effect=AssertionError("spins")):
            self.loop.turns()
        transport.resumeProducing()
        self.loop.until(lambda: recorder.events == ["eof", "lost"])
        self.assertEqual(recorder.received, b"unread")

    def watch(self):
        transport, peer = self.loop.transport()
        recorder, told = self.fakes.Recorder(), []
        transport.start(recorder, reading=False)
        transport.watch_hangup(lambda: told.append(transport.peer_seen()))
        self.loop.turns()
        return transport, peer, recorder, told

    def test_a_fin_is_noticed_without_reading_when_asked_for(self):
        _, peer, recorder, told = self.watch()
        peer.close()
        self.loop.until(lambda: told)
        self.loop.turns()
        self.assertEqual((told, recorder.events), ([sides.PeerSeen.ENDED], []))

    def test_and_what_was_sent_before_it_is_seen_and_not_taken(self):
        transport, peer, recorder, told = self.watch()
        peer.sendall(b"request")
        self.loop.turns()
        self.assertEqual((told, transport.peer_seen()), ([], sides.PeerSeen.HAS_SENT))
        peer.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: told)
        self.assertEqual(told, [sides.PeerSeen.HAS_SENT])
        transport.resumeProducing()
        self.loop.until(lambda: recorder.events == ["eof"])
        self.assertEqual(recorder.received, b"request")

    def test_nothing_is_told_once_reading_has_begun(self):
        transport, peer, recorder, told = self.watch()
        transport.resumeProducing()
        peer.close()
        self.loop.until(lambda: recorder.events == ["eof"])
        self.assertEqual(told, [])

    def test_a_silent_and_a_reset_peer_are_told_apart(self):
        transport, peer = self.loop.transport()
        self.assertIs(transport.peer_seen(), sides.PeerSeen.SILENT)
        self.loop.reset(peer)
        self.loop.until(lambda: transport.peer_seen() is sides.PeerSeen.RESET)


class Tuning(SynchronousTestCase):
    def test_accepted_sockets_inherit_what_the_listening_one_was_given(self):
        listening = self.loop.listen()
        tune(listening)
        client = self.loop.keep(socket.create_connection(listening.getsockname()))
        accepted = self.loop.keep(listening.accept()[0])
        tune(client)
        tcp = socket.IPPROTO_TCP
        for sock in (accepted, client):
            self.assertTrue(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            self.assertTrue(sock.getsockopt(tcp, socket.TCP_NODELAY))
            found = [sock.getsockopt(tcp, o) for o in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)]
            self.assertEqual(found, [60, 10, 3])
            self.assertEqual(sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT), 90_000)

    def test_a_unix_socket_needs_none_of_it(self):
        tune(self.loop.keep(socket.socket(socket.AF_UNIX)))


class Life(SynchronousTestCase):
    def test_a_move_the_table_does_not_know_is_a_bug_and_not_a_state(self):
        transport, _, _ = self.loop.started()
        transport.abortConnection()
        self.assertRaises(AssertionError, transport._move, sides.State.OPEN)

    def test_repr_shows_the_states(self):
        transport, _, _ = self.loop.started()
        self.assertIn("open read=flowing write=open", repr(transport))
