"""The demo: its configuration, its servers, and what it tells people to try."""

from __future__ import annotations

import http.client
import socket
import tomllib
from typing import Any

from twisted.internet import reactor
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedproxy.demo import DemoBackends, demo_config, demo_text


class Configuration(SynchronousTestCase):
    def test_is_toml_with_the_promised_addresses(self) -> None:
        """`--demo` listens where the README says: HTTP 8080, TCP 8432, admin 9901, two web servers 3:1."""
        config = tomllib.loads(demo_config('/tmp/a "quoted" place'))
        self.assertEqual(config["state_dir"], '/tmp/a "quoted" place')
        self.assertEqual(config["listen"]["http"][0]["address"], "127.0.0.1:8080")
        self.assertEqual(config["admin"]["listen"], "127.0.0.1:9901")
        self.assertEqual(list(config["tcp"]), ["127.0.0.1:8432"])
        self.assertEqual(config["pools"]["web"]["servers"], ["127.0.0.1:9001 weight=3", "127.0.0.1:9002"])

    def test_the_text_holds_the_token_and_commands_for_this_state(self) -> None:
        """What is printed can be pasted: the token is there, and a state directory with a quote stays one word."""
        text = demo_text("s3cret", "/tmp/it's here")
        self.assertIn("s3cret", text)
        self.assertIn("export REVPROXY_STATE='/tmp/it'\\''s here'", text)


class Backends(TestCase):
    def setUp(self) -> None:
        self.backends = DemoBackends(reactor, web_ports=(0, 0), echo_port=0)
        self.backends.start()
        self.addCleanup(self.backends.stop)

    async def _request(self, *args: Any, port: int = 0, **kwargs: Any) -> tuple[http.client.HTTPResponse, bytes]:
        def blocking() -> tuple[http.client.HTTPResponse, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", self.backends.ports[port], timeout=10)
            try:
                connection.request(*args, **kwargs)
                response = connection.getresponse()
                return response, response.read()
            finally:
                connection.close()

        return await deferToThread(blocking)

    async def test_each_server_answers_with_its_name_and_what_it_was_asked(self) -> None:
        """Who tries the demo sees which server answered, the request id and the headers the proxy added."""
        response, body = await self._request("GET", "/x?y=1", headers={"X-Request-Id": "abc", "X-Forwarded-For": "10.1.1.1"}, port=1)
        self.assertEqual(response.status, 200)
        text = body.decode()
        for expected in ("Hello from web-2", "GET /x?y=1", "request id: abc", "X-Forwarded-For: 10.1.1.1"):
            self.assertIn(expected, text)

    async def test_head_has_no_body_and_health_says_ok(self) -> None:
        """Health checks and HEAD requests of the demo work."""
        _, body = await self._request("HEAD", "/")
        self.assertEqual(body, b"")
        response, body = await self._request("GET", "/health")
        self.assertEqual((response.status, body), (200, b"ok\n"))

    async def test_bodies_are_read_before_the_next_request(self) -> None:
        """A kept connection carries on after uploads, sized and chunked."""

        def blocking() -> bytes:
            with socket.create_connection(("127.0.0.1", self.backends.ports[0]), timeout=10) as s:
                s.sendall(b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
                s.sendall(b"loPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
                s.sendall(b"\r\nGET /3 HTTP/1.0\r\n\r\n")
                got = b""
                while data := s.recv(65536):
                    got += data
                return got

        got = await deferToThread(blocking)
        self.assertEqual(got.count(b"HTTP/1.1 200 OK"), 3)
        for line in (b"POST /1", b"POST /2", b"GET /3"):
            self.assertIn(line, got)

    async def test_echo_returns_everything_after_the_client_has_finished_sending(self) -> None:
        """`printf hello | nc` through the proxy gets its bytes back, also when it half-closes at once."""

        def blocking() -> bytes:
            with socket.create_connection(("127.0.0.1", self.backends.ports[2]), timeout=10) as s:
                s.sendall(b"x" * 300_000)
                s.shutdown(socket.SHUT_WR)
                got = b""
                while data := s.recv(65536):
                    got += data
                return got

        self.assertEqual(len(await deferToThread(blocking)), 300_000)

    async def test_a_taken_port_is_an_error_and_leaves_nothing_open(self) -> None:
        """`--demo` twice says that the port is taken instead of running by halves."""
        taken = self.backends.ports[0]
        other = DemoBackends(reactor, web_ports=(0, taken), echo_port=0)
        with self.assertRaises(CannotListenError):
            other.start()
        self.assertEqual(other.ports, ())
