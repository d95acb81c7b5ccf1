"""The state directory: private, and never two masters on it (faults: LC-12)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.errors import Problem
from twistedproxy.supervisor.state_dir import StateDir, open_state_dir


class StateDirTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "a", "state")

    def opened(self) -> StateDir:
        state = open_state_dir(self.path)
        assert isinstance(state, StateDir), state
        return state

    def test_it_is_made_for_us_alone(self) -> None:
        state = self.opened()
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o700)
        self.assertFalse(state.was_unclean)
        state.release()

    def test_a_second_instance_is_refused_and_told_who_has_it(self) -> None:
        state = self.opened()
        second = open_state_dir(self.path)
        assert isinstance(second, Problem)
        self.assertIn(f"process {os.getpid()}", second.message)
        state.release()
        self.opened().release()

    def test_the_next_instance_may_have_it_before_the_last_one_has_ended(self) -> None:
        """It is told to be patient about ports, and the end of the old one takes nothing from it."""
        old = self.opened()
        old.hand_over()
        new = self.opened()
        self.assertTrue(new.was_unclean)
        old.release()
        self.assertEqual(Path(self.path, "lock").read_text(), f"{os.getpid()}\n")
        self.assertIsInstance(open_state_dir(self.path), Problem)
        new.hand_over()
        new.release()
        self.assertEqual(Path(self.path, "lock").read_text(), "")

    def test_an_unclean_end_is_noticed(self) -> None:
        os.makedirs(self.path)
        Path(self.path, "lock").write_text("4711\n")
        state = self.opened()
        self.assertTrue(state.was_unclean)
        state.release()
        again = self.opened()
        self.assertFalse(again.was_unclean)
        again.release()

    def test_a_world_writable_directory_is_refused_lc_13(self) -> None:
        os.makedirs(self.path)
        os.chmod(self.path, 0o777)
        problem = open_state_dir(self.path)
        assert isinstance(problem, Problem)
        self.assertIn("chmod o-w", problem.message)

    def test_a_path_that_cannot_be_a_directory_is_explained(self) -> None:
        problem = open_state_dir("/dev/null/state")
        assert isinstance(problem, Problem)
        self.assertIn("/dev/null/state", problem.message)
