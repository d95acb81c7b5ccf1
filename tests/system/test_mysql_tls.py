"""MariaDB over TLS with the real client and the real server: ended here, begun here, both, and passed on untouched."""

from __future__ import annotations

import socket
import subprocess

import bed

PASSWORDS = {"native": "mysql_native_password using password('a b')", "ed": "ed25519 using password('a b')"}


def client(
    port: int, *more: str, user: str = "native", statement: str = "show status like 'Ssl_version'"
) -> subprocess.CompletedProcess[str]:
    base = [bed.program("mariadb"), "--no-defaults", "--protocol=tcp", "-h", bed.HOST, "-P", str(port), "-u", user, "-pa b"]
    return bed.run([*base, *more, "-N", "-B", "-e", statement])


def test_every_way_into_tls(proxy, authority, mariadb) -> None:
    """Each account logs in with its password; who is in the clear where TLS is wanted is told so; servers are verified, checks too."""
    own = authority.make("own", (bed.HOST,))
    mariadb.show(authority.make("server", ("maria.example",)))
    statements = [f"create or replace user {user}@'%' identified via {how}" for user, how in PASSWORDS.items()]
    done = bed.MariaDb.sql(mariadb.port, "install soname 'auth_ed25519';" + ";".join(statements))
    assert done.returncode == 0, done.stderr
    ended, both, begun, passed, wrong = (bed.free_port() for _ in range(5))
    tls = f'tls = {{ cert = "{own.cert}", key = "{own.key}" }}'

    def pool(name: str, tls: str, health: str = 'health = "mysql"') -> str:
        return f'[pools.{name}]\nservers = ["{mariadb.address}"]\n{health}\n{tls}\n'

    def listener(port: int, pool: str, more: str) -> str:
        return f'[tcp."{bed.HOST}:{port}"]\npool = "{pool}"\n{more}\n'

    made = proxy(
        pool("plain", "")
        + pool("secure", f'tls = {{ ca = "{authority.ca}", name = "maria.example", starttls = "mysql" }}')
        + pool("wrong", f'tls = {{ ca = "{authority.ca}", starttls = "mysql" }}', "eject = false")
        + pool("asked", f'tls = {{ ca = "{authority.ca}", starttls = "mysql" }}')
        + listener(ended, "plain", f'protocol = "mysql"\n{tls}')
        + listener(both, "secure", f'protocol = "mysql"\n{tls}')
        + listener(begun, "secure", 'protocol = "mysql"')
        + listener(wrong, "wrong", 'protocol = "mysql"')
        + listener(passed, "plain", "")
    )
    verified = ["--ssl", "--ssl-verify-server-cert", f"--ssl-ca={authority.ca}"]
    made.wait_healthy("plain")
    made.wait_healthy("secure")
    for user in PASSWORDS:
        for port, more, version in ((ended, verified, ""), (both, verified, "TLSv1.3"), (begun, ["--skip-ssl"], "TLSv1.3")):
            said = client(port, *more, user=user)
            assert (said.stderr, said.stdout) == ("", f"Ssl_version\t{version}\n"), (user, port, said)
    whole = client(ended, *verified, statement="select repeat('x', 3000000)")
    assert whole.stdout.strip() == "x" * 3_000_000
    assert "Access denied" in client(ended, *verified, user="nobody").stderr
    assert "wants TLS" in client(ended, "--skip-ssl").stderr
    assert "could not reach the server" in client(wrong, "--skip-ssl").stderr
    bed.wait_until(lambda: "its certificate is for maria.example, not for 127.0.0.1" in made.log, "the reason in the log")
    assert "not for 127.0.0.1" in made.server("asked", mariadb.address)["health"]["reason"]
    mariadb.show(authority.make("through", (bed.HOST,)))  # the client verifies the server itself
    assert client(passed, *verified).stdout == "Ssl_version\tTLSv1.3\n"
    with socket.create_connection((bed.HOST, ended), 10) as raw:  # bytes between the request for TLS and the handshake
        raw.recv(4096)
        raw.sendall(b"\x20\0\0\1" + b"\0\x0a\0\0" + bytes(28) + b"smuggled")
        try:
            said = raw.recv(100)
        except ConnectionResetError:
            said = b""
        assert said[:1] != b"\x16"
    assert made.ask("GET", "/health/ready")[0] == 200
