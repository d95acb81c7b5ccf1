"""From the TLS keys to the model."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import loader
from twistedproxy.config.model import Acme, KeyPair, ServerTls, SiteTls

TEXT = """
[listen]
https = ["127.0.0.1:8443"]
[pools.web]
servers = ["a.example:443"]
tls = { ca = "ca.pem", name = "app.internal", cert = "c.pem", key = "c.key" }
[sites."a.example"]
tls = { cert = "a.pem", key = "a.key", client_ca = "ca.pem", min_version = "1.3" }
"/" = "web"
[sites."b.example"]
tls = "auto"
redirect_http = false
"/" = "web"
[sites."c.example"]
tls = { auto = "staging" }
"/" = "web"
[certificates.directories.staging]
directory = "https://staging.example/dir"
email = "o@example.com"
ca = "ca.pem"
challenge = "tls-alpn-01"
[tcp."127.0.0.1:2"]
sni = { "A.example" = "plain" }
[pools.plain]
servers = ["127.0.0.1:1"]
"""


class Values(SynchronousTestCase):
    def test_everything_arrives(self):
        model = loader.parse(TEXT, base_dir="/b", allow_placeholders=False)
        self.assertEqual(model.pools["web"].tls, ServerTls(True, "/b/ca.pem", "app.internal", KeyPair("/b/c.pem", "/b/c.key")))
        self.assertEqual(model.sites["a.example"].tls, SiteTls("pair", KeyPair("/b/a.pem", "/b/a.key"), "/b/ca.pem", "1.3"))
        self.assertEqual(model.sites["b.example"].tls, SiteTls("auto"))
        self.assertEqual(model.sites["c.example"].tls, SiteTls("auto", directory="staging"))
        staging = Acme("https://staging.example/dir", "o@example.com", "/b/ca.pem", "tls-alpn-01")
        self.assertEqual((model.certificates.authority("staging"), model.certificates.authority("")), (staging, Acme()))
        self.assertEqual([site.redirect_http for site in model.sites.values()], [True, False, True])
        self.assertEqual([(listener.is_tls, listener.address) for listener in model.http][-1], (True, "127.0.0.1:8443"))
        self.assertEqual(model.tcp[0].sni, (("a.example", "plain"),))
        self.assertEqual(model.tcp[0].pools, ("plain",))
        self.assertTrue(model.has_tls)

    def test_https_listens_by_itself_when_a_site_has_tls(self):
        text = TEXT.replace('[listen]\nhttps = ["127.0.0.1:8443"]\n', "")
        model = loader.parse(text, base_dir="/b", allow_placeholders=False, has_ipv6=False)
        self.assertEqual([(item.address, item.is_tls) for item in model.http], [("0.0.0.0:80", False), ("0.0.0.0:443", True)])
