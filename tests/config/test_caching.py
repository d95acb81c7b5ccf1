"""``[cache]`` and a route's ``cache``: what they become, and how mistakes are told."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import loader, model
from twistedproxy.errors import ConfigurationError
from twistedproxy.http.cache import geometry

HEAD = 'state_dir = "/var/lib/x"\n[listen]\nhttp = ["127.0.0.1:8080"]\n[pools.web]\nservers = ["127.0.0.1:1"]\n'
SITE = """\
[sites."*"]
cache = "1m"
"/" = "web"
"/off" = { pool = "web", cache = false }
"/by-server" = { pool = "web", cache = {} }
[sites."*"."/all"]
pool = "web"
cache = { ttl = "1h", stale_while_revalidate = "10s", stale_if_error = "1d", negative = { 404 = "10s" }, heuristics = true }
"""
BAD_ROUTES = {
    'cache = "soon"': "duration",
    "cache = true": "a duration such as",
    'cache = { ttl = "0s" }': "1s",
    'cache = { negative = { 403 = "1s" } }': "'403' is none of 404",
    'cache = { negative = { 404 = "2d" } }': "not between 1ms and 1d",
    "cache = { negative = 404 }": "table of statuses",
    'cache = { tll = "1s" }': "ttl",
}
BAD_TABLES = {
    'memory = "1MiB"': "4MiB",
    'max_object = "1"': "size",
    "files = 1": "100",
    'path = ""': "path",
}


def read(text: str) -> model.Model:
    return loader.parse(HEAD + text, file="conf.toml", base_dir="/", environ={}, has_ipv6=True)


def problems(text: str) -> str:
    try:
        read(text)
    except ConfigurationError as error:
        return "\n".join(map(str, error.problems))
    return ""


class CachingTests(SynchronousTestCase):
    def test_every_form_of_a_route(self) -> None:
        """A duration, `false`, an empty table and a full one; what the site says holds for routes that say nothing."""
        routes = {route.path: route.cache for route in read(SITE).sites["*"].routes}
        self.assertEqual(routes["/"], model.RouteCache(ttl_s=60.0))
        self.assertIsNone(routes["/off"])
        self.assertEqual(routes["/by-server"], model.RouteCache())
        self.assertEqual(routes["/all"], model.RouteCache(3600.0, 10.0, 86400.0, ((404, 10.0),), True))

    def test_the_stores(self) -> None:
        """Sizes in bytes; by default everything is in the state directory."""
        cache = read('[cache]\nmemory = "8MiB"\ndisk = "0B"\nmax_object = "1MiB"\nfiles = 1000\n' + SITE).cache
        self.assertEqual((cache.memory, cache.disk, cache.max_object, cache.files), (8 << 20, 0, 1 << 20, 1000))
        self.assertEqual(read(SITE).cache.directory, "/var/lib/x/cache")
        self.assertEqual(read('[cache]\npath = "/srv/c"\n' + SITE).cache.directory, "/srv/c")

    def test_no_route_no_cache(self) -> None:
        """Nothing is made unless a route keeps answers."""
        self.assertFalse(read('[sites."*"]\n"/" = "web"\n').has_cache)
        self.assertTrue(read(SITE).has_cache)

    def test_mistakes(self) -> None:
        """Each is told with the line it is in."""
        for text, told in BAD_ROUTES.items():
            self.assertIn(told, problems(f'[sites."*"]\n"/" = {{ pool = "web", {text} }}\n'), text)
        for text, told in BAD_TABLES.items():
            self.assertIn(told, problems(f"[cache]\n{text}\n{SITE}"), text)

    def test_the_least_memory_is_one_that_works(self) -> None:
        """What the file may ask for can be made."""
        self.assertEqual(read('[cache]\nmemory = "4MiB"\n' + SITE).cache.memory, geometry.MIN_BYTES)


class IdentityTests(SynchronousTestCase):
    def test_ca_04_what_is_told_of_one_client_is_not_cached_for_all(self) -> None:
        """CA-04: a route that tells its server who holds the client certificate cannot keep answers, by itself, its site or a preset."""
        head = '[headers.who]\nrequest = { set = { X-User = "${client_cert_subject}" } }\n'
        own = '"/" = { pool = "web", cache = "1h", headers = { request = { add = { X-Cert = "${client_cert_sha256}" } } } }'
        for site, where in (
            (own, 'sites."*"."/".cache'),
            ('cache = {}\nuse = ["headers.who"]\n"/" = "web"', 'sites."*".cache'),
            ('cache = {}\nuse = ["headers.who"]\n"/" = { pool = "web", cache = false }', None),
            ('"/" = { pool = "web", cache = "1h", headers = { request = { set = { X-Real-IP = "${client_ip}" } } } }', None),
        ):
            text = f'{head}[sites."*"]\n{site}\n'
            try:
                read(text)
                found = None
            except ConfigurationError as error:
                (problem,) = error.problems
                self.assertIn("client certificate", problem.message)
                found = problem.path
            self.assertEqual(found, where, site)
