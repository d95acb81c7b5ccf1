"""What operators do, over a supervisor without workers: refused whole or done whole, undone, confirmed, previewed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import AddServer, Batch, RemoveServer, SetState, SetWeight
from twistedproxy.config.control import Applied, Terms
from twistedproxy.config.model import Address, AdminState, Model, Server
from twistedproxy.errors import ChangeRefused, ConfigurationError, Problem
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.balancers import stable_hash
from twistedproxy.supervisor.configuration import ConfigurationFile
from twistedproxy.supervisor.journal import Journal
from twistedproxy.supervisor.operations import Operations
from twistedproxy.supervisor.sockets import Wanted

A, B, C = (Address(f"10.0.0.{n}:80") for n in (1, 2, 3))
TEXT = f"""
[listen]
http = ["127.0.0.1:8080"]
[workers]
count = 2
[pools.web]
servers = ["{A} weight=3", "{B}"]
[sites."*"]
"/" = "web"
"""
BY = Terms("eve", "why")
T = TypeVar("T")


class Staged:
    def __init__(self) -> None:
        self.fate = ""

    def abandon(self) -> None:
        self.fate = "abandoned"


class Plane:
    """The supervisor's place, all workers acknowledging at once."""

    is_stopping = False

    def __init__(self, model: Model, revision: int) -> None:
        self.model, self.revision = model, revision
        self.commits: list[Any] = []
        self.staged: list[Staged] = []
        self.problems: list[Problem] = []
        self.told: list[str] = []
        self.metrics = Metrics()

    def stage(self, wanted: Sequence[Wanted], slots: int) -> Any:
        self.staged.append(Staged())
        return self.problems or self.staged[-1]

    def replace_listeners(self, staged: Any, slots: int) -> Callable[[], None]:
        staged.fate = "committed"
        return lambda: setattr(staged, "fate", f"{slots} know")

    def commit(self, model: Model, revision: int, change: Mapping[str, Any] | None) -> Deferred[tuple[int, list[int]]]:
        self.model, self.revision = model, revision
        self.commits.append(change)
        return succeed((2, []))

    def publish(self, kind: str, data: Mapping[str, Any]) -> None:
        self.told.append(kind)

    def unresolved(self) -> frozenset[tuple[str, str]]:
        return frozenset()

    def health(self) -> Any:
        return {}, frozenset()

    def statistics(self) -> Mapping[str, Any]:
        return self.metrics.to_plain()

    def ask_workers(self, asked: Mapping[str, Any]) -> Deferred[list[Any]]:
        """Two workers that both saw the keys 0 to 199."""
        assert asked["ask"] == "keys"
        return succeed([{name: [[stable_hash(b"%d" % n), 1] for n in range(200)] for name in asked["pools"]}] * 2)


