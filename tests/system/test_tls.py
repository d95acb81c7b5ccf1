"""TLS through the whole proxy, with curl, openssl and a real ACME authority; databases have files of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import bed
import pytest
from cryptography import x509

CURL = ["curl", "-sS", "--max-time", "20"]


def tcp_get(made, port: int, host: str, path: str = "/", *more: str, scheme: str = "https") -> subprocess.CompletedProcess[str]:
    """curl as a client of `host`, which is the proxy."""
    bed.program("curl")
    resolve = ["--resolve", f"{host}:{port}:{bed.HOST}"]
    return bed.run([*CURL, *resolve, *more, f"{scheme}://{host}:{port}{path}"], cwd=made)


@pytest.fixture
def https(proxy, inspector, authority):
    """A proxy in front of the inspector with three TLS sites; `made.https` is its port."""
    a, b = authority.make("a", ("a.example",)), authority.make("b", ("*.b.example",), kind="rsa")
    friend = authority.make("friend", ("client.example",))
    made = proxy("", start=False, workers=2)
    made.https = bed.free_port()
    made.head += f'https = ["{bed.HOST}:{made.https}"]\n'
    config = f"""
[pools.web]
servers = ["{inspector.address}"]
[sites."a.example"]
tls = {{ cert = "{a.cert}", key = "{a.key}" }}
"/" = "web"
[sites."*.b.example"]
tls = {{ cert = "{b.cert}", key = "{b.key}" }}
"/" = "web"
[sites."m.example"]
names = ["m.a.example"]
tls = {{ cert = "{a.cert}", key = "{a.key}", client_ca = "{authority.ca}" }}
[sites."m.example"."/"]
pool = "web"
headers.request.set = {{ X-Who = "${{client_cert_subject}}", X-Print = "${{client_cert_sha256}}" }}
[[sites."m.example".rules]]
when = {{ path = "/staff", client_cert = {{ subject = "CN=client.*", san = ["DNS:nobody", "DNS:client.example"] }} }}
respond = {{ body = "welcome ${{client_cert_san}}" }}
[[sites."m.example".rules]]
when = {{ path = "/staff" }}
respond = {{ status = 403 }}
"""
    made.write(config)
    made.start()
    made.a, made.friend, made.authority = a, friend, authority
    return made


def test_sites_names_redirects_and_mutual_tls(https, inspector) -> None:
    """Each name its certificate; plain HTTP is sent on; a site with a client CA is out of reach without a certificate, by SNI and Host."""
    ca = str(https.authority.ca)
    done = tcp_get(https.directory, https.https, "a.example", "/x", "--cacert", ca)
    assert done.returncode == 0, done.stderr
    headers = inspector.seen[-1]["headers"]
    assert (headers["x-forwarded-proto"], headers["x-forwarded-port"]) == ("https", str(https.https))
    assert tcp_get(https.directory, https.https, "x.b.example", "/x", "--cacert", ca).returncode == 0
    for version in ("--tlsv1.2", "--tlsv1.3"):
        assert tcp_get(https.directory, https.https, "a.example", "/x", "--cacert", ca, version).returncode == 0
    redirected = tcp_get(https.directory, https.http_port, "a.example", "/x?y=1", "-w", "%{http_code} %{redirect_url}", scheme="http")
    assert redirected.stdout.endswith(f"308 https://a.example:{https.https}/x?y=1"), redirected.stdout
    hint = tcp_get(https.directory, https.https, "a.example", "/", "-i", scheme="http")
    assert "400 Bad Request" in hint.stdout
    assert "https://" in hint.stdout
    assert tcp_get(https.directory, https.https, "m.example", "/x", "-k").returncode != 0
    friend = ["-k", "--cert", str(https.friend.cert), "--key", str(https.friend.key)]
    claim = ["-H", "X-Client-Cert-Subject: CN=root", "-H", "X-Who: CN=root"]
    assert tcp_get(https.directory, https.https, "m.example", "/x", *friend, *claim).returncode == 0
    headers = inspector.seen[-1]["headers"]
    assert headers["x-who"] == "CN=client.example"
    assert re.fullmatch("[0-9a-f]{64}", headers["x-print"])
    assert "x-client-cert-subject" not in headers
    assert tcp_get(https.directory, https.https, "m.example", "/staff", *friend).stdout == "welcome DNS:client.example"
    stranger = https.authority.make("stranger", ("stranger.example",))
    shown = ["-k", "--cert", str(stranger.cert), "--key", str(stranger.key), "-w", "%{http_code}"]
    assert tcp_get(https.directory, https.https, "m.example", "/staff", *shown).stdout.endswith("403")
    before = len(inspector.seen)
    other = tcp_get(https.directory, https.https, "a.example", "/x", "--cacert", ca, "-H", "Host: m.example", "-w", "%{http_code}")
    assert other.stdout.endswith("421"), other.stdout
    assert len(inspector.seen) == before


LOW = re.compile(r"tls_curves: TLS curves \{('secp521r1'|'X448'|, )+\} are supported, but should be rejected")
"""Mozilla's list leaves these two out because few clients have them; they are stronger than those on it."""


