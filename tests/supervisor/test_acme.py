"""When automatic certificates are ordered, kept, renewed and tried again; the authority is a function here."""

from __future__ import annotations

import os
import threading
import time

import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import ChallengeSet
from twistedproxy.config.model import Acme, Certificates, Model, Site, SiteTls
from twistedproxy.supervisor.acme import SOON_S, AutomaticCertificates
from twistedproxy.supervisor.acme_client import Issued, NotIssued, Suggestion

DAY_S = 86400.0


class Automatic(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority, tmp_path):
        self.authority = authority
        self.state = tmp_path / "state"

    def setUp(self):
        self.clock = Clock()
        self.clock.callFromThread = lambda call, *a: self.calls.append((call, a))
        self.calls, self.read, self.challenges, self.orders, self.asked = [], [], [], [], []
        self.answer = None
        self.advice = None
        self.skipped_s = 0.0
        self.draw = 0.5

    def wall(self):
        return time.time() + self.skipped_s

    def order(self, settings, account_file, hosts, publish):
        self.orders.append(hosts)
        self.ordered_from = (settings, account_file)
        publish(ChallengeSet("token", "answer"))
        publish(ChallengeSet("token", ""))
        if isinstance(self.answer, Exception):
            raise self.answer
        today = self.skipped_s / DAY_S
        made = self.authority.make(f"issued{len(self.orders)}", tuple(hosts), begins=today, ends=today + 60)
        return Issued(made.chain_pem, made.key_pem)

    def ask(self, settings, chain):
        self.asked.append(chain)
        if isinstance(self.advice, Exception):
            raise self.advice
        return Suggestion(self.advice, self.wall() + 6 * 3600)

    def start(self, *hosts):
        automatic = AutomaticCertificates(
            self.clock, self.read.append, self.challenges.append,
            wall=self.wall, order=self.order, draw=lambda: self.draw, ask=self.ask,
        )  # fmt: skip
        automatic.update(self.model(*hosts))
        self.addCleanup(automatic.stop)
        return automatic

    def model(self, *hosts, directory=""):
        site = Site(hosts[0], hosts, tls=SiteTls("auto", directory=directory))
        certificates = Certificates(directories={"staging": Acme("https://staging.example/dir", challenge="tls-alpn-01")})
        return Model(state_dir=str(self.state), sites={site.name: site}, certificates=certificates)

    def run_order(self, seconds=SOON_S):
        """Let the time for an order come, and its thread end."""
        self.clock.advance(seconds)
        for thread in threading.enumerate():
            if thread.name == "acme":
                thread.join(10)
        calls, self.calls = self.calls, []
        for call, arguments in calls:
            call(*arguments)

    def test_from_nothing_to_a_certificate(self):
        """A placeholder at once, the real one after; the challenge comes and goes; what is kept is 0600 and used after a restart."""
        automatic = self.start("a.example", "www.a.example")
        self.assertTrue(automatic.views[0].is_placeholder)
        self.assertEqual((self.read[0].cert, self.read[0].key), ("auto", "a.example"))
        self.run_order()
        self.assertEqual(self.challenges, [ChallengeSet("token", "answer"), ChallengeSet("token", "")])
        self.assertFalse(automatic.views[0].is_placeholder)
        self.assertEqual(automatic.views[0].names, ("a.example", "www.a.example"))
        file = self.state / "acme" / "a.example.pem"
        self.assertEqual(os.stat(file).st_mode & 0o777, 0o600)
        again = self.start("a.example", "www.a.example")
        self.assertFalse(again.views[0].is_placeholder)
        self.run_order()
        self.assertEqual(len(self.orders), 1)

    def test_while_another_supervisor_orders_nothing_is_and_what_that_one_got_is_used(self):
        """In an upgrade: the authority would ask workers that know nothing of our order."""
        new = self.start("a.example")
        new.hold()
        new.update(self.model("a.example"))
        self.run_order(3600)
        self.assertEqual((self.orders, new.views[0].is_placeholder), ([], True))
        self.start("a.example")
        self.run_order()
        self.assertEqual(len(self.orders), 1)
        new.go_on(self.model("a.example"))
        self.assertFalse(new.views[0].is_placeholder)
        self.run_order(3600)
        self.assertEqual(len(self.orders), 1)

    def test_it_is_renewed_at_two_thirds_of_its_life(self):
        """A little earlier by chance, never later: many certificates made at once are not renewed at once."""
        for self.draw, last_day_without, first_day_with in ((0.0, 39.9, 40.1), (0.999, 37.9, 38.1)):  # of 60 days
            self.skipped_s = 0.0
            self.orders.clear()
            host = f"a{first_day_with}.example"
            self.start(host)
            self.run_order()
            for days, orders in ((last_day_without, 1), (first_day_with, 2)):
                self.skipped_s = days * DAY_S
                self.run_order(3600)
                self.run_order(3600)
                self.assertEqual(self.orders.count((host,)), orders, (self.draw, days))

    def test_or_when_the_authority_suggests_it(self):
        """ARI: asked at once, then as often as it says, also after a restart; its advice may come at any time."""
        automatic = self.start("a.example")
        self.run_order()
        self.run_order()
        self.assertEqual(self.asked, [automatic._sites["a.example"].chain])
        automatic.stop()
        self.start("a.example")
        self.run_order()
        self.assertEqual(len(self.asked), 2)
        self.skipped_s = 5 * DAY_S
        self.advice = self.wall() + 3 * DAY_S
        self.run_order(3600)
        self.assertEqual((len(self.asked), len(self.orders)), (3, 1))
        self.skipped_s += 3.1 * DAY_S
        self.run_order(3600)
        self.assertEqual(len(self.orders), 2)

    def test_advice_that_is_always_now_does_not_make_it_order_without_end(self):
        """And an authority that cannot be asked, or is wrong, puts off nothing."""
        automatic = self.start("a.example")
        self.advice = 1.0
        self.run_order()
        for _ in range(11):
            self.skipped_s += 3600
            self.run_order(3600)
            self.run_order(3600)
        self.assertEqual(len(self.orders), 2)
        self.advice = ValueError("no")
        self.skipped_s += 41 * DAY_S
        self.run_order(3600)
        self.run_order(3600)
        self.assertEqual(len(self.orders), 3)
        self.assertFalse(automatic.views[0].is_placeholder)

    def test_another_authority_is_asked_for_a_new_one_by_an_account_of_its_own(self):
        """The old certificate serves until then; the new one is known for whose it is after a restart."""
        automatic = self.start("a.example")
        self.run_order()
        first = self.ordered_from
        automatic.update(self.model("a.example", directory="staging"))
        self.assertFalse(automatic.views[0].is_placeholder)
        self.run_order()
        settings, account_file = self.ordered_from
        self.assertEqual((settings.directory, settings.challenge), ("https://staging.example/dir", "tls-alpn-01"))
        self.assertNotEqual(account_file, first[1])
        automatic.stop()
        again = self.start("a.example")
        self.run_order()
        self.assertEqual(len(self.orders), 3)
        again.update(self.model("a.example"))
        self.run_order()
        self.assertEqual(len(self.orders), 3)

    def test_one_order_at_a_time_for_each_name(self):
        """Whatever is reloaded meanwhile, and however many workers there are: they never order."""
        automatic = self.start("a.example")
        gate = threading.Event()
        self.addCleanup(gate.set)
        order = self.order

        def slow(*arguments):
            gate.wait(10)
            return order(*arguments)

        automatic._order = slow
        self.clock.advance(SOON_S)
        for _ in range(5):
            automatic.update(self.model("a.example"))
            self.clock.advance(3600)
        self.assertEqual(len([thread for thread in threading.enumerate() if thread.name == "acme"]), 1)
        gate.set()
        self.run_order()
        self.assertEqual(self.orders, [("a.example",)])

    def test_failures_are_tried_again_ever_more_slowly(self):
        self.answer = NotIssued("a.example: no A record")
        automatic = self.start("a.example")
        self.run_order()
        waits = []
        for _ in range(12):
            site = automatic._sites["a.example"]
            waits.append(site.due - self.wall())
            self.skipped_s += waits[-1] + 1
            self.run_order(max(waits[-1] + 1, 1))
        self.assertEqual([round(wait / 60) for wait in waits[:4]], [1, 2, 4, 8])
        self.assertLess(max(waits), 6 * 3600 * 1.1)
        self.assertTrue(automatic.views[0].is_placeholder)
        self.flushLoggedErrors()

    def test_new_names_are_ordered_and_the_old_certificate_serves_meanwhile(self):
        automatic = self.start("a.example")
        self.run_order()
        automatic.update(self.model("a.example", "b.example"))
        self.assertFalse(automatic.views[0].is_placeholder)
        self.run_order()
        self.assertEqual(self.orders[-1], ("a.example", "b.example"))

    def test_a_site_that_is_gone_is_ordered_no_more(self):
        automatic = self.start("a.example")
        self.assertEqual(automatic.update(Model(state_dir=str(self.state))), [("auto", "a.example")])
        self.run_order()
        self.assertEqual((self.orders, automatic.views), ([], ()))
