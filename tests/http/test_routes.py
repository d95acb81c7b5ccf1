"""Which route takes a request: against a model that looks at all of them, and at a cost that does not grow with their number."""

from __future__ import annotations

import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Route, Side, Site, Use, When
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.http.routes import Decision, Router, Trace, no_route_detail

LIMITS = Limits(max_head=100_000, max_request_line=50_000)
SEGMENTS = st.sampled_from(["a", "b", "ab", "a.b", "é", "%2C"])
LABELS = st.sampled_from(["a", "b", "www", "com", "example"])


def head(path: str = "/", host: str = "example.com", method: str = "GET") -> Any:
    found = parse_request(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"), LIMITS)
    assert found is not None
    return found


def forwarded(decision: Decision[None], path: bytes) -> bytes:
    """The canonical path as the server is asked for it."""
    return path if decision.actions is None else decision.actions.path(path, b"")[0]


def router(*sites: Site) -> Router[None]:
    return Router(sites, lambda site, route: None)


def site(*paths: str, hosts: tuple[str, ...] = ("*",), name: str = "s", strip: bool = False) -> Site:
    return Site(name, hosts, tuple(Route(path, f"pool of {path}", strip=strip) for path in paths))


def by_scanning(paths: list[str], path: str) -> str | None:
    """What the contract says, word by word: the longest path wins, and of two that say the same the more exact one."""
    best: tuple[int, int, str] | None = None
    for route in paths:
        if route.startswith("="):
            matches, rank = path == route[1:], (len(route) - 1, 3)
        elif route.endswith("/"):
            matches, rank = path.startswith(route), (len(route), 2)
        else:
            matches, rank = path == route or path.startswith(route + "/"), (len(route) + (path != route), 1)
        if matches and (best is None or (*rank, route) > best):
            best = (*rank, route)
    return best[2] if best else None


def site_by_scanning(sites: list[Site], host: str) -> str | None:
    best: tuple[int, str] | None = None
    for one in sites:
        for pattern in one.hosts:
            if pattern == host:
                rank = 1000
            elif pattern.startswith("*.") and host.endswith(pattern[1:]) and len(host) >= len(pattern):
                rank = len(pattern)
            elif pattern == "*":
                rank = 0
            else:
                continue
            if best is None or rank > best[0]:
                best = (rank, one.name)
    return best[1] if best else None


class PathTests(SynchronousTestCase):
    def route(self, path: str, *paths: str, method: str = "GET") -> str | None:
        decision = router(site(*paths)).route(head(path, method=method), "", 0.0)
        return decision.route.path if decision else None

    def test_what_each_spelling_matches(self) -> None:
        for path, paths, expected in (
            ("/", ["/"], "/"),
            ("/x", ["/"], "/"),
            ("/x", ["/x"], "/x"),
            ("/x/", ["/x"], "/x"),
            ("/x/y", ["/x"], "/x"),
            ("/xy", ["/x"], None),
            ("/x", ["/x/"], None),
            ("/x/", ["/x/"], "/x/"),
            ("/x/y/z", ["/x/"], "/x/"),
            ("/x", ["=/x"], "=/x"),
            ("/x/", ["=/x"], None),
            ("/x/y", ["=/x"], None),
            ("/x/", ["=/x/"], "=/x/"),
            ("/", ["=/"], "=/"),
            ("/x", ["=/"], None),
            ("/X", ["/x"], None),
        ):
            self.assertEqual(self.route(path, *paths), expected, f"{path} with {paths}")

    def test_the_longest_wins_and_order_does_not_matter(self) -> None:
        paths = ["/", "/a/", "/a/b", "/a/b/c/", "=/a/b"]
        for order in (paths, paths[::-1]):
            for path, expected in (("/z", "/"), ("/a/x", "/a/"), ("/a/b", "=/a/b"), ("/a/b/x", "/a/b"), ("/a/b/c/d", "/a/b/c/")):
                self.assertEqual(self.route(path, *order), expected, path)

    def test_x_and_x_slash_share_the_work(self) -> None:
        for order in (["/x", "/x/"], ["/x/", "/x"]):
            self.assertEqual([self.route(p, *order) for p in ("/x", "/x/", "/x/y")], ["/x", "/x/", "/x/"])

    def test_RT_03_it_is_the_canonical_path_that_counts(self) -> None:
        for path in ("/admin", "//admin", "/./admin", "/x/../admin", "/%61dmin", "/%61dmin/"):
            self.assertEqual(self.route(path, "/", "/admin"), "/admin", path)

    def test_OPTIONS_star_goes_to_the_root_whatever_other_routes_there_are(self) -> None:
        self.assertEqual(self.route("*", "/", method="OPTIONS"), "/")
        self.assertEqual(self.route("*", "/", "/a", method="OPTIONS"), "/")
        self.assertIsNone(self.route("*", "/a", method="OPTIONS"))

    @settings(deadline=None, max_examples=300)
    @given(st.data())
    def test_it_finds_what_looking_at_every_route_finds(self, data: Any) -> None:
        segment = st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=4)
        texts = [
            form % path if path != "/" or "%s/" not in form else "/"
            for form, path in data.draw(
                st.lists(st.tuples(st.sampled_from(["%s", "=%s", "%s/", "=%s/"]), segment.map(lambda s: "/" + "/".join(s))), max_size=8)
            )
        ]
        paths = [t for t in dict.fromkeys(texts) if "//" not in t]
        path = "/" + "/".join(data.draw(segment)) + data.draw(st.sampled_from(["", "/"]))
        path = path.replace("//", "/")
        self.assertEqual(self.route(path, *paths), by_scanning(paths, path), f"{path} with {paths}")


