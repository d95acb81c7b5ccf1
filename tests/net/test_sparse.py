"""A stranger cannot flood the log."""

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net.sparse import SparseLog


class Sparse(SynchronousTestCase):
    def setUp(self):
        self.events = []
        self.now = 100.0
        self.log = SparseLog(Logger(namespace="test", observer=self.events.append), lambda: self.now, every_s=60.0)

    def test_one_line_a_minute_with_a_count_of_those_left_out(self):
        for _ in range(1000):
            self.log.warn("no descriptors: {error}", error="x")
        self.assertEqual(len(self.events), 1)
        self.now += 61
        self.log.warn("no descriptors: {error}", error="x")
        self.assertEqual(len(self.events), 2)
        self.assertIn("999 more", self.events[1]["log_format"])
        self.now += 61
        self.log.warn("no descriptors: {error}", error="x")
        self.assertNotIn("more", self.events[2]["log_format"])

    def test_a_failure_comes_with_its_traceback(self):
        try:
            raise ValueError("bug")
        except ValueError:
            self.log.failure("it failed")
        self.assertEqual(self.events[0]["log_failure"].value.args, ("bug",))
