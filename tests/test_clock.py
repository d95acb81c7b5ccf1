"""The timer wheel against the simplest thing that could be right."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.clock import LOOK_S, NEVER, TICK_S, Timed, Wheel

START = 1000.0


class Recorder(Timed):
    """Notes when its deadline was said to have passed; `then` is what its owner does about it."""

    __slots__ = ("name", "passed", "then")

    def __init__(self, name=0, then=None):
        super().__init__()
        self.name = name
        self.passed = []
        self.then = then

    def deadline_passed(self, now):
        self.passed.append(now)
        if self.then is not None:
            self.then(now)


class Clocked:
    """A wheel and the clock it reads."""

    def __init__(self, start=START):
        self.now = start
        self.wheel = Wheel(lambda: self.now)

    def run(self, seconds, step=TICK_S):
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.wheel.advance(self.now)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), st.integers(0, 4), st.floats(-1, 12, allow_nan=False)),
        st.tuples(st.just("arm on a tick"), st.integers(0, 4), st.integers(0, 120)),
        st.tuples(st.just("disarm"), st.integers(0, 4)),
        st.tuples(st.just("never"), st.integers(0, 4)),
        st.tuples(st.just("advance"), st.floats(0, 0.2, allow_nan=False)),
        st.tuples(st.just("sleep"), st.floats(0, 30, allow_nan=False)),
    ),
    max_size=80,
)


class ModelTests(SynchronousTestCase):
    @settings(max_examples=400, deadline=None)
    @given(STEPS, st.floats(0, 1e7, allow_nan=False))
    def test_deadlines_are_never_early_never_lost_and_late_by_two_ticks_at_most(self, steps, start):
        clocked = Clocked(start)
        objects = [Recorder(i) for i in range(5)]
        armed = {}  # name -> deadline
        for action, *arguments in steps:
            if action in ("advance", "sleep"):
                clocked.now += arguments[0]
                clocked.wheel.advance(clocked.now)
                for timed in objects:
                    deadline = armed.get(timed.name, NEVER)
                    if timed.passed:
                        self.assertEqual(timed.passed, [clocked.now])
                        self.assertLessEqual(deadline, clocked.now, "early, or without being armed")
                        del armed[timed.name]
                        timed.passed.clear()
                    else:
                        self.assertGreater(deadline, clocked.now - 2 * TICK_S - 1e-6, "late")
                continue
            timed = objects[arguments[0]]
            if action == "disarm":
                clocked.wheel.disarm(timed)
                armed.pop(timed.name, None)
            elif action == "never":
                clocked.wheel.arm(timed, NEVER)
                armed.pop(timed.name, None)
            else:
                delay = arguments[1] * TICK_S if action == "arm on a tick" else arguments[1]
                deadline = int(clocked.now / TICK_S) * TICK_S + delay if action == "arm on a tick" else clocked.now + delay
                # A deadline in the past counts from the moment it is set.
                clocked.wheel.arm(timed, deadline)
                armed[timed.name] = max(deadline, clocked.now)
        clocked.run(15, step=1.0)
        for timed in objects:
            self.assertEqual(len(timed.passed), 1 if timed.name in armed else 0)
        clocked.run(LOOK_S + 1)
        self.assertEqual(len(clocked.wheel), 0, "the wheel holds on to objects nobody armed")


class WheelTests(SynchronousTestCase):
    def test_a_deadline_passes_once(self):
        clocked, timed = Clocked(), Recorder()
        clocked.wheel.arm(timed, START + 1)
        clocked.run(0.9)
        self.assertEqual(timed.passed, [])
        clocked.run(10)
        self.assertEqual(len(timed.passed), 1)
        self.assertLessEqual(timed.passed[0], START + 1 + 2 * TICK_S + 1e-6)

    def test_moving_a_deadline_away_costs_no_insertion(self):
        clocked, timed = Clocked(), Recorder()
        clocked.wheel.arm(timed, START + 10)
        clocked.wheel._insert = None  # any insertion would now fail
        for i in range(100):
            clocked.wheel.arm(timed, START + 10 + i)

    def test_a_deadline_far_away_then_near_passes_near(self):
        clocked, timed = Clocked(), Recorder()
        clocked.wheel.arm(timed, START + 3600)
        clocked.wheel.arm(timed, START + 0.5)
        clocked.run(1)
        self.assertEqual(len(timed.passed), 1)
        clocked.run(3700, step=0.5)
        self.assertEqual(len(timed.passed), 1)

    def test_an_owner_may_arm_again_within_the_call_even_in_the_past(self):
        clocked = Clocked()
        timed = Recorder()
        timed.then = lambda now: clocked.wheel.arm(timed, now - 1) if len(timed.passed) < 3 else None
        clocked.wheel.arm(timed, START)
        clocked.run(1)
        self.assertEqual(len(timed.passed), 3)
        self.assertEqual(len(set(timed.passed)), 3, "not in the same turn, or an owner could hang the worker")

    def test_an_owner_may_disarm_another_that_is_due_in_the_same_turn(self):
        clocked = Clocked()
        first, second = Recorder(), Recorder()
        first.then = lambda now: clocked.wheel.disarm(second)
        second.then = lambda now: clocked.wheel.disarm(first)
        for timed in (first, second):
            clocked.wheel.arm(timed, START + 0.5)
        clocked.run(5)
        self.assertEqual(len(first.passed) + len(second.passed), 1)

    def test_an_owner_may_postpone_another_that_is_due_in_the_same_turn(self):
        clocked = Clocked()
        first, second = Recorder(), Recorder()
        first.then = lambda now: None if second.passed else clocked.wheel.arm(second, START + 7)
        second.then = lambda now: None if first.passed else clocked.wheel.arm(first, START + 7)
        for timed in (first, second):
            clocked.wheel.arm(timed, START + 0.5)
        clocked.run(6.5)
        self.assertEqual(len(first.passed) + len(second.passed), 1)
        clocked.run(1)
        self.assertEqual(len(first.passed) + len(second.passed), 2)

    def test_a_bug_in_one_owner_is_logged_and_costs_no_other_owner_its_deadline(self):
        clocked = Clocked()

        def broken(now):
            raise RuntimeError("a bug")

        many = [Recorder(i, broken if i % 2 else None) for i in range(20)]
        for i, timed in enumerate(many):
            clocked.wheel.arm(timed, START + 0.5 + (i % 4) * TICK_S)
        clocked.run(2)
        self.assertEqual([len(t.passed) for t in many], [1] * 20)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 10)
        for timed in many:
            timed.then = None
            clocked.wheel.arm(timed, clocked.now + 1)
        clocked.run(2)
        self.assertEqual([len(t.passed) for t in many], [2] * 20)

    def test_a_deadline_of_never_is_no_deadline(self):
        clocked, timed = Clocked(), Recorder()
        clocked.wheel.arm(timed, NEVER)
        self.assertEqual(len(clocked.wheel), 0)
        clocked.wheel.arm(timed, START + 1)
        clocked.wheel.arm(timed, NEVER)
        clocked.run(10)
        self.assertEqual(timed.passed, [])

    def test_a_worker_that_was_stopped_for_an_hour_catches_up_in_one_turn(self):
        clocked = Clocked()
        many = [Recorder(i) for i in range(100)]
        for i, timed in enumerate(many):
            clocked.wheel.arm(timed, START + i)
        clocked.now += 3600
        clocked.wheel.advance(clocked.now)
        clocked.wheel.advance(clocked.now)
        self.assertEqual([t.passed for t in many], [[clocked.now]] * 100)

    def test_a_disarmed_object_is_let_go_of(self):
        clocked, timed = Clocked(), Recorder()
        clocked.wheel.arm(timed, START + 3600)
        clocked.wheel.disarm(timed)
        clocked.run(LOOK_S + TICK_S * 2)
        self.assertEqual(len(clocked.wheel), 0)
        self.assertEqual(clocked.wheel._buckets, {})

    def test_an_object_that_says_nothing_of_its_deadline_is_a_mistake(self):
        with self.assertRaises(NotImplementedError):
            Timed().deadline_passed(0.0)
