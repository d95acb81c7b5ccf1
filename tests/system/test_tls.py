"""TLS through the whole proxy, with curl, openssl, psql, redis-cli and a real ACME authority."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading

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
    a, b = authority.make("a", ("a.example",)), authority.make("b", ("*.b.example",))
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
    before = len(inspector.seen)
    other = tcp_get(https.directory, https.https, "a.example", "/x", "--cacert", ca, "-H", "Host: m.example", "-w", "%{http_code}")
    assert other.stdout.endswith("421"), other.stdout
    assert len(inspector.seen) == before


def test_a_certificate_is_replaced_under_load(https) -> None:
    """TL-05: within seconds new handshakes get the new one; a half-written pair changes nothing; not one handshake fails."""
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


def test_to_the_servers(proxy, authority, inspector) -> None:
    """TL-03: a server is verified by name and authority, health checks too; the client gets 502, the log says what was wrong."""
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
    assert "its certificate is for app.internal, not for 127.0.0.1" in running.log
    assert "authority that we do not trust" in running.log
    bed.wait_until(lambda: running.server("good", f"{bed.HOST}:{backend}")["health"]["status"] == "up", "the check over TLS")
    secure.close()


def test_databases_over_tls(proxy, authority, postgres_a, redis) -> None:
    """psql and redis-cli: TLS ended here, with and without a client certificate, and passed through by name; plaintext is not let in."""
    a = authority.make("a", ("db.example", bed.HOST))
    friend = authority.make("friend", ("client.example",))
    pg, cache, closed, names = (bed.free_port() for _ in range(4))
    tls = f'cert = "{a.cert}", key = "{a.key}"'
    made = proxy(
        f'[pools.pg]\nservers = ["{postgres_a.address}"]\n[pools.redis]\nservers = ["{redis.address}"]\n'
        f'[tcp."{bed.HOST}:{pg}"]\npool = "pg"\ntls = {{ {tls} }}\n'
        f'[tcp."{bed.HOST}:{cache}"]\npool = "redis"\ntls = {{ {tls} }}\n'
        f'[tcp."{bed.HOST}:{closed}"]\npool = "redis"\ntls = {{ {tls}, client_ca = "{authority.ca}" }}\n'
        f'[pools.inner]\nservers = ["{bed.HOST}:{pg}"]\n[pools.cache]\nservers = ["{bed.HOST}:{cache}"]\n'
        f'[tcp."{bed.HOST}:{names}"]\nsni = {{ "db.example" = "inner", "*.cache.example" = "cache" }}\n'
    )

    def psql(port: int, **words: str) -> subprocess.CompletedProcess[str]:
        words = {"hostaddr": bed.HOST, "host": "db.example", "port": str(port), "user": "postgres", "dbname": "postgres"} | words
        line = " ".join(f"{key}={value}" for key, value in words.items())
        return bed.run([bed.program("psql"), "-XAtq", line, "-c", "select 42"], env={**os.environ, "PGCONNECT_TIMEOUT": "10"})

    verified = {"sslmode": "verify-full", "sslrootcert": str(authority.ca)}
    assert psql(pg, **verified).stdout == "42\n", psql(pg, **verified).stderr
    assert psql(pg, sslmode="require").stdout == "42\n"
    assert "sslmode=require" in psql(pg, sslmode="disable").stderr
    passed = psql(names, **verified)  # through two listeners: passed on by name, then ended
    assert passed.stdout == "42\n", passed.stderr
    assert psql(names, host="other.example", sslmode="require").returncode != 0

    def ping(port: int, *more: str) -> str:
        command = [shutil.which("redis-cli") or "redis-cli", "-h", bed.HOST, "-p", str(port), "--tls", "--cacert", str(authority.ca)]
        return bed.run([*command, *more, "ping"]).stdout.strip()

    assert ping(cache) == "PONG"
    assert ping(names, "--sni", "one.cache.example") == "PONG"
    assert ping(closed) != "PONG"
    assert ping(closed, "--cert", str(friend.cert), "--key", str(friend.key)) == "PONG"
    with socket.create_connection((bed.HOST, pg), 10) as raw:  # CVE-2021-23214: bytes behind the request for TLS
        raw.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2fsmuggled")
        try:
            said = raw.recv(1)
        except ConnectionResetError:
            said = b""
        assert said == b""
    assert made.ask("GET", "/health/ready")[0] == 200


def test_a_certificate_from_a_real_authority(proxy, part, authority, inspector) -> None:
    """One line in the file: a placeholder, then a certificate made by Pebble over our own listener, still there after a restart."""
    for name in ("pebble", "pebble-challtestsrv"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install pebble")
    own = authority.make("pebble", ("localhost",))
    made = proxy("", start=False, workers=2)
    secure, dns, directory, control, management = (bed.free_port() for _ in range(5))
    made.head += f'https = ["{bed.HOST}:{secure}"]\n'
    settings = {
        "listenAddress": f"{bed.HOST}:{directory}", "managementListenAddress": f"{bed.HOST}:{control}",
        "certificate": str(own.cert), "privateKey": str(own.key), "httpPort": made.http_port, "tlsPort": secure,
        "ocspResponderURL": "", "externalAccountBindingRequired": False,
    }  # fmt: skip

    class Pebble(bed.Part):
        def __init__(self) -> None:
            super().__init__()
            (self.directory / "pebble.json").write_text(json.dumps({"pebble": settings}))
            self.names = bed.Part()
            off = [word for flag in ("http01", "https01", "tlsalpn01") for word in (f"-{flag}", "")]
            own = ["-defaultIPv4", bed.HOST, "-defaultIPv6", "", "-dns01", f"{bed.HOST}:{dns}", "-management", f"{bed.HOST}:{management}"]
            self.names.launch(["pebble-challtestsrv", *own, *off])
            self.launch(
                ["pebble", "-config", "pebble.json", "-dnsserver", f"{bed.HOST}:{dns}"], env={**os.environ, "PEBBLE_VA_NOSLEEP": "1"}
            )
            self.wait_for(lambda: bed.accepts(directory), "Pebble to listen")

        def close(self) -> None:
            self.names.close()
            super().close()

    part(Pebble)
    made.write(
        f'[certificates]\nacme = {{ directory = "https://localhost:{directory}/dir", email = "ops@example.com", ca = "{authority.ca}" }}\n'
        f'[pools.web]\nservers = ["{inspector.address}"]\n[sites."auto.example"]\nnames = ["www.auto.example"]\ntls = "auto"\n"/" = "web"\n'
    )
    made.start()

    def issuer() -> str:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((bed.HOST, secure), 10) as raw, context.wrap_socket(raw, server_hostname="auto.example") as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True)).issuer.rfc4514_string()

    assert "placeholder" in issuer() or "Pebble" in issuer()
    bed.wait_until(lambda: "Pebble" in issuer(), "Pebble's certificate", 40)
    kept = made.state / "acme" / "auto.example.pem"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert tcp_get(made.directory, secure, "auto.example", "/x", "-k").returncode == 0
    made.stop()
    before = kept.read_bytes()
    made.start()
    assert "Pebble" in issuer()
    assert kept.read_bytes() == before
