"""The states of a connection."""

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.net.sides import TRANSITIONS, State


class Table(SynchronousTestCase):
    def test_every_state_is_in_it_and_only_closed_is_the_end(self):
        self.assertEqual(set(TRANSITIONS), set(State))
        for state, after in TRANSITIONS.items():
            self.assertEqual(state is State.CLOSED, not after)

    def test_closed_can_be_reached_from_everywhere_and_nothing_comes_twice(self):
        for state, after in TRANSITIONS.items():
            self.assertNotIn(state, after)
            if state is not State.CLOSED:
                self.assertIn(State.CLOSED, after)
