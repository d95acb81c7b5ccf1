"""Files good and bad: what the model holds, and that every problem is named with its path and line.

It has over 500 lines: they are tables of good and bad files.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import loader
from twistedproxy.config.model import AccessLog, Eject, EventLog, HealthCheck, Server, Timeouts, Token
from twistedproxy.errors import ConfigurationError

SMALL = """\
[listen]
http = ["127.0.0.1:8080"]

[pools.web]
servers = ["127.0.0.1:9001 weight=3", "127.0.0.1:9002"]
health  = "GET /health"

[pools.pg]
servers = ["127.0.0.1:5432", "127.0.0.1:5433 backup"]
health  = "postgres"

[sites."*"]
"/" = "web"

[tcp."127.0.0.1:6432"]
pool = "pg"
"""

FULL = """\
version = 1
state_dir = "state"
[listen]
http = [":80", { address = "unix:run/http.sock", mode = "0660", accept_proxy = ["10.0.0.0/8"], trusted_proxies = ["10.0.0.0/8"],\
  max_connections = 5000, max_head = "32KiB", max_request_line = "8KiB", max_field = "16KiB", max_fields = 100,\
  requests_per_connection = 1000, connection_age = "1h", min_body_rate = "500B/s" }]
[workers]
count = 4
[admin]
listen = "127.0.0.1:9901"
names = ["proxy-admin.internal"]
token_file = "admin.token"
[admin.tokens.grafana]
role = "view"
sha256 = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
[timeouts]
connect = "2s"
tcp_idle = "2h"
[pools.web]
servers = ["10.0.0.1:8080 weight=3 max_connections=200", { address = "App:8080", backup = true }, "unix:run/app.sock"]
balance = "hash:header.X-User"
health = { http = "GET /health", host = "app", port = 8081, status = "200-299", body = "ok",\
  every = "2s", timeout = "1s", fall = 3, rise = 2 }
