"""Where requests go, end to end: beside the real nginx, a gateway, an A/B test, a guarded shift over a restart."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from contextlib import closing
from typing import Any

import bed

NGINX = """
daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log; {user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory}; uwsgi_temp_path {directory};
    scgi_temp_path {directory};
    upstream app {{ server {one}; server {two}; }}
    server {{
        listen {port};
        server_name example.test www.example.test;
        location / {{
            proxy_pass http://app;
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_connect_timeout 60s;
            proxy_send_timeout 60s;
            proxy_read_timeout 60s;
        }}
    }}
}}
"""
AS_OURS = """
[timeouts]
connect = "60s"
write_stall = "60s"
response_head = "60s"
response_idle = "60s"
[pools.app]
servers = ["{one}", "{two}"]
[sites."*"]
"/" = {{ pool = "app", host = "${{host}}", headers = {{ request = {{ set = {{ X-Real-IP = "${{client_ip}}" }}, \
remove = ["X-Forwarded-Host", "X-Forwarded-Port", "X-Request-Id"] }} }} }}
"""
REQUESTS: list[tuple[str, str, dict[str, str], bytes | None]] = [
    ("GET", "/", {"Host": "example.test"}, None),
    ("GET", "/a/b.html?x=1&y=%20", {"Host": "www.example.test:8080", "Cookie": "a=b; c=d", "User-Agent": "u"}, None),
    ("HEAD", "/h", {"Host": "OTHER.test", "Accept-Encoding": "gzip", "Authorization": "Basic eDp5"}, None),
    ("POST", "/form", {"Host": "example.test", "Content-Type": "text/plain"}, b"hello"),
    ("PUT", "/%C3%BC", {"Host": "127.0.0.1", "X-Real-IP": "6.6.6.6", "X-Forwarded-Proto": "gopher"}, b"x" * 5000),
    ("DELETE", "/d?", {"Host": "example.test", "Referer": "http://x/"}, None),
]


class NginxProxy(bed.Part):
    """The real nginx with the configuration people copy."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__()
        self.port = bed.free_port()
        config = self.directory / "nginx.conf"
        user = "user root;" if bed.os.getuid() == 0 else ""
        config.write_text(NGINX.format(directory=self.directory, one=one, two=two, port=self.port, user=user))
        self.launch([bed.program("nginx"), "-c", str(config), "-p", str(self.directory)])
        self.wait_for(lambda: bed.accepts(self.port), "nginx to listen")


def send(port: int, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection(bed.HOST, port, timeout=10)) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def test_the_nginx_that_people_copy_written_as_ours(proxy, part) -> None:
    """The servers get the same requests from both, field by field; only the connection between differs (nginx speaks HTTP/1.0)."""
    one, two = bed.Inspector(), bed.Inspector()
    try:
        nginx = part(NginxProxy, one.address, two.address)
        ours = proxy(AS_OURS.format(one=one.address, two=two.address))
        for request in REQUESTS:
            seen: list[dict[str, Any]] = []
            for port in (nginx.port, ours.http_port):
                assert send(port, *request)[0] == 200
                (facts,) = one.seen + two.seen
                one.seen.clear()
                two.seen.clear()
                facts["headers"].pop("connection", None)
                seen.append({key: facts[key] for key in ("method", "path", "headers", "body")})
            assert seen[0] == seen[1], request
        for port in (nginx.port, ours.http_port):
            for _ in range(10):
                send(port, "GET", "/", {"Host": "example.test"})
            assert (len(one.seen), len(two.seen)) == (5, 5)
            one.seen.clear()
            two.seen.clear()
    finally:
        one.close()
        two.close()


GATEWAY = """
[pools.auth]
servers = ["{auth}"]
[pools.users]
servers = ["{users}"]
[pools.payments]
servers = ["{payments}", "127.0.0.1:1"]
[pools.gone]
servers = ["127.0.0.1:1"]
[pools.canary]
servers = ["{auth}"]
[sites."api.example"]
maintenance_allow = ["10.0.0.0/8"]
use = ["security_headers"]
"/auth/" = {{ pool = "auth", strip = true }}
"/users/" = {{ pool = "users", strip = true, mirror = {{ pool = "auth", percent = 100, compare = true }} }}
"/payments/" = {{ pool = "payments", strip = true, max_body = "10B" }}
"/gone" = "gone"
"/ab" = {{ split = {{ users = 90, canary = 10 }}, sticky = "cookie:ab" }}
[[sites."api.example".rules]]
when = {{ path = "/auth/admin*" }}
respond = {{ status = 403, body = "no" }}
[[tests]]
request = "GET http://api.example/auth/login"
expect = {{ pool = "auth", path = "/login" }}
[[tests]]
request = "GET http://api.example/ab"
expect = {{ split = ["users", "canary"] }}
"""
HOST = {"Host": "api.example"}


