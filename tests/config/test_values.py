"""The kinds of value: what is taken, in which form it is kept, and what is said of the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import values
from twistedproxy.config.values import Rate

GOOD = [
    (values.parse_duration, {"250ms": 0.25, "1.5s": 1.5, "2m": 120.0, "1h": 3600.0, "1d": 86400.0, "0s": 0.0, "1ms": 0.001}),
    (
        values.parse_size,
        {"1B": 1, "1kB": 1000, "2MB": 2_000_000, "1GB": 10**9, "1KiB": 1024, "1.5KiB": 1536, "100MiB": 104857600, "1GiB": 2**30},
    ),
    (
        values.parse_rate,
        {
            "100/s": Rate(100.0, False, None, 100),
            "120/m": Rate(2.0, False, None, 120),
            "7200/h": Rate(2.0, False, None, 7200),
            "100/s per client_ip": Rate(100.0, False, "client_ip", 100),
            "100/s per client_ip burst 200": Rate(100.0, False, "client_ip", 200),
            "5/s burst 20": Rate(5.0, False, None, 20),
            "500B/s": Rate(500.0, True, None, 500),
            "1KiB/s": Rate(1024.0, True, None, 1024),
        },
    ),
    (values.parse_byte_rate, {"500B/s": 500.0, "60kB/m": 1000.0}),
    (values.parse_percent, {"0%": 0.0, "20%": 0.2, "100%": 1.0, "12.5%": 0.125}),
    (values.parse_mode, {"0660": 0o660, "600": 0o600}),
    (values.parse_name, {"web": "web", "a.b-c_D9": "a.b-c_D9"}),
    (
        values.parse_host,
        {
            "WWW.Example.COM.": "www.example.com",
            "*": "*",
            "*.Example.com": "*.example.com",
            "127.0.0.1": "127.0.0.1",
            "::1": "[::1]",
            "[::1]": "[::1]",
            "localhost": "localhost",
        },
    ),
    (values.parse_network, {"10.0.0.0/8": "10.0.0.0/8", "10.1.2.3": "10.1.2.3/32", "fd00::/8": "fd00::/8", "0.0.0.0/0": "0.0.0.0/0"}),
    (
        values.parse_balance,
        {
            "round_robin": "round_robin",
            "source_ip": "source_ip",
            "hash:path": "hash:path",
            "hash:header.X-User": "hash:header.X-User",
            "hash:cookie.sid": "hash:cookie.sid",
            "hash:query.v": "hash:query.v",
        },
    ),
    (
        values.parse_route_path,
        {"/": "/", "/x/": "/x/", "=/x": "=/x", "/%7euser": "/~user", "/a%2fb": "/a%2Fb", "/a:b@c;d=1,2": "/a:b@c;d=1,2", "/...": "/..."},
    ),
    (values.parse_get, {"GET /": "/", "GET /health?deep=1": "/health?deep=1"}),
    (values.parse_status_ranges, {"200-299": ((200, 299),), "200, 204,300-399": ((200, 200), (204, 204), (300, 399)), 200: ((200, 200),)}),
    (values.parse_health_host, {"app.internal": "app.internal", "app:8080": "app:8080", "[::1]": "[::1]", "10.0.0.1": "10.0.0.1"}),
    (values.parse_sha256, {"AB" * 32: "ab" * 32}),
    (values.parse_token, {"my-proxy.1": "my-proxy.1"}),
    (values.health_table, {"tcp": {"tcp": True}, "redis": {"redis": True}, "GET /x": {"http": "GET /x"}}),
    (
        values.server_table,
        {
            "a:1": {"address": "a:1"},
            "a:1 weight=3 max_connections=7 backup": {"address": "a:1", "weight": 3, "max_connections": 7, "backup": True},
            "a:1  weight=0": {"address": "a:1", "weight": 0},
        },
    ),
]

# function, value, a key word of the message
BAD = [
    *(
        (values.parse_duration, v, "duration")
        for v in ("5", "5 s", "s", "-1s", "1.5.s", "1e3s", "5S", "", "none", "١s", "1s\n", "9" * 99 + "s")
    ),
    *((values.parse_duration, v, "duration") for v in (5, 1.5, True, None, ["1s"], {})),
    *((values.parse_size, v, "size") for v in ("1", "1KB", "1 MiB", "-1B", "1mb", "unlimited", 100, 0)),
    *((values.parse_rate, v, "rate") for v in ("100", "100/d", "/s", "100/s per", "100/s burst", "100/s per a b", 5)),
    *((values.parse_byte_rate, v, "bytes") for v in ("500/s", "500B/s per client_ip", "500B", 500)),
    *((values.parse_percent, v, "percentage") for v in ("20", "101%", "-1%", 0.2, "%")),
    *((values.parse_mode, v, "octal") for v in ("0999", "rw", 660, "07777", "")),
    *((values.parse_name, v, "name") for v in ("", "a b", "ä", "a/b", "a" * 129, 5)),
    *(
        (values.parse_host, v, "host")
        for v in ("", "a b", "a.com:80", "*.", "a.*.com", "bücher.example", "*x.com", "256.1.1.1", "a..b", "http://a", 5)
    ),
    *((values.parse_network, v, "network") for v in ("10.0.0.0/33", "localhost", "", "10.0.0.1/8", 10)),
    *((values.parse_balance, v, "hash:path") for v in ("roundrobin", "hash", "hash:header", "hash:header.", "hash:header.a b", "", 5)),
    *(
        (values.parse_route_path, v, "")
        for v in ("", "x", "/a*", "/a b", "/a?b", "/a#b", "//", "/a/../b", "/.", "/é", "/a%", "/%2e%2e/", "/\\", "==/")
    ),
    *((values.parse_get, v, "GET") for v in ("GET", "GET x", "POST /", "GET /a b", "GET  /", "GET /a\r\nX: y", "GET /#x", 5)),
    *((values.parse_status_ranges, v, "") for v in ("", "99", "600", "300-200", "2xx", "200-", True, 1.5)),
    *((values.parse_health_host, v, "host") for v in ("a b", "a\r\nb", "", "a:b", "http://x")),
    *((values.parse_sha256, v, "64") for v in ("", "ab", "g" * 64, 5)),
    *((values.parse_token, v, "word") for v in ("", "a b", "a/b", "ä", False)),
    *((values.health_table, v, "allowed") for v in ("", "http", "tpc", "ping", 5, True)),
    *(
        (values.server_table, v, "")
        for v in ("", " ", "a:1 weight", "a:1 weight=", "a:1 weight=x", "a:1 weight=-1", "a:1 backup backup", "a:1 weight=1 weight=2")
    ),
    *((values.server_table, v, "server") for v in ("a:1 wieght=1", "a:1, b:2", "a:1 ssl", 5, ["a:1"])),
]

LISTEN = {
    ":80": "[::]:80",
    "127.0.0.1:0": "127.0.0.1:0",
    "localhost:81": "127.0.0.1:81",
    "[::1]:80": "[::1]:80",
    "[0:0::1]:080": "[::1]:80",
    "unix:run/a.sock": "unix:/base/run/a.sock",
    "unix:/run/../run/b.sock": "unix:/run/b.sock",
    "0.0.0.0:80": "0.0.0.0:80",
}
BAD_LISTEN = [
    "80",
    "*:80",
    "",
    ":",
    ":x",
    ":70000",
    "example.com:80",
    "::1:80",
    "unix:",
    "tcp:80",
    "10.0.0.1",
    "http://x:1",
    80,
    "unix:" + "a" * 110,
]
SERVERS = {
    "A.Example:80": "a.example:80",
    "10.0.0.1:080": "10.0.0.1:80",
    "[0::1]:80": "[::1]:80",
    "unix:x.sock": "unix:/base/x.sock",
    "db_1:5432": "db_1:5432",
}
BAD_SERVERS = [
    "10.0.0.1",
    "a:0",
    "a:65536",
    ":80",
    "http://a:80",
    "::1:80",
    "[::1]",
    "a b:1",
    "-a:1",
    "unix:",
    "a:80/x",
    "",
    80,
    "1.2.3:80",
    "a:١",
]


class ValueTests(SynchronousTestCase):
    def test_what_is_allowed_is_taken(self):
        for parse, table in GOOD:
            for text, value in table.items():
                self.assertEqual(parse(text), value, f"{parse.__name__} {text!r}")

    def test_what_is_not_allowed_is_refused_with_a_sentence_that_says_what_is(self):
        for parse, value, word in BAD:
            with self.assertRaises(ValueError, msg=f"{parse.__name__} {value!r}") as caught:
                parse(value)
            self.assertIn(word.lower(), str(caught.exception).lower(), f"{parse.__name__} {value!r}")

    def test_listen_addresses_become_canonical(self):
        for text, address in LISTEN.items():
            self.assertEqual(values.parse_listen(text, "/base", True), address)
        self.assertEqual(values.parse_listen(":80", "/base", False), "0.0.0.0:80")

    def test_other_listen_addresses_are_refused_with_the_allowed_forms(self):
        for text in BAD_LISTEN:
            with self.assertRaises(ValueError, msg=repr(text)) as caught:
                values.parse_listen(text, "/base", True)
            self.assertIn("unix:PATH", str(caught.exception))

    def test_server_addresses_become_canonical(self):
        for text, address in SERVERS.items():
            self.assertEqual(values.parse_server_address(text, "/base"), address)

    def test_other_server_addresses_are_refused(self):
        for text in BAD_SERVERS:
            with self.assertRaises(ValueError, msg=repr(text)):
                values.parse_server_address(text, "/base")

    def test_a_relative_unix_path_is_refused_where_nothing_is_known_to_be_relative_to(self):
        with self.assertRaisesRegex(ValueError, "absolute"):
            values.parse_server_address("unix:x.sock", None)
        self.assertEqual(values.parse_server_address("unix:/x.sock", None), "unix:/x.sock")

    def test_a_network_that_names_a_host_says_both_ways_to_write_it(self):
        with self.assertRaisesRegex(ValueError, r"'10.0.0.0/8' or '10.0.0.1'"):
            values.parse_network("10.0.0.1/8")

    def test_a_message_never_quotes_more_than_a_line(self):
        quoting = (
            values.parse_duration, values.parse_host, values.parse_balance, values.parse_name, lambda t: values.server_table("a:1 " + t),
            lambda t: values.parse_server_address(t, "/"), lambda t: values.parse_listen(t, "/", True),
        )  # fmt: skip
        for parse in quoting:
            with self.assertRaises(ValueError) as caught:
                parse("x" * 3000)
            self.assertLess(len(str(caught.exception)), 400)

    @given(st.text(), st.sampled_from([parse for parse, _ in GOOD]))
    def test_no_text_raises_anything_but_a_sentence(self, text, parse):
        try:
            parse(text)
        except ValueError as e:
            self.assertTrue(str(e))

    @given(st.text(), st.sampled_from([values.parse_server_address, lambda t, b: values.parse_listen(t, b, True)]))
    def test_a_canonical_address_is_its_own_canonical_form(self, text, parse):
        try:
            address = parse(text, "/base")
        except ValueError:
            return
        self.assertEqual(parse(address, "/other"), address)

    @given(st.text(alphabet="/=aA%27eE.~", min_size=1))
    def test_a_canonical_path_is_its_own_canonical_form(self, text):
        try:
            path = values.parse_route_path(text)
        except ValueError:
            return
        self.assertEqual(values.parse_route_path(path), path)

    def test_a_misspelt_word_finds_its_neighbour_and_nonsense_does_not(self):
        self.assertIn("'balance'", values.did_you_mean("balanec", ["servers", "balance"]))
        self.assertEqual(values.did_you_mean("zzz", ["servers", "balance"]), "")
        self.assertEqual(values.did_you_mean("x" * 1_000_000, ["servers"]), "")
