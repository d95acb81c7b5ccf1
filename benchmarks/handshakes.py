"""TLS handshakes one after the other: `python -m benchmarks.handshakes PORT NAME SECONDS new|resumed` prints how many were made and failed.

Each connection asks for ``/small`` once, so that a ticket has arrived and the server has done all it does for a visitor.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from benchmarks.load import Answered

CLIENTS = 3
NAMES = ("ecdsa.example", "rsa.example")
REQUEST = b"GET /small HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"


def make_certificates(directory: Path) -> None:
    """``NAME.pem``, ``NAME.key`` and both in one (HAProxy's way) for an ECDSA P-256 and an RSA-2048 certificate."""
    for name in NAMES:
        key = ec.generate_private_key(ec.SECP256R1()) if name == NAMES[0] else rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName(name), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30)).add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, SHA256())
        )  # fmt: skip
        chain = certificate.public_bytes(Encoding.PEM)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for suffix, content in ((".pem", chain), (".key", secret), (".both", chain + secret)):
            (directory / f"{name}{suffix}").write_bytes(content)


def load(port: int, name: str, seconds: float, is_resumed: bool) -> Answered:
    """Several clients at once."""
    command = [sys.executable, "-m", "benchmarks.handshakes", str(port), name, str(seconds), "resumed" if is_resumed else "new"]
    started = time.monotonic()
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(CLIENTS)]
    try:
        counts = [client.communicate(timeout=seconds + 60)[0].split() for client in clients]
    finally:
        for client in clients:
            client.kill()
    done, failed = (sum(int(count[column]) for count in counts) for column in (0, 1))
    return Answered(done, failed, done / (time.monotonic() - started))


def open_idle(port: int, count: int) -> list[ssl.SSLSocket]:
    """Keep-alive connections over TLS that have had one answer each."""
    context = _context()
    connections = []
    for _ in range(count):
        connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=NAMES[0])
        connection.sendall(REQUEST.replace(b"Connection: close\r\n", b"") % NAMES[0].encode())
        connection.recv(4096)
        connections.append(connection)
    return connections


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main() -> None:
    port, name, seconds, kind = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]
    context = _context()
    end = time.monotonic() + seconds
    done = failed = 0
    session = None
    while time.monotonic() < end:
        try:
            with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname=name, session=session) as tls:
                tls.sendall(REQUEST % name.encode())
                is_right = tls.recv(4096).startswith(b"HTTP/1.1 200") and (session is None or tls.session_reused)
                done, failed = done + is_right, failed + (not is_right)
                if kind == "resumed":
                    session = tls.session
        except OSError:
            failed += 1
    print(done, failed)


if __name__ == "__main__":
    main()
