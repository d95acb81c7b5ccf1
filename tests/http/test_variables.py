"""Text with variables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.placeholders import VARIABLES as DECLARED
from twistedproxy.http.head import Limits, parse_request
from twistedproxy.http.variables import VARIABLES, Template, body_template, tls_fact, url_template
from twistedproxy.tls.clients import ClientTls


def subject(target: str = "/a%20b?x=<b>&y=%0d", **facts: Any) -> Any:
    head = parse_request(f"GET {target} HTTP/1.1\r\nHost: H.example:81\r\n\r\n".encode(), Limits())
    base = {
        "head": head, "client_ip": "10.0.0.1", "client_port": 7, "scheme": "https", "local_port": 443, "request_id": b"id", "site": "s",
        "pool": "web", "server": "", "tls": lambda what: f"CN=x\r\nX: {what}",
    }  # fmt: skip
    return SimpleNamespace(**(base | facts))


class VariableTests(SynchronousTestCase):
    def test_the_list_is_the_one_the_file_may_use(self) -> None:
        """Every variable the configuration accepts is filled in, and no other."""
        self.assertEqual(set(VARIABLES), set(DECLARED))
        for name in VARIABLES:
            self.assertIsInstance(Template(f"${{{name}}}").render(subject()), bytes)

    def test_text_and_variables(self) -> None:
        """Text between variables stays; what is no variable stays as written."""
        template = Template("[${client_ip}:${client_port}] ${scheme}://${host}:${port} ${x} $${method}")
        self.assertEqual(template.render(subject()), b"[10.0.0.1:7] https://h.example:443 ${x} $GET")
        self.assertTrue(Template("plain").is_fixed)

    def test_what_tls_tells(self) -> None:
        """Version, name and certificate of the client's connection; nothing at all without TLS."""
        facts = ClientTls("TLSv1.3", "a.example", ("", "1.2"), subject="CN=me", names=("DNS:a", "URI:x,y"), sha256="00ff")
        text = Template("${tls_version} ${tls_sni} ${client_cert_subject} ${client_cert_san} ${client_cert_sha256}")
        self.assertEqual(text.render(subject(tls=lambda what: tls_fact(facts, what))), b"TLSv1.3 a.example CN=me DNS:a,URI:x%2Cy 00ff")
        self.assertEqual(text.render(subject(tls=lambda what: tls_fact(None, what))), b"    ")

    def test_SM_19_no_value_adds_a_line(self) -> None:
        """SM-19: line breaks in a certificate's subject are taken out."""
        self.assertEqual(Template("${client_cert_subject}").render(subject()), b"CN=xX: cert_subject")

    def test_urls_are_encoded_and_html_is_escaped(self) -> None:
        """What a client sends is neither markup in a page nor a break in a Location."""
        self.assertEqual(
            url_template("https://x.example/ü${path}?${query}").render(subject()), b"https://x.example/%C3%BC/a%20b?x=%3Cb%3E&y=%0d"
        )
        self.assertEqual(body_template("${query}", "text/html").render(subject()), b"x=&lt;b&gt;&amp;y=%0d")
        self.assertEqual(body_template("${query}", "text/plain").render(subject()), b"x=<b>&y=%0d")
