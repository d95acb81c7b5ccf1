"""The journal's lines say what they said when they are read again."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.changes import ReplaceConfig, SetWeight
from twistedproxy.config.control import Entry
from twistedproxy.config.model import Address
from twistedproxy.supervisor import records
from twistedproxy.supervisor.overrides import Override
from twistedproxy.supervisor.records import Corrupt, Record

A = Address("10.0.0.1:80")
OVERRIDE = Override("web", A, "weight", 1, 5)


def record(revision: int, **more: object) -> Record:
    entry = Entry(revision, "2027-01-15T08:00:00.000Z", "eve", "why", {"kind": "x"}, confirm_by="2027-01-15T08:10:00.000Z")
    inverse = {"kind": "set_weight", "pool": "web", "server": A, "weight": None}
    return Record(entry, {"kind": "set_weight", "pool": "web", "server": A, "weight": 5}, inverse, (OVERRIDE,), **more)  # type: ignore[arg-type]


class RecordTests(SynchronousTestCase):
    def test_what_is_written_is_read(self) -> None:
        one, two = record(4), record(5, undoes=3, superseded=(OVERRIDE,))
        text = records.header(3, "n", (OVERRIDE,)) + records.dump({"config": "old", "revision": 3, "at": ""})
        text += b"".join(records.change_line(r, SetWeight("web", A, 5), "n") for r in (one, two))
        parsed = records.parse(text)
        self.assertEqual((parsed.first, parsed.revision, parsed.overrides, parsed.keep), (3, 5, (OVERRIDE,), len(text)))
        self.assertEqual((parsed.records, parsed.texts), ([one, two], {3: "old"}))

    def test_the_text_of_a_configuration_stays_out_of_memory(self) -> None:
        parsed = records.parse(records.header(0, "n") + records.change_line(record(1), ReplaceConfig("new"), "n"))
        self.assertEqual((parsed.records[0].apply, parsed.texts), ({"kind": "replace_config"}, {1: "new"}))

    def test_confirmed_or_undone_it_does_not_wait(self) -> None:
        text = records.header(0, "n") + b"".join(records.change_line(record(n), SetWeight("web", A, 5), "n") for n in (1, 2, 3))
        text += records.dump({"confirm": 1, "at": "", "by": "eve"})
        text += records.change_line(record(4, undoes=2), SetWeight("web", A, None), "n")
        entries = [r.entry for r in records.parse(text).records]
        self.assertEqual([e.confirm_by is None for e in entries], [True, True, False, False])
        self.assertEqual([e.undone_by for e in entries], [None, 4, None, None])

    def test_a_torn_last_line_is_left_out_and_a_torn_other_one_is_corrupt(self) -> None:
        whole = records.header(0, "n") + records.change_line(record(1), SetWeight("web", A, 5), "n")
        self.assertEqual(records.parse(whole + b'{"revision"').keep, len(whole))
        self.assertRaises(Corrupt, records.parse, whole + b'{"revision"\n')