eject = { errors = 6, ratio = 0.4, within = "11s", for = "31s", max_percent = 49 }
slow_start = "5s"
retry = { tries = 3, on = ["connect", "502", "502"], budget = "30%" }
queue = { size = 0, timeout = "1s" }
keepalive = { idle = "5s", size = 65 }
send_proxy = "v2"
max_connections = 255
[pools.pg]
servers = ["127.0.0.1:5432"]
eject = false
health = { tcp = true }
[sites."WWW.Example.com"]
names = ["example.com", "*.example.com"]
via = "proxy"
max_body = "10MiB"
"/" = "web"
"/api/" = { pool = "web", strip = true, max_body = "1MiB", timeouts = { response_head = "5s" } }
"=/x" = { pool = "web" }
[sites."WWW.Example.com".timeouts]
connect = "1s"
[tcp."127.0.0.1:5432"]
pool = "pg"
allow = ["10.0.0.0/8"]
deny = ["10.6.6.0/24"]
accept_proxy = ["10.0.0.0/8"]
max_connections = 500
timeouts = { tcp_idle = "3h" }
[logs]
access = { file = "../../../../../../../../../../../../dev/null", format = "json" }
events = { file = "-", format = "text" }
"""

BASE = """\
[pools.web]
servers = ["127.0.0.1:1"]
{pool}
[sites."a.example"]
"/" = "web"
{site}
[sites."b.example"]
"/" = {{ pool = "web" }}
{after}
"""

# Lines put into BASE: (where, lines, path, line, key words)
POOL, SITE, AFTER = 3, 6, 9
BAD = [
    # not one of the keys
    ("pool", "balanec = 'random'", "pools.web.balanec", POOL, ["'balance'", "servers", "keepalive"]),
    ("pool", "queue = { sizes = 1 }", "pools.web.queue.sizes", POOL, ["'size'", "timeout"]),
    ("site", "api = 'web'", 'sites."a.example".api', SITE, ["no key", '"/"']),
    ("site", "'/x' = { pol = 'web' }", 'sites."a.example"."/x".pol', SITE, ["'pool'"]),
    ("site", "'/x' = { strip = true }", 'sites."a.example"."/x"', SITE, ["needs exactly one of pool, split, redirect, respond"]),
    ("after", "[pool.x]", "pool", AFTER, ["'pools'"]),
    ("after", "[listen]\nhttp = [{ adress = ':80' }]", "listen.http[0].adress", AFTER + 1, ["'address'"]),
    # not built yet
    *(("pool", line, f"pools.web.{line.split()[0]}", POOL, ["not supported yet"]) for line in ("discover = 'dns:x'", "http2 = true")),
    *(
        ("site", line, f'sites."a.example".{line.split()[0]}', SITE, ["not supported yet"])
        for line in ("limits = ['public']", "auth = 'staff'")
    ),
    *(
        ("site", f"'/x' = {{ {line} }}", f'sites."a.example"."/x".{line.split()[0]}', SITE, ["not supported yet"])
        for line in (
            "auth = 'staff'",
            "limits = []",
        )
    ),
    *(
        ("after", line, line.strip("[]").split(".")[0].split()[0], AFTER, ["not supported yet"])
        for line in ("[udp.':53']", "[limits.public]", "[auth.staff]")
    ),
    ("after", "[listen]\nhttps = [':443']", "listen.https", AFTER + 1, ["no site has tls"]),
    ("site", "redirect_http = true", 'sites."a.example".redirect_http', SITE, ["no tls to send clients to"]),
    ("site", "tls = 'atuo'", 'sites."a.example".tls', SITE, ["'auto'"]),
    ("site", "tls = { cert = 'a.pem' }", 'sites."a.example".tls', SITE, ["both cert and key"]),
    ("pool", "tls = { cert = 'a.pem' }", "pools.web.tls", POOL, ["cert without key"]),
    ("pool", "tls = { ca = 'none.pem' }", "pools.web.tls.ca", POOL, ["none.pem", "cannot be read: no such file"]),
    ("after", "[tcp.':1']\nallow = []", 'tcp.":1"', AFTER, ["'pool'", "sni"]),
    ("after", "[tcp.':1']\npool = 'web'\nlimits = {}", 'tcp.":1".limits', AFTER + 2, ["not supported yet"]),
    ("after", "[tcp.':1']\nsni = { a = 'wep' }", 'tcp.":1".sni.a', AFTER + 1, ["no pool", "'web'"]),
    # values
    ("pool", "max_connections = 0", "pools.web.max_connections", POOL, ["1 to 1000000"]),
    ("pool", "max_connections = 'none'", "pools.web.max_connections", POOL, ["whole number"]),
    ("pool", "max_connections = true", "pools.web.max_connections", POOL, ["whole number", "true or false"]),
    ("pool", "max_connections = 1.0", "pools.web.max_connections", POOL, ["whole number"]),
    ("pool", "balance = 'roundrobin'", "pools.web.balance", POOL, ["'round_robin'", "least_time", "hash:cookie.NAME"]),
    ("pool", "slow_start = 5", "pools.web.slow_start", POOL, ["duration", "number"]),
    ("pool", "slow_start = '5'", "pools.web.slow_start", POOL, ["duration"]),
    ("pool", "send_proxy = 'v3'", "pools.web.send_proxy", POOL, ["'v1', 'v2'"]),
    ("pool", "eject = 'no'", "pools.web.eject", POOL, ["true or false"]),
    ("pool", "eject = { errors = 0 }", "pools.web.eject.errors", POOL, ["1 to"]),
    ("pool", "eject = { ratio = 1.5 }", "pools.web.eject.ratio", POOL, ["0 to 1"]),
    ("pool", "eject = { ratio = nan }", "pools.web.eject.ratio", POOL, ["0 to 1"]),
    ("pool", "eject = { for = '0s' }", "pools.web.eject.for", POOL, ["1s to"]),
    ("pool", "retry = { on = ['conect'] }", "pools.web.retry.on[0]", POOL, ["'connect'", "'503'"]),
    ("pool", "retry = { on = 'connect' }", "pools.web.retry.on", POOL, ["list"]),
    ("pool", "retry = { budget = 0.2 }", "pools.web.retry.budget", POOL, ["percentage"]),
    ("pool", "retry = 3", "pools.web.retry", POOL, ["table"]),
    ("pool", "queue = { timeout = '0s' }", "pools.web.queue.timeout", POOL, ["1ms to 1h"]),
    ("pool", "health = 'tpc'", "pools.web.health", POOL, ["'tcp'", "GET /path"]),
    ("pool", "health = 'GET health'", "pools.web.health.http", POOL, ["GET /path"]),
    ("pool", "health = {}", "pools.web.health", POOL, ["exactly one", "http", "postgres"]),
    ("pool", "health = { tcp = true, http = 'GET /' }", "pools.web.health", POOL, ["exactly one", "http and tcp"]),
    ("pool", "health = { tcp = true, body = 'ok' }", "pools.web.health", POOL, ["body", "http only"]),
    ("pool", "health = { http = 'GET /', every = '1ms' }", "pools.web.health.every", POOL, ["100ms to 1d"]),
    ("pool", "health = { http = 'GET /', status = '2xx' }", "pools.web.health.status", POOL, ["200-299"]),
    ("site", "max_body = '0B'", 'sites."a.example".max_body', SITE, ["1B to"]),
    ("site", "max_body = 'unlimited'", 'sites."a.example".max_body', SITE, ["size"]),
    ("site", "via = true", 'sites."a.example".via', SITE, ["false or"]),
    ("site", "names = ['b.example']", 'sites."b.example"', SITE + 1, ['sites."a.example".names[0]', "one site"]),
    ("site", "names = ['a.example.']", 'sites."a.example".names[0]', SITE, ["taken by"]),
    ("site", "names = ['x:80']", 'sites."a.example".names[0]', SITE, ["without a port"]),
    ("site", "'/x' = 'wep'", 'sites."a.example"."/x"', SITE, ["no pool 'wep'", "'web'", "Pools are: web"]),
    ("site", "'/x' = { pool = 'wep' }", 'sites."a.example"."/x".pool', SITE, ["no pool 'wep'", "'web'"]),
    ("site", "'/x' = 5", 'sites."a.example"."/x"', SITE, ["name of a pool", "table"]),
    ("site", "'/x/*' = 'web'", 'sites."a.example"."/x/*"', SITE, ["no wildcard"]),
    ("site", "'/%7Ex' = 'web'\n'/~x' = 'web'", 'sites."a.example"."/~x"', SITE + 1, ["same route"]),
    ("site", "timeouts = { conect = '1s' }", 'sites."a.example".timeouts.conect', SITE, ["'connect'"]),
    ("site", "timeouts = { request = '0s' }", 'sites."a.example".timeouts.request', SITE, ["1ms to 30d"]),
    ("after", "[sites.'A.EXAMPLE']\n'/' = 'web'", 'sites."A.EXAMPLE"', AFTER, ["taken by", 'sites."a.example"']),
    ("after", "[sites.'a b']\n'/' = 'web'", 'sites."a b"', AFTER, ["host"]),
    ("after", "[pools.x]\nservers = []", "pools.x", AFTER, ["no servers"]),
    ("after", "[pools.x]", "pools.x", AFTER, ["no servers"]),
    ("after", "[pools.'a b']\nservers = ['a:1']", 'pools."a b"', AFTER, ["name", "letters"]),
    ("after", "[pools.x]\nservers = ['a:1',\n'A:01']", "pools.x.servers[1]", AFTER + 2, ["same server as servers[0]", "weight"]),
    ("after", "[pools.x]\nservers = ['a']", "pools.x.servers[0].address", AFTER + 1, ["HOST:PORT"]),
    ("after", "[pools.x]\nservers = ['a:1 weight=1001']", "pools.x.servers[0].weight", AFTER + 1, ["0 to 1000"]),
    ("after", "[pools.x]\nservers = ['a:1 backups']", "pools.x.servers[0]", AFTER + 1, ["'backup'"]),
    ("after", "[pools.x]\nservers = [{ address = 'a:1', weight = '3' }]", "pools.x.servers[0].weight", AFTER + 1, ["0 to 1000"]),
    ("after", "[pools.x]\nservers = [{ address = 'a:1', wieght = 3 }]", "pools.x.servers[0].wieght", AFTER + 1, ["'weight'"]),
    ("after", "[pools.x]\nservers = ['a:1 max_connections=0']", "pools.x.servers[0].max_connections", AFTER + 1, ["1 to"]),
    ("after", "[pools.x]\nservers = [{ weight = 1 }]", "pools.x.servers[0]", AFTER + 1, ["needs the key 'address'"]),
    ("after", "[pools.x]\nservers = 'a:1'", "pools.x.servers", AFTER + 1, ["list"]),
    ("after", "[pools.x]\nservers = [5]", "pools.x.servers[0]", AFTER + 1, ["server"]),
    ("after", "[listen]\nhttp = ':80'", "listen.http", AFTER + 1, ["list"]),
    ("after", "[listen]\nhttp = []", "listen.http", AFTER + 1, ["no site can be reached"]),
    ("after", "[listen]\nhttp = ['x.example:80']", "listen.http[0].address", AFTER + 1, ["IP address"]),
    ("after", "[listen]\nhttp = [':80',\n'0.0.0.0:80']", "listen.http[1]", AFTER + 2, ["taken by listen.http[0]"]),
    ("after", "[listen]\nhttp = ['127.0.0.1:9901']", "admin.listen", 1, ["taken by listen.http[0]"]),
    ("after", "[listen]\nhttp = [{ address = ':80', mode = '0660' }]", "listen.http[0]", AFTER + 1, ["unix sockets only"]),
    ("after", "[listen]\nhttp = [{ address = ':80', max_field = '33KiB' }]", "listen.http[0]", AFTER + 1, ["max_head"]),
    ("after", "[listen]\nhttp = [{ address = ':80', min_body_rate = '0B/s' }]", "listen.http[0].min_body_rate", AFTER + 1, ["1B/s"]),
    (
        "after",
        "[listen]\nhttp = [{ address = ':80', accept_proxy = ['10.0.0.1/8'] }]",
        "listen.http[0].accept_proxy[0]",
        AFTER + 1,
        ["10.0.0.0/8"],
    ),
    ("after", "[tcp.':1']\npool = 'wbe'", 'tcp.":1".pool', AFTER + 1, ["'web'"]),
    ("after", "[tcp.':1']", 'tcp.":1"', AFTER, ["needs the key 'pool'"]),
    ("after", "[tcp.x]\npool = 'web'", "tcp.x", AFTER, ["address"]),
    ("after", "[tcp.':80']\npool = 'web'", 'tcp.":80"', AFTER, ["taken by listen.http"]),
    ("after", "[tcp.':1']\npool = 'web'\nmode = '0660'", 'tcp.":1".mode', AFTER + 2, ["unix"]),
    ("after", "[tcp.':1']\npool = 'web'\nmax_connections = 0", 'tcp.":1".max_connections', AFTER + 2, ["1 to"]),
    ("after", "[tcp.':1']\npool = 'web'\n[tcp.'[::]:1']\npool = 'web'", 'tcp."[::]:1"', AFTER + 2, ["taken by"]),
    (
        "after",
        "[tcp.':1']\npool = 'h'\n[pools.h]\nservers = ['a:1']\nbalance = 'hash:path'",
        'tcp.":1".pool',
        AFTER + 1,
        ["hash:path", "TCP", "source_ip"],
    ),
    ("after", "[workers]\ncount = 0", "workers.count", AFTER + 1, ["1 to 256"]),
    ("after", "[admin]\nlisten = true", "admin.listen", AFTER + 1, ["false or"]),
    ("after", "[admin]\nlisten = 'x'", "admin.listen", AFTER + 1, ["unix:PATH"]),
    ("after", "[admin.tokens.g]\nrole = 'root'\nsha256 = 'ab'", "admin.tokens.g.role", AFTER + 1, ["'operate'"]),
    ("after", "[admin.tokens.g]\nrole = 'view'\nsha256 = 'ab'", "admin.tokens.g.sha256", AFTER + 2, ["64"]),
    ("after", "[admin.tokens.g]\nrole = 'view'", "admin.tokens.g", AFTER, ["needs the key 'sha256'"]),
    ("after", "[timeouts]\nrequest = 90", "timeouts.request", AFTER + 1, ["duration"]),
    ("after", "[logs]\naccess = { format = 'json' }", "logs.access", AFTER + 1, ["needs the key 'file'"]),
    ("after", "[logs]\naccess = { file = '-', format = 'xml' }", "logs.access.format", AFTER + 1, ["'combined', 'json'"]),
    ("after", "[logs]\naccess = 'a.log'", "logs.access", AFTER + 1, ["table"]),
    ("pool", "slow_start = '${env:NOT_SET}'", "pools.web.slow_start", POOL, ["NOT_SET is not set"]),
    ("pool", "slow_start = '${now}'", "pools.web.slow_start", POOL, ["not a placeholder"]),
]

WHOLE = [
    ("version = 2\n" + SMALL, "version", 1, ["version 1"]),
    ("", "", 1, ["nothing listens"]),
    ("[pools.web]\nservers = ['a:1']", "", 1, ["nothing listens"]),
    ("a = \n", "", 1, ["not TOML", "column"]),
    ("\n\n[a\n", "", 3, ["not TOML"]),
    ("[a]\n[a]\n", "", 2, ["not TOML"]),
    ("a = 1\na = 2\n", "", 2, ["set already"]),
    ('a = "x', "", 1, ["not TOML"]),
    ("a = " + "[" * 100_000, "", 1, ["nested"]),
    ("a = " + "[" * 30 + "]" * 30, "", 1, ["nested"]),
    ("\na" + ".a" * 300_000 + " = 1", "", 2, ["parts"]),
    ('["a"' + ". 'b'" * 200 + "]", "", 1, ["parts"]),
    ("a = " + "9" * 5000, "", 1, ["not TOML"]),
    ("#" * (1024 * 1024 + 1), "", 0, ["larger than 1024 KiB"]),
]


def filled(where, lines):
    return BASE.format(**({"pool": "", "site": "", "after": ""} | {where: lines}))


def problems_of(text, **options):
    try:
        loader.parse(text, file="conf.toml", has_ipv6=True, **{"base_dir": "/base", "environ": {}, **options})
    except ConfigurationError as e:
        return e.problems
    return ()


class GoodTests(SynchronousTestCase):
    def parse(self, text, **options):
        return loader.parse(text, **{"file": "/etc/revproxy/x.toml", "environ": {}, "has_ipv6": True, **options})

    def test_the_small_example_of_the_manual(self):
        model = self.parse(SMALL)
        self.assertEqual([x.address for x in model.http], ["127.0.0.1:8080"])
        self.assertEqual(model.pools["web"].servers, (Server("127.0.0.1:9001", 3), Server("127.0.0.1:9002")))
        self.assertEqual(model.pools["web"].health, HealthCheck("http", "/health"))
        self.assertEqual(model.pools["pg"].health, HealthCheck("postgres"))
        self.assertTrue(model.pools["pg"].servers[1].backup)
        self.assertEqual((model.sites["*"].hosts, model.sites["*"].routes[0].pool), (("*",), "web"))
        self.assertEqual((model.tcp[0].address, model.tcp[0].pool), ("127.0.0.1:6432", "pg"))
        self.assertEqual(model.config_file, "/etc/revproxy/x.toml")
        self.assertEqual(model.state_dir, "/etc/revproxy/.revproxy")
        self.assertEqual(model.admin.token_file, "/etc/revproxy/.revproxy/admin.token")
        self.assertGreaterEqual(model.workers, 1)

    def test_every_key_arrives_in_the_model(self):
        model = self.parse(FULL)
        self.assertEqual(model.state_dir, "/etc/revproxy/state")
        tcp, (plain, unix) = model.tcp[0], model.http
        self.assertEqual((plain.address, plain.trusted_proxies, plain.max_head), ("[::]:80", (), 32768))
        self.assertEqual(
            (unix.address, unix.mode, unix.accept_proxy, unix.max_connections),
            ("unix:/etc/revproxy/run/http.sock", 0o660, ("10.0.0.0/8",), 5000),
        )
        self.assertEqual((unix.connection_age_s, unix.min_body_rate, unix.max_fields), (3600.0, 500.0, 100))
        self.assertEqual(
            (model.workers, model.admin.names, model.admin.token_file), (4, ("proxy-admin.internal",), "/etc/revproxy/admin.token")
        )
        self.assertEqual(model.admin.tokens, (Token("grafana", "view", "a" * 64),))
        web = model.pools["web"]
        self.assertEqual(
            web.servers, (Server("10.0.0.1:8080", 3, 200), Server("app:8080", backup=True), Server("unix:/etc/revproxy/run/app.sock"))
        )
        self.assertEqual(web.health, HealthCheck("http", "/health", "app", 8081, ((200, 299),), "ok", 2.0, 1.0, 3, 2))
        self.assertEqual(web.eject, Eject(6, 0.4, 11.0, 31.0, 49))
        self.assertEqual((web.balance, web.slow_start_s, web.send_proxy, web.max_connections), ("hash:header.X-User", 5.0, 2, 255))
        self.assertEqual((web.retry.tries, web.retry.on, web.retry.budget), (3, ("connect", "502"), 0.3))
        self.assertEqual((web.queue.size, web.queue.timeout_s, web.keepalive.idle_s, web.keepalive.size), (0, 1.0, 5.0, 65))
        self.assertEqual((model.pools["pg"].eject, model.pools["pg"].health), (None, HealthCheck("tcp")))
        site = model.sites["WWW.Example.com"]
        self.assertEqual((site.hosts, site.via), (("www.example.com", "example.com", "*.example.com"), "proxy"))
        self.assertEqual(
            [(r.path, r.strip, r.max_body) for r in site.routes],
            [("/", False, 10 << 20), ("/api/", True, 1 << 20), ("=/x", False, 10 << 20)],
        )
        self.assertEqual(
            (tcp.allow, tcp.deny, tcp.accept_proxy, tcp.max_connections), (("10.0.0.0/8",), ("10.6.6.0/24",), ("10.0.0.0/8",), 500)
        )
        self.assertEqual(model.logs.access, AccessLog("/dev/null", "json"))
        self.assertEqual(model.logs.events, EventLog())

    def test_time_outs_are_inherited_from_the_file_by_sites_routes_and_tcp_listeners(self):
        model = self.parse(FULL)
        site = model.sites["WWW.Example.com"]
        self.assertEqual(model.timeouts, Timeouts(connect_s=2.0, tcp_idle_s=7200.0))
        self.assertEqual(site.routes[0].timeouts, Timeouts(connect_s=1.0, tcp_idle_s=7200.0))
        self.assertEqual(site.routes[1].timeouts, Timeouts(connect_s=1.0, tcp_idle_s=7200.0, response_head_s=5.0))
        self.assertEqual(model.tcp[0].timeouts, Timeouts(connect_s=2.0, tcp_idle_s=10800.0))

    def test_the_state_directory_of_systemd_is_used_when_the_file_names_none(self):
        model = self.parse(SMALL, environ={"STATE_DIRECTORY": "/var/lib/revproxy:/var/lib/other"})
        self.assertEqual((model.state_dir, model.admin.token_file), ("/var/lib/revproxy", "/var/lib/revproxy/admin.token"))
        self.assertEqual(self.parse(SMALL, state_dir_default="/run/x").state_dir, "/run/x")

    def test_without_listen_sites_are_on_port_80_of_whatever_the_machine_has(self):
        text = "[pools.web]\nservers = ['a:1']\n[sites.'*']\n'/' = 'web'"
        self.assertEqual([x.address for x in self.parse(text).http], ["[::]:80"])
        self.assertEqual([x.address for x in self.parse(text, has_ipv6=False).http], ["0.0.0.0:80"])

    def test_with_tcp_alone_there_is_no_http(self):
        self.assertEqual(self.parse("[pools.web]\nservers = ['a:1']\n[tcp.':1']\npool = 'web'").http, ())

    def test_admin_can_be_local_only(self):
        self.assertIsNone(self.parse(SMALL + "[admin]\nlisten = false").admin.listen)
        self.assertIsNone(self.parse(SMALL + "[admin]\nlisten = '${env:A}'", environ={"A": "false"}).admin.listen)

    def test_several_listeners_may_ask_for_any_free_port(self):
        self.assertEqual(len(self.parse(SMALL.replace('["127.0.0.1:8080"]', '["127.0.0.1:0", "127.0.0.1:0"]')).http), 2)

    def test_placeholders_become_the_type_of_their_key(self):
        text = (
            SMALL + "[workers]\ncount = '${env:N}'\n[pools.x]\nservers = ['${env:H}:1 weight=${env:N}']\n"
            "eject = '${env:NO}'\nslow_start = '${env:N}s'"
        )
        model = self.parse(text, environ={"N": "3", "H": "db", "NO": "false"})
        self.assertEqual((model.workers, model.pools["x"].servers, model.pools["x"].eject), (3, (Server("db:1", 3),), None))

    def test_the_effective_configuration_has_all_defaults_and_placeholders_as_written(self):
        text = SMALL + "[workers]\ncount = '${env:N}'\n[pools.x]\nservers = ['${env:H}:1', { address = '${env:H}:2' }]"
        loaded = loader.read(text, base_dir="/base", environ={"N": "3", "H": "s3cret"})
        effective = loaded.effective
        self.assertEqual(effective["workers"]["count"], "${env:N}")
        self.assertEqual(effective["pools"]["x"]["servers"][0], "${env:H}:1")
        self.assertEqual(effective["pools"]["x"]["servers"][1]["address"], "${env:H}:2")
        self.assertEqual(effective["pools"]["x"]["servers"][1]["weight"], 1)
        self.assertEqual((effective["pools"]["x"]["queue"]["size"], effective["timeouts"]["connect"]), (128, "3s"))
        self.assertEqual(effective["sites"]["*"]["/"], "web")
        self.assertNotIn("s3cret", repr(effective))
        self.assertEqual(
            loaded.written, {"workers.count": "${env:N}", "pools.x.servers[0]": "${env:H}:1", "pools.x.servers[1].address": "${env:H}:2"}
        )

    def test_the_effective_configuration_means_the_same_as_the_file(self):
        def as_toml(value):
            if isinstance(value, dict):
                return "{" + ", ".join(f"{as_toml(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
            if isinstance(value, list):
                return "[" + ", ".join(map(as_toml, value)) + "]"
            return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)

        for text in (SMALL, FULL):
            loaded = loader.read(text, base_dir="/base", environ={})
            again = "\n".join(f"{k} = {as_toml(v)}" for k, v in loaded.effective.items())
            self.assertEqual(loader.parse(again, base_dir="/base", environ={}), loaded.model)


class ProblemTests(SynchronousTestCase):
    def test_each_mistake_is_named_with_path_line_and_what_is_allowed(self):
        for where, lines, path, line, words in BAD:
            problems = problems_of(filled(where, lines))
            self.assertEqual([(p.path, p.line, p.file) for p in problems[:1]], [(path, line, "conf.toml")], f"{lines!r}: {problems}")
            for word in words:
                self.assertIn(word, problems[0].message, lines)

    def test_one_mistake_is_reported_once(self):
        for where, lines, _, _, _ in BAD:
            if "sha256 = 'ab'" not in lines:
                self.assertEqual(len(problems_of(filled(where, lines))), 1, f"{lines!r}: {problems_of(filled(where, lines))}")

    def test_mistakes_of_the_whole_text(self):
        for text, path, line, words in WHOLE:
            problems = problems_of(text)
            self.assertEqual([(p.path, p.line) for p in problems], [(path, line)], f"{text[:40]!r}: {problems}")
            for word in words:
                self.assertIn(word, problems[0].message)

    def test_all_problems_are_reported_at_once_whatever_their_kind(self):
        text = """\
            [pools.web]
            servers = ["a:1", "a:1"]
            balanec = "random"
            queue = { size = -1 }
            [pools.empty]
            [sites."a.example"]
            http2 = true
            "/" = "wep"
            "/x" = { pool = "web", timeouts = { connect = 5 } }
            [tcp.":80"]
            pool = "web"
            mode = "${env:NOT_SET}"
            [workers]
            count = 0
        """
        self.assertEqual(
            [(p.line, p.path) for p in problems_of(text)],
            [
                (2, "pools.web.servers[1]"), (3, "pools.web.balanec"), (4, "pools.web.queue.size"), (5, "pools.empty"),
                (7, 'sites."a.example".http2'), (8, 'sites."a.example"."/"'), (9, 'sites."a.example"."/x".timeouts.connect'),
                (10, 'tcp.":80"'), (12, 'tcp.":80".mode'), (14, "workers.count"),
            ],
        )  # fmt: skip

    def test_several_mistakes_in_one_list_hide_none_of_its_neighbours(self):
        """Bad servers and placeholders that stand for nothing leave the other servers and keys of the pool to be checked."""
        text = """\
            [pools.web]
            servers = ["a:1 wieght=2", "${env:NOT_SET}:1", "${file:none}", "http://x"]
            balance = "hash:header.X"
            slow_start = 5
            [tcp.":80"]
            pool = "web"
        """
        self.assertEqual(
            [(p.line, p.path) for p in problems_of(text, environ={})],
            [
                (2, "pools.web.servers[0]"), (2, "pools.web.servers[1]"), (2, "pools.web.servers[2]"),
                (2, "pools.web.servers[3].address"), (4, "pools.web.slow_start"), (6, 'tcp.":80".pool'),
            ],
        )  # fmt: skip

    def test_a_problem_never_shows_what_a_placeholder_stands_for(self):
        secret = "hunter2 s3cret"
        for leaf in range(80):
            count = -1

            def put(value, leaf=leaf):
                nonlocal count
                if isinstance(value, dict):
                    return {k: put(v) for k, v in value.items()}
                if isinstance(value, list):
                    return [put(v) for v in value]
                count += 1
                return "${env:SECRET}" if count == leaf else value

            tree = put(tomllib.loads(FULL))
            self.patch(loader, "_toml", lambda text, file, tree=tree: tree)
            problems = problems_of(FULL, environ={"SECRET": secret})
            for problem in problems:
                self.assertNotIn("s3cret", str(problem))
                self.assertNotIn("hunter2", str(problem))
        self.assertLess(count, leaf, "there are more values than were tried")

    def test_cross_checks_show_placeholders_as_written_too(self):
        text = filled("site", "'/x' = '${env:SECRET}'\nnames = ['${env:HOST}', '${env:HOST}']") + (
            "[listen]\nhttp = ['${env:ADDR}', '${env:ADDR}']\n"
            "[tcp.':1']\npool = 'h'\n[pools.h]\nservers = ['a:1', '${env:ADDR}', '${env:ADDR}']\n"
            "balance = 'hash:header.${env:SECRET}'\n"
        )
        problems = problems_of(text, environ={"SECRET": "hunter2", "HOST": "hidden.example", "ADDR": "10.9.8.7:99"})
        self.assertEqual(len(problems), 5, problems)
        for problem in problems:
            for word in ("hunter2", "hidden", "10.9.8.7"):
                self.assertNotIn(word, str(problem))

    def test_over_the_api_placeholders_are_refused(self):
        problems = problems_of(filled("pool", "slow_start = '${env:HOME}'"), allow_placeholders=False, environ={"HOME": "1s"})
        self.assertEqual([p.path for p in problems], ["pools.web.slow_start"])
        self.assertIn("not allowed here", problems[0].message)

    def test_a_thousand_mistakes_do_not_flood_the_terminal(self):
        problems = problems_of(SMALL + "".join(f"k{i} = 1\n" for i in range(5000)))
        self.assertEqual(len(problems), loader.MOST_PROBLEMS + 1)
        self.assertIn("4800 more", problems[-1].message)


class RobustnessTests(SynchronousTestCase):
    def assert_loads_or_names_problems(self, text):
        try:
            loader.parse(text, base_dir="/base", environ={}, has_ipv6=True)
        except ConfigurationError as e:
            self.assertTrue(e.problems)
            for problem in e.problems:
                self.assertTrue(problem.message)
            return False
        return True

    def test_hundreds_of_broken_files_are_refused_with_reasons_and_nothing_else_happens(self):
        draw = random.Random(7)
        pieces = [
            "=",
            "[",
            "]",
            '"',
            "{",
            "}",
            "\n",
            ",",
            "5",
            "true",
            "x",
            " ",
            "[[pools]]\n",
            "''",
            '"""',
            "\\",
            "\0",
            "é",
            "pools.web = 1\n",
            "$${",
            "${",
        ]
        refused = 0
        for _ in range(400):
            text = draw.choice((SMALL, FULL))
            for _ in range(draw.randint(1, 3)):
                at = draw.randrange(len(text))
                kind = draw.randrange(4)
                if kind == 0:
                    text = text[:at] + draw.choice(pieces) + text[at:]
                elif kind == 1:
                    text = text[:at] + text[at + draw.randint(1, 20) :]
                elif kind == 2:
                    lines = text.split("\n")
                    draw.shuffle(lines)
                    text = "\n".join(lines)
                else:
                    text = text[:at]
            refused += not self.assert_loads_or_names_problems(text)
        self.assertGreater(refused, 200)

    def test_a_value_of_any_kind_anywhere_is_taken_or_refused_with_a_reason(self):
        odd = [-1, float("inf"), True, "", "none", [[]], [5], {}, {"/": "x"}, "a" * 5000]
        tree = tomllib.loads(FULL)

        def places(value, path=()):
            for key, child in value.items() if isinstance(value, dict) else enumerate(value):
                yield (*path, key)
                if isinstance(child, (dict, list)):
                    yield from places(child, (*path, key))

        def replaced(value, path, new):
            if not path:
                return new
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[path[0]] = replaced(value[path[0]], path[1:], new)
            return copy

        for path in places(tree):
            for value in odd:
                self.patch(loader, "_toml", lambda text, file, path=path, value=value: replaced(tree, path, value))
                self.assert_loads_or_names_problems(FULL)

    @settings(max_examples=150, deadline=None)
    @given(st.text(max_size=200))
    def test_any_text_at_all(self, text):
        self.assert_loads_or_names_problems(text)
        self.assert_loads_or_names_problems(SMALL + text)

    def test_hostile_texts_take_no_more_than_seconds(self):
        n = 300 * 1000
        texts = {
            "long bare word": "a" * n,
            "dots": "a." * (n // 2),
            "spaced dots": "a . " * (n // 4),
            "quotes": '"' * n,
            "quoted parts": '"a".' * (n // 4),
            "unknown tables": "".join(f"[t{i}]\n" for i in range(n // 10)),
            "unknown keys": "".join(f"k{i}=1\n" for i in range(n // 9)),
            "dollars": "a = '" + "${" * (n // 2 - 5) + "'",
        }
        for name, text in texts.items():
            start = time.perf_counter()
            self.assert_loads_or_names_problems(text[: 1024 * 1024])
            self.assertLess(time.perf_counter() - start, 10, name)


class FileTests(SynchronousTestCase):
    def write(self, content, name="x.toml"):
        directory = tempfile.mkdtemp()  # short, whatever the checkout's own path: the path of a unix socket has its limit
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, name)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def refusal(self, path):
        with self.assertRaises(ConfigurationError) as caught:
            loader.load(path)
        (problem,) = caught.exception.problems
        self.assertEqual(problem.file, path)
        return problem

    def test_paths_in_a_file_are_relative_to_the_file(self):
        path = self.write(FULL.encode())
        here = os.path.dirname(os.path.abspath(path))
        model = loader.load(path)
        self.assertEqual((model.config_file, model.state_dir), (os.path.abspath(path), here + "/state"))
        self.assertEqual(model.pools["web"].servers[2].address, f"unix:{here}/run/app.sock")

    def test_a_file_that_is_not_there_or_not_readable_as_text_is_refused(self):
        self.assertIn("No such file", self.refusal("/nonexistent/x.toml").message)
        self.assertIn("Is a directory", self.refusal("/").message)
        self.assertIn("cannot be read", self.refusal("a\0b").message)
        problem = self.refusal(self.write(b"a = 1\nb = '\xff'"))
        self.assertIn("UTF-8", problem.message)
        self.assertEqual(problem.line, 2)

    def test_a_file_of_ten_megabytes_is_refused_without_reading_it_all(self):
        self.assertIn("1024 KiB", self.refusal(self.write(b"# x\n" * 2_500_000)).message)
        self.assertIn("1024 KiB", self.refusal("/dev/zero").message)

    def test_a_byte_order_mark_does_no_harm(self):
        self.assertEqual(loader.load(self.write(b"\xef\xbb\xbf" + SMALL.encode())).http[0].address, "127.0.0.1:8080")

    def test_the_default_files_are_found_in_their_order(self):
        local, system = self.write(b""), self.write(b"")
        self.patch(loader, "DEFAULT_FILES", (local, system))
        self.assertEqual(loader.find_file(), os.path.abspath(local))
        os.unlink(local)
        self.assertEqual(loader.find_file(), os.path.abspath(system))
        os.unlink(system)
        with self.assertRaisesRegex(ConfigurationError, "--config"):
            loader.find_file()

    def test_the_state_directory_is_found_without_checking_the_file(self):
        path = self.write(b"state_dir = 's'\nnonsense = 1")
        here = os.path.dirname(os.path.abspath(path))
        self.assertEqual(loader.state_dir_of(path), here + "/s")
        with self.assertRaises(ConfigurationError):
            loader.state_dir_of(self.write(b"state_dir = 5"))

    def test_commands_that_read_no_file_do_not_wait_for_pydantic(self):
        script = "import sys; import twistedproxy.config.loader, twistedproxy.config.changes; sys.exit('pydantic' in sys.modules)"
        self.assertEqual(subprocess.run([sys.executable, "-c", script], check=False).returncode, 0)
