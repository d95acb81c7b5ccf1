"""What a route does besides passing on: compiled, or nothing at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import HeaderEdits, Mirror, Respond, Rewrite, Route, Site, Use
from twistedproxy.http.actions import compile_actions, joined
from twistedproxy.http.head import Limits, parse_request

SITE = Site("s", ("*",))


def compiled(route: Route, site: Site = SITE, matched: bytes = b"/", is_sticky: bool = False) -> Any:
    prefix = matched.rstrip(b"/") if route.strip else b""
    return compile_actions(site, route, prefix, matched, None, is_sticky)


def redirected(to: str, matched: bytes, target: str) -> bytes:
    head = parse_request(f"GET {target} HTTP/1.1\r\nHost: h.example\r\n\r\n".encode(), Limits())
    subject = SimpleNamespace(head=head, scheme="https")
    local = compiled(Route("/", redirect=to), matched=matched).answer(subject)
    return dict(local.fields)[b"Location"]


class ActionTests(SynchronousTestCase):
    def test_a_plain_route_has_none(self) -> None:
        """What a route does not use costs nothing: no actions at all."""
        self.assertIsNone(compiled(Route("/", "web")))

    def test_each_feature_makes_actions(self) -> None:
        """Nothing the file says is silently left out."""
        for route in (
            Route("/", "web", host="x"), Route("/", "web", rewrite=Rewrite("a", "/")), Route("/", respond=Respond()),
            Route("/", redirect="/x"), Route("/", "web", use=(Use("security_headers"),)), Route("/", "web", mirror=Mirror("m")),
            Route("/", "web", request=HeaderEdits(remove=("X",))), Route("/", "web", response=HeaderEdits((("X", "1"),))),
        ):  # fmt: skip
            self.assertIsNotNone(compiled(route), route)
        self.assertIsNotNone(compiled(Route("/", "web"), is_sticky=True))
        self.assertIsNotNone(compiled(Route("/", "web"), Site("s", ("*",), maintenance=True)))
        self.assertIsNotNone(compiled(Route("/x/", "web", strip=True), matched=b"/x/"))

    def test_redirects(self) -> None:
        """The rest of the path and the query are kept, one slash between; variables place them instead; never a foreign host."""
        for to, matched, target, wanted in (
            ("/new/", b"/old/", "/old/a/b?x=1", b"/new/a/b?x=1"),
            ("/new", b"/old/", "/old/a", b"/new/a"),
            ("/new", b"/old", "/old", b"/new"),
            ("/", b"/old", "/old/evil.example", b"/evil.example"),
            ("/", b"/old/", "/old/evil.example", b"/evil.example"),
            ("https://x.example", b"/", "/.evil", b"https://x.example/.evil"),
            ("/n?a=1", b"/old/", "/old/?b=2", b"/n?a=1&b=2"),
            ("https://${host}${path}", b"/", "/a?b", b"https://h.example/a"),
            ("${scheme}://w.example${path}?${query}", b"/", "/a?b", b"https://w.example/a?b"),
        ):
            with self.subTest(to, target=target):
                self.assertEqual(redirected(to, matched, target), wanted)

    def test_joined_never_begins_a_host(self) -> None:
        """Whatever the rest is, two slashes never meet at the front."""
        for target in (b"/", b"", b"//"):
            self.assertFalse(joined(target, b"/x.example", b"").startswith(b"//"))
