"""The event loop: fast for the common events, exact for the rare ones, and one connection's bug is one connection's end."""

import os
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
from unittest import mock

from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net.reactor import ProxyReactor


def run(script):
    """Run a script with a `ProxyReactor` installed; returns what it printed."""
    prelude = "from twistedproxy.net.reactor import install\nreactor = install()\nimport os, socket, sys, threading, time\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(script)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Clock(SynchronousTestCase):
    def test_F1_timers_run_on_the_monotonic_clock(self):
        with mock.patch("time.time", return_value=0.0):
            self.assertLess(abs(self.loop.reactor.seconds() - time.monotonic()), 1.0)
            call = self.loop.reactor.callLater(10, lambda: None)
            self.assertLess(abs(call.getTime() - time.monotonic() - 10), 1.0)


class Reader:
    """A selectable that is no transport."""

    def __init__(self, sock, do_read):
        self.sock, self.doRead, self.lost = sock, do_read, []

    def fileno(self):
        return self.sock.fileno()

    def logPrefix(self):
        return "reader"

    def connectionLost(self, reason):
        self.lost.append(reason)


class Dispatch(SynchronousTestCase):
    def reader(self, do_read):
        ours, peer = socket.socketpair()
        self.loop.keep(ours)
        reader = Reader(ours, do_read)
        self.loop.reactor.addReader(reader)
        return reader, self.loop.keep(peer)

    def test_an_exception_disconnects_its_selectable_and_no_other(self):
        def fail():
            raise ZeroDivisionError

        bad, bad_peer = self.reader(fail)
        seen = []
        good, good_peer = self.reader(lambda: seen.append(good.sock.recv(9)))
        for _ in range(3):
            bad_peer.send(b"x")
        good_peer.send(b"y")
        self.loop.until(lambda: bad.lost and seen)
        self.assertTrue(bad.lost[0].check(ZeroDivisionError))
        good_peer.send(b"z")
        self.loop.until(lambda: seen == [b"y", b"z"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_flood_of_exceptions_is_one_report_a_second(self):
        def fail():
            raise ZeroDivisionError

        bad = [self.reader(fail) for _ in range(50)]
        for _, peer in bad:
            peer.send(b"x")
        self.loop.until(lambda: all(reader.lost for reader, _ in bad))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.loop.reactor._crash_log.left_out, 49)

    def test_an_exception_while_disconnecting_does_not_reach_the_loop(self):
        def fail():
            raise ZeroDivisionError

        bad, peer = self.reader(fail)
        bad.connectionLost = mock.Mock(side_effect=KeyError)
        peer.send(b"x")
        self.loop.turns()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, KeyError)), 1)

    def test_reading_and_writing_at_once_is_served_in_that_order(self):
        transport, peer, recorder = self.loop.started()
        self.loop.fill(transport)
        order = []
        recorder.dataReceived = lambda data: order.append("read")
        do_write = transport.doWrite

        def write_too(transport):
            order.append("write")
            do_write()

        with mock.patch.object(type(transport), "doWrite", write_too):
            peer.send(b"x")
            poller = self.loop.reactor._poller
            events = [(transport.fileno(), select.EPOLLIN | select.EPOLLOUT)]
            self.loop.reactor._poller = mock.Mock(wraps=poller, poll=lambda *a: events)
            self.loop.turn()
            self.loop.reactor._poller = poller
        self.assertEqual(order, ["read", "write"])

    def test_a_late_event_of_a_closed_descriptor_does_not_hurt_its_new_owner(self):
        """Both events come out of one poll; the first closes the second's connection and a new one gets its number."""
        first, first_peer, first_told = self.loop.started()
        second, _second_peer, _ = self.loop.started()
        number = second.fileno()
        found = []

        def take_over(data):
            second.abortConnection()
            found.extend(self.loop.started())

        first_told.dataReceived = take_over
        poll = self.loop.reactor._poller.poll
        events = [(first.fileno(), select.EPOLLIN), (number, select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR)]
        first_peer.send(b"x")
        self.loop.reactor._poller = mock.Mock(wraps=self.loop.reactor._poller, poll=lambda *a: events)
        self.loop.turn()
        self.loop.reactor._poller = mock.Mock(wraps=self.loop.reactor._poller, poll=poll)
        new, new_peer, told = found
        self.assertEqual(new.fileno(), number, "the test needs the same number")
        new_peer.send(b"hello")
        self.loop.until(lambda: told.received == b"hello")
        self.assertEqual(told.events, [])

    def test_an_event_in_hand_is_not_given_to_whoever_takes_the_descriptor_next(self):
        """The new owner may have no way to take it: an attempt to connect does not read, a paused one believes a hang-up."""
        for event in (select.EPOLLIN, select.EPOLLIN | select.EPOLLHUP | select.EPOLLRDHUP):
            first, first_peer, first_told = self.loop.started()
            second, _, _ = self.loop.started()
            third, _, _ = self.loop.started()
            numbers = second.fileno(), third.fileno()
            ends = socket.socketpair()
            found = []

            def take_over(data, second=second, third=third, found=found, numbers=numbers, ends=ends):
                second.abortConnection()
                third.abortConnection()
                for end, number in zip(ends, numbers, strict=True):
                    found.append(Reader(self.loop.keep(socket.socket(fileno=os.dup2(end.fileno(), number))), None))
                    end.close()
                writer, parked = found
                del writer.doRead
                writer.doWrite = mock.Mock(return_value=None)
                self.loop.reactor.addWriter(writer)
                parked.stays_watched, parked.doRead, parked.hung_up = True, mock.Mock(return_value=None), mock.Mock()
                self.loop.reactor.watch(parked, 0)

            first_told.dataReceived = take_over
            first_peer.send(b"x")
            poller = self.loop.reactor._poller
            events = [(first.fileno(), select.EPOLLIN), *((number, event) for number in numbers)]
            self.loop.reactor._poller = mock.Mock(wraps=poller, poll=lambda *a, events=events: events)
            self.loop.turn()
            self.loop.reactor._poller = poller
            writer, parked = found
            self.assertEqual((writer.lost, parked.hung_up.called, parked.doRead.called), ([], False, False))
            self.loop.until(lambda writer=writer: writer.doWrite.called)
            self.loop.reactor.forget(writer)
            self.loop.reactor.forget(parked)

    def test_twisteds_own_transports_work_on_it(self):
        """AMP to the supervisor runs on them."""
        a, b = socket.socketpair()
        a.setblocking(False)
        self.loop.keep(b)
        seen = []

        class Echo(Protocol):
            def dataReceived(self, data):
                self.transport.write(data.upper())

            def connectionLost(self, reason):
                seen.append("lost")

        factory = mock.Mock(buildProtocol=lambda address: Echo())
        self.loop.reactor.adoptStreamConnection(a.fileno(), socket.AF_UNIX, factory)
        a.close()
        b.send(b"hello")
        self.loop.until(lambda: self._peek(b))
        self.assertEqual(b.recv(10), b"HELLO")
        b.close()
        self.loop.until(lambda: seen == ["lost"])

    @staticmethod
    def _peek(sock):
        try:
            return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""


