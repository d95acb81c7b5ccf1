"""The figure that tells an overloaded event loop from a busy one."""

import os

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net.pulse import Pulse


class PulseTests(SynchronousTestCase):
    def setUp(self):
        self.pulse = Pulse(self.loop.reactor)
        self.addCleanup(self.pulse.stop)
        self.skipped = 0.0
        real = self.loop.reactor.seconds
        self.loop.reactor.seconds = lambda: real() + self.skipped

    def test_at_rest_a_beat_is_seen_at_once(self):
        self.pulse.beat()
        self.loop.turns(2)
        self.assertLess(self.pulse.take_longest(), 1.0)
        self.assertEqual(self.pulse.take_longest(), 0.0)

    def test_a_beat_that_waits_is_told_while_it_waits_and_afterwards(self):
        self.pulse.beat()
        self.skipped = 3.0
        self.assertGreaterEqual(self.pulse.take_longest(), 3.0)
        self.pulse.beat()  # one is on its way already
        self.loop.turns(2)
        self.assertGreaterEqual(self.pulse.take_longest(), 3.0)
        self.assertEqual(self.pulse.take_longest(), 0.0)

    def test_stopped_it_holds_no_descriptor_and_a_beat_does_nothing(self):
        descriptor = self.pulse.fileno()
        self.pulse.stop()
        self.pulse.beat()
        self.pulse.stop()
        self.assertRaises(OSError, os.fstat, descriptor)