class StripTests(SynchronousTestCase):
    def test_what_is_left_begins_with_a_slash(self) -> None:
        for route, path, expected in (
            ("/api", b"/api", b"/"),
            ("/api", b"/api/", b"/"),
            ("/api/", b"/api/x", b"/x"),
            ("/api/", b"/api/x/", b"/x/"),
            ("=/api", b"/api", b"/"),
            ("/", b"/x", b"/x"),
        ):
            decision = router(site(route, strip=True)).route(head(path.decode()), "", 0.0)
            assert isinstance(decision, Decision)
            self.assertEqual(forwarded(decision, path), expected, (route, path))

    def test_without_strip_the_path_stays(self) -> None:
        decision = router(site("/api/")).route(head("/api/x"), "", 0.0)
        assert decision is not None
        self.assertEqual(forwarded(decision, b"/api/x"), b"/api/x")


class HostTests(SynchronousTestCase):
    def name(self, host: str, *sites: Site) -> str | None:
        decision = router(*sites).route(head(host=host), "", 0.0)
        return decision.site if decision else None

    def test_exact_then_the_longest_suffix_then_any(self) -> None:
        sites = [
            site("/", hosts=("*",), name="any"),
            site("/", hosts=("*.example.com",), name="suffix"),
            site("/", hosts=("*.a.example.com",), name="longer"),
            site("/", hosts=("www.example.com", "example.org"), name="exact"),
        ]
        for order in (sites, sites[::-1]):
            for host, expected in (
                ("www.example.com", "exact"),
                ("example.org", "exact"),
                ("b.example.com", "suffix"),
                ("x.y.example.com", "suffix"),
                ("x.a.example.com", "longer"),
                ("a.example.com", "suffix"),
                ("example.com", "any"),
                ("xexample.com", "any"),
                ("127.0.0.1", "any"),
            ):
                self.assertEqual(self.name(host, *order), expected, host)

    def test_RT_01_case_trailing_dot_and_port_do_not_matter(self) -> None:
        for host in ("WWW.Example.Com", "www.example.com.", "www.example.com:8080"):
            self.assertEqual(self.name(host, site("/", hosts=("www.example.com",), name="x")), "x", host)

    def test_a_host_nobody_has_is_none(self) -> None:
        self.assertIsNone(self.name("other", site("/", hosts=("www.example.com", "*.example.com"))))

    def test_HTTP10_without_Host_reaches_only_the_site_of_any_host(self) -> None:
        old = parse_request(b"GET / HTTP/1.0\r\n\r\n", LIMITS)
        assert old is not None
        self.assertIsNone(router(site("/", hosts=("a", "*.b"))).route(old, "", 0.0))
        self.assertIsNotNone(router(site("/")).route(old, "", 0.0))

    @settings(deadline=None, max_examples=200)
    @given(
        st.lists(st.tuples(st.sampled_from(["", "*."]), st.lists(LABELS, min_size=1, max_size=3)), max_size=8),
        st.lists(LABELS, min_size=1, max_size=4),
        st.booleans(),
    )
    def test_it_finds_what_looking_at_every_site_finds(self, patterns: Any, labels: Any, has_any: bool) -> None:
        names = dict.fromkeys([star + ".".join(rest) for star, rest in patterns] + ["*"] * has_any)
        sites = [site("/", hosts=(name,), name=name) for name in names]
        host = ".".join(labels)
        self.assertEqual(self.name(host, *sites), site_by_scanning(sites, host))


