"""Tokens, the brake on guessing, and names."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import statistics
import time
from pathlib import Path
from unittest.mock import patch

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin.auth import GuessBrake, Identity, Role, Tokens, bearer, host_of, is_our_name, token_from_file
from twistedproxy.config.model import Address, Admin, Token
from twistedproxy.errors import ConfigurationError


class TokenFile(SynchronousTestCase):
    def test_made_once_private_and_alone(self) -> None:
        """The file is 0600 whatever the umask, holds the token alone, and is kept."""
        path = self.mktemp()
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        token = token_from_file(path)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertEqual(Path(path).read_text(), token + "\n")
        self.assertEqual(token_from_file(path), token)

    def test_unusable_files_are_refused_with_a_remedy(self) -> None:
        """An empty file would be an empty password; a missing directory is named."""
        empty, two = self.mktemp(), self.mktemp()
        Path(empty).write_text("\n")
        Path(two).write_text("one two\n")
        for path in (empty, two, "/nowhere/at/all"):
            with self.assertRaises(ConfigurationError) as caught:
                token_from_file(path)
            self.assertEqual(caught.exception.problems[0].path, "admin.token_file")
            self.assertIn(path, str(caught.exception))


class Identities(SynchronousTestCase):
    def setUp(self) -> None:
        known = (Token("grafana", "view", hashlib.sha256(b"g").hexdigest()), Token("bot", "operate", hashlib.sha256(b"b").hexdigest()))
        self.tokens = Tokens("file", lambda: Admin(tokens=known))

    def test_each_token_has_its_name_and_role(self) -> None:
        """The journal names the token's holder."""
        self.assertEqual(self.tokens.identify(b"file"), Identity("admin", Role.ADMIN))
        self.assertEqual(self.tokens.identify(b"g"), Identity("grafana", Role.VIEW))
        self.assertEqual(self.tokens.identify(b"b"), Identity("bot", Role.OPERATE))
        self.assertIsNone(self.tokens.identify(b""))

    def test_AD_01_comparisons_do_not_depend_on_the_token(self) -> None:
        """AD-01: whatever the guess, every known digest is compared, whole, in constant time."""
        for guess in (b"file", b"g", b"x", b"", b"x" * 10_000):
            with patch.object(hmac, "compare_digest", wraps=hmac.compare_digest) as compare:
                self.tokens.identify(guess)
            self.assertEqual([tuple(map(len, call.args)) for call in compare.call_args_list], [(32, 32)] * 3)

    def test_AD_01_the_clock_tells_nothing(self) -> None:
        """AD-01: guesses that share much with the token take as long as those that share nothing."""
        taken: dict[bytes, list[int]] = {b"file-but-longer": [], b"xile-but-longer": [], b"fil": [], b"xxx": []}
        for _ in range(5000):
            for guess, times in taken.items():
                began = time.perf_counter_ns()
                self.tokens.identify(guess)
                times.append(time.perf_counter_ns() - began)
        long_near, long_far, short_near, short_far = (statistics.median(times) for times in taken.values())
        self.assertLess(abs(long_near - long_far), 0.1 * long_far)
        self.assertLess(abs(short_near - short_far), 0.1 * short_far)


class Brake(SynchronousTestCase):
    def test_ten_failures_a_second(self) -> None:
        """Ten failures block a peer, its IPv6 neighbours in the /64 too, and nobody else, for the rest of the second."""
        clock = Clock()
        clock.advance(100)
        brake = GuessBrake(clock.seconds)
        for _ in range(10):
            self.assertFalse(brake.is_blocked("2001:db8::1"))
            brake.failed("2001:db8::1")
        self.assertTrue(brake.is_blocked("2001:db8::2"))
        for other in ("2001:db8:1::1", "192.0.2.1", "::ffff:192.0.2.1"):
            self.assertFalse(brake.is_blocked(other))
        clock.advance(1)
        self.assertFalse(brake.is_blocked("2001:db8::1"))

    def test_mapped_addresses_are_the_ones_they_map(self) -> None:
        """All of IPv4 is not one peer on a dual-stack socket."""
        brake = GuessBrake(lambda: 0.0)
        for _ in range(10):
            brake.failed("::ffff:192.0.2.1")
        self.assertTrue(brake.is_blocked("192.0.2.1"))
        self.assertFalse(brake.is_blocked("::ffff:192.0.2.2"))

    def test_memory_is_bounded(self) -> None:
        """A botnet cannot fill the memory with its addresses."""
        brake = GuessBrake(lambda: 0.0)
        for n in range(GuessBrake.MAX_PEERS + 100):
            brake.failed(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
        self.assertEqual(len(brake._windows), GuessBrake.MAX_PEERS)


class Names(SynchronousTestCase):
    def test_bearer(self) -> None:
        """One Bearer field, any case of the word."""
        self.assertEqual(bearer([b"Bearer abc"]), b"abc")
        self.assertEqual(bearer([b"BEARER  abc "]), b"abc")
        for wrong in ([], [b"Bearer a", b"Bearer a"], [b"Basic abc"], [b"Bearer"], [b"abc"]):
            self.assertIsNone(bearer(wrong))

    def test_host_of(self) -> None:
        """Port, case, brackets and the trailing dot do not matter; nonsense is no host."""
        cases = {
            "A.b:80": "a.b",
            "a.b.": "a.b",
            "[::1]:80": "::1",
            "[0:0::1]": "::1",
            "[x]": "",
            "[::1": "",
            "a:b": "",
            "a:1:2": "",
            "": "",
        }
        for field, host in cases.items():
            self.assertEqual(host_of(field), host, field)

    def test_wildcard_listen_address_accepts_the_address_it_was_reached_at(self) -> None:
        """With listen = ":9901" the machine's own IP address is a good Host; any other address is not."""
        admin = Admin(listen=Address("[::]:9901"))
        self.assertTrue(is_our_name("192.0.2.10", admin, "::ffff:192.0.2.10"))
        self.assertFalse(is_our_name("192.0.2.11", admin, "::ffff:192.0.2.10"))
        self.assertFalse(is_our_name("", Admin(listen=None), ""))
