"""Which certificate a client is shown, by the name it asks for."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Certificates, KeyPair, Site, SiteTls
from twistedproxy.tls.certificates import SiteCertificates, covers, names_in
from twistedproxy.tls.client_hello import ClientHello
from twistedproxy.tls.contexts import Pair


class Choosing(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority
        self.vault = {}

    def pair(self, *names):
        made = self.authority.make(names[0].replace("*", "any"), names)
        pair = KeyPair(str(made.cert), str(made.key))
        self.vault[pair.key_names] = Pair(made.chain_pem, made.key_pem)
        return pair

    def site(self, host, tls="pair", **more):
        return Site(host, (host,), tls=SiteTls(tls, self.pair(host) if tls == "pair" else None, **more))

    def context(self, sites, name):
        choice = sites.choose(ClientHello(name, ()))
        return None if choice is None else choice.context

    def test_TL_06_exact_then_wildcard_then_star_then_first(self):
        """No name, an IP and the name of no site get the certificate of "*", else of the first site with TLS: never a refusal."""
        a, wild, star, plain = self.site("a.example"), self.site("*.example"), self.site("*"), Site("p.other", ("p.other",))
        sites = SiteCertificates((plain, a, wild, star), Certificates(), self.vault)
        by_name = {name: self.context(sites, name) for name in ("a.example", "b.example", "x.y.example", "p.other", "")}
        self.assertEqual(len({id(context) for context in by_name.values()}), 3)
        self.assertIs(by_name["b.example"], by_name["x.y.example"])
        self.assertIs(by_name["p.other"], by_name[""])
        first = SiteCertificates((plain, a, wild), Certificates(), self.vault)
        self.assertIs(self.context(first, ""), self.context(first, "a.example"))
        self.assertIs(self.context(first, "nobody.knows"), self.context(first, "a.example"))

    def test_files_are_matched_by_the_names_inside(self):
        files = (self.pair("other.example"), self.pair("*.files.example"), self.pair("b.example"))
        site = Site("b.example", ("b.example", "*.files.example"), tls=SiteTls("files"))
        sites = SiteCertificates((site,), Certificates(files), self.vault)
        shown = [self.context(sites, name) for name in ("b.example", "x.files.example", "y.files.example")]
        self.assertIs(shown[1], shown[2])
        self.assertIsNot(shown[0], shown[1])

    def test_contexts_outlive_a_reload_that_leaves_them_as_they_are(self):
        """So that clients go on resuming their sessions; a new certificate makes a new context."""
        a = self.site("a.example")
        before = SiteCertificates((a,), Certificates(), self.vault)
        kept = self.context(before, "a.example")
        after = SiteCertificates((a, self.site("b.example")), Certificates(), self.vault, before)
        self.assertIs(self.context(after, "a.example"), kept)
        self.pair("a.example")
        self.assertIsNot(self.context(SiteCertificates((a,), Certificates(), self.vault, after), "a.example"), kept)

    def test_what_is_not_there_is_passed_over(self):
        """A site whose files are still on their way does not keep the others from being served."""
        missing = Site("m.example", ("m.example",), tls=SiteTls("pair", KeyPair("no", "no")))
        self.assertFalse(SiteCertificates((missing,), Certificates(), self.vault))
        self.assertIsNone(SiteCertificates((missing,), Certificates(), self.vault).choose(ClientHello("m.example", ())))
        sites = SiteCertificates((missing, self.site("a.example")), Certificates(), self.vault)
        self.assertIs(self.context(sites, "m.example"), self.context(sites, "a.example"))

    def test_demands_tell_sites_apart(self):
        """421 is about client CA and least version, not about certificates."""
        self.vault["ca", ""] = Pair(self.authority.ca.read_bytes(), b"")
        plain, strict = self.site("a.example"), self.site("m.example", client_ca="ca")
        sites = SiteCertificates((plain, strict), Certificates(), self.vault)
        self.assertFalse(sites.is_uniform)
        self.assertEqual(sites.demands_of("m.example"), ("ca", "1.2"))
        self.assertIsNone(sites.demands_of("unknown.example"))
        self.assertTrue(sites.choose(ClientHello("m.example", ())).asks_for_certificate)
        self.assertTrue(SiteCertificates((plain, self.site("b.example")), Certificates(), self.vault).is_uniform)

    def test_names_many_as_clients_like_take_no_memory(self):
        sites = SiteCertificates((self.site("*.example"),), Certificates(), self.vault)
        for number in range(3000):
            sites.choose(ClientHello(f"x{number}.example", ()))
        self.assertLessEqual(len(sites._default.chosen), 1000)

    def test_a_wildcard_stands_for_one_label(self):
        names = names_in(self.authority.make("n", ("*.A.example", "b.example")).chain_pem)
        self.assertEqual(names, ["*.a.example", "b.example"])
        for host, is_good in (("x.a.example", True), ("x.y.a.example", False), ("a.example", False), ("b.example", True), ("*", False)):
            self.assertEqual(covers(names, host), is_good, host)