def audited(scan: dict[str, Any]) -> list[tuple[str, str]]:
    """What sslyze found, as (severity, sentence)."""
    found: list[tuple[str, str]] = []
    results = {name: part["result"] for name, part in scan.items() if part["status"] == "COMPLETED"}
    for name in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        if results[f"{name}_cipher_suites"]["accepted_cipher_suites"]:
            found.append(("high", f"{name} is spoken"))
    for item in results["tls_1_2_cipher_suites"]["accepted_cipher_suites"]:
        suite = item["cipher_suite"]
        if "ECDHE" not in suite["name"] or suite["is_anonymous"] or not re.search("GCM|POLY1305", suite["name"]):
            found.append(("high", f"{suite['name']} is accepted"))
    for name in ("tls_1_2", "tls_1_3"):
        if not results[f"{name}_cipher_suites"]["accepted_cipher_suites"]:
            found.append(("medium", f"{name} is not spoken"))
    reneg = results["session_renegotiation"]
    for is_bad, severity, what in (
        (results["tls_compression"]["supports_compression"], "high", "compression (CRIME)"),
        (results["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"], "critical", "CCS injection"),
        (results["heartbleed"]["is_vulnerable_to_heartbleed"], "critical", "Heartbleed"),
        (not results["robot"]["robot_result"].startswith("NOT_VULNERABLE"), "critical", "ROBOT"),
        (reneg["is_vulnerable_to_client_renegotiation_dos"], "high", "clients may renegotiate"),
        (not reneg["supports_secure_renegotiation"], "high", "insecure renegotiation"),
        (not results["tls_fallback_scsv"]["supports_fallback_scsv"], "medium", "no protection from downgrades"),
        (not results["tls_extended_master_secret"]["supports_ems_extension"], "medium", "no extended master secret"),
        (results["tls_1_3_early_data"]["supports_early_data"], "medium", "early data can be replayed"),
    ):
        if is_bad:
            found.append((severity, what))
    return found


def test_TL_01_an_auditor_finds_nothing_above_low(https) -> None:
    """sslyze, with every scan it has, on the defaults, for an ECDSA and an RSA site; and Mozilla's "intermediate" list."""
    sslyze = Path(sys.prefix) / "sslyze" / "bin" / "sslyze"
    if not sslyze.exists():
        pytest.skip("sslyze is not installed: make .venv/sslyze.stamp")
    names = ("a.example", "x.b.example")
    targets = [f"{name}:{https.https}{{{bed.HOST}}}" for name in names]
    scans = ["--early_data", "--resum", "--mozilla_config=intermediate", "--json_out=audit.json"]
    done = bed.run([str(sslyze), *scans, *targets], within=60, cwd=https.directory)
    report = json.loads((https.directory / "audit.json").read_text())["server_scan_results"]
    assert sorted(server["server_location"]["hostname"] for server in report) == sorted(names), done.stdout
    for server in report:
        scan = server["scan_result"]
        errors = {name: part["error_trace"] for name, part in scan.items() if part["status"] == "ERROR"}
        assert not errors, errors
        assert [finding for finding in audited(scan) if finding[0] not in {"info", "low"}] == []
    listed = re.findall(r"^ {8}\* (\w+: .*)$", done.stdout, re.MULTILINE)
    # The authority that made these certificates is the test's own, so nobody's list of authorities has it.
    of_ours = [line for line in listed if not line.startswith("certificate_path_validation:")]
    assert [line for line in of_ours if not LOW.match(line)] == []
    assert "Not compliant" in done.stdout or "OK - Compliant" in done.stdout, "Mozilla's list was looked at"


