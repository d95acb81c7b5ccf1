"""Traffic divided by weight: exact shares, and clients that stay."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Sticky
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.http.splits import Split, cookie_value

USERS = 10_000


def head(cookie: str = "", user: str = "") -> Any:
    lines = ["GET / HTTP/1.1", "Host: h", *([f"Cookie: {cookie}"] if cookie else []), *([f"X-User: {user}"] if user else []), "", ""]
    return parse_request("\r\n".join(lines).encode(), Limits())


def split(sticky: Sticky | None = None, **weights: int) -> Split[str]:
    return Split([(name, weight, name) for name, weight in weights.items()], sticky)


class SplitTests(SynchronousTestCase):
    def test_an_ab_test_with_cookies(self) -> None:
        """10,000 users split 90:10 within 1 %; when it becomes 80:20 nobody flips, and new users come 80:20."""
        draws = random.Random(7)
        sticky = Sticky("ab")
        before, after = split(sticky, web=90, canary=10), split(sticky, web=80, canary=20)
        sides = [before.choose(head(), "", draws.random()) for _ in range(USERS)]
        self.assertLess(abs(sides.count("canary") / USERS - 0.10), 0.01)
        again = [after.choose(head(f"ab={side}"), "", draws.random()) for side in sides]
        self.assertEqual(again, sides)
        fresh = [after.choose(head(), "", draws.random()) for _ in range(USERS)]
        self.assertLess(abs(fresh.count("canary") / USERS - 0.20), 0.01)

    def test_an_ab_test_by_hash(self) -> None:
        """Without cookies, 90:10 to 80:20 moves just the tenth that must move, all of it to the side that grew."""
        sticky = Sticky(key="hash:header.X-User")
        before, after = split(sticky, web=90, canary=10), split(sticky, web=80, canary=20)
        users = [head(user=f"user{i}") for i in range(USERS)]
        one = [before.choose(user, "", 0.0) for user in users]
        two = [after.choose(user, "", 0.0) for user in users]
        self.assertLess(abs(one.count("canary") / USERS - 0.10), 0.01)
        self.assertLess(abs(two.count("canary") / USERS - 0.20), 0.01)
        flips = [(a, b) for a, b in zip(one, two, strict=True) if a != b]
        self.assertEqual(set(flips), {("web", "canary")})
        self.assertLess(abs(len(flips) / USERS - 0.10), 0.01)

    def test_who_must_move_moves(self) -> None:
        """A side that is gone or has weight 0 is nobody's side any more."""
        self.assertEqual(split(Sticky("ab"), web=1, canary=0).choose(head("ab=canary"), "", 0.0), "web")
        self.assertEqual(split(Sticky("ab"), web=1).choose(head("ab=canary"), "", 0.0), "web")

    def test_a_client_without_what_is_hashed_is_drawn(self) -> None:
        """No header to hash: the draw decides, instead of everybody landing on one side."""
        both = split(Sticky(key="hash:header.X-User"), a=1, b=1)
        self.assertEqual([both.choose(head(), "", draw) for draw in (0.1, 0.9)], ["a", "b"])

    @given(st.lists(st.integers(0, 1000), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
    def test_a_draw_falls_on_an_open_side(self, weights: list[int], draw: float) -> None:
        """Whatever the weights, a side of weight 0 gets nobody while another is open."""
        sides = split(None, **{f"s{i}": weight for i, weight in enumerate(weights)})
        chosen = sides.choose(head(), "", draw)
        self.assertEqual(sides.is_open, any(weights))
        if any(weights):
            self.assertGreater(weights[int(chosen[1:])], 0)

    def test_the_cookie(self) -> None:
        """Attributes as configured; Secure by default only over TLS; nothing is set twice."""
        self.assertEqual(cookie_value(Sticky("ab"), "web", False), b"ab=web; Path=/; HttpOnly; SameSite=Lax")
        whole = Sticky("ab", "/x", None, "none", 3600.0)
        self.assertEqual(cookie_value(whole, "web", True), b"ab=web; Path=/x; Max-Age=3600; HttpOnly; SameSite=None; Secure")
        self.assertIsNone(split(Sticky("ab"), web=1).set_cookie(head("ab=web"), "web", False))
        self.assertIsNone(split(Sticky(key="source_ip"), web=1).set_cookie(head(), "web", False))
