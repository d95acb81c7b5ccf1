"""The part of the file about where requests go: what it becomes, and how mistakes are told."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import loader, model
from twistedproxy.errors import ConfigurationError

HEAD = """\
[listen]
http = ["127.0.0.1:8080"]
[pools.web]
servers = ["127.0.0.1:1"]
[pools.two]
servers = ["127.0.0.1:2"]
[sites."a.example"]
"""
FULL = (
    HEAD
    + """\
use = ["security_headers", "headers.common"]
maintenance = true
maintenance_allow = ["10.0.0.0/8"]
"/" = { split = { web = 95, two = 5 }, sticky = "cookie:ab" }
"/h" = { split = { web = 1, two = 1 }, sticky = "hash:header.X-User" }
"/api/" = { pool = "web", strip = true, mirror = { pool = "two", percent = 1, compare = true }, use = [] }
"/old/" = { redirect = "/new/", status = 301 }
"/t" = { respond = { status = 418, body = "a\\nb", content_type = "text/plain" } }
"/app/" = { pool = "web", rewrite = { match = "^/app/(.*)$", to = "/$1" }, host = "app.internal", retry = { tries = 1 },\
 headers = { request = { set = { X-App = "1" }, remove = ["X-Debug"] }, response = { add = { X-S = ["${server}", "b"] } } } }