def test_TL_05_a_certificate_is_replaced_under_load(https) -> None:
    """Within seconds new handshakes get the new one; a half-written pair changes nothing; not one handshake fails."""
    context = ssl.create_default_context(cafile=str(https.authority.ca))
    failures, serials, stop = [], set(), threading.Event()

    def visit() -> None:
        while not stop.is_set():
            try:
                raw = socket.create_connection((bed.HOST, https.https), 10)
                with context.wrap_socket(raw, server_hostname="a.example") as tls:
                    serials.add(tls.getpeercert()["serialNumber"])
            except OSError as e:
                failures.append(e)

    visitors = [threading.Thread(target=visit) for _ in range(2)]
    for visitor in visitors:
        visitor.start()
    try:
        bed.wait_until(lambda: len(serials) == 1, "the first certificate")
        new = https.authority.make("new", ("a.example",), ends=90)
        https.a.cert.write_bytes(new.chain_pem[:120])
        bed.wait_until(lambda: "is cut off" in https.log, "the complaint about half a file")
        for old, fresh in ((https.a.key, new.key), (https.a.cert, new.cert)):
            shutil.copy(fresh, f"{old}.new")
            os.replace(f"{old}.new", old)
        bed.wait_until(lambda: len(serials) == 2, "the second certificate")
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()
    assert failures == []
    metrics = https.ask("GET", "/metrics")[1].decode()
    end = new.certificate.not_valid_after_utc.timestamp()
    assert f'revproxy_certificate_expiry_timestamp_seconds{{site="a.example",source="{https.a.cert}"}} {end}' in metrics
    assert {name for view in https.get("/api/v1/status")["certificates"] for name in view["names"]} >= {"a.example", "*.b.example"}
    config = json.dumps(https.get("/api/v1/config"))
    assert "PRIVATE KEY" not in config + https.log + metrics
    assert "PRIVATE KEY" not in "".join(p.read_text(errors="replace") for p in https.state.rglob("*") if p.is_file())


def test_TL_03_to_the_servers(proxy, authority, inspector) -> None:
    """A server is verified by name and authority, health checks too; the client gets 502, the log says what was wrong."""
    made = authority.make("s", ("app.internal",))
    backend = bed.free_port()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    listening = socket.create_server((bed.HOST, backend))
    secure = context.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)

    def answer(connection: ssl.SSLSocket) -> None:
        try:
            connection.do_handshake()
            while connection.recv(65536):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecure")
        except OSError:
            connection.close()

    def serve() -> None:
        while True:
            try:
                connection, _ = secure.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    pools = {"good": '{ ca = "CA", name = "app.internal" }', "name": '{ ca = "CA" }', "stranger": "true", "any": "{ verify = false }"}
    text = "".join(
        f'[pools.{name}]\nservers = ["{bed.HOST}:{backend}"]\ntls = {tls.replace("CA", str(authority.ca))}\neject = false\n'
        for name, tls in pools.items()
    ).replace("[pools.name]", 'health = "GET /"\n[pools.name]')
    text += '[sites."*"]\n' + "".join(f'"/{name}" = "{name}"\n' for name in pools)
    running = proxy(text)
    assert running.fetch("/good")[0] == 200
    assert running.fetch("/any")[0] == 200
    assert running.fetch("/name")[0] == 502
    assert running.fetch("/stranger")[0] == 502
    bed.wait_until(lambda: "its certificate is for app.internal, not for 127.0.0.1" in running.log, "the reason in the log")
    bed.wait_until(lambda: "authority that we do not trust" in running.log, "the reason in the log")
    bed.wait_until(lambda: running.server("good", f"{bed.HOST}:{backend}")["health"]["status"] == "up", "the check over TLS")
    secure.close()


