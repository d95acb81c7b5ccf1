"""WebSocket: when both sides agree, bytes pass both ways; nothing else is ever let through as a tunnel."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Timeouts
from twistedproxy.errors import Drained

UPGRADE = (b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
PROOF = b"ICX+Yqv66kxgM0FcWaLWlFLwTAI="
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: %b\r\nKeep-Alive: 5\r\n\r\n" % PROOF
)


class TunnelTests(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def tunnel(self, early: bytes = b"", first: bytes = b"", **proxy: Any) -> tuple[Any, Any]:
        client, server = self.bed.start(self.fakes.get(b"/chat", *UPGRADE) + early, **proxy)
        request = server.request()
        self.assertEqual((request.get(b"Connection"), request.get(b"Upgrade")), (b"Upgrade", b"websocket"))
        self.assertEqual(request.get(b"Sec-WebSocket-Key"), b"AAAAAAAAAAAAAAAAAAAAAA==")
        server.send(SWITCH + first)
        head = client.head()
        self.assertEqual((head.status, head.get(b"Connection"), head.get(b"Upgrade")), (101, b"Upgrade", b"websocket"))
        self.assertEqual((head.get(b"Sec-WebSocket-Accept"), head.get(b"Keep-Alive")), (PROOF, None))
        return client, server

    def done(self, cause: str = "ok") -> Any:
        line = self.bed.logged()
        self.assertEqual((line.status, line.cause.value), (101, cause))
        self.assertEqual(self.bed.leases, 0)
        return line

    def test_UP_02_a_server_that_cannot_prove_that_it_speaks_websocket_is_refused(self) -> None:
        client, server = self.bed.start(self.fakes.get(b"/chat", *UPGRADE))
        server.request()
        server.send(SWITCH.replace(PROOF, b"AAAAAAAAAAAAAAAAAAAAAAAAAAA="))
        self.assertEqual(client.response().status, 502)

    def test_bytes_pass_both_ways_and_are_counted(self) -> None:
        client, server = self.tunnel()
        client.send(b"ping")
        self.assertEqual(server.take(4), b"ping")
        server.send(b"pong!")
        self.assertEqual(client.take(5), b"pong!")
        self.assertEqual(self.bed.leases, 1)
        client.fin()
        server.ends()
        server.send(b"last")
        self.assertEqual(client.take(4), b"last")
        server.fin()
        client.ends()
        line = self.done()
        self.assertEqual((line.bytes_received, line.bytes_sent), (4, 9))
        self.assertEqual(self.bed.front.open, 0)

    def test_what_either_side_sent_ahead_is_not_lost(self) -> None:
        client, server = self.tunnel(b"early", b"first")
        self.assertEqual((server.take(5), client.take(5)), (b"early", b"first"))

    def test_what_the_client_sent_ahead_is_counted_once_and_not_kept(self) -> None:
        request = self.fakes.get(b"/chat", *UPGRADE)
        client, server = self.tunnel(b"early" * 1000)
        server.take(5000)
        client.send(b"late")
        server.take(4)
        self.assertEqual(self.bed.connection._buffer, b"")
        client.fin()
        server.fin()
        client.ends()
        self.assertEqual(self.done().bytes_received, 5004)
        self.assertEqual(self.bed.front.counts.bytes_in, len(request) + 5004)

    def test_much_sent_ahead_is_not_lost(self) -> None:
        data = bytes(range(256)) * 1000
        client, server = self.bed.start(self.fakes.get(b"/chat", *UPGRADE))
        server.request()
        client.send_what_fits(data)
        server.send(SWITCH)
        client.head()
        self.assertTrue(server.take(len(data)) == data)

    def test_an_answer_other_than_101_is_just_an_answer(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(b"/chat", *UPGRADE) + f.get(b"/next"))
        server.request()
        server.send(f.answer(b"no", status=b"403 Forbidden"))
        self.assertEqual(client.response().status, 403)
        self.assertEqual(server.request().target, b"/next")

    def test_UP_02_only_websocket_may_be_switched_to(self) -> None:
        f = self.fakes
        for token in (b"h2c", b"TLS/1.0", b"foo", b"websocket, h2c"):
            with self.subTest(token=token):
                client, server = self.bed.start(f.get(b"/", b"Connection: Upgrade", b"Upgrade: " + token))
                request = server.request()
                self.assertEqual((request.all(b"Connection"), request.all(b"Upgrade")), ([], []))
                server.send(SWITCH + b"tunnelled")
                self.assertEqual(client.response().status, 502)
                server.breaks()
                self.assertNotIn(b"tunnelled", bytes(client.received))
                client.close()

    def test_UP_02_another_protocol_than_asked_for_is_502(self) -> None:
        client, server = self.bed.start(self.fakes.get(b"/chat", *UPGRADE))
        server.request()
        server.send(SWITCH.replace(b"websocket", b"h2c"))
        self.assertEqual(client.response().status, 502)
        server.breaks()

    def test_UP_02_bytes_behind_an_upgrade_request_are_no_tunnel_before_the_101(self) -> None:
        client, server = self.bed.start(self.fakes.get(b"/chat", *UPGRADE) + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        server.request()
        self.assertTrue(server.is_silent())
        client.close()

    def test_an_upgrade_with_a_body_is_400(self) -> None:
        self.bed.proxy()
        client = self.bed.client(self.fakes.post(b"body", *UPGRADE))
        self.assertEqual(client.response().status, 400)
        self.assertEqual(self.bed.origins[0].count, 0)

    def test_HTTP10_cannot_switch(self) -> None:
        client, server = self.bed.start(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        self.assertEqual(server.request().all(b"Upgrade"), [])
        client.close()

    def test_UP_04_an_idle_tunnel_ends(self) -> None:
        client, server = self.tunnel(timeouts=Timeouts(websocket_idle_s=10.0, request_s=5.0, response_idle_s=5.0, keepalive_s=5.0))
        self.bed.travel(8)
        client.send(b"x")
        server.take(1)
        self.bed.travel(8)
        self.assertTrue(server.is_silent())
        self.bed.travel(4)
        client.breaks()
        server.breaks()
        self.assertEqual(self.done("timeout").phase.value, "tunnel")

    def test_UP_04_a_half_closed_tunnel_ends_sooner(self) -> None:
        client, server = self.tunnel(timeouts=Timeouts(websocket_idle_s=600.0, half_closed_s=3.0))
        client.fin()
        server.ends()
        self.bed.travel(4)
        client.breaks()
        self.done("timeout")

    def test_a_reset_of_either_side_resets_the_other(self) -> None:
        for side in (0, 1):
            pair = self.tunnel()
            pair[side].reset()
            other = pair[1 - side]
            other.breaks()
            self.assertTrue(other.is_reset)
            self.assertEqual(self.done(("client", "server")[side]).phase.value, "tunnel")
            self.bed.log.lines.clear()

    def test_a_removed_server_cuts_its_tunnels(self) -> None:
        client, server = self.tunnel()
        self.bed.pool.servers[0].cut(Drained("the server was removed"))
        client.breaks()
        server.breaks()
        self.done("proxy")

    def test_UP_04_a_draining_listener_leaves_tunnels_alone_until_they_are_cut(self) -> None:
        client, server = self.tunnel()
        self.bed.front.drain()
        self.bed.travel(10)
        client.send(b"x")
        self.assertEqual(server.take(1), b"x")
        self.bed.front.cut()
        client.breaks()
        server.breaks()
        self.done("proxy")
        self.assertEqual(self.bed.front.open, 0)

    def test_large_messages_pass_byte_exact(self) -> None:
        client, server = self.tunnel()
        data = bytes(range(256)) * 8000
        client.send(data[:1_000_000])
        client.send(data[1_000_000:])
        self.assertTrue(server.take(len(data)) == data)
        server.send(data)
        self.assertTrue(client.take(len(data)) == data)
