"""Heads as the other side gets them: exactly one framing, one Host, nothing of the hop before, and no claim of a stranger."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Route
from twistedproxy.http import forwarding
from twistedproxy.http.forwarding import Client, client_address
from twistedproxy.http.head import Limits, parse_request, parse_response
from twistedproxy.http.messages import CHUNKED, UNTIL_CLOSE
from twistedproxy.net.networks import Networks

LIMITS = Limits()
STRANGER = Client("192.0.2.1", 8080, False)
FRIEND = Client("10.0.0.1", 8080, True)


def request(data: bytes) -> Any:
    head = parse_request(data, LIMITS)
    assert head is not None
    return head


def get(*lines: bytes, target: bytes = b"/", version: bytes = b"1.1", host: bytes = b"a.example:81") -> Any:
    return request(b"GET %b HTTP/%b\r\nHost: %b\r\n%b\r\n" % (target, version, host, b"".join(x + b"\r\n" for x in lines)))


def reply(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> Any:
    head = parse_response(start + b"\r\n" + b"".join(x + b"\r\n" for x in lines) + b"\r\n")
    assert head is not None
    return head


def sent(head: Any, client: Client = STRANGER, **how: Any) -> Any:
    """The request as the server parses it, strictly."""
    arguments: dict[str, Any] = {
        "path": None if head.is_canonical else head.path,
        "host": None,
        "via": b"",
        "body_length": 0,
        "upgrade": None,
    }
    arguments.update(how)
    data = client.request(
        head, arguments["path"], arguments["host"], arguments["via"], b"id-1", arguments["body_length"], arguments["upgrade"]
    )
    parsed = request(data)
    assert parsed.size == len(data)
    return parsed


def got(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    start, *lines = data[:-4].split(b"\r\n")
    assert data.endswith(b"\r\n\r\n")
    return start, [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


class ClientAddressTests(SynchronousTestCase):
    """ID-01: the right-most entry that no trusted proxy wrote."""

    def address(self, peer: str, *chain: bytes, trusted: tuple[str, ...] = ("10.0.0.0/8", "fd00::/8")) -> str:
        return client_address(peer, get(*[b"X-Forwarded-For: " + line for line in chain]), Networks(trusted))

    def test_who_is_believed(self) -> None:
        for peer, chain, expected in (
            ("192.0.2.1", [b"1.1.1.1"], "192.0.2.1"),
            ("10.0.0.1", [], "10.0.0.1"),
            ("10.0.0.1", [b"1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", [b"9.9.9.9, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", [b"9.9.9.9, 1.1.1.1, 10.0.0.7"], "1.1.1.1"),
            ("10.0.0.1", [b"9.9.9.9", b"1.1.1.1,10.0.0.7"], "1.1.1.1"),
            ("10.0.0.1", [b"10.0.0.9, 10.0.0.7"], "10.0.0.9"),
            ("10.0.0.1", [b"1.1.1.1, junk"], "10.0.0.1"),
            ("10.0.0.1", [b"1.1.1.1, unknown, 10.0.0.7"], "10.0.0.7"),
            ("10.0.0.1", [b"1.1.1.1:80"], "10.0.0.1"),
            ("10.0.0.1", [b"2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", [b"_hidden"], "10.0.0.1"),
            ("10.0.0.1", [b"127.0.0.1\xff"], "10.0.0.1"),
            ("fd00::1", [b"1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", [b""], "10.0.0.1"),
        ):
            self.assertEqual(self.address(peer, *chain), expected, (peer, chain))

    def test_nobody_is_believed_by_default(self) -> None:
        self.assertEqual(self.address("127.0.0.1", b"1.1.1.1", trusted=()), "127.0.0.1")

    def test_a_chain_of_2000_hops_ends(self) -> None:
        self.assertEqual(self.address("10.0.0.1", b"1.1.1.1," + b",".join([b"10.1.1.1"] * 1500)), "1.1.1.1")

    @settings(deadline=None, max_examples=100)
    @given(st.lists(st.sampled_from([b"10.0.0.2", b"10.0.0.3", b"1.1.1.1", b"2.2.2.2", b"x", b""]), max_size=6))
    def test_what_stands_left_of_the_first_stranger_changes_nothing(self, chain: list[bytes]) -> None:
        plain = self.address("10.0.0.1", b",".join([b"3.3.3.3", *chain]))
        self.assertEqual(self.address("10.0.0.1", b",".join([b"7.7.7.7, 10.0.0.5, 3.3.3.3", *chain])), plain)


class RequestTests(SynchronousTestCase):
    def test_what_is_added(self) -> None:
        data = STRANGER.request(get(b"Accept: x"), None, None, b"", b"id-1", 0, None)
        start, fields = got(data)
        self.assertEqual(start, b"GET / HTTP/1.1")
        self.assertEqual(
            fields,
            [
                (b"Host", b"a.example:81"),
                (b"Accept", b"x"),
                (b"X-Forwarded-For", b"192.0.2.1"),
                (b"X-Forwarded-Proto", b"http"),
                (b"X-Forwarded-Port", b"8080"),
                (b"X-Forwarded-Host", b"a.example:81"),
                (b"X-Request-Id", b"id-1"),
            ],
        )

    def test_the_request_line(self) -> None:
        for head, how, start in (
            (get(target=b"/a?b"), {}, b"GET /a?b HTTP/1.1"),
            (get(target=b"/a?b", version=b"1.0"), {}, b"GET /a?b HTTP/1.1"),
            (get(target=b"/x/../a?"), {}, b"GET /a? HTTP/1.1"),
            (get(target=b"/x/../a"), {}, b"GET /a HTTP/1.1"),
            (get(target=b"http://b:82/a?c"), {}, b"GET /a?c HTTP/1.1"),
            (get(target=b"http://b:82"), {}, b"GET / HTTP/1.1"),
            (get(target=b"/api/a?b"), {"path": b"/a"}, b"GET /a?b HTTP/1.1"),
        ):
            arguments = {"path": None if head.is_canonical else head.path, **how}
            data = STRANGER.request(head, arguments["path"], None, b"", b"id", 0, None)
            self.assertEqual(data.split(b"\r\n")[0], start)

    def test_exactly_one_host_goes_out(self) -> None:
        for head, how, host in (
            (get(), {}, b"a.example:81"),
            (get(target=b"http://b:82/"), {}, b"b:82"),
            (get(version=b"1.0"), {}, b"a.example:81"),
            (get(target=b"/api/x"), {"path": b"/x"}, b"a.example:81"),
            (request(b"GET / HTTP/1.0\r\n\r\n"), {"host": b"server:80"}, b"server:80"),
        ):
            for client in (STRANGER, FRIEND):
                self.assertEqual(sent(head, client, **how).get_all(b"host"), [host])

    def test_SM_12_exactly_one_framing_goes_out(self) -> None:
        chunked = request(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n")
        out = sent(chunked, body_length=CHUNKED)
        self.assertEqual((out.get_all(b"transfer-encoding"), out.get_all(b"content-length"), out.get(b"trailer")), ([b"chunked"], [], None))
        out = sent(request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"), body_length=5)
        self.assertEqual((out.get_all(b"transfer-encoding"), out.get_all(b"content-length")), ([], [b"5"]))
        out = sent(request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"))
        self.assertEqual(out.get_all(b"content-length"), [b"0"])

    def test_an_upgrade_is_this_hops_own(self) -> None:
        head = get(b"Connection: Upgrade, X-A", b"Upgrade: WebSocket", b"X-A: 1")
        out = sent(head, upgrade=b"websocket")
        self.assertEqual((out.get_all(b"connection"), out.get_all(b"upgrade"), out.get(b"x-a")), ([b"Upgrade"], [b"websocket"], None))
        self.assertEqual(sent(head).get_all(b"upgrade"), [])

    def test_max_forwards_is_replaced_and_not_doubled(self) -> None:
        for client in (STRANGER, FRIEND):
            out = sent(get(b"Max-Forwards: 5"), client, via=b"Via: 1.1 x\r\nMax-Forwards: 4\r\n")
            self.assertEqual(out.get_all(b"max-forwards"), [b"4"])
            self.assertEqual(sent(get(b"Max-Forwards: 5"), client, via=b"Via: 1.1 x\r\n").get_all(b"max-forwards"), [b"5"])

    def test_a_friends_chain_is_appended_to_in_one_line(self) -> None:
        out = sent(get(b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-For: 2.2.2.2"), FRIEND)
        self.assertEqual(out.get_all(b"x-forwarded-for"), [b"1.1.1.1, 2.2.2.2, 10.0.0.1"])
        self.assertEqual(out.get_all(b"x-forwarded-proto"), [b"http"])
        self.assertEqual(sent(get(), FRIEND).get_all(b"x-forwarded-for"), [b"10.0.0.1"])
        for chain, expected in (
            (b"1.1.1.1,2.2.2.2:80", b"1.1.1.1,2.2.2.2:80, 10.0.0.1"),
            (b"[2001:db8::1]:80, unknown, _hidden", b"[2001:db8::1]:80, unknown, _hidden, 10.0.0.1"),
            (b"<script>", b"10.0.0.1"),
            (b"1.1.1.1, ${jndi:x}, 2.2.2.2", b"2.2.2.2, 10.0.0.1"),  # 1.1.1.1 would seem to be what 10.0.0.1 saw
            (b"1.1.1.1, 'or 1=1", b"10.0.0.1"),
            (b"1.1.1.1,, 2.2.2.2", b"2.2.2.2, 10.0.0.1"),
        ):
            self.assertEqual(sent(get(b"X-Forwarded-For: " + chain), FRIEND).get_all(b"x-forwarded-for"), [expected])

    def test_a_friends_scheme_is_one_of_two(self) -> None:
        cases = (([b"https"], b"https"), ([b"HTTPS"], b"HTTPS"), ([b"javascript"], b"http"), ([b"https", b"ftp"], b"http"))
        for schemes, expected in cases:
            head = get(*(b"X-Forwarded-Proto: " + value for value in schemes))
            self.assertEqual(sent(head, FRIEND).get_all(b"x-forwarded-proto"), [expected])

    def test_what_is_not_known_is_not_said(self) -> None:
        """Neither an empty X-Forwarded-Host for a client that names no host, nor port 0 for one on a unix socket."""
        head = request(b"GET / HTTP/1.0\r\n\r\n")
        for is_trusted in (False, True):
            out = sent(head, Client("", 0, is_trusted), host=b"server:80")
            self.assertEqual((out.get(b"host"), out.get(b"x-forwarded-proto")), (b"server:80", b"http"))
            self.assertEqual((out.get(b"x-forwarded-host"), out.get(b"x-forwarded-port")), (None, None))
        self.assertEqual(sent(get(), host=b"server:80").get(b"x-forwarded-host"), b"a.example:81")

    def test_a_unix_socket_has_no_address(self) -> None:
        self.assertEqual(sent(get(), Client("", 0, False)).get(b"x-forwarded-for"), b"unknown")

    def test_ID_04_a_request_id_is_taken_from_friends_only_and_only_a_sane_one(self) -> None:
        for value, expected in (
            (b"abc-123", b"abc-123"),
            (b"x" * 128, b"x" * 128),
            (b"x" * 129, b"fresh"),
            (b"", b"fresh"),
            (b"a\tb", b"fresh"),
            (b"a b", b"fresh"),
            (b'a"b', b"fresh"),
            (b"a'b", b"fresh"),
            (b"00-4bf9/2f+3==.x:y", b"00-4bf9/2f+3==.x:y"),
            (b"a\xffb", b"fresh"),
        ):
            self.assertEqual(FRIEND.request_id(get(b"X-Request-Id: " + value), b"fresh"), expected, value)
            self.assertEqual(STRANGER.request_id(get(b"X-Request-Id: " + value), b"fresh"), b"fresh")
        self.assertEqual(FRIEND.request_id(get(), b"fresh"), b"fresh")

    @settings(deadline=None, max_examples=300)
    @given(st.data())
    def test_ID_01_nothing_a_stranger_writes_passes_for_ours(self, data: Any) -> None:
        names = [
            b"X-Forwarded-For", b"x_forwarded_for", b"X-FORWARDED-PROTO", b"X-Forwarded-Host", b"X-Forwarded-Port", b"X-Forwarded_For",
            b"X-Forwarded-Server", b"X-Real-IP", b"X_Real-IP", b"X-Request-ID", b"X_Request_Id", b"Forwarded", b"X-Original-URL",
            b"X-Client-Cert-Subject", b"X_Client_Cert_Subject", b"X-Internal-A", b"X-Revproxy-Explain", b"TE", b"Keep-Alive", b"Connection",
            b"Accept",
        ]  # fmt: skip
        lines = [name + b": evil" for name in data.draw(st.lists(st.sampled_from(names), max_size=12))]
        ours = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-request-id"}
        out = sent(get(*lines))
        values: dict[bytes, list[bytes]] = {}
        for name, value in out.fields():
            values.setdefault(name.lower().replace(b"_", b"-"), []).append(value)
        self.assertEqual(set(values) - ours - {b"host", b"accept"}, set())
        for name in ours:
            self.assertEqual(len(values[name]), 1, name)
            self.assertNotEqual(values[name], [b"evil"])


class ResponseTests(SynchronousTestCase):
    def test_a_204_has_no_length_and_answers_without_a_body_keep_theirs(self) -> None:
        """RFC 9110 8.6: Content-Length is a MUST NOT for 204, and tells something in a 304 or an answer to HEAD."""
        for start, expected in ((b"204 No Content", []), (b"304 Not Modified", [b"5"]), (b"200 OK", [b"5"])):
            for is_http10 in (False, True):
                for keep_alive in (False, True):
                    head = reply(b"Content-Length: 5", start=b"HTTP/1.1 " + start)
                    _, fields = got(forwarding.response(head, 0, is_http10, keep_alive))
                    self.assertEqual([value for name, value in fields if name == b"Content-Length"], expected)

    def test_hop_by_hop_and_our_own_names_go(self) -> None:
        hop = (b"Connection: X-A, close", b"X-A: 1", b"Keep-Alive: 5", b"Transfer-Encoding: chunked", b"X-Revproxy-A: 1", b"Trailer: b")
        start, fields = got(forwarding.response(reply(*hop, b"Server: s", b"Set-Cookie: 1", b"Set-Cookie: 2"), CHUNKED, False, True))
        self.assertEqual(start, b"HTTP/1.1 200 OK")
        self.assertEqual(fields, [(b"Server", b"s"), (b"Set-Cookie", b"1"), (b"Set-Cookie", b"2"), (b"Transfer-Encoding", b"chunked")])

    def test_framing_and_close_for_every_kind_of_body_and_client(self) -> None:
        for length, is_http10, keep_alive, expected in (
            (5, False, True, [(b"Content-Length", b"5")]),
            (5, False, False, [(b"Content-Length", b"5"), (b"Connection", b"close")]),
            (5, True, True, [(b"Content-Length", b"5"), (b"Connection", b"keep-alive")]),
            (5, True, False, [(b"Content-Length", b"5"), (b"Connection", b"close")]),
            (CHUNKED, False, True, [(b"Transfer-Encoding", b"chunked")]),
            (CHUNKED, False, False, [(b"Transfer-Encoding", b"chunked"), (b"Connection", b"close")]),
            (CHUNKED, True, False, [(b"Connection", b"close")]),
            (UNTIL_CLOSE, False, True, [(b"Transfer-Encoding", b"chunked")]),
            (UNTIL_CLOSE, True, False, [(b"Connection", b"close")]),
        ):
            head = reply(b"Content-Length: 5") if length >= 0 else reply()
            self.assertEqual(got(forwarding.response(head, length, is_http10, keep_alive))[1], expected, (length, is_http10, keep_alive))

    def test_an_old_servers_version_is_not_passed_on(self) -> None:
        for start, out in ((b"HTTP/1.0 404 Not Here", b"HTTP/1.1 404 Not Found"), (b"HTTP/1.1 404 Not Here", b"HTTP/1.1 404 Not Here")):
            self.assertEqual(got(forwarding.response(reply(start=start), 0, False, True))[0], out)

    def test_interim_and_switching_have_no_framing(self) -> None:
        head = reply(b"Link: a", b"Content-Length: 5", b"Connection: X-A", b"X-A: 1", start=b"HTTP/1.1 103 Early Hints")
        self.assertEqual(got(forwarding.interim(head)), (b"HTTP/1.1 103 Early Hints", [(b"Link", b"a")]))
        head = reply(b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: 0", b"A: 1", start=b"HTTP/1.1 101 OK")
        expected = [(b"A", b"1"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        self.assertEqual(got(forwarding.switching(head, b"websocket")), (b"HTTP/1.1 101 OK", expected))


class Case(SynchronousTestCase):
    """Whole exchanges."""

    uses_bed = True
    bed: Any
    fakes: Any

    def serve(self, server: Any, body: bytes = b"ok") -> Any:
        request = server.request()
        server.send(self.fakes.answer(body))
        return request


class WholeExchangeTests(Case):
    def seen(self, request: bytes, **proxy: Any) -> Any:
        client, server = self.bed.start(request, **proxy)
        message = self.serve(server)
        client.response()
        client.close()
        return message

    def test_ID_01_what_a_stranger_claims_is_replaced(self) -> None:
        f = self.fakes
        claims = [b"X-Forwarded-For: 10.1.1.1", b"X-Forwarded-Proto: https", b"Forwarded: for=1.1.1.1", b"X-Request-Id: mine"]
        claims += [b"X-Real-IP: 1.1.1.1", b"X-Forwarded-Scheme: https", b"X-Original-URL: /admin", b"X-Rewrite-URL: /admin"]
        claims += [b"X_Forwarded_For: 1.1.1.1", b"X-Internal-User: root", b"X-Client-Cert-Subject: root", b"X-Revproxy-Explain: t"]
        request = self.seen(f.get(b"/", *claims))
        port = b"%d" % self.bed.port
        self.assertEqual(request.get(b"X-Forwarded-For"), b"127.0.0.1")
        self.assertEqual(request.get(b"X-Forwarded-Proto"), b"http")
        self.assertEqual(request.get(b"X-Forwarded-Host"), b"example.com")
        self.assertEqual(request.get(b"X-Forwarded-Port"), port)
        self.assertEqual(request.get(b"X-Request-Id"), self.bed.logged().request_id)
        names = {name.lower() for name, _ in request.fields}
        self.assertEqual(
            names, {b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-request-id"}
        )

    def test_ID_01_what_a_trusted_proxy_says_is_kept(self) -> None:
        f = self.fakes
        claims = [b"X-Forwarded-For: 1.1.1.1, 2.2.2.2", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: www", b"X-Request-Id: id-7"]
        request = self.seen(f.get(b"/", *claims, b"X-Real-IP: 1.1.1.1"), trusted_proxies=("127.0.0.0/8",))
        self.assertEqual(request.get(b"X-Forwarded-For"), b"1.1.1.1, 2.2.2.2, 127.0.0.1")
        self.assertEqual(request.get(b"X-Forwarded-Proto"), b"https")
        self.assertEqual(request.get(b"X-Forwarded-Host"), b"www")
        self.assertEqual(request.get(b"X-Forwarded-Port"), b"%d" % self.bed.port)
        self.assertEqual(request.get(b"X-Real-IP"), b"1.1.1.1")
        self.assertEqual(request.get(b"X-Request-Id"), b"id-7")
        line = self.bed.logged()
        self.assertEqual((line.client_ip, line.request_id), ("2.2.2.2", b"id-7"))

    def test_hop_by_hop_and_nominated_fields_stay_on_their_hop(self) -> None:
        f = self.fakes
        hop = [b"Connection: X-Mine, keep-alive", b"X-Mine: 1", b"Keep-Alive: timeout=5", b"TE: trailers", b"Proxy-Connection: x"]
        client, server = self.bed.start(f.get(b"/", *hop, b"Upgrade: h2c", b"HTTP2-Settings: AAA", b"Accept: a"))
        request = server.request()
        for name in (b"Connection", b"X-Mine", b"Keep-Alive", b"TE", b"Proxy-Connection", b"Upgrade", b"HTTP2-Settings"):
            self.assertEqual(request.all(name), [], name)
        self.assertEqual(request.get(b"Accept"), b"a")
        server.send(
            f.answer(b"", b"Connection: X-Theirs", b"X-Theirs: 1", b"Keep-Alive: timeout=9", b"X-Revproxy-Y: 1", b"Set-Cookie: a=1")
        )
        response = client.response()
        self.assertEqual([n for n, _ in response.fields], [b"Content-Length", b"Set-Cookie"])

    def test_SM_13_connection_cannot_take_away_our_own_fields(self) -> None:
        f = self.fakes
        request = self.seen(f.get(b"/", b"Connection: x-forwarded-for, x-request-id, authorization", b"Authorization: a"))
        self.assertEqual(request.get(b"X-Forwarded-For"), b"127.0.0.1")
        self.assertIsNotNone(request.get(b"X-Request-Id"))

    def test_via_is_added_to_what_is_there(self) -> None:
        request = self.seen(self.fakes.get(b"/", b"Via: 1.0 before"), via="edge")
        self.assertEqual(request.all(b"Via"), [b"1.0 before", b"1.1 edge"])

    def test_max_forwards_is_counted_down_and_sent_once(self) -> None:
        request = self.seen(b"OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n")
        self.assertEqual(request.get(b"Max-Forwards"), b"2")

    def test_max_forwards_means_nothing_to_GET(self) -> None:
        self.assertEqual(self.seen(self.fakes.get(b"/", b"Max-Forwards: 3")).get(b"Max-Forwards"), b"3")

    def test_SM_20_absolute_form_becomes_a_path_and_its_host(self) -> None:
        request = self.seen(b"GET http://Other.example:81/a%7Eb/../c?q HTTP/1.1\r\nHost: example.com\r\n\r\n")
        self.assertEqual((request.start, request.get(b"Host")), (b"GET /c?q HTTP/1.1", b"Other.example:81"))
        self.assertEqual(request.get(b"X-Forwarded-Host"), b"Other.example:81")

    def test_RT_04_what_is_matched_is_what_is_forwarded(self) -> None:
        self.assertEqual(self.seen(self.fakes.get(b"//a/./b/../%61?x=%61/../")).target, b"/a/a?x=%61/../")

    def test_strip_removes_the_prefix_and_keeps_a_slash(self) -> None:
        for path, expected in ((b"/api/x?y", b"/x?y"), (b"/api/", b"/"), (b"/api", b"/"), (b"/api?q", b"/?q"), (b"/api//x?", b"/x?")):
            request = self.seen(self.fakes.get(path), routes=[Route("/api", "web", strip=True)])
            self.assertEqual((request.target, request.get(b"Host")), (expected, b"example.com"))

    def test_X_Request_Id_is_new_for_every_request(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get() * 3)
        ids = {self.serve(server).get(b"X-Request-Id") for _ in range(3)}
        self.assertEqual(len(ids), 3)
        for _ in range(3):
            client.response()
