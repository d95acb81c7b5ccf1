"""Which clients are meant by a list of networks."""

import ipaddress
import timeit

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net.networks import CACHED, Networks


class Membership(SynchronousTestCase):
    def test_an_empty_list_contains_nobody_and_is_false(self):
        nobody = Networks([])
        self.assertFalse(nobody)
        self.assertFalse(nobody.contains("127.0.0.1"))
        self.assertTrue(Networks(["10.0.0.0/8"]))

    def test_addresses_and_networks_of_both_families(self):
        some = Networks(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"])
        for ip in ("10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8::5", "::1", "2001:db8::5%eth0"):
            self.assertTrue(some.contains(ip), ip)
        for ip in (
            "11.0.0.0",
            "9.255.255.255",
            "192.0.2.8",
            "2001:db9::",
            "::2",
            "",
            "localhost",
            "10.0.0.1x",
            "10.0.0",
            "::ffff:11.0.0.1",
        ):
            self.assertFalse(some.contains(ip), ip)

    def test_an_ipv4_client_of_an_ipv6_socket_is_the_ipv4_client_it_is(self):
        self.assertTrue(Networks(["10.0.0.0/8"]).contains("::ffff:10.1.2.3"))
        self.assertFalse(Networks(["::/0"]).contains("::ffff:10.1.2.3"), "not an IPv6 client")
        self.assertTrue(Networks(["::ffff:10.0.0.0/104"]).contains("10.1.2.3"))

    def test_host_bits_in_a_network_do_not_matter(self):
        self.assertTrue(Networks(["10.1.2.3/8"]).contains("10.9.9.9"))

    def test_what_is_no_network_is_refused(self):
        self.assertRaises(ValueError, Networks, ["10.0.0.0/33"])

    def test_what_is_remembered_has_a_limit(self):
        some = Networks(["10.0.0.0/8"])
        for n in range(CACHED * 2 + 10):
            some.contains(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
        self.assertLessEqual(len(some._verdicts), CACHED)

    def test_a_remembered_client_costs_next_to_nothing(self):
        some = Networks(f"10.{n}.0.0/16" for n in range(250))
        some.contains("192.0.2.1")
        self.assertLess(min(timeit.repeat(lambda: some.contains("192.0.2.1"), number=1000, repeat=5)), 0.002)

    @given(st.lists(st.ip_addresses(v=4), max_size=3), st.integers(0, 32), st.ip_addresses(v=4))
    @settings(max_examples=200, deadline=None)
    def test_it_agrees_with_the_standard_library(self, bases, length, ip):
        networks = [ipaddress.ip_network((base, length), strict=False) for base in bases]
        self.assertEqual(Networks(map(str, networks)).contains(str(ip)), any(ip in n for n in networks))
