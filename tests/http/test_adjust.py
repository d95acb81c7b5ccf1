"""What a server says of its own paths, as the client must see it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.adjust import adjusted, location, set_cookie
from twistedproxy.http.head import parse_response

INSIDE = (b"app.internal", b"127.0.0.1:9001")
LOCATIONS = [
    (b"/login", b"/api/login"),
    (b"/", b"/api/"),
    (b"login", b"login"),
    (b"?a=1", b"?a=1"),
    (b"//other.example/x", b"//other.example/x"),
    (b"http://app.internal/x?y=/z", b"https://www.example.com/api/x?y=/z"),
    (b"http://127.0.0.1:9001", b"https://www.example.com/api/"),
    (b"//127.0.0.1:9001/x", b"https://www.example.com/api/x"),
    (b"https://WWW.example.com/x#f", b"https://WWW.example.com/api/x#f"),
    (b"https://other.example/x", b"https://other.example/x"),
    (b"mailto:a@b", b"mailto:a@b"),
]
COOKIES = [
    (b"a=1; Path=/; HttpOnly", b"a=1; Path=/api; HttpOnly"),
    (b"a=1;path=/x", b"a=1; Path=/api/x"),
    (b"a=1; Domain=app.internal; Secure", b"a=1; Secure"),
    (b"a=1; Domain=.example.com", b"a=1; Domain=.example.com"),
    (b"a=Path=/", b"a=Path=/"),
]


class AdjustTests(SynchronousTestCase):
    def test_locations(self) -> None:
        """Own paths get the prefix back, own hosts become the client's, everybody else's stay."""
        for value, wanted in LOCATIONS:
            with self.subTest(value):
                self.assertEqual(location(value, b"/api", INSIDE, b"www.example.com", b"https"), wanted)

    def test_cookies(self) -> None:
        """Paths get the prefix back; a domain that only the proxy knows is dropped; values are left alone."""
        for value, wanted in COOKIES:
            with self.subTest(value):
                self.assertEqual(set_cookie(value, b"/api", INSIDE), wanted)

    def test_a_head_without_either_is_left_as_it_is(self) -> None:
        """Nothing to put right costs nothing."""
        head = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert head is not None
        self.assertIs(adjusted(head, b"/api", INSIDE, b"h", b"http"), head)
