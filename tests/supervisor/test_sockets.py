"""Listening sockets: who accepts on which, what is refused, what is cleaned up."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, HttpListener, Model, TcpListener
from twistedproxy.supervisor.sockets import Sockets, Wanted, assign, bind_plain, port_owner, wanted_listeners

COUNTS = st.dictionaries(st.sampled_from(["a", "b", "unix:/c"]), st.integers(1, 8))
LIVE = st.sets(st.integers(0, 11))


class AssignTests(SynchronousTestCase):
    @given(COUNTS, LIVE)
    def test_every_socket_has_somebody_and_every_worker_something(self, counts: dict[str, int], live: set[int]) -> None:
        """As long as one worker lives no client waits in a queue that nobody looks into."""
        result = assign(counts, live)
        self.assertEqual(set(result), {(a, i) for a, n in counts.items() for i in range(n)})
        for slots in result.values():
            self.assertTrue(set(slots) <= live)
            self.assertEqual(bool(slots), bool(live))
        for address in counts:
            held = {slot for (a, _), slots in result.items() if a == address for slot in slots}
            self.assertEqual(held, live)

    @given(st.integers(1, 8), LIVE)
    def test_a_live_worker_has_its_own_socket_for_itself(self, count: int, live: set[int]) -> None:
        result = assign({"a": count}, live)
        for slot in live:
            if slot < count:
                self.assertEqual(result["a", slot], tuple(sorted(s for s in live if s % count == slot)))

    @given(st.integers(1, 8), LIVE, st.integers(0, 7))
    def test_a_death_moves_only_the_sockets_the_dead_one_had(self, count: int, live: set[int], dead: int) -> None:
        """Replacing one worker does not stir the own sockets of the others."""
        before, after = assign({"a": count}, live), assign({"a": count}, live - {dead})
        for slot in live - {dead}:
            own = ("a", slot % count)
            self.assertIn(slot, before[own])
            self.assertIn(slot, after[own])

    @given(st.integers(1, 8), st.sets(st.integers(0, 7), min_size=1))
    def test_lent_sockets_are_spread_evenly(self, count: int, live: set[int]) -> None:
        live = {slot for slot in live if slot < count} or {0}
        result = assign({"a": count}, live)
        held = [sum(slot in slots for slots in result.values()) for slot in live]
        self.assertLessEqual(max(held) - min(held), 1)


class SocketsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.warnings: list[str] = []
        self.tuned: list[socket.socket] = []
        self.sockets = Sockets(3, self.tuned.append, self.warnings.append)
        self.addCleanup(self.sockets.close)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "front.sock")
        self.unix = Address(f"unix:{self.path}")

    def bind(self, *addresses: str, mode: int | None = None) -> list[str]:
        return [str(p) for p in self.sockets.bind([Wanted(Address(a), "http", "listen.http[0]", mode) for a in addresses])]

    def test_port_0_is_one_port_for_all_workers(self) -> None:
        self.assertEqual(self.bind("127.0.0.1:0"), [])
        ports = {socket.socket(fileno=os.dup(self.sockets.descriptor(("127.0.0.1:0", i)))).getsockname()[1] for i in range(3)}
        self.assertEqual(len(ports), 1)
        self.assertEqual(self.sockets.addresses, {"127.0.0.1:0": f"127.0.0.1:{ports.pop()}"})
        self.assertEqual(self.sockets.counts, {"127.0.0.1:0": 3})
        self.assertEqual(len(self.tuned), 3)

    def test_the_wildcard_address_takes_both_families(self) -> None:
        self.assertEqual(self.bind("[::]:0"), [])
        port = int(self.sockets.addresses["[::]:0"].rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), 5).close()

    def test_a_taken_port_is_named_with_its_owner(self) -> None:
        """Also when the other program uses SO_REUSEPORT, which would silently share the port with it."""
        for reuse in (0, 1):
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
                other.bind(("127.0.0.1", 0))
                other.listen()
                port = other.getsockname()[1]
                (problem,) = self.bind(f"127.0.0.1:{port}", "127.0.0.1:0")
                self.assertIn("listen.http[0]", problem)
                self.assertIn(f"127.0.0.1:{port}", problem)
                self.assertIn(f"pid {os.getpid()}", problem)
                self.assertEqual(self.sockets.counts, {})

    def test_all_obstacles_are_told_at_once(self) -> None:
        problems = self.bind("192.0.2.1:80", "unix:/nowhere/at/all.sock")
        self.assertEqual(len(problems), 2)
        self.assertIn("no such address", problems[0])
        self.assertIn("does not exist", problems[1])

    def test_a_stale_unix_socket_is_replaced(self) -> None:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(self.path)
        self.assertEqual(self.bind(self.unix, mode=0o600), [])
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.assertEqual(self.sockets.counts, {self.unix: 1})
        self.sockets.close()
        self.assertFalse(os.path.exists(self.path))

    def test_a_unix_socket_that_answers_is_left_alone(self) -> None:
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(self.path)
            live.listen()
            (problem,) = self.bind(self.unix)
            self.assertIn("another program answers", problem)
            self.assertTrue(os.path.exists(self.path))

    def test_a_plain_file_in_the_way_is_never_removed(self) -> None:
        Path(self.path).write_text("precious")
        (problem,) = self.bind(self.unix)
        self.assertIn("not a socket", problem)
        self.assertEqual(Path(self.path).read_text(), "precious")

    def test_close_leaves_a_successors_unix_socket(self) -> None:
        self.bind(self.unix)
        os.unlink(self.path)
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(self.path)
            self.sockets.close()
            self.assertTrue(os.path.exists(self.path))

    def test_queued_connections_outlive_nobody_accepting_lc_06(self) -> None:
        """A client that connects while no worker is there is served by the next one."""
        self.bind("127.0.0.1:0")
        host, _, port = self.sockets.addresses["127.0.0.1:0"].rpartition(":")
        with socket.create_connection((host, int(port)), 5) as client:
            client.sendall(b"hello")
            accepted = None
            for i in range(3):
                listener = socket.socket(fileno=os.dup(self.sockets.descriptor(("127.0.0.1:0", i))))
                try:
                    accepted, _ = listener.accept()
                except BlockingIOError:
                    pass
                listener.close()
            assert accepted is not None
            accepted.settimeout(5)
            self.assertEqual(accepted.recv(5), b"hello")
            accepted.close()

    def test_the_admin_port_is_refused_when_taken(self) -> None:
        first, problem = bind_plain(Address("127.0.0.1:0"), "admin.listen")
        assert first is not None
        self.assertIsNone(problem)
        taken = Address(f"127.0.0.1:{first.getsockname()[1]}")
        second, problem = bind_plain(taken, "admin.listen")
        self.assertIsNone(second)
        self.assertIn("admin.listen", str(problem))
        first.close()

    def test_an_admin_socket_is_for_this_user_alone(self) -> None:
        """Whatever the umask, nobody else may open it; one left behind by a crash is replaced, one that answers is not."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        path = os.path.join(tempfile.mkdtemp(), "a")
        self.addCleanup(shutil.rmtree, os.path.dirname(path))
        for _ in range(2):
            listening, problem = bind_plain(Address(f"unix:{path}"), "admin.listen")
            self.assertIsNone(problem)
            assert listening is not None
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
            second, problem = bind_plain(Address(f"unix:{path}"), "admin.listen")
            self.assertIsNone(second)
            self.assertIn("another program answers on it", str(problem))
            listening.close()

    def test_wanted_names_the_configuration_keys(self) -> None:
        model = Model(http=(HttpListener(Address("127.0.0.1:80")),), tcp=(TcpListener(Address("127.0.0.1:5"), "pg", mode=0o600),))
        self.assertEqual(
            [(w.address, w.kind, w.key, w.mode) for w in wanted_listeners(model)],
            [("127.0.0.1:80", "http", "listen.http[0]", None), ("127.0.0.1:5", "tcp", 'tcp."127.0.0.1:5"', 0o600)],
        )

    def test_nobody_owns_a_free_port(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.assertEqual(port_owner(free.getsockname()[1]), "")
