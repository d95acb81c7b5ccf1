"""The rule of safe retries, case by case."""

from __future__ import annotations

from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, Timeouts
from twistedproxy.config.model import Server as ServerSpec
from twistedproxy.http.retries import IDEMPOTENT, LONGEST_BACK_OFF_S, NOTHING_SENT, REUSED, Retries, wait_asked_for
from twistedproxy.pool.server import Server

ALL = frozenset({"connect", "reused", "closed", "timeout", "429", "502", "503", "504"})


class FakePool:
    def __init__(self) -> None:
        self.budget = 100
        self.running = 0

    def may_retry(self) -> bool:
        if self.running >= self.budget:
            return False
        self.running += 1
        return True

    def retry_done(self) -> None:
        self.running -= 1


class FakeDestination:
    def __init__(self, tries: int = 2, retry_on: frozenset[str] = ALL) -> None:
        self.pool = FakePool()
        self.tries = tries
        self.retry_on = retry_on


def server(port: int = 1) -> Server:
    return Server(ServerSpec(Address(f"127.0.0.1:{port}")), 1)


class RuleTests(SynchronousTestCase):
    def allows(self, reason: str, method: bytes = b"GET", is_replayable: bool = True, **how: Any) -> bool:
        return Retries(cast(Any, FakeDestination(**how))).allow(reason, server(), method, is_replayable)

    def test_when_nothing_was_sent_any_method_may_be_tried_again(self) -> None:
        for method in (b"GET", b"POST", b"PATCH", b"X-OWN"):
            for is_replayable in (True, False):
                self.assertTrue(self.allows(NOTHING_SENT, method, is_replayable))

    def test_otherwise_only_what_may_happen_twice_and_is_at_hand(self) -> None:
        for reason in ALL - {NOTHING_SENT}:
            for method in (b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"):
                self.assertIn(method, IDEMPOTENT)
                self.assertTrue(self.allows(reason, method))
                self.assertFalse(self.allows(reason, method, is_replayable=False))
            for method in (b"POST", b"PATCH", b"LOCK", b"get", b"X-OWN"):
                self.assertFalse(self.allows(reason, method), (reason, method))

    def test_only_for_the_reasons_asked_for(self) -> None:
        for reason in ALL:
            self.assertFalse(self.allows(reason, retry_on=ALL - {reason}))
            self.assertTrue(self.allows(reason, retry_on=frozenset({reason})))

    def test_tries_bound_all_reasons_together_and_every_server_is_tried_once(self) -> None:
        retries = Retries(cast(Any, FakeDestination(tries=2)))
        servers = [server(i) for i in range(1, 4)]
        self.assertTrue(retries.allow("connect", servers[0], b"GET", True))
        self.assertTrue(retries.allow("503", servers[1], b"GET", True))
        self.assertFalse(retries.allow("connect", servers[2], b"GET", True))
        self.assertEqual(retries.tried, frozenset(servers[:2]))

    def test_a_stale_connection_is_forgiven_once_beside_those_tries_and_does_not_blame_its_server(self) -> None:
        retries = Retries(cast(Any, FakeDestination(tries=1)))
        self.assertTrue(retries.allow(REUSED, server(), b"GET", True))
        self.assertEqual((retries.tried, retries.has_stale_connection), (frozenset(), True))
        self.assertFalse(retries.allow(REUSED, server(), b"GET", True))
        self.assertTrue(retries.allow("connect", server(), b"GET", True))
        self.assertFalse(retries.allow("connect", server(), b"GET", True))

    def test_no_tries_means_none_but_for_a_stale_connection(self) -> None:
        self.assertFalse(self.allows("connect", tries=0))
        self.assertTrue(self.allows(REUSED, tries=0))


class WhenTests(SynchronousTestCase):
    def test_back_off_doubles_up_to_250_ms_and_is_random(self) -> None:
        """So that many requests that failed together do not come back together."""
        retries = Retries(cast(Any, FakeDestination(tries=10)))
        self.assertLess(retries.go_back(0.5), 0, "nothing was tried yet")
        waits = []
        for _ in range(6):
            self.assertTrue(retries.allow("503", server(), b"GET", True))
            waits.append(retries.go_back(0.5))
            self.assertEqual(retries.tried, frozenset())
            self.assertLess(retries.go_back(0.5), 0, "once for each attempt")
        self.assertEqual(waits, [0.0125, 0.025, 0.05, 0.1, 0.125, 0.125])
        retries.allow("503", server(), b"GET", True)
        self.assertEqual(retries.go_back(0.0), 0.0)

    def test_only_a_status_leads_back_to_the_same_server(self) -> None:
        for reason in ("connect", "timeout", REUSED):
            retries = Retries(cast(Any, FakeDestination()))
            self.assertTrue(retries.allow(reason, server(), b"GET", True))
            self.assertLess(retries.go_back(0.5), 0)

    def test_a_repeated_request_is_tried_again_only_where_no_server_was_asked(self) -> None:
        for reason in ALL:
            retries = Retries(cast(Any, FakeDestination()), is_repeat=True)
            self.assertEqual(retries.allow(reason, server(), b"GET", True), reason in (NOTHING_SENT, REUSED))

    def test_both_forms_of_retry_after(self) -> None:
        self.assertEqual(wait_asked_for(None, 0.0), 0.0)
        self.assertEqual(wait_asked_for(b"120", 0.0), 120.0)
        self.assertEqual(wait_asked_for(b"Thu, 01 Jan 1970 00:01:00 GMT", 10.0), 50.0)
        self.assertEqual(wait_asked_for(b"Thu, 01 Jan 1970 00:01:00 GMT", 100.0), 0.0)
        for odd in (b"", b"-1", b"1.5", b"soon", b"9" * 20, b"\xff"):
            self.assertEqual(wait_asked_for(odd, 0.0), float("inf"), odd)


class BudgetTests(SynchronousTestCase):
    def test_a_request_takes_its_share_of_the_budget_once_and_gives_it_back(self) -> None:
        destination = FakeDestination(tries=5)
        retries = Retries(cast(Any, destination))
        for i in range(3):
            retries.allow("503", server(i + 1), b"GET", True)
        self.assertEqual(destination.pool.running, 1)
        retries.done()
        self.assertEqual(destination.pool.running, 0)

    def test_P6_what_no_server_worked_for_needs_no_budget(self) -> None:
        """However many requests a dying server had on its hands, all of them go on to another."""
        for reason in (NOTHING_SENT, REUSED):
            destination = FakeDestination()
            destination.pool.budget = 0
            retries = Retries(cast(Any, destination))
            self.assertTrue(retries.allow(reason, server(), b"GET", True))
            retries.done()
            self.assertEqual(destination.pool.running, 0)

    def test_a_request_that_was_refused_takes_nothing(self) -> None:
        destination = FakeDestination()
        retries = Retries(cast(Any, destination))
        self.assertFalse(retries.allow("timeout", server(), b"POST", True))
        destination.pool.budget = 0
        self.assertFalse(retries.allow("503", server(), b"GET", True))
        self.assertEqual(retries.tried, frozenset())
        retries.done()
        self.assertEqual(destination.pool.running, 0)


class Case(SynchronousTestCase):
    """Whole exchanges."""

    uses_bed = True
    bed: Any
    fakes: Any

    def serve(self, server: Any, body: bytes = b"ok") -> Any:
        request = server.request()
        server.send(self.fakes.answer(body))
        return request

    def warm(self, *origins: Any, **proxy: Any) -> tuple[Any, Any]:
        """A client and a server whose connections have carried one exchange already."""
        f = self.fakes
        origin = self.bed.proxy(*origins, **proxy)
        client = self.bed.client(f.get(b"/warm"))
        server = origin.accept()
        server.request()
        server.send(f.answer(b"warm"))
        client.response()
        self.bed.log.lines.clear()
        return client, server


class WholeExchangeTests(Case):
    """Tried again where that is safe, and nowhere else (limits 3.1)."""

    def closed_address(self) -> str:
        origin = self.bed.origin()
        origin.stop()
        return str(origin.address)

    def test_a_server_that_refuses_is_replaced_by_another_whatever_the_method(self) -> None:
        f = self.fakes
        good = self.bed.origin()
        for request in (f.get(), f.post(b"body")):
            self.bed.proxy(servers=[self.closed_address(), good.address])
            clients = [self.bed.client(request) for _ in range(2)]
            servers = [good.accept() for _ in clients]
            for server in servers:
                self.assertEqual(self.serve(server).body, b"body" if b"POST" in request else b"")
            for client in clients:
                self.assertEqual(client.response().status, 200)
                client.close()
            self.assertEqual(sorted(line.attempts for line in self.bed.log.lines), [1, 2])
            self.assertEqual(dict(self.bed.metrics.retries), {("web", "connect"): 1})
            self.bed.log.lines.clear()

    def test_an_upload_that_has_only_begun_goes_to_another_server_too(self) -> None:
        f = self.fakes
        good = self.bed.origin()
        self.bed.proxy(servers=[self.closed_address(), good.address])
        for _ in range(2):
            client = self.bed.client(f.post(b"0123456789")[:-5])
            server = good.accept()
            server.head()
            client.send(b"56789")
            self.assertEqual(server.take(10), b"0123456789")
            server.send(f.answer(b"ok", b"Connection: close"))
            client.response()

    def test_BF_04_no_server_accepts_502_and_the_attempts_are_bounded(self) -> None:
        self.bed.proxy(servers=[self.closed_address() for _ in range(5)])
        client = self.bed.client(self.fakes.get())
        response = client.response()
        self.assertEqual(response.status, 502)
        line = self.bed.logged()
        self.assertEqual((line.attempts, line.cause.value, line.phase.value), (3, "server", "connect"))

    def test_BF_04_an_only_server_that_refuses_is_502_and_not_no_server(self) -> None:
        self.bed.proxy(servers=[self.closed_address()])
        client = self.bed.client(self.fakes.get() * 2)
        self.assertEqual([client.response().status for _ in range(2)], [502, 502])

    def test_without_connect_in_the_list_one_failure_is_final(self) -> None:
        good = self.bed.origin()
        self.bed.proxy(servers=[self.closed_address(), good.address], pool={"retry": {"on": ()}})
        clients = [self.bed.client(self.fakes.get()) for _ in range(2)]
        self.serve(good.accept())
        self.assertEqual(sorted(c.response().status for c in clients), [200, 502])

    def test_BF_01_a_reused_connection_that_dies_is_replaced_by_a_fresh_one(self) -> None:
        f = self.fakes
        for how in ("close", "reset"):
            for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"):
                with self.subTest(how=how, method=method):
                    client, server = self.warm()
                    body = b"body" if method == b"PUT" else b""
                    client.send(f.post(body, method=method))
                    self.assertEqual(server.request().body, body)
                    getattr(server, how)()
                    second = self.bed.origins[-1].accept()
                    request = second.request()
                    self.assertEqual((request.method, request.body), (method, body))
                    second.send(f.answer(b""))
                    self.assertEqual(client.response(method).status, 200)
                    self.assertEqual(dict(self.bed.metrics.retries), {("web", "reused"): 1})
                    client.close()
                    self.bed.log.lines.clear()

    def test_BF_01_a_POST_is_never_sent_twice(self) -> None:
        f = self.fakes
        for how in ("close", "reset"):
            for method in (b"POST", b"PATCH", b"X-OWN"):
                client, server = self.warm()
                client.send(f.post(b"pay", method=method))
                self.assertEqual(server.request().body, b"pay")
                getattr(server, how)()
                self.assertEqual(client.response().status, 502)
                self.assertEqual(self.bed.origins[-1].count, 1)
                self.assertEqual(self.bed.pool.servers[0].failures, 0, "closing an idle connection is a server's good right")
                client.close()

    def test_BF_01_it_is_tried_again_once_only_and_not_on_another_kept_connection(self) -> None:
        f = self.fakes
        origin = self.bed.proxy()
        clients = [self.bed.client(f.get()) for _ in range(3)]
        servers = [origin.accept() for _ in clients]
        for server in servers:
            self.serve(server)
        for client in clients:
            client.response()
        self.assertEqual(self.bed.idle, 3)
        clients[0].send(f.get(b"/x"))
        servers[2].until(lambda: any(s.pump() or s.rest for s in servers), "the request")
        (used,) = [s for s in servers if s.rest]
        used.close()
        fresh = origin.accept()
        self.assertEqual(fresh.request().target, b"/x")
        fresh.close()
        self.assertEqual(clients[0].response().status, 502)
        self.assertEqual(origin.count, 4)

    def test_a_fresh_connection_that_dies_after_the_request_is_502(self) -> None:
        f = self.fakes
        for how in ("close", "reset"):
            client, server = self.bed.start(f.get())
            server.request()
            getattr(server, how)()
            self.assertEqual(client.response().status, 502)
            self.assertEqual(self.bed.origins[-1].count, 1)
            line = self.bed.logged()
            self.assertEqual((line.cause.value, line.phase.value, line.attempts), ("server", "response", 1))
            self.bed.log.lines.clear()
            client.close()

    def test_BF_01_an_upload_of_which_some_is_gone_is_not_replayed(self) -> None:
        f = self.fakes
        client, server = self.warm()
        data = f.post(b"0123456789", method=b"PUT")
        client.send(data[:-5])
        server.head()
        client.send(data[-5:])
        server.take(10)
        server.close()
        self.assertEqual(client.response().status, 502)
        self.assertEqual(self.bed.origins[0].count, 1)

    def test_a_status_is_tried_again_only_where_that_is_wanted(self) -> None:
        f = self.fakes
        for on, count in ((("connect",), 1), (("503",), 2)):
            a, b = self.bed.origin(), self.bed.origin()
            self.bed.proxy(a, b, pool={"retry": {"on": on}})
            client = self.bed.client(f.get())
            server = self.first_of(a, b)
            server.request()
            server.send(f.answer(b"busy", status=b"503 Service Unavailable"))
            if count == 2:
                other = b if server in a.connections else a
                self.serve(other.accept())
            response = client.response()
            self.assertEqual((response.status, response.body), (503, b"busy") if count == 1 else (200, b"ok"))
            client.close()

    def test_where_there_is_no_other_server_the_same_one_is_asked_again_after_a_moment(self) -> None:
        """Each time marked as a further attempt; when the tries are used up the client gets what the server said last."""
        f = self.fakes
        client, server = self.bed.start(f.get(), pool={"retry": {"on": ("502", "504"), "tries": 2}})
        self.assertIsNone(server.request().get(b"X-Retry-Attempt"))
        for attempt in (b"1", b"2"):
            server.send(f.answer(b"late", status=b"504 Gateway Timeout"))
            self.bed.travel(LONGEST_BACK_OFF_S + 0.1)
            server = self.bed.origins[-1].accept()
            self.assertEqual(server.request().get(b"X-Retry-Attempt"), attempt)
        server.send(f.answer(b"last", status=b"504 Gateway Timeout"))
        response = client.response()
        self.assertEqual((response.status, response.body), (504, b"last"))
        self.assertEqual(self.bed.leases, 0)

    def test_retry_after_is_heeded(self) -> None:
        """Not earlier than the server asks for, even of another server; what would take too long is the client's to wait for."""
        f = self.fakes
        for status in (b"503 Service Unavailable", b"429 Too Many Requests"):
            a, b = self.bed.origin(), self.bed.origin()
            self.bed.proxy(a, b, pool={"retry": {"on": ("503", "429")}})
            client = self.bed.client(f.get())
            first = self.first_of(a, b)
            other = b if a.count else a
            first.request()
            first.send(f.answer(b"busy", b"Retry-After: 2", status=status))
            self.bed.travel(1.8)
            self.assertEqual(other.count, 0)
            self.bed.travel(0.4)
            self.serve(other.accept())
            self.assertEqual(client.response().status, 200)
            client.close()
        for asked in (b"6", b"Fri, 31 Dec 2199 23:59:59 GMT", b"soon", b"Sat, 01 Jan 99999 00:00:00 GMT"):
            client, server = self.bed.start(f.get(), pool={"retry": {"on": ("503",)}})
            server.request()
            server.send(f.answer(b"busy", b"Retry-After: " + asked, status=b"503 Service Unavailable"))
            response = client.response()
            self.assertEqual((response.body, response.get(b"Retry-After")), (b"busy", asked))
            client.close()

    def test_a_client_that_leaves_while_retry_after_is_waited_for_is_forgotten(self) -> None:
        f = self.fakes
        client, server = self.bed.start(f.get(), pool={"retry": {"on": ("503",)}})
        server.request()
        server.send(f.answer(b"busy", b"Retry-After: 3", status=b"503 Service Unavailable"))
        server.breaks()
        client.close()
        self.bed.until(lambda: self.bed.log.lines, "the line of the request")
        self.bed.travel(4)
        self.assertEqual((self.bed.origins[-1].count, self.bed.leases), (1, 0))

    def test_somebody_elses_further_attempt_is_not_multiplied(self) -> None:
        """Proxies in a row: only the first asks again for a status."""
        f = self.fakes
        client, server = self.bed.start(f.get(b"/", b"X-Retry-Attempt: 1"), pool={"retry": {"on": ("503",)}})
        self.assertEqual(server.request().get(b"X-Retry-Attempt"), b"1")
        server.send(f.answer(b"busy", status=b"503 Service Unavailable"))
        self.assertEqual(client.response().body, b"busy")

    def test_a_client_s_own_count_of_attempts_is_replaced_and_never_sent_beside_ours(self) -> None:
        """Repeated here since the kept connection was stale: one field goes out, and it is ours. 0 is nobody's repeated attempt."""
        f = self.fakes
        client, server = self.bed.start(f.get())
        self.serve(server)
        self.assertEqual(client.response().status, 200)
        client.send(f.get(b"/", b"X-Retry-Attempt: 7"))
        self.assertEqual(server.request().get(b"X-Retry-Attempt"), b"7")
        server.close()
        server = self.bed.origins[-1].accept()
        self.assertEqual(server.request().get(b"X-Retry-Attempt"), b"1")
        client.close()
        client, server = self.bed.start(f.get(b"/", b"X-Retry-Attempt: 0"), pool={"retry": {"on": ("503",)}})
        server.request()
        server.send(f.answer(b"busy", status=b"503 Service Unavailable"))
        self.bed.travel(LONGEST_BACK_OFF_S + 0.1)
        self.assertEqual(self.bed.origins[-1].accept().request().get(b"X-Retry-Attempt"), b"1")

    def test_a_POST_is_not_tried_again_for_its_status(self) -> None:
        f = self.fakes
        a, b = self.bed.origin(), self.bed.origin()
        self.bed.proxy(a, b, pool={"retry": {"on": ("503",)}})
        client = self.bed.client(f.post(b"pay"))
        server = self.first_of(a, b)
        server.request()
        server.send(f.answer(b"busy", status=b"503 Service Unavailable"))
        self.assertEqual(client.response().body, b"busy")
        self.assertEqual(a.count + b.count, 1)

    def first_of(self, *origins: Any) -> Any:
        self.bed.until(lambda: any(o.pump() or o.connections for o in origins), "a connection to one of the servers")
        return next(o.accept() for o in origins if o.connections)

    def test_a_time_out_is_tried_again_only_where_that_is_wanted(self) -> None:
        f = self.fakes
        for on in (("connect", "reused"), ("timeout",)):
            a, b = self.bed.origin(), self.bed.origin()
            self.bed.proxy(a, b, pool={"retry": {"on": on}}, timeouts=Timeouts(response_head_s=2.0))
            client = self.bed.client(f.get())
            server = self.first_of(a, b)
            server.request()
            self.bed.travel(2.5)
            if on == ("timeout",):
                self.serve((b if server in a.connections else a).accept())
                self.assertEqual(client.response().status, 200)
            else:
                self.assertEqual(client.response().status, 504)
            server.breaks()
            client.close()

    def test_BF_06_retries_stay_within_the_budget(self) -> None:
        f = self.fakes
        bad = [self.bed.origin() for _ in range(2)]
        self.bed.proxy(*bad, pool={"retry": {"on": ("timeout",), "budget": 0.2}}, timeouts=Timeouts(response_head_s=2.0))
        clients = [self.bed.client(f.get()) for _ in range(20)]
        self.bed.until(lambda: sum(o.count for o in bad) == 20)
        self.bed.travel(10)
        self.assertEqual({c.response().status for c in clients}, {504})
        self.assertLessEqual(sum(o.count for o in bad), 20 * 1.3)
        self.assertGreater(sum(o.count for o in bad), 20)

    def test_P8_a_black_hole_is_given_up_for_another_server(self) -> None:
        f = self.fakes
        hole = self.bed.black_hole()
        good = self.bed.origin()
        self.bed.proxy(servers=[hole, good.address], timeouts=Timeouts(connect_s=3.0))
        clients = [self.bed.client(f.get()) for _ in range(2)]
        server = good.accept()
        self.serve(server)
        self.bed.travel(2.5)
        self.assertTrue(server.is_silent())
        self.bed.travel(0.7)
        self.serve(server)
        for client in clients:
            self.assertEqual(client.response().status, 200)
