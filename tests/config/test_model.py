"""Addresses have one form; what an operator set wins over the file."""

from __future__ import annotations

import dataclasses
import socket

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import AdminState, Endpoint, Model, Pool, Server, endpoint, is_host_name

GOOD = {
    "10.0.0.1:80": (socket.AF_INET, "10.0.0.1", 80, "10.0.0.1:80"),
    "[::1]:80": (socket.AF_INET6, "::1", 80, "[::1]:80"),
    "[0:0::1]:080": (socket.AF_INET6, "::1", 80, "[::1]:80"),
    "Db.Example.:5432": (socket.AF_UNSPEC, "db.example", 5432, "db.example:5432"),
    "unix:/run/a b.sock": (socket.AF_UNIX, "/run/a b.sock", 0, "unix:/run/a b.sock"),
    "a:0": (socket.AF_UNSPEC, "a", 0, "a:0"),
}
BAD = [
    "", "a", "a:", ":80", "a:65536", "a:-1", "a:+1", "a:1x", "a:١", "::1:80", "[::1]", "[x]:80", "[1.2.3.4]:80", "1.2.3:80", "256.0.0.1:80",
    "a b:1", "-a:1", "a-:1", "a..b:1", "ä:1", "unix:", "unix:a\0b", "unix:" + "a" * 108, "x" * 64 + ":1", "a:" + "9" * 5000,
]  # fmt: skip


class AddressTests(SynchronousTestCase):
    def test_addresses_are_taken_apart_and_put_together_in_one_form(self):
        for text, (family, host, port, canonical) in GOOD.items():
            place = endpoint(text)
            self.assertEqual((place, str(place)), (Endpoint(family, host, port), canonical))
            self.assertEqual(endpoint(canonical), place)

    def test_what_is_no_address_is_refused(self):
        for text in BAD:
            with self.assertRaises(ValueError, msg=repr(text)):
                endpoint(text)

    def test_the_socket_calls_get_what_they_need(self):
        self.assertEqual(endpoint("10.0.0.1:80").sockaddr, ("10.0.0.1", 80))
        self.assertEqual(endpoint("unix:/a").sockaddr, "/a")

    @given(st.text(), st.integers(0, 70000))
    def test_any_text_is_an_address_with_one_form_or_refused(self, host, port):
        for text in (host, f"{host}:{port}", f"[{host}]:{port}", f"unix:{host}"):
            try:
                place = endpoint(text)
            except ValueError:
                continue
            self.assertEqual(endpoint(str(place)), place)

    def test_host_names_are_names_and_not_broken_ip_addresses(self):
        for name in ("a", "a.b", "a-b.c", "_dmarc.a", "1a", "a.", "x" * 63):
            self.assertTrue(is_host_name(name), name)
        for name in ("", ".", "a..b", "-a", "a-", "1.2.3", "123", "a b", "x" * 64, "a." * 127 + "bc", "é"):
            self.assertFalse(is_host_name(name), name)


class ServerTests(SynchronousTestCase):
    def test_what_an_operator_set_wins_over_the_file(self):
        self.assertEqual(Server("a:1", 3).weight_now, 3)
        self.assertEqual(Server("a:1", 3, weight_set=0).weight_now, 0)
        self.assertIs(Server("a:1").state, AdminState.READY)
        self.assertIs(Server("a:1", state_set=AdminState.MAINT).state, AdminState.MAINT)

    def test_the_limit_is_the_operators_else_the_servers_else_the_pools(self):
        pool = Pool("web", max_connections=3)
        self.assertEqual(pool.limit_of(Server("a:1")), 3)
        self.assertEqual(pool.limit_of(Server("a:1", max_connections=2)), 2)
        self.assertEqual(pool.limit_of(Server("a:1", max_connections=2, max_connections_set=1)), 1)

    def test_a_server_is_found_by_its_address(self):
        pool = Pool("web", (Server("a:1"), Server("b:1")))
        self.assertEqual((pool.server("b:1"), pool.server("c:1")), (Server("b:1"), None))

    def test_nobody_changes_a_model_in_place(self):
        with self.assertRaises(dataclasses.FrozenInstanceError):
            Model().workers = 5
