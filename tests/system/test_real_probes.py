"""Health checks against real servers: what a probe must find true of the real thing."""

from __future__ import annotations

import json
import signal
import sys

import bed

from twistedproxy.config import plain
from twistedproxy.config.model import HealthCheck

PROBE = """
import json, sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twistedproxy.config import plain
from twistedproxy.config.model import HealthCheck, endpoint
from twistedproxy.probes.checker import dialogue_for
from twistedproxy.probes.dialogue import ask
check, address = plain.decode(HealthCheck, json.loads(sys.argv[1])), sys.argv[2]
asking = Deferred.fromCoroutine(ask(reactor, endpoint(address), dialogue_for(check, address))).addTimeout(10, reactor)
asking.addBoth(lambda found: (print(found.ok, found.reason), reactor.callLater(0.05, reactor.stop)))
reactor.run()
"""


def probe(address: str, kind: str, **fields: object) -> str:
    check = json.dumps(plain.encode(HealthCheck(kind, **fields)))
    return bed.run([sys.executable, "-c", PROBE, check, address], env=bed.proxy_env()).stdout.strip()


def test_nginx_is_up_by_status_and_body(nginx_a: bed.Nginx) -> None:
    """`GET /health` finds a real nginx; a text that is not there takes it out."""
    assert probe(nginx_a.address, "http", path="/health", body="ok") == "True 200"
    assert probe(nginx_a.address, "http", path="/health", body="fine") == "False 200, but the body lacks 'fine'"
    assert probe(nginx_a.address, "tcp") == "True connected"
    assert probe(nginx_a.address, "postgres").startswith("False ")


def test_postgres_is_up_without_a_password_and_logs_stay_quiet(part) -> None:
    """A check needs no account, and does not fill the server's log; a server that is stopping is down."""
    postgres = part(bed.Postgres)
    before = postgres.log.count("\n")
    for _ in range(5):
        assert probe(postgres.address, "postgres") == "True PostgreSQL answered"
    assert probe(f"unix:{postgres.directory}/data/.s.PGSQL.{postgres.port}", "postgres") == "True PostgreSQL answered"
    assert postgres.log.count("\n") == before, postgres.log
    session = bed.subprocess.Popen(
        [bed.program("psql"), "-h", bed.HOST, "-p", str(postgres.port), "-U", "postgres", "-c", "select pg_sleep(60)"],
        stdin=bed.subprocess.DEVNULL, stdout=bed.subprocess.DEVNULL, stderr=bed.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        count = "select count(*) from pg_stat_activity where query like '%pg_sleep(6%' and state = 'active'"
        bed.wait_until(lambda: bed.Postgres.sql(postgres.port, count).stdout.strip() in ("1", "2"), "the long session")
        postgres.process.send_signal(signal.SIGTERM)  # smart shutdown: waits for the session, refuses new ones
        bed.wait_until(lambda: "shutting down" in probe(postgres.address, "postgres"), "the check to see the shutdown")
        assert probe(postgres.address, "postgres") == "False the database system is shutting down (57P03)"
    finally:
        session.kill()
        session.wait()
        postgres.process.send_signal(signal.SIGINT)  # fast shutdown: it would wait for the session that it takes for alive


def test_mariadb_is_up_without_an_account_and_does_not_count_interrupted_handshakes(mariadb: bed.MariaDb) -> None:
    """A check needs no account, and every one is a finished handshake, so that the server never blocks this machine."""
    before = len(mariadb.log)
    for _ in range(3):
        assert probe(mariadb.address, "mysql").startswith("True MySQL ")
    errors = (
        "select coalesce(sum(variable_value), 0) from information_schema.global_status where variable_name = 'Connection_errors_internal'"
    )
    assert bed.MariaDb.sql(mariadb.port, errors).stdout.strip() == "0"
    assert "This connection closed normally without authentication" not in mariadb.log[before:]


def test_mariadb_that_is_full_is_down(part) -> None:
    """ "Too many connections" is told in the server's own words."""
    mariadb = part(bed.MariaDb)
    assert bed.MariaDb.sql(mariadb.port, "set global max_connections = 10, global connect_timeout = 300").returncode == 0
    sessions = [bed.socket.create_connection((bed.HOST, mariadb.port)) for _ in range(12)]
    try:
        bed.wait_until(lambda: probe(mariadb.address, "mysql") == "False Too many connections (1040)", "the check to see it")
    finally:
        for session in sessions:
            session.close()


def test_redis_is_up_with_and_without_a_password(part) -> None:
    """A Redis that wants a password serves those who have it; the check needs none."""
    redis = part(bed.Redis)
    assert probe(redis.address, "redis") == "True PONG"
    with bed.socket.create_connection((bed.HOST, redis.port)) as s:
        s.sendall(b"CONFIG SET requirepass secret\r\n")
        assert s.recv(100) == b"+OK\r\n"
    assert probe(redis.address, "redis") == "True Redis answered NOAUTH"
