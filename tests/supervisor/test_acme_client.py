"""What an order leaves on disk and says when it fails; orders themselves are tested with a real authority (tests/system/test_tls.py)."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from acme import client, messages
from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Acme
from twistedproxy.supervisor.acme_client import (
    ACME_IDENTIFIER,
    MOST_NONCES,
    NotIssued,
    Suggestion,
    handshake_challenge,
    network,
    new_key,
    order,
    suggestion,
    write_secret,
)


class Clients(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority, tmp_path):
        self.authority = authority
        self.tmp = tmp_path

    def serve(self, answers):
        """An HTTPS server with these answers by path: (status, headers, JSON); returns its directory and the paths that were asked for."""
        asked = []

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                found = [answer for path, answer in answers.items() if self.path.startswith(path)]
                status, headers, body = found[0] if found else (404, {}, {})
                self.send_response(status)
                for name, value in ({"Content-Type": "application/json"} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *words):
                pass

        made = self.authority.make("directory", ("localhost",))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.cert, made.key)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return Acme(f"https://localhost:{server.server_address[1]}/dir", ca=str(self.authority.ca)), asked

    def certificate(self, **how):
        """One that names its issuer's key, as ARI needs."""
        made = self.authority.make("leaf", ("a.example",), names_issuer=True, **how)
        return made.chain_pem

    def test_the_authoritys_advice_is_a_moment_in_its_window(self):
        """ARI, RFC 9773 4.2: any moment of the window; asked again when it says so."""
        now = time.time()
        window = {"start": _rfc3339(now + 1000), "end": _rfc3339(now + 2000)}
        answers = {"/dir": (200, {}, {}), "/ari/": (200, {"Retry-After": "7200"}, {"suggestedWindow": window})}
        settings, asked = self.serve(answers)
        answers["/dir"][2]["renewalInfo"] = settings.directory.replace("/dir", "/ari")
        found = suggestion(settings, self.certificate())
        self.assertTrue(now + 999 <= found.renew_at <= now + 2000, found)
        self.assertLess(abs(found.ask_at - now - 7200), 30)
        self.assertRegex(asked[-1], r"^/ari/[\w-]+\.[\w-]+$")

    def test_no_advice_is_no_failure(self):
        """An authority without ARI, one that is out of order, one that is gone: nothing is suggested, and it is asked again later."""
        now = time.time()
        for settings in (
            self.serve({"/dir": (200, {}, {"newNonce": "https://localhost/"})})[0],
            self.serve({"/dir": (200, {}, {"renewalInfo": "https://localhost:1/ari"})})[0],
            self.serve({"/dir": (500, {}, {})})[0],
            Acme("https://127.0.0.1:1/dir"),
        ):
            found = suggestion(settings, self.certificate())
            self.assertIsInstance(found, Suggestion)
            self.assertIsNone(found.renew_at)
            self.assertGreater(found.ask_at, now + 3600)

    def test_the_certificate_for_an_authoritys_handshake_says_what_it_must(self):
        """RFC 8737 3: self-signed, that one name, and the digest of the token in a critical extension."""
        made = handshake_challenge("a.example", "token.thumbprint")
        certificate = x509.load_pem_x509_certificate(made.chain_pem.encode())
        certificate.verify_directly_issued_by(certificate)
        names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
        self.assertEqual((made.host, list(names)), ("a.example", [x509.DNSName("a.example")]))
        proof = certificate.extensions.get_extension_for_oid(ACME_IDENTIFIER)
        self.assertTrue(proof.critical)
        self.assertEqual(proof.value.value, b"\x04\x20" + hashlib.sha256(b"token.thumbprint").digest())
        self.assertNotIn("PRIVATE", repr(made))

    def test_secrets_are_written_at_once_and_for_nobody_else(self):
        file = self.tmp / "acme" / "a.pem"
        write_secret(str(file), b"one")
        inode = file.stat().st_ino
        write_secret(str(file), b"two")
        self.assertEqual((file.read_bytes(), file.stat().st_mode & 0o777), (b"two", 0o600))
        self.assertNotEqual(file.stat().st_ino, inode)
        self.assertEqual(os.listdir(file.parent), ["a.pem"])
        self.assertEqual(file.parent.stat().st_mode & 0o777, 0o700)

    def test_an_authority_out_of_reach_is_named(self):
        """And the account's key, made for the first order, is kept for the next one."""
        account = str(self.tmp / "account.key")
        told = []
        for _ in range(2):
            with self.assertRaises(NotIssued) as caught:
                order(Acme("https://127.0.0.1:1/dir"), account, ["a.example"], lambda *a: told.append(a))
            self.assertIn("https://127.0.0.1:1/dir", str(caught.exception))
        self.assertEqual(told, [])
        self.assertEqual(os.stat(account).st_mode & 0o777, 0o600)

    def test_nonces_refused_in_a_row_end_no_order_and_other_refusals_do(self):
        """An authority behind a load balancer may know nothing of the nonce its neighbour gave out."""
        for code, refused, told in (("badNonce", 9, "answer"), ("badNonce", 100, None), ("malformed", 1, None)):
            asked = []

            def post_once(net, url, code=code, refused=refused, asked=asked):
                asked.append(url)
                if len(asked) <= refused:
                    raise messages.Error.with_code(code, detail="no")
                return "answer"

            self.patch(client.ClientNetwork, "_post_once", post_once)
            if told is None:
                self.assertRaises(messages.Error, network(None).post, "https://ca/order")
                self.assertEqual(len(asked), 1 if code == "malformed" else MOST_NONCES)
            else:
                self.assertEqual(network(None).post("https://ca/order"), told)

    def test_every_key_is_a_new_one(self):
        self.assertNotEqual(new_key(), new_key())
        self.assertIn(b"PRIVATE KEY", new_key())


def _rfc3339(at):
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