def full_disk(journal: Journal, line: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class OperationsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name, "revproxy.toml")
        self.path.write_text(TEXT)
        self.clock = Clock()
        self.now = 1_800_000_000.0
        self.start()

    def start(self) -> None:
        def at_once(work: Callable[[], None]) -> Deferred[None]:
            work()
            return succeed(None)

        self.journal = Journal(str(self.path.with_name("journal.jsonl")), at_once, lambda: self.now + self.clock.seconds())
        self.addCleanup(self.journal.close)
        file = ConfigurationFile(str(self.path), lambda: 100_000)
        current = file.read()
        replayed = self.journal.replay(current.model, current.text)
        self.plane = Plane(replayed.model, replayed.revision)
        self.operations = Operations(
            self.clock, self.plane, self.journal, lambda: self.now + self.clock.seconds(), file, current, maybeDeferred
        )
        self.operations.start()

    def restart(self) -> None:
        self.operations.stop()
        self.journal.close()
        self.start()

    def done(self, work: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def refused(self, work: Coroutine[Any, Any, Any], status: int) -> str:
        error = self.failureResultOf(Deferred.fromCoroutine(work), ChangeRefused).value
        self.assertEqual(error.status, status, error.message)
        return str(error.message)

    def apply(self, change: Any, **terms: Any) -> Applied:
        return self.done(self.operations.apply(change, replace(BY, **terms)))

    def weights(self) -> list[int]:
        return [s.weight_now for s in self.plane.model.pools["web"].servers]

    def edit(self, old: str, new: str) -> None:
        text = self.path.read_text()
        self.assertIn(old, text)
        self.path.write_text(text.replace(old, new))

    def reload(self, **terms: Any) -> Applied:
        return self.done(self.operations.reload(replace(BY, **terms)))


class ChangeTests(OperationsTestCase):
    def test_what_is_in_force_already_takes_no_revision(self) -> None:
        """So it does not stand in the way of undoing the change that did set it, and the file may still say so live."""
        self.apply(SetWeight("web", A, 9))
        again = self.apply(SetWeight("web", A, 9), confirm_within_s=60.0)
        self.assertEqual((again.revision, again.notes, again.confirm_by), (1, ("it is in force already",), None))
        self.assertEqual(len(self.journal.entries()), 1)
        self.assertEqual(self.done(self.operations.undo(1, BY)).revision, 2)
        self.assertEqual(self.weights(), [3, 1])
        self.assertEqual(self.apply(SetWeight("web", A, 3)).revision, 3)

    def test_the_last_server_of_a_pool_stays(self) -> None:
        """A file without one is refused, so a live change is too; the refusal says what to do instead."""
        self.apply(RemoveServer("web", B))
        why = self.refused(self.operations.apply(RemoveServer("web", A), BY), 409)
        self.assertIn("drain it or set it to maint instead", why)
        self.assertEqual((self.plane.revision, len(self.weights())), (1, 1))


class ReloadTests(OperationsTestCase):
    def test_the_file_is_in_force_and_live_values_stay(self) -> None:
        self.apply(SetWeight("web", B, 7))
        self.edit("weight=3", "weight=5")
        answer = self.reload()
        self.assertEqual((answer.revision, answer.acked, answer.superseded), (2, 2, ()))
        self.assertEqual(self.weights(), [5, 7])
        self.assertEqual((self.plane.staged[-1].fate, self.plane.commits[-1]), ("2 know", None))
        said = [f"pools.web.servers: removed {A} weight=3", f"pools.web.servers: added {A} weight=5"]
        self.assertEqual(self.journal.entries()[-1].change["changes"], said)

    def test_a_value_that_the_file_changed_is_the_file_s_for_good(self) -> None:
        self.apply(SetWeight("web", A, 7))
        self.edit("weight=3", "weight=5")
        self.assertEqual(len(self.reload().superseded), 1)
        self.edit("weight=5", "weight=3")
        self.reload()
        self.assertEqual(self.weights(), [3, 1])
        self.restart()
        self.assertEqual(self.weights(), [3, 1])

    def test_a_broken_file_changes_nothing_p16(self) -> None:
        self.edit('"/" = "web"', '"/" = "nowhere"')
        self.failureResultOf(Deferred.fromCoroutine(self.operations.reload(BY)), ConfigurationError)
        self.assertEqual((self.plane.commits, self.journal.entries(), self.operations.reloads["refused"]), ([], [], 1))

    def test_a_port_that_is_taken_changes_nothing(self) -> None:
        self.plane.problems = [Problem("listen.http[0]", "taken")]
        self.edit("8080", "8081")
        error = self.failureResultOf(Deferred.fromCoroutine(self.operations.reload(BY)), ConfigurationError).value
        self.assertEqual(error.problems[0].file, str(self.path))
        self.assertEqual((self.plane.commits, self.journal.entries()), ([], []))

    def test_a_journal_that_cannot_be_written_lets_go_of_the_new_sockets(self) -> None:
        self.edit("8080", "8081")
        self.patch(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        self.refused(self.operations.reload(BY), 503)
        self.assertEqual((self.plane.staged[-1].fate, self.plane.commits), ("abandoned", []))

    def test_a_key_without_effect_is_noted(self) -> None:
        self.edit('"/" = "web"', 'timeouts = { keepalive = "5s" }\n"/" = "web"')
        for _ in range(2):
            self.assertRegex(self.reload().notes[0], r"keepalive: has no effect here: .* set it in \[timeouts\]$")

    def test_the_same_file_again_is_no_revision(self) -> None:
        answer = self.reload()
        self.assertEqual((answer.revision, self.plane.commits, len(answer.notes)), (0, [], 1))

    def test_a_preview_says_all_and_does_nothing(self) -> None:
        self.edit("weight=3", "weight=1")
        preview = self.reload(is_preview=True).preview
        assert preview is not None
        self.assertEqual([(s.server, s.before, s.after) for s in preview.shares], [(A, 0.75, 0.5), (B, 0.25, 0.5)])
        self.assertEqual((self.plane.commits, self.plane.staged[-1].fate), ([], "abandoned"))

    def test_a_preview_of_a_pool_by_keys_replays_the_recorded_requests(self) -> None:
        """How many of them would go to another server: counted with the real balancer, and no other pool is asked."""
        self.assertEqual(self.apply(SetWeight("web", A, 1), is_preview=True).preview.replays, ())  # type: ignore[union-attr]
        self.edit("[pools.web]", '[pools.web]\nbalance = "source_ip"')
        self.reload()
        preview = self.apply(SetWeight("web", A, 0), is_preview=True).preview
        assert preview is not None
        (replay,) = preview.replays
        share = next(share for share in preview.shares if share.server == A)
        self.assertEqual((replay.pool, replay.requests, share.after), ("web", 400, 0.0))
        self.assertApproximates(share.before, 0.75, 0.1)
        self.assertEqual(replay.moved, share.before)
        self.assertEqual(self.weights(), [3, 1])

    def test_an_edit_made_while_we_were_down_is_in_the_journal(self) -> None:
        self.apply(SetWeight("web", B, 7))
        self.edit("weight=3", "weight=5")
        self.restart()
        last = self.journal.entries()[-1]
        self.assertEqual((last.by, last.change["kind"], self.weights()), ("start", "replace_config", [5, 7]))
        self.assertEqual([self.weights_at(n) for n in (0, 1, 2)], [[f"{A} weight=3", B], [f"{A} weight=3", 7], [f"{A} weight=5", 7]])

    def weights_at(self, revision: int) -> list[Any]:
        then = self.done(self.operations.configuration_at(revision))
        return [s["weight"] if isinstance(s, dict) else s for s in then["pools"]["web"]["servers"]]

    def test_a_revision_that_never_was_is_404(self) -> None:
        self.refused(self.operations.configuration_at(5), 404)


class UndoTests(OperationsTestCase):
    def test_each_kind_of_change_is_taken_back(self) -> None:
        before = self.plane.model
        for change in (
            SetWeight("web", A, 9),
            SetState("web", A, AdminState.DRAIN),
            AddServer("web", Server(C)),
            Batch((SetWeight("web", A, 2), SetState("web", B, AdminState.MAINT))),
        ):
            revision = self.apply(change).revision
            undone = self.done(self.operations.undo(revision, BY))
            self.assertEqual(self.plane.model, before)
            self.assertEqual(self.journal.entries(revision - 1)[0].undone_by, undone.revision)
        revision = self.apply(RemoveServer("web", A)).revision
        self.done(self.operations.undo(revision, BY))
        self.assertEqual(sorted(self.weights()), [1, 3])
        self.restart()
        self.assertEqual(sorted(self.weights()), [1, 3])

    def test_what_a_later_change_touched_is_409_until_that_is_undone(self) -> None:
        first, second = self.apply(SetWeight("web", A, 5)).revision, self.apply(SetWeight("web", A, 7)).revision
        self.apply(SetWeight("web", B, 2))
        self.assertIn(f"revision {second}", self.refused(self.operations.undo(first, BY), 409))
        self.done(self.operations.undo(second, BY))
        self.assertEqual(self.weights(), [5, 2])
        self.done(self.operations.undo(first, BY))
        self.assertEqual(self.weights(), [3, 2])
        self.refused(self.operations.undo(first, BY), 409)
        self.refused(self.operations.undo(99, BY), 404)

    def test_an_undone_reload_brings_back_file_and_live_values(self) -> None:
        self.apply(SetWeight("web", A, 7))
        self.edit("weight=3", "weight=5")
        revision = self.reload().revision
        self.assertEqual(self.weights(), [5, 1])
        self.done(self.operations.undo(revision, BY))
        self.assertEqual(self.weights(), [7, 1])

    def test_a_stale_undo_is_412_and_a_preview_of_one_changes_nothing(self) -> None:
        revision = self.apply(SetWeight("web", A, 5)).revision
        self.refused(self.operations.undo(revision, replace(BY, expected_revision=0)), 412)
        self.done(self.operations.undo(revision, replace(BY, is_preview=True)))
        self.assertEqual(self.weights(), [5, 1])


class ConfirmTests(OperationsTestCase):
    def test_unconfirmed_it_is_taken_back_in_time(self) -> None:
        self.assertIsNotNone(self.apply(SetWeight("web", A, 5), confirm_within_s=60.0).confirm_by)
        self.clock.advance(59)
        self.assertEqual(self.weights(), [5, 1])
        self.clock.advance(2)
        self.assertEqual(self.weights(), [3, 1])
        self.assertEqual(self.journal.entries()[-1].by, "revproxy")

    def test_confirmed_it_stays_also_after_a_restart(self) -> None:
        revision = self.apply(SetWeight("web", A, 5), confirm_within_s=60.0).revision
        self.done(self.operations.confirm(revision, "eve"))
        self.refused(self.operations.confirm(revision, "eve"), 409)
        self.restart()
        self.clock.advance(100)
        self.assertEqual((self.weights(), self.journal.entries()[0].confirm_by), ([5, 1], None))

    def test_its_time_may_run_out_while_we_are_down(self) -> None:
        self.apply(SetWeight("web", A, 5), confirm_within_s=60.0)
        self.now += 61
        self.restart()
        self.clock.advance(0)
        self.assertEqual(self.weights(), [3, 1])

    def test_a_confirmation_that_was_first_counts_though_its_time_runs_out_while_it_is_written(self) -> None:
        waiting: list[Callable[[], None]] = []
        at_once = self.journal._in_thread

        def slowly(work: Callable[[], None]) -> Deferred[None]:
            done: Deferred[None] = Deferred()
            waiting.append(lambda: done.callback(work()))
            return done

        self.apply(SetWeight("web", A, 5), confirm_within_s=60)
        self.patch(self.journal, "_in_thread", slowly)
        confirmed = Deferred.fromCoroutine(self.operations.confirm(1, "eve"))
        self.clock.advance(61)
        self.patch(self.journal, "_in_thread", at_once)
        waiting.pop()()
        self.successResultOf(confirmed)
        self.clock.advance(61)
        self.assertEqual((self.weights(), self.plane.revision), ([5, 1], 1))

    def test_a_reload_may_wait_for_confirmation_too(self) -> None:
        self.edit("weight=3", "weight=5")
        self.reload(confirm_within_s=60.0)
        self.clock.advance(61)
        self.assertEqual(self.weights(), [3, 1])

    def test_what_cannot_be_taken_back_stays_and_does_not_wait_for_ever(self) -> None:
        self.apply(SetWeight("web", A, 5), confirm_within_s=60.0)
        self.apply(SetWeight("web", A, 6))
        self.clock.advance(61)
        self.assertEqual((self.weights(), self.journal.unconfirmed()), ([6, 1], []))

    def test_a_guard_takes_it_back_and_says_why(self) -> None:
        self.apply(SetWeight("web", A, 5), abort_if="errors > 1%")
        for _ in range(100):
            self.plane.metrics.http("s", "web").record(A, 502, 0.1)
        self.operations.each_second()
        self.assertEqual(self.weights(), [3, 1])
        self.assertIn("errors 100.00%", self.journal.entries()[-1].reason)

    def test_a_guard_looks_only_at_what_the_change_is_about(self) -> None:
        """Another pool's errors do not undo a good change."""
        self.apply(SetWeight("web", A, 5), abort_if="errors > 1%")
        for _ in range(100):
            self.plane.metrics.http("s", "other").record(A, 502, 0.1)
        self.operations.each_second()
        self.assertEqual(self.weights(), [5, 1])

    def test_a_guard_goes_on_after_a_restart(self) -> None:
        """With the baseline of before, and its way back says why in the journal; a confirmed change is watched no more."""
        for _ in range(100):
            self.plane.metrics.http("s", "web").record(A, 200, 0.004)
        self.apply(SetWeight("web", A, 5), abort_if="p95 > +20%", confirm_within_s=600.0)
        kept = self.apply(SetWeight("web", B, 2), abort_if="errors > 1%", confirm_within_s=600.0).revision
        self.done(self.operations.confirm(kept, "eve"))
        self.now += 300
        self.restart()
        for _ in range(100):
            self.plane.metrics.http("s", "web").record(A, 502, 0.4)
        self.operations.each_second()
        self.assertEqual(self.weights(), [3, 2])
        self.assertRegex(self.journal.entries()[-1].reason, r"p95 > \+20%: p95 \d+.* in 100 requests since the change, .* in 100 before")

    def test_who_guards_a_change_is_told_what_watches_it_and_may_end_that(self) -> None:
        """The journal lists it as guarded, also after a restart and when it was undone; a confirmation ends the watching."""
        applied = self.apply(SetWeight("web", A, 5), abort_if="errors > 1%")
        guarded = applied.guard
        assert guarded is not None
        self.assertEqual((guarded.abort_if, guarded.min_requests, guarded.baseline_requests), ("errors > 1%", 50, 0))
        self.restart()
        self.assertEqual(self.journal.entries()[-1].guard, guarded)
        self.done(self.operations.confirm(applied.revision, "eve"))
        self.assertIsNone(self.journal.entries()[-1].guard)
        self.refused(self.operations.confirm(applied.revision, "eve"), 409)
        for _ in range(100):
            self.plane.metrics.http("s", "web").record(A, 502, 0.1)
        self.operations.each_second()
        self.assertEqual(self.weights(), [5, 1])

    def test_a_guard_whose_time_is_over_does_not_begin_anew(self) -> None:
        self.apply(SetWeight("web", A, 5), abort_if="errors > 1%")
        self.now += 121
        self.restart()
        for _ in range(100):
            self.plane.metrics.http("s", "web").record(A, 502, 0.1)
        self.operations.each_second()
        self.assertEqual(self.weights(), [5, 1])

    def test_a_way_back_that_a_full_disk_refuses_is_tried_again(self) -> None:
        """The reason for it is not forgotten."""
        self.apply(SetWeight("web", A, 5), abort_if="errors > 1%")
        for _ in range(100):
            self.plane.metrics.http("s", "web").record(A, 502, 0.1)
        real = Journal._write
        self.patch(Journal, "_write", full_disk)
        self.operations.each_second()
        self.clock.advance(5)
        self.assertEqual(self.weights(), [5, 1])
        self.patch(Journal, "_write", real)
        self.clock.advance(5)
        self.assertEqual(self.weights(), [3, 1])
        self.assertIn("errors 100.00%", self.journal.entries()[-1].reason)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_condition_that_is_none_refuses_the_change(self) -> None:
        self.refused(self.operations.apply(SetWeight("web", A, 5), replace(BY, abort_if="errors")), 400)
        self.assertEqual(self.weights(), [3, 1])


class AdoptTests(OperationsTestCase):
    def test_shown_first_then_written_and_the_file_s_from_then_on(self) -> None:
        self.apply(SetWeight("web", A, 7))
        edit, applied = self.done(self.operations.adopt(replace(BY, is_preview=True)))
        self.assertIn(f'+servers = ["{A} weight=7", "{B}"]', edit)
        self.assertEqual((applied, self.path.read_text()), (None, TEXT))
        self.assertEqual(len(self.done(self.operations.difference())), 1)
        self.done(self.operations.adopt(BY))
        self.assertEqual(self.path.read_text(), TEXT.replace("weight=3", "weight=7"))
        server = self.plane.model.pools["web"].servers[0]
        self.assertEqual((server.weight, server.weight_set), (7, None))
        self.assertEqual(self.done(self.operations.difference()), [])

    def test_a_value_set_while_the_file_is_written_is_not_overtaken_by_it(self) -> None:
        self.apply(SetWeight("web", A, 7))
        written: Deferred[None] = Deferred()

        def slowly(work: Callable[[], None]) -> Deferred[None]:
            return written.addCallback(lambda _: work())

        self.patch(self.operations, "_in_thread", slowly)
        adopting = Deferred.fromCoroutine(self.operations.adopt(BY))
        setting = Deferred.fromCoroutine(self.operations.apply(SetWeight("web", A, 9), BY))
        written.callback(None)
        self.successResultOf(adopting)
        self.successResultOf(setting)
        self.assertEqual(self.weights(), [9, 1])
        self.assertEqual([d["running"] for d in self.done(self.operations.difference())], [9])

    def test_while_a_successor_reads_the_file_it_is_not_written(self) -> None:
        self.apply(SetWeight("web", A, 7))
        self.operations.is_file_busy = True
        self.refused(self.operations.adopt(BY), 503)
        self.assertEqual(self.path.read_text(), TEXT)
