"""Redis over TLS with redis-cli and the real server: ended here, begun here, both, and passed on, by name too."""

from __future__ import annotations

import bed


def test_every_way_into_tls(proxy, authority, redis, part) -> None:
    """Values come back whole whichever side has TLS; who has no certificate where one is asked for gets nothing; a server is verified."""
    own, server = authority.make("own", ("cache.example", bed.HOST)), authority.make("server", ("one.cache.example", bed.HOST))
    friend = authority.make("friend", ("client.example",))
    secure = part(bed.Redis, server)
    ended, both, begun, passed, names, closed, wrong = (bed.free_port() for _ in range(7))
    tls = f'cert = "{own.cert}", key = "{own.key}"'
    verify = f'tls = {{ ca = "{authority.ca}", name = "NAME" }}'

    def pool(name: str, server: str, more: str = "") -> str:
        return f'[pools.{name}]\nservers = ["{server}"]\n{more}\n'

    def listener(port: int, more: str) -> str:
        return f'[tcp."{bed.HOST}:{port}"]\n{more}\n'

    made = proxy(
        pool("plain", redis.address, 'health = "redis"')
        + pool("secure", secure.address, f'health = "redis"\n{verify.replace("NAME", "one.cache.example")}')
        + pool("wrong", secure.address, verify.replace("NAME", "other.example"))
        + pool("asis", secure.address)
        + listener(ended, f'pool = "plain"\ntls = {{ {tls} }}')
        + listener(closed, f'pool = "plain"\ntls = {{ {tls}, client_ca = "{authority.ca}" }}')
        + listener(both, f'pool = "secure"\ntls = {{ {tls} }}')
        + listener(begun, 'pool = "secure"')
        + listener(wrong, 'pool = "wrong"')
        + listener(passed, 'pool = "asis"')
        + listener(names, 'sni = { "*.cache.example" = "asis" }')
    )

    def cli(port: int, *more: str, words: tuple[str, ...] = ("ping",)) -> str:
        return bed.run([bed.program("redis-cli"), "-h", bed.HOST, "-p", str(port), *more, *words], within=20).stdout.strip()

    made.wait_healthy("plain")
    made.wait_healthy("secure")
    over = ["--tls", "--cacert", str(authority.ca)]
    value = "x" * 100_000
    ways = ((ended, over), (both, over), (begun, []), (passed, over), (names, [*over, "--sni", "one.cache.example"]))
    for port, more in ways:
        assert cli(port, *more, words=("set", f"key{port}", value)) == "OK", port
        assert cli(port, *more, words=("get", f"key{port}")) == value, port
    assert cli(closed, *over) != "PONG"
    assert cli(closed, *over, "--cert", str(friend.cert), "--key", str(friend.key)) == "PONG"
    assert cli(ended) != "PONG"
    assert cli(wrong) != "PONG"
    bed.wait_until(
        lambda: "its certificate is for one.cache.example, 127.0.0.1, not for other.example" in made.log, "the reason in the log"
    )
