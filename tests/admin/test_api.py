"""Every operation answers as the contract shows it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import stat
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy.admin import api
from twistedproxy.config.model import AdminState
from twistedproxy.errors import ChangeRefused, ConfigurationError

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SERVER = "/api/v1/pools/web/servers/127.0.0.1:9001"


class Reading(SynchronousTestCase):
    """GETs show what the contract shows."""

    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def test_pools_lists_all(self) -> None:
        """GET /pools is {"pools": […]} with the same entries as GET /pools/NAME."""
        answer = self.admin.ask("GET", "/api/v1/pools")
        self.assertEqual([pool["name"] for pool in answer.json["pools"]], ["web", "odd"])
        self.assertEqual(answer.json["pools"][0], self.admin.ask("GET", "/api/v1/pools/web").json)
        self.assertEqual(answer.headers["ETag"], '"1"')

    def test_unknown_pool_names_what_exists(self) -> None:
        """A typo in a pool's name is answered with the names there are."""
        answer = self.admin.ask("GET", "/api/v1/pools/wbe")
        self.assertEqual(answer.status, 404)
        self.assertIn("odd, web", answer.json["detail"])

    def test_health_needs_no_token_and_follows_readiness(self) -> None:
        """A load balancer in front of us can ask without a token; ready turns 503, live stays 200."""
        self.assertEqual(self.admin.ask("GET", "/health/live", role=None).status, 200)
        self.assertEqual(self.admin.ask("GET", "/health/ready", role=None).status, 200)
        self.admin.control.is_ready = False
        self.assertEqual(self.admin.ask("GET", "/health/live", role=None).status, 200)
        answer = self.admin.ask("GET", "/health/ready", role=None)
        self.assertEqual((answer.status, answer.headers["Content-Type"]), (503, "application/problem+json"))

    def test_metrics_come_from_the_exposition(self) -> None:
        """GET /metrics is the renderer's text with Prometheus' content type."""
        answer = self.admin.ask("GET", "/metrics", role="view")
        self.assertEqual((answer.status, answer.body), (200, b"metrics\n"))
        self.assertTrue(answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"))

    def test_head_is_get_without_body(self) -> None:
        """HEAD answers like GET, with the length and no body."""
        answer = self.admin.ask("HEAD", "/api/v1/status")
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertGreater(int(answer.headers["Content-Length"]), 100)
        self.assertEqual(self.admin.ask("HEAD", "/api/v1/events").status, 200)

    def test_two_requests_on_one_connection(self) -> None:
        """Keep-alive and pipelining work."""
        head = f"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {fakes.TOKENS['view']}\r\n\r\n".encode()
        self.assertEqual(self.admin.send(head * 2).value().count(b"HTTP/1.1 200"), 2)


class Changing(SynchronousTestCase):
    """Mutations do what they say, once, and say what they did."""

    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def server(self, pool: str = "web", index: int = 0) -> Any:
        return self.admin.control.model.pools[pool].servers[index]

    def test_weight(self) -> None:
        """A weight set over the API is in force, and the answer says where."""
        answer = self.admin.ask("PATCH", SERVER, {"weight": 1, "reason": "cache warm"}, role="operate")
        self.assertEqual((answer.status, answer.json), (200, {"revision": 2, "workers": {"total": 2, "acked": 2, "lagging": []}}))
        self.assertEqual(answer.headers["ETag"], '"2"')
        self.assertEqual(self.server().weight_now, 1)
        self.assertEqual(
            self.admin.ask("GET", "/api/v1/changes").json,
            {
                "changes": [
                    {
                        "revision": 2, "at": "2026-11-21T18:00:00Z", "by": "the-operate", "reason": "cache warm",
                        "change": {"kind": "set_weight", "pool": "web", "server": "127.0.0.1:9001", "before": 3, "after": 1},
                        "undone_by": None, "confirm_by": None, "guard": None,
                    }
                ]
            },
        )  # fmt: skip

    def test_null_returns_to_the_file(self) -> None:
        """null takes an override back."""
        self.admin.ask("PATCH", SERVER, {"weight": 9, "state": "maint", "max_connections": 7})
        answer = self.admin.ask("PATCH", SERVER, {"weight": None, "state": None, "max_connections": None})
        self.assertEqual(answer.status, 200)
        server = self.server()
        self.assertEqual((server.weight_set, server.state_set, server.max_connections_set), (None, None, None))

    def test_several_fields_make_one_revision(self) -> None:
        """Weight and state set together become true together."""
        answer = self.admin.ask("PATCH", SERVER, {"weight": 0, "state": "drain", "max_connections": 5})
        self.assertEqual(answer.json["revision"], 2)
        self.assertEqual((self.server().weight_set, self.server().state, self.server().max_connections_set), (0, AdminState.DRAIN, 5))
        self.assertEqual(self.admin.control.entries[0].change["kind"], "batch")

    def test_lagging_workers_are_named(self) -> None:
        """A worker that did not follow is not hidden."""
        self.admin.control.lagging = (1,)
        workers = self.admin.ask("PATCH", SERVER, {"weight": 2}).json["workers"]
        self.assertEqual(workers, {"total": 2, "acked": 1, "lagging": [1]})

    def test_add_and_remove(self) -> None:
        """A server comes and goes live."""
        body = {"address": "127.0.0.1:9003", "weight": 2, "max_connections": 10, "backup": True}
        self.assertEqual(self.admin.ask("POST", "/api/v1/pools/web/servers", body).status, 200)
        added = self.admin.control.model.pools["web"].server("127.0.0.1:9003")
        self.assertEqual((added.weight, added.max_connections, added.backup), (2, 10, True))
        self.assertEqual(self.admin.ask("POST", "/api/v1/pools/web/servers", body).status, 409)
        self.assertEqual(self.admin.ask("DELETE", "/api/v1/pools/web/servers/127.0.0.1:9003?now=1").status, 200)
        self.assertIsNone(self.admin.control.model.pools["web"].server("127.0.0.1:9003"))

    def test_remove_takes_a_reason(self) -> None:
        """DELETE needs no body, but takes a reason in one."""
        answer = self.admin.ask("DELETE", SERVER, {"reason": "gone"})
        self.assertEqual((answer.status, self.admin.control.entries[0].reason), (200, "gone"))

    def test_addresses_in_paths_are_percent_encoded(self) -> None:
        """Unix sockets and IPv6 addresses can be named, however the client encodes them."""
        for spelling in ("unix:%2Frun%2Fapp.sock", "unix%3A%2Frun%2Fapp.sock", "unix:/run/app.sock"):
            with self.subTest(spelling):
                self.assertEqual(self.admin.ask("PATCH", f"/api/v1/pools/odd/servers/{spelling}", {"weight": 5}).status, 200)
        for spelling in ("[::1]:80", "%5B::1%5D:80", "[0:0::0001]:80"):
            with self.subTest(spelling):
                self.assertEqual(self.admin.ask("PATCH", f"/api/v1/pools/odd/servers/{spelling}", {"weight": 6}).status, 200)
        self.assertEqual([self.server("odd", i).weight_set for i in (0, 1)], [5, 6])

    def test_unknown_server_names_what_exists(self) -> None:
        """404 lists the servers of the pool."""
        answer = self.admin.ask("PATCH", "/api/v1/pools/web/servers/127.0.0.1:1", {"weight": 5})
        self.assertEqual(answer.status, 404)
        self.assertIn("127.0.0.1:9001", answer.json["detail"])

    def test_changes_after(self) -> None:
        """A reader that knows revision N gets what came after it."""
        for weight in (1, 2, 3):
            self.admin.ask("PATCH", SERVER, {"weight": weight})
        got = self.admin.ask("GET", "/api/v1/changes?after=3").json["changes"]
        self.assertEqual([entry["revision"] for entry in got], [4])

    def test_if_match_race_has_one_winner(self) -> None:
        """Two operators who both read revision 1 cannot both change it (LC-09)."""
        tag = self.admin.ask("GET", "/api/v1/pools/web").headers["ETag"]
        statuses = [self.admin.ask("PATCH", SERVER, {"weight": n}, headers={"If-Match": tag}).status for n in (5, 6)]
        self.assertEqual((statuses, self.server().weight_set), ([200, 412], 5))

    def test_supervisor_s_refusals_keep_their_status(self) -> None:
        """409 and 503 from the supervisor reach the client with its sentence and field."""
        for status in (409, 503):
            self.admin.control.raises = ChangeRefused(status, "the journal is full", "weight")
            answer = self.admin.ask("PATCH", SERVER, {"weight": 5})
            self.assertEqual((answer.status, answer.json["detail"], answer.json["field"]), (status, "the journal is full", "weight"))
            self.assertEqual(answer.headers["Content-Type"], "application/problem+json")

    def test_AD_07_backends_that_must_not_be_added(self) -> None:
        """AD-07: nobody turns the proxy towards cloud credentials or its own admin side over the API."""
        self.admin.control.model = fakes.replace(self.admin.control.model, state_dir="/var/lib/revproxy")
        for address in (
            "169.254.169.254:80", "[fe80::1]:80", "[::ffff:169.254.169.254]:80", "0.0.0.0:80", "[::]:80", "224.0.0.1:80",
            "0xa9fea9fe:80", "[64:ff9b::a9fe:a9fe]:80", "[::169.254.169.254]:80", "127.0.0.1:9901", "localhost:9901", "[::1]:9901",
            "[::ffff:127.0.0.1]:9901", "127.0.0.2:9901", "0x7f000001:9901",
            "unix:/var/lib/revproxy/admin.sock", "unix:relative.sock", "nonsense", "10.0.0.1:99999",
        ):  # fmt: skip
            with self.subTest(address):
                answer = self.admin.ask("POST", "/api/v1/pools/web/servers", {"address": address})
                self.assertEqual((answer.status, answer.json["field"]), (400, "address"))
        self.assertEqual(self.admin.ask("POST", "/api/v1/pools/web/servers", {}).json["field"], "address")
        self.assertEqual(self.admin.control.revision, 1)


class OverSockets(TestCase):
    """The service on real sockets."""

    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.makedirs(self.directory)
        # Socket paths are short, temporary directories of tests are not.
        self.socket_path = os.path.relpath(os.path.join(self.directory, "admin.sock"))
        self.control = fakes.FakeControl(fakes.sample_model(self.directory))
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.tcp.close)
        self.service = self.make()
        self.service.startService()
        self.addCleanup(self.stop)

    def make(self) -> Any:
        return api.AdminService(self.control, self.control.model, reactor, lambda *_: b"m 1\n", self.tcp, self.socket_path)

    async def stop(self) -> None:
        if self.service.running:
            await self.service.stopService()

    def token(self) -> str:
        return Path(self.service.token_file).read_text().strip()

    async def test_token_file_is_made_once_and_works(self) -> None:
        """The first start makes a token file, mode 0600, that holds the token alone; the next start keeps it."""
        token = self.token()
        self.assertEqual(stat.S_IMODE(os.stat(self.service.token_file).st_mode), 0o600)
        self.assertGreaterEqual(len(token), 43)

        def over_tcp() -> tuple[int, int]:
            connection = HTTPConnection("127.0.0.1", self.tcp.getsockname()[1], timeout=5)
            statuses = []
            for headers in ({}, {"Authorization": f"Bearer {token}"}):
                connection.request("GET", "/api/v1/status", headers=headers)
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
            connection.close()
            return statuses[0], statuses[1]

        self.assertEqual(await deferToThread(over_tcp), (401, 200))
        await self.service.stopService()
        self.service = self.make()
        self.service.startService()
        self.assertEqual(self.token(), token)

    async def test_unix_socket_is_private_and_needs_no_token(self) -> None:
        """Whoever can open the socket is admin, so only its owner can; the journal has the user's name."""
        self.assertEqual(stat.S_IMODE(os.stat(self.socket_path).st_mode), 0o600)

        def patch() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(self.socket_path)
                body = json.dumps({"weight": 4}).encode()
                head = f"PATCH {SERVER} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                return b"".join(iter(lambda: client.recv(4096), b""))

        self.assertIn(b" 200 OK", await deferToThread(patch))
        self.assertTrue(self.control.entries[0].by.startswith("local:"))

    async def test_stale_socket_is_replaced_and_our_own_removed(self) -> None:
        """A crash leaves a socket behind: the next start replaces it; a stop removes ours, never a successor's."""
        await self.service.stopService()
        self.assertFalse(os.path.exists(self.socket_path))
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(self.socket_path)
        self.service = self.make()
        self.service.startService()
        successor = api.bind_local(self.socket_path)
        self.addCleanup(successor.close)
        await self.service.stopService()
        self.assertTrue(os.path.exists(self.socket_path))

    async def test_AD_04_large_bodies_are_answered_before_they_are_read(self) -> None:
        """AD-04: a client that sends a body too large, or no token, still gets its answer; the body is not kept."""

        def upload(token: str, size: int) -> int:
            connection = HTTPConnection("127.0.0.1", self.tcp.getsockname()[1], timeout=5)
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            connection.request("PATCH", SERVER, b"x" * size, headers)
            status = connection.getresponse().status
            connection.close()
            return status

        self.assertEqual(await deferToThread(upload, self.token(), 1024 * 1024 + 1), 413)
        self.assertEqual(await deferToThread(upload, "wrong", 900_000), 401)

    async def test_event_stream_over_tcp(self) -> None:
        """A change is seen on the stream at once, and stopping the service ends the stream."""
        connection = HTTPConnection("127.0.0.1", self.tcp.getsockname()[1], timeout=5)
        self.addCleanup(connection.close)

        def listen() -> Any:
            connection.request("GET", "/api/v1/events", headers={"Authorization": f"Bearer {self.token()}"})
            response = connection.getresponse()
            # When to come back, and what just happened: two frames.
            self.assertEqual([response.readline() for _ in range(5)][2], b"event: recent\n")
            return response

        response = await deferToThread(listen)
        self.control.tell("change", {"revision": 7})
        lines = await deferToThread(lambda: [response.readline() for _ in range(3)])
        self.assertEqual(lines, [b"event: change\n", b"id: 7\n", b'data: {"revision":7}\n'])
        stopped = self.service.stopService()
        self.assertEqual(await deferToThread(response.read), b"\n")
        await stopped
        self.assertEqual(self.control.observers, [])

    def test_socket_is_private_from_its_first_instant(self) -> None:
        """There is no moment in which another user could open the socket, whatever the umask."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        path = os.path.join(self.directory, "s")
        self.addCleanup(api.bind_local(path).close)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    def test_unusable_socket_path_is_a_configuration_error(self) -> None:
        """A state directory too deep for a socket is said before the daemon forks."""
        with self.assertRaises(ConfigurationError) as caught:
            api.bind_local("/tmp/" + "x" * 200)
        self.assertIn("107 bytes", str(caught.exception))