def test_a_gateway_and_its_answers(proxy, part) -> None:
    """Services below their prefixes, a rule, a mirror, an A/B split, maintenance, explain and why, with two workers."""
    auth, users, payments = bed.Inspector(), bed.Inspector(), bed.Inspector()
    made = proxy(GATEWAY.format(auth=auth.address, users=users.address, payments=payments.address), workers=2)
    port = made.http_port
    try:
        for service, origin in (("auth", auth), ("payments", payments)):
            status, headers, body = send(port, "GET", f"/{service}/x?y=1", HOST)
            assert (status, json.loads(body)["path"], headers["x-frame-options"]) == (200, "/x?y=1", "SAMEORIGIN")
            assert origin.seen.pop()["headers"]["host"] == "api.example"
        assert send(port, "GET", "/auth/admin/x", HOST)[::2] == (403, b"no")
        assert send(port, "POST", "/payments/x", HOST, b"x" * 11)[0] == 413
        assert send(port, "POST", "/users/u", HOST, b"body")[0] == 200
        made.wait_for(lambda: [s["body"] for s in auth.seen] == ["body"], "the mirrored request")
        (mirror,) = made.wait_for(lambda: [m for m in made.get("/api/v1/mirrors")["mirrors"] if "same" in m["results"]], "a comparison")
        assert (mirror["pool"], mirror["results"]["sent"]) == ("auth", 1)

        # A failure and its story
        status, headers, _ = send(port, "GET", "/gone", HOST)
        assert status == 502
        (story,) = made.get(f"/api/v1/why/{headers['x-request-id']}")["stories"]
        assert (story["pool"], story["attempts"][0]["server"], story["changes"]) == ("gone", "127.0.0.1:1", [])

        # The A/B test: who has a cookie stays, the exposure is counted
        sides = Counter(send(port, "GET", "/ab", HOST)[1]["set-cookie"].partition(";")[0] for _ in range(300))
        assert set(sides) == {"ab=users", "ab=canary"}
        assert 5 <= sides["ab=canary"] <= 70
        split = {"path": "/ab", "weights": {"users": 80, "canary": 20}}
        status, answer = made.ask("PATCH", "/api/v1/sites/api.example", {"split": split, "reason": "more"})
        assert status == 200, answer
        for side in ("users", "canary"):
            assert "set-cookie" not in send(port, "GET", "/ab", {**HOST, "Cookie": f"ab={side}"})[1]

        def exposure() -> dict[str, int]:
            (shown,) = made.get("/api/v1/sites")["sites"]
            (route,) = [route for route in shown["routes"] if route["path"] == "/ab"]
            return {side["pool"]: side["requests"] for side in route["split"]}

        wanted = {"users": sides["ab=users"] + 1, "canary": sides["ab=canary"] + 1}
        made.wait_for(lambda: exposure() == wanted, f"the exposure {wanted}")
        broken = {"path": "/ab", "weights": {"canary": 0}}
        status, answer = made.ask("PATCH", "/api/v1/sites/api.example", {"split": broken})
        assert (status, answer["problems"][0]["path"]) == (400, "tests[1]"), answer

        # Explanations: by the API, and of a live request
        answer = made.get("/api/v1/explain?url=http%3A%2F%2Fapi.example%2Fusers%2Fu")
        assert (answer["pool"], answer["server"], answer["request"]["path"]) == ("users", users.address, "/u")
        status, _, body = send(port, "GET", "/auth/x", {**HOST, "X-Revproxy-Explain": made.token})
        assert json.loads(body)["server"] == auth.address
        status, _, body = send(port, "GET", "/auth/x", {**HOST, "X-Revproxy-Explain": "wrong"})
        assert "x-revproxy-explain" not in json.loads(body)["headers"]

        # Maintenance, live
        assert made.ask("PATCH", "/api/v1/sites/api.example", {"maintenance": True})[0] == 200
        status, headers, _ = send(port, "GET", "/auth/x", HOST)
        assert (status, headers["retry-after"]) == (503, "60")
        assert made.ask("PATCH", "/api/v1/sites/api.example", {"maintenance": None})[0] == 200
        assert send(port, "GET", "/auth/x", HOST)[0] == 200
        metrics = made.get("/metrics").decode()
        counted = [line for line in metrics.splitlines() if line.startswith("revproxy_split_requests_total{") and 'pool="users"' in line]
        assert [float(line.split()[-1]) for line in counted] == [wanted["users"]], counted

        # A guarded shift survives the supervisor, and stops where it began
        wish = {"from": "users", "to": "canary", "steps": [50, 100], "every": "1h", "abort_if": "errors > 1%"}
        assert made.ask("POST", "/api/v1/shifts", wish)[0] == 200
        made.stop()
        made.start()
        (shift,) = made.get("/api/v1/shifts")["shifts"]
        assert (shift["state"], shift["share"]) == ("running", 50.0)
        assert made.ask("DELETE", f"/api/v1/shifts/{shift['id']}")[0] == 200
        (shown,) = made.get("/api/v1/sites")["sites"]
        weights = [s["weight"]["effective"] for route in shown["routes"] if route["path"] == "/ab" for s in route["split"]]
        assert weights == [80, 20]
    finally:
        for origin in (auth, users, payments):
            origin.close()
