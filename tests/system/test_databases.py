"""Databases through the whole proxy, each with its own client."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess

import bed


def tcp(port: int, name: str, kind: str, *servers: str, more: str = "") -> str:
    pool = f'[pools.{name}]\nservers = {json.dumps(list(servers))}\nhealth = "{kind}"\n{more}\n'
    return f'{pool}[tcp."{bed.HOST}:{port}"]\npool = "{name}"\nmax_connections = 4000\n'


def pgbench(port: int, clients: int, transactions: int, *more: str) -> subprocess.Popen[str]:
    command = [bed.program("pgbench"), "-S", "-n", "-c", str(clients), "-j", "1", "-t", str(transactions), *more]
    return subprocess.Popen(
        [*command, "-h", bed.HOST, "-p", str(port), "-U", "postgres", "postgres"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def transactions_of(bench: subprocess.Popen[str]) -> int:
    output, _ = bench.communicate(timeout=240)
    assert bench.returncode == 0, output
    assert "number of failed transactions: 0 " in output, output
    done = re.search(r"transactions actually processed: (\d+)/(\d+)", output)
    assert done, output
    assert done[1] == done[2], output
    return int(done[1])


def test_pgbench_while_weights_change_and_a_primary_is_drained(proxy, postgres_a, postgres_b) -> None:
    """10,000 transactions over two primaries, on kept and on fresh sessions, while a weight changes and one is drained: no error."""
    port = bed.free_port()
    made = proxy(tcp(port, "pg", "postgres", postgres_a.address, postgres_b.address), workers=2)
    made.wait_healthy("pg")
    kept = pgbench(port, 4, 2250)
    fresh = pgbench(port, 4, 250, "-C")
    made.wait_for(lambda: made.server("pg", postgres_b.address)["requests"] > 20, "sessions on the second primary")
    made.change("pg", postgres_a.address, weight=5)
    made.change("pg", postgres_b.address, state="drain")
    assert transactions_of(kept) + transactions_of(fresh) == 10_000
    where = {bed.Postgres.sql(port, "select inet_server_port()").stdout.strip() for _ in range(10)}
    assert where == {str(postgres_a.port)}, "new sessions still reach the drained primary"
    made.change("pg", postgres_b.address, state="ready", weight=None)
    made.change("pg", postgres_a.address, weight=None)
    where = {bed.Postgres.sql(port, "select inet_server_port()").stdout.strip() for _ in range(10)}
    assert where == {str(postgres_a.port), str(postgres_b.port)}


def test_a_backup_serves_when_the_primary_dies(proxy, part, postgres_a) -> None:
    """The health check sees a dead primary, and new sessions go to the backup."""
    port = bed.free_port()
    primary = part(bed.Postgres)
    made = proxy(tcp(port, "pg", "postgres", primary.address, postgres_a.address + " backup"))
    made.wait_healthy("pg")
    assert bed.Postgres.sql(port, "select inet_server_port()").stdout.strip() == str(primary.port)
    primary.process.kill()
    made.wait_for(lambda: made.server("pg", primary.address)["health"]["status"] == "down", "the check to see it", 15)
    assert bed.Postgres.sql(port, "select inet_server_port()").stdout.strip() == str(postgres_a.port)
    assert "refused" in made.server("pg", primary.address)["health"]["reason"]


def test_psql_copies_a_large_result(proxy, postgres_a) -> None:
    """Megabytes of rows come back whole."""
    port = bed.free_port()
    made = proxy(tcp(port, "pg", "postgres", postgres_a.address))
    statement = "select i, repeat(md5(i::text), 10) from generate_series(1, 20000) i"
    assert bed.Postgres.sql(made.http_port and port, statement).stdout == bed.Postgres.sql(postgres_a.port, statement).stdout


def test_mariadb_client(proxy, mariadb) -> None:
    """The server that speaks first is heard, and large answers come back whole."""
    port = bed.free_port()
    made = proxy(tcp(port, "maria", "mysql", mariadb.address))
    made.wait_healthy("maria")
    assert bed.MariaDb.sql(port, "select @@port").stdout.strip() == str(mariadb.port)
    assert bed.MariaDb.sql(port, "select repeat('x', 3000000)").stdout.strip() == "x" * 3_000_000


def test_redis_pipeline_is_byte_exact(proxy, redis) -> None:
    """Thousands of commands in one go, with binary values, are answered byte for byte."""
    port = bed.free_port()
    made = proxy(tcp(port, "redis", "redis", redis.address), workers=2)
    made.wait_healthy("redis")
    rng = random.Random(7)
    sent, expected = bytearray(), bytearray()
    for number in range(5000):
        key, value = b"k%d" % number, rng.randbytes(rng.randrange(0, 600))
        for words in ((b"SET", key, value), (b"GET", key)):
            sent += b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
        expected += b"+OK\r\n$%d\r\n%s\r\n" % (len(value), value)
    with socket.create_connection((bed.HOST, port), timeout=30) as s:
        sender = bed.threading.Thread(target=lambda: (s.sendall(sent), s.shutdown(socket.SHUT_WR)))
        sender.start()
        got = bytearray()
        while len(got) < len(expected) and (data := s.recv(65536)):
            got += data
        sender.join()
    assert got == expected


def test_least_conn_is_even_over_two_workers(proxy, redis, part) -> None:
    """Long sessions spread evenly over servers, counted over all workers and not per worker."""
    port, other = bed.free_port(), part(bed.Redis)
    made = proxy(tcp(port, "redis", "redis", redis.address, other.address, more='balance = "least_conn"'), workers=2)
    made.wait_healthy("redis")
    sessions = []
    try:
        for _ in range(40):
            session = socket.create_connection((bed.HOST, port), timeout=10)
            sessions.append(session)
            session.sendall(b"PING\r\n")
            assert session.recv(100) == b"+PONG\r\n"
        made.wait_for(lambda: sum(made.server("redis", r.address)["connections"] for r in (redis, other)) == 40, "40 sessions in the API")
        counts = [made.server("redis", r.address)["connections"] for r in (redis, other)]
        assert max(counts) - min(counts) <= 2, counts
    finally:
        for session in sessions:
            session.close()