class Pebble(bed.Part):
    """A real ACME authority, that checks hosts at these ports of 127.0.0.1."""

    def __init__(self, own, http_port: int, tls_port: int) -> None:
        super().__init__()
        dns, self.port, self.control, management = (bed.free_port() for _ in range(4))
        settings = {
            "listenAddress": f"{bed.HOST}:{self.port}", "managementListenAddress": f"{bed.HOST}:{self.control}",
            "certificate": str(own.cert), "privateKey": str(own.key), "httpPort": http_port, "tlsPort": tls_port,
            "ocspResponderURL": "", "externalAccountBindingRequired": False,
        }  # fmt: skip
        (self.directory / "pebble.json").write_text(json.dumps({"pebble": settings}))
        self.names = bed.Part()
        off = [word for flag in ("http01", "https01", "tlsalpn01") for word in (f"-{flag}", "")]
        on = ["-defaultIPv4", bed.HOST, "-defaultIPv6", "", "-dns01", f"{bed.HOST}:{dns}", "-management", f"{bed.HOST}:{management}"]
        self.names.launch(["pebble-challtestsrv", *on, *off])
        self.launch(
            ["pebble", "-config", "pebble.json", "-dnsserver", f"{bed.HOST}:{dns}"],
            env={**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"},
        )
        self.wait_for(lambda: bed.accepts(self.port), "Pebble to listen")

    def root(self, ca: Path) -> str:
        """Its root certificate, which is another one each time."""
        context = ssl.create_default_context(cafile=str(ca))
        with urllib.request.urlopen(f"https://localhost:{self.control}/roots/0", context=context, timeout=10) as answer:
            return answer.read().decode()

    def close(self) -> None:
        self.names.close()
        super().close()


def test_certificates_from_a_real_authority_and_their_renewal_under_load(proxy, part, authority, inspector) -> None:
    """One line in the file: a placeholder, then Pebble's certificate, by either challenge; renewed while clients come: no handshake fails.

    The two directories are one Pebble under two names, for each of which we have an account.
    """
    for name in ("pebble", "pebble-challtestsrv"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install pebble")
    made = proxy("", start=False, workers=2)
    secure = bed.free_port()
    made.head += f'https = ["{bed.HOST}:{secure}"]\n'
    own = authority.make("pebble", ("localhost", bed.HOST))
    pebble = part(lambda: Pebble(own, made.http_port, secure))
    config = (
        f'[certificates]\nacme = {{ directory = "https://localhost:{pebble.port}/dir", email = "o@example.com", ca = "{authority.ca}" }}\n'
        f'directories.second = {{ directory = "https://{bed.HOST}:{pebble.port}/dir", ca = "{authority.ca}", challenge = "tls-alpn-01" }}\n'
        f'[pools.web]\nservers = ["{inspector.address}"]\n[sites."auto.example"]\nnames = ["www.auto.example"]\ntls = "auto"\n"/" = "web"\n'
        '[sites."alpn.example"]\nnames = ["www.alpn.example"]\ntls = { auto = "second" }\n"/" = "web"\n'
    )
    made.write(config)
    made.start()
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE

    def shown(host: str) -> x509.Certificate:
        with socket.create_connection((bed.HOST, secure), 10) as raw, anybody.wrap_socket(raw, server_hostname=host) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))

    sites = ("auto.example", "alpn.example")
    for site in sites:
        issuer = shown(site).issuer.rfc4514_string()
        assert "placeholder" in issuer or "Pebble" in issuer
    for site in sites:
        made.wait_for(lambda site=site: "Pebble" in shown(site).issuer.rfc4514_string(), f"Pebble's certificate for {site}", 40)
    kept = {site: made.state / "acme" / f"{site}.pem" for site in sites}
    assert {file.stat().st_mode & 0o777 for file in made.state.glob("acme/*")} == {0o600}
    assert len(list(made.state.glob("acme/account-*.key"))) == 2
    assert tcp_get(made.directory, secure, "auto.example", "/x", "-k").returncode == 0
    challenge = ssl.create_default_context()
    challenge.check_hostname, challenge.verify_mode = False, ssl.CERT_NONE
    challenge.set_alpn_protocols(["acme-tls/1"])
    with socket.create_connection((bed.HOST, secure), 10) as raw, pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        challenge.wrap_socket(raw, server_hostname="alpn.example")  # the authority has seen what it wanted: never again

    roots = ssl.create_default_context(cadata=pebble.root(authority.ca))
    failures: list[object] = []
    serials: dict[str, list[int]] = {site: [] for site in sites}
    stop = threading.Event()

    def visit(site: str) -> None:
        while not stop.is_set():
            for name in (site, f"www.{site}"):
                try:
                    raw = socket.create_connection((bed.HOST, secure), 10)
                    with roots.wrap_socket(raw, server_hostname=name) as tls:
                        serial = int(tls.getpeercert()["serialNumber"], 16)
                except OSError as e:
                    failures.append((name, e))
                else:
                    if serial not in serials[site]:
                        serials[site].append(serial)

    visitors = [threading.Thread(target=visit, args=(site,)) for site in sites]
    for visitor in visitors:
        visitor.start()
    try:
        made.wait_for(lambda: all(serials.values()), "clients of both sites")
        made.write(config.replace('"www.alpn', '"also.alpn.example", "www.alpn'))
        assert made.ask("POST", "/api/v1/config/reload", {})[0] == 200
        made.wait_for(lambda: len(serials["alpn.example"]) == 2, "the renewed certificate", 40)
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()
    assert failures == []
    assert [len(serials[site]) for site in sites] == [1, 2]
    assert made.log.count("new certificate for") == 3, "one issuance each time, however many workers"
    assert "cannot be asked" not in made.log
    for site, file in kept.items():
        assert x509.load_pem_x509_certificates(file.read_bytes())[0].serial_number == serials[site][-1]