[[sites."a.example".rules]]
when = { path = "/checkout/*", method = "post", header = { X-Beta = "1" }, cookie = { tier = ["gold", "si*"] }, client = ["10.0.0.0/8"] }
pool = "two"
use = ["headers.common"]
[headers.common]
response = { set = { X-Common = "c" } }
[[tests]]
request = "GET http://a.example/api/x"
headers = { X-Beta = "1" }
expect = { pool = "web", path = "/x", rule = "", headers = { Host = "a.example" }, split = { web = 1 } }
"""
)

BAD = {
    '"/x" = { pool = "web", split = { web = 1 } }': "needs exactly one of pool, split, redirect, respond; this says pool and split",
    '"/x" = { split = { wep = 1 } }': "there is no pool 'wep'",
    '"/x" = { split = { web = 1001 } }': "out of range",
    '"/x" = { pool = "web", mirror = { pool = "shadow" } }': "there is no pool 'shadow'",
    '"/x" = { pool = "web", sticky = "cookie:a" }': "sticky: is for a split here",
    '"/x" = { pool = "web", status = 301 }': "status: is for redirect only",
    '"/x" = { redirect = "/y", strip = true }': "cannot be used with redirect",
    '"/x" = { redirect = "//evil.example/" }': "is not a path",
    '"/x" = { redirect = "ftp://a/" }': "is not a path",
    '"/x" = { pool = "web", rewrite = { match = "(a+)+", to = "/" } }': "repetition inside a repetition",
    '"/x" = { pool = "web", rewrite = { match = "^/x", to = "/$1" } }': "match has 0 groups",
    '"/x" = { pool = "web", strip = true, rewrite = { match = "^/x", to = "/" } }': "cannot be used with rewrite",
    '"/x" = { pool = "web", headers = { request = { set = { Host = "x" } } } }': 'use host = "…"',
    '"/x" = { pool = "web", headers = { request = { set = { Content-Length = "1" } } } }': "belongs to the connection",
    '"/x" = { pool = "web", headers = { request = { set = { X = "${nonsense}" } } } }': "is not a placeholder",
    '"/x" = { pool = "web", retry = { tries = 1, budget = "50%" } }': "the budget is shared by all requests of the pool",
    '"/x" = { pool = "web", host = "a b" }': "is not a host",
    '"/x" = { respond = { status = 99 } }': "out of range",
    'use = ["security_header"]': "Did you mean 'security_headers'?",
    'use = ["compress.x"]': "there is no 'compress.x' to use",
    'maintenance = "yes"': "must be true or false",
    '[[sites."a.example".rules]]\npool = "web"': "needs the key 'when'",
    '[[sites."a.example".rules]]\nwhen = { path = "x" }\npool = "web"': "does not begin with / or *",
    '[[sites."a.example".rules]]\nwhen = { methods = "GET" }\npool = "web"': "Did you mean 'method'?",
    '[[sites."a.example".rules]]\nwhen = {}\npool = "wep"': "there is no pool 'wep'",
    '[[sites."a.example".rules]]\nwhen = { path = "/a" }\npool = "web"\nstrip = true': 'before the first "*"',
    '[[tests]]\nrequest = "GET /x"\nexpect = { pool = "web" }': '"METHOD URL"',
    '[[tests]]\nrequest = "GET http://a.example/"\nexpect = {}': "expects nothing",
    '[pools.x]\nservers = ["a:1"]\nsticky = "source_ip"': "needs a cookie here",
    '[pools.x]\nservers = ["a:1"]\nsticky = "cookie:s"\n[tcp."127.0.0.1:1"]\npool = "x"': "has sticky, which needs HTTP",
}


SAME_JOB = """\
[pools.web]
servers = ["10.0.0.1:8080 weight=3", "10.0.0.2:8080"]
health  = "GET /health"
[pools.api]
servers = ["10.0.0.11:9000", "10.0.0.12:9000"]
health  = "GET /health"
[pools.pg]
servers = ["10.0.0.21:5432", "10.0.0.22:5432 backup"]
health  = "postgres"
[sites."www.example.com"]
tls   = "auto"
"/api/"    = "api"
"/static/" = "web"
"/"        = "web"
[tcp.":5432"]
pool = "pg"
"""
"""Certificates from an authority, routes, weights, health checks, PostgreSQL with a spare: the shortest other language needs twice that."""


def parse(text: str) -> model.Model:
    return loader.parse(text, file="conf.toml", base_dir="/", environ={}, has_ipv6=True)


class RoutingTests(SynchronousTestCase):
    def test_everything_at_once(self) -> None:
        """Each key lands where running code looks for it."""
        loaded = parse(FULL)
        site = loaded.sites["a.example"]
        routes = {route.path: route for route in site.routes}
        common = model.Use("headers.common", response=model.HeaderEdits((("X-Common", "c"),)))
        self.assertEqual(routes["/"].split, (model.Side("web", 95), model.Side("two", 5)))
        self.assertEqual((routes["/"].sticky, routes["/"].use), (model.Sticky("ab"), (model.Use("security_headers"), common)))
        self.assertEqual(routes["/h"].sticky, model.Sticky(key="hash:header.X-User"))
        self.assertEqual((routes["/api/"].use, routes["/api/"].mirror), ((), model.Mirror("two", 1.0, True)))
        self.assertEqual((routes["/old/"].redirect, routes["/old/"].status), ("/new/", 301))
        self.assertEqual(routes["/t"].respond, model.Respond(418, "a\nb", "text/plain"))
        app = routes["/app/"]
        self.assertEqual((app.host, app.retry, app.rewrite), ("app.internal", model.Retry(1), model.Rewrite("^/app/(.*)$", "/$1")))
        self.assertEqual(app.request, model.HeaderEdits((("X-App", "1"),), (), ("X-Debug",)))
        self.assertEqual(app.response.add, (("X-S", "${server}"), ("X-S", "b")))
        (rule,) = site.rules
        self.assertEqual((rule.path, rule.pool, rule.use), ("rules[0]", "two", (model.Use("security_headers"), common)))
        self.assertEqual(
            rule.when,
            model.When(
                "/checkout/*", ("POST",), (("X-Beta", ("1",)),), (("tier", ("gold", "si*")),), client=("10.0.0.0/8",)
            ),
        )  # fmt: skip
        self.assertEqual((site.is_in_maintenance, site.maintenance_allow), (True, ("10.0.0.0/8",)))
        (test,) = loaded.tests
        self.assertEqual((test.pool, test.path, test.rule, test.split), ("web", "/x", "", (("web", 1),)))

    def test_the_same_job_as_in_other_languages(self) -> None:
        """Defaults do the rest: both ports, the redirect to HTTPS, certificates."""
        loaded = parse(SAME_JOB)
        self.assertEqual({str(each.address).rpartition(":")[2] for each in loaded.http}, {"80", "443"})
        (site,) = loaded.sites.values()
        self.assertEqual({route.path: route.pool for route in site.routes}, {"/": "web", "/api/": "api", "/static/": "web"})
        self.assertEqual([(s.address, s.weight, s.backup) for s in loaded.pools["pg"].servers][1], ("10.0.0.22:5432", 1, True))

    def test_mistakes_are_told_with_their_line(self) -> None:
        """Every mistake is one problem, with the line it is on and what to do."""
        for lines, words in BAD.items():
            with self.subTest(lines):
                needs_route = not lines.startswith(('"', "use", "maint"))
                text = HEAD + ('"/" = "web"\n' if needs_route else "") + lines + "\n" + ("" if needs_route else '"/" = "web"\n')
                error = self.assertRaises(ConfigurationError, parse, text)
                self.assertEqual(len(error.problems), 1, error.problems)
                self.assertIn(words, str(error.problems[0]))
                self.assertGreaterEqual(error.problems[0].line, 8)
