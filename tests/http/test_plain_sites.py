"""Sites over plain HTTP: the redirect to HTTPS, and the authority's challenges in front of it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Route, Site, SiteTls
from twistedproxy.http.plain_sites import plain_sites

AUTO = SiteTls("auto")


def site(**more):
    return Site("a.example", ("a.example",), routes=(Route("/", "web"),), **more)


class PlainSites(SynchronousTestCase):
    def test_sites_without_a_redirect_stay_as_they_are(self):
        sites = [site(), site(tls=AUTO, redirect_http=False)]
        self.assertEqual(plain_sites(sites, 443, {}), sites)

    def test_the_redirect_takes_everything_and_names_the_port_where_it_must(self):
        (plain,) = plain_sites([site(tls=AUTO, redirect_http=True, maintenance=True)], 443, {})
        self.assertEqual([(route.path, route.redirect, route.status) for route in plain.routes], [("/", "https://${host}/", 308)])
        self.assertFalse(plain.is_in_maintenance)
        (plain,) = plain_sites([site(tls=AUTO, redirect_http=True)], 8443, {})
        self.assertEqual(plain.routes[0].redirect, "https://${host}:8443/")

    def test_without_a_port_for_https_there_is_no_redirect(self):
        self.assertEqual(plain_sites([site(tls=AUTO, redirect_http=True)], 0, {})[0].routes, site().routes)

    def test_challenges_are_answered_before_the_redirect_and_only_for_automatic_sites(self):
        sites = [site(tls=AUTO, redirect_http=True), site(tls=SiteTls("files"), redirect_http=True)]
        one, other = plain_sites(sites, 443, {"tok": "tok.print"})
        answer = next(route for route in one.routes if route.path == "=/.well-known/acme-challenge/tok")
        self.assertEqual((answer.respond.status, answer.respond.body), (200, "tok.print"))
        self.assertEqual([route.path for route in other.routes], ["/"])