class Soon(SynchronousTestCase):
    def test_what_shall_be_done_soon_runs_after_the_events_in_hand_even_if_nothing_else_happens(self):
        order = []
        self.loop.reactor.soon(order.append, 1)
        self.assertEqual(order, [])
        started = time.monotonic()
        self.loop.turn(3.0)
        self.assertEqual(order, [1])
        self.assertLess(time.monotonic() - started, 1.0)

    def test_what_it_asks_for_itself_comes_after_it_and_an_error_does_not_stop_the_rest(self):
        order = []
        soon = self.loop.reactor.soon
        soon(lambda n: soon(order.append, n), "second")
        soon(lambda n: 1 / n, 0)
        soon(order.append, "first")
        self.loop.turn()
        self.assertEqual(order[0], "first")
        self.loop.until(lambda: order == ["first", "second"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class Parking(SynchronousTestCase):
    def masks(self, transport):
        fd = transport.fileno()
        with open(f"/proc/self/fdinfo/{self.loop.reactor._poller.fileno()}") as f:
            for line in f:
                words = line.split()
                if words[0] == "tfd:" and int(words[1]) == fd:
                    return int(words[3], 16) & ~(select.EPOLLERR | select.EPOLLHUP)
        return None

    def test_F5_a_paused_connection_stays_in_epoll_with_an_empty_mask(self):
        transport, _, _ = self.loop.started()
        self.assertEqual(self.masks(transport), select.EPOLLIN)
        transport.pauseProducing()
        self.assertEqual(self.masks(transport), 0)
        transport.resumeProducing()
        self.assertEqual(self.masks(transport), select.EPOLLIN)

    def test_a_closed_one_leaves_nothing_behind(self):
        reactor = self.loop.reactor
        for act in (lambda t: None, lambda t: t.pauseProducing()):
            transport, _, _ = self.loop.started()
            fd = transport.fileno()
            act(transport)
            transport.abortConnection()
            for table in (reactor._selectables, reactor._reads, reactor._writes, reactor._parked):
                self.assertNotIn(fd, table)

    def test_a_descriptor_that_changes_hands_is_watched_for_its_new_owner_only(self):
        reactor = self.loop.reactor
        transport, peer, _ = self.loop.started(small=True)
        self.loop.fill(transport)
        new = Reader(transport.sock, mock.Mock(return_value=None))
        new.hung_up, new.doWrite, new.stays_watched = mock.Mock(), mock.Mock(), True
        reactor.hand_over(transport, new)
        reactor.settle(transport.fileno())
        self.assertEqual(self.masks(transport), 0)
        peer.recv(1 << 20)
        peer.send(b"x")
        self.loop.turns()
        self.assertFalse(new.doRead.called or new.doWrite.called)
        reactor.addReader(new)
        self.loop.until(lambda: new.doRead.called)
        reactor.forget(new)

    def test_an_heir_that_reads_on_costs_no_system_call_and_one_that_does_not_is_left_alone(self):
        reactor = self.loop.reactor
        poller = reactor._poller
        for watched_first in (False, True):
            transport, peer, _ = self.loop.started()
            fd = transport.fileno()
            new = Reader(transport.sock, mock.Mock(return_value=None))
            new.hung_up, new.stays_watched = mock.Mock(), True
            reactor._poller = mock.Mock(wraps=poller)
            reactor.hand_over(transport, new)
            if watched_first:
                reactor.watch(new, select.EPOLLRDHUP)
            reactor.addReader(new)
            self.assertEqual(reactor._poller.modify.called, watched_first)
            reactor._poller = poller
            self.assertEqual(self.masks(transport), select.EPOLLIN)
            reactor.removeReader(new)
            self.assertEqual(self.masks(transport), 0)
            reactor.addReader(new)
            reactor.settle(fd)
            self.assertEqual(self.masks(transport), select.EPOLLIN)
            peer.send(b"x")
            self.loop.until(lambda new=new: new.doRead.called)
            reactor.forget(new)

    def test_stopping_the_reactor_finds_paused_connections_too(self):
        transport, _, _ = self.loop.started()
        paused, _, _ = self.loop.started()
        paused.pauseProducing()
        self.assertLessEqual({transport, paused}, set(self.loop.reactor.removeAll()))
        self.assertIsNone(self.masks(paused))


class Running(SynchronousTestCase):
    """The loop inside `doPoll` must give way whenever the reactor has something to do."""

    def test_timed_calls_made_by_an_event_run_on_time(self):
        out = run("""
            a, b = socket.socketpair()
            class Reader:
                def fileno(self): return a.fileno()
                def logPrefix(self): return "r"
                def doRead(self):
                    a.recv(10)
                    reactor.callLater(0, print, "soon", flush=True)
                    reactor.callLater(0.05, reactor.stop)
                def connectionLost(self, reason): pass
            reactor.addReader(Reader())
            started = time.monotonic()
            reactor.callLater(0.01, b.send, b"x")
            reactor.run()
            print(time.monotonic() - started < 2)
        """)
        self.assertEqual(out, "soon\nTrue\n")

    def test_calls_from_threads_run_at_once(self):
        out = run("""
            def work():
                time.sleep(0.05)
                reactor.callFromThread(lambda: (print("called", flush=True), reactor.stop()))
            reactor.callWhenRunning(lambda: threading.Thread(target=work).start())
            reactor.run()
        """)
        self.assertEqual(out, "called\n")

    def test_a_timed_call_moved_forward_is_heeded(self):
        out = run("""
            late = reactor.callLater(50, reactor.stop)
            a, b = socket.socketpair()
            class Reader:
                def fileno(self): return a.fileno()
                def logPrefix(self): return "r"
                def doRead(self):
                    a.recv(10)
                    late.reset(0.02)
                def connectionLost(self, reason): pass
            reactor.addReader(Reader())
            reactor.callLater(0.01, b.send, b"x")
            reactor.run()
            print("stopped")
        """)
        self.assertEqual(out, "stopped\n")

    def test_signals_stop_it(self):
        out = run("""
            import signal
            reactor.callWhenRunning(lambda: threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start())
            reactor.run()
            print("stopped")
        """)
        self.assertEqual(out, "stopped\n")

    def test_busy_connections_do_not_keep_timed_calls_waiting(self):
        out = run("""
            from twistedproxy.clock import Wheel
            from twistedproxy.net.transport import Transport
            wheel = Wheel(reactor.seconds)
            a, b = socket.socketpair()
            for s in (a, b): s.setblocking(False)
            class Pong:
                def __init__(self, s): self.t = Transport(reactor, wheel, s, ""); self.t.start(self); self.n = 0
                def dataReceived(self, data): self.n += 1; self.t.write(data)
                def readConnectionLost(self): pass
                def connectionLost(self, reason): pass
            x, y = Pong(a), Pong(b)
            x.t.write(b"ball")
            times = []
            def tick():
                times.append(time.monotonic())
                if len(times) == 10: reactor.stop()
                else: reactor.callLater(0.02, tick)
            reactor.callWhenRunning(tick)
            reactor.run()
            print(x.n > 100, times[-1] - times[0] < 1.5)
        """)
        self.assertEqual(out, "True True\n")

    def test_what_we_read_of_twisteds_reactor_is_still_there(self):
        """`doPoll` looks at private attributes; a Twisted without them must fail here and not in production."""
        reactor = self.loop.reactor
        for name in (
            "_newTimedCalls",
            "_pendingTimedCalls",
            "threadCallQueue",
            "_justStopped",
            "_started",
            "_selectables",
            "_reads",
            "_writes",
        ):
            self.assertTrue(hasattr(reactor, name), name)
        call = reactor.callLater(5, lambda: None)
        self.assertIn(call, reactor._newTimedCalls)
        reactor.callFromThread(lambda: None)
        self.assertTrue(reactor.threadCallQueue)

    def test_a_second_instance_does_not_disturb_the_first(self):
        other = ProxyReactor()
        fds = len(os.listdir("/proc/self/fd"))
        self.assertIsNot(other._poller, self.loop.reactor._poller)
        other.waker.connectionLost(None)
        other._poller.close()
        self.assertLess(len(os.listdir("/proc/self/fd")), fds)
        self.assertEqual(threading.active_count(), 1)
