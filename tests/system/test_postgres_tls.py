"""PostgreSQL over TLS with psql and the real server: ended here, asked for at the server, passed on as it comes and by name."""

from __future__ import annotations

import os
import socket
import subprocess

import bed

WHAT = "select ssl, coalesce(version, '') from pg_stat_ssl where pid = pg_backend_pid()"


def psql(port: int, **words: str) -> subprocess.CompletedProcess[str]:
    words = {"hostaddr": bed.HOST, "host": "db.example", "port": str(port), "user": "postgres", "dbname": "postgres"} | words
    line = " ".join(f"{key}={value}" for key, value in words.items())
    return bed.run([bed.program("psql"), "-XAtq", line, "-c", WHAT], env={**os.environ, "PGCONNECT_TIMEOUT": "10"})


def test_every_way_into_tls(proxy, authority, postgres_a, postgres_b) -> None:
    """The server says of its session who spoke TLS to it; plaintext is not let in; a server is verified, one without TLS is named."""
    a = authority.make("a", ("db.example",))
    tls = f'tls = {{ cert = "{a.cert}", key = "{a.key}" }}'
    ended, both, begun, passed, names, wrong, refusing = (bed.free_port() for _ in range(7))

    def pool(name: str, tls: str, server: str = postgres_a.address) -> str:
        return f'[pools.{name}]\nservers = ["{server}"]\neject = false\n{tls}\n'

    def listener(port: int, more: str) -> str:
        return f'[tcp."{bed.HOST}:{port}"]\n{more}\n'

    secure = f'tls = {{ ca = "{authority.ca}", name = "db.example", starttls = "postgres" }}'
    made = proxy(
        pool("plain", "")
        + pool("secure", f'{secure}\nhealth = "postgres"')
        + pool("wrong", secure.replace("db.example", "other.example"))
        + pool("without", secure, postgres_b.address)
        + listener(ended, f'pool = "plain"\n{tls}')
        + listener(both, f'pool = "secure"\n{tls}')
        + listener(begun, 'pool = "secure"')
        + listener(passed, 'pool = "plain"')
        + listener(names, 'sni = { "db.example" = "plain" }')
        + listener(wrong, 'pool = "wrong"')
        + listener(refusing, 'pool = "without"')
    )
    verified = {"sslmode": "verify-full", "sslrootcert": str(authority.ca)}
    try:
        postgres_a.show(a)
        made.wait_healthy("secure")
        for port, words, said in (
            (ended, verified, "f|"),
            (ended, {"sslmode": "require"}, "f|"),
            (both, verified, "t|TLSv1.3"),
            (begun, {"sslmode": "prefer"}, "t|TLSv1.3"),
            (passed, verified, "t|TLSv1.3"),
            (names, verified, "t|TLSv1.3"),
        ):
            done = psql(port, **words)
            assert (done.stderr, done.stdout) == ("", said + "\n"), (port, done)
        assert "server does not support SSL, but SSL was required" in psql(begun, sslmode="require").stderr
        assert "sslmode=require" in psql(ended, sslmode="disable").stderr
        assert psql(names, host="other.example", sslmode="require").returncode != 0
        assert psql(wrong, sslmode="disable").returncode != 0
        bed.wait_until(lambda: "its certificate is for db.example, not for other.example" in made.log, "the reason in the log")
        assert psql(refusing, sslmode="disable").returncode != 0
        bed.wait_until(
            lambda: f"{postgres_b.address}: the PostgreSQL server speaks no TLS (it answered N" in made.log, "the reason in the log"
        )
    finally:
        postgres_a.show(None)
    with socket.create_connection((bed.HOST, ended), 10) as raw:  # CVE-2021-23214: bytes behind the request for TLS
        raw.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2fsmuggled")
        try:
            said = raw.recv(1)
        except ConnectionResetError:
            said = b""
        assert said == b""
    assert made.ask("GET", "/health/ready")[0] == 200
