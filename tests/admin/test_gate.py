"""Nobody gets past the gate who should not."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin import page
from twistedproxy.admin.auth import Role
from twistedproxy.admin.operations import OPERATIONS, Operation

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]

SERVER = "/api/v1/pools/web/servers/127.0.0.1:9001"

PARTS = {"pool": "web", "address": "127.0.0.1:9001", "digest": page.load().digest, "file": "app.js"}


def path_of(operation: Operation) -> str:
    """A path of this operation that exists, as far as the fakes go."""
    return re.sub(r"{(\w+)}", lambda part: PARTS.get(part[1], "1"), operation.path)


EVERY = [(operation.method, path_of(operation)) for operation in OPERATIONS]


class Gate(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def test_AD_01_tokens_are_needed_and_wrong_ones_look_alike(self) -> None:
        """AD-01: no, short, foreign, doubled token and one in the query get the same 401 with the same body."""
        good = fakes.TOKENS["admin"]
        cases = (
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            f"Bearer {good}x",
            f"Bearer {good[:-1]}",
            f"Basic {good}",
            good,
            f"Bearer {good} {good}",
        )
        answers = [self.admin.ask("GET", "/api/v1/status", role=None)]
        answers.append(self.admin.ask("GET", f"/api/v1/status?token={good}&access_token={good}", role=None))
        for value in cases:
            self.admin.clock.advance(1)
            answers.append(self.admin.ask("GET", "/api/v1/status", role=None, headers={"Authorization": value}))
        twice = f"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {good}\r\nAuthorization: Bearer x\r\n\r\n"
        answers.append(fakes.Answer(self.admin.send(twice.encode()).value(), "GET"))
        self.assertEqual({(a.status, a.body, a.headers["WWW-Authenticate"]) for a in answers}, {(401, answers[0].body, "Bearer")})
        self.assertEqual(self.admin.ask("GET", "/api/v1/status", role=None, headers={"Authorization": f"bearer {good}"}).status, 200)

    def test_AD_02_foreign_hosts_are_refused_on_every_method(self) -> None:
        """AD-02: a page that resolves its own name to 127.0.0.1 reaches nothing, not even the page or health."""
        for host in ("evil.com", "127.0.0.1.nip.io", "localhost.evil.com", "127.0.0.1@evil.com", "", "[::1", "192.0.2.1", None):
            for method, path in (*EVERY, ("OPTIONS", "/"), ("OPTIONS", "*"), ("TRACE", "/api/v1/status"), ("GET", "/nothing")):
                with self.subTest(host=host, method=method, path=path):
                    self.assertEqual(self.admin.ask(method, path, {}, host=host).status, 403)
        double = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n"
        self.assertIn(b" 403 ", self.admin.send(double).value())

    def test_AD_02_our_own_names_are_accepted(self) -> None:
        """Loopback names, the listen address and the operator's names work, with any port, case and trailing dot."""
        self.admin.replace_admin(listen="10.1.2.3:9901")
        names = (
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:9901",
            "127.9.9.9",
            "[::1]:9901",
            "10.1.2.3:80",
            "Proxy-Admin.internal.",
            "localhost.",
        )
        for host in names:
            with self.subTest(host):
                self.assertEqual(self.admin.ask("GET", "/health/live", role=None, host=host).status, 200)

    def test_AD_08_roles_hold_on_every_operation(self) -> None:
        """AD-08: each operation is open to its role and those above, and to nobody else (the table is the promise)."""
        for operation in OPERATIONS:
            path = path_of(operation)
            for role in (None, "view", "operate", "admin"):
                with self.subTest(operation.name, role=role):
                    self.admin.clock.advance(1)
                    body = {"weight": 1, "address": "x"} if operation.is_mutation else None
                    # A stream would not end; HEAD is GET with the same role.
                    method = "HEAD" if operation.name == "events" else operation.method
                    status = self.admin.ask(method, path, body, role=role).status
                    has = 0 if role is None else Role[role.upper()]
                    if operation.role is None or has >= operation.role:
                        self.assertNotIn(status, (401, 403))
                    else:
                        self.assertEqual(status, 401 if role is None else 403)
        needed = {o.name: o.role for o in OPERATIONS if o.is_mutation}
        self.assertEqual({name for name, role in needed.items() if role is Role.VIEW}, {"check"})
        for_admins = {"reload", "adopt", "start_upgrade", "restart_workers"}
        self.assertEqual({name for name, role in needed.items() if role is Role.ADMIN}, for_admins)

    def test_AD_08_no_spelling_gets_around_a_role(self) -> None:
        """AD-08: method override, case of path and method, trailing slash, double slash, HEAD and OPTIONS change nothing."""
        override = {"X-HTTP-Method-Override": "PATCH", "X-HTTP-Method": "PATCH", "X-Original-URL": SERVER, "X-Rewrite-URL": SERVER}
        for method, path, headers in (
            ("POST", SERVER, override),
            ("GET", SERVER + "?_method=PATCH", override),
            ("patch", SERVER, {}),
            ("Patch", SERVER, {}),
            ("PATCH", SERVER + "/", {}),
            ("PATCH", SERVER.upper(), {}),
            ("PATCH", "/" + SERVER, {}),
            ("PATCH", "/health/live/.." + SERVER, {}),
            ("PATCH", SERVER.replace("/pools", "%2Fpools"), {}),
            ("PATCH", SERVER + "%00", {}),
            ("PATCH", SERVER + ";a=b", {}),
            ("PATCH", "http://127.0.0.1" + SERVER, {}),
            ("OPTIONS", SERVER, {}),
            ("HEAD", SERVER, {}),
        ):
            with self.subTest(method=method, path=path):
                for role in (None, "view"):
                    self.admin.clock.advance(1)
                    answer = self.admin.ask(method, path, {"weight": 7}, role=role, headers=headers)
                    self.assertIn(answer.status, (401,) if role is None else (400, 403, 404, 405))
        self.assertEqual(self.admin.control.revision, 1)

    def test_AD_08_methods_are_taken_as_written(self) -> None:
        """AD-08: "patch" is not PATCH, not even for those who may PATCH."""
        self.assertEqual(self.admin.ask("patch", SERVER, {"weight": 7}).status, 405)
        self.assertEqual(self.admin.control.revision, 1)

    def test_AD_08_only_what_the_gate_decided_on_is_served(self) -> None:
        """AD-08: were gate and router ever to disagree, the request is refused."""

        def mistaken(request: Any, *_: object) -> None:
            request.operation = OPERATIONS[0]

        self.admin.site.gate.admit = mistaken
        self.assertEqual(self.admin.ask("PATCH", SERVER, {"weight": 7}).status, 403)
        self.assertEqual(self.admin.control.revision, 1)

    def test_AD_08_guessing_is_slowed_down(self) -> None:
        """AD-08: after ten wrong tokens within a second a peer gets 429 for more of them, for the rest of that second."""
        wrong = {"Authorization": "Bearer wrong"}
        answers = [self.admin.ask("GET", "/metrics", role=None, headers=wrong) for _ in range(12)]
        self.assertEqual([answer.status for answer in answers], [401] * 10 + [429] * 2)
        self.assertEqual((answers[-1].reason, answers[-1].headers["Retry-After"]), ("Too Many Requests", "1"))
        self.admin.clock.advance(1.1)
        self.assertEqual(self.admin.ask("GET", "/metrics", role=None, headers=wrong).status, 401)

    def test_AD_08_nobody_is_locked_out_by_another(self) -> None:
        """AD-08: a valid token passes whatever else comes from its address; a request without a token is no guess."""
        for _ in range(12):
            self.assertEqual(self.admin.ask("GET", "/metrics", role=None).status, 401)
        for _ in range(12):
            self.admin.ask("GET", "/metrics", role=None, headers={"Authorization": "Bearer wrong"})
        self.assertEqual(self.admin.ask("GET", "/metrics").status, 200)
        self.assertEqual(self.admin.ask("GET", "/metrics", role=None).status, 401)

    def test_refusals_say_what_to_do(self) -> None:
        """401, both kinds of 403: one sentence each, which tells a stranger nothing that is not in the manual."""
        self.assertIn("token is needed", self.admin.ask("GET", "/metrics", role=None).json["detail"])
        self.assertIn("role", self.admin.ask("PATCH", SERVER, {"weight": 1}, role="view").json["detail"])
        self.assertIn("admin.names", self.admin.ask("GET", "/metrics", host="evil.com").json["detail"])

    def test_AD_06_names_from_the_url_are_never_interpreted(self) -> None:
        """AD-06: traversal, markup, control characters and huge names are refused as JSON, which no browser renders."""
        for name, statuses in (
            ("..%2F..%2Fetc", {404}), ("%2e%2e", {404}), ("<script>alert(1)</script>", {404}), ("%3Cscript%3E", {404}),
            ("a%0Ab", {400}), ("%00", {400}), ("%ff", {400}), ("x" * 8000, {404}), ("x" * 20000, {400}), ("%25", {404}),
        ):  # fmt: skip
            with self.subTest(name[:30]):
                answer = self.admin.ask("GET", f"/api/v1/pools/{name}")
                self.assertIn(answer.status, statuses)
                self.assertEqual(answer.headers["Content-Type"], "application/problem+json")
                self.assertEqual(answer.headers["X-Content-Type-Options"], "nosniff")
                self.assertIn("default-src 'none'", answer.headers["Content-Security-Policy"])

    def test_mutations_need_json(self) -> None:
        """A form that a foreign page could post is refused before it is read."""
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            self.assertEqual(self.admin.ask("PATCH", SERVER, {"weight": 1}, headers={"Content-Type": kind}).status, 415)
        self.assertEqual(self.admin.ask("PATCH", SERVER, {"weight": 1}, headers={"Content-Encoding": "gzip"}).status, 415)
        self.assertEqual(
            self.admin.ask("PATCH", SERVER, {"weight": 1}, headers={"Content-Type": "application/json; charset=utf-8"}).status, 200
        )

    def test_unknown_paths_and_methods_are_problems(self) -> None:
        """404 and 405 are problem+json too, and 405 says what is allowed."""
        self.assertEqual(self.admin.ask("GET", "/nothing").status, 404)
        answer = self.admin.ask("POST", "/api/v1/status", {})
        self.assertEqual((answer.status, answer.headers["Allow"], answer.json["title"]), (405, "GET, HEAD", "Method Not Allowed"))
        self.assertEqual(answer.headers["Content-Type"], "application/problem+json")