class TraceTests(SynchronousTestCase):
    def steps(self, where: Router[None], request: Any) -> list[str]:
        trace = Trace()
        where.route(request, "", 0.0, trace)
        return trace.steps

    def test_the_trace_says_why(self) -> None:
        where = router(site("/a", "/a/b/", hosts=("x.example",), name="x.example"))
        self.assertEqual(
            self.steps(where, head("/a/b/c", "x.example")),
            ["host 'x.example' is site 'x.example'", "path '/a/b/c' takes route '/a/b/', the longest match"],
        )
        (_, why) = self.steps(where, head("/z", "x.example"))
        self.assertEqual(why, "path '/z' matches no route; there are: /a, /a/b/")
        self.assertEqual(self.steps(where, head("/", "other")), ["host 'other' matches no site; there are: x.example"])

    def test_asking_for_the_trace_changes_nothing(self) -> None:
        where = router(site("/a", "/"))
        for path in ("/a", "/b"):
            self.assertIs(where.route(head(path), "", 0.0, Trace()), where.route(head(path), "", 0.0))

    def test_a_client_is_not_told_what_exists(self) -> None:
        where = router(site("/secret", hosts=("hidden.example",)))
        for request in (head("/", "hidden.example"), head("/", "other")):
            detail = no_route_detail(where, request)
            self.assertNotIn("secret", detail)
            self.assertNotIn("hidden", detail)

    def test_no_sites_are_no_routes(self) -> None:
        self.assertFalse(router())
        self.assertTrue(router(site("/")))
        self.assertIsNone(router().route(head(), "", 0.0))


class Counting(dict):  # type: ignore[type-arg]
    """A table that counts how often it is asked."""

    asked = 0

    def get(self, key: Any, default: Any = None) -> Any:
        Counting.asked += 1
        return super().get(key, default)


class CostTests(SynchronousTestCase):
    """Operations, not time: how often a table is asked for one decision."""

    def cost(self, where: Router[None], request: Any) -> int:
        for paths in {*where._exact.values(), *where._suffix.values(), where._any} - {None}:
            assert paths is not None
            paths._whole, paths._prefix = Counting(paths._whole), Counting(paths._prefix)
        where._exact, where._suffix = Counting(where._exact), Counting(where._suffix)
        Counting.asked = 0
        self.assertIsNotNone(where.route(request, "", 0.0))
        return Counting.asked

    def test_1000_routes_cost_what_2_do(self) -> None:
        few = site("/", "/route500/")
        many = site("/", *(f"/route{i}/" for i in range(1000)))
        for path in ("/route500/x", "/other/x"):
            self.assertEqual(self.cost(router(many), head(path)), self.cost(router(few), head(path)), path)

    def test_10000_hosts_cost_what_2_do(self) -> None:
        few = [site("/", hosts=("host500.example", "*.host700.example")), site("/", name="any")]
        many = [site("/", hosts=(f"host{i}.example", f"*.host{i}.example")) for i in range(10_000)] + [site("/", name="any")]
        for host in ("host500.example", "x.host700.example", "other"):
            self.assertEqual(self.cost(router(*many), head(host=host)), self.cost(router(*few), head(host=host)), host)

    def test_a_path_of_many_slashes_costs_no_more_than_the_longest_route_is_long(self) -> None:
        where = router(site("/", "/a/b/c/"))
        self.assertLess(self.cost(where, head("/x" * 20_000)), 10)


