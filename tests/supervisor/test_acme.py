"""When automatic certificates are ordered, kept, renewed and tried again; the authority is a function here."""

from __future__ import annotations

import os
import threading
import time

import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import ChallengeSet
from twistedproxy.config.model import Model, Site, SiteTls
from twistedproxy.supervisor.acme import SOON_S, AutomaticCertificates
from twistedproxy.supervisor.acme_client import Issued, NotIssued

DAY_S = 86400.0


class Automatic(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority, tmp_path):
        self.authority = authority
        self.state = tmp_path / "state"

    def setUp(self):
        self.clock = Clock()
        self.clock.callFromThread = lambda call, *a: self.calls.append((call, a))
        self.calls, self.read, self.challenges, self.orders = [], [], [], []
        self.answer = None
        self.skipped_s = 0.0

    def wall(self):
        return time.time() + self.skipped_s

    def order(self, settings, account_file, hosts, publish):
        self.orders.append(hosts)
        publish("token", "answer")
        publish("token", "")
        if isinstance(self.answer, Exception):
            raise self.answer
        made = self.authority.make(f"issued{len(self.orders)}", tuple(hosts))
        return Issued(made.chain_pem, made.key_pem, self.answer)

    def start(self, *hosts):
        automatic = AutomaticCertificates(
            self.clock, self.read.append, self.challenges.append, wall=self.wall, order=self.order, draw=lambda: 0.5
        )
        automatic.update(self.model(*hosts))
        self.addCleanup(automatic.stop)
        return automatic

    def model(self, *hosts):
        site = Site(hosts[0], hosts, tls=SiteTls("auto"))
        return Model(state_dir=str(self.state), sites={site.name: site})

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

    def test_it_is_renewed_at_two_thirds_of_its_life(self):
        self.start("a.example")
        self.run_order()
        self.skipped_s = 37 * DAY_S  # of 61 days, counted from a day ago
        self.run_order(3600)
        self.assertEqual(len(self.orders), 1)
        self.skipped_s = 41 * DAY_S
        self.run_order(3600)
        self.assertEqual(len(self.orders), 2)

    def test_or_when_the_authority_suggests_it(self):
        self.answer = time.time() + 5 * DAY_S
        self.start("a.example")
        self.run_order()
        self.skipped_s = 6 * DAY_S
        self.run_order(3600)
        self.assertEqual(len(self.orders), 2)

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
