"""Accepting: never more than allowed, never accept-then-reset, never a spin."""

import errno
import os
import resource
import socket
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net import listener as module
from twistedproxy.net.listener import MAX_ACCEPTS, Listener


class Accepting(SynchronousTestCase):
    def listener(self, most=100, family=socket.AF_INET, on_connection=None):
        self.accepted = []
        made = Listener(self.loop.reactor, on_connection or self.keep, most)
        self.addCleanup(made.stop)
        sock = self.loop.listen(family) if family != socket.AF_UNIX else self.unix()
        self.address = sock.getsockname()
        made.add_socket(0, sock)
        return made

    def unix(self):
        sock = self.loop.keep(socket.socket(socket.AF_UNIX))
        sock.bind(self.mktemp())
        sock.listen(10)
        return sock

    def keep(self, sock, ip, port):
        self.accepted.append((self.loop.keep(sock), ip, port))

    def client(self, family=socket.AF_INET):
        sock = self.loop.keep(socket.socket(family))
        sock.settimeout(5)
        sock.connect(self.address)
        return sock

    def test_a_connection_comes_with_its_address_and_ready_for_use(self):
        made = self.listener()
        client = self.client()
        self.loop.until(lambda: self.accepted)
        sock, ip, port = self.accepted[0]
        self.assertEqual((ip, port), client.getsockname())
        self.assertEqual(sock.gettimeout(), 0.0)
        self.assertTrue(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertTrue(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertEqual((made.open, made.total), (1, 1))

    def test_ipv6_unix_and_mapped_clients(self):
        self.listener(family=socket.AF_INET6)
        self.client(socket.AF_INET6)
        self.loop.until(lambda: self.accepted)
        self.assertEqual(self.accepted[0][1], "::1")
        self.listener(family=socket.AF_UNIX)
        self.client(socket.AF_UNIX)
        self.loop.until(lambda: self.accepted)
        self.assertEqual(self.accepted[0][1:], ("", 0))
        made = Listener(self.loop.reactor, self.keep, 10)
        self.addCleanup(made.stop)
        both = self.loop.keep(socket.socket(socket.AF_INET6))
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        both.listen()
        made.add_socket(0, both)
        self.address = ("127.0.0.1", both.getsockname()[1])
        self.accepted.clear()
        self.client()
        self.loop.until(lambda: self.accepted)
        self.assertEqual(self.accepted[0][1], "127.0.0.1")

    def test_P2_the_maximum_is_exact_and_the_rest_wait_in_the_kernel_without_a_reset(self):
        made = self.listener(most=3)
        clients = [self.client() for _ in range(6)]
        self.loop.until(lambda: made.open == 3)
        self.loop.turns(20)
        self.assertEqual(len(self.accepted), 3)
        for client in clients:
            client.setblocking(False)
            self.assertRaises(BlockingIOError, client.recv, 1)
        made.connection_closed()
        self.loop.until(lambda: len(self.accepted) == 4)
        self.loop.turns()
        self.assertEqual((len(self.accepted), made.open), (4, 3))
        made.set_max_connections(5)
        self.loop.until(lambda: len(self.accepted) == 6)

    def test_P2_it_is_exact_also_in_the_middle_of_a_storm(self):
        made = self.listener(most=3)
        made._sockets[0]._batch = MAX_ACCEPTS
        for _ in range(6):
            self.client()
        self.loop.turns(20)
        self.assertEqual(len(self.accepted), 3)

    def test_a_storm_is_taken_in_turns(self):
        self.listener(most=1000)
        clients = [self.client() for _ in range(90)]
        most = 0
        while len(self.accepted) < len(clients):
            before = len(self.accepted)
            self.loop.turn(0.1)
            most = max(most, len(self.accepted) - before)
        self.assertLessEqual(most, MAX_ACCEPTS)
        self.assertGreater(most, 1)

    def test_P3_without_descriptors_it_waits_says_so_once_and_goes_on(self):
        made = self.listener()
        said = []
        made._exhausted_log._logger.observer = said.append
        clients = [self.client() for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.open("/dev/null", os.O_RDONLY)
        os.close(lowest)
        turns = 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with mock.patch.object(made, "_try_again", wraps=made._try_again) as tried:
                made._retry_calls = tried
                end = self.loop.reactor.seconds() + 0.6
                while self.loop.reactor.seconds() < end:
                    self.loop.turn(0.1)
                    turns += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertLess(turns, 30, "a spin")
        self.assertEqual(self.accepted, [])
        self.assertEqual(len(said), 1)
        self.assertIn("Too many open files", said[0]["why"])
        self.loop.until(lambda: len(self.accepted) == 3, limit=1)
        for client in clients:
            client.setblocking(False)
            self.assertRaises(BlockingIOError, client.recv, 1)

    def test_P3_the_last_descriptors_are_kept_for_those_who_are_inside(self):
        made = self.listener()
        made.scarce_from = 0
        clients = [self.client() for _ in range(3)]
        self.loop.until(lambda: self.accepted, "the first")
        self.loop.turns(5)
        self.assertEqual(len(self.accepted), 1)
        self.assertFalse(made.is_accepting)
        made.scarce_from = 1 << 20
        self.loop.until(lambda: len(self.accepted) == len(clients), "the others, once descriptors are free again")

    def test_a_connection_lost_in_the_queue_is_passed_over(self):
        made = self.listener()
        listening = made._sockets[0]
        real = listening.sock
        for code in (errno.ECONNABORTED, errno.EPROTO, errno.EPERM):
            listening.sock = mock.Mock(_accept=mock.Mock(side_effect=OSError(code, "gone")))
            listening.doRead()
        listening.sock = real
        self.client()
        self.loop.until(lambda: self.accepted)

    def test_an_error_behind_it_costs_one_connection(self):
        def fail(sock, ip, port):
            raise ZeroDivisionError

        made = self.listener(on_connection=fail)
        client = self.client()
        self.assertEqual(self.loop.read_all(client), b"")
        self.assertEqual(made.open, 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_paused_it_accepts_nothing_and_loses_nothing(self):
        made = self.listener()
        made.pause()
        self.client()
        self.loop.turns()
        self.assertEqual(self.accepted, [])
        made.resume()
        self.loop.until(lambda: self.accepted)

    def test_several_sockets_and_taking_one_back(self):
        made = self.listener()
        second = self.loop.listen()
        copy = socket.socket(fileno=os.dup(second.fileno()))
        first_address, self.address = self.address, second.getsockname()
        made.add_socket(1, copy)
        self.client()
        self.loop.until(lambda: len(self.accepted) == 1)
        made.remove_socket(1)
        made.remove_socket(1)
        client = self.client()
        self.loop.turns()
        self.assertEqual(len(self.accepted), 1, "it waits for whoever has the socket next")
        second.setblocking(True)
        second.settimeout(5)
        self.loop.keep(second.accept()[0]).send(b"x")
        self.assertEqual(client.recv(1), b"x", "the socket itself was not shut down")
        self.address = first_address
        self.client()
        self.loop.until(lambda: len(self.accepted) == 2)

    def test_stopped_it_lets_go_of_everything_and_may_be_used_again(self):
        made = self.listener()
        made.exhausted("x")
        made.stop()
        self.assertEqual(self.loop.reactor.getDelayedCalls(), [])
        sock = self.loop.listen()
        self.address = sock.getsockname()
        made.add_socket(0, sock)
        self.client()
        self.loop.until(lambda: self.accepted)

    def test_it_may_be_stopped_from_inside_an_accept(self):
        made = self.listener(on_connection=lambda sock, ip, port: (sock.close(), made.stop()))
        self.client()
        self.client()
        self.loop.until(lambda: made.total)
        self.loop.turns()
        self.assertEqual(made.total, 1)

    def test_retries_are_a_quarter_of_a_second_apart(self):
        self.assertEqual(module.RETRY_S, 0.25)