class RuleTests(SynchronousTestCase):
    def decided(self, one: Site, line: Any, client: str = "10.0.0.1", draw: float | None = None) -> Decision[None]:
        decision = router(one).route(line, client, draw)
        assert decision is not None
        return decision

    def test_rules_come_first_in_their_order(self) -> None:
        """The first rule that matches is taken whatever the paths say; when none does, the longest path is."""
        rules = (
            Route("rules[0]", "a", when=When(path="/x/*", client=("10.0.0.0/8",))),
            Route("rules[1]", "b", when=When(path="/x/*")),
        )
        one = Site("s", ("*",), (Route("/", "root"), Route("/x/y/", "deep")), rules=rules)
        self.assertEqual(self.decided(one, head("/x/y/z")).rule, "rules[0]")
        self.assertEqual(self.decided(one, head("/x/y/z"), "192.168.0.1").route.pool, "b")
        found = self.decided(one, head("/z"))
        self.assertEqual((found.rule, found.route.pool), ("", "root"))

    def test_a_rule_strips_what_stands_before_its_star(self) -> None:
        """What is left always begins with a slash."""
        one = Site("s", ("*",), rules=(Route("rules[0]", "a", strip=True, when=When(path="/api/v1/*")),))
        decision = self.decided(one, head("/api/v1/x/y"))
        self.assertEqual([forwarded(decision, path) for path in (b"/api/v1/x/y", b"/api/v1/")], [b"/x/y", b"/"])

    def test_equal_arguments_give_equal_decisions(self) -> None:
        """Without a draw a split stays open; with one it is decided, every time alike."""
        one = Site("s", ("*",), (Route("/", split=(Side("a", 9), Side("b", 1))),))
        self.assertEqual([self.decided(one, head(), draw=0.95).route.pool for _ in range(3)], ["b"] * 3)
        self.assertEqual(self.decided(one, head(), draw=0.1).route.pool, "a")
        self.assertEqual(self.decided(one, head()).route.pool, "")

    def test_counted_calls(self) -> None:
        """A plain route costs the same whatever other sites have, and nothing for features it does not use."""

        def calls(made: Router[None], line: Any) -> int:
            count = 0

            def profile(frame: object, event: str, argument: object) -> None:
                nonlocal count
                count += event in ("call", "c_call")

            sys.setprofile(profile)
            made.route(line, "10.0.0.1")
            sys.setprofile(None)
            return count - 1  # taking the profile off

        rich = Site(
            "rich", ("rich.example",), (Route("/", split=(Side("a", 1), Side("b", 1)), use=(Use("security_headers"),)),), maintenance=True,
            rules=(Route("rules[0]", "a", when=When(path="/x")),),
        )  # fmt: skip
        plain = Site("plain", ("plain.example",), (Route("/", "web"),))
        many = [Site(f"h{i}", (f"h{i}.example",), (Route("/", "web"),)) for i in range(10_000)]
        wide = Site("plain", ("plain.example",), tuple(Route(f"/r{i}/", "web") for i in range(1000)))
        narrow = Site("plain", ("plain.example",), (Route("/r999/", "web"),))
        line = head("/r999/x", "plain.example")
        self.assertEqual(calls(router(plain), line), calls(router(rich, *many, plain), line))
        self.assertLessEqual(calls(router(plain), line), 2)
        self.assertEqual(calls(router(narrow), line), calls(router(*many, wide), line))
